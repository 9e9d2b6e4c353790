// Pointers inside structures that the kernel reads: 64 bits, little-endian, of a Number (addresses are below 2^53).

/** Writes an address. */
export function setAddress(v: DataView, at: number, address: number): void {
  v.setUint32(at, address >>> 0, true)
  v.setUint32(at + 4, Math.floor(address / 2 ** 32), true)
}

/** The address that is written there. */
export function getAddress(v: DataView, at: number): number {
  return v.getUint32(at, true) + v.getUint32(at + 4, true) * 2 ** 32
}
