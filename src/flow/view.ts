// What another thread sees of a flow table: records for people, copied row by row while the owner goes on writing.

import { setI32 } from '../wire/bytes.ts'
import { formatAddress as formatAddress4 } from '../wire/ipv4.ts'
import { formatAddress as formatAddress6 } from '../wire/ipv6.ts'
import { COLD, ENDPOINT_SHIFT, type FlowTableHandle, HEADER, HOT, isClosed, LINE, layoutOf, SEEN } from './layout.ts'

/** Where the cold line begins in a copied row. */
const BEHIND = LINE

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
  /** Number of its endpoint; 0 for none. */
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
  private readonly everCreated: Float64Array
  private readonly hot: BigInt64Array
  private readonly cold: BigInt64Array
  private readonly sequences: Int32Array
  private readonly copied = new BigInt64Array(LINE)
  private readonly copy = new Int32Array(this.copied.buffer)
  private readonly doubles = new Float64Array(this.copied.buffer)

  constructor(handle: FlowTableHandle) {
    const { memory, capacity } = handle
    this.capacity = capacity
    this.header = new Int32Array(memory, 0, HEADER.WORDS)
    this.clock = new Float64Array(memory, HEADER.CLOCK * 4, 1)
    this.everCreated = new Float64Array(memory, HEADER.CREATED * 4, 1)
    const { hot, cold, words } = layoutOf(handle)
    this.hot = new BigInt64Array(memory, hot, words / 2)
    this.cold = new BigInt64Array(memory, cold, words / 2)
    this.sequences = new Int32Array(memory, cold, words)
  }

  /** Flows in the table. */
  get count(): number {
    return Atomics.load(this.header, HEADER.COUNT)
  }

  /** Flows that go to the endpoint of that number. */
  countTo(endpoint: number): number {
    return Atomics.load(this.header, HEADER.FLOWS_TO + endpoint)
  }

  /** Flows that there ever were. */
  get created(): number {
    return this.everCreated[0]
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
    const { hot, cold, sequences, copied, copy, doubles } = this
    const at = row * LINE + COLD.SEQUENCE
    const sequence = Atomics.load(sequences, at)
    for (let i = 0; i < LINE / 2; i++) {
      copied[i] = Atomics.load(hot, (row * LINE) / 2 + i)
      copied[LINE / 2 + i] = Atomics.load(cold, (row * LINE) / 2 + i)
    }
    if (copy[HOT.KIND] === 0 || (sequence & 1) !== 0 || sequence !== Atomics.load(sequences, at)) return undefined
    return flowRecord(copy, doubles, row)
  }
}

const address = new Uint8Array(16)

/** The flow in a copy of its two lines, the hot one first; `doubles` lie in the same memory. */
export function flowRecord(copy: Int32Array, doubles: Float64Array, row: number): FlowRecord {
  const seen = copy[HOT.VERDICT]
  return {
    row,
    attachment: copy[HOT.KIND] & 0xffff,
    protocol: (copy[HOT.KIND] >>> 16) & 0xff,
    addressA: format(copy, HOT.A, COLD.A),
    portA: copy[HOT.PORTS] >>> 16,
    addressB: format(copy, HOT.B, COLD.B),
    portB: copy[HOT.PORTS] & 0xffff,
    openedBy: (seen & SEEN.OPENED_BY_B) !== 0 ? 'b' : 'a',
    closed: isClosed(seen),
    verdict: seen & 0xff,
    rule: copy[BEHIND + COLD.RULE],
    endpoint: seen >>> ENDPOINT_SHIFT,
    cookie: copy[BEHIND + COLD.COOKIE],
    state: copy[BEHIND + COLD.STATE],
    firstSeenMs: doubles[(BEHIND + COLD.FIRST_SEEN) / 2],
    lastSeenMs: doubles[HOT.LAST_SEEN / 2],
    packetsAB: doubles[HOT.PACKETS / 2],
    bytesAB: doubles[HOT.BYTES / 2],
    packetsBA: doubles[HOT.PACKETS / 2 + 1],
    bytesBA: doubles[HOT.BYTES / 2 + 1],
  }
}

function format(copy: Int32Array, first: number, rest: number): string {
  if (copy[HOT.KIND] >>> 24 === 4) return formatAddress4(copy[first])
  setI32(address, 0, copy[first])
  for (let i = 0; i < 3; i++) setI32(address, 4 + i * 4, copy[BEHIND + rest + i])
  return formatAddress6(address)
}
