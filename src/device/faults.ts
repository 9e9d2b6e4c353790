// Faults: a device around a device that loses, doubles, delays, flips and cuts packets, the same ones for the same seed.
//
// Each direction has dice of its own and throws one for every fault and packet, whether or not the others hit; so the
// n-th packet fares the same whatever the timing, and whatever other faults are asked for.

import { DROP } from '../drop.ts'
import { DetourError } from '../errors.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import type { StageCounters } from '../memory/counters.ts'
import { OFFLOAD, type Pool } from '../memory/pool.ts'
import { HEADER as ETHERNET } from '../wire/ethernet.ts'
import type { Device } from './device.ts'

/** Plain data that passes through workerData. */
export interface Faults {
  /** Probabilities, 0 to 1, of a packet to be lost, sent twice, held back, to get one bit flipped, to lose its end. */
  loss: number
  duplicate: number
  reorder: number
  corrupt: number
  truncate: number
  /** How many packets overtake one that is held back, at most. */
  delay: number
  seed: number
}

const PROBABILITIES = ['loss', 'duplicate', 'reorder', 'corrupt', 'truncate'] as const
const INTEGERS = { delay: [1, 64], seed: [0, 0x7fff_ffff] } as const

/** Reads `loss=1%,reorder=0.05,delay=8,seed=7`. Throws DetourError (usage). */
export function parseFaults(text: string): Faults {
  const faults: Faults = { loss: 0, duplicate: 0, reorder: 0, corrupt: 0, truncate: 0, delay: 8, seed: 1 }
  for (const part of text.split(',')) {
    const [, key, digits, percent] = /^([a-z]+)=(\d*\.?\d+)(%?)$/.exec(part.trim()) ?? []
    const value = Number(digits) / (percent === '%' ? 100 : 1)
    if ((PROBABILITIES as readonly string[]).includes(key)) {
      if (!(value <= 1)) throw usage(part, `${key} is a probability, 0 to 100% or 0 to 1`)
      faults[key as (typeof PROBABILITIES)[number]] = value
    } else if (key === 'delay' || key === 'seed') {
      const [least, most] = INTEGERS[key]
      if (!Number.isInteger(value) || percent === '%' || value < least || value > most)
        throw usage(part, `${key} is a whole number, ${least} to ${most}`)
      faults[key] = value
    } else
      throw usage(part, `allowed are ${[...PROBABILITIES, ...Object.keys(INTEGERS)].join(', ')}, as in loss=1%,seed=7`)
  }
  return faults
}

const usage = (part: string, allowed: string) => new DetourError('usage', `fault '${part}': ${allowed}`)

/** Packets that are held back go on after this time even if none overtakes them. */
const PATIENCE_MS = 100

/** Applies faults to what is received and to what is transmitted. A flipped bit keeps its checksum wrong, but for one that is still to be computed. */
export class FaultyDevice implements Device {
  readonly name: string
  readonly capabilities: number
  readonly fd: number
  private readonly device: Device
  private readonly counters: StageCounters
  private readonly pool: Pool
  private readonly inward: Line
  private readonly outward: Line
  private readonly raw = new Batch()
  // What was received and is not yet given on, from `given` on.
  private readonly ready = new Batch(2 * BATCH + 2 * INTEGERS.delay[1])
  private given = 0

  constructor(device: Device, pool: Pool, counters: StageCounters, faults: Faults) {
    this.device = device
    this.pool = pool
    this.counters = counters
    this.name = device.name
    this.capabilities = device.capabilities
    this.fd = device.fd
    this.inward = new Line(pool, counters, faults, faults.seed)
    this.outward = new Line(pool, counters, faults, ~faults.seed)
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
      for (let i = 0; i < n; i++) inward.pass(raw.frames[i], ready)
      raw.length = 0
      const now = performance.now()
      if (this.device.exhausted) inward.release(ready)
      inward.releaseLate(ready, now, n > 0)
      outward.releaseLate(raw, now, false)
      if (raw.length > 0) this.send(raw)
    }
    const n = Math.min(batch.room, ready.length - this.given)
    for (let i = 0; i < n; i++) batch.push(ready.frames[this.given++])
    this.counters.sent(n, bytesOf(this.pool, batch, batch.length - n))
    return n
  }

  transmit(batch: Batch): void {
    const { raw, outward } = this
    const { frames, length } = batch
    for (let i = 0; i < length; i++) {
      if (raw.room < 2 * INTEGERS.delay[1] + 2) this.send(raw)
      outward.pass(frames[i], raw)
    }
    batch.length = 0
    outward.releaseLate(raw, performance.now(), length > 0)
    this.send(raw)
  }

  /** What is held back to be sent is sent; what was received and held back is dropped. */
  close(): void {
    const { pool, ready, raw } = this
    this.outward.release(raw)
    this.send(raw)
    this.inward.release(ready)
    this.counters.dropped(DROP.STOPPED, ready.length - this.given)
    while (this.given < ready.length) pool.free(ready.frames[this.given++])
    this.device.close()
  }

  private send(batch: Batch): void {
    this.counters.sent(batch.length, bytesOf(this.pool, batch, 0))
    this.device.transmit(batch)
  }
}

