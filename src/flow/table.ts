// The flow table: typed arrays over one SharedArrayBuffer. One thread writes; others read it through flow/view.ts.
//
//   header    112 bytes   count, rows ever used, the clock; large shared memory starts 16 bytes into a page, so what
//                         follows is aligned to cache lines
//   index     two to four slots a flow, one word each: 0, or the hash's low 11 bits << 21 | row. Open addressing,
//                         linear probing; the place comes from the other bits, so that a slot rarely costs a row's line
//   rows      128 bytes a flow, counted from 1, two neighbouring cache lines: what find and decide need, then what is
//             only counted
//
// A packet of a known flow so costs three cache lines, two of them side by side; `warm` fetches those of a whole batch
// at once. Fresh shared memory is zeroed and committed page by page, so a table costs what its busiest moment used.

import type { Batch } from '../memory/batch.ts'
import { PROTOCOL } from '../wire/ipv4.ts'
import { FIN, RST, SYN } from '../wire/tcp.ts'
import { KEY } from './key.ts'

export interface FlowTableOptions {
  /** The most flows at a time, up to 2^20. */
  capacity: number
  /** How long a TCP flow may be idle; 350 s unless told otherwise. */
  tcpIdleMs?: number
  /** How long any other flow may be idle; 120 s unless told otherwise. */
  idleMs?: number
  /** How long a TCP flow may be idle after RST, or after FIN from both ends; 10 s unless told otherwise. */
  lingerMs?: number
}

/** What another thread needs to see the same table; passes through workerData. */
export interface FlowTableHandle extends Required<FlowTableOptions> {
  memory: SharedArrayBuffer
}

/** Words of the header; the clock is a double. */
export const HEADER = { COUNT: 0, USED: 1, CLOCK: 2, WORDS: 28 } as const

/** Words of a row; the doubles are at even words. The key comes first: its first word is 0 in a free row. */
export const ROW = {
  HASH: KEY.WORDS,
  VERDICT: 11,
  LAST_SEEN: 12,
  COOKIE: 14,
  ENDPOINT: 15,
  PACKETS: 16, // A to B, then B to A, as doubles
  BYTES: 20,
  FIRST_SEEN: 24,
  RULE: 26,
  STATE: 27,
  LINK: 28, // in a free row: the next free row
  SEQUENCE: 29, // odd while the row is being given to a flow or taken from it
  WORDS: 32,
} as const

/** Bits of the VERDICT word above the verdict. */
export const SEEN = { FIN_A: 0x100, FIN_B: 0x200, RST: 0x400, OPENED_BY_B: 0x800 } as const

const FINS = SEEN.FIN_A | SEEN.FIN_B
const TAG = 21
const ROW_BITS = (1 << TAG) - 1
const FULL_BUDGET = 64
// Fewer flows live in the caches anyway.
const WARM_FROM = 65_536

const ROW_SHIFT = 5
const SECOND_LINE = ROW.PACKETS
// Multiplying spreads hashes that share their low bits because these chose the worker.
const SPREAD = 0x9e3779b1
// 4096 flows: what is on its way to the endpoint and back.
const RECENT_SHIFT = 20

function mixOf(keys: Int32Array, at: number): number {
  const ends = (keys[at + 2] ^ keys[at + 5]) + Math.imul(keys[at + 6] ^ keys[at + 9], 0x85ebca6b)
  return Math.imul(ends ^ Math.imul(keys[at + 1], 0xc2b2ae35), SPREAD)
}

// True when the row that begins at `own` has the key at `keys[at]`, of which IPv4 uses four words.
function isKey(words: Int32Array, own: number, keys: Int32Array, at: number): boolean {
  const kind = keys[at]
  if (words[own] !== kind || words[own + 1] !== keys[at + 1]) return false
  if (words[own + 2] !== keys[at + 2] || words[own + 6] !== keys[at + 6]) return false
  return kind >>> 24 === 4 || isRestOfKey(words, own, keys, at)
}

