// The flow table, for the one thread that writes it; others read it through flow/view.ts. layout.ts says how it lies in memory.
//
// NB: the methods that packets run are properties, each a function of its own: with one table in a thread the compiler
// takes the arrays for constants, which halves what a packet costs.

import type { Batch } from '../memory/batch.ts'
import { PROTOCOL } from '../wire/ipv4.ts'
import { FIN, RST, SYN } from '../wire/tcp.ts'
import {
  COLD,
  ENDPOINT_SHIFT,
  type FlowTableHandle,
  HEADER,
  HOT,
  isClosed,
  LINE,
  LINE_SHIFT,
  layoutOf,
  SEEN,
} from './layout.ts'

const FINS = SEEN.FIN_A | SEEN.FIN_B
const TAG = 21
const ROW_BITS = (1 << TAG) - 1
const FULL_BUDGET = 64
// Fewer flows live in the caches anyway.
const WARM_FROM = 65_536
// NB: the compiler looks constants of other modules up at each use.
const ROW = LINE_SHIFT
const ROW_DOUBLES = LINE_SHIFT - 1
const LAST_SEEN = HOT.LAST_SEEN / 2
const PACKETS = HOT.PACKETS / 2
const BYTES = HOT.BYTES / 2
const VERDICT = HOT.VERDICT
const HASH = HOT.HASH
const ENDPOINT = ENDPOINT_SHIFT
// Multiplying spreads hashes that share their low bits because these chose the worker.
const SPREAD = 0x9e3779b1
// 4096 flows: what is on its way to the endpoint and back.
const RECENT_SHIFT = 20

/** What `insert` returns instead of a row. */
export const REFUSED = { FULL: -1, QUOTA: -2 } as const
// NB: as above.
const { FULL, QUOTA } = REFUSED

/** The writer's table. A row is a number, good from insert until its flow ends. */
export class FlowTable {
  /** Called for each flow that ends, while its row can still be read; may neither insert nor remove. */
  onEnd: ((row: number) => void) | undefined
  /** Called by whoever decides, for each flow that has been decided. */
  onBegin: ((row: number) => void) | undefined
  /** What `warm` read. NB: public, or the compiler would see that nobody needs the reads. */
  warmth = 0

  private readonly capacity: number
  private readonly quota: number
  private readonly tcpIdleMs: number
  private readonly idleMs: number
  private readonly lingerMs: number
  private readonly header: Int32Array
  private readonly clock: Float64Array
  private readonly created: Float64Array
  /** By attachment number: 1 where it is gone, so that its flows end. */
  private readonly gone = new Uint8Array(0x10000)
  /** By attachment number: how many flows it has. */
  private readonly owned = new Int32Array(0x10000)
  private readonly index: Int32Array
  private readonly mask: number
  private readonly shift: number
  private readonly hot: Int32Array
  private readonly doubles: Float64Array
  private readonly cold: Int32Array
  private readonly coldDoubles: Float64Array
  /** Pairs of a key's mix and its row. */
  private readonly recent = new Int32Array(2 << (32 - RECENT_SHIFT))
  private free = 0
  private hand = 0

  constructor(handle: FlowTableHandle) {
    const { memory, capacity } = handle
    const { index, slots, hot, cold, words } = layoutOf(handle)
    this.capacity = capacity
    this.quota = handle.quota
    this.tcpIdleMs = handle.tcpIdleMs
    this.idleMs = handle.idleMs
    this.lingerMs = handle.lingerMs
    this.header = new Int32Array(memory, 0, HEADER.WORDS)
    this.clock = new Float64Array(memory, HEADER.CLOCK * 4, 1)
    this.created = new Float64Array(memory, HEADER.CREATED * 4, 1)
    this.index = new Int32Array(memory, index, slots)
    this.mask = slots - 1
    this.shift = 32 - Math.log2(slots)
    this.hot = new Int32Array(memory, hot, words)
    this.doubles = new Float64Array(memory, hot, words / 2)
    this.cold = new Int32Array(memory, cold, words)
    this.coldDoubles = new Float64Array(memory, cold, words / 2)
    this.free = this.header[HEADER.FREE]
    for (let row = this.header[HEADER.USED]; row > 0; row--)
      if (this.hot[row << ROW] !== 0) this.owned[this.hot[row << ROW] & 0xffff]++
  }

