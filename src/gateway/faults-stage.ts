// Faults of a gateway's worker, beside its leg: while there are any, packets go through their lines, one wire packet a
// frame and checksums complete; without, the leg leaves this alone.
//
//   underlay ─► (one frame a packet ─► line) ─► decap ─► inspect ─► turn ─► (one frame a packet ─► line) ─► underlay

import type { Device } from '../device/device.ts'
import { FaultLine } from '../device/fault-line.ts'
import type { Fault } from '../device/faults.ts'
import { bytesOf, faultsToward, TRANSMIT_SALT } from '../device/faulty.ts'
import type { Batch } from '../memory/batch.ts'
import type { Counters, StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { Complete } from '../pipeline/complete.ts'
import type { Leg } from '../pipeline/loop.ts'
import { TunnelAlterations } from './faults.ts'

export interface FaultStageOptions {
  kind: 'geneve' | 'vxlan'
  /** Which of several workers this is. */
  worker: number
  /** Those of the stages in whose place super-packets are taken apart while there are faults. */
  split: StageCounters
  complete: StageCounters
  /** The gateway's stages from decap on; takes every frame. */
  next(batch: Batch): void
}

export class FaultStage {
  /** True while there are faults that befall what is received, or transmitted. */
  receiving = false
  transmitting = false
  /** True while nothing is taken and nothing sent. */
  hung = false
  /** Lets go of what is held back when it is time; to be added to the loop once there have been faults. */
  readonly leg: Leg
  private readonly worker: number
  private readonly inward: FaultLine
  private readonly outward: FaultLine
  private readonly apart: Complete
  private readonly complete: Complete

  constructor(pool: Pool, counters: Counters, underlay: Device, options: FaultStageOptions) {
    const { kind, worker, split, complete, next } = options
    const receive = counters.stage('faults receive')
    const transmit = counters.stage('faults transmit')
    const alterations = new TunnelAlterations(pool, kind)
    this.worker = worker
    this.inward = new FaultLine(pool, receive, alterations, batch => {
      receive.sent(batch.length, bytesOf(pool, batch, 0))
      next(batch)
    })
    this.outward = new FaultLine(pool, transmit, alterations, batch => {
      transmit.sent(batch.length, bytesOf(pool, batch, 0))
      underlay.transmit(batch)
    })
    this.apart = new Complete(pool, split, wire(this.inward))
    this.complete = new Complete(pool, complete, wire(this.outward))
    const { inward, outward } = this
    this.leg = {
      device: {
        ...{ name: 'faults', capabilities: 0, fd: -1, exhausted: false },
        receive: () => this.advance(),
        transmit() {},
        close() {},
      },
      run() {},
      due: () => (this.hung ? Number.POSITIVE_INFINITY : Math.min(inward.nextMs, outward.nextMs)),
    }
  }

  /** Replaces the faults; those that were there already, by their ids, go on with their dice. What is held back by a direction that has none any more goes on. */
  set(faults: readonly Fault[]): void {
    const { inward, outward, worker } = this
    this.hung = faults.some(({ kind }) => kind === 'hang')
    const others = faults.filter(({ kind }) => kind !== 'hang')
    inward.set(faultsToward(others, 'receive', 'transmit'), worker << 8, worker)
    outward.set(faultsToward(others, 'transmit', 'transmit'), TRANSMIT_SALT ^ (worker << 8), worker)
    this.receiving = inward.active
    this.transmitting = outward.active
    inward.flush()
    outward.flush()
  }

  /** Takes every frame of the batch, as the underlay gave them. */
  receive(batch: Batch): void {
    this.apart.run(batch)
  }

  /** Takes every frame of the batch, as `turn` leaves them. */
  transmit(batch: Batch): void {
    this.complete.run(batch)
  }

  /** What is held back to be sent is sent, unless the gateway hangs; what was received and held back is dropped. */
  close(): void {
    const { inward, outward, hung } = this
    inward.discard()
    if (hung) outward.discard()
    outward.release()
    outward.flush()
  }

  private advance(): number {
    if (this.hung) return 0
    const { inward, outward } = this
    if (inward.held === 0 && outward.held === 0) return 0
    const now = performance.now()
    for (const line of [inward, outward]) {
      line.advance(now, false)
      line.flush()
    }
    return 0
  }
}

/** A line as what a stage transmits to: it can do nothing for packets. */
function wire(line: FaultLine): Pick<Device, 'capabilities' | 'transmit'> {
  return {
    capabilities: 0,
    transmit(batch) {
      const now = performance.now()
      for (let i = 0; i < batch.length; i++) line.pass(batch.frames[i], now)
      batch.length = 0
      line.advance(now, true)
      line.flush()
    },
  }
}
