// Addresses and ports of a rule's header: lists, negation, ranges, and variables that stand for them.

import { isIP } from 'node:net'
import ipaddr from 'ipaddr.js'
import { DetourError } from '../../errors.ts'

/** Addresses from `low` to `high`; those of IPv4 as numbers below 2^32, those of IPv6 from SIX on. */
export interface Range {
  low: bigint
  high: bigint
}

export interface PortRange {
  low: number
  high: number
}

/** What names stand for, as text of the rule language. */
export type Variables = Record<string, string>

/** Suricata's own, as its suricata.yaml comes. */
export const DEFAULT_VARIABLES: Variables = {
  HOME_NET: '[192.168.0.0/16,10.0.0.0/8,172.16.0.0/12]',
  EXTERNAL_NET: '!$HOME_NET',
  HTTP_SERVERS: '$HOME_NET',
  SMTP_SERVERS: '$HOME_NET',
  SQL_SERVERS: '$HOME_NET',
  DNS_SERVERS: '$HOME_NET',
  TELNET_SERVERS: '$HOME_NET',
  AIM_SERVERS: '$EXTERNAL_NET',
  DC_SERVERS: '$HOME_NET',
  DNP3_SERVER: '$HOME_NET',
  DNP3_CLIENT: '$HOME_NET',
  MODBUS_CLIENT: '$HOME_NET',
  MODBUS_SERVER: '$HOME_NET',
  ENIP_CLIENT: '$HOME_NET',
  ENIP_SERVER: '$HOME_NET',
  HTTP_PORTS: '80',
  SHELLCODE_PORTS: '!80',
  ORACLE_PORTS: '1521',
  SSH_PORTS: '22',
  DNP3_PORTS: '20000',
  MODBUS_PORTS: '502',
  FILE_DATA_PORTS: '[$HTTP_PORTS,110,143]',
  FTP_PORTS: '21',
  GENEVE_PORTS: '6081',
  VXLAN_PORTS: '4789',
  TEREDO_PORTS: '3544',
}

/** In front of IPv6 addresses, to keep them apart from those of IPv4. */
export const SIX = 1n << 128n

/** Both families whole. */
const ALL: Range[] = [
  { low: 0n, high: 0xffff_ffffn },
  { low: SIX, high: SIX + SIX - 1n },
]

/** Lists within lists and variables within variables, at most. */
const DEEPEST = 16
/** Elements of one list, with all that its variables stand for, at most. */
const LIMIT_ELEMENTS = 65_536

/** The number of an address: as many bytes as its family has. */
export function addressNumber(bytes: ArrayLike<number>): bigint {
  let number = 0n
  for (let i = 0; i < bytes.length; i++) number = (number << 8n) | BigInt(bytes[i])
  return bytes.length === 4 ? number : SIX | number
}

/** Whether one of sorted ranges has the value. */
export function has<T extends bigint | number>(ranges: readonly { low: T; high: T }[], value: T): boolean {
  let low = 0
  let high = ranges.length - 1
  while (low <= high) {
    const middle = (low + high) >>> 1
    if (value < ranges[middle].low) high = middle - 1
    else if (value > ranges[middle].high) low = middle + 1
    else return true
  }
  return false
}

/** Reads the sets of rules: each text once. */
export class Sets {
  private readonly variables: Variables
  private readonly addressSets = new Map<string, Range[]>()
  private readonly portSets = new Map<string, PortRange[]>()

  constructor(variables: Variables) {
    this.variables = variables
  }

  /** The addresses that a text stands for, sorted; throws DetourError. */
  addresses(text: string): Range[] {
    return known(this.addressSets, text, () => {
      const found = this.set(text, { all: ALL, read: addressRange, next: n => n + 1n, before: n => n - 1n }, 0, {
        left: LIMIT_ELEMENTS,
      })
      if (found.length === 0) refuse(`'${text}' is no address at all`)
      return found
    })
  }

  /** The ports that a text stands for, sorted; throws DetourError. */
  ports(text: string): PortRange[] {
    return known(this.portSets, text, () => {
      const all = [{ low: 0, high: 65_535 }]
      const found = this.set(text, { all, read: portRange, next: n => n + 1, before: n => n - 1 }, 0, {
        left: LIMIT_ELEMENTS,
      })
      if (found.length === 0) refuse(`'${text}' is no port at all`)
      return found
    })
  }

  private set<T extends bigint | number>(
    text: string,
    kind: Kind<T>,
    depth: number,
    budget: { left: number },
  ): Span<T>[] {
    if (depth > DEEPEST) refuse(`'${text.slice(0, 40)}' is nested more than ${DEEPEST} deep, or stands for itself`)
    if (--budget.left < 0) refuse(`more than ${LIMIT_ELEMENTS} elements`)
    const inner = text.trim()
    if (inner.startsWith('!')) return rest([], this.set(inner.slice(1), kind, depth + 1, budget), kind)
    if (inner === 'any') return kind.all
    if (inner.startsWith('$')) {
      const name = inner.slice(1)
      if (!Object.hasOwn(this.variables, name))
        refuse(`the variable $${name} is not set; give it by --rule-var ${name}=VALUE`)
      return this.set(this.variables[name], kind, depth + 1, budget)
    }
    if (!inner.startsWith('[')) return [kind.read(inner)]
    if (!inner.endsWith(']')) refuse(`'${inner.slice(0, 40)}' has no closing bracket`)
    const taken: Span<T>[] = []
    const left: Span<T>[] = []
    for (const one of elements(inner.slice(1, -1))) {
      const negated = one.startsWith('!')
      const spans = this.set(negated ? one.slice(1) : one, kind, depth + 1, budget)
      for (const span of spans) (negated ? left : taken).push(span)
    }
    return rest(taken, merged(left, kind), kind)
  }
}

