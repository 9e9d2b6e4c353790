// What a runtime gives on standard input: Detour's entry of the network configuration, with what the runtime adds to it
// (CNI specification 1.1.0, section 3, "Deriving request configuration from plugin configuration").

import { isIP } from 'node:net'
import { CniError, CODE, shown } from './error.ts'
import { isContainerId, isInterfaceName } from './parameters.ts'

/** The entry of a network configuration, checked. Keys that Detour does not know are no error. */
export interface Configuration {
  cniVersion: string
  /** The network's name. */
  name: string
  /** The daemon's control socket. */
  socket: string
  /** For pods that do not say. */
  inspect: 'default' | 'always' | 'never'
  /** Pods of these namespaces are left alone without asking the daemon. */
  excludeNamespaces: string[]
  failMode?: 'open' | 'closed'
  /** No chain: what is meant is the pod's POD_INTERFACE, which another network's plugins have made. */
  unchained: boolean
  /** Gets a line of JSON for each call. */
  logFile?: string
  /** The pod's, where the runtime passes them on: those that Detour gives a meaning. */
  annotations: Record<string, string>
  /** What the plugins before this one did. */
  prevResult?: JsonObject
}

export type JsonObject = Record<string, unknown>

/** What kubelets' runtimes call a pod's first interface. */
export const POD_INTERFACE = 'eth0'

export const DEFAULT_SOCKET = '/run/detour/detour.sock'

/** The capability by which containerd and CRI-O pass on a pod's annotations. */
export const ANNOTATIONS = 'io.kubernetes.cri.pod-annotations'

/** Decodes JSON that must be an object. Throws CniError 6. */
export function decode(bytes: Uint8Array): JsonObject {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw new CniError(CODE.UNDECODABLE, 'the network configuration is not JSON', (error as Error).message)
  }
  if (isObject(value)) return value
  throw new CniError(CODE.UNDECODABLE, 'the network configuration is not a JSON object', `it is ${shown(value)}`)
}

/** The specification's version; a configuration that does not say is 0.1.0. */
export function cniVersionOf(json: JsonObject): string {
  const { cniVersion = '0.1.0' } = json
  if (typeof cniVersion === 'string') return cniVersion
  throw new CniError(CODE.UNDECODABLE, 'cniVersion is not a string', `cniVersion is ${shown(cniVersion)}`)
}

/** Checks a decoded entry. Throws CniError 7 for a wrong type, 2 for a value that is not supported, which name the key. */
export function readConfiguration(json: JsonObject): Configuration {
  return {
    cniVersion: cniVersionOf(json),
    name: expect(json, 'name', isName, 'a network name: letters, digits, _ . and -, the first a letter or digit'),
    socket: readSocket(json),
    inspect: choose(json, 'inspect', ['default', 'always', 'never']) ?? 'default',
    excludeNamespaces: optional(json, 'excludeNamespaces', isStrings, 'a list of strings') ?? [],
    failMode: choose(json, 'failMode', ['open', 'closed']),
    unchained: optional(json, 'unchained', isBoolean, 'true or false') ?? false,
    logFile: optional(json, 'logFile', isPath, 'an absolute path'),
    annotations: readAnnotations(json),
    prevResult: readPrevResult(json),
  }
}

/** The socket alone, or the default: for DEL, which must get as far as it can. */
export function socketOf(json: JsonObject): string {
  return isSocket(json.socket) ? json.socket : DEFAULT_SOCKET
}

/** The addresses of the pod's interface `ifname`, address/length; those that the result gives to no interface count too. */
export function addressesOf(prevResult: JsonObject | undefined, ifname: string): string[] {
  const { interfaces = [], ips = [] } = (prevResult ?? {}) as { interfaces?: JsonObject[]; ips?: JsonObject[] }
  const isOurs = (index: unknown) => {
    if (index == null) return true
    const found = interfaces[index as number]
    return found?.name === ifname && Boolean(found.sandbox)
  }
  return ips.filter(ip => isOurs(ip.interface)).map(ip => ip.address as string)
}

/**
 * The attachments that GC leaves alone, from the list under its name in the tagged 1.1.0 and the one after it; null is
 * what libcni writes when there are none. Throws CniError 7 when there is no such key or an element is no attachment,
 * because what is not in the list is removed.
 */
