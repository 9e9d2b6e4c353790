// A node: opens the underlay, attaches pods, starts the forwarding worker and answers for all of it.

import { closeSync } from 'node:fs'
import { capabilityNames } from '../device/device.ts'
import type { DeviceSpec } from '../device/open.ts'
import { closeCapture, createCapture, type OutputFile } from '../device/pcap.ts'
import { openUdp } from '../device/udp.ts'
import { randomSeed } from '../flow/hash.ts'
import { compile, type PolicyRule } from '../flow/policy.ts'
import { createFlowTable } from '../flow/table.ts'
import { VERDICT } from '../flow/verdict.ts'
import { FlowView } from '../flow/view.ts'
import { type CountersHandle, readCounters } from '../memory/counters.ts'
import { createPool, HEADROOM, SUPER_FRAME } from '../memory/pool.ts'
import { inNamespace, queueDrops } from '../os/netns.ts'
import type { ProbeOptions } from '../pipeline/probe.ts'
import { innerMtu } from '../pipeline/tunnel.ts'
import { type Attachment, attach, createProtectedMap, macBytes } from './attachment.ts'
import type { Config } from './config.ts'
import { flowRows } from './flows.ts'
import { type AttachmentRow, type Source, selectFlows } from './source.ts'
import { spawnWorker } from './spawn.ts'
import { tunnelConfig } from './tunnel.ts'
import { openUnderlay, type Underlay } from './underlay.ts'
import type { ForwardInput } from './worker-input.ts'

/** Frames of a worker's pool: a batch each way, what rings and answers hold, and room to spare. */
const FRAMES = 1024

const IPV6_MINIMUM_MTU = 1280

/** The probe that tells whether the endpoint answers. */
export const DEFAULT_PROBE: ProbeOptions = { intervalMs: 100, limitMs: 350 }

/** A pod interface to protect. */
export interface PodOptions {
  /** Names the attachment, and its pins. */
  id: string
  /** Name or path of the network namespace. */
  namespace: string
  interface?: string
}

export interface NodeOptions {
  config: Config
  /** Namespace of the uplink; empty for the current one. */
  namespace: string
  /** Interface toward the endpoint. */
  uplink: string
  pods: PodOptions[]
  probe?: ProbeOptions
  /** Capture files for what pods send and get, and for what the underlay carries. */
  capture?: { overlay?: string; underlay?: string; limitBytes?: number }
  /** Takes a line for each choice that was made. */
  log?: (line: string) => void
}

export interface RunningNode {
  readonly source: Source
  /** Settles when the worker has ended; rejects when it failed. */
  readonly done: Promise<void>
  /** What the worker last published: whether the endpoint answers, and its probes. */
  status(): { endpointUp: boolean; probesSent: number; probesAnswered: number }
  /** Takes the interception away, lets the worker finish and leaves every interface as it was found. */
  stop(): Promise<void>
}

/** Starts a node and resolves when packets flow. Throws DetourError and leaves nothing behind. */
export async function startNode(options: NodeOptions): Promise<RunningNode> {
  const { config, log = () => {} } = options
  const tunnel = tunnelConfig(config.tunnel)
  /** What to take away again, first made last. */
  const made: (() => void)[] = []
  const takeAway = () => {
    for (const step of made.splice(0).reverse()) step()
  }
  try {
    const underlay = openUnderlay({
      namespace: options.namespace,
      interface: options.uplink,
      localAddress: config.tunnel.local ?? '',
      port: tunnel.port,
      rung: config.rungs.offload,
      attach: config.rungs.attach,
    })
    made.push(() => underlay.close())
    log(
      `underlay ${options.uplink}: offload rung ${underlay.offloadRung}, attached by ${underlay.attachRung ?? 'a socket'}`,
    )
    const mtu = innerMtu(tunnel, underlay.uplinkMtu)
    if (mtu < IPV6_MINIMUM_MTU)
      log(`inner MTU ${mtu}: IPv6 needs ${IPV6_MINIMUM_MTU} (RFC 8200 section 5); raise that of ${options.uplink}`)
    const captures = openCaptures(options)
    made.push(() => captures.close())
    const protectedMap = createProtectedMap()
    made.push(() => closeSync(protectedMap))
    const attachments: Attachment[] = []
    const detachAll = () => {
      for (const attachment of attachments) attachment.detach()
    }
    made.push(detachAll)
    for (const pod of options.pods) {
      const { failMode, heartbeatLimitMs, rungs } = config
      const attachment = attach({ ...pod, failMode, heartbeatLimitMs, protectedMap, rung: rungs.attach })
      attachments.push(attachment)
      const capabilities = capabilityNames(attachment.capabilities).join(' ')
      log(
        `attachment ${pod.id}: ${attachment.interface} by ${attachment.rung}, fail-${failMode}, TAP with ${capabilities}`,
      )
    }

    const flows = createFlowTable({
      capacity: config.flows.capacity,
      tcpIdleMs: config.flows.tcpTimeoutSeconds * 1000,
      idleMs: config.flows.otherTimeoutSeconds * 1000,
    })
    const status = new SharedArrayBuffer(16)
    const input: Omit<ForwardInput, 'port'> = {
      pool: createPool({ frames: FRAMES, frameSize: SUPER_FRAME, headroom: HEADROOM }),
      underlay: underlayDevice(underlay, options, captures.underlay),
      attachments: attachments.map((attachment, number) => ({
        attachment: number,
        device: podDevice(attachment, captures.overlay),
        mac: [...macBytes(attachment.mac)],
        failMode: config.failMode,
        heartbeatFd: attachment.mapFd,
      })),
      forwarder: {
        tunnel,
        underlayMtu: underlay.uplinkMtu,
        flows,
        seed: randomSeed(),
        policy: compile(config.bypass.map(bypassRule), VERDICT.STEER, 'bypass'),
        probe: options.probe ?? DEFAULT_PROBE,
      },
      heartbeatLimitMs: config.heartbeatLimitMs,
      tickMs: Math.min(50, Math.max(5, Math.floor(config.heartbeatLimitMs / 4))),
      status,
    }
    const worker = spawnWorker('forward', input)
    const counters = (await worker.ready) as CountersHandle
    const words = new Int32Array(status)
    return {
      source: nodeSource(options, underlay, attachments, counters, new FlowView(flows)),
      done: worker.done,
      status: () => ({ endpointUp: words[0] === 1, probesSent: words[1], probesAnswered: words[2] }),
      async stop() {
        // Interception first, so that no packet is on its way to a worker that is gone.
        detachAll()
        await worker.stop().finally(takeAway)
      },
    }
  } catch (error) {
    takeAway()
    throw error
  }
}

