// Faults as people ask for them: what shall go wrong, with which packets, and when. One description for the device that
// replay wraps around its underlay and for the gateway, whose faults also come from a file and through the control socket.

import ipaddr from 'ipaddr.js'
import { DetourError } from '../errors.ts'

/** What can go wrong, and what that means. */
export const FAULT_KINDS = {
  drop: 'packets are lost',
  duplicate: 'packets come twice',
  reorder: 'packets are held back until others have overtaken them, so many (depth) at most',
  delay: 'packets are late by so much (time), in their order',
  corrupt: 'one bit is wrong, and so may be checksums',
  truncate: 'packets lose their end',
  mtu: 'of packets whose outer IP packet is larger than this (bytes), all are dropped or truncated (larger)',
  'drop-options': 'all GENEVE options are missing',
  'flip-option': 'one byte of the data of a GENEVE option is inverted',
  'reorder-options': 'the first GENEVE option comes last',
  'critical-option': 'the first GENEVE option claims to be critical',
  'wrong-port': 'answers go to the next UDP port',
  'swap-ports': 'the UDP ports of the tunnel have changed places',
  hang: 'nothing is taken from the socket and nothing sent; the socket stays',
  exit: 'the process ends, with status 1',
  kill: 'the process ends by SIGKILL',
} as const

export type FaultKind = keyof typeof FAULT_KINDS
export const FAULT_NAMES = Object.keys(FAULT_KINDS) as [FaultKind, ...FaultKind[]]

/** Kinds that a device can do without knowing of tunnels. */
export const DEVICE_KINDS: readonly FaultKind[] = ['drop', 'duplicate', 'reorder', 'delay', 'corrupt', 'truncate']
/** Kinds that befall the process and not some packets. */
export const PROCESS_KINDS: readonly FaultKind[] = ['hang', 'exit', 'kill']

export const FAULT_DIRECTIONS = ['transmit', 'receive', 'both'] as const
export type FaultDirection = (typeof FAULT_DIRECTIONS)[number]

/** Faults at a time, at most. */
export const MAX_FAULTS = 32
/** Packets that may overtake another, at most. */
export const MAX_DEPTH = 64

const LONGEST_MS = 24 * 3_600_000
const UNIT_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 } as const
const PROTOCOLS: Readonly<Record<string, number>> = { icmp: 1, tcp: 6, udp: 17, icmp6: 58 }

/** An address prefix: of the bytes the first `bits` bits count. */
export interface Prefix {
  bytes: number[]
  bits: number
}

/** The settings of a fault: how each is written, and what it becomes; undefined for what is not allowed. */
export const SETTINGS = {
  share: { allowed: 'a probability, 0 to 100% or 0 to 1', read: readShare },
  at: { allowed: 'a time such as 500ms, 5s or 2m, 24h at most', read: readTime },
  for: { allowed: 'a time such as 500ms, 5s or 2m, 24h at most', read: readTime },
  direction: { allowed: FAULT_DIRECTIONS.join(', '), read: (text: string) => oneOf(FAULT_DIRECTIONS, text) },
  cidr: { allowed: 'an address or a prefix such as 10.0.0.0/8', read: readPrefix },
  port: { allowed: 'a port, 0 to 65535', read: (text: string) => readInteger(text, 0, 0xffff) },
  protocol: { allowed: 'tcp, udp, icmp, icmp6 or a number', read: readProtocol },
  depth: {
    allowed: `a whole number of packets, 1 to ${MAX_DEPTH}`,
    read: (text: string) => readInteger(text, 1, MAX_DEPTH),
  },
  time: { allowed: 'a time such as 50ms, 24h at most', read: readTime },
  bytes: { allowed: 'a whole number of bytes, 68 to 65535', read: (text: string) => readInteger(text, 68, 0xffff) },
  larger: { allowed: 'drop, truncate', read: (text: string) => oneOf(['drop', 'truncate'] as const, text) },
  seed: { allowed: 'a whole number, 0 to 2147483647', read: (text: string) => readInteger(text, 0, 0x7fff_ffff) },
} as const

