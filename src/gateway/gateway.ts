// A running gateway: opens the underlay, starts the workers and answers for them. The main thread never sees a packet.

import { closeSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { createCaptures } from '../control/captures.ts'
import { type WorkerCount, workerCount } from '../control/config.ts'
import { flowRows } from '../control/flows.ts'
import { createPeers, type Peers } from '../control/peers.ts'
import { gatewayTunnel } from '../control/profile.ts'
import { openTunnelSockets } from '../control/sockets.ts'
import { type FlowRow, type Source, selectFlows, type UnderlayRow } from '../control/source.ts'
import { spawnWorker } from '../control/spawn.ts'
import { addressBytes } from '../control/tunnel.ts'
import { type OffloadRung, openUnderlay, underlayDevices } from '../control/underlay.ts'
import type { Fault } from '../device/faults.ts'
import type { DeviceSpec } from '../device/open.ts'
import { DetourError } from '../errors.ts'
import { randomSeed } from '../flow/hash.ts'
import { createLiveFlowTable } from '../flow/live.ts'
import type { Steering } from '../flow/steering.ts'
import { FlowView } from '../flow/view.ts'
import { type CountersHandle, readCounters } from '../memory/counters.ts'
import type { AttachRung } from '../os/classifier.ts'
import { inNamespace } from '../os/netns.ts'
import { openPacketSocket } from '../os/packet.ts'
import { type ProfileName, profileNamed } from '../pipeline/profile.ts'
import type { Settings } from '../pipeline/setting.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import type { GatewayInput, GatewayRequest, GatewayResult } from './engine.ts'
import { FaultBoard } from './faults-board.ts'
import type { Policy } from './judge.ts'
import type { Signature } from './suricata/model.ts'

/** Frames of the pool: a batch, two answers to each, segments of a super-packet, and room to spare. */
const FRAMES = 1024
/** Small frames of a worker where its underlay is AF_XDP: what waits in its rings. */
const SMALL_FRAMES = 2048
/** As many as a node holds, so that it is not the gateway that turns flows away. */
const FLOWS = 1_048_576
/** With an appliance, where each flow's tunnel headers are kept. */
const INLINE_FLOWS = 65_536
const WORKER = 'gateway'

export interface GatewayOptions {
  profile: ProfileName
  /** The profile's own when not given; of two tunnels, the internal one's. */
  vni?: number
  /** Of the profile. */
  settings?: Settings
  /** Where tunnel packets are taken, as text. */
  address: string
  /** The profile's own when not given. */
  port?: number
  policy: Policy
  /** File descriptor for verdict lines; nowhere when not given. Stays open. */
  logFd?: number
  /** Threat signatures, and a file descriptor for their alerts; nowhere when not given. Stays open. */
  signatures?: Signature[]
  eveFd?: number
  /** Name or path of a network namespace; the current one when not given. */
  namespace?: string
  /** With it, a TAP and BPF on that interface, and super-packets where the kernel has them (root); without, a UDP socket. */
  interface?: string
  /** The rung to use on the interface. */
  rung?: OffloadRung | 'auto'
  /** How its BPF is held there. */
  attach?: AttachRung | 'auto'
  /** Names of two interfaces of the namespace between which an appliance decides what comes back (root); for one worker. */
  inline?: [string, string]
  /** Threads that share the flows; one when not given. */
  workers?: WorkerCount
  /** What shall go wrong, by times since the start; more may be asked for through `source`. */
  faults?: readonly Fault[]
  /** Of faults that say none themselves; 1 when not given. */
  faultSeed?: number
  /** A capture file of everything the gateway receives and sends; one a worker. */
  capture?: { path: string; limitBytes?: number }
  tunnel?: Partial<Pick<TunnelConfig, 'strictReserved' | 'zeroChecksum6' | 'innerVlan' | 'ttl'>>
}

export interface RunningGateway {
  /** What it listens on: `127.0.0.1:6081`. */
  readonly where: string
  readonly source: Source
  /** Settles when the workers have ended; rejects when one failed. */
  readonly done: Promise<void>
  /** Serves what has arrived, ends the workers and leaves the interface as it was found; resolves with what could not be written. */
  stop(): Promise<string[]>
}

/** Starts a gateway and resolves when it takes packets. Throws DetourError and leaves nothing behind. */
export async function startGateway(options: GatewayOptions): Promise<RunningGateway> {
  const profile = profileNamed(options.profile)
  const local = addressBytes(options.address, 'listen')
  const { profile: name, address, settings: given = {} } = options
  const { port, vni, settings } = gatewayTunnel({ ...options, profile: name, local: address, settings: given })
  const tunnel: TunnelConfig = {
    profile: profile.name,
    kind: profile.kind,
    port,
    vni,
    local,
    remote: local.map(() => 0),
    ttl: 64,
    dscp: 'copy',
    ecn: 'normal',
    outerChecksum: 'auto',
    zeroChecksum6: false,
    strictReserved: false,
    innerVlan: false,
    metadata: true,
    ...profile.tunnel(settings),
    ...options.tunnel,
  }
  const workers = workerCount(options.workers ?? 1)
  if (options.inline !== undefined && workers > 1)
    throw new DetourError('bad-config', `${workers} workers: an appliance inline is served by one`)
  const captures = createCaptures(options.capture?.path, workers, options.capture?.limitBytes)
  const seed = randomSeed()
  const steering = { workers, seed }
  const appliance = openAppliance(options)
  const shared = createPeers(workers, FRAMES, options.rung === 'af-xdp' ? SMALL_FRAMES : 0)
  const opened = openDevices(options, tunnel, { ...steering, kind: profile.kind }, shared.pool, () => {
    shared.close()
    closeAppliance(appliance)
  })
  const log = new SharedArrayBuffer(4)
  const eve = new SharedArrayBuffer(4)
  const { signatures, eveFd = -1 } = options
  const own = ownAddresses(local, options.namespace ?? '')
  const running = opened.devices.map((device, worker) => {
    const flows = createLiveFlowTable({ capacity: appliance === undefined ? FLOWS : INLINE_FLOWS })
    const { pool, frames, peers } = shared.inputs[worker]
    const input: Omit<GatewayInput, 'port'> = {
      pool,
      frames,
      peers,
      underlay: { device, capture: captures[worker] },
      appliance,
      engine: {
        tunnel,
        own,
        policy: options.policy,
        flows,
        seed,
        logFd: options.logFd ?? -1,
        signatures: signatures && { rules: signatures, eveFd },
        live: true,
        ...(workers > 1 && { share: { worker, workers, log, eve, steering } }),
      },
    }
    const name = workers === 1 ? WORKER : `${WORKER}-${worker}`
    return { name, view: new FlowView(flows), worker: spawnWorker('gateway', input, { name }) }
  })
  const board = new FaultBoard({
    workers,
    seed: options.faultSeed ?? 1,
    tell: faults => Promise.all(running.map(({ worker }) => worker.ask({ faults } satisfies GatewayRequest))),
  })
  const end = async () => {
    board.close()
    const ended = await Promise.allSettled(running.map(({ worker }) => worker.stop()))
    opened.close()
    shared.close()
    for (const one of ended) if (one.status === 'rejected') throw one.reason
  }
  try {
    const faults: string[] = []
    const counters = await Promise.all(
      running.map(async ({ name, worker }) => {
        const stages = readCounters((await worker.ready) as CountersHandle)
        worker.worker.on('message', (result: GatewayResult) => faults.push(...result.faults))
        return { worker: name, stages }
      }),
    )
    if (options.faults !== undefined) await board.start(options.faults)
    const row: UnderlayRow = {
      device: opened.name,
      profile: profile.name,
      local: options.address,
      remote: '',
      port,
      vni: 'fixed' in profile.vnis ? profile.vnis.fixed : 0,
      mtu: opened.mtu,
      rung: opened.rung,
      capabilities: opened.features,
    }
    function* flows(): Generator<FlowRow> {
      for (const { name, view } of running) yield* flowRows(view, name, { attachment: () => '' })
    }
    return {
      where: options.address.includes(':') ? `[${options.address}]:${port}` : `${options.address}:${port}`,
      source: {
        info: () => ({ face: 'gateway', profile: profile.name }),
        counters: () => counters,
        flows: query => selectFlows(flows(), query, workers * FLOWS),
        attachments: () => [],
        underlay: () => [{ ...row, missed: opened.missed() }],
        faults: board,
      },
      done: Promise.all(running.map(({ worker }) => worker.done)).then(() => {}),
      async stop() {
        await end()
        return faults
      },
    }
  } catch (error) {
    await end().catch(() => {})
    throw error
  }
}

/** A device that is a packet socket. */
type PacketSpec = DeviceSpec & { device: { kind: 'packet' } }

interface Opened {
  /** One a worker. */
  devices: DeviceSpec['device'][]
  name: string
  mtu: number
  rung: OffloadRung
  features: string[]
  /** Packets that the queue to the worker had no room for. */
  missed(): number | undefined
  close(): void
}

function openDevices(
  options: GatewayOptions,
  { port, arriving, profile }: TunnelConfig,
  steering: Steering & Pick<TunnelConfig, 'kind'>,
  pool: Peers['pool'],
  /** Called when nothing could be opened. */
  close: () => void,
): Opened {
  const { address, namespace = '', interface: uplink, rung, attach } = options
  try {
    if (uplink !== undefined) {
      const where = { namespace, interface: uplink, localAddress: address, port, otherPort: arriving?.port }
      const underlay = openUnderlay({ ...where, rung, attach, steering, pool })
      const { offloadRung, uplinkMtu: mtu, device: name, features } = underlay
      const seen = { name, mtu, rung: offloadRung, features, missed: underlay.missed, close: underlay.close }
      if (offloadRung !== 'udp-socket') return { devices: underlayDevices(underlay), ...seen }
    }
    if (arriving !== undefined)
      throw new DetourError('bad-config', `profile ${profile} has two ports, which want an interface: give --interface`)
    const { kind } = steering
    const sockets = openTunnelSockets({ namespace, address, port, kind, steering })
    return {
      devices: sockets.map(handle => ({ kind: 'udp', ...handle })),
      name: `udp:${port}`,
      mtu: 0,
      rung: 'udp-socket',
      features: [],
      missed: () => undefined,
      close() {},
    }
  } catch (error) {
    close()
    throw error
  }
}

/** The interfaces of an appliance, if there is one. Frames go to it complete and no larger than its interfaces carry. */
function openAppliance({ inline, namespace }: GatewayOptions): [PacketSpec, PacketSpec] | undefined {
  if (inline === undefined) return undefined
  const open = (name: string): PacketSpec => ({
    device: { kind: 'packet', capabilities: 0, ...openPacketSocket(name, namespace) },
  })
  const inside = open(inline[0])
  try {
    return [inside, open(inline[1])]
  } catch (error) {
    closeAppliance([inside])
    throw error
  }
}

function closeAppliance(specs: PacketSpec[] = []): void {
  for (const { device } of specs) closeSync(device.fd)
}

/** The addresses, or their first bytes, at which a socket bound to `local` is reached. */
function ownAddresses(local: number[], namespace: string): number[][] {
  if (local.some(byte => byte !== 0)) return [local]
  const family = local.length === 4 ? 'IPv4' : 'IPv6'
  const all = inNamespace(namespace, () => Object.values(networkInterfaces()).flatMap(addresses => addresses ?? []))
  const own = all.filter(one => one.family === family).map(one => addressBytes(one.address, 'listen'))
  return family === 'IPv4' ? [[127], ...own] : own
}
