// What another thread sees of a flow table: records for people, copied row by row while the owner goes on writing.

import { setI32 } from '../wire/bytes.ts'
import { formatAddress as formatAddress4 } from '../wire/ipv4.ts'
import { formatAddress as formatAddress6 } from '../wire/ipv6.ts'
import { KEY } from './key.ts'
import { type FlowTableHandle, HEADER, isClosed, ROW, SEEN, slotsFor } from './table.ts'

/** A flow as people see it. End A is the smaller one; `openedBy` tells which sent the first packet. */
export interface FlowRecord {
  row: number
  attachment: number
  protocol: number
  addressA: string
  portA: number
  addressB: string
  portB: number
  openedBy: 'a' | 'b'
  /** TCP: RST, or FIN from both ends, was seen. */
  closed: boolean
  verdict: number
  rule: number
  endpoint: number
  cookie: number
  state: number
  firstSeenMs: number
  lastSeenMs: number
  /** From A to B. */
  packetsAB: number
  bytesAB: number
  packetsBA: number
  bytesBA: number
}

/** A read-only view; any thread. A record is of one flow, never of two, but its counters may be an instant apart. */
export class FlowView {
  readonly capacity: number
  private readonly header: Int32Array
  private readonly clock: Float64Array
  private readonly words: Int32Array
  private readonly pairs: BigInt64Array
  private readonly copied = new BigInt64Array(ROW.WORDS / 2)
  private readonly copy = new Int32Array(this.copied.buffer)
  private readonly doubles = new Float64Array(this.copied.buffer)
  private readonly address = new Uint8Array(16)

  constructor(handle: FlowTableHandle) {
    const { memory, capacity } = handle
    this.capacity = capacity
    this.header = new Int32Array(memory, 0, HEADER.WORDS)
    this.clock = new Float64Array(memory, HEADER.CLOCK * 4, 1)
    const rows = (HEADER.WORDS + slotsFor(capacity)) * 4
    this.words = new Int32Array(memory, rows, (capacity + 1) * ROW.WORDS)
    this.pairs = new BigInt64Array(memory, rows, ((capacity + 1) * ROW.WORDS) / 2)
  }

  /** Flows in the table. */
  get count(): number {
    return Atomics.load(this.header, HEADER.COUNT)
  }

  /** The owner's clock, ms. */
  get now(): number {
    return this.clock[0]
  }

  /** The flows from row `from` on, in the order of rows. Flows that come and go meanwhile may or may not be among them. */
  *flows(from = 1): Generator<FlowRecord> {
    for (let row = from; row <= Atomics.load(this.header, HEADER.USED); row++) {
      const record = this.read(row)
      if (record !== undefined) yield record
    }
  }

  /** The flow in a row, or undefined when the row is free or changes hands just now. */
  read(row: number): FlowRecord | undefined {
    const { words, pairs, copied, copy, doubles } = this
    const own = row * ROW.WORDS
    const sequence = Atomics.load(words, own + ROW.SEQUENCE)
    for (let i = 0; i < ROW.WORDS / 2; i++) copied[i] = Atomics.load(pairs, own / 2 + i)
    if (copy[KEY.KIND] === 0 || (sequence & 1) !== 0 || sequence !== Atomics.load(words, own + ROW.SEQUENCE))
      return undefined
    const seen = copy[ROW.VERDICT]
    return {
      row,
      attachment: copy[KEY.KIND] & 0xffff,
      protocol: (copy[KEY.KIND] >>> 16) & 0xff,
      addressA: this.format(KEY.A),
      portA: copy[KEY.PORTS] >>> 16,
      addressB: this.format(KEY.B),
      portB: copy[KEY.PORTS] & 0xffff,
      openedBy: (seen & SEEN.OPENED_BY_B) !== 0 ? 'b' : 'a',
      closed: isClosed(seen),
      verdict: seen & 0xff,
      rule: copy[ROW.RULE],
      endpoint: copy[ROW.ENDPOINT],
      cookie: copy[ROW.COOKIE],
      state: copy[ROW.STATE],
      firstSeenMs: doubles[ROW.FIRST_SEEN / 2],
      lastSeenMs: doubles[ROW.LAST_SEEN / 2],
      packetsAB: doubles[ROW.PACKETS / 2],
      bytesAB: doubles[ROW.BYTES / 2],
      packetsBA: doubles[ROW.PACKETS / 2 + 1],
      bytesBA: doubles[ROW.BYTES / 2 + 1],
    }
  }

  private format(at: number): string {
    const { copy, address } = this
    if (copy[KEY.KIND] >>> 24 === 4) return formatAddress4(copy[at])
    for (let i = 0; i < 4; i++) setI32(address, i * 4, copy[at + i])
    return formatAddress6(address)
  }
}
