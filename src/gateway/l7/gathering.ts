// Bytes gathered until there are enough of them: each is copied once or twice, however small the pieces.

export class Gathering {
  length = 0
  private bytes = Buffer.alloc(256)

  /** What is there; good until the next call. */
  get view(): Buffer {
    return this.bytes.subarray(0, this.length)
  }

  push(bytes: Uint8Array): void {
    const length = this.length + bytes.length
    if (length > this.bytes.length) {
      const larger = Buffer.alloc(Math.max(length, 2 * this.bytes.length))
      larger.set(this.view)
      this.bytes = larger
    }
    this.bytes.set(bytes, this.length)
    this.length = length
  }

  /** Takes so many bytes away from the front. */
  shift(count: number): void {
    this.bytes.copyWithin(0, count, this.length)
    this.length -= count
  }
}