function isRestOfKey(words: Int32Array, own: number, keys: Int32Array, at: number): boolean {
  if (words[own + 3] !== keys[at + 3] || words[own + 4] !== keys[at + 4]) return false
  if (words[own + 5] !== keys[at + 5] || words[own + 7] !== keys[at + 7]) return false
  return words[own + 8] === keys[at + 8] && words[own + 9] === keys[at + 9]
}

/** The slots of the index: a power of two, at least two a flow. */
export function slotsFor(capacity: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(8, capacity) * 2))
}

/** True when the VERDICT word of a TCP flow says that the connection is over. */
export function isClosed(seen: number): boolean {
  return (seen & SEEN.RST) !== 0 || (seen & FINS) === FINS
}

/** Allocates the shared memory of a table. Throws RangeError when the capacity makes no sense. */
export function createFlowTable(options: FlowTableOptions): FlowTableHandle {
  const { capacity, tcpIdleMs = 350_000, idleMs = 120_000, lingerMs = 10_000 } = options
  if (!(Number.isInteger(capacity) && capacity > 0 && capacity <= 2 ** 20))
    throw new RangeError(`a flow table for ${capacity} flows: 1 to ${2 ** 20}`)
  const words = HEADER.WORDS + slotsFor(capacity) + (capacity + 1) * ROW.WORDS
  return { capacity, tcpIdleMs, idleMs, lingerMs, memory: new SharedArrayBuffer(words * 4) }
}

/** The writer's table. A row is a number, good from insert until its flow ends. */
export class FlowTable {
  /** Called for each flow that ends, while its row can still be read; may neither insert nor remove. */
  onEnd: ((row: number) => void) | undefined
  /** What `warm` read. NB: public, or the compiler would see that nobody needs the reads. */
  warmth = 0

  private readonly capacity: number
  private readonly tcpIdleMs: number
  private readonly idleMs: number
  private readonly lingerMs: number
  private readonly header: Int32Array
  private readonly clock: Float64Array
  private readonly index: Int32Array
  private readonly mask: number
  private readonly shift: number
  private readonly words: Int32Array
  private readonly doubles: Float64Array
  /** Pairs of a key's mix and its row. */
  private readonly recent = new Int32Array(2 << (32 - RECENT_SHIFT))
  private free = 0
  private hand = 0

  constructor(handle: FlowTableHandle) {
    const { memory, capacity } = handle
    const slots = slotsFor(capacity)
    const rows = (HEADER.WORDS + slots) * 4
    this.capacity = capacity
    this.tcpIdleMs = handle.tcpIdleMs
    this.idleMs = handle.idleMs
    this.lingerMs = handle.lingerMs
    this.header = new Int32Array(memory, 0, HEADER.WORDS)
    this.clock = new Float64Array(memory, HEADER.CLOCK * 4, 1)
    this.index = new Int32Array(memory, HEADER.WORDS * 4, slots)
    this.mask = slots - 1
    this.shift = 32 - Math.log2(slots)
    this.words = new Int32Array(memory, rows, (capacity + 1) * ROW.WORDS)
    this.doubles = new Float64Array(memory, rows, ((capacity + 1) * ROW.WORDS) / 2)
  }

  /** The clock, in ms of any epoch: set once a breath or once a packet, so that no call carries a double. */
  set now(ms: number) {
    this.clock[0] = ms
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
    const { index, words, shift, mask } = this
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
    for (let i = 0; i < length; i++) sum ^= words[flow[frames[i]] << ROW_SHIFT]
    for (let i = 0; i < length; i++) sum ^= words[(flow[frames[i]] << ROW_SHIFT) + SECOND_LINE]
    this.warmth = sum
  }

