// A node's forwarder between devices of arrays, with every other frame of its pool a guard that nobody may write to.
// `balanced` is for the end of every test: each stage accounts for every frame, all frames are free, no guard changed.

import { expect } from 'vitest'
import type { Device } from '../../src/device/device.ts'
import { DROP, dropName } from '../../src/drop.ts'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { createFlowTable, type FlowTableOptions } from '../../src/flow/layout.ts'
import { compile, type PolicyRule } from '../../src/flow/policy.ts'
import { VERDICT } from '../../src/flow/verdict.ts'
import { FlowView } from '../../src/flow/view.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, Counters, type StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../../src/memory/pool.ts'
import { Decap, type DecapOptions } from '../../src/pipeline/decap.ts'
import type { EndpointsHandle } from '../../src/pipeline/endpoints.ts'
import { Forwarder, type ForwarderOptions } from '../../src/pipeline/forwarder.ts'
import type { Leg } from '../../src/pipeline/loop.ts'
import { TUNNEL_PORT, type TunnelConfig } from '../../src/pipeline/tunnel.ts'
import { address, type Kind, POD, TUNNEL_ENDS, tunnelled, turned, type Version, VNI } from './packets.ts'
import { load, type Packet, unload } from './super.ts'

const GUARD = 0xa5

/** A tunnel as the RFCs advise. */
export function tunnelConfig(
  kind: Kind = 'geneve',
  outer: Version = 4,
  rest: Partial<TunnelConfig> = {},
): TunnelConfig {
  const { local, remote } = TUNNEL_ENDS[outer]
  return {
    profile: kind,
    kind,
    port: TUNNEL_PORT[kind],
    vni: VNI,
    local: address(local),
    remote: address(remote),
    ttl: 61,
    dscp: 'copy',
    ecn: 'normal',
    outerChecksum: 'auto',
    zeroChecksum6: false,
    strictReserved: false,
    innerVlan: false,
    metadata: true,
    ...rest,
  }
}

/** All four combinations of tunnel and underlay. */
export const TUNNELS = (['geneve', 'vxlan'] as const).flatMap(kind =>
  ([4, 6] as const).map(outer => ({ kind, outer, name: `${kind} over IPv${outer}` })),
)

/** A frame as a device gives it, without offloads. */
export function plain(bytes: Uint8Array): Packet {
  return {
    bytes,
    gso: 0,
    gsoSize: 0,
    offload: 0,
    outerTransport: 0,
    network: 0,
    transport: 0,
    payload: 0,
    checksumOffset: 0,
  }
}

/** A pool in which only every other frame is handed out, and all others are guards. */
export class GuardedPool {
  readonly pool: Pool
  readonly size: number

  constructor(frames: number, frameSize: number) {
    const pool = new Pool(createPool({ frames: frames * 2 + 1, frameSize, headroom: HEADROOM }))
    this.pool = pool
    this.size = frames
    pool.bytes.fill(GUARD)
    const own: number[] = []
    for (let frame = pool.alloc(); frame >= 0; frame = pool.alloc()) if (frame % 2 === 1) own.push(frame)
    for (const frame of own.reverse()) pool.free(frame)
  }

  intact(): void {
    const { pool, size } = this
    expect(pool.available, 'free frames').toBe(size)
    for (let frame = 0; frame < pool.frames; frame += 2) {
      const slot = pool.bytes.subarray(frame * pool.frameSize, (frame + 1) * pool.frameSize)
      if (!slot.every(byte => byte === GUARD)) expect.fail(`guard frame ${frame} was written to`)
    }
  }
}

/** A device that gives what is queued and keeps what it is given. */
export class FakeDevice implements Device {
  readonly fd = -1
  readonly exhausted = false
  readonly name: string
  readonly capabilities: number
  readonly queue: Packet[] = []
  readonly sent: Packet[] = []
  received = 0
  transmitted = 0
  private readonly pool: Pool
  /** The clock of the frames it gives, ms. */
  now = 1000

  constructor(pool: Pool, name: string, capabilities = 0) {
    this.pool = pool
    this.name = name
    this.capabilities = capabilities
  }

  receive(batch: Batch): number {
    const { pool, queue } = this
    const n = Math.min(queue.length, batch.room, pool.available)
    for (let i = 0; i < n; i++) {
      const frame = load(pool, queue[i])
      pool.time[frame] = this.now
      batch.push(frame)
    }
    queue.splice(0, n)
    this.received += n
    return n
  }

  transmit(batch: Batch): void {
    this.transmitted += batch.length
    for (let i = 0; i < batch.length; i++) this.sent.push(unload(this.pool, batch.frames[i]))
    this.pool.freeAll(batch)
  }

  /** What was sent since the last call. */
  take(): Packet[] {
    return this.sent.splice(0)
  }

  close(): void {}
}

export interface RigOptions {
  tunnel?: TunnelConfig
  underlayMtu?: number
  flows?: Partial<FlowTableOptions>
  rules?: PolicyRule[]
  otherwise?: number
  probe?: ForwarderOptions['probe']
  endpoints?: EndpointsHandle
  /** The underlay asks no kernel for the next hop. */
  direct?: boolean
  frames?: number
  frameSize?: number
  underlayCapabilities?: number
  podCapabilities?: number
}

export interface Attached {
  device: FakeDevice
  leg: Leg
}

export class Rig {
  readonly guarded: GuardedPool
  readonly pool: Pool
  readonly counters = new Counters()
  readonly underlay: FakeDevice
  readonly forwarder: Forwarder
  readonly tunnel: TunnelConfig
  readonly attached: Attached[] = []
  readonly flows: FlowView
  private readonly podCapabilities: number
  private readonly batch = new Batch()

