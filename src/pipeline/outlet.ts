// The way out to the endpoint: the main device carries super-packets; small packets may have an express device of their own,
// which sends them in half the time.
//
// A flow's packets keep their order: TCP, whose small packets belong between its super-packets, stays on the main device, and
// of other flows nothing overtakes what the same breath sends by the other device.

import type { Device } from '../device/device.ts'
import { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { ENDPOINT_NUMBERS } from '../memory/endpoints.ts'
import { GSO, type Pool } from '../memory/pool.ts'
import { PROTOCOL } from '../wire/ipv4.ts'
import { Complete } from './complete.ts'

/** Outer frames of up to so many bytes are small: a small frame of the pool holds them. */
const SMALL = 1900

export class Outlet {
  /** The stage before the main device. */
  readonly main: Complete
  /** By endpoint number: 0 while the express device does not know the way there; then all leave by the main one. */
  readonly expressOpen = new Uint8Array(ENDPOINT_NUMBERS)
  private readonly pool: Pool
  private readonly counters: StageCounters
  private express: Device | undefined
  private lanes: [Lane, Lane] | undefined
  private readonly nothing = new Batch(0)

  constructor(pool: Pool, counters: StageCounters, main: Device, express?: Device) {
    this.pool = pool
    this.counters = counters
    this.main = new Complete(pool, counters, main)
    this.useExpress(express)
  }

  /** Sends by this express device from now on, or by the main device only; the last one is its owner's to close. */
  useExpress(express: Device | undefined): void {
    const { pool, counters, main } = this
    this.express = express
    this.lanes = express && [new Lane(main), new Lane(new Complete(pool, counters, express))]
  }

  /** Takes every frame of the batch and empties it. */
  readonly run = (batch: Batch): void => {
    const { pool, lanes, expressOpen } = this
    if (lanes === undefined || this.express?.exhausted === true) {
      this.main.run(batch)
      return
    }
    const [main, express] = lanes
    const { frames, length } = batch
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const small = pool.length[frame] <= SMALL && pool.gso[frame] === GSO.NONE && pool.protocol[frame] !== PROTOCOL.TCP
      const quick = small && expressOpen[pool.endpoint[frame]] !== 0
      const lane = quick ? express : main
      const other = quick ? main : express
      const flow = 1 << pool.hash[frame]
      if ((other.flows & flow) !== 0) other.flush()
      lane.flows |= flow
      lane.waiting.push(frame)
    }
    batch.length = 0
    express.flush()
    main.flush()
  }

  /** Once a tick: what the express device holds is sent on. */
  tick(): void {
    if (this.express !== undefined) this.express.receive(this.nothing)
  }
}

/** What waits for one device. */
class Lane {
  readonly waiting = new Batch()
  /** A bit for each flow of which a frame waits, by its hash. */
  flows = 0
  private readonly stage: Complete

  constructor(stage: Complete) {
    this.stage = stage
  }

  flush(): void {
    this.flows = 0
    if (this.waiting.length > 0) this.stage.run(this.waiting)
  }
}
