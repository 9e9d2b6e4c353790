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

// Views of the byte array that was summed last: a thread sums packets of one pool, so they are made once. `words` is its whole
// memory as aligned words of 32 bits, in which the array begins at byte `base`.
// NB: words are taken for little-endian, as on x86-64 and arm64.
let viewed = new Uint8Array(0)
let view = new DataView(viewed.buffer)
let words = new Int32Array(viewed.buffer)
let base = 0

function look(b: Uint8Array): void {
  viewed = b as Uint8Array<ArrayBuffer>
  base = b.byteOffset
  view = new DataView(viewed.buffer, base, b.byteLength)
  words = new Int32Array(viewed.buffer, 0, viewed.buffer.byteLength >> 2)
}

// Medians in ns, Node 20 (24 within a tenth), 2 virtual cores, 2026-11; `npm run bench -- checksum` measures again:
//
//   bytes summed at once                                20     64    576   1460   65536
//   1, of a Uint8Array                                  16     52    336    826   36400
//   2, of an aligned Uint16Array                        12     18     88    194    8040
//   4, of a DataView, big-endian: `sum` under LONG       6     15     95    218    9100
//   4, of an aligned Uint32Array, added as doubles       9     13     77    161    6300
//   4, of an aligned Int32Array, by 8: `long`           11     19     75    162    6600
//
// Doubles are a tie, but before the code is optimized each of them is allocated.
// Every load has its bounds check, so fewer and wider loads win; aligned ones need no byte swap, but some care at both ends.
// Unrolling by 16 is no faster, by 4 a tenth slower.
const LONG = 128

/**
 * The running sum of the bytes [from, to), at most 128 KiB, added to `seed`; an odd last byte counts as a high byte.
 * NB: of several parts only the last may have an odd length.
 */
export function sum(b: Uint8Array, from: number, to: number, seed = 0): number {
  if (b !== viewed) look(b)
  if (to - from >= LONG) return fold(long(b, from, to) + seed)
  const v = view
  let total = 0
  let at = from
  for (; at < to - 15; at += 16) {
    const w0 = v.getInt32(at)
    const w1 = v.getInt32(at + 4)
    const w2 = v.getInt32(at + 8)
    const w3 = v.getInt32(at + 12)
    total = (total + (w0 >>> 16) + (w0 & 0xffff) + (w1 >>> 16) + (w1 & 0xffff)) | 0
    total = (total + (w2 >>> 16) + (w2 & 0xffff) + (w3 >>> 16) + (w3 & 0xffff)) | 0
  }
  for (; at < to - 1; at += 2) total = (total + u16(b, at)) | 0
  if (at < to) total = (total + (b[at] << 8)) | 0
  return fold(fold(total) + seed)
}

/** The folded sum of at least 4 bytes of the array that is viewed. Sums in the machine's order and swaps the result: RFC 1071 section 2 (B). */
function long(b: Uint8Array, from: number, to: number): number {
  const w = words
  const first = from + base
  const end = to + base
  const last = end >> 2
  let i = first >> 2
  // The first word without the bytes before `from`.
  let total = w[i++] & (-1 << ((first & 3) << 3))
  // The exact sum of the words' upper halves; that of the lower ones is what it lacks to `total`, which may overflow.
  let high = total >>> 16
  for (; i < last - 7; i += 8) {
    const w0 = w[i]
    const w1 = w[i + 1]
    const w2 = w[i + 2]
    const w3 = w[i + 3]
    const w4 = w[i + 4]
    const w5 = w[i + 5]
    const w6 = w[i + 6]
    const w7 = w[i + 7]
    total = (total + w0 + w1 + w2 + w3 + w4 + w5 + w6 + w7) | 0
    high = (high + (w0 >>> 16) + (w1 >>> 16) + (w2 >>> 16) + (w3 >>> 16)) | 0
    high = (high + (w4 >>> 16) + (w5 >>> 16) + (w6 >>> 16) + (w7 >>> 16)) | 0
  }
  for (; i < last; i++) {
    total = (total + w[i]) | 0
    high = (high + (w[i] >>> 16)) | 0
  }
  let folded = fold(high) + fold((total - (high << 16)) | 0)
  const rest = to - (end & 3)
  if ((end & 2) !== 0) folded += b[rest] | (b[rest + 1] << 8)
  if ((end & 1) !== 0) folded += b[to - 1]
  folded = fold(folded)
  // From an odd address every byte lay in the other half of its word already.
  return (first & 1) === 1 ? folded : ((folded & 0xff) << 8) | (folded >>> 8)
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