export type SettingName = keyof typeof SETTINGS
export const SETTING_NAMES = Object.keys(SETTINGS) as SettingName[]
/** Settings as read. */
export type Settings = { [S in SettingName]?: NonNullable<ReturnType<(typeof SETTINGS)[S]['read']>> }
/** Which flows a fault is for: the inner packet's, either side's where there are two. */
export const FLOW_SETTINGS = ['cidr', 'port', 'protocol'] as const

/** One fault: plain data that passes through workerData. What is not set is the face's to choose. */
export interface Fault extends Settings {
  /** Among those that are there together. */
  id: number
  kind: FaultKind
  share: number
  seed: number
  /** A double a worker: how many packets it has befallen. */
  tally?: SharedArrayBuffer
}

/** Faults, and the seed of those that have none of their own. */
export interface Faults {
  seed: number
  faults: Fault[]
}

/** A setting that contradicts a kind of fault, or that it lacks; undefined when all is well. */
export function flawOf(kind: FaultKind, settings: Settings): { setting: SettingName; allowed: string } | undefined {
  const only = (setting: SettingName, of: FaultKind) =>
    settings[setting] !== undefined && kind !== of && { setting, allowed: `${of} faults only` }
  const lacks = (setting: SettingName, of: FaultKind) =>
    settings[setting] === undefined && kind === of && { setting, allowed: SETTINGS[setting].allowed }
  const none = (['share', 'direction', 'depth', ...FLOW_SETTINGS] as const).find(
    setting => settings[setting] !== undefined && PROCESS_KINDS.includes(kind),
  )
  return (
    (none !== undefined && { setting: none, allowed: `not with ${kind}, which befalls all` }) ||
    lacks('time', 'delay') ||
    lacks('bytes', 'mtu') ||
    only('bytes', 'mtu') ||
    only('larger', 'mtu') ||
    only('time', 'delay') ||
    only('depth', 'reorder') ||
    undefined
  )
}

/** A fault of a kind; its id is 0. */
export function faultOf(kind: FaultKind, settings: Settings, seed: number): Fault {
  return { id: 0, kind, share: 1, seed, ...settings }
}

/** Other names of kinds. */
const ALIASES: Readonly<Record<string, FaultKind>> = { loss: 'drop' }
/** What a kind's own number is; the share where nothing is said. */
const OWN: { readonly [K in FaultKind]?: SettingName } = { delay: 'time', mtu: 'bytes' }

/**
 * Reads `drop=1%,reorder=0.05,depth=8,seed=7` or `mtu=1400,larger=truncate,at=5s,for=10s,port=80`: faults, each with its share
 * or own number, and settings, which are those of all faults beside them that have such. `delay=8` without a unit is a
 * `depth`. `kinds` and `settings` are those allowed. Throws DetourError (usage).
 */
export function parseFaults(
  text: string,
  kinds: readonly FaultKind[] = FAULT_NAMES,
  allowedSettings: readonly SettingName[] = SETTING_NAMES,
  usualSeed = 1,
): Faults {
  const named: { kind: FaultKind; own: Settings; word: string }[] = []
  const shared: Settings = {}
  for (const word of text.split(',')) {
    const [, name, value] = /^([a-z-]+)(?:=(\S+))?$/.exec(word.trim()) ?? []
    const kind = ALIASES[name] ?? oneOf(kinds, name ?? '')
    if (name === 'delay' && /^[\d.]+%?$/.test(value ?? '')) read(word, name, 'depth', value, shared)
    else if (kind !== undefined && kinds.includes(kind)) {
      const own: Settings = {}
      if (value !== undefined) read(word, name, OWN[kind] ?? 'share', value, own)
      named.push({ kind, own, word })
    } else if (value !== undefined && oneOf(allowedSettings, name) !== undefined) {
      read(word, name, name as SettingName, value, shared)
    } else throw usage(word, `allowed are ${[...kinds, ...allowedSettings].join(', ')}, as in drop=1%,seed=7`)
  }
  const seed = shared.seed ?? usualSeed
  const faults = named.map(({ kind, own, word }, id) => {
    const settings: Settings = { ...without(shared, kind), ...own }
    const flaw = flawOf(kind, settings)
    if (flaw !== undefined) throw usage(word, `${flaw.setting}: ${flaw.allowed}`)
    return { ...faultOf(kind, settings, seed), id }
  })
  if (faults.length > MAX_FAULTS) throw usage(text, `${MAX_FAULTS} at most`)
  return { seed, faults }
}

