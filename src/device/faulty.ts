// Faulty: a device around a device that loses, doubles, delays, flips and cuts packets, the same ones for the same seed.

import { DROP } from '../drop.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { OFFLOAD, type Pool } from '../memory/pool.ts'
import { HEADER as ETHERNET } from '../wire/ethernet.ts'
import type { Device } from './device.ts'
import { ALTERED, type Alterations, FaultLine, MAX_DELAYED } from './fault-line.ts'
import { DEVICE_KINDS, type Fault, type Faults, MAX_DEPTH, type SettingName } from './faults.ts'

/** Settings of faults that such a device knows. */
export const DEVICE_SETTINGS: readonly SettingName[] = ['share', 'depth', 'time', 'direction', 'seed']

/** Salt of the direction that is transmitted, so that the two fare differently. */
export const TRANSMIT_SALT = -1

/** The faults of one direction. */
export function faultsToward(
  faults: readonly Fault[],
  direction: 'receive' | 'transmit',
  otherwise: 'both' | 'transmit',
): Fault[] {
  return faults.filter(fault => ['both', direction].includes(fault.direction ?? otherwise))
}

/**
 * Applies faults, those of DEVICE_KINDS, to what is received and to what is transmitted. A flipped bit keeps its checksum
 * wrong, but for one that is still to be computed.
 */
export class FaultyDevice implements Device {
  readonly name: string
  readonly capabilities: number
  readonly fd: number
  private readonly device: Device
  private readonly counters: StageCounters
  private readonly pool: Pool
  private readonly inward: FaultLine
  private readonly outward: FaultLine
  private readonly raw = new Batch()
  // What was received and is not yet given on, from `given` on.
  private readonly ready: Batch
  private given = 0

  constructor(device: Device, pool: Pool, counters: StageCounters, { seed, faults }: Faults) {
    this.device = device
    this.pool = pool
    this.counters = counters
    this.name = device.name
    this.capabilities = device.capabilities
    this.fd = device.fd
    const alterations = new FrameAlterations(pool)
    const seeded = faults.filter(({ kind }) => DEVICE_KINDS.includes(kind)).map(fault => ({ ...fault, seed }))
    const [receiving, transmitting] = (['receive', 'transmit'] as const).map(way => faultsToward(seeded, way, 'both'))
    const copies = receiving.filter(({ kind }) => kind === 'duplicate').length
    this.ready = new Batch((1 + copies) * BATCH + MAX_DEPTH + 1 + MAX_DELAYED)
    this.inward = new FaultLine(pool, counters, alterations, batch => {
      for (let i = 0; i < batch.length; i++) this.ready.push(batch.frames[i])
    })
    this.outward = new FaultLine(pool, counters, alterations, batch => {
      counters.sent(batch.length, bytesOf(pool, batch, 0))
      device.transmit(batch)
    })
    this.inward.set(receiving, 0)
    this.outward.set(transmitting, TRANSMIT_SALT)
  }

  get exhausted(): boolean {
    return this.device.exhausted && this.inward.held === 0 && this.given === this.ready.length
  }

  get wanting(): boolean {
    return this.device.wanting === true
  }

  /** Packets held back, in both directions, here and in the device. */
  get held(): number {
    return this.inward.held + this.outward.held + (this.device.held ?? 0)
  }

  receive(batch: Batch): number {
    const { ready, raw, inward, outward } = this
    if (this.given === ready.length) {
      this.given = ready.length = 0
      const n = this.device.receive(raw)
      const now = performance.now()
      for (let i = 0; i < n; i++) inward.pass(raw.frames[i], now)
      raw.length = 0
      if (this.device.exhausted) inward.release()
      inward.advance(now, n > 0)
      inward.flush()
      outward.advance(now, false)
      outward.flush()
    }
    const n = Math.min(batch.room, ready.length - this.given)
    for (let i = 0; i < n; i++) batch.push(ready.frames[this.given++])
    this.counters.sent(n, bytesOf(this.pool, batch, batch.length - n))
    return n
  }

  transmit(batch: Batch): void {
    const { outward } = this
    const { frames, length } = batch
    const now = performance.now()
    for (let i = 0; i < length; i++) outward.pass(frames[i], now)
    batch.length = 0
    outward.advance(now, length > 0)
    outward.flush()
  }

  /** What is held back to be sent is sent; what was received and held back is dropped. */
  close(): void {
    const { pool, ready, inward, outward } = this
    outward.release()
    outward.flush()
    inward.discard()
    this.counters.dropped(DROP.STOPPED, ready.length - this.given)
    while (this.given < ready.length) pool.free(ready.frames[this.given++])
    this.device.close()
  }
}

export function bytesOf({ length }: Pool, batch: Batch, from: number): number {
  let bytes = 0
  for (let i = from; i < batch.length; i++) bytes += length[batch.frames[i]]
  return bytes
}

/** What can be done to any frame. */
class FrameAlterations implements Alterations {
  private readonly pool: Pool

  constructor(pool: Pool) {
    this.pool = pool
  }

  matches(): boolean {
    return true
  }

  alter(frame: number, { kind }: Fault, die: number) {
    const { pool } = this
    if (kind === 'corrupt') return flipBit(pool, frame, pool.start[frame], die)
    // Leaves at least the Ethernet header, which every device reads.
    const most = pool.length[frame] - ETHERNET
    if (most <= 0) return ALTERED.NO
    pool.length[frame] = ETHERNET + (die % most)
    return ALTERED.YES
  }
}

/** Flips one bit of a frame from the position `from` on; nobody vouches for its checksums any more. */
export function flipBit(pool: Pool, frame: number, from: number, die: number) {
  const bytes = pool.start[frame] + pool.length[frame] - from
  if (bytes <= 0) return ALTERED.NO
  const bit = die % (bytes * 8)
  pool.bytes[from + (bit >> 3)] ^= 1 << (bit & 7)
  pool.offload[frame] &= ~OFFLOAD.CHECKSUM_VALID
  return ALTERED.YES
}
