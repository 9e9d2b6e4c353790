// A node: opens the underlay, starts the forwarding workers, attaches pods and answers for all of it.

import { createCaptures } from '../control/captures.ts'
import { type Config, configuredEndpoints, type EndpointConfig, workerCount } from '../control/config.ts'
import { createPeers } from '../control/peers.ts'
import { openTunnelSockets } from '../control/sockets.ts'
import type { FlowLog } from '../control/flow-log.ts'
import type { Source } from '../control/source.ts'
import { openUnderlay, type Underlay, underlayDevices } from '../control/underlay.ts'
import type { DeviceSpec } from '../device/open.ts'
import { closeCapture } from '../device/pcap.ts'
import { randomSeed } from '../flow/hash.ts'
import type { Steering } from '../flow/steering.ts'
import { unpin } from '../os/bpf.ts'
import type { FailMode } from '../os/heartbeat.ts'
import { namespaceId } from '../os/netns.ts'
import type { ProbeOptions } from '../pipeline/probe.ts'
import { innerMtu } from '../pipeline/tunnel.ts'
import type { Alarm } from './alarm.ts'
import { type Attachment, PIN_DIRECTORY } from './attachment.ts'
import { EndpointPool, tunnelOf } from './endpoints.ts'
import { openExpress } from './express.ts'
import { createTables, Forwarders } from './forwarders.ts'
import type { Inheritance } from './handover.ts'
import { createJournals, FlowJournal } from './journal.ts'
import { type PodOptions, Pods } from './pods.ts'
import { openProtectedMap, protect } from './prefixes.ts'
import { type NodeParts, nodeSource } from './source.ts'
import { Upkeep } from './upkeep.ts'

export type { PodOptions } from './pods.ts'

const IPV6_MINIMUM_MTU = 1280

/** Large frames of a worker: a batch each way, what rings and answers hold, and room to spare. */
const FRAMES = 1024
/** Small frames of a worker: what waits in a transmit ring, and segments. */
const SMALL_FRAMES = 2048

/** How long a start waits for the next hop, where the kernel sends nothing that would find it. */
const NEXT_HOP_MS = 1000

export interface NodeOptions {
  config: Config
  /** Namespace of the uplink; empty for the current one. */
  namespace: string
  /** Interface toward the endpoint. */
  uplink: string
  pods: PodOptions[]
  /** In place of what the configuration says. */
  probe?: ProbeOptions
  /** Capture files for what pods send and get, and for what the underlay carries; of further workers, `-1` and so on stands in front of the extension. */
  capture?: { overlay?: string; underlay?: string; limitBytes?: number }
  /** Takes a line for each flow that begins or ends; its owner's to close, after the node's end. */
  flowLog?: FlowLog
  /** Takes a line for each choice that was made. */
  log?: (line: string) => void
  /** What a live predecessor has open; taken, also when this throws. Its pods take the place of `pods`. */
  inherit?: Inheritance
  /** Opens everything, but receives nothing and beats no heart until `resume`. */
  paused?: boolean
}

export interface RunningNode {
  readonly source: Source
  /** Settles when the workers have ended; rejects when one failed. */
  readonly done: Promise<void>
  /** What the workers last published: whether an endpoint answers, and the probes of all. */
  status(): { endpointUp: boolean; probesSent: number; probesAnswered: number }
  /** Makes these the endpoints while packets flow; those that stay keep their flows. Throws DetourError, and then nothing has changed. */
  setEndpoints(list: readonly EndpointConfig[]): Promise<void>
  /** What is or was wrong with uplink, pods, endpoints, or for want of room. */
  alarms(): Alarm[]
  /** What is attached under an id. */
  attachment(id: string): Attachment | undefined
  /** Goes by what has changed in its configuration object, as far as that may change while packets flow. */
  reconfigure(): Promise<void>
  /** The attached pods, as they were given. */
  pods(): PodOptions[]
  /**
   * Takes one more pod's packets; resolves when they flow. What a dead process left of the attachment is adopted where it fits, so that
   * its fail mode holds without a gap. Throws DetourError and leaves the pod as it was.
   */
  attach(pod: PodOptions): Promise<void>
  /** Leaves a pod's interface as it was found; one that is not attached is fine. */
  detach(id: string): Promise<void>
  /** Another fail mode from now on; undefined is the node's own. Throws 'not-found'. */
  setFailMode(id: string, failMode: FailMode | undefined): Promise<void>
  /** Receives from now on; resolves when every worker does. Nothing where it was not paused. */
  resume(): Promise<void>
  /** Takes the interception away, lets the workers finish and leaves every interface as it was found. */
  stop(): Promise<void>
  /** Ends, but leaves interception as it is: for a successor that has inherited it, or one that will adopt it; until then the fail mode holds. */
  leave(): Promise<void>
}