/** How a fault would be written, but for its seed: `mtu=1400,larger=drop`. */
export function describeFault({ kind, share, cidr, ...rest }: Fault): string {
  const words: (string | undefined)[] = [
    rest.bytes !== undefined
      ? `${kind}=${rest.bytes}`
      : rest.time !== undefined
        ? `${kind}=${writeTime(rest.time)}`
        : kind,
    share === 1 ? undefined : `share=${Number((share * 100).toPrecision(6))}%`,
    ...(['larger', 'depth', 'direction', 'port', 'protocol'] as const).map(name =>
      rest[name] === undefined ? undefined : `${name}=${rest[name]}`,
    ),
    cidr && `cidr=${ipaddr.fromByteArray(cidr.bytes)}/${cidr.bits}`,
    rest.at ? `at=${writeTime(rest.at)}` : undefined,
    rest.for === undefined ? undefined : `for=${writeTime(rest.for)}`,
  ]
  return words.filter(word => word !== undefined).join(',')
}

/** The settings that are of use to a kind beside others that they are meant for. */
function without(settings: Settings, kind: FaultKind): Settings {
  const { depth, ...rest } = settings
  return depth === undefined || kind === 'reorder' ? settings : rest
}

/** Reads the value of a setting that the people call `name`. */
function read(word: string, name: string, setting: SettingName, value: string, into: Settings): void {
  const found = SETTINGS[setting].read(value)
  if (found === undefined) throw usage(word, `${name} is ${SETTINGS[setting].allowed}`)
  Object.assign(into, { [setting]: found })
}

const usage = (part: string, allowed: string) => new DetourError('usage', `fault '${part}': ${allowed}`)

function oneOf<const Word extends string>(words: readonly Word[], text: string): Word | undefined {
  return words.find(word => word === text)
}

function readShare(text: string): number | undefined {
  const [, digits, percent] = /^(\d*\.?\d+)(%?)$/.exec(text) ?? []
  const share = Number(digits) / (percent === '%' ? 100 : 1)
  return share <= 1 ? share : undefined
}

/** In ms. */
function readTime(text: string): number | undefined {
  const [, digits, unit] = /^(\d*\.?\d+)(ms|s|m|h)$/.exec(text) ?? []
  const ms = Math.round(Number(digits) * UNIT_MS[unit as keyof typeof UNIT_MS])
  return ms <= LONGEST_MS ? ms : undefined
}

const writeTime = (ms: number) => (ms % 1000 === 0 ? `${ms / 1000}s` : `${ms}ms`)

function readInteger(text: string, least: number, most: number): number | undefined {
  const value = /^\d{1,10}$/.test(text) ? Number(text) : -1
  return value >= least && value <= most ? value : undefined
}

function readProtocol(text: string): number | undefined {
  return Object.hasOwn(PROTOCOLS, text) ? PROTOCOLS[text] : readInteger(text, 0, 255)
}

function readPrefix(text: string): Prefix | undefined {
  const [address, length, more] = text.split('/')
  if (more !== undefined || !(ipaddr.IPv4.isValidFourPartDecimal(address) || ipaddr.IPv6.isValid(address)))
    return undefined
  const bytes = ipaddr.parse(address).toByteArray()
  const bits = length === undefined ? bytes.length * 8 : readInteger(length, 0, bytes.length * 8)
  return bits === undefined ? undefined : { bytes, bits }
}
