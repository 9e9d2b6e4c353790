// The verdict log: one JSON line when a flow is decided, and one each time its verdict changes.
//
// Written by the workers themselves, in blocks. Times are packet times and flow ids count up, so a replay logs the same bytes.

import { writeSync } from 'node:fs'

/** One decision. Addresses are those of the flow's first packet. */
export interface Verdict {
  /** Of the packet, ms since the epoch. */
  timeMs: number
  /** Counts up from 1; with several workers each has every so many-th number. */
  flow: number
  protocol: number
  source: string
  sourcePort: number
  destination: string
  destinationPort: number
  profile: string
  vni: number
  /** The rule's name, or `default`. */
  rule: string
  action: string
  /** Of the packet that decided, counted by its worker from 1. */
  packet: number
  /** Of that packet's inner IP datagram. */
  bytes: number
  /** Stream or datagram offset behind a signature's last byte; -1 when no signature decided. */
  offset: number
  /** What decided, where the rule's name does not say it: `GET /secret`. */
  detail?: string
}

/** Where blocks of the log go: keeps none of the memory. Returns how many bytes it took. */
export type LogSink = (block: Uint8Array) => number

/** Writes to a file descriptor, which stays open; takes nothing while a disk does not take it, or a pipe is full: a `patient` sink waits for that one's reader. */
export function fileSink(fd: number, patient = false): LogSink {
  return block => {
    for (;;) {
      try {
        return writeSync(fd, block)
      } catch (error) {
        if (!patient || (error as NodeJS.ErrnoException).code !== 'EAGAIN') return 0
        Atomics.wait(PAUSE, 0, 0, PAUSE_MS)
      }
    }
  }
}

/**
 * Lets workers share a sink, so that no line stands in the middle of another's; `memory` is one word, theirs together. Takes nothing while another
 * worker writes or has half a line to finish.
 */
export function sharedSink(sink: LogSink, memory: SharedArrayBuffer, worker: number): LogSink {
  const lock = new Int32Array(memory)
  const own = worker + 1
  return block => {
    const holder = Atomics.compareExchange(lock, 0, 0, own)
    if (holder !== 0 && holder !== own) return 0
    const taken = sink(block)
    // A line begun is finished before anyone else writes.
    const inside = taken === 0 ? holder === own : block[taken - 1] !== NEWLINE
    if (!inside) Atomics.store(lock, 0, 0)
    return taken
  }
}

const END_TRIES = 20
const PAUSE_MS = 5
const PAUSE = new Int32Array(new SharedArrayBuffer(4))

const BLOCK = 65_536
const NEWLINE = 10
const PROTOCOLS: Record<number, string> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmpv6' }

/** A worker's end of a log of lines; not shared between threads. */
export class LineLog {
  /** Lines that were lost because the sink did not take them in time. */
  lost = 0
  private readonly sink: LogSink
  private readonly block = new Uint8Array(2 * BLOCK)
  private readonly encoder = new TextEncoder()
  private used = 0

  constructor(sink: LogSink) {
    this.sink = sink
  }

  /** Adds a line; the text is without its end. */
  line(text: string): void {
    const line = `${text}\n`
    if (this.used > BLOCK) this.flush()
    if (this.add(line)) return
    this.flush()
    if (!this.add(line)) this.lost++
  }

  private add(line: string): boolean {
    const { read, written } = this.encoder.encodeInto(line, this.block.subarray(this.used))
    if (read < line.length) return false
    this.used += written
    return true
  }

  /** Hands over what has gathered. */
  flush(): void {
    if (this.used === 0) return
    const taken = this.sink(this.block.subarray(0, this.used))
    this.block.copyWithin(0, taken, this.used)
    this.used -= taken
  }

  /** Hands over the rest; what is not taken within a moment is lost. */
  end(): void {
    for (let i = 0; i < END_TRIES && this.used > 0; i++) {
      if (i > 0) Atomics.wait(PAUSE, 0, 0, PAUSE_MS)
      this.flush()
    }
    for (let i = 0; i < this.used; i++) if (this.block[i] === NEWLINE) this.lost++
    this.used = 0
  }
}

/** The verdict log of a worker. */
export class VerdictLog extends LineLog {
  /** Allocates: once a decision, not once a packet. */
  write(verdict: Verdict): void {
    this.line(format(verdict))
  }
}

/** How far dates reach, ms from the epoch (ECMA-262 section 21.4.1.1). */
const FARTHEST = 8.64e15

/** A packet's time as ISO 8601 has it, to the millisecond; a capture may say anything, so the nearest that a date can be. */
export function isoTime(timeMs: number): string {
  return new Date(Math.max(-FARTHEST, Math.min(timeMs, FARTHEST))).toISOString()
}

function format(v: Verdict): string {
  return JSON.stringify({
    time: isoTime(v.timeMs),
    flow: v.flow,
    protocol: PROTOCOLS[v.protocol] ?? v.protocol,
    source: v.source,
    sourcePort: v.sourcePort,
    destination: v.destination,
    destinationPort: v.destinationPort,
    profile: v.profile,
    vni: v.vni,
    rule: v.rule,
    action: v.action,
    packet: v.packet,
    bytes: v.bytes,
    ...(v.offset >= 0 && { offset: v.offset }),
    ...(v.detail !== undefined && { detail: v.detail }),
  })
}
