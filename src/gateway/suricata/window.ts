// The end of a stream: what has come lately, so that what a rule looks for may lie across segments.

import type { Text } from './match.ts'

/** Bytes of a stream that are looked at together, at least: what came before the newest ones. */
export const TAIL = 4096
/** Newest bytes that are added at once, at most. */
export const PIECE = 4096
const SMALLEST = 512

/** Memory that the windows of one worker may take together. */
export class WindowMemory {
  used = 0
  private readonly limit: number
  /** For streams that come too late to get memory of their own: they are looked at a segment at a time. */
  readonly spare = new Uint8Array(PIECE)

  constructor(limit: number) {
    this.limit = limit
  }

  take(bytes: number): boolean {
    if (this.used + bytes > this.limit) return false
    this.used += bytes
    return true
  }
}

/** The window over one stream. */
export class Window implements Text {
  bytes: Uint8Array = new Uint8Array(0)
  view = new DataView(this.bytes.buffer)
  readonly at = 0
  end = 0
  base = 0
  private readonly memory: WindowMemory
  private shared = false

  constructor(memory: WindowMemory) {
    this.memory = memory
  }

  /** Adds up to PIECE bytes that begin at number `offset` of the stream, and returns where they lie. */
  append(bytes: Uint8Array, at: number, end: number, offset: number): number {
    const count = end - at
    // What lies behind a gap is no neighbour of what came before it.
    if (this.shared || offset !== this.base + this.end) this.end = 0
    if (this.end + count > this.bytes.length) this.makeRoom(count)
    const place = this.end
    this.base = offset - place
    this.bytes.set(bytes.subarray(at, end), place)
    this.end = place + count
    return place
  }

  release(): void {
    if (!this.shared) this.memory.used -= this.bytes.length
    this.bytes = this.memory.spare.subarray(0, 0)
    this.end = 0
  }

  private makeRoom(count: number): void {
    const needed = this.end + count
    if (needed <= TAIL + PIECE) {
      let size = Math.max(SMALLEST, this.bytes.length)
      while (size < needed) size *= 2
      if (this.memory.take(size - this.bytes.length)) {
        const larger = new Uint8Array(size)
        larger.set(this.bytes.subarray(0, this.end))
        this.use(larger)
        return
      }
      this.release()
      this.shared = true
      this.use(this.memory.spare)
      return
    }
    this.bytes.copyWithin(0, this.end - TAIL, this.end)
    this.end = TAIL
  }

  private use(bytes: Uint8Array): void {
    this.bytes = bytes
    this.view = new DataView(bytes.buffer)
  }
}
