// Split: takes received UDP super-packets of the underlay apart, so that the stages behind see one tunnel packet a frame.
//
// A TAP with USO and a socket with UDP_GRO give many datagrams of one sender as one: the outer headers once, then
// pieces of `gsoSize` bytes. Each piece gets the outer headers back. Tunnelled super-packets (GSO.TUNNEL) stay whole.

import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, type Pool } from '../memory/pool.ts'
import { Portions } from './portions.ts'
import { LEFT, Segmenter } from './segment.ts'

/** The stage behind a device that receives UDP super-packets, in front of decap. */
export class Split {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly segmenter: Segmenter
  private readonly portions: Portions

  /** `next` runs the stages behind, as often as there are portions, and takes every frame. */
  constructor(pool: Pool, counters: StageCounters, next: (batch: Batch) => void) {
    this.pool = pool
    this.counters = counters
    this.segmenter = new Segmenter(pool)
    this.portions = new Portions(pool, counters, next)
  }

  /** Takes every frame of the batch and empties it. The UDP checksum of a piece is left partial, as that of any packet that was on no wire. */
  run(batch: Batch): void {
    const { pool, counters, segmenter, portions } = this
    const { frames, length } = batch
    let bytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      bytes += pool.length[frame]
      if (pool.gso[frame] !== GSO.UDP) portions.push(frame)
      else {
        const bad = segmenter.open(frame)
        if (bad === 0) portions.pushSegments(segmenter, frame, LEFT.INNER)
        else {
          counters.dropped(bad)
          pool.free(frame)
        }
      }
    }
    batch.length = 0
    counters.received(length, bytes)
    portions.flush()
  }
}
