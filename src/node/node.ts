// A node: opens the underlay, starts the forwarding workers, attaches pods and answers for all of it.

import { createCaptures } from '../control/captures.ts'
import { type Config, type EndpointConfig, workerCount } from '../control/config.ts'
import type { FlowLog } from '../control/flow-log.ts'
import { createPeers } from '../control/peers.ts'
import type { Source } from '../control/source.ts'
import { closeCapture } from '../device/pcap.ts'
import { DetourError } from '../errors.ts'
import { randomSeed } from '../flow/hash.ts'
import type { Steering } from '../flow/steering.ts'
import { unpin } from '../os/bpf.ts'
import type { FailMode } from '../os/heartbeat.ts'
import { namespaceId } from '../os/netns.ts'
import type { ProbeOptions } from '../pipeline/probe.ts'
import { innerMtu } from '../pipeline/tunnel.ts'
import type { Alarm } from './alarm.ts'
import { type Attachment, PIN_DIRECTORY } from './attachment.ts'
import { openCarriers } from './carriers.ts'
import { EndpointPool, tunnelOf } from './endpoints.ts'
import { openExpress } from './express.ts'
import { Forwarders, tablesFor } from './forwarders.ts'
import { type Change, difference, INHERITANCE_VERSION, type Inheritance, type Place } from './handover.ts'
import { createJournals, FlowJournal } from './journal.ts'
import { type PodOptions, Pods } from './pods.ts'
import { openProtectedMap, protect } from './prefixes.ts'
import { Running } from './running.ts'

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
  /** Receives no more, and has sent all that it had: paused again. What it has open may be another's now. */
  rest(): Promise<void>
  /** What a successor needs; the descriptors stay this node's, too. Undefined where no other process can go on with it. */
  inheritance(): Inheritance | undefined
  /** Tells of what changes of that, until what is returned is called. */
  watch(listener: (change: Change) => void): () => void
  /** How long ago the worker of each attachment that is silent for longest was heard, ms, in whatever process it is. */
  heartbeatAges(): number[]
  /** Of a paused node: knows what has changed of the one that it inherits from; takes the descriptors. */
  follow(change: Change): Promise<void>
  /** Takes the interception away, lets the workers finish and leaves every interface as it was found. */
  stop(): Promise<void>
  /** Ends, but leaves interception as it is: for a successor that has inherited it, or one that will adopt it; until then the fail mode holds. */
  leave(): Promise<void>
}

/**
 * Starts a node and resolves when packets flow, or when they would if it were resumed. Throws DetourError and leaves nothing behind, or all
 * to the predecessor.
 */
