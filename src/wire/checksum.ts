// The Internet checksum: RFC 1071 (sum), RFC 1624 (update).
//
// A running sum is a small integer, never a heap number: `sum` folds before it returns, so sums may be added to each
// other as they are, and `fold` or `finish` makes 16 bits of the result.

import { u16 } from './bytes.ts'

/** Folds a running sum to 16 bits. */
export function fold(sum: number): number {
  const once = (sum >>> 16) + (sum & 0xffff)
  return (once >>> 16) + (once & 0xffff)
}

/** The checksum field for a running sum: folded and complemented. */
export function finish(sum: number): number {
  return ~fold(sum) & 0xffff
}

/**
 * The running sum of the bytes [from, to), at most 128 KiB, added to `seed`; an odd last byte counts as a high byte.
 * NB: only the last of several parts may have an odd length.
 */
export function sum(b: Uint8Array, from: number, to: number, seed = 0): number {
  // 65,536 words of 16 bits cannot overflow 32, so the sum wraps at most into the sign, which fold shifts away.
  let total = 0
  let at = from
  for (const fours = to - 3; at < fours; at += 4) {
    total = (total + ((b[at] << 8) | b[at + 1]) + ((b[at + 2] << 8) | b[at + 3])) | 0
  }
  for (; at < to - 1; at += 2) total = (total + ((b[at] << 8) | b[at + 1])) | 0
  if (at < to) total = (total + (b[at] << 8)) | 0
  return fold(fold(total) + seed)
}

/** The sum of the pseudo-header of the IPv4 packet at `ipAt` (RFC 768, RFC 9293 section 3.1) with the transport length in bytes. */
export function pseudo4(b: Uint8Array, ipAt: number, protocol: number, length: number): number {
  const addresses = u16(b, ipAt + 12) + u16(b, ipAt + 14) + u16(b, ipAt + 16) + u16(b, ipAt + 18)
  return fold(addresses + protocol + (length >>> 16) + (length & 0xffff))
}

/** The sum of the pseudo-header of the IPv6 packet at `ipAt` (RFC 8200 section 8.1) with the upper-layer length in bytes. */
export function pseudo6(b: Uint8Array, ipAt: number, protocol: number, length: number): number {
  return sum(b, ipAt + 8, ipAt + 40, protocol + (length >>> 16) + (length & 0xffff))
}

/** The pseudo-header sum for the packet at `ipAt`, of either IP version. */
export function pseudo(b: Uint8Array, ipAt: number, protocol: number, length: number): number {
  return b[ipAt] >>> 4 === 4 ? pseudo4(b, ipAt, protocol, length) : pseudo6(b, ipAt, protocol, length)
}

/** The checksum field after one 16-bit word under it changed from `from` to `to` (RFC 1624 section 3, equation 3). */
export function update(checksum: number, from: number, to: number): number {
  return finish((~checksum & 0xffff) + (~from & 0xffff) + to)
}
