// Pointers inside structures that the kernel reads (64 bits, little-endian), written without a Number beyond 32 bits: as an
// argument that would be a heap object.

import { addressOf } from '../os/libc.ts'

const SIGN = 0x8000_0000 | 0

/** Where a view lies in memory. NB: hold on to the view as well; an address does not keep it alive. */
export class Base {
  private readonly high: number
  private readonly low: number

  constructor(view: ArrayBufferView) {
    const address = addressOf(view)
    this.high = Math.floor(address / 2 ** 32)
    this.low = address | 0
  }

  /** Writes the address of the byte at `offset` of the view, which is below 2^31. */
  write(v: DataView, at: number, offset: number): void {
    const { high, low } = this
    const sum = (low + offset) | 0
    const carry = (sum ^ SIGN) < (low ^ SIGN) ? 1 : 0
    v.setInt32(at, sum, true)
    v.setInt32(at + 4, high + carry, true)
  }
}
