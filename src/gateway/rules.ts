// The rule file: an ordered list of what the gateway allows, drops and resets. The first rule that matches decides.

import { isIP } from 'node:net'
import { z } from 'zod'
import { integer, oneOf, parseYaml, readYaml, section, text } from '../control/yaml.ts'
import { compilePattern, type Pattern } from './automaton.ts'

export const ACTIONS = ['allow', 'drop', 'reset'] as const
export type Action = (typeof ACTIONS)[number]

/** What a payload must hold: the pattern, somewhere in `depth` bytes behind `offset` of a stream (TCP) or datagram. */
export interface Signature {
  pattern: Pattern
  offset: number
  /** Infinity when not limited. */
  depth: number
}

/** A rule; what is left out matches everything. */
export interface Rule {
  name: string
  from?: string[]
  to?: string[]
  protocol?: 'tcp' | 'udp' | 'icmp' | 'icmpv6' | number
  ports?: (number | string)[]
  signature?: Signature
  action: Action
}

/** A rule file that was understood: plain data, passes through workerData. */
export interface Rules {
  default: Action
  rules: Rule[]
}

/** What a gateway without a rule file does. */
export const ALLOW_ALL: Rules = { default: 'allow', rules: [] }

/** Rules with a signature, at most: each flow keeps one bit for each. */
export const LIMIT_SIGNATURES = 31

/** Rules, at most. */
export const LIMIT_RULES = 1024

const PROTOCOLS = ['tcp', 'udp', 'icmp', 'icmpv6'] as const

const cidrs = () =>
  z.array(text('an address or a CIDR block such as 10.0.0.0/8 or fd00::/8', isCidr)).nonempty().optional()

const ports = z
  .array(
    z.custom<number | string>(value => isWhole(value, 65535) || isPortRange(value), {
      error: "allowed: a port from 0 to 65535, or a range such as '8000-8100'",
    }),
  )
  .nonempty()
  .optional()

const signature = section({
  regex: z.string().optional(),
  flags: text('the letters i (ignore case) and s (a dot matches line ends too)', isFlags).optional(),
  text: text('text that is not empty', value => value !== '').optional(),
  bytes: text("hexadecimal bytes such as 'de ad be ef'", isHex).optional(),
  offset: integer(0, 0x7fff_ffff, 'bytes').default(0),
  depth: integer(1, 0x7fff_ffff, 'bytes').default(Number.POSITIVE_INFINITY),
}).transform((given, context): Signature => {
  const { regex, flags, offset, depth } = given
  const fail = (key: string, message: string) => {
    context.addIssue({ code: 'custom', path: key === '' ? [] : [key], message })
    return z.NEVER
  }
  if ([regex, given.text, given.bytes].filter(form => form !== undefined).length !== 1)
    return fail('', 'allowed: exactly one of regex, text and bytes')
  if (regex === undefined && flags !== undefined) return fail('flags', 'allowed: only beside regex')
  const pattern: Pattern =
    regex !== undefined ? { regex, flags: flags ?? '' } : { bytes: literal(given.text, given.bytes) }
  try {
    compilePattern(pattern)
  } catch (error) {
    return fail(regex === undefined ? '' : 'regex', (error as Error).message)
  }
  return { pattern, offset, depth }
})

const rule = section({
  name: text('up to 64 printable characters, other than the word default', isName).optional(),
  from: cidrs(),
  to: cidrs(),
  protocol: z
    .custom<NonNullable<Rule['protocol']>>(value => PROTOCOLS.some(name => name === value) || isWhole(value, 255), {
      error: `allowed: ${PROTOCOLS.join(', ')}, or a number from 0 to 255`,
    })
    .optional(),
  ports,
  signature: signature.optional(),
  action: oneOf(ACTIONS),
}).superRefine((one, context) => {
  if (one.ports !== undefined && !hasPorts(one.protocol))
    context.addIssue({
      code: 'custom',
      path: ['ports'],
      message: 'allowed: only beside protocol: tcp or protocol: udp',
    })
})

const file = section({
  default: oneOf(ACTIONS).default('allow'),
  rules: z
    .array(rule, { error: 'allowed: a list of rules' })
    .max(LIMIT_RULES, { error: `allowed: up to ${LIMIT_RULES} rules` })
    .default([]),
}).transform((given, context): Rules => {
  const rules = given.rules.map((one, i) => ({ ...one, name: one.name ?? `rule ${i + 1}` }))
  for (const [i, { name }] of rules.entries())
    if (rules.findIndex(other => other.name === name) < i)
      context.addIssue({
        code: 'custom',
        path: ['rules', i, 'name'],
        message: 'allowed: a name that no other rule has',
      })
  const signed = rules.flatMap((one, i) => (one.signature === undefined ? [] : [i]))
  if (signed.length > LIMIT_SIGNATURES)
    context.addIssue({
      code: 'custom',
      path: ['rules', signed[LIMIT_SIGNATURES], 'signature'],
      message: `allowed: up to ${LIMIT_SIGNATURES} rules with a signature`,
    })
  return { default: given.default, rules }
})

/** Reads a rule file; throws DetourError with everything that is wrong in it. */
export function readRules(path: string): Rules {
  return readYaml(file, path)
}

/** Like `readRules`, of text; `path` is for errors. */
export function parseRules(source: string, path: string): Rules {
  return parseYaml(file, source, path)
}

function isCidr(value: string): boolean {
  const [address, bits, ...rest] = value.split('/')
  const family = address.includes('%') ? 0 : isIP(address)
  if (family === 0 || rest.length > 0) return false
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128))
}

function isWhole(value: unknown, most: number): boolean {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= most
}

function isPortRange(value: unknown): boolean {
  const [, low, high] = (typeof value === 'string' && /^(\d{1,5})-(\d{1,5})$/.exec(value)) || []
  return low !== undefined && Number(low) <= Number(high) && Number(high) <= 65535
}

function isFlags(value: string): boolean {
  return /^[is]*$/.test(value)
}

function isHex(value: string): boolean {
  return /^([0-9a-f]{2}[\s:]?)+$/i.test(value.trim())
}

function isName(value: string): boolean {
  return /^[\x20-\x7e]{1,64}$/.test(value) && value !== 'default'
}

function hasPorts(protocol: Rule['protocol']): boolean {
  return protocol === 'tcp' || protocol === 'udp' || protocol === 6 || protocol === 17
}

function literal(text: string | undefined, hex: string | undefined): Uint8Array {
  return Uint8Array.from(text !== undefined ? Buffer.from(text) : Buffer.from(hex!.replace(/[\s:]/g, ''), 'hex'))
}
