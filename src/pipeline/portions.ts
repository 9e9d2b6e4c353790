// Portions: how a stage that makes many frames of one hands them on, a batch at a time, so that the frames sent are
// free again for the next.

import { DROP } from '../drop.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { type Pool, SMALL_FRAME, SMALL_HEADROOM } from '../memory/pool.ts'
import { ALIGNMENT, type Segmenter } from './segment.ts'

/** Bytes behind a small frame's headroom. */
const SMALL_ROOM = SMALL_FRAME - SMALL_HEADROOM

/** The outlet of such a stage. */
export class Portions {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly next: (batch: Batch) => void
  private readonly out = new Batch(BATCH)
  private bytes = 0

  /** `next` takes every frame of the batch. */
  constructor(pool: Pool, counters: StageCounters, next: (batch: Batch) => void) {
    this.pool = pool
    this.counters = counters
    this.next = next
  }

  /** A free frame with room for so many bytes; those behind free some when none is left. -1 when there is none even then. */
  take(bytes: number): number {
    const frame = this.allocate(bytes)
    if (frame >= 0) return frame
    this.flush()
    return this.allocate(bytes)
  }

  private allocate(bytes: number): number {
    const { pool } = this
    let frame = bytes <= SMALL_ROOM ? pool.allocSmall() : -1
    if (frame < 0) frame = pool.alloc()
    // What is too long for the place behind the headroom begins earlier.
    if (frame >= 0) pool.start[frame] = Math.min(pool.start[frame], pool.limit(frame) - bytes)
    return frame
  }

  /** Takes the frame, in order. */
  push(frame: number): void {
    const { out } = this
    if (out.length === BATCH) this.flush()
    this.bytes += this.pool.length[frame]
    out.push(frame)
  }

  /** Takes the super-packet that `segmenter` opened and passes on one frame a segment, of whose checksums one may be `left`; the last one stays where it is. */
  pushSegments(segmenter: Segmenter, frame: number, left: number): void {
    const { pool, counters } = this
    const last = segmenter.count - 1
    const bytes = segmenter.headers + segmenter.size + ALIGNMENT
    counters.created(last)
    for (let i = 0; i < last; i++) {
      const segment = this.take(bytes)
      if (segment < 0) {
        counters.dropped(DROP.NO_FRAME, segmenter.count - i)
        pool.free(frame)
        return
      }
      segmenter.write(i, frame, segment, left)
      counters.copied(segmenter.size)
      this.push(segment)
    }
    segmenter.write(last, frame, frame, left)
    this.push(frame)
  }

  /** Passes on what is there. */
  flush(): void {
    const { out } = this
    if (out.length === 0) return
    this.counters.sent(out.length, this.bytes)
    this.bytes = 0
    this.next(out)
  }
}