export function validAttachments(json: JsonObject): { containerId: string; ifname: string }[] {
  const keys = ['cni.dev/attachments', 'cni.dev/valid-attachments'].filter(key => Object.hasOwn(json, key))
  if (keys.length === 0) {
    throw new CniError(
      CODE.BAD_CONFIG,
      'GC without cni.dev/valid-attachments',
      'a list of the valid attachments is needed',
    )
  }
  return keys.flatMap(key =>
    (optional(json, key, isObjects, 'a list of objects') ?? []).map((item, index) => {
      const where = `${key}[${index}]`
      return {
        containerId: expect(item, 'containerID', isContainer, 'a container ID', where),
        ifname: expect(item, 'ifname', isInterface, 'the name of an interface', where),
      }
    }),
  )
}

function readSocket(json: JsonObject): string {
  return optional(json, 'socket', isSocket, 'an absolute path of up to 107 bytes') ?? DEFAULT_SOCKET
}

function readAnnotations(json: JsonObject): Record<string, string> {
  const runtime = optional(json, 'runtimeConfig', isObject, 'an object') ?? {}
  const all = optional(runtime, ANNOTATIONS, isObject, 'an object of strings', 'runtimeConfig') ?? {}
  const ours = Object.keys(all).filter(key => /^(detour\.dev|paloaltonetworks\.com)\//.test(key))
  return Object.fromEntries(ours.map(key => [key, expect(all, key, isString, 'a string', ANNOTATIONS)]))
}

function readPrevResult(json: JsonObject): JsonObject | undefined {
  const result = optional(json, 'prevResult', isObject, 'an object')
  if (result === undefined) return undefined
  optional(result, 'interfaces', isObjects, 'a list of objects', 'prevResult')
  const ips = optional(result, 'ips', isObjects, 'a list of objects', 'prevResult') ?? []
  ips.forEach((ip, index) => {
    const where = `prevResult.ips[${index}]`
    expect(ip, 'address', isPrefix, 'an address with its prefix length', where)
    optional(ip, 'interface', isIndex, 'an index into interfaces', where)
  })
  return result
}

type Is<T> = (value: unknown) => value is T

function expect<T>(json: JsonObject, key: string, is: Is<T>, what: string, where = ''): T {
  const value = Object.hasOwn(json, key) ? json[key] : undefined
  if (is(value)) return value
  const name = where === '' ? key : `${where}.${key}`
  throw new CniError(CODE.BAD_CONFIG, `invalid ${name}`, `${name} is ${shown(value)}; expected: ${what}`)
}

/** As `expect`; a key that is absent or null is undefined. */
function optional<T>(json: JsonObject, key: string, is: Is<T>, what: string, where = ''): T | undefined {
  return !Object.hasOwn(json, key) || json[key] === null ? undefined : expect(json, key, is, what, where)
}

function choose<T extends string>(json: JsonObject, key: string, choices: T[]): T | undefined {
  const value = optional(json, key, isString, `one of ${choices.join(', ')}`)
  if (value === undefined || choices.includes(value as T)) return value as T | undefined
  const details = `${key} is ${shown(value)}; supported: ${choices.join(', ')}`
  throw new CniError(CODE.UNSUPPORTED_FIELD, `unsupported ${key} ${shown(value)}`, details)
}

const isString = (value: unknown): value is string => typeof value === 'string'
const isBoolean = (value: unknown): value is boolean => typeof value === 'boolean'
const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
const isObjects = (value: unknown): value is JsonObject[] => Array.isArray(value) && value.every(isObject)
const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString)
const isName = (value: unknown): value is string => isString(value) && isContainerId(value)
const isContainer = isName
const isInterface = (value: unknown): value is string => isString(value) && isInterfaceName(value)
const isPath = (value: unknown): value is string => isString(value) && /^\/[^\0]*$/.test(value)
const isSocket = (value: unknown): value is string => isPath(value) && Buffer.byteLength(value) <= 107
const isIndex = (value: unknown): value is number => Number.isInteger(value)

function isPrefix(value: unknown): value is string {
  const [, address, bits] = (isString(value) && /^([0-9a-fA-F:.]+)\/(\d{1,3})$/.exec(value)) || []
  const version = isIP(address ?? '')
  return version !== 0 && Number(bits) <= (version === 4 ? 32 : 128)
}