function bytesOf({ length }: Pool, batch: Batch, from: number): number {
  let bytes = 0
  for (let i = from; i < batch.length; i++) bytes += length[batch.frames[i]]
  return bytes
}

/** One direction: its dice and the packets that it holds back. */
class Line {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly faults: Faults
  private state: number
  // At most `delay` wait, each for so many more packets; oldest first.
  private readonly waiting = new Int32Array(INTEGERS.delay[1] + 1)
  private readonly left = new Int32Array(INTEGERS.delay[1] + 1)
  private count = 0
  private lastPacket = 0

  constructor(pool: Pool, counters: StageCounters, faults: Faults, seed: number) {
    this.pool = pool
    this.counters = counters
    this.faults = faults
    this.state = Math.imul(seed ^ 0x9e37_79b9, 0x85eb_ca6b) || 1
  }

  get held(): number {
    return this.count
  }

  /** Takes the frame; appends what goes on because of it: at most two, and all that is held back. */
  pass(frame: number, out: Batch): void {
    const { pool, counters, faults } = this
    const lost = this.hits(faults.loss)
    const doubled = this.hits(faults.duplicate)
    const delayed = this.hits(faults.reorder)
    const flipped = this.hits(faults.corrupt)
    const cut = this.hits(faults.truncate)
    const where = this.throwDie()
    const { delay } = faults
    counters.received(1, pool.length[frame])
    if (lost) {
      counters.dropped(DROP.FAULT)
      pool.free(frame)
    } else {
      if (doubled) this.double(frame, out)
      if (flipped) this.flip(frame, where)
      if (cut) this.cut(frame, where)
      if (!delayed) out.push(frame)
    }
    this.overtake(out)
    if (delayed && !lost) {
      this.waiting[this.count] = frame
      this.left[this.count++] = 1 + (where % delay)
    }
  }

  /** Lets go of everything that is held back. */
  release(out: Batch): void {
    for (let i = 0; i < this.count; i++) out.push(this.waiting[i])
    this.count = 0
  }

  /** Lets go of it when nothing came by for a while. */
  releaseLate(out: Batch, now: number, passed: boolean): void {
    if (passed) this.lastPacket = now
    else if (this.count > 0 && now - this.lastPacket > PATIENCE_MS) this.release(out)
  }

  /** One more packet has gone by those that are held back. */
  private overtake(out: Batch): void {
    const { waiting, left } = this
    let kept = 0
    for (let i = 0; i < this.count; i++) {
      if (--left[i] === 0) out.push(waiting[i])
      else {
        waiting[kept] = waiting[i]
        left[kept++] = left[i]
      }
    }
    this.count = kept
  }

  /** An undamaged copy goes ahead; without a free frame there is none. */
  private double(frame: number, out: Batch): void {
    const { pool, counters } = this
    const copy = pool.alloc()
    if (copy < 0) {
      counters.failed()
      return
    }
    const by = (copy - frame) * pool.frameSize
    copyBytes(pool.view, pool.start[frame] + by, pool.view, pool.start[frame], pool.length[frame])
    pool.copyMetadata(frame, copy)
    pool.start[copy] = pool.start[frame] + by
    pool.length[copy] = pool.length[frame]
    pool.network[copy] = pool.network[frame] + by
    pool.transport[copy] = pool.transport[frame] + by
    pool.payload[copy] = pool.payload[frame] + by
    pool.checksumStart[copy] = pool.checksumStart[frame] + by
    pool.checksumOffset[copy] = pool.checksumOffset[frame]
    pool.outerTransport[copy] = pool.outerTransport[frame] === 0 ? 0 : pool.outerTransport[frame] + by
    pool.gso[copy] = pool.gso[frame]
    pool.gsoSize[copy] = pool.gsoSize[frame]
    pool.offload[copy] = pool.offload[frame]
    counters.created(1)
    counters.copied(pool.length[frame])
    out.push(copy)
  }

  private flip(frame: number, where: number): void {
    const { pool } = this
    if (pool.length[frame] === 0) return
    const bit = where % (pool.length[frame] * 8)
    pool.bytes[pool.start[frame] + (bit >> 3)] ^= 1 << (bit & 7)
    pool.offload[frame] &= ~OFFLOAD.CHECKSUM_VALID
    this.counters.failed()
  }

  /** Leaves at least the Ethernet header, which every device reads. */
  private cut(frame: number, where: number): void {
    const { pool } = this
    const most = pool.length[frame] - ETHERNET
    if (most <= 0) return
    pool.length[frame] = ETHERNET + (where % most)
    this.counters.failed()
  }

  private hits(probability: number): boolean {
    return this.throwDie() < probability * 0x8000_0000
  }

  /** 31 bits (Marsaglia's xorshift). */
  private throwDie(): number {
    let x = this.state
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.state = x
    return x >>> 1
  }
}