interface Captures {
  overlay: OutputFile | undefined
  underlay: OutputFile | undefined
  close(): void
}

function openCaptures({ capture }: NodeOptions): Captures {
  const create = (path: string | undefined): OutputFile | undefined =>
    path === undefined ? undefined : { ...createCapture(path), limitBytes: capture?.limitBytes }
  const files = { overlay: create(capture?.overlay), underlay: create(capture?.underlay) }
  const close = () => {
    for (const file of Object.values(files)) if (file !== undefined) closeCapture(file)
  }
  return { ...files, close }
}

function podDevice(attachment: Attachment, capture: OutputFile | undefined): DeviceSpec {
  const { tapName, tapFd, headerSize, capabilities, id } = attachment
  const device = { kind: 'tap' as const, name: `${id}:${tapName}`, fd: tapFd, headerSize, capabilities }
  return capture === undefined ? { device } : { device, capture }
}

function underlayDevice(underlay: Underlay, options: NodeOptions, capture: OutputFile | undefined): DeviceSpec {
  const { local, remote } = options.config.tunnel
  const device: DeviceSpec['device'] =
    underlay.offloadRung === 'udp-socket'
      ? {
          kind: 'udp',
          ...inNamespace(options.namespace, () =>
            openUdp({ address: local ?? '', port: options.config.tunnel.port, remote }),
          ),
        }
      : {
          kind: 'tap',
          name: underlay.tapName,
          fd: underlay.fd,
          headerSize: underlay.headerSize,
          capabilities: underlay.capabilities,
        }
  return capture === undefined ? { device } : { device, capture }
}

/** A bypass rule passes what goes to the far side it names, whichever side opened the flow. */
function bypassRule(rule: Config['bypass'][number]): PolicyRule {
  const { cidr, protocol, port } = rule
  return {
    name: [protocol, cidr, port].filter(part => part !== undefined).join(' '),
    ...(cidr === undefined ? {} : { to: [cidr] }),
    ...(protocol === undefined ? {} : { protocol }),
    ...(port === undefined ? {} : { ports: [port] }),
    verdict: VERDICT.PASS,
  }
}

function nodeSource(
  options: NodeOptions,
  underlay: Underlay,
  attachments: readonly Attachment[],
  counters: CountersHandle,
  view: FlowView,
): Source {
  const { config } = options
  const stages = readCounters(counters)
  const attachmentId = (number: number) => attachments[number]?.id ?? ''
  return {
    info: () => ({ face: 'node', profile: config.tunnel.profile }),
    counters: () => [{ worker: 'forward', stages }],
    flows: query => selectFlows(flowRows(view, 'forward', attachmentId), query, view.capacity),
    attachments: () => attachments.map(attachment => attachmentRow(attachment, config)),
    underlay: () => [
      {
        device: underlay.offloadRung === 'udp-socket' ? `udp:${config.tunnel.port}` : `tap:${underlay.tapName}`,
        profile: config.tunnel.profile,
        local: config.tunnel.local ?? '',
        remote: config.tunnel.remote ?? '',
        port: config.tunnel.port,
        vni: config.tunnel.vni,
        mtu: underlay.uplinkMtu,
        rung: underlay.offloadRung,
        capabilities: capabilityNames(underlay.capabilities),
        missed: underlay.tapName === '' ? undefined : queueDrops(underlay.tapName, options.namespace),
      },
    ],
  }
}

function attachmentRow(attachment: Attachment, config: Config): AttachmentRow {
  const { passed, dropped } = attachment.failCounters()
  return {
    id: attachment.id,
    namespace: attachment.namespace,
    interface: attachment.interface,
    mac: attachment.mac,
    addresses: [...attachment.addresses],
    mtu: attachment.mtu,
    failMode: config.failMode,
    heartbeatAgeMs: attachment.heartbeatAgeMs(),
    heartbeatLimitMs: config.heartbeatLimitMs,
    attachRung: attachment.rung,
    offloadRung: capabilityNames(attachment.capabilities).join(' '),
    failPassed: passed,
    failDropped: dropped,
    missed: queueDrops(attachment.tapName, attachment.namespace),
  }
}