  constructor(options: RigOptions = {}) {
    const { frames = 64, frameSize = 12_288, underlayMtu = 9000, probe = { intervalMs: 0, limitMs: 0 } } = options
    const { tunnel = tunnelConfig(), rules = [], otherwise = VERDICT.STEER } = options
    this.guarded = new GuardedPool(frames, frameSize)
    this.pool = this.guarded.pool
    this.tunnel = tunnel
    this.podCapabilities = options.podCapabilities ?? 0
    this.underlay = new FakeDevice(this.pool, 'underlay', options.underlayCapabilities ?? 0)
    const flows = createFlowTable({ capacity: 1024, ...options.flows })
    this.flows = new FlowView(flows)
    const policy = compile(rules, otherwise)
    const { endpoints, direct } = options
    const settings = { tunnel, underlayMtu, flows, seed: FIXED_SEED, policy, probe, endpoints }
    this.forwarder = new Forwarder(this.pool, this.counters, this.underlay, settings, { direct })
  }

  /** Attaches a pod; its number is the next. */
  pod(mac: string = POD.mac, failClosed = false): FakeDevice {
    const number = this.attached.length
    const device = new FakeDevice(this.pool, `pod ${number}`, this.podCapabilities)
    const bytes = Uint8Array.from(mac.split(':'), byte => Number.parseInt(byte, 16))
    this.attached.push({ device, leg: this.forwarder.attach(number, device, bytes, failClosed) })
    return device
  }

  /** Gives frames to a pod's leg and returns what then went out to the underlay. */
  toward(pod: FakeDevice, ...frames: (Uint8Array | Packet)[]): Packet[] {
    const leg = this.attached.find(({ device }) => device === pod)!.leg
    this.breathe(pod, leg, frames)
    return this.underlay.take()
  }

  /** Gives frames to the underlay's leg. */
  back(...frames: (Uint8Array | Packet)[]): void {
    this.breathe(this.underlay, this.forwarder.underlayLeg, frames)
  }

  /** Packets of the underlay as the endpoint sends them back. */
  bounce(packets: Packet[]): void {
    this.back(...packets.map(packet => ({ ...packet, bytes: turned(packet.bytes) })))
  }

  stage(name: string): StageCounters {
    const found = this.counters.stages.find(stage => stage.name === name)
    if (found === undefined) throw new Error(`no stage '${name}'`)
    return found
  }

  /** Packets dropped, by stage and reason. */
  get drops(): Record<string, number> {
    const found: Record<string, number> = {}
    for (const stage of this.counters.stages)
      for (const reason of Object.values(DROP))
        if (stage.drops(reason) > 0) found[`${stage.name} ${dropName(reason)}`] = stage.drops(reason)
    return found
  }

  balanced(): void {
    let made = 0
    let dropped = 0
    for (const stage of this.counters.stages) {
      const { row } = stage
      const into = row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED]
      expect(into, `stage ${stage.name}`).toBe(row[COLUMN.OUT_PACKETS] + stage.drops())
      made += row[COLUMN.CREATED]
      dropped += stage.drops()
    }
    const { sent, answered } = this.forwarder.probes
    const devices = [this.underlay, ...this.attached.map(({ device }) => device)]
    const sum = (of: (device: FakeDevice) => number) => devices.reduce((total, device) => total + of(device), 0)
    expect(sum(d => d.received) + made + sent, 'all frames').toBe(sum(d => d.transmitted) + dropped + answered)
    this.guarded.intact()
  }

  private breathe(device: FakeDevice, leg: Leg, frames: (Uint8Array | Packet)[]): void {
    const { batch } = this
    device.queue.push(...frames.map(frame => (frame instanceof Uint8Array ? plain(frame) : frame)))
    while (device.receive(batch) > 0) {
      leg.run(batch)
      expect(batch.length).toBe(0)
    }
    expect(device.queue).toHaveLength(0)
  }
}

export interface Opened {
  /** What came out, or the reason why nothing did. */
  inner: Uint8Array | undefined
  reason: string
  /** RFC 6040's combinations to be logged. */
  logged: number
}

/** One packet through decap alone, as a node or, with options, as an endpoint or a file conversion does. */
export function open(packet: Uint8Array | Packet, tunnel: TunnelConfig, options: Partial<DecapOptions> = {}): Opened {
  const guarded = new GuardedPool(1, 12_288)
  const { pool } = guarded
  const counters = new Counters().stage('decap')
  const decap = new Decap(pool, counters, tunnel, { anyPeer: false, keep: false, anyInner: false, ...options })
  const batch = new Batch(1)
  batch.push(load(pool, packet instanceof Uint8Array ? plain(packet) : packet))
  decap.run(batch)
  expect(counters.row[COLUMN.IN_PACKETS]).toBe(1)
  expect(counters.row[COLUMN.OUT_PACKETS] + counters.drops()).toBe(1)
  const inner = batch.length === 0 ? undefined : unload(pool, batch.frames[0]).bytes
  expect(counters.row[COLUMN.OUT_BYTES]).toBe(inner?.length ?? 0)
  pool.freeAll(batch)
  guarded.intact()
  const reasons = Object.values(DROP).filter(reason => counters.drops(reason) > 0)
  return { inner, reason: reasons.map(dropName).join() || 'none', logged: counters.row[COLUMN.ERRORS] }
}

/** Builds with `tunnelled` for a tunnel of this kind and underlay, opens, and returns the drop reason. */
export function refusal(
  inner: Uint8Array,
  outer: Parameters<typeof tunnelled>[1],
  rest: Partial<TunnelConfig> = {},
  version: Version = 4,
): string {
  const kind = outer?.kind ?? 'geneve'
  const packet = tunnelled(inner, { to: TUNNEL_ENDS[version].local, ...outer })
  return open(packet, tunnelConfig(kind, version, rest)).reason
}
