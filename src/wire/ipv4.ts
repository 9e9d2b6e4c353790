// IPv4 header: RFC 791 section 3.1; DSCP and ECN: RFC 2474, RFC 3168.
//
//   0       1       2               4               6               8       9       10      12      16      20
//   |ver|IHL| DSCP|E| total length  | identification|-DM| offset/8  | TTL   |proto  | csum  | src   | dst   | options

import { DROP, type DropReason } from '../drop.ts'
import { i32, setI32, setU16, u16 } from './bytes.ts'
import { finish, sum, update } from './checksum.ts'

/** Bytes of a header without options. */
export const HEADER = 20
/** Bytes of the longest header. */
export const MAX = 60

/** Offsets of the addresses. */
export const SOURCE = 12
export const DESTINATION = 16

export const TOS = 1
export const TOTAL_LENGTH = 2
const IDENTIFICATION = 4
/** Offset of the word of flags and fragment offset, and its bits that a fragment has. */
export const FRAGMENT = 6
export const IS_FRAGMENT = 0x3fff
const TTL = 8
export const PROTOCOL_AT = 9
/** The first byte of a header without options. */
export const PLAIN = 0x45
export const CHECKSUM = 10

/** Bits of the 16-bit word of flags and fragment offset. */
export const DONT_FRAGMENT = 0x4000
export const MORE_FRAGMENTS = 0x2000

/** Protocol numbers, of IPv6 next headers too (IANA). */
export const PROTOCOL = { ICMP: 1, TCP: 6, UDP: 17, ESP: 50, ICMPV6: 58, SCTP: 132 } as const

/** 0 when the header is sound and the packet all there, or a drop reason. Does not look at the checksum. */
export function check(b: Uint8Array, at: number, end: number): DropReason {
  const reason = checkQuoted(b, at, end)
  return reason === 0 && at + totalLength(b, at) > end ? DROP.IPV4_TOTAL_LENGTH : reason
}

/** As `check`, for the packet quoted in an ICMP error: what follows its header may be cut off (RFC 792). */
export function checkQuoted(b: Uint8Array, at: number, end: number): DropReason {
  if (at + HEADER > end) return DROP.IPV4_TRUNCATED
  if (b[at] >>> 4 !== 4) return DROP.IPV4_VERSION
  const header = headerLength(b, at)
  if (header < HEADER || at + header > end) return DROP.IPV4_HEADER_LENGTH
  return totalLength(b, at) < header ? DROP.IPV4_TOTAL_LENGTH : 0
}

/** Header length in bytes, options included. */
export function headerLength(b: Uint8Array, at: number): number {
  return (b[at] & 0xf) << 2
}

/** The byte of DSCP and ECN. */
export function tos(b: Uint8Array, at: number): number {
  return b[at + TOS]
}

/** Writes the byte of DSCP and ECN; leaves the checksum alone. */
export function setTos(b: Uint8Array, at: number, value: number): void {
  b[at + TOS] = value
}

export function dscp(b: Uint8Array, at: number): number {
  return b[at + TOS] >>> 2
}

export function ecn(b: Uint8Array, at: number): number {
  return b[at + TOS] & 3
}

/** Header and payload in bytes. */
export function totalLength(b: Uint8Array, at: number): number {
  return u16(b, at + TOTAL_LENGTH)
}

export function setTotalLength(b: Uint8Array, at: number, bytes: number): void {
  setU16(b, at + TOTAL_LENGTH, bytes)
}

export function identification(b: Uint8Array, at: number): number {
  return u16(b, at + IDENTIFICATION)
}

export function setIdentification(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + IDENTIFICATION, value)
}

export function dontFragment(b: Uint8Array, at: number): boolean {
  return (b[at + FRAGMENT] & 0x40) !== 0
}

export function moreFragments(b: Uint8Array, at: number): boolean {
  return (b[at + FRAGMENT] & 0x20) !== 0
}

/** Fragment offset in bytes. */
export function fragmentOffset(b: Uint8Array, at: number): number {
  return (u16(b, at + FRAGMENT) & 0x1fff) << 3
}