  /** As `find`, where the row is probably known, as `warm` left it; flows may have come and gone since. */
  readonly known = (row: number, keys: Int32Array, at: number, hash: number): number =>
    isKey(this.words, row << ROW_SHIFT, keys, at) ? row : this.find(keys, at, hash)

  /**
   * The row of a key that was remembered lately, found without its hash; -1 when it is not known here. What strangers
   * choose picks the place, so that they can make keys forget each other; these are then looked up like any.
   */
  readonly recall = (keys: Int32Array, at: number): number => {
    const { recent, words } = this
    const mix = mixOf(keys, at)
    const place = (mix >>> RECENT_SHIFT) << 1
    if (recent[place] !== mix) return -1
    const row = recent[place + 1]
    return isKey(words, row << ROW_SHIFT, keys, at) ? row : -1
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
    const { index, words, mask } = this
    let slot = Math.imul(hash, SPREAD) >>> this.shift
    for (;;) {
      const entry = index[slot]
      if (entry === 0) return -1
      if (((entry ^ (hash << TAG)) & ~ROW_BITS) === 0) {
        const row = entry & ROW_BITS
        if (isKey(words, row << ROW_SHIFT, keys, at)) return row
      }
      slot = (slot + 1) & mask
    }
  }

  /**
   * Adds the flow of a key that `find` did not find, first seen from end B if `reversed`. Its verdict and words are 0,
   * no packet is counted yet. Returns its row, or -1 when the table is full of flows that are not idle.
   */
  insert(keys: Int32Array, at: number, hash: number, reversed: number): number {
    const { index, words, doubles, header, mask } = this
    if (this.free === 0 && header[HEADER.USED] === this.capacity && this.expire(FULL_BUDGET) === 0) return -1
    let row = this.free
    if (row !== 0) this.free = words[row * ROW.WORDS + ROW.LINK]
    else row = ++header[HEADER.USED]
    const own = row * ROW.WORDS
    const sequence = words[own + ROW.SEQUENCE]
    Atomics.store(words, own + ROW.SEQUENCE, sequence + 1)
    for (let i = 0; i < KEY.WORDS; i++) words[own + i] = keys[at + i]
    for (let i = KEY.WORDS; i < ROW.SEQUENCE; i++) words[own + i] = 0
    words[own + ROW.HASH] = hash
    if (reversed !== 0) words[own + ROW.VERDICT] = SEEN.OPENED_BY_B
    doubles[(own + ROW.FIRST_SEEN) >> 1] = doubles[(own + ROW.LAST_SEEN) >> 1] = this.clock[0]
    Atomics.store(words, own + ROW.SEQUENCE, sequence + 2)
    let slot = this.home(hash)
    while (index[slot] !== 0) slot = (slot + 1) & mask
    index[slot] = (hash << TAG) | row
    header[HEADER.COUNT]++
    return row
  }

  /** Counts a packet, or the packets of a super-packet, and keeps the flow alive. */
  touch(row: number, reversed: number, packets: number, bytes: number): void {
    const { doubles } = this
    const own = (row * ROW.WORDS) >> 1
    doubles[own + ROW.LAST_SEEN / 2] = this.clock[0]
    doubles[own + ROW.PACKETS / 2 + reversed] += packets
    doubles[own + ROW.BYTES / 2 + reversed] += bytes
  }

  /** Notes the TCP flags byte of a packet, so that a finished connection leaves early; SYN makes it a new one. */
  tcpFlags(row: number, reversed: number, flags: number): void {
    if ((flags & (FIN | SYN | RST)) === 0) return
    const at = row * ROW.WORDS + ROW.VERDICT
    if ((flags & SYN) !== 0) this.words[at] &= ~(FINS | SEEN.RST)
    if ((flags & FIN) !== 0) this.words[at] |= reversed !== 0 ? SEEN.FIN_B : SEEN.FIN_A
    if ((flags & RST) !== 0) this.words[at] |= SEEN.RST
  }

