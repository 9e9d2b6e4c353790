// IPv6 header and extension headers: RFC 8200 sections 3 and 4.
//
//   0                               4               6       7       8               24              40
//   |ver 4|class 8|flow label 20    | payload length| next  | hop   | source        | destination   | ...

import ipaddr from 'ipaddr.js'
import { DROP, type DropReason } from '../drop.ts'
import { i32, setI32, setU16, u16 } from './bytes.ts'

/** Bytes of the fixed header. */
export const HEADER = 40

/** Offsets of the addresses. */
export const SOURCE = 8
export const DESTINATION = 24

export const PAYLOAD_LENGTH = 4
export const NEXT_HEADER = 6
const HOP_LIMIT = 7

/** Next headers that are extension headers (IANA), and NONE. ESP is not walked: nothing behind it can be read. */
export const EXTENSION = {
  HOP_BY_HOP: 0,
  ROUTING: 43,
  FRAGMENT: 44,
  AUTHENTICATION: 51,
  NONE: 59,
  DESTINATION_OPTIONS: 60,
  MOBILITY: 135,
  HIP: 139,
  SHIM6: 140,
} as const

/** More extension headers than this in one packet are refused; RFC 8200 section 4.1 foresees at most seven. */
export const MAX_EXTENSIONS = 8

/** 0 when the fixed header is sound and the packet all there, or a drop reason. */
export function check(b: Uint8Array, at: number, end: number): DropReason {
  const reason = checkQuoted(b, at, end)
  return reason === 0 && at + HEADER + payloadLength(b, at) > end ? DROP.IPV6_PAYLOAD_LENGTH : reason
}

/** As `check`, for the packet quoted in an ICMPv6 error: what follows its header may be cut off (RFC 4443 section 2.4 c). */
export function checkQuoted(b: Uint8Array, at: number, end: number): DropReason {
  if (at + HEADER > end) return DROP.IPV6_TRUNCATED
  return b[at] >>> 4 === 6 ? 0 : DROP.IPV6_VERSION
}

/** The byte of DSCP and ECN. */
export function trafficClass(b: Uint8Array, at: number): number {
  return ((b[at] & 0xf) << 4) | (b[at + 1] >>> 4)
}

export function setTrafficClass(b: Uint8Array, at: number, value: number): void {
  b[at] = (b[at] & 0xf0) | (value >>> 4)
  b[at + 1] = (value << 4) | (b[at + 1] & 0xf)
}

export function dscp(b: Uint8Array, at: number): number {
  return trafficClass(b, at) >>> 2
}

export function ecn(b: Uint8Array, at: number): number {
  return (b[at + 1] >>> 4) & 3
}

export function flowLabel(b: Uint8Array, at: number): number {
  return ((b[at + 1] & 0xf) << 16) | u16(b, at + 2)
}

export function setFlowLabel(b: Uint8Array, at: number, value: number): void {
  b[at + 1] = (b[at + 1] & 0xf0) | ((value >>> 16) & 0xf)
  setU16(b, at + 2, value)
}

/** Bytes behind the fixed header, extension headers included. */
export function payloadLength(b: Uint8Array, at: number): number {
  return u16(b, at + PAYLOAD_LENGTH)
}

export function setPayloadLength(b: Uint8Array, at: number, bytes: number): void {
  setU16(b, at + PAYLOAD_LENGTH, bytes)
}

export function nextHeader(b: Uint8Array, at: number): number {
  return b[at + NEXT_HEADER]
}

export function setNextHeader(b: Uint8Array, at: number, value: number): void {
  b[at + NEXT_HEADER] = value
}

export function hopLimit(b: Uint8Array, at: number): number {
  return b[at + HOP_LIMIT]
}

export function setHopLimit(b: Uint8Array, at: number, value: number): void {
  b[at + HOP_LIMIT] = value
}

/** One of the eight words of the addresses, signed: 0 to 3 the source, 4 to 7 the destination. */
export function word(b: Uint8Array, at: number, i: number): number {
  return i32(b, at + SOURCE + (i << 2))
}

/** Writes one of the eight words of the addresses. */
export function setWord(b: Uint8Array, at: number, i: number, value: number): void {
  setI32(b, at + SOURCE + (i << 2), value)
}

