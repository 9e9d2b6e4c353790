// TCP reassembly (RFC 9293 section 3.4): the bytes of each direction in order, whatever order they come in, and never two versions of one byte.
//
// Packets are not held back. A segment behind a gap travels on, because its receiver can use it only when the gap is filled,
// and what fills the gap is judged with all that follows it. What has been seen and not yet acknowledged is kept, so that a
// segment which says something else at a place that was judged already is found out and stopped: whichever copy a receiver
// prefers (the first, the last, the one with the better checksum), it is the one that was judged.

import { DROP, type DropReason } from '../../drop.ts'

/** Who gets the bytes. */
export interface StreamSink {
  /** Bytes [at, end) of a stream in order; `offset` is the first one's place in the stream. They are the caller's memory. */
  data(row: number, side: number, bytes: Uint8Array, at: number, end: number, offset: number): void
  /** Of a stream whose beginning was not seen, neither were bytes that the other end has acknowledged: what comes now follows them. */
  gap(row: number, side: number): void
  /** The stream has ended with a FIN that was reached. */
  end(row: number, side: number): void
}

export interface StreamLimits {
  /** Bytes kept of one direction of a flow, and of all flows. */
  flow: number
  total: number
}

/** Of a flow more than Linux has on its way by default (`net.ipv4.tcp_rmem`: 6 MiB). */
export const STREAM_LIMITS: StreamLimits = { flow: 8 << 20, total: 256 << 20 }

const SMALLEST = 4096

/** A stretch of bytes that came too early: [from, to) as offsets of the stream. */
interface Stretch {
  from: number
  to: number
}

/** One direction. Offsets count from its first byte; `next` is the first that has not been delivered. */
interface Stream {
  /** Sequence number of offset 0. */
  initial: number
  /** Its beginning was not seen. */
  midway: boolean
  next: number
  /** The first offset that the other end has not acknowledged; UNHEARD before it has acknowledged any. */
  acknowledged: number
  /** Offset of the FIN; Infinity until there is one. */
  fin: number
  ended: boolean
  /** What is kept: [base, next) and the stretches, where offset `origin` lies at the buffer's start. */
  base: number
  origin: number
  buffer: Uint8Array
  early: Stretch[]
}

const NOTHING = new Uint8Array(0)
const UNHEARD = -Infinity

/** The streams of one worker's flows, by row and side (0 or 1). */
export class Streams {
  /** Bytes of memory kept, of all streams. */
  kept = 0
  /** The last segment that was too much was so for all streams together. */
  exhausted = false
  private readonly streams: (Stream | undefined)[] = []
  private readonly sink: StreamSink
  private readonly limits: StreamLimits

  constructor(sink: StreamSink, limits: StreamLimits = STREAM_LIMITS) {
    this.sink = sink
    this.limits = limits
  }

  /** Begins a flow in a row that another may have had. */
  begin(row: number): void {
    this.drop(2 * row)
    this.drop(2 * row + 1)
  }

  /**
   * Takes a segment: payload [at, end) with the sequence number of its header. Returns 0, or why it must not travel on:
   * STREAM_OVERLAP (it contradicts what was seen) or STREAM_FULL (too far ahead to be kept; it will be sent again).
   */
  segment(
    row: number,
    side: number,
    sequence: number,
    syn: boolean,
    fin: boolean,
    bytes: Uint8Array,
    at: number,
    end: number,
  ): DropReason {
    const number = 2 * row + side
    // A SYN takes one sequence number, in front of its data.
    const first = syn ? (sequence + 1) | 0 : sequence
    let stream = this.streams[number]
    if (stream === undefined || (syn && stream.initial !== first && stream.next === 0 && stream.early.length === 0)) {
      stream = newStream(first, !syn)
      this.streams[number] = stream
    }
    // Sequence numbers wrap around, offsets do not: the one that is nearest to what comes next is meant.
    const from = stream.next + ((first - ((stream.initial + stream.next) | 0)) | 0)
    const to = from + (end - at)
    if (fin && stream.fin === Infinity && to >= stream.next) stream.fin = to
    if (end === at) {
      this.finish(stream, row, side)
      return 0
    }
    if (to > stream.fin) return DROP.STREAM_OVERLAP
    this.exhausted = false
    if (to - stream.base > this.limits.flow && !this.forget(stream, to)) return DROP.STREAM_FULL
    if (this.differs(stream, from, to, bytes, at)) return DROP.STREAM_OVERLAP
    if (to <= stream.next) return 0
    if (!this.keep(stream, from, to, bytes, at)) return DROP.STREAM_FULL
    if (from > stream.next) {
      // NB: of a stream that was seen from its beginning, who acknowledges more than there was lies.
      if (!stream.midway || from > stream.acknowledged) {
        insert(stream.early, from, to)
        return 0
      }
      this.skip(stream, row, side, from)
    }
    this.deliver(stream, row, side, bytes, at + (stream.next - from), end)
    this.finish(stream, row, side)
    return 0
  }

  /** The other end has everything in front of this sequence number, so that it will not take a second version of it. */
  acknowledge(row: number, side: number, acknowledgement: number): void {
    const stream = this.streams[2 * row + side]
    if (stream === undefined) return
    const offset = stream.next + ((acknowledgement - ((stream.initial + stream.next) | 0)) | 0)
    if (offset > stream.acknowledged) stream.acknowledged = offset
    if (offset > stream.base && offset <= stream.next) stream.base = offset
  }

