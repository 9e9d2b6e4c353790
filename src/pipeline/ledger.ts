// The ledger of a replay: remembers what was sent to the endpoint and says of each packet that comes back whether it is
// unchanged, and how long it was away. Bounded: when it is full, the oldest packet counts as never returned.

import type { Pool } from '../memory/pool.ts'

/** Packets remembered at a time. */
const CAPACITY = 1 << 20

/** Latency classes: quarter-octaves of microseconds, up to 2^30 µs. */
const CLASSES = 120

/** One thread. Times are ms of performance.now(). */
export class Ledger {
  sent = 0
  unchanged = 0
  changed = 0
  private readonly pool: Pool
  /** Hash buckets: index of the newest entry, -1 for none. */
  private readonly buckets = new Int32Array(CAPACITY).fill(-1)
  private readonly older = new Int32Array(CAPACITY)
  private readonly low = new Int32Array(CAPACITY)
  private readonly high = new Int32Array(CAPACITY)
  private readonly live = new Uint8Array(CAPACITY)
  private readonly time = new Float64Array(CAPACITY)
  private readonly latency = new Float64Array(CLASSES)
  private next = 0
  private digestLow = 0
  private digestHigh = 0

  constructor(pool: Pool) {
    this.pool = pool
  }

  /** Notes a packet that is about to be encapsulated. */
  send(frame: number, now: number): void {
    this.digest(frame)
    const entry = this.next++ & (CAPACITY - 1)
    if (this.live[entry] === 1) this.unlink(entry)
    const bucket = this.digestLow & (CAPACITY - 1)
    this.low[entry] = this.digestLow
    this.high[entry] = this.digestHigh
    this.time[entry] = now
    this.live[entry] = 1
    this.older[entry] = this.buckets[bucket]
    this.buckets[bucket] = entry
    this.sent++
  }

  /** Judges a packet that came back: true when it is one that was sent, bit for bit. */
  back(frame: number, now: number): boolean {
    this.digest(frame)
    const bucket = this.digestLow & (CAPACITY - 1)
    let found = -1
    // The oldest of equal packets is the one that comes back first.
    for (let at = this.buckets[bucket]; at >= 0; at = this.older[at])
      if (this.low[at] === this.digestLow && this.high[at] === this.digestHigh) found = at
    if (found < 0) {
      this.changed++
      return false
    }
    this.unlink(found)
    this.unchanged++
    const us = Math.max(1, (now - this.time[found]) * 1000)
    this.latency[Math.min(CLASSES - 1, Math.floor(Math.log2(us) * 4))]++
    return true
  }

  /** Packets sent that did not come back as they were. */
  get missing(): number {
    return this.sent - this.unchanged
  }

  /** The latency in µs that the given share of the returned packets did not exceed (upper end of its class, 19% wide). */
  quantile(share: number): number {
    const wanted = share * this.unchanged
    let seen = 0
    for (let i = 0; i < CLASSES; i++) {
      seen += this.latency[i]
      if (seen >= wanted && seen > 0) return 2 ** ((i + 1) / 4)
    }
    return 0
  }

  private unlink(entry: number): void {
    const bucket = this.low[entry] & (CAPACITY - 1)
    this.live[entry] = 0
    let at = this.buckets[bucket]
    if (at === entry) {
      this.buckets[bucket] = this.older[entry]
      return
    }
    while (at >= 0) {
      const next = this.older[at]
      if (next === entry) {
        this.older[at] = this.older[entry]
        return
      }
      at = next
    }
  }

  /** 64 bits over the frame, two lanes of multiply and rotate; it guards against accidents, not against forgers. */
  private digest(frame: number): void {
    const { view, bytes } = this.pool
    const end = this.pool.start[frame] + this.pool.length[frame]
    let at = this.pool.start[frame]
    let low = this.pool.length[frame] | 0
    let high = 0x2545f491
    for (; at + 4 <= end; at += 4) {
      const word = view.getInt32(at, true)
      low = Math.imul(low ^ word, 0x9e3779b1)
      low = (low << 13) | (low >>> 19)
      high = Math.imul(high + word, 0x85ebca6b)
      high = (high << 17) | (high >>> 15)
    }
    for (; at < end; at++) {
      low = Math.imul(low ^ bytes[at], 0x9e3779b1)
      high = Math.imul(high + bytes[at], 0x85ebca6b)
    }
    low ^= low >>> 15
    this.digestLow = Math.imul(low, 0xc2b2ae35) ^ (low >>> 13)
    this.digestHigh = high ^ (high >>> 16)
  }
}
