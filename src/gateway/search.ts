// The search for signatures: keeps, for each flow and direction, how far every candidate's automaton has come.
//
// A TCP segment that continues the stream continues the automata, so a match may straddle segments. A segment that does
// not (a hole in front of it, or data seen before) is searched by itself; whatever reaches furthest is continued.
// NB: a match that straddles segments which arrive out of order is not found: that needs reassembly.

import type { Pool } from '../memory/pool.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as tcp from '../wire/tcp.ts'
import { packetEnd } from './answer.ts'
import { type Automaton, compilePattern, STATE } from './automaton.ts'
import type { Signature } from './rules.ts'

const FRESH = -1

/** The signatures of a rule file over the flows of one table; one thread. */
export class Search {
  /** Stream or datagram offset behind the last match. */
  matchedAt = -1
  private readonly pool: Pool
  private readonly count: number
  private readonly automata: Automaton[]
  private readonly offset: Float64Array
  /** Offset behind the last byte looked at. */
  private readonly limit: Float64Array
  /** Bit i set: signature i may still match; by row. */
  private readonly candidates: Int32Array
  /** By row and direction: 1 once the stream's numbers are known, the number expected next, and its offset in the stream. */
  private readonly known: Uint8Array
  private readonly expected: Int32Array
  private readonly position: Float64Array
  /** By row, direction and signature. */
  private readonly states: Uint16Array

  /** For flows whose row is below `rows`. Memory: 22 bytes a flow and 4 a flow and signature. */
  constructor(pool: Pool, signatures: Signature[], rows: number) {
    const flows = signatures.length === 0 ? 0 : rows
    this.pool = pool
    this.count = signatures.length
    this.automata = signatures.map(signature => compilePattern(signature.pattern))
    this.offset = Float64Array.from(signatures, signature => signature.offset)
    this.limit = Float64Array.from(signatures, signature => signature.offset + signature.depth)
    this.candidates = new Int32Array(flows)
    this.known = new Uint8Array(2 * flows)
    this.expected = new Int32Array(2 * flows)
    this.position = new Float64Array(2 * flows)
    this.states = new Uint16Array(2 * flows * signatures.length)
  }

  /** Begins a flow with the signatures (bits) that may match in it; 0 ends the search. */
  begin(row: number, candidates: number): void {
    if (this.count === 0) return
    this.candidates[row] = candidates
    this.known[2 * row] = 0
    this.known[2 * row + 1] = 0
  }

  /** True while a signature may match in the flow. */
  active(row: number): boolean {
    return this.count !== 0 && this.candidates[row] !== 0
  }

  /** Searches a packet's payload and returns the number of the first signature that matched, or -1. */
  run(frame: number, row: number): number {
    const { pool } = this
    const at = pool.payload[frame]
    const end = packetEnd(pool, frame)
    if (pool.transport[frame] !== 0 && pool.protocol[frame] === ipv4.PROTOCOL.TCP)
      return this.segment(frame, row, at, end)
    const size = pool.gsoSize[frame]
    if (pool.gso[frame] === 0 || size === 0) return this.feed(row, FRESH, at, end, 0)
    for (let from = at; from < end; from += size) {
      const found = this.feed(row, FRESH, from, Math.min(from + size, end), 0)
      if (found >= 0) return found
    }
    return -1
  }

  private segment(frame: number, row: number, at: number, end: number): number {
    const { pool, known, expected, position } = this
    const transport = pool.transport[frame]
    const stream = 2 * row + pool.reversed[frame]
    const syn = (tcp.flags(pool.bytes, transport) & tcp.SYN) !== 0
    const sequence = (tcp.sequence(pool.bytes, transport) + (syn ? 1 : 0)) | 0
    if (syn || known[stream] === 0) {
      known[stream] = 1
      expected[stream] = sequence
      position[stream] = 0
      this.restart(stream, 0)
    }
    const bytes = end - at
    if (bytes <= 0) return -1
    const ahead = (sequence - expected[stream]) | 0
    const here = position[stream] + ahead
    if (ahead < 0) {
      const found = this.feed(row, FRESH, at, end, Math.max(here, 0))
      if (found >= 0 || ahead + bytes <= 0) return found
      at -= ahead
    } else if (ahead > 0) this.restart(stream, here)
    expected[stream] = sequence + bytes
    position[stream] = here + bytes
    return this.feed(row, stream, at, end, position[stream] - (end - at))
  }

  /** Puts every automaton of a stream at its start for the byte at `position`. */
  private restart(stream: number, position: number): void {
    for (let i = 0; i < this.count; i++) this.states[stream * this.count + i] = this.start(i, position)
  }

  private start(i: number, position: number): number {
    return this.automata[i].anchored && position > this.offset[i] ? STATE.DEAD : STATE.START
  }

  /** Feeds the bytes [at, end), the first of which is at `position`, to the candidates: from their kept states when `stream` is given. */
  private feed(row: number, stream: number, at: number, end: number, position: number): number {
    const { pool, automata, states, count } = this
    for (let left = this.candidates[row]; left !== 0; left &= left - 1) {
      const i = 31 - Math.clz32(left & -left)
      const skip = this.offset[i] - position
      const from = skip > 0 ? at + skip : at
      const room = this.limit[i] - position
      const to = Math.min(at + room, end)
      if (from >= to) continue
      const kept = stream * count + i
      const state = automata[i].run(pool.bytes, from, to, stream === FRESH ? this.start(i, position) : states[kept])
      if (stream !== FRESH) states[kept] = state
      if (state !== STATE.MATCH) continue
      this.matchedAt = position + automata[i].stopped - at
      return i
    }
    return -1
  }
}
