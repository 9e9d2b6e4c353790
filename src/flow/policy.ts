// Policy: an ordered list of rules over a flow's first packet; the first that matches decides.
//
// Compiled to words: RULE words a rule, then the lists that the rules point into, CIDR words a block of addresses
// (version, address, mask) and two words a range of ports.

import ipaddr from 'ipaddr.js'
import { DetourError } from '../errors.ts'
import { PROTOCOL } from '../wire/ipv4.ts'
import { hasPorts, KEY } from './key.ts'

/** A rule as people write it: what is left out matches everything, a list matches when one of its entries does. */
export interface PolicyRule {
  name?: string
  /** Addresses or CIDR blocks of the sender of the flow's first packet. */
  from?: readonly string[]
  to?: readonly string[]
  protocol?: keyof typeof NAMED | number
  /** Source ports, or ranges: `'1024-65535'`. */
  sourcePorts?: readonly (number | string)[]
  /** Destination ports. */
  ports?: readonly (number | string)[]
  /** One of VERDICT. */
  verdict: number
}

/** A compiled policy: plain data, passes through workerData. */
export interface PolicyHandle {
  words: Int32Array
  names: string[]
  /** The verdict when no rule matches. */
  otherwise: number
}

const NAMED = { tcp: PROTOCOL.TCP, udp: PROTOCOL.UDP, icmp: PROTOCOL.ICMP, icmpv6: PROTOCOL.ICMPV6 } as const

// Words of a rule; a list is its first word and the word behind its last.
const VERDICT = 0
const ANY = -1
const PROTOCOL_AT = 1
const FROM = 2
const TO = 4
const SOURCE_PORTS = 6
const PORTS = 8
const RULE = 10
const CIDR = 9
const MASK = 5

/** Compiles rules; `where` is the key they are configured under. Throws DetourError `bad-config`. */
export function compile(rules: readonly PolicyRule[], otherwise: number, where = 'rules'): PolicyHandle {
  const heads: number[] = []
  const lists: number[] = []
  const list = (entries: number[][]): [number, number] => {
    const start = rules.length * RULE + lists.length
    lists.push(...entries.flat())
    return [start, rules.length * RULE + lists.length]
  }
  const names = rules.map((rule, i) => {
    const key = `${where}[${i}]`
    const protocol = readProtocol(rule, key)
    const head = [
      rule.verdict,
      protocol,
      ...list(readList(rule.from, `${key}.from`, readBlock)),
      ...list(readList(rule.to, `${key}.to`, readBlock)),
      ...list(readList(rule.sourcePorts, `${key}.sourcePorts`, readPorts)),
      ...list(readList(rule.ports, `${key}.ports`, readPorts)),
    ]
    heads.push(...head)
    return rule.name ?? `rule ${i + 1}`
  })
  return { words: Int32Array.from([...heads, ...lists]), names, otherwise }
}

/** A compiled policy at work. */
export class Policy {
  private readonly words: Int32Array
  private readonly names: string[]
  private readonly otherwise: number
  private readonly rules: number

  constructor(handle: PolicyHandle) {
    this.words = handle.words
    this.names = handle.names
    this.otherwise = handle.otherwise
    this.rules = handle.names.length
  }

  /** Number of the first rule that matches a flow whose first packet has the key at `keys[at]`, or -1. */
  match(keys: Int32Array, at: number, reversed: number): number {
    const { words, rules } = this
    const protocol = (keys[at + KEY.KIND] >>> 16) & 0xff
    const source = at + (reversed !== 0 ? KEY.B : KEY.A)
    const destination = at + (reversed !== 0 ? KEY.A : KEY.B)
    const portA = keys[at + KEY.PORTS] >>> 16
    const portB = keys[at + KEY.PORTS] & 0xffff
    for (let i = 0; i < rules; i++) {
      const rule = i * RULE
      if (words[rule + PROTOCOL_AT] !== ANY && words[rule + PROTOCOL_AT] !== protocol) continue
      if (!this.portMatches(rule + PORTS, reversed !== 0 ? portA : portB, protocol)) continue
      if (!this.portMatches(rule + SOURCE_PORTS, reversed !== 0 ? portB : portA, protocol)) continue
      if (!this.addressMatches(rule + FROM, keys, at, source)) continue
      if (!this.addressMatches(rule + TO, keys, at, destination)) continue
      return i
    }
    return -1
  }

