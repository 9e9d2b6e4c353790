// Reads and writes big-endian numbers at a position. The only place that knows the byte order of the wire.

/** The 16-bit number at `at`. */
export function u16(b: Uint8Array, at: number): number {
  return (b[at] << 8) | b[at + 1]
}

/** Writes the low 16 bits of `value`. */
export function setU16(b: Uint8Array, at: number, value: number): void {
  b[at] = value >>> 8
  b[at + 1] = value
}

/** The 24-bit number at `at`. */
export function u24(b: Uint8Array, at: number): number {
  return (b[at] << 16) | (b[at + 1] << 8) | b[at + 2]
}

/** Writes the low 24 bits of `value`. */
export function setU24(b: Uint8Array, at: number, value: number): void {
  b[at] = value >>> 16
  b[at + 1] = value >>> 8
  b[at + 2] = value
}

/** The 32-bit word at `at`, signed: an unsigned one over 2^31 would be a heap number. `>>> 0` makes it unsigned. */
export function i32(b: Uint8Array, at: number): number {
  return (b[at] << 24) | (b[at + 1] << 16) | (b[at + 2] << 8) | b[at + 3]
}

/** Writes the low 32 bits of `value`, signed or not. */
export function setI32(b: Uint8Array, at: number, value: number): void {
  b[at] = value >>> 24
  b[at + 1] = value >>> 16
  b[at + 2] = value >>> 8
  b[at + 3] = value
}