  /** The clock, in ms of any epoch: set once a breath or once a packet, so that no call carries a double. */
  set now(ms: number) {
    this.clock[0] = ms
  }

  get now(): number {
    return this.clock[0]
  }

  /** Flows that there ever were. */
  get everCreated(): number {
    return this.created[0]
  }

  /** Flows in the table. */
  get count(): number {
    return this.header[HEADER.COUNT]
  }

  /**
   * Writes, by frame, the rows that a batch's packets probably belong to, for `known`, where there is no row of a flow
   * that was recalled; and reads what is needed of them, in loops in which no read waits for another, so that some ten
   * are on their way from memory at a time.
   */
  readonly warm = (batch: Batch, hash: Int32Array, flow: Int32Array): void => {
    const { index, hot, cold, shift, mask } = this
    const { frames, length } = batch
    const isCold = this.header[HEADER.COUNT] >= WARM_FROM
    let sum = 0
    if (isCold) for (let i = 0; i < length; i++) sum ^= index[Math.imul(hash[frames[i]], SPREAD) >>> shift]
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      if (flow[frame] > 0) continue
      const tag = hash[frame] << TAG
      let slot = Math.imul(hash[frame], SPREAD) >>> shift
      let entry = index[slot]
      while (entry !== 0 && ((entry ^ tag) & ~ROW_BITS) !== 0) {
        slot = (slot + 1) & mask
        entry = index[slot]
      }
      flow[frame] = entry & ROW_BITS
    }
    if (!isCold) return
    for (let i = 0; i < length; i++) sum ^= hot[flow[frames[i]] << ROW]
    for (let i = 0; i < length; i++) {
      const own = flow[frames[i]] << ROW
      if (hot[own] >>> 24 === 6) sum ^= cold[own]
    }
    this.warmth = sum
  }

  /** As `find`, where the row is probably known, as `warm` left it; flows may have come and gone since. */
  readonly known = (row: number, keys: Int32Array, at: number, hash: number): number =>
    this.isKey(row, keys, at) ? row : this.find(keys, at, hash)

  /**
   * The row of a key that was remembered lately, found without its hash; -1 when it is not known here. What strangers
   * choose picks the place, so that they can make keys forget each other; these are then looked up like any.
   */
  readonly recall = (keys: Int32Array, at: number): number => {
    const { recent } = this
    const mix = mixOf(keys, at)
    const place = (mix >>> RECENT_SHIFT) << 1
    if (recent[place] !== mix) return -1
    const row = recent[place + 1]
    return this.isKey(row, keys, at) ? row : -1
  }

  /** Lets `recall` find the row of a key, until another takes its place. */
  readonly remember = (keys: Int32Array, at: number, row: number): void => {
    const { recent } = this
    const mix = mixOf(keys, at)
    const place = (mix >>> RECENT_SHIFT) << 1
    recent[place] = mix
    recent[place + 1] = row
  }

  /** The row of the key at `keys[at]` with that hash, or -1. */
  readonly find = (keys: Int32Array, at: number, hash: number): number => {
    const { index, mask } = this
    let slot = Math.imul(hash, SPREAD) >>> this.shift
    for (;;) {
      const entry = index[slot]
      if (entry === 0) return -1
      if (((entry ^ (hash << TAG)) & ~ROW_BITS) === 0 && this.isKey(entry & ROW_BITS, keys, at)) return entry & ROW_BITS
      slot = (slot + 1) & mask
    }
  }

  private readonly isKey = (row: number, keys: Int32Array, at: number): boolean => {
    const { hot } = this
    const own = row << ROW
    const kind = keys[at]
    if (hot[own] !== kind || hot[own + 1] !== keys[at + 1]) return false
    if (hot[own + 2] !== keys[at + 2] || hot[own + 3] !== keys[at + 6]) return false
    return kind >>> 24 === 4 || this.isRestOfKey(own, keys, at)
  }

  // What IPv4 has no use for.
  private readonly isRestOfKey = (own: number, keys: Int32Array, at: number): boolean => {
    const { cold } = this
    if (cold[own] !== keys[at + 3] || cold[own + 1] !== keys[at + 4] || cold[own + 2] !== keys[at + 5]) return false
    return cold[own + 3] === keys[at + 7] && cold[own + 4] === keys[at + 8] && cold[own + 5] === keys[at + 9]
  }

  /**
   * Adds the flow of a key that `find` did not find, first seen from end B if `reversed`. Its verdict and words are 0,
   * no packet is counted yet. Returns its row, or one of REFUSED: the table is full of flows that are not idle, or the attachment has
   * as many as one may have.
   */
  readonly insert = (keys: Int32Array, at: number, hash: number, reversed: number): number => {
    const { index, hot, doubles, cold, coldDoubles, header, mask, owned } = this
    if (this.free === 0 && header[HEADER.USED] === this.capacity && this.expire(FULL_BUDGET) === 0) return FULL
    if (owned[keys[at] & 0xffff] >= this.quota) return QUOTA
    let row = this.free
    if (row !== 0) this.free = cold[(row << ROW) + COLD.LINK]
    else row = ++header[HEADER.USED]
    const own = row << ROW
    const sequence = cold[own + COLD.SEQUENCE]
    Atomics.store(cold, own + COLD.SEQUENCE, sequence + 1)
    for (let i = 0; i < LINE; i++) hot[own + i] = 0
    for (let i = 0; i < COLD.SEQUENCE; i++) cold[own + i] = 0
    hot[own + HOT.KIND] = keys[at]
    hot[own + HOT.PORTS] = keys[at + 1]
    hot[own + HOT.A] = keys[at + 2]
    hot[own + HOT.B] = keys[at + 6]
    for (let i = 0; i < 3; i++) {
      cold[own + COLD.A + i] = keys[at + 3 + i]
      cold[own + COLD.B + i] = keys[at + 7 + i]
    }
    hot[own + HASH] = hash
    if (reversed !== 0) hot[own + VERDICT] = SEEN.OPENED_BY_B
    coldDoubles[(own + COLD.FIRST_SEEN) >> 1] = doubles[(own + HOT.LAST_SEEN) >> 1] = this.clock[0]
    Atomics.store(cold, own + COLD.SEQUENCE, sequence + 2)
    let slot = this.home(hash)
    while (index[slot] !== 0) slot = (slot + 1) & mask
    index[slot] = (hash << TAG) | row
    header[HEADER.COUNT]++
    header[HEADER.FLOWS_TO]++
    owned[keys[at] & 0xffff]++
    this.created[0]++
    return row
  }

  /** Counts a packet, or the packets of a super-packet, and keeps the flow alive. */
  readonly touch = (row: number, reversed: number, packets: number, bytes: number): void => {
    const { doubles } = this
    const own = row << ROW_DOUBLES
    doubles[own + LAST_SEEN] = this.clock[0]
    doubles[own + PACKETS + reversed] += packets
    doubles[own + BYTES + reversed] += bytes
  }

  /** Notes the TCP flags byte of a packet, so that a finished connection leaves early; SYN makes it a new one. */
  tcpFlags(row: number, reversed: number, flags: number): void {
    if ((flags & (FIN | SYN | RST)) === 0) return
    const { hot } = this
    const at = (row << ROW) + VERDICT
    if ((flags & SYN) !== 0) hot[at] &= ~(FINS | SEEN.RST)
    if ((flags & FIN) !== 0) hot[at] |= reversed !== 0 ? SEEN.FIN_B : SEEN.FIN_A
    if ((flags & RST) !== 0) hot[at] |= SEEN.RST
  }

  /** Looks at up to `budget` rows, going on where the last call stopped, ends the idle flows and returns how many. */
  expire(budget: number): number {
    const { hot, doubles, header } = this
    const now = this.clock[0]
    const used = header[HEADER.USED]
    let ended = 0
    for (let i = Math.min(budget, used); i > 0; i--) {
      this.hand = this.hand < used ? this.hand + 1 : 1
      const row = this.hand
      const own = row << ROW
      if (hot[own] === 0 || now - doubles[(row << ROW_DOUBLES) + LAST_SEEN] <= this.limit(own)) continue
      this.remove(row)
      ended++
    }
    return ended
  }

  /** Ends a flow: its row is free afterwards. */
  remove(row: number): void {
    if (this.onEnd !== undefined) this.onEnd(row)
    const { hot, cold, header } = this
    this.unlink(row)
    const own = row << ROW
    Atomics.add(cold, own + COLD.SEQUENCE, 1)
    this.owned[hot[own + HOT.KIND] & 0xffff]--
    hot[own + HOT.KIND] = 0
    cold[own + COLD.LINK] = this.free
    Atomics.add(cold, own + COLD.SEQUENCE, 1)
    this.free = row
    header[HEADER.COUNT]--
    header[HEADER.FLOWS_TO + (hot[own + VERDICT] >>> ENDPOINT)]--
  }

  /** Has the flows of an attachment end as `expire` comes by, or those of the next one of its number live. */
  setGone(attachment: number, gone: boolean): void {
    this.gone[attachment] = gone ? 1 : 0
  }

  /** True where the flow's attachment is gone. */
  isGone(row: number): boolean {
    return this.gone[this.hot[row << ROW] & 0xffff] !== 0
  }

  /** Writes both lines of a flow to `words[at]` and behind it, for whoever tells people of it. */
  copy(row: number, words: Int32Array, at: number): void {
    const { hot, cold } = this
    const own = row << ROW
    for (let i = 0; i < LINE; i++) {
      words[at + i] = hot[own + i]
      words[at + LINE + i] = cold[own + i]
    }
  }

  /** The hash of the flow's key. */
  hash(row: number): number {
    return this.hot[(row << ROW) + HASH]
  }

  verdict(row: number): number {
    return this.hot[(row << ROW) + VERDICT] & 0xff
  }

  setVerdict(row: number, verdict: number): void {
    const at = (row << ROW) + VERDICT
    this.hot[at] = (this.hot[at] & ~0xff) | verdict
  }

  /** The flow cookie that the tunnel carries. */
  cookie(row: number): number {
    return this.cold[(row << ROW) + COLD.COOKIE]
  }

  setCookie(row: number, cookie: number): void {
    this.cold[(row << ROW) + COLD.COOKIE] = cookie
  }

  /** Number of the endpoint that the flow goes to, up to MAX_ENDPOINTS; 0 for none. */
  endpoint(row: number): number {
    return this.hot[(row << ROW) + VERDICT] >>> ENDPOINT
  }

  setEndpoint(row: number, endpoint: number): void {
    const { hot, header } = this
    const at = (row << ROW) + VERDICT
    header[HEADER.FLOWS_TO + (hot[at] >>> ENDPOINT)]--
    header[HEADER.FLOWS_TO + endpoint]++
    hot[at] = (hot[at] & ((1 << ENDPOINT) - 1)) | (endpoint << ENDPOINT)
  }

  /** Number of the rule that decided; -1, once set, for the default. */
  rule(row: number): number {
    return this.cold[(row << ROW) + COLD.RULE]
  }

  setRule(row: number, rule: number): void {
    this.cold[(row << ROW) + COLD.RULE] = rule
  }

  /** A word for whoever owns the table. */
  state(row: number): number {
    return this.cold[(row << ROW) + COLD.STATE]
  }

  setState(row: number, state: number): void {
    this.cold[(row << ROW) + COLD.STATE] = state
  }

  private home(hash: number): number {
    return Math.imul(hash, SPREAD) >>> this.shift
  }

  private limit(own: number): number {
    const { hot } = this
    if (this.gone[hot[own] & 0xffff] !== 0) return -1
    if (((hot[own] >>> 16) & 0xff) !== PROTOCOL.TCP) return this.idleMs
    return isClosed(hot[own + VERDICT]) ? this.lingerMs : this.tcpIdleMs
  }

  // Takes a row out of the index and moves later entries of the run back, so that no tombstones pile up.
  private unlink(row: number): void {
    const { index, mask } = this
    let hole = this.home(this.hash(row))
    while ((index[hole] & ROW_BITS) !== row) hole = (hole + 1) & mask
    for (let slot = (hole + 1) & mask; index[slot] !== 0; slot = (slot + 1) & mask) {
      const home = this.home(this.hash(index[slot] & ROW_BITS))
      if (((slot - home) & mask) < ((slot - hole) & mask)) continue
      index[hole] = index[slot]
      hole = slot
    }
    index[hole] = 0
  }
}

function mixOf(keys: Int32Array, at: number): number {
  const ends = (keys[at + 2] ^ keys[at + 5]) + Math.imul(keys[at + 6] ^ keys[at + 9], 0x85ebca6b)
  return Math.imul(ends ^ Math.imul(keys[at + 1], 0xc2b2ae35), SPREAD)
}

/** Where a hash's search begins in an index of so many slots, and the word of a row there; for whoever makes an index anew. */
export const indexPlace = (hash: number, slots: number) => Math.imul(hash, SPREAD) >>> (32 - Math.log2(slots))
export const indexWord = (hash: number, row: number) => (hash << TAG) | row
