// The parameters that a runtime gives in the environment (CNI specification 1.1.0, section 2, "Parameters").

import { CniError, CODE, shown } from './error.ts'

export type Environment = Record<string, string | undefined>

/** What a verb is about. What the verb does not need, or the runtime does not say, is an empty string. */
export interface Parameters {
  containerId: string
  ifname: string
  netns: string
  podNamespace: string
  podName: string
  podUid: string
  /** What CNI_ARGS sets in the way of annotations. */
  annotations: Record<string, string>
}

interface Variable {
  neededBy: string[]
  good(value: string): boolean
  allowed: string
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$/
const NAME_RULE = 'up to 255 letters, digits, _ . and -, the first a letter or digit'

const VARIABLES = {
  CNI_CONTAINERID: { neededBy: ['ADD', 'DEL', 'CHECK'], good: isContainerId, allowed: NAME_RULE },
  CNI_IFNAME: {
    neededBy: ['ADD', 'DEL', 'CHECK'],
    good: isInterfaceName,
    allowed: 'up to 15 bytes without /, : and white space, and neither . nor ..',
  },
  CNI_NETNS: {
    neededBy: ['ADD', 'CHECK'],
    good: value => value.startsWith('/') && Buffer.byteLength(value) <= 4095,
    allowed: 'an absolute path',
  },
} satisfies Record<string, Variable>

const POD_KEYS = new Map<string, 'podNamespace' | 'podName' | 'podUid'>([
  ['K8S_POD_NAMESPACE', 'podNamespace'],
  ['K8S_POD_NAME', 'podName'],
  ['K8S_POD_UID', 'podUid'],
])

/** For runtimes that pass on no annotations. */
const ANNOTATION_KEYS = new Map([
  ['DETOUR_INSPECT', 'detour.dev/inspect'],
  ['DETOUR_FAIL_MODE', 'detour.dev/fail-mode'],
])

export function isContainerId(value: string): boolean {
  return NAME.test(value)
}

/** The kernel's rule for names of interfaces (net/core/dev.c, dev_valid_name). */
export function isInterfaceName(value: string): boolean {
  return value !== '.' && value !== '..' && /^[^/:\s]+$/u.test(value) && Buffer.byteLength(value) <= 15
}

/** Reads what `verb` needs. Throws CniError 4 that names the variable. DEL takes CNI_NETNS and CNI_ARGS for absent if they are bad. */
export function readParameters(env: Environment, verb: string): Parameters {
  const needed = Object.entries(VARIABLES).filter(([, { neededBy }]) => neededBy.includes(verb))
  const missing = needed.map(([name]) => name).filter(name => !env[name])
  if (missing.length > 0) {
    throw new CniError(CODE.BAD_ENVIRONMENT, `missing in the environment: ${missing.join(', ')}`)
  }
  for (const [name, { good, allowed }] of needed) check(name, env[name]!, good, allowed)

  const { CNI_CONTAINERID = '', CNI_IFNAME = '', CNI_NETNS = '', CNI_ARGS = '' } = needed.length > 0 ? env : {}
  const read: Parameters = {
    containerId: CNI_CONTAINERID,
    ifname: CNI_IFNAME,
    netns: VARIABLES.CNI_NETNS.good(CNI_NETNS) ? CNI_NETNS : '',
    podNamespace: '',
    podName: '',
    podUid: '',
    annotations: {},
  }
  if (verb === 'ADD' || verb === 'CHECK') readArgs(CNI_ARGS, read)
  return read
}

/** Reads `KEY=VALUE;KEY=VALUE`. Keys that Detour has no use for are left alone, with IgnoreUnknown and without. */
function readArgs(args: string, into: Parameters): void {
  for (const pair of args.split(';').filter(pair => pair !== '')) {
    check('CNI_ARGS', pair, text => text.indexOf('=') > 0, 'KEY=VALUE pairs with semicolons between them')
    const [key, value] = [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]
    if (value === '') continue
    const field = POD_KEYS.get(key)
    const annotation = ANNOTATION_KEYS.get(key)
    if (field !== undefined) {
      check(`CNI_ARGS: ${key}`, value, text => NAME.test(text), NAME_RULE)
      into[field] = value
    }
    if (annotation !== undefined) into.annotations[annotation] = value
  }
}

function check(name: string, value: string, good: Variable['good'], allowed: string): void {
  if (good(value)) return
  throw new CniError(CODE.BAD_ENVIRONMENT, `invalid ${name}`, `${name} is ${shown(value)}; allowed: ${allowed}`)
}
