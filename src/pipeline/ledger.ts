// The ledger of a replay: remembers what was sent to the endpoint and says of each packet that comes back whether it is
// one of those, unchanged or changed, and how long it was away. Bounded: a packet that is not back before 65,536 more
// are sent counts as never returned.

import type { Pool } from '../memory/pool.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as tcp from '../wire/tcp.ts'

/** Packets remembered at a time; far more than are ever on their way. */
const CAPACITY = 1 << 16

/** Latency classes: quarter-octaves of microseconds, up to 2^30 µs. */
const CLASSES = 120

/** States of an entry. */
const FREE = 0
const AWAITED = 1
const FORGIVEN = 2

/** One thread. Times are ms of performance.now(). Both `send` and `back` want frames that were parsed and have their flow. */
export class Ledger {
  sent = 0
  /** Returned bit for bit. */
  unchanged = 0
  /** Returned otherwise: same flow, direction and, as far as it has them, identification, sequence number and flags. */
  changed = 0
  /** Came from the endpoint and are none of those sent: its own, or second copies. */
  made = 0
  /** Sent, not back, and not given up by `forgive`. */
  outstanding = 0
  private readonly pool: Pool
  private readonly exact = new Chains()
  private readonly alike = new Chains()
  private readonly low = new Int32Array(CAPACITY)
  private readonly high = new Int32Array(CAPACITY)
  private readonly identity = new Int32Array(CAPACITY)
  private readonly sequence = new Int32Array(CAPACITY)
  private readonly seconds = new Uint32Array(CAPACITY)
  private readonly nanoseconds = new Int32Array(CAPACITY)
  private readonly time = new Float64Array(CAPACITY)
  private readonly state = new Uint8Array(CAPACITY)
  /** Digests of packets that came back unchanged, the last of each bucket: what comes back once more is a copy. */
  private readonly doneLow = new Int32Array(CAPACITY)
  private readonly doneHigh = new Int32Array(CAPACITY)
  private readonly latency = new Float64Array(CLASSES)
  private next = 0
  private digestLow = 0
  private digestHigh = 0

  constructor(pool: Pool) {
    this.pool = pool
  }

  /** Notes a packet that is about to be encapsulated. */
  send(frame: number, now: number): void {
    const { pool } = this
    const entry = this.next
    this.next = (entry + 1) & (CAPACITY - 1)
    if (this.state[entry] !== FREE) this.remove(entry)
    this.digest(frame)
    this.low[entry] = this.digestLow
    this.high[entry] = this.digestHigh
    this.identity[entry] = identityOf(pool, frame)
    this.sequence[entry] = pool.sequence[frame]
    this.seconds[entry] = pool.seconds[frame]
    this.nanoseconds[entry] = pool.nanoseconds[frame]
    this.time[entry] = now
    this.state[entry] = AWAITED
    this.exact.append(this.low[entry], entry)
    this.alike.append(this.identity[entry], entry)
    this.sent++
    this.outstanding++
  }

  /** Judges a packet that came from the endpoint. One that was sent gets its record number and capture time back. */
  back(frame: number, now: number): void {
    this.digest(frame)
    const { digestLow, digestHigh } = this
    const same = this.findSame()
    const done = digestLow & (CAPACITY - 1)
    if (same >= 0) {
      this.unchanged++
      this.doneLow[done] = digestLow
      this.doneHigh[done] = digestHigh
      const us = Math.max(1, (now - this.time[same]) * 1000)
      this.latency[Math.min(CLASSES - 1, Math.floor(Math.log2(us) * 4))]++
      this.settle(same, frame)
      return
    }
    const isCopy = this.doneLow[done] === digestLow && this.doneHigh[done] === digestHigh
    const like = isCopy ? -1 : this.findAlike(identityOf(this.pool, frame))
    if (like < 0) {
      this.made++
      return
    }
    this.changed++
    this.settle(like, frame)
  }

