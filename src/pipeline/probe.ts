// The probe of each endpoint: a small UDP packet that goes through the tunnel as pods' packets do and must come back. By what
// comes back, and by the main thread's own checks, the worker that sends them judges which endpoints are up.
//
//   data of a probe:   "detr" | endpoint number | sequence number | nonce
//
// The nonce is a secret of the moment, so that neither a pod nor another endpoint can answer for one.

import { Batch } from '../memory/batch.ts'
import { MAX_ENDPOINTS } from '../memory/endpoints.ts'
import { bucketOf, HEALTH, type HealthHandle, RING } from '../memory/health.ts'
import type { Pool } from '../memory/pool.ts'
import { monotonicMs } from '../os/clock.ts'
import * as ethernet from '../wire/ethernet.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as udp from '../wire/udp.ts'
import { LEAVING, PROBE_ATTACHMENT } from './attachments.ts'
import type { Encap } from './encap.ts'
import type { Endpoints } from './endpoints.ts'

/** The probe's own Ethernet address, locally administered. */
export const PROBE_MAC = Uint8Array.of(0x02, 0xde, 0x70, 0, 0, 1)

/** RFC 2544's benchmarking addresses, which no pod has; the echo port. */
export const PROBE_SOURCE = 0xc6120001 | 0
const DESTINATION = 0xc6120002 | 0
const PORT = 7
const MAGIC = 0x64657472
const DATA = 16
const LAST = RING - 1

export interface ProbeOptions {
  /** Milliseconds between two probes of an endpoint; 0 turns them off, and endpoints count as up. */
  intervalMs: number
  /** Silence after which an endpoint counts as down. */
  limitMs: number
  /** How many answers in a row bring one up that is down, at most 32; 1 when not given. */
  rise?: number
  /** How many probes in a row must be without an answer, beside the silence, for one to be down, at most 32; 1 when not given. */
  fall?: number
  /** How long one that went down stays so at least; 0 when not given. */
  holdDownMs?: number
}

const completed = (options: ProbeOptions) => ({ rise: 1, fall: 1, holdDownMs: 0, ...options })

const DOUBLES = HEALTH.WORDS / 2
const { LAST_ANSWER, SINCE, SUM, TIME } = HEALTH.DOUBLES

/** Sends probes and judges by what returns; one a worker, of which one sends. */
export class Probe {
  readonly returned = new Batch()
  private readonly pool: Pool
  private readonly encap: Encap
  private readonly endpoints: Endpoints
  private readonly transmit: (batch: Batch) => void
  private options: Required<ProbeOptions>
  private readonly sends: boolean
  private readonly words: Int32Array
  private readonly doubles: Float64Array
  private readonly outgoing = new Batch(MAX_ENDPOINTS)
  private readonly nonce = new Int32Array(1)
  private readonly clockOffset = monotonicMs() - performance.now()
  private next = Number.NEGATIVE_INFINITY

  constructor(
    pool: Pool,
    encap: Encap,
    endpoints: Endpoints,
    health: HealthHandle,
    transmit: (batch: Batch) => void,
    options: ProbeOptions,
    sends: boolean,
  ) {
    this.pool = pool
    this.encap = encap
    this.endpoints = endpoints
    this.transmit = transmit
    this.options = completed(options)
    this.sends = sends
    this.words = new Int32Array(health)
    this.doubles = new Float64Array(health)
  }

  /** Sends and judges in this way from now on. */
  use(options: ProbeOptions): void {
    this.options = completed(options)
  }

  /** Probes sent to all endpoints that there are. */
  get sent(): number {
    return this.sum(HEALTH.SENT)
  }

  /** How many of them were answered. */
  get answered(): number {
    return this.sum(HEALTH.ANSWERED)
  }

  /** Sends probes when they are due and judges the endpoints, where this worker is to. `now` in ms of performance.now(). */
  tick(now: number): void {
    if (!this.sends) return
    const { outgoing, endpoints, options } = this
    const monotonic = now + this.clockOffset
    const due = options.intervalMs > 0 && now >= this.next
    for (let number = 1; number <= MAX_ENDPOINTS; number++) {
      if (!endpoints.view.isPresent(number)) continue
      // The first one's answer is waited for like any.
      const last = number * DOUBLES + LAST_ANSWER
      if (this.doubles[last] === 0) this.doubles[last] = monotonic
      if (due) this.make(number)
      this.judge(number, monotonic)
    }
    if (!due) return
    this.next = now + options.intervalMs
    if (outgoing.length === 0) return
    this.encap.run(outgoing)
    if (outgoing.length > 0) this.transmit(outgoing)
  }

  /** Takes the probes in `returned`, as of now. */
  collect(): void {
    const { returned, pool } = this
    if (returned.length === 0) return
    const now = monotonicMs()
    for (let i = 0; i < returned.length; i++) this.take(returned.frames[i], now)
    pool.freeAll(returned)
  }

