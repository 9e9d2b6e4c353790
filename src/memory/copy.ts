// Copying bytes between memories without allocating.
//
// `subarray` makes an object per call, and `copyWithin` on shared memory moves single bytes when source and target are
// not equally aligned (594 bytes: 151 ns; this loop: 69 ns, measured on Node 20, 2 cores). Words through a DataView
// need no alignment. NB: 64-bit floats would be faster still, but an engine may rewrite NaN patterns.

/** Copies `length` bytes; the two ranges must not overlap. */
export function copyBytes(to: DataView, toAt: number, from: DataView, fromAt: number, length: number): void {
  let source = fromAt
  let target = toAt
  const blocks = fromAt + (length & ~15)
  for (; source < blocks; source += 16, target += 16) {
    to.setInt32(target, from.getInt32(source, true), true)
    to.setInt32(target + 4, from.getInt32(source + 4, true), true)
    to.setInt32(target + 8, from.getInt32(source + 8, true), true)
    to.setInt32(target + 12, from.getInt32(source + 12, true), true)
  }
  const words = fromAt + (length & ~3)
  for (; source < words; source += 4, target += 4) to.setInt32(target, from.getInt32(source, true), true)
  const end = fromAt + length
  for (; source < end; source++, target++) to.setUint8(target, from.getUint8(source))
}