  /** Expects what is outstanding no longer; it is counted all the same when it comes. */
  forgive(): void {
    for (let entry = 0; entry < CAPACITY; entry++) if (this.state[entry] === AWAITED) this.state[entry] = FORGIVEN
    this.outstanding = 0
  }

  /** Packets sent that did not come back in any form. */
  get notReturned(): number {
    return this.sent - this.unchanged - this.changed
  }

  /** The latency in µs that the given share of the unchanged packets did not exceed (upper end of its class, 19% wide). */
  quantile(share: number): number {
    const wanted = share * this.unchanged
    let seen = 0
    for (let i = 0; i < CLASSES; i++) {
      seen += this.latency[i]
      if (seen >= wanted && seen > 0) return 2 ** ((i + 1) / 4)
    }
    return 0
  }

  /** The oldest of equal packets, which is the one that comes back first; -1 for none. */
  private findSame(): number {
    const { exact, low, high, digestLow, digestHigh } = this
    let at = exact.first(digestLow)
    while (at >= 0 && (low[at] !== digestLow || high[at] !== digestHigh)) at = exact.after[at]
    return at
  }

  private findAlike(identity: number): number {
    const { alike } = this
    let at = alike.first(identity)
    while (at >= 0 && this.identity[at] !== identity) at = alike.after[at]
    return at
  }

  private settle(entry: number, frame: number): void {
    const { pool } = this
    pool.sequence[frame] = this.sequence[entry]
    pool.seconds[frame] = this.seconds[entry]
    pool.nanoseconds[frame] = this.nanoseconds[entry]
    this.remove(entry)
  }

  private remove(entry: number): void {
    if (this.state[entry] === AWAITED) this.outstanding--
    this.state[entry] = FREE
    this.exact.remove(this.low[entry], entry)
    this.alike.remove(this.identity[entry], entry)
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

/** What a packet keeps although its bytes are changed on the way. */
function identityOf(pool: Pool, frame: number): number {
  const b = pool.bytes
  const network = pool.network[frame]
  const transport = pool.transport[frame]
  const protocol = pool.protocol[frame]
  let identity = Math.imul(pool.flow[frame], 0x9e3779b1) ^ (protocol << 1) ^ pool.reversed[frame]
  if (b[network] >> 4 === 4) {
    const fragment = (ipv4.identification(b, network) << 13) ^ ipv4.fragmentOffset(b, network)
    identity = Math.imul(identity ^ fragment, 0x85ebca6b)
  }
  if (protocol === ipv4.PROTOCOL.TCP && transport !== 0)
    identity = Math.imul(identity ^ tcp.sequence(b, transport) ^ (tcp.flags(b, transport) << 24), 0xc2b2ae35)
  return identity ^ (identity >>> 15)
}

/** Hash buckets with the entries of each in the order in which they came. */
class Chains {
  /** The entry that follows in the same bucket; -1 behind the last. */
  readonly after = new Int32Array(CAPACITY)
  private readonly before = new Int32Array(CAPACITY)
  private readonly heads = new Int32Array(CAPACITY).fill(-1)
  private readonly tails = new Int32Array(CAPACITY).fill(-1)

  first(hash: number): number {
    return this.heads[hash & (CAPACITY - 1)]
  }

  append(hash: number, entry: number): void {
    const bucket = hash & (CAPACITY - 1)
    const last = this.tails[bucket]
    this.before[entry] = last
    this.after[entry] = -1
    this.tails[bucket] = entry
    if (last < 0) this.heads[bucket] = entry
    else this.after[last] = entry
  }

  remove(hash: number, entry: number): void {
    const bucket = hash & (CAPACITY - 1)
    const before = this.before[entry]
    const after = this.after[entry]
    if (before < 0) this.heads[bucket] = after
    else this.after[before] = after
    if (after < 0) this.tails[bucket] = before
    else this.before[after] = before
  }
}