/** What of `taken` is not in `left`. Of a family in which only `left` names some all others are meant, of one in which nothing is named none. */
function rest<T extends bigint | number>(taken: Span<T>[], left: Span<T>[], kind: Kind<T>): Span<T>[] {
  const within = (spans: Span<T>[], { low, high }: Span<T>) => spans.some(span => span.low <= high && span.high >= low)
  const implied = kind.all.filter(family => within(left, family) && !within(taken, family))
  return without(merged([...taken, ...implied], kind), left, kind)
}

interface Span<T> {
  low: T
  high: T
}

interface Kind<T> {
  /** The families whole. */
  all: Span<T>[]
  read(text: string): Span<T>
  next(n: T): T
  before(n: T): T
}

function known<T>(sets: Map<string, T>, text: string, make: () => T): T {
  let found = sets.get(text)
  if (found === undefined) {
    found = make()
    sets.set(text, found)
  }
  return found
}

/** The elements of a list, with lists within it whole. */
function elements(text: string): string[] {
  const found: string[] = []
  let depth = 0
  let from = 0
  for (let at = 0; at <= text.length; at++) {
    if (text[at] === '[') depth++
    if (text[at] === ']') depth--
    if (depth < 0) refuse(`'${text.slice(0, 40)}' has a bracket too many`)
    if (at < text.length && (text[at] !== ',' || depth > 0)) continue
    const one = text.slice(from, at).trim()
    if (one === '') refuse(`'[${text.slice(0, 40)}]' has an empty element`)
    found.push(one)
    from = at + 1
  }
  if (depth > 0) refuse(`'[${text.slice(0, 40)}]' lacks a closing bracket`)
  return found
}

function merged<T extends bigint | number>(spans: Span<T>[], { next }: Kind<T>): Span<T>[] {
  const sorted = spans.toSorted((x, y) => (x.low < y.low ? -1 : x.low > y.low ? 1 : 0))
  const found: Span<T>[] = []
  for (const { low, high } of sorted) {
    const last = found.at(-1)
    if (last === undefined || low > next(last.high)) found.push({ low, high })
    else if (high > last.high) last.high = high
  }
  return found
}

/** What of `spans` is not in `left`; both sorted. */
function without<T extends bigint | number>(spans: Span<T>[], left: Span<T>[], { next, before }: Kind<T>): Span<T>[] {
  const found: Span<T>[] = []
  for (const { low, high } of spans) {
    let from = low
    for (const gap of left) {
      if (gap.high < from || gap.low > high) continue
      if (gap.low > from) found.push({ low: from, high: before(gap.low) })
      from = next(gap.high)
    }
    if (from <= high) found.push({ low: from, high })
  }
  return found
}

function addressRange(text: string): Range {
  const [address, bits, ...more] = text.split('/')
  const [first, last] = address.split('-')
  try {
    // NB: ipaddr.js also takes 10.1 and 012.0.0.1, which Suricata does not.
    if (more.length > 0 || isIP(first) === 0 || (last !== undefined && isIP(last) === 0)) throw new Error()
    const low = addressNumber(ipaddr.parse(first).toByteArray())
    if (last !== undefined && bits === undefined) {
      const high = addressNumber(ipaddr.parse(last).toByteArray())
      if (high < low) throw new Error()
      return { low, high }
    }
    const size = ipaddr.parse(first).kind() === 'ipv4' ? 32 : 128
    const prefix = bits === undefined ? size : /^\d{1,3}$/.test(bits) ? Number(bits) : maskBits(bits)
    if (last !== undefined || prefix > size) throw new Error()
    const block = 1n << BigInt(size - prefix)
    const start = (low / block) * block
    return { low: start, high: start + block - 1n }
  } catch {
    return refuse(`'${text.slice(0, 60)}' is not an address, block, range, list or variable`)
  }
}

function maskBits(mask: string): number {
  const bits = ipaddr.IPv4.parse(mask).prefixLengthFromSubnetMask()
  if (bits === null) throw new Error()
  return bits
}

function portRange(text: string): PortRange {
  const [, first, colon, last] = /^(\d{1,5})?(:)?(\d{1,5})?$/.exec(text) ?? []
  const low = first === undefined ? 0 : Number(first)
  const high = colon === undefined ? low : last === undefined ? 65_535 : Number(last)
  if ((first === undefined && last === undefined) || low > high || high > 65_535)
    return refuse(`'${text.slice(0, 60)}' is not a port, range such as 1024: or 80:90, list or variable`)
  return { low, high }
}

function refuse(why: string): never {
  throw new DetourError('bad-config', why)
}
