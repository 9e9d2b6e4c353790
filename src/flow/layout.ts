// How a flow table lies in its SharedArrayBuffer, for the thread that writes it and for those that look.
//
//   header    432 bytes   count, rows ever used, the clock, flows ever; large shared memory starts 16 bytes into a page, so what
//                         follows is aligned to cache lines
//   index     two to four slots a flow, one word each: 0, or the hash's low 11 bits << 21 | row. Open addressing,
//                         linear probing; the place comes from the other bits, so that a slot rarely costs a row's line
//   hot       64 bytes a flow, one cache line, counted from 1: all that a packet of a known IPv4 flow needs
//   cold      64 bytes a flow: the rest of IPv6 addresses, and what is for people
//
// A packet of a known IPv4 flow so costs two cache lines. Fresh shared memory is zeroed and committed page by page, so a
// table costs what its busiest moment used.

export interface FlowTableOptions {
  /** The most flows at a time, up to 2^20. */
  capacity: number
  /** The most flows of one attachment; as many as there is room for unless told otherwise. */
  quota?: number
  /** How long a TCP flow may be idle; 350 s unless told otherwise. */
  tcpIdleMs?: number
  /** How long any other flow may be idle; 120 s unless told otherwise. */
  idleMs?: number
  /** How long a TCP flow may be idle after RST, or after FIN from both ends; 10 s unless told otherwise. */
  lingerMs?: number
}

/** What another thread needs to see the same table; passes through workerData. */
export interface FlowTableHandle extends Required<FlowTableOptions> {
  /** Shared: of this process, or mapped (flow/live). */
  memory: ArrayBufferLike
}

/** Words of the header; the clock is a double, and so is the number of flows that there ever were. FREE is the first free row that a table begins with. */
export const HEADER = { COUNT: 0, USED: 1, CLOCK: 2, CREATED: 4, FREE: 6, FLOWS_TO: 32, WORDS: 108 } as const

/** Words of a flow's line, and of the other one, a power of two. */
export const LINE_SHIFT = 4
export const LINE = 1 << LINE_SHIFT

/** Words of a flow's hot line; the doubles are at even words. KIND is 0 in a free row. */
export const HOT = {
  KIND: 0,
  PORTS: 1,
  A: 2, // of IPv6 addresses the first word
  B: 3,
  VERDICT: 4,
  HASH: 5,
  LAST_SEEN: 6,
  PACKETS: 8, // A to B, then B to A, as doubles
  BYTES: 12,
} as const

/** Words of its cold line. */
export const COLD = {
  A: 0, // the other three words of IPv6 addresses
  B: 3,
  COOKIE: 6,
  RULE: 8,
  STATE: 9,
  FIRST_SEEN: 10,
  LINK: 12, // in a free row: the next free row
  SEQUENCE: 13, // odd while the row is being given to a flow or taken from it
} as const

/** Bits of the VERDICT word above the verdict, which is its low byte. */
export const SEEN = { FIN_A: 0x100, FIN_B: 0x200, RST: 0x400, OPENED_BY_B: 0x800 } as const

/** The number of the flow's endpoint is the VERDICT word's high byte. */
export const ENDPOINT_SHIFT = 24

const FINS = SEEN.FIN_A | SEEN.FIN_B

/** True when the VERDICT word of a TCP flow says that the connection is over. */
export function isClosed(seen: number): boolean {
  return (seen & SEEN.RST) !== 0 || (seen & FINS) === FINS
}

/** Allocates the shared memory of a table. Throws RangeError when the capacity makes no sense. */
export function createFlowTable(options: FlowTableOptions): FlowTableHandle {
  const complete = completed(options)
  return { ...complete, memory: new SharedArrayBuffer(sizeOf(complete)) }
}

/** The options with what was not given. Throws RangeError when the capacity makes no sense. */
export function completed(options: FlowTableOptions): Required<FlowTableOptions> {
  const { capacity, quota = capacity, tcpIdleMs = 350_000, idleMs = 120_000, lingerMs = 10_000 } = options
  if (!(Number.isInteger(capacity) && capacity > 0 && capacity <= 2 ** 20))
    throw new RangeError(`a flow table for ${capacity} flows: 1 to ${2 ** 20}`)
  return { capacity, quota, tcpIdleMs, idleMs, lingerMs }
}

/** Bytes of a table's memory. */
export function sizeOf({ capacity }: FlowTableOptions): number {
  return (HEADER.WORDS + slotsFor(capacity) + 2 * (capacity + 1) * LINE) * 4
}

/** Where the parts of a table's memory begin, in bytes, and how many slots and words of lines there are. */
export function layoutOf(handle: FlowTableHandle) {
  const slots = slotsFor(handle.capacity)
  const words = (handle.capacity + 1) * LINE
  const index = HEADER.WORDS * 4
  const hot = index + slots * 4
  return { index, slots, hot, cold: hot + words * 4, words }
}

/** The slots of the index: a power of two, at least two a flow. */
function slotsFor(capacity: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(8, capacity) * 2))
}
