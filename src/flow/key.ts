// The flow key of a packet: canonical, so that both directions of a flow, and what belongs to it, have the same one.
//
//   word 0      version << 24 | protocol << 16 | attachment
//   word 1      port A << 16 | port B
//   words 2-5   address A (IPv4: the first word)
//   words 6-9   address B
//
// End A is the smaller one: by address, then by port. What stands for ports where there are none:
//
//   echo and other queries     the identifier, at both ends, so that request and reply share a key
//   other ICMP messages        type << 8 | code, at both ends
//   ICMP errors                all of the key is that of the packet they quote, seen from the other side; when too little
//                              is quoted, an error is an "other message" between its own addresses
//   non-first fragments        those of the first fragment; 0 when it was not seen before them, or too long ago
//   whatever else              0

import { DROP, type DropReason } from '../drop.ts'
import { KEY_WORDS, type Pool } from '../memory/pool.ts'
import { i32 } from '../wire/bytes.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import type { FragmentTable } from './fragments.ts'
import { hashKey, type Seed } from './hash.ts'
import type { FlowTable } from './table.ts'

/** Offsets of a key's words, and how many there are. */
export const KEY = { KIND: 0, PORTS: 1, A: 2, B: 6, WORDS: 10 } as const

const { PROTOCOL } = ipv4
const DCCP = 33
const UDP_LITE = 136
const TIMESTAMP_REQUEST = 13
const MASK_REPLY = 18
const SIGN = 1 << 31

// NB: the compiler looks constants of other modules up at each use, and inlines only short functions.
const TCP = PROTOCOL.TCP
const UDP = PROTOCOL.UDP
const IS_FRAGMENT = ipv4.IS_FRAGMENT

/**
 * Writes key, hash and `reversed` of a frame whose headers pipeline/parse has checked; its attachment number is part of
 * the key only `withAttachment`. With a table, a flow that it saw lately is found on the way, which saves the hash, and
 * written to the frame; -1 otherwise. Packets come in trains: what is known of the frame `before`, whose key was read
 * last, is known of one with the same key. Fragments are remembered by the frame's time. Returns 0 or a drop reason.
 */
export function readKey(
  pool: Pool,
  frame: number,
  fragments: FragmentTable,
  seed: Seed,
  withAttachment: boolean,
  table?: FlowTable,
  before = -1,
): DropReason {
  const bad = writeKey(pool, frame, fragments, seed, withAttachment ? pool.attachment[frame] : 0)
  if (bad !== 0) return bad
  const { key } = pool
  const at = frame * KEY_WORDS
  if (before >= 0 && isSame(key, at, before * KEY_WORDS)) {
    pool.hash[frame] = pool.hash[before]
    pool.flow[frame] = pool.flow[before]
    return 0
  }
  let row = -1
  if (table !== undefined) pool.flow[frame] = row = table.recall(key, at)
  pool.hash[frame] = row < 0 ? hashKey(key, at, seed) : (table as FlowTable).hash(row)
  return 0
}

function isSame(keys: Int32Array, x: number, y: number): boolean {
  if (keys[x + 1] !== keys[y + 1] || keys[x + 2] !== keys[y + 2] || keys[x + 6] !== keys[y + 6]) return false
  if (keys[x] !== keys[y]) return false
  return keys[x] >>> 24 === 4 || isSameRest(keys, x, y)
}

function isSameRest(keys: Int32Array, x: number, y: number): boolean {
  if (keys[x + 3] !== keys[y + 3] || keys[x + 4] !== keys[y + 4] || keys[x + 5] !== keys[y + 5]) return false
  return keys[x + 7] === keys[y + 7] && keys[x + 8] === keys[y + 8] && keys[x + 9] === keys[y + 9]
}

// Nearly all packets are TCP or UDP, and whole.
function writeKey(pool: Pool, frame: number, fragments: FragmentTable, seed: Seed, attachment: number): DropReason {
  const { view } = pool
  const network = pool.network[frame]
  const transport = pool.transport[frame]
  const protocol = pool.protocol[frame]
  if ((protocol !== TCP && protocol !== UDP) || transport === 0)
    return writeAnyKey(pool, frame, fragments, seed, attachment)
  const ports = view.getInt32(transport)
  const version = view.getUint8(network) >>> 4
  const kind = (version << 24) | (protocol << 16) | attachment
  const at = frame * KEY_WORDS
  if (version === 6 && transport === network + 40) {
    pool.reversed[frame] = writeKey6(pool.key, at, view, network, kind, ports)
    return 0
  }
  if (version !== 4 || (view.getUint16(network + 6) & IS_FRAGMENT) !== 0)
    return writeAnyKey(pool, frame, fragments, seed, attachment)
  const from = view.getInt32(network + 12)
  const to = view.getInt32(network + 16)
  pool.reversed[frame] = writeKey4(pool.key, at, from, to, kind, ports)
  return 0
}

