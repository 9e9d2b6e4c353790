// Complete: makes good what the next device lacks.
import type { Device } from '../device/device.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'

/** The stage in front of a device: one frame may become many, so it hands frames to the device itself, in portions. */
export class Complete {
  protected readonly parts: [Pool, StageCounters, Pick<Device, 'capabilities' | 'transmit'>]

  constructor(pool: Pool, counters: StageCounters, device: Pick<Device, 'capabilities' | 'transmit'>) {
    this.parts = [pool, counters, device]
  }

  /** Takes every frame of the batch and empties it: completed and transmitted, or dropped. */
  run(batch: Batch): void {
    this.parts[2].transmit(batch)
  }
}
