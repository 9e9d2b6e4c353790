// The endpoint probe: a small UDP packet that goes through the tunnel as pods' packets do and must come back.

import { Batch } from '../memory/batch.ts'
import type { Pool } from '../memory/pool.ts'
import { monotonicMs } from '../os/clock.ts'
import * as ethernet from '../wire/ethernet.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as udp from '../wire/udp.ts'
import { LEAVING, PROBE_ATTACHMENT } from './attachments.ts'
import type { Encap } from './encap.ts'

/** The probe's own Ethernet address, locally administered. */
export const PROBE_MAC = Uint8Array.of(0x02, 0xde, 0x70, 0, 0, 1)

/** RFC 2544's benchmarking addresses, which no pod has; the echo port. */
const SOURCE = 0xc6120001 | 0
const DESTINATION = 0xc6120002 | 0
const PORT = 7
const DATA = 8

export interface ProbeOptions {
  /** Milliseconds between probes; 0 turns them off, and the endpoint counts as up. */
  intervalMs: number
  /** Silence after which the endpoint counts as down. */
  limitMs: number
}

/** What the workers of a node know of their endpoint: one of them sends, whoever a probe returns to notes it. */
export interface ProbeShare {
  /** PROBE words, doubles. */
  memory: SharedArrayBuffer
  sends: boolean
}

/** Words of a ProbeShare; times are ms of CLOCK_MONOTONIC. */
export const PROBE = { UP: 0, SENT: 1, ANSWERED: 2, LAST_ANSWER: 3, WORDS: 4 } as const

/** The memory of a ProbeShare: the endpoint counts as up until it is found to be down. */
export function createProbeMemory(): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(PROBE.WORDS * 8)
  new Float64Array(memory)[PROBE.UP] = 1
  return memory
}

/** Sends probes and judges by what returns; one a tunnel. */
export class Probe {
  readonly returned = new Batch()
  private readonly pool: Pool
  private readonly encap: Encap
  private readonly transmit: (batch: Batch) => void
  private readonly options: ProbeOptions
  private readonly sends: boolean
  private readonly words: Float64Array
  private readonly outgoing = new Batch(1)
  private readonly clockOffset = monotonicMs() - performance.now()
  private next = Number.NEGATIVE_INFINITY

  constructor(
    pool: Pool,
    encap: Encap,
    transmit: (batch: Batch) => void,
    options: ProbeOptions,
    share: ProbeShare = { memory: createProbeMemory(), sends: true },
  ) {
    this.pool = pool
    this.encap = encap
    this.transmit = transmit
    this.options = options
    this.sends = share.sends
    this.words = new Float64Array(share.memory)
  }

  get sent(): number {
    return this.words[PROBE.SENT]
  }

  get answered(): number {
    return this.words[PROBE.ANSWERED]
  }

  /** Sends a probe when it is due, where this worker is to, and says whether the endpoint answers. `now` in ms of performance.now(). */
  tick(now: number): boolean {
    const { intervalMs, limitMs } = this.options
    if (intervalMs === 0) return true
    const { words } = this
    if (this.sends) {
      const monotonic = now + this.clockOffset
      // The first one's answer is waited for like any.
      if (words[PROBE.LAST_ANSWER] === 0) words[PROBE.LAST_ANSWER] = monotonic
      if (now >= this.next) {
        this.send()
        this.next = now + intervalMs
      }
      words[PROBE.UP] = monotonic - words[PROBE.LAST_ANSWER] <= limitMs ? 1 : 0
    }
    return words[PROBE.UP] === 1
  }

  /** Takes the probes in `returned`, as of now. */
  collect(): void {
    if (this.returned.length === 0) return
    this.words[PROBE.ANSWERED] += this.returned.length
    this.words[PROBE.LAST_ANSWER] = monotonicMs()
    this.pool.freeAll(this.returned)
  }

  private send(): void {
    const { pool, outgoing } = this
    const frame = pool.alloc()
    if (frame < 0) return
    const b = pool.bytes
    const at = pool.start[frame]
    const ip = at + ETHERNET
    const total = ipv4.HEADER + udp.HEADER + DATA
    b.set(PROBE_MAC, at + ethernet.DESTINATION)
    b.set(PROBE_MAC, at + ethernet.SOURCE)
    ethernet.setType(b, at, ETHERTYPE.IPV4)
    ipv4.write(b, ip, ipv4.HEADER, 0, total, 0, ipv4.DONT_FRAGMENT, 64, ipv4.PROTOCOL.UDP, SOURCE, DESTINATION)
    const transport = ip + ipv4.HEADER
    udp.write(b, transport, PORT, PORT, udp.HEADER + DATA, 0)
    pool.view.setUint32(transport + udp.HEADER, 0x64657472)
    pool.view.setUint32(transport + udp.HEADER + 4, this.sent)
    udp.updateChecksum(b, ip, transport)
    pool.length[frame] = ETHERNET + total
    pool.network[frame] = ip
    pool.transport[frame] = transport
    pool.payload[frame] = transport + udp.HEADER
    pool.protocol[frame] = ipv4.PROTOCOL.UDP
    pool.attachment[frame] = PROBE_ATTACHMENT
    pool.direction[frame] = LEAVING
    pool.hash[frame] = this.words[PROBE.SENT]++
    outgoing.push(frame)
    this.encap.run(outgoing)
    this.transmit(outgoing)
  }
}