  /** Looks at up to `budget` rows, going on where the last call stopped, ends the idle flows and returns how many. */
  expire(budget: number): number {
    const { words, doubles, header } = this
    const now = this.clock[0]
    const used = header[HEADER.USED]
    let ended = 0
    for (let i = Math.min(budget, used); i > 0; i--) {
      this.hand = this.hand < used ? this.hand + 1 : 1
      const row = this.hand
      const own = row * ROW.WORDS
      if (words[own] === 0) continue
      if (now - doubles[(own + ROW.LAST_SEEN) >> 1] <= this.limit(own)) continue
      this.remove(row)
      ended++
    }
    return ended
  }

  /** Ends a flow: its row is free afterwards. */
  remove(row: number): void {
    if (this.onEnd !== undefined) this.onEnd(row)
    const { words, header } = this
    this.unlink(row)
    const own = row * ROW.WORDS
    Atomics.add(words, own + ROW.SEQUENCE, 1)
    words[own] = 0
    words[own + ROW.LINK] = this.free
    Atomics.add(words, own + ROW.SEQUENCE, 1)
    this.free = row
    header[HEADER.COUNT]--
  }

  /** The hash of the flow's key. */
  hash(row: number): number {
    return this.words[(row << ROW_SHIFT) + ROW.HASH]
  }

  verdict(row: number): number {
    return this.words[row * ROW.WORDS + ROW.VERDICT] & 0xff
  }

  setVerdict(row: number, verdict: number): void {
    const at = row * ROW.WORDS + ROW.VERDICT
    this.words[at] = (this.words[at] & ~0xff) | verdict
  }

  /** The flow cookie that the tunnel carries. */
  cookie(row: number): number {
    return this.words[row * ROW.WORDS + ROW.COOKIE]
  }

  setCookie(row: number, cookie: number): void {
    this.words[row * ROW.WORDS + ROW.COOKIE] = cookie
  }

  /** Number of the endpoint that the flow goes to. */
  endpoint(row: number): number {
    return this.words[row * ROW.WORDS + ROW.ENDPOINT]
  }

  setEndpoint(row: number, endpoint: number): void {
    this.words[row * ROW.WORDS + ROW.ENDPOINT] = endpoint
  }

  /** Number of the rule that decided; -1, once set, for the default. */
  rule(row: number): number {
    return this.words[row * ROW.WORDS + ROW.RULE]
  }

  setRule(row: number, rule: number): void {
    this.words[row * ROW.WORDS + ROW.RULE] = rule
  }

  /** A word for whoever owns the table. */
  state(row: number): number {
    return this.words[row * ROW.WORDS + ROW.STATE]
  }

  setState(row: number, state: number): void {
    this.words[row * ROW.WORDS + ROW.STATE] = state
  }

  // Multiplying spreads hashes that share their low bits because these chose the worker.
  private home(hash: number): number {
    return Math.imul(hash, 0x9e3779b1) >>> this.shift
  }

  private limit(own: number): number {
    const { words } = this
    if (((words[own] >>> 16) & 0xff) !== PROTOCOL.TCP) return this.idleMs
    return isClosed(words[own + ROW.VERDICT]) ? this.lingerMs : this.tcpIdleMs
  }

  // Takes a row out of the index and moves later entries of the run back, so that no tombstones pile up.
  private unlink(row: number): void {
    const { index, words, mask } = this
    let hole = this.home(words[row * ROW.WORDS + ROW.HASH])
    while ((index[hole] & ROW_BITS) !== row) hole = (hole + 1) & mask
    for (let slot = (hole + 1) & mask; index[slot] !== 0; slot = (slot + 1) & mask) {
      const home = this.home(words[(index[slot] & ROW_BITS) * ROW.WORDS + ROW.HASH])
      if (((slot - home) & mask) < ((slot - hole) & mask)) continue
      index[hole] = index[slot]
      hole = slot
    }
    index[hole] = 0
  }
}
