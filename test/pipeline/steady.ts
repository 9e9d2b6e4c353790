// The steady path in memory: a pod that sends small packets of many flows, an endpoint that returns each one, and the
// forwarder between them. Frames are recycled and nothing here allocates, so what is measured is the path.

import type { Device } from '../../src/device/device.ts'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { createLiveFlowTable } from '../../src/flow/live.ts'
import { compile } from '../../src/flow/policy.ts'
import { VERDICT } from '../../src/flow/verdict.ts'
import { BATCH, Batch } from '../../src/memory/batch.ts'
import { Counters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../../src/memory/pool.ts'
import { Forwarder } from '../../src/pipeline/forwarder.ts'
import type { Leg } from '../../src/pipeline/loop.ts'
import { TUNNEL_PORT, type TunnelConfig } from '../../src/pipeline/tunnel.ts'

export interface SteadyOptions {
  kind: 'geneve' | 'vxlan'
  outer: 4 | 6
  inner: 4 | 6
  /** Up to 2^20. */
  flows: number
  outerChecksum: 'auto' | 'zero'
  /** Packets a breath. */
  batch?: number
}

const MAC = Uint8Array.of(2, 0, 0, 0, 0x0a, 1)
const DATA = 22

/** Sends a packet of the next flow each time, in an order that no prefetcher foresees, and takes what returns. */
export class Pod implements Device {
  readonly name = 'pod'
  readonly capabilities = 0
  readonly fd = -1
  readonly exhausted = false
  returned = 0
  private readonly pool: Pool
  private readonly template: Uint8Array
  private readonly flows: number
  private readonly inner: number
  private state = 1
  private clock = 0

  constructor(pool: Pool, inner: 4 | 6, flows: number) {
    this.pool = pool
    this.flows = flows
    this.inner = inner
    this.template = frameTemplate(inner)
  }

  receive(batch: Batch): number {
    const { pool, template } = this
    const n = batch.room
    this.clock++
    for (let i = 0; i < n; i++) {
      const frame = pool.alloc()
      const start = pool.start[frame]
      pool.bytes.set(template, start)
      // Numerical Recipes' generator: its high bits choose the flow.
      this.state = (Math.imul(this.state, 1664525) + 1013904223) | 0
      const flow = (((this.state >>> 8) * this.flows) / 0x1000000) | 0
      // The last word of the source address and the source port.
      const source = start + (this.inner === 4 ? 26 : 34)
      pool.bytes[source + 1] = flow >> 16
      pool.bytes[source + 2] = flow >> 8
      pool.bytes[source + 3] = flow
      pool.length[frame] = template.length
      pool.time[frame] = this.clock
      batch.push(frame)
    }
    return n
  }

  transmit(batch: Batch): void {
    this.returned += batch.length
    this.pool.freeAll(batch)
  }

  close(): void {}
}

/** Turns around what it is given: outer addresses change places. */
class Endpoint implements Device {
  readonly name = 'endpoint'
  readonly capabilities = 0
  readonly fd = -1
  readonly exhausted = false
  private readonly pool: Pool
  private readonly waiting = new Batch()
  private readonly at: number
  private readonly size: number

  constructor(pool: Pool, outer: 4 | 6) {
    this.pool = pool
    this.at = outer === 4 ? 26 : 22
    this.size = outer === 4 ? 4 : 16
  }

  receive(batch: Batch): number {
    const { waiting, pool, at, size } = this
    const n = waiting.length
    for (let i = 0; i < n; i++) {
      const frame = waiting.frames[i]
      const ip = pool.start[frame] + at
      for (let j = ip; j < ip + size; j++) {
        const byte = pool.bytes[j]
        pool.bytes[j] = pool.bytes[j + size]
        pool.bytes[j + size] = byte
      }
      pool.offload[frame] = 0
      pool.outerTransport[frame] = 0
      batch.push(frame)
    }
    waiting.length = 0
    return n
  }

  transmit(batch: Batch): void {
    for (let i = 0; i < batch.length; i++) this.waiting.push(batch.frames[i])
    batch.length = 0
  }

  close(): void {}
}

export class Steady {
  readonly pool: Pool
  readonly counters = new Counters()
  readonly pod: Pod
  private readonly endpoint: Endpoint
  private readonly podLeg: Leg
  private readonly underlayLeg: Leg
  private readonly batch: Batch
  private readonly returning = new Batch()

  constructor(options: SteadyOptions) {
    const { kind, outer, inner, flows, outerChecksum, batch = BATCH } = options
    this.pool = new Pool(createPool({ frames: BATCH + 64, frameSize: 2048, headroom: HEADROOM }))
    this.batch = new Batch(batch)
    this.pod = new Pod(this.pool, inner, flows)
    this.endpoint = new Endpoint(this.pool, outer)
    const forwarder = new Forwarder(this.pool, this.counters, this.endpoint, {
      tunnel: steadyTunnel(kind, outer, outerChecksum),
      underlayMtu: 1500,
      flows: createLiveFlowTable({ capacity: flows, tcpIdleMs: 1e9, idleMs: 1e9 }),
      seed: FIXED_SEED,
      policy: compile([], VERDICT.STEER),
      probe: { intervalMs: 0, limitMs: 0 },
    })
    this.podLeg = forwarder.attach(0, this.pod, MAC, false)
    this.underlayLeg = forwarder.underlayLeg
  }

  /** One batch out to the endpoint and back to the pod. */
  breathe(): void {
    const { batch, returning } = this
    this.pod.receive(batch)
    this.podLeg.run(batch)
    this.endpoint.receive(returning)
    this.underlayLeg.run(returning)
  }

  /** What a breath costs that is not the forwarder's: packets made, turned around and freed. */
  idle(): void {
    const { batch, returning } = this
    this.pod.receive(batch)
    this.endpoint.transmit(batch)
    this.endpoint.receive(returning)
    this.pod.transmit(returning)
  }

  /** So many packets through, with the last batch filled. Throws when one is missing. */
  run(packets: number): void {
    const before = this.pod.returned
    let sent = 0
    for (; sent < packets; sent += this.batch.capacity) this.breathe()
    if (this.pod.returned - before !== sent)
      throw new Error(`${this.pod.returned - before} of ${sent} packets returned`)
  }
}

/** The tunnel of the steady path. */
export function steadyTunnel(kind: 'geneve' | 'vxlan', outer: 4 | 6, outerChecksum: 'auto' | 'zero'): TunnelConfig {
  const end = (host: number) => (outer === 4 ? [10, 8, 0, host] : [0xfd, ...new Array(14).fill(0), host])
  return {
    profile: kind,
    kind,
    port: TUNNEL_PORT[kind],
    vni: 77,
    local: end(1),
    remote: end(2),
    ttl: 64,
    dscp: 'copy',
    ecn: 'normal',
    outerChecksum,
    zeroChecksum6: outerChecksum === 'zero',
    strictReserved: false,
    innerVlan: false,
    metadata: true,
  }
}

/** A 64-byte frame (84 over IPv6) of UDP from the pod. */
export function frameTemplate(inner: 4 | 6): Uint8Array {
  const ethernet = [2, 0, 0, 0, 0x0b, 2, ...MAC, ...(inner === 4 ? [8, 0] : [0x86, 0xdd])]
  const udp = [0x9c, 0x40, 0x9c, 0x41, 0, 8 + DATA, 0, 0, ...new Array(DATA).fill(7)]
  const ip =
    inner === 4
      ? [0x45, 0, 0, 28 + DATA, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 0, 192, 0, 2, 9]
      : [0x60, 0, 0, 0, 0, 8 + DATA, 17, 64, ...address6(1), ...address6(9)]
  return Uint8Array.from([...ethernet, ...ip, ...udp])
}

const address6 = (host: number) => [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