export async function startNode(options: NodeOptions): Promise<RunningNode> {
  const { config, namespace, uplink, probe, flowLog, inherit, log = () => {} } = options
  const tunnel = tunnelOf(config)
  const workers = workerCount(config.workers)
  const steering: Steering = { workers, seed: inherit ? Int32Array.from(inherit.steeringSeed) : randomSeed() }
  const seed = inherit ? Int32Array.from(inherit.seed) : randomSeed()
  const place = placeOf(options, workers)
  const differs = inherit && difference(place, inherit.place)
  if (differs) throw new DetourError('unsupported', `another node cannot be taken over: it has another ${differs}`)
  /** What to take away again, first made last; or to leave to another process. */
  const made: ((leaving: boolean) => void)[] = []
  const takeAway = (leaving: boolean) => {
    for (const step of made.splice(0).reverse()) step(leaving)
  }
  let forwarders: Forwarders | undefined
  let pods: Pods | undefined
  let node: Running | undefined
  try {
    const peers = createPeers(workers, FRAMES, SMALL_FRAMES)
    made.push(() => peers.close())
    const carriers = openCarriers(options, tunnel, steering, peers.pool, inherit)
    const { underlay } = carriers
    made.push(leaving => (leaving ? underlay.leave() : underlay.close()))
    const direct = underlay.offloadRung === 'af-xdp'
    const by = direct ? `AF_XDP (${underlay.features.join(', ')})` : (underlay.attachRung ?? 'a socket')
    log(`underlay ${uplink}: offload rung ${underlay.offloadRung}, attached by ${by}`)
    if (workers > 1) log(`${workers} workers share the flows`)
    const numbers = inherit && new Map(inherit.endpoints)
    const mtu = underlay.uplinkMtu
    const endpoints = new EndpointPool({ config, tunnel, namespace, uplink, mtu, direct, probe, numbers })
    made.push(() => endpoints.close())
    for (const address of direct ? await endpoints.find(NEXT_HOP_MS) : [])
      log(`the next hop toward ${address} does not answer: packets are dropped until it does`)
    const inner = innerMtu(tunnel, endpoints.mtu)
    if (inner < IPV6_MINIMUM_MTU)
      log(`inner MTU ${inner}: IPv6 needs ${IPV6_MINIMUM_MTU} (RFC 8200 section 5); raise that of ${uplink}`)
    const create = (path: string | undefined) => {
      const files = createCaptures(path, workers, options.capture?.limitBytes)
      made.push(() => {
        for (const file of files) if (file !== undefined) closeCapture(file)
      })
      return files
    }
    const overlay = create(options.capture?.overlay)
    const captures = create(options.capture?.underlay)
    const express = () => {
      if (direct) return []
      const devices = openExpress({ ...options, rung: underlay.offloadRung, pool: peers.pool, workers, log })
      return devices.map((device, worker) => ({ device, capture: captures[worker] }))
    }
    const journals = flowLog && createJournals(workers)
    const running = await Forwarders.start({
      ...{ config, tunnel, endpoints, steering, seed, journals, peers },
      underlay: carriers.devices.map((device, worker) => ({ device, capture: captures[worker] })),
      express: [],
      flows: tablesFor(config, workers, inherit?.flows),
      paused: true,
    })
    forwarders = running
    const names = {
      attachment: (number: number) => pods?.id(number) ?? '',
      pod: (number: number) => pods?.label(number) ?? '',
      endpoint: (number: number) => endpoints.nameOf(number) || undefined,
    }
    const journal = journals && flowLog && new FlowJournal(journals, flowLog, names)
    // NB: flows that are left to another process have not ended.
    made.push(leaving => journal?.close(leaving ? [] : running.all.map(({ flows }) => flows)))
    const directory = `${PIN_DIRECTORY}/node_${uplink.replaceAll('.', ':')}_${tunnel.port}_${place.namespace}`
    const protectedMap = inherit?.protectedFd ?? openProtectedMap(directory)
    protect(protectedMap, config.pods.protectedCidrs)
    made.push(leaving => leaving || unpin(directory))
    const listeners = new Set<(change: Change) => void>()
    const changed = (change: Change) => {
      for (const listener of listeners) listener(change)
    }
    pods = new Pods({ config, forwarders, steering, protectedMap, captures: overlay, log, changed })
    const reattach = () => {
      underlay.reattach()
      const tap = underlay.parts()?.tap
      if (tap !== undefined) changed({ uplink: tap.programs })
    }
    const parts = { config, namespace, underlay: { ...underlay, reattach }, endpoints, forwarders, pods, journal }
    const inheritance = (): Inheritance | undefined => {
      const ofUnderlay = underlay.parts()
      if (ofUnderlay === undefined || pods === undefined) return undefined
      return {
        ...{
          place,
          steeringSeed: [...steering.seed],
          seed: [...seed],
          underlay: ofUnderlay,
          sockets: carriers.sockets,
        },
        ...{ flows: running.all.map(({ table }) => table), endpoints: [...endpoints.numbers()] },
        ...{ protectedFd: protectedMap, pods: pods.parts() },
      }
    }
    node = new Running({ ...parts, uplink, express, inheritance, listeners, changed, takeAway, log })
    for (const pod of inherit?.pods ?? []) await pods.inherit(pod)
    if (!options.paused) await node.resume()
    for (const pod of inherit === undefined ? options.pods : []) await node.attach(pod)
    return node
  } catch (error) {
    const leaving = inherit !== undefined
    await node?.halt()
    if (leaving) pods?.leave()
    else pods?.close()
    await forwarders?.stop().catch(() => {})
    takeAway(leaving)
    throw error
  }
}

function placeOf({ config, namespace, uplink }: NodeOptions, workers: number): Place {
  const { profile, local = '', port } = config.tunnel
  const { offload: rung } = config.rungs
  return {
    ...{ version: INHERITANCE_VERSION, workers, namespace: namespaceId(namespace), uplink },
    ...{ profile, local, port, rung },
  }
}