function writeKey4(key: Int32Array, at: number, from: number, to: number, kind: number, ports: number): number {
  const isFromB = from === to ? ports >>> 16 > (ports & 0xffff) : (from ^ SIGN) > (to ^ SIGN)
  key[at] = kind
  key[at + 1] = isFromB ? (ports << 16) | (ports >>> 16) : ports
  key[at + 2] = isFromB ? to : from
  key[at + 3] = 0
  key[at + 4] = 0
  key[at + 5] = 0
  key[at + 6] = isFromB ? from : to
  key[at + 7] = 0
  key[at + 8] = 0
  key[at + 9] = 0
  return isFromB ? 1 : 0
}

function writeKey6(key: Int32Array, at: number, view: DataView, network: number, kind: number, ports: number): number {
  const f0 = view.getInt32(network + 8)
  const f1 = view.getInt32(network + 12)
  const f2 = view.getInt32(network + 16)
  const f3 = view.getInt32(network + 20)
  const t0 = view.getInt32(network + 24)
  const t1 = view.getInt32(network + 28)
  const t2 = view.getInt32(network + 32)
  const t3 = view.getInt32(network + 36)
  let isFromB = ports >>> 16 > (ports & 0xffff)
  if (f0 !== t0) isFromB = (f0 ^ SIGN) > (t0 ^ SIGN)
  else if (f1 !== t1) isFromB = (f1 ^ SIGN) > (t1 ^ SIGN)
  else if (f2 !== t2) isFromB = (f2 ^ SIGN) > (t2 ^ SIGN)
  else if (f3 !== t3) isFromB = (f3 ^ SIGN) > (t3 ^ SIGN)
  const from = isFromB ? at + 6 : at + 2
  const to = isFromB ? at + 2 : at + 6
  key[at] = kind
  key[at + 1] = isFromB ? (ports << 16) | (ports >>> 16) : ports
  key[from] = f0
  key[from + 1] = f1
  key[from + 2] = f2
  key[from + 3] = f3
  key[to] = t0
  key[to + 1] = t1
  key[to + 2] = t2
  key[to + 3] = t3
  return isFromB ? 1 : 0
}

function writeAnyKey(pool: Pool, frame: number, fragments: FragmentTable, seed: Seed, attachment: number): DropReason {
  const version = pool.view.getUint8(pool.network[frame]) >>> 4
  if (version !== 4 && version !== 6) return DROP.NOT_IP
  const b = pool.bytes
  const network = pool.network[frame]
  const transport = pool.transport[frame]
  const protocol = pool.protocol[frame]
  const end = packetEnd(b, network, version, pool.start[frame] + pool.length[frame])
  const nowMs = pool.time[frame] | 0
  const at = frame * KEY_WORDS
  let reversed = -1
  if (transport !== 0 && isError(b, version, protocol, transport))
    reversed = quotedKey(pool, at, transport + icmp.QUOTE, end, version, attachment, fragments, nowMs, seed)
  if (reversed < 0) {
    let ports = portsAt(b, version, protocol, transport, end)
    if (nameFragment(fragments, b, network, version, protocol, attachment, end)) {
      if (transport === 0) ports = fragments.find(nowMs, seed)
      else fragments.store(ports, nowMs, seed)
    }
    reversed = orderedKey(pool, at, network, version, protocol, attachment, ports)
  }
  pool.reversed[frame] = reversed
  return 0
}

// Writes the key of the packet at `network`, which an ICMP error quotes. Returns 1 when the error travels from B to A,
// or -1 when too little is quoted.
function quotedKey(
  pool: Pool,
  at: number,
  network: number,
  limit: number,
  version: number,
  attachment: number,
  fragments: FragmentTable,
  nowMs: number,
  seed: Seed,
): number {
  const b = pool.bytes
  const bad = version === 4 ? ipv4.checkQuoted(b, network, limit) : ipv6.checkQuoted(b, network, limit)
  if (bad !== 0) return -1
  const end = packetEnd(b, network, version, limit)
  const protocol = version === 4 ? ipv4.protocol(b, network) : ipv6.transportProtocol(b, network, end)
  const transport = version === 4 ? transport4(b, network) : ipv6.transportAt(b, network, end)
  if (protocol < 0 || transport < 0) return -1
  let ports = 0
  if (transport !== 0) {
    if (transport + portBytes(protocol) > end || isError(b, version, protocol, transport)) return -1
    ports = portsAt(b, version, protocol, transport, end)
  } else if (nameFragment(fragments, b, network, version, protocol, attachment, end)) {
    ports = fragments.find(nowMs, seed)
  }
  return 1 - orderedKey(pool, at, network, version, protocol, attachment, ports)
}