/** True for every fragment, the first included. */
export function isFragment(b: Uint8Array, at: number): boolean {
  return (u16(b, at + FRAGMENT) & 0x3fff) !== 0
}

export function ttl(b: Uint8Array, at: number): number {
  return b[at + TTL]
}

/** Writes the TTL; leaves the checksum alone. */
export function setTtl(b: Uint8Array, at: number, value: number): void {
  b[at + TTL] = value
}

export function protocol(b: Uint8Array, at: number): number {
  return b[at + PROTOCOL_AT]
}

export function headerChecksum(b: Uint8Array, at: number): number {
  return u16(b, at + CHECKSUM)
}

export function setHeaderChecksum(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + CHECKSUM, value)
}

/** The source address, signed. */
export function source(b: Uint8Array, at: number): number {
  return i32(b, at + SOURCE)
}

/** The destination address, signed. */
export function destination(b: Uint8Array, at: number): number {
  return i32(b, at + DESTINATION)
}

/** Writes the source address; leaves the checksums alone. */
export function setSource(b: Uint8Array, at: number, address: number): void {
  setI32(b, at + SOURCE, address)
}

/** Writes the destination address; leaves the checksums alone. */
export function setDestination(b: Uint8Array, at: number, address: number): void {
  setI32(b, at + DESTINATION, address)
}

/** The checksum that the header should have, whatever its field says. */
export function computeChecksum(b: Uint8Array, at: number): number {
  return finish(sum(b, at + CHECKSUM + 2, at + headerLength(b, at), sum(b, at, at + CHECKSUM)))
}

/** True when the header checksum is right. */
export function verifyChecksum(b: Uint8Array, at: number): boolean {
  return finish(sum(b, at, at + headerLength(b, at))) === 0
}

/** Computes and writes the header checksum. */
export function updateChecksum(b: Uint8Array, at: number): void {
  setU16(b, at + CHECKSUM, computeChecksum(b, at))
}

/** Writes the byte of DSCP and ECN and corrects the checksum (RFC 1624). */
export function rewriteTos(b: Uint8Array, at: number, value: number): void {
  const before = u16(b, at)
  b[at + TOS] = value
  setU16(b, at + CHECKSUM, update(u16(b, at + CHECKSUM), before, u16(b, at)))
}

/** Writes the TTL and corrects the checksum (RFC 1624). */
export function rewriteTtl(b: Uint8Array, at: number, value: number): void {
  const before = u16(b, at + TTL)
  b[at + TTL] = value
  setU16(b, at + CHECKSUM, update(u16(b, at + CHECKSUM), before, u16(b, at + TTL)))
}

/** Takes one from the TTL and corrects the checksum; the TTL must not be 0. */
export function decrementTtl(b: Uint8Array, at: number): void {
  rewriteTtl(b, at, b[at + TTL] - 1)
}

/** Writes a header of `header` bytes with its checksum; options, if any, must be in place already. `flagsAndOffset` is the 16-bit word. */
export function write(
  b: Uint8Array,
  at: number,
  header: number,
  tosByte: number,
  total: number,
  id: number,
  flagsAndOffset: number,
  timeToLive: number,
  proto: number,
  from: number,
  to: number,
): void {
  b[at] = 0x40 | (header >>> 2)
  b[at + TOS] = tosByte
  setU16(b, at + TOTAL_LENGTH, total)
  setU16(b, at + IDENTIFICATION, id)
  setU16(b, at + FRAGMENT, flagsAndOffset)
  b[at + TTL] = timeToLive
  b[at + PROTOCOL_AT] = proto
  setI32(b, at + SOURCE, from)
  setI32(b, at + DESTINATION, to)
  updateChecksum(b, at)
}

/** An address as `192.0.2.1`. For people, not for the path. */
export function formatAddress(address: number): string {
  return `${address >>> 24}.${(address >>> 16) & 0xff}.${(address >>> 8) & 0xff}.${address & 0xff}`
}