/** Writes the fixed header but for the addresses, which are copied in or written with `setWord`. */
export function write(
  b: Uint8Array,
  at: number,
  classByte: number,
  label: number,
  payload: number,
  next: number,
  hops: number,
): void {
  setI32(b, at, (6 << 28) | (classByte << 20) | (label & 0xfffff))
  setU16(b, at + PAYLOAD_LENGTH, payload)
  b[at + NEXT_HEADER] = next
  b[at + HOP_LIMIT] = hops
}

/** True for a next header that `transportAt` walks over. */
export function isExtension(next: number): boolean {
  switch (next) {
    case EXTENSION.HOP_BY_HOP:
    case EXTENSION.ROUTING:
    case EXTENSION.FRAGMENT:
    case EXTENSION.AUTHENTICATION:
    case EXTENSION.DESTINATION_OPTIONS:
    case EXTENSION.MOBILITY:
    case EXTENSION.HIP:
    case EXTENSION.SHIM6:
      return true
    default:
      return false
  }
}

/** Bytes of the extension header of kind `next` at `at`. */
export function extensionLength(b: Uint8Array, at: number, next: number): number {
  if (next === EXTENSION.FRAGMENT) return FRAGMENT_HEADER
  return next === EXTENSION.AUTHENTICATION ? (b[at + 1] + 2) << 2 : (b[at + 1] + 1) << 3
}

/**
 * The position of the upper-layer header of a checked packet; 0 when there is none to read, because the packet is not
 * the first fragment; or a drop reason, negated. Whether the upper-layer header is all there, its own check tells.
 */
export function transportAt(b: Uint8Array, at: number, end: number): number {
  return isExtension(b[at + NEXT_HEADER]) ? walk(b, at, end, UPPER_LAYER) : at + HEADER
}

/** The protocol number of the upper layer of a checked packet, of non-first fragments too, or a drop reason, negated. */
export function transportProtocol(b: Uint8Array, at: number, end: number): number {
  const next = b[at + NEXT_HEADER]
  return isExtension(next) ? walk(b, at, end, UPPER_PROTOCOL) : next
}

/** The position of the fragment header of a checked packet, or 0 when it has none or its extension headers are bad. */
export function fragmentAt(b: Uint8Array, at: number, end: number): number {
  if (!isExtension(b[at + NEXT_HEADER])) return 0
  const found = walk(b, at, end, FRAGMENT_POSITION)
  return Math.max(found, 0)
}

const UPPER_LAYER = 0
const UPPER_PROTOCOL = 1
const FRAGMENT_POSITION = 2

function walk(b: Uint8Array, at: number, end: number, wanted: number): number {
  const packetEnd = at + HEADER + payloadLength(b, at)
  const limit = Math.min(packetEnd, end)
  let next = b[at + NEXT_HEADER]
  let position = at + HEADER
  let fragment = 0
  let following = false
  for (let count = 0; isExtension(next) && !following; count++) {
    if (count === MAX_EXTENSIONS || position + 8 > limit) return -DROP.IPV6_EXTENSION
    if (next === EXTENSION.HOP_BY_HOP && count > 0) return -DROP.IPV6_EXTENSION
    if (next === EXTENSION.FRAGMENT) {
      if (fragment !== 0) return -DROP.IPV6_EXTENSION
      fragment = position
      following = fragmentOffset(b, fragment) !== 0
    }
    const length = extensionLength(b, position, next)
    next = b[position]
    position += length
    if (position > limit) return -DROP.IPV6_EXTENSION
  }
  if (wanted === UPPER_LAYER) return following ? 0 : position
  return wanted === UPPER_PROTOCOL ? next : fragment
}

// The fragment header (RFC 8200 section 4.5), at the position that fragmentAt gives:
//
//   0       1       2               4               8
//   | next  | -     | offset/8 |--M | identification

/** Bytes of the fragment header. */
export const FRAGMENT_HEADER = 8

/** Fragment offset in bytes. */
export function fragmentOffset(b: Uint8Array, fragment: number): number {
  return u16(b, fragment + 2) & 0xfff8
}

export function moreFragments(b: Uint8Array, fragment: number): boolean {
  return (b[fragment + 3] & 1) !== 0
}

/** The identification, signed. */
export function fragmentIdentification(b: Uint8Array, fragment: number): number {
  return i32(b, fragment + 4)
}

/** The address at `at` in the form of RFC 5952. For people, not for the path. */
export function formatAddress(b: Uint8Array, at = 0): string {
  return new ipaddr.IPv6([...b.subarray(at, at + 16)]).toRFC5952String()
}