  /** Counts an answer that is one: to a probe of late, for the first time. */
  private take(frame: number, now: number): void {
    const { pool, words, doubles } = this
    const { view } = pool
    const data = pool.payload[frame]
    if (pool.protocol[frame] !== ipv4.PROTOCOL.UDP || data + DATA > pool.start[frame] + pool.length[frame]) return
    const number = view.getUint32(data + 4)
    const sequence = view.getInt32(data + 8)
    if (view.getInt32(data) !== MAGIC || number === 0 || number > MAX_ENDPOINTS) return
    const at = number * HEALTH.WORDS
    const slot = sequence & LAST
    const age = words[at + HEALTH.SENT] - sequence
    if (age < 0 || age >= RING || words[at + HEALTH.NONCE + slot] !== view.getInt32(data + 12)) return
    if (words[at + HEALTH.SEEN + slot] === sequence) return
    words[at + HEALTH.SEEN + slot] = sequence
    Atomics.add(words, at + HEALTH.ANSWERED, 1)
    const own = number * DOUBLES
    const us = Math.max(0, (now - doubles[own + TIME + slot]) * 1000)
    doubles[own + LAST_ANSWER] = now
    doubles[own + SUM] += us
    Atomics.add(words, at + HEALTH.HISTOGRAM + bucketOf(us), 1)
  }

  private judge(number: number, now: number): void {
    const { words, doubles, options } = this
    const at = number * HEALTH.WORDS
    const own = number * DOUBLES
    const up = words[at + HEALTH.UP] === 1
    const failing = words[at + HEALTH.FAILING] !== 0
    const verdict = up
      ? !failing && !this.isSilent(at, now - doubles[own + LAST_ANSWER])
      : !failing &&
        now - doubles[own + SINCE] >= options.holdDownMs &&
        this.isBack(at, now - doubles[own + LAST_ANSWER])
    if (verdict === up) return
    doubles[own + SINCE] = now
    Atomics.store(words, at + HEALTH.UP, verdict ? 1 : 0)
  }

  private isSilent(at: number, silence: number): boolean {
    const { intervalMs, limitMs, fall } = this.options
    if (intervalMs === 0 || silence <= limitMs) return false
    const sent = this.words[at + HEALTH.SENT]
    for (let i = 0; i < fall; i++) if (sent - i > 0 && this.isAnswered(at, sent - i)) return false
    return sent >= fall
  }

  private isBack(at: number, silence: number): boolean {
    const { intervalMs, limitMs, rise } = this.options
    if (intervalMs === 0) return true
    if (silence > limitMs) return false
    // Those that are on their way yet do not break the row.
    let newest = this.words[at + HEALTH.SENT]
    const oldest = Math.max(0, newest - RING)
    while (newest > oldest && !this.isAnswered(at, newest)) newest--
    for (let i = 0; i < rise; i++) if (newest - i <= oldest || !this.isAnswered(at, newest - i)) return false
    return true
  }

  private isAnswered(at: number, sequence: number): boolean {
    return this.words[at + HEALTH.SEEN + (sequence & LAST)] === sequence
  }

  private sum(word: number): number {
    let sum = 0
    for (let number = 1; number <= MAX_ENDPOINTS; number++) sum += this.words[number * HEALTH.WORDS + word]
    return sum
  }

  /** Puts a probe of an endpoint into `outgoing`. */
  private make(number: number): void {
    const { pool, words, outgoing, nonce } = this
    const frame = pool.alloc()
    if (frame < 0) return
    const health = number * HEALTH.WORDS
    const sequence = words[health + HEALTH.SENT] + 1
    crypto.getRandomValues(nonce)
    words[health + HEALTH.NONCE + (sequence & LAST)] = nonce[0]
    this.doubles[number * DOUBLES + TIME + (sequence & LAST)] = monotonicMs()
    words[health + HEALTH.SENT] = sequence

    const b = pool.bytes
    const at = pool.start[frame]
    const ip = at + ETHERNET
    const total = ipv4.HEADER + udp.HEADER + DATA
    b.set(PROBE_MAC, at + ethernet.DESTINATION)
    b.set(PROBE_MAC, at + ethernet.SOURCE)
    ethernet.setType(b, at, ETHERTYPE.IPV4)
    ipv4.write(b, ip, ipv4.HEADER, 0, total, 0, ipv4.DONT_FRAGMENT, 64, ipv4.PROTOCOL.UDP, PROBE_SOURCE, DESTINATION)
    const transport = ip + ipv4.HEADER
    const data = transport + udp.HEADER
    udp.write(b, transport, PORT, PORT, udp.HEADER + DATA, 0)
    pool.view.setInt32(data, MAGIC)
    pool.view.setInt32(data + 4, number)
    pool.view.setInt32(data + 8, sequence)
    pool.view.setInt32(data + 12, nonce[0])
    udp.updateChecksum(b, ip, transport)
    pool.length[frame] = ETHERNET + total
    pool.network[frame] = ip
    pool.transport[frame] = transport
    pool.payload[frame] = data
    pool.protocol[frame] = ipv4.PROTOCOL.UDP
    pool.attachment[frame] = PROBE_ATTACHMENT
    pool.direction[frame] = LEAVING
    pool.endpoint[frame] = number
    // Different ways through the network take turns.
    pool.hash[frame] = Math.imul(sequence, 0x9e3779b1)
    outgoing.push(frame)
  }
}