  /** Begins a stream where the other end's SYN-ACK says, unless it has begun there already. */
  open(row: number, side: number, acknowledgement: number): void {
    const number = 2 * row + side
    if (this.streams[number]?.initial === acknowledgement) return
    this.drop(number)
    this.streams[number] = newStream(acknowledgement, false)
  }

  /** Whether a SYN-ACK is of another connection than that whose bytes were seen. */
  isAnother(row: number, side: number, acknowledgement: number): boolean {
    const stream = this.streams[2 * row + side]
    if (stream === undefined || stream.initial === acknowledgement) return false
    return stream.next > 0 || stream.early.length > 0
  }

  /** Forgets a flow. */
  end(row: number): void {
    this.begin(row)
  }

  private drop(number: number): void {
    const stream = this.streams[number]
    if (stream === undefined) return
    this.kept -= stream.buffer.length
    this.streams[number] = undefined
  }

  /** Goes on behind bytes that the other end got without their being seen here. */
  private skip(stream: Stream, row: number, side: number, to: number): void {
    stream.next = to
    stream.base = to
    while (stream.early.length > 0 && stream.early[0].to <= to) stream.early.shift()
    this.sink.gap(row, side)
  }

  private deliver(stream: Stream, row: number, side: number, bytes: Uint8Array, at: number, end: number): void {
    const { sink } = this
    const offset = stream.next
    stream.next += end - at
    sink.data(row, side, bytes, at, end, offset)
    // What came early follows from where it is kept.
    for (let head = stream.early[0]; head !== undefined && head.from <= stream.next; head = stream.early[0]) {
      stream.early.shift()
      if (head.to <= stream.next) continue
      const place = stream.next
      stream.next = head.to
      sink.data(row, side, stream.buffer, place - stream.origin, head.to - stream.origin, place)
    }
  }

  private finish(stream: Stream, row: number, side: number): void {
    if (stream.ended || stream.next < stream.fin) return
    stream.ended = true
    this.sink.end(row, side)
  }

  /** Whether a segment says something else than what is kept of the same place. */
  private differs(stream: Stream, from: number, to: number, bytes: Uint8Array, at: number): boolean {
    const { base, origin, buffer, next, early } = stream
    if (differ(buffer, origin, Math.max(from, base), Math.min(to, next), bytes, at - from)) return true
    return early.some(one => differ(buffer, origin, Math.max(from, one.from), Math.min(to, one.to), bytes, at - from))
  }

  /** Copies what is new of a segment to where it is kept; false when there is no room in all. */
  private keep(stream: Stream, from: number, to: number, bytes: Uint8Array, at: number): boolean {
    const start = Math.max(from, stream.next, stream.base)
    if (to - stream.origin > stream.buffer.length) {
      compact(stream)
      if (to - stream.origin > stream.buffer.length && !this.grow(stream, to - stream.origin)) return false
    }
    stream.buffer.set(bytes.subarray(at + (start - from), at + (to - from)), start - stream.origin)
    return true
  }

  private grow(stream: Stream, needed: number): boolean {
    let size = Math.max(SMALLEST, stream.buffer.length)
    while (size < needed) size *= 2
    const more = size - stream.buffer.length
    this.exhausted = this.kept + more > this.limits.total
    if (this.exhausted) return false
    const buffer = new Uint8Array(size)
    buffer.set(stream.buffer)
    stream.buffer = buffer
    this.kept += more
    return true
  }

  // Where no acknowledgements are seen at all, the oldest is given up, of which a second version can no longer be told.
  // NB: never where they lag behind: what came first may not have reached the other end, which then takes the second version.
  private forget(stream: Stream, to: number): boolean {
    if (stream.acknowledged !== UNHEARD) return false
    const offset = Math.min(stream.next, to - this.limits.flow / 2)
    if (offset > stream.base) stream.base = offset
    return to - stream.base <= this.limits.flow
  }
}

function newStream(initial: number, midway: boolean): Stream {
  const nothing = { next: 0, acknowledged: UNHEARD, fin: Infinity, ended: false, base: 0, origin: 0 }
  return { initial, midway, ...nothing, buffer: NOTHING, early: [] }
}

/** Moves what is kept to the buffer's start. */
function compact(stream: Stream): void {
  const { base, origin, buffer } = stream
  const last = stream.early.at(-1)?.to ?? stream.next
  if (last > base) buffer.copyWithin(0, base - origin, last - origin)
  stream.origin = base
}

/** Whether bytes [from, to) of a stream differ between what is kept, from `origin` on, and a segment, where offset 0 would lie at `zero`. */
function differ(kept: Uint8Array, origin: number, from: number, to: number, bytes: Uint8Array, zero: number): boolean {
  if (from >= to) return false
  return Buffer.compare(kept.subarray(from - origin, to - origin), bytes.subarray(from + zero, to + zero)) !== 0
}

/** Adds a stretch to those there are, in order and joined where they touch. */
function insert(stretches: Stretch[], from: number, to: number): void {
  let first = 0
  while (first < stretches.length && stretches[first].to < from) first++
  let last = first
  while (last < stretches.length && stretches[last].from <= to) {
    from = Math.min(from, stretches[last].from)
    to = Math.max(to, stretches[last].to)
    last++
  }
  stretches.splice(first, last - first, { from, to })
}
