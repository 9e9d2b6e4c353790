// One direction of packets that faults befall: their dice, and the packets that they hold back. One thread only.
//
// Each fault has dice of its own and throws two for every packet that it is for, whether or not others hit; so the n-th of
// these packets fares the same whatever the timing, and whatever other faults there are.

import { DROP } from '../drop.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { type Fault, MAX_DEPTH, MAX_FAULTS } from './faults.ts'

/** What faults do to the bytes of packets. */
export interface Alterations {
  /** True for a packet that the fault is for. */
  matches(frame: number, fault: Fault): boolean
  /** Does it to the packet, or not where it cannot be done; `die` has 31 bits. */
  alter(frame: number, fault: Fault, die: number): (typeof ALTERED)[keyof typeof ALTERED]
}

export const ALTERED = { NO: 0, YES: 1, LOST: 2 } as const

/** Packets that are delayed at a time, at most: more are lost, as with a limit of netem. */
export const MAX_DELAYED = 256
/** Packets that are overtaken go on after this time even if no more come. */
const PATIENCE_MS = 100

const DEFAULT_DEPTH = 8

export class FaultLine {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly alterations: Alterations
  private readonly next: (batch: Batch) => void
  private readonly out = new Batch(BATCH)

  private faults: readonly Fault[] = []
  private tallies: (Float64Array | undefined)[] = []
  private worker = 0
  private readonly dice = new Int32Array(MAX_FAULTS)
  private readonly hits = new Int32Array(MAX_FAULTS)

  // Those that wait to be overtaken, each by so many more packets, and those that wait for a time, first ones first.
  private readonly waiting = new Int32Array(MAX_DEPTH + 1)
  private readonly left = new Int32Array(MAX_DEPTH + 1)
  private waits = 0
  private readonly delayed = new Int32Array(MAX_DELAYED)
  private readonly dueMs = new Float64Array(MAX_DELAYED)
  private delays = 0
  private lastPacket = 0

  /** `next` takes every frame of a batch; it is called by `flush`, and as often as there is no more room. */
  constructor(pool: Pool, counters: StageCounters, alterations: Alterations, next: (batch: Batch) => void) {
    this.pool = pool
    this.counters = counters
    this.alterations = alterations
    this.next = next
  }

  /** Replaces the faults, MAX_FAULTS at most; one that was there already, by its id, keeps its dice. `salt` tells lines apart that are to fare differently. */
  set(faults: readonly Fault[], salt: number, worker = 0): void {
    const kept = new Map(this.faults.map(({ id }, i) => [id, this.dice[i]]))
    this.faults = faults
    this.worker = worker
    this.tallies = faults.map(({ tally }) => tally && new Float64Array(tally))
    faults.forEach(({ id, seed }, i) => {
      this.dice[i] = kept.get(id) ?? (mix(mix(seed ^ salt) + id) || 1)
    })
    if (faults.length === 0) this.release()
  }

  get active(): boolean {
    return this.faults.length > 0
  }

  /** How many packets are held back. */
  get held(): number {
    return this.waits + this.delays
  }

  /** Takes the frame. */
  pass(frame: number, now: number): void {
    const { pool, counters, faults, hits, alterations } = this
    counters.received(1, pool.length[frame])
    for (let i = 0; i < faults.length; i++) {
      hits[i] = -1
      if (!alterations.matches(frame, faults[i])) continue
      const hit = this.throwDie(i) < faults[i].share * 0x8000_0000
      const die = this.throwDie(i)
      if (hit) hits[i] = die
    }
    let lost = false
    let depth = 0
    let delayMs = -1
    // What loses a packet comes first: of a lost one there is no copy.
    for (let i = 0; i < faults.length; i++) if (hits[i] >= 0 && faults[i].kind === 'drop') lost = this.count(i)
    for (let i = 0; i < faults.length && !lost; i++) {
      const fault = faults[i]
      if (hits[i] < 0) continue
      if (fault.kind === 'duplicate') {
        if (this.double(frame)) this.count(i)
      } else if (fault.kind === 'reorder') {
        depth = 1 + (hits[i] % (fault.depth ?? DEFAULT_DEPTH))
        this.count(i)
      } else if (fault.kind === 'delay') {
        delayMs = Math.max(delayMs, fault.time ?? 0)
        this.count(i)
      } else {
        const altered = alterations.alter(frame, fault, hits[i])
        if (altered !== ALTERED.NO) this.count(i)
        if (altered === ALTERED.YES) counters.failed()
        lost = altered === ALTERED.LOST
      }
    }
    if (lost || (delayMs >= 0 && !this.delay(frame, now + delayMs))) {
      counters.dropped(DROP.FAULT)
      pool.free(frame)
    } else if (delayMs < 0 && depth === 0) this.emit(frame)
    this.overtake()
    if (depth > 0 && delayMs < 0 && !lost) {
      this.waiting[this.waits] = frame
      this.left[this.waits++] = depth
    }
  }

