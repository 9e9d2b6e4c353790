// Handing over: frames whose flow is at home at another worker go there. Few do. The kernel steers packets one by one, but what a
// sender or GRO has put together comes together, and where an endpoint uses one source port those may be of different flows.

import type { Device } from '../device/device.ts'
import { type Steering, workerOfPacket } from '../flow/steering.ts'
import { Batch } from '../memory/batch.ts'
import type { Pool } from '../memory/pool.ts'
import type { Leg } from './loop.ts'

/** One worker's ways to the others: that thread only. */
export class Handover {
  private readonly pool: Pool
  private readonly worker: number
  private readonly steering: Steering
  private readonly peers: readonly (Device | undefined)[]
  private readonly leaving: readonly Batch[]

  /** `peers` are by worker number, undefined at this worker's own. */
  constructor(pool: Pool, worker: number, steering: Steering, peers: readonly (Device | undefined)[]) {
    this.pool = pool
    this.worker = worker
    this.steering = steering
    this.peers = peers
    this.leaving = peers.map(() => new Batch())
  }

  /** Takes the frame when its packet (pool.network) belongs to another worker, to whom `flush` sends it. */
  take(frame: number): boolean {
    const { pool, leaving } = this
    const end = pool.start[frame] + pool.length[frame]
    const home = workerOfPacket(pool.bytes, pool.network[frame], end, this.steering)
    const peer = this.peers[home]
    if (home === this.worker || peer === undefined) return false
    if (leaving[home].room === 0) peer.transmit(leaving[home])
    leaving[home].push(frame)
    return true
  }

  /** Sends what was taken. */
  flush(): void {
    const { leaving } = this
    for (let i = 0; i < leaving.length; i++) if (leaving[i].length > 0) this.peers[i]?.transmit(leaving[i])
  }

  /** Legs for the loop; `run` takes the frames that others have handed over. */
  legs(run: (batch: Batch) => void): Leg[] {
    return this.peers.flatMap(device => (device === undefined ? [] : [{ device, run }]))
  }
}