// Writes the key of the packet at `network`, whose ports are source << 16 | destination. Returns 1 when its source is end B.
function orderedKey(
  pool: Pool,
  at: number,
  network: number,
  version: number,
  protocol: number,
  attachment: number,
  ports: number,
): number {
  const { key, view } = pool
  const kind = (version << 24) | (protocol << 16) | attachment
  if (version === 6) return writeKey6(key, at, view, network, kind, ports)
  const from = view.getInt32(network + ipv4.SOURCE)
  const to = view.getInt32(network + ipv4.DESTINATION)
  return writeKey4(key, at, from, to, kind, ports)
}

// Writes the name of the fragmented datagram to which the packet belongs; false when it is no fragment.
function nameFragment(
  fragments: FragmentTable,
  b: Uint8Array,
  network: number,
  version: number,
  protocol: number,
  attachment: number,
  end: number,
): boolean {
  const { name } = fragments
  if (version === 4) {
    if (!ipv4.isFragment(b, network)) return false
    name[1] = ipv4.identification(b, network)
    name.fill(0, KEY.A)
    name[KEY.A] = ipv4.source(b, network)
    name[KEY.B] = ipv4.destination(b, network)
  } else {
    const fragment = ipv6.fragmentAt(b, network, end)
    if (fragment === 0) return false
    name[1] = ipv6.fragmentIdentification(b, fragment)
    for (let i = 0; i < 8; i++) name[KEY.A + i] = ipv6.word(b, network, i)
  }
  name[KEY.KIND] = (version << 24) | (protocol << 16) | attachment
  return true
}

// What stands for source port << 16 | destination port of the transport header at `at`.
function portsAt(b: Uint8Array, version: number, protocol: number, at: number, end: number): number {
  if (at === 0 || at + portBytes(protocol) > end) return 0
  if (hasPorts(protocol)) return i32(b, at)
  if (!isIcmp(version, protocol)) return 0
  const type = icmp.type(b, at)
  const both = isQuery(version, type) ? icmp.identifier(b, at) : (type << 8) | icmp.code(b, at)
  return (both << 16) | both
}

// Bytes of a transport header that portsAt reads.
function portBytes(protocol: number): number {
  return hasPorts(protocol) ? 4 : protocol === PROTOCOL.ICMP || protocol === PROTOCOL.ICMPV6 ? icmp.HEADER : 0
}

/** True for transport protocols whose header begins with source and destination port. */
export function hasPorts(protocol: number): boolean {
  switch (protocol) {
    case PROTOCOL.TCP:
    case PROTOCOL.UDP:
    case PROTOCOL.SCTP:
    case DCCP:
    case UDP_LITE:
      return true
    default:
      return false
  }
}

function isIcmp(version: number, protocol: number): boolean {
  return protocol === (version === 4 ? PROTOCOL.ICMP : PROTOCOL.ICMPV6)
}

function isError(b: Uint8Array, version: number, protocol: number, at: number): boolean {
  if (!isIcmp(version, protocol)) return false
  return version === 4 ? icmp.isError4(icmp.type(b, at)) : icmp.isError6(icmp.type(b, at))
}

// Queries carry an identifier: echo, and timestamp, information and mask of RFC 792 and RFC 950.
function isQuery(version: number, type: number): boolean {
  if (version === 6) return type === icmp.TYPE6.ECHO_REQUEST || type === icmp.TYPE6.ECHO_REPLY
  if (type === icmp.TYPE4.ECHO_REQUEST || type === icmp.TYPE4.ECHO_REPLY) return true
  return type >= TIMESTAMP_REQUEST && type <= MASK_REPLY
}

function transport4(b: Uint8Array, network: number): number {
  return ipv4.fragmentOffset(b, network) === 0 ? network + ipv4.headerLength(b, network) : 0
}

// The packet's own idea of its end, but never beyond `limit`: a frame may be padded, a quote cut off.
function packetEnd(b: Uint8Array, network: number, version: number, limit: number): number {
  const length = version === 4 ? ipv4.totalLength(b, network) : ipv6.HEADER + ipv6.payloadLength(b, network)
  return Math.min(limit, network + length)
}