  /** Lets go of what has waited for long enough; `passed` says that packets have come by at this time. */
  advance(now: number, passed: boolean): void {
    if (passed) this.lastPacket = now
    else if (this.waits > 0 && now - this.lastPacket > PATIENCE_MS) this.releaseWaiting()
    let due = 0
    while (due < this.delays && this.dueMs[due] <= now) this.emit(this.delayed[due++])
    this.forget(due)
  }

  /** When `advance` has something to do, ms of performance.now(); Infinity where it has nothing. */
  get nextMs(): number {
    const delayed = this.delays > 0 ? this.dueMs[0] : Number.POSITIVE_INFINITY
    return this.waits > 0 ? Math.min(delayed, this.lastPacket + PATIENCE_MS + 1) : delayed
  }

  /** Lets go of everything that is held back. */
  release(): void {
    this.releaseWaiting()
    for (let i = 0; i < this.delays; i++) this.emit(this.delayed[i])
    this.delays = 0
  }

  /** Drops everything that is held back. */
  discard(): void {
    const { pool, counters } = this
    counters.dropped(DROP.STOPPED, this.held)
    for (let i = 0; i < this.waits; i++) pool.free(this.waiting[i])
    for (let i = 0; i < this.delays; i++) pool.free(this.delayed[i])
    this.waits = 0
    this.delays = 0
  }

  /** Hands on what has been let go. */
  flush(): void {
    if (this.out.length > 0) this.next(this.out)
    this.out.length = 0
  }

  private emit(frame: number): void {
    if (this.out.room === 0) this.flush()
    this.out.push(frame)
  }

  private count(i: number): true {
    const tally = this.tallies[i]
    if (tally !== undefined) tally[this.worker]++
    return true
  }

  private releaseWaiting(): void {
    for (let i = 0; i < this.waits; i++) this.emit(this.waiting[i])
    this.waits = 0
  }

  /** One more packet has gone by those that wait to be overtaken. */
  private overtake(): void {
    const { waiting, left } = this
    let kept = 0
    for (let i = 0; i < this.waits; i++) {
      if (--left[i] === 0) this.emit(waiting[i])
      else {
        waiting[kept] = waiting[i]
        left[kept++] = left[i]
      }
    }
    this.waits = kept
  }

  /** Keeps the frame until its time, behind those of the same; false when there is no room. */
  private delay(frame: number, dueMs: number): boolean {
    if (this.delays === MAX_DELAYED) return false
    let at = this.delays++
    for (; at > 0 && this.dueMs[at - 1] > dueMs; at--) {
      this.dueMs[at] = this.dueMs[at - 1]
      this.delayed[at] = this.delayed[at - 1]
    }
    this.dueMs[at] = dueMs
    this.delayed[at] = frame
    return true
  }

  private forget(due: number): void {
    if (due === 0) return
    this.delayed.copyWithin(0, due, this.delays)
    this.dueMs.copyWithin(0, due, this.delays)
    this.delays -= due
  }

  /** An undamaged copy goes ahead; false without a free frame for it. */
  private double(frame: number): boolean {
    const { pool, counters } = this
    const copy = pool.alloc()
    if (copy < 0) {
      counters.failed()
      return false
    }
    const by = pool.start[copy] - pool.start[frame]
    copyBytes(pool.view, pool.start[copy], pool.view, pool.start[frame], pool.length[frame])
    pool.copyMetadata(frame, copy)
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
    this.emit(copy)
    return true
  }

  /** 31 bits of a fault's own (Marsaglia's xorshift). */
  private throwDie(i: number): number {
    let x = this.dice[i]
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.dice[i] = x
    return x >>> 1
  }
}

/** Spreads a seed over 32 bits (MurmurHash3's finalizer). */
function mix(seed: number): number {
  let h = seed ^ 0x9e37_79b9
  h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35)
  return h ^ (h >>> 16)
}
