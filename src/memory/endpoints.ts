// The pool of endpoints as the main thread last published it: who they are, what share of the flows each gets, and the way to
// each: path MTU, and the Ethernet addresses of the next hop for devices that send past the kernel's neighbours. The main
// thread writes, workers read.
//
//   word 0      sequence, odd while the rest is being written
//        1      1 when the flows of an endpoint that is down move to others
//        2      the largest TCP segment size that a SYN may announce; 0 for whatever it says
//   then 16 words a number, for numbers 0 to 64:
//        0      ENDPOINT_STATE bits; 0 for a number that no endpoint has
//        1      weight
//        2      path MTU: the largest outer IP packet in bytes
//      3–5      twelve bytes as they go on the wire: destination, source
//      6–9      IP address, as it goes on the wire; of IPv4 the first word
//
// Numbers begin with 1 and stay an endpoint's own while it is in the pool; flows carry them. 0 is "none".

/** The most endpoints of a pool, and so the largest number. */
export const MAX_ENDPOINTS = 64

/** How many numbers there are, "none" included: the length of an array by number. */
export const ENDPOINT_NUMBERS = MAX_ENDPOINTS + 1

/** Bits of an endpoint's state. */
export const ENDPOINT_STATE = {
  PRESENT: 1,
  /** Keeps its flows and gets no new ones. */
  DRAINING: 2,
  /** The next hop's addresses may be used. */
  HOP: 4,
} as const

/** Where an endpoint's words are in the table: at number * ENDPOINT.WORDS + BEHIND. */
export const ENDPOINT = { STATE: 0, WEIGHT: 1, MTU: 2, HOP: 3, ADDRESS: 6, WORDS: 16 } as const

const SEQUENCE = 0
const MOVES = 1
const LARGEST_SEGMENT = 2
const HEADER = 16
const WORDS = HEADER + ENDPOINT_NUMBERS * ENDPOINT.WORDS

/** Announce any segment size, or no more than the tunnel carries. */
export const SEGMENT_SIZE = { ANY: 0, FITTING: 0x7fffffff } as const

/** Shared memory of a pool of endpoints; passes through workerData. */
export type EndpointTableHandle = SharedArrayBuffer

/** What is published of one endpoint. */
export interface EndpointEntry {
  /** 4 or 16 bytes in network order. */
  address: Uint8Array
  weight: number
  draining: boolean
  /** Path MTU. */
  mtu: number
  /** Destination and source address of frames to the next hop; without them the kernel must find the way. */
  hop: Uint8Array | undefined
}

/** What holds for all of them. */
export interface EndpointRules {
  /** Whether the flows of an endpoint that is down move. */
  moves: boolean
  /** The largest TCP segment size in bytes that a SYN may announce; of SEGMENT_SIZE where no number was given. */
  segmentSize: number
}

/** The writer: main thread only. */
export class EndpointTable {
  readonly handle: EndpointTableHandle = new SharedArrayBuffer(WORDS * 4)
  private readonly words = new Int32Array(this.handle)
  private readonly next = new Int32Array(ENDPOINT.WORDS)
  private readonly bytes = new Uint8Array(this.next.buffer)

  constructor({ moves, segmentSize }: EndpointRules) {
    this.words[MOVES] = moves ? 1 : 0
    this.words[LARGEST_SEGMENT] = segmentSize
  }

  /** Publishes what holds for all endpoints. */
  setRules({ moves, segmentSize }: EndpointRules): void {
    const { words } = this
    Atomics.add(words, SEQUENCE, 1)
    Atomics.store(words, MOVES, moves ? 1 : 0)
    Atomics.store(words, LARGEST_SEGMENT, segmentSize)
    Atomics.add(words, SEQUENCE, 1)
  }

  /** Publishes an endpoint, or that there is none of that number any more. */
  set(number: number, entry: EndpointEntry | undefined): void {
    const { words, next, bytes } = this
    const at = HEADER + number * ENDPOINT.WORDS
    next.fill(0)
    if (entry !== undefined) {
      const { PRESENT, DRAINING, HOP } = ENDPOINT_STATE
      next[ENDPOINT.STATE] = PRESENT | (entry.draining ? DRAINING : 0) | (entry.hop === undefined ? 0 : HOP)
      next[ENDPOINT.WEIGHT] = entry.weight
      next[ENDPOINT.MTU] = entry.mtu
      if (entry.hop !== undefined) bytes.set(entry.hop, ENDPOINT.HOP * 4)
      bytes.set(entry.address, ENDPOINT.ADDRESS * 4)
    }
    if (next.every((word, i) => word === words[at + i])) return
    Atomics.add(words, SEQUENCE, 1)
    for (let i = 0; i < ENDPOINT.WORDS; i++) Atomics.store(words, at + i, next[i])
    Atomics.add(words, SEQUENCE, 1)
  }
}

/** A reader: one a thread. */
export class EndpointView {
  /** ENDPOINT words by number, a copy. */
  readonly words = new Int32Array(ENDPOINT_NUMBERS * ENDPOINT.WORDS)
  /** The same, for what is kept as it goes on the wire. */
  readonly bytes = new DataView(this.words.buffer)
  moves = false
  /** As in EndpointRules. */
  segmentSize = 0
  private readonly shared: Int32Array
  private readonly copy = new Int32Array(WORDS)
  private seen = -1

  constructor(handle: EndpointTableHandle) {
    this.shared = new Int32Array(handle)
    while (!this.refresh());
  }

  /** Takes over what was published since, and says whether anything was. One load when nothing was; allocates nothing. */
  refresh(): boolean {
    const { shared, copy, words } = this
    const sequence = Atomics.load(shared, SEQUENCE)
    if (sequence === this.seen) return false
    for (let i = 0; i < WORDS; i++) copy[i] = Atomics.load(shared, i)
    // Caught in the middle of being written: what was known holds until the next look.
    if ((sequence & 1) !== 0 || Atomics.load(shared, SEQUENCE) !== sequence) return false
    for (let i = 0; i < words.length; i++) words[i] = copy[HEADER + i]
    this.moves = copy[MOVES] === 1
    this.segmentSize = copy[LARGEST_SEGMENT]
    this.seen = sequence
    return true
  }

  /** Whether there is an endpoint of that number. */
  isPresent(number: number): boolean {
    return (this.words[number * ENDPOINT.WORDS + ENDPOINT.STATE] & ENDPOINT_STATE.PRESENT) !== 0
  }
}

/** A pool of one endpoint, number 1, the way to which the kernel finds. */
export function oneEndpoint(address: ArrayLike<number>, mtu: number): EndpointTableHandle {
  const table = new EndpointTable({ moves: true, segmentSize: SEGMENT_SIZE.ANY })
  table.set(1, { address: Uint8Array.from(address), weight: 1, draining: false, mtu, hop: undefined })
  return table.handle
}