/** Starts a node and resolves when packets flow. Throws DetourError and leaves nothing behind. */
export async function startNode(options: NodeOptions): Promise<RunningNode> {
  const { config, namespace, log = () => {} } = options
  const tunnel = tunnelOf(config)
  const steering: Steering = { workers: workerCount(config.workers), seed: randomSeed() }
  /** What to take away again, first made last; or to leave to another process. */
  const made: ((leaving: boolean) => void)[] = []
  const takeAway = (leaving: boolean) => {
    for (const step of made.splice(0).reverse()) step(leaving)
  }
  let forwarders: Forwarders | undefined
  let pods: Pods | undefined
  let upkeep: Upkeep | undefined
  try {
    const peers = createPeers(steering.workers, FRAMES, SMALL_FRAMES)
    made.push(() => peers.close())
    const underlay = openUnderlay({
      namespace,
      interface: options.uplink,
      localAddress: config.tunnel.local ?? '',
      port: tunnel.port,
      rung: config.rungs.offload,
      attach: config.rungs.attach,
      steering: { ...steering, kind: tunnel.kind },
      pool: peers.pool,
    })
    const direct = underlay.offloadRung === 'af-xdp'
    made.push(leaving => (leaving ? underlay.leave() : underlay.close()))
    log(
      `underlay ${options.uplink}: offload rung ${underlay.offloadRung}, attached by ${direct ? `AF_XDP (${underlay.features.join(', ')})` : (underlay.attachRung ?? 'a socket')}`,
    )
    if (steering.workers > 1) log(`${steering.workers} workers share the flows`)
    const { uplink, probe } = options
    const endpoints = new EndpointPool({ config, tunnel, namespace, uplink, mtu: underlay.uplinkMtu, direct, probe })
    made.push(() => endpoints.close())
    for (const address of direct ? await endpoints.find(NEXT_HOP_MS) : [])
      log(`the next hop toward ${address} does not answer: packets are dropped until it does`)
    const mtu = innerMtu(tunnel, endpoints.mtu)
    if (mtu < IPV6_MINIMUM_MTU)
      log(`inner MTU ${mtu}: IPv6 needs ${IPV6_MINIMUM_MTU} (RFC 8200 section 5); raise that of ${options.uplink}`)
    const create = (path: string | undefined) => {
      const files = createCaptures(path, steering.workers, options.capture?.limitBytes)
      made.push(() => {
        for (const file of files) if (file !== undefined) closeCapture(file)
      })
      return files
    }
    const overlay = create(options.capture?.overlay)
    const captures = create(options.capture?.underlay)
    const devices = openDevices(underlay, options, steering)
    const expressDevices = () => {
      const place = { ...options, rung: underlay.offloadRung, pool: peers.pool, workers: steering.workers, log }
      return direct ? [] : openExpress(place).map((device, worker) => ({ device, capture: captures[worker] }))
    }
    const { flowLog } = options
    const journals = flowLog && createJournals(steering.workers)
    const workers = await Forwarders.start({
      config,
      tunnel,
      endpoints,
      steering,
      underlay: devices.map((device, worker) => ({ device, capture: captures[worker] })),
      express: options.paused ? [] : expressDevices(),
      seed: randomSeed(),
      flows: createTables(config, steering.workers),
      journals,
      paused: options.paused ?? false,
      peers,
    })
    forwarders = workers
    const names = {
      attachment: (number: number) => pods?.id(number) ?? '',
      pod: (number: number) => pods?.label(number) ?? '',
      endpoint: (number: number) => endpoints.nameOf(number) || undefined,
    }
    const journal = journals && flowLog && new FlowJournal(journals, flowLog, names)
    // NB: flows that are left to another process have not ended.
    made.push((leaving?: boolean) => journal?.close(leaving === true ? [] : workers.all.map(({ flows }) => flows)))
    const renewExpress = async () => {
      await workers.useExpress([])
      await workers.useExpress(expressDevices())
    }
    const directory = `${PIN_DIRECTORY}/node_${uplink.replaceAll('.', ':')}_${tunnel.port}_${namespaceId(namespace)}`
    const protectedMap = openProtectedMap(directory)
    protect(protectedMap, config.pods.protectedCidrs)
    made.push(leaving => leaving || unpin(directory))
    pods = new Pods({ config, forwarders, steering, protectedMap, captures: overlay, log })
    for (const pod of options.pods) await pods.attach(pod)
    const parts = { config, namespace, underlay, endpoints, forwarders, pods, journal }
    upkeep = new Upkeep({ ...parts, uplink: options.uplink, renewExpress, log })
    for (const pod of options.pods) upkeep.keep(pod)
    return running(parts, upkeep, takeAway)
  } catch (error) {
    await upkeep?.close()
    pods?.close()
    await forwarders?.stop().catch(() => {})
    takeAway(false)
    throw error
  }
}

function running(parts: NodeParts, upkeep: Upkeep, takeAway: (leaving: boolean) => void): RunningNode {
  const { config, endpoints, forwarders, pods } = parts
  let ended: Promise<void> | undefined
  async function end(leaving: boolean): Promise<void> {
    await upkeep.close()
    if (leaving) {
      await forwarders.receive(false).catch(() => {})
      pods.leave()
    }
    // Interception first, so that no packet is on its way to a worker that is gone.
    else pods.close()
    await forwarders.stop().finally(() => takeAway(leaving))
  }
  return {
    source: nodeSource(parts, upkeep),
    done: forwarders.done,
    status: () => endpoints.status(),
    alarms: () => upkeep.list(),
    attachment: id => pods.get(id),
    async reconfigure() {
      endpoints.reconfigure(config)
      await pods.reconfigure()
    },
    async setEndpoints(list) {
      endpoints.set(list)
    },
    pods: () => pods.list,
    async attach(pod) {
      await pods.attach(pod)
      upkeep.keep(pod)
    },
    async detach(id) {
      await upkeep.release(id)
      await pods.detach(id)
    },
    setFailMode: (id, failMode) => pods.setFailMode(id, failMode),
    async resume() {},
    stop() {
      ended ??= end(false)
      return ended
    },
    leave() {
      ended ??= end(true)
      return ended
    },
  }
}

/** The underlay as each worker opens it. */
function openDevices(underlay: Underlay, options: NodeOptions, steering: Steering): DeviceSpec['device'][] {
  const { profile, local = '', port } = options.config.tunnel
  if (underlay.offloadRung === 'udp-socket') {
    const [{ address: remote }] = configuredEndpoints(options.config)
    const sockets = { namespace: options.namespace, address: local, port, remote, kind: profile, steering }
    return openTunnelSockets(sockets).map(handle => ({ kind: 'udp', ...handle }))
  }
  return underlayDevices(underlay)
}