  /** The verdict of a rule; of -1, the default. */
  verdict(rule: number): number {
    return rule < 0 ? this.otherwise : this.words[rule * RULE + VERDICT]
  }

  /** The name of a rule; of -1, `default`. */
  name(rule: number): string {
    return rule < 0 ? 'default' : this.names[rule]
  }

  private portMatches(list: number, port: number, protocol: number): boolean {
    const { words } = this
    const end = words[list + 1]
    if (words[list] === end) return true
    if (!hasPorts(protocol)) return false
    for (let range = words[list]; range < end; range += 2)
      if (port >= words[range] && port <= words[range + 1]) return true
    return false
  }

  private addressMatches(list: number, keys: Int32Array, at: number, address: number): boolean {
    const { words } = this
    const end = words[list + 1]
    if (words[list] === end) return true
    const version = keys[at + KEY.KIND] >>> 24
    for (let block = words[list]; block < end; block += CIDR) {
      if (words[block] !== version) continue
      let i = 0
      while (i < 4 && ((keys[address + i] ^ words[block + 1 + i]) & words[block + MASK + i]) === 0) i++
      if (i === 4) return true
    }
    return false
  }
}

function readProtocol(rule: PolicyRule, key: string): number {
  const { protocol } = rule
  if (protocol === undefined) return ANY
  const number = typeof protocol === 'number' ? protocol : Object.hasOwn(NAMED, protocol) ? NAMED[protocol] : -1
  if (!Number.isInteger(number) || number < 0 || number > 255)
    refuse(`${key}.protocol`, protocol, `${Object.keys(NAMED).join(', ')} or a number from 0 to 255`)
  if ((rule.ports ?? rule.sourcePorts) !== undefined && !hasPorts(number))
    refuse(`${key}.protocol`, protocol, 'a protocol that has ports, where ports are given: tcp, udp, 33, 132 or 136')
  return number
}

function readList<T>(
  entries: readonly T[] | undefined,
  key: string,
  read: (entry: T, key: string) => number[],
): number[][] {
  if (entries === undefined) return []
  if (entries.length === 0) refuse(key, '[]', 'at least one entry; leave the key out to match everything')
  return entries.map((entry, i) => read(entry, `${key}[${i}]`))
}

// version, four words of address, four of mask
function readBlock(text: string, key: string): number[] {
  const match = /^([0-9a-f.:]+)(?:\/(\d{1,3}))?$/i.exec(text)
  const address = match?.[1] ?? ''
  const version = ipaddr.IPv4.isValidFourPartDecimal(address)
    ? 4
    : ipaddr.IPv6.isValid(address) && address.includes(':')
      ? 6
      : 0
  const bits = version === 4 ? 32 : 128
  const prefix = Number(match?.[2] ?? bits)
  if (version === 0 || prefix > bits)
    refuse(key, text, 'an address or a CIDR block: 10.0.0.0/8 (up to /32), fd00::/8 (up to /128)')
  const bytes = ipaddr.parse(address).toByteArray()
  const words = [0, 0, 0, 0]
  const masks = [0, 0, 0, 0]
  for (const [i, byte] of bytes.entries()) words[i >> 2] |= byte << (24 - 8 * (i & 3))
  for (let bit = 0; bit < prefix; bit++) masks[bit >> 5] |= 1 << (31 - (bit & 31))
  return [version, ...words, ...masks]
}

function readPorts(entry: number | string, key: string): number[] {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(String(entry))
  const low = Number(match?.[1])
  const high = Number(match?.[2] ?? low)
  if (!(low <= high && high <= 0xffff)) refuse(key, entry, "a port from 0 to 65535, or a range 'low-high' of them")
  return [low, high]
}

function refuse(key: string, value: unknown, allowed: string): never {
  throw new DetourError('bad-config', `${key}: '${value}' is not allowed; allowed is ${allowed}`)
}
