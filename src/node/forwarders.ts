// The forwarding workers of a node, told together: each has frames, a flow table and counters of its own, and a queue of every device.

import { closeSync } from 'node:fs'
import type { Config } from '../control/config.ts'
import type { Peers } from '../control/peers.ts'
import type { WorkerCounters } from '../control/source.ts'
import { type RunningWorker, spawnWorker } from '../control/spawn.ts'
import type { AttachmentInput, ForwardInput, ForwardRequest, LiveSettings } from '../control/worker-input.ts'
import type { Seed } from '../flow/hash.ts'
import { createSharedFlowTable, openFlowTable, type SharedFlowTable } from '../flow/live.ts'
import { compile, type PolicyRule } from '../flow/policy.ts'
import type { Steering } from '../flow/steering.ts'
import { VERDICT } from '../flow/verdict.ts'
import { FlowView } from '../flow/view.ts'
import { type CountersHandle, readCounters } from '../memory/counters.ts'
import type { RecordsHandle } from '../memory/records.ts'
import { addressOf, eventfd, must, write } from '../os/libc.ts'
import type { TraceInput } from '../pipeline/trace.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import type { EndpointPool } from './endpoints.ts'

export interface ForwardersOptions {
  config: Config
  tunnel: TunnelConfig
  endpoints: EndpointPool
  steering: Steering
  /** The underlay's queue of each worker. */
  underlay: ForwardInput['underlay'][]
  /** The device for small packets of each worker that has one. */
  express: ForwardInput['express'][]
  /** One, because a flow is at home at one worker only if all agree on what a flow is. */
  seed: Seed
  /** The table of each worker; taken. */
  flows: SharedFlowTable[]
  /** Where each worker notes its flows, if it is to. */
  journals?: RecordsHandle[]
  /** They receive nothing before `receive`. */
  paused: boolean
  /** Taken, also when none starts. */
  peers: Peers
}

/** One of the workers, as the main thread sees it. */
export interface Forwarding {
  readonly name: string
  readonly flows: FlowView
  readonly table: SharedFlowTable
  readonly worker: RunningWorker
  /** The eventfd that wakes it; -1 when it has ended. */
  readonly bell: { fd: number }
  counters: CountersHandle
}

/** A flow table for each worker of a node: those of a predecessor, by the configuration of now, or new ones. Throws DetourError. */
export function tablesFor(
  { flows, pods }: Config,
  workers: number,
  inherited: SharedFlowTable[] | undefined,
): SharedFlowTable[] {
  const { capacity, tcpTimeoutSeconds, otherTimeoutSeconds } = flows
  const limits = { quota: pods.flows, tcpIdleMs: tcpTimeoutSeconds * 1000, idleMs: otherTimeoutSeconds * 1000 }
  return (
    inherited?.map(table => ({ ...table, ...limits })) ??
    Array.from({ length: workers }, () => createSharedFlowTable({ capacity, ...limits }))
  )
}

export class Forwarders {
  readonly all: readonly Forwarding[]
  private readonly peers: { close(): void }

  private constructor(all: Forwarding[], peers: { close(): void }) {
    this.all = all
    this.peers = peers
  }

  /** Starts the workers and resolves when all of them serve the underlay, or are ready to. Throws DetourError, and then none is left. */
  static async start(options: ForwardersOptions): Promise<Forwarders> {
    const { config, tunnel, endpoints, seed, steering, paused, peers } = options
    const started = options.flows.map((table, number) => {
      const bell = { fd: must(eventfd(), 'eventfd', 'worker') }
      const { handle, probe, mtu } = endpoints
      const pool = { endpoints: handle, probe, sendsProbes: number === 0, underlayMtu: mtu }
      const input: Omit<ForwardInput, 'port'> = {
        ...peers.inputs[number],
        steering,
        underlay: options.underlay[number],
        express: options.express[number],
        flows: table,
        forwarder: { tunnel, ...pool, seed, policy: policyOf(config), journal: options.journals?.[number] },
        paused,
        wakeFd: bell.fd,
        ...paceOf(config),
      }
      const name = steering.workers === 1 ? 'forward' : `forward-${number}`
      const wake = () => void write(bell.fd, addressOf(RING), RING.byteLength)
      const worker = spawnWorker('forward', input, { name, wake })
      return { name, flows: new FlowView(openFlowTable(table).handle), table, worker, bell }
    })
    try {
      const ready = started.map(async one => ({ ...one, counters: (await one.worker.ready) as CountersHandle }))
      return new Forwarders(await Promise.all(ready), peers)
    } catch (error) {
      await Promise.allSettled(started.map(one => one.worker.stop()))
      close(started, peers)
      throw error
    }
  }

  /** Settles when all have ended; rejects as soon as one has failed. */
  get done(): Promise<void> {
    return Promise.all(this.all.map(one => one.worker.done)).then(() => {})
  }

  /** Has every worker serve its queue of a pod's device; resolves when they do. */
  async attach(inputs: AttachmentInput[]): Promise<void> {
    await this.ask(number => ({ attach: inputs[number] }))
  }

  /** Has every worker close its queue. */
  async detach(attachment: number): Promise<void> {
    await this.ask(() => ({ detach: attachment }))
  }

  /** Has every worker send small packets by its device of these, or by none; resolves when they have closed the last ones. */
  async useExpress(devices: ForwardInput['express'][]): Promise<void> {
    await this.ask(number => ({ express: devices[number] }))
  }

  /** Has every worker tell of packets, each by its own records, or no more. */
  async trace(inputs: TraceInput[] | undefined): Promise<void> {
    await this.ask(number => ({ trace: inputs?.[number] }))
  }

  /** Has every worker go by the configuration of now, as far as that may change while packets flow. */
  async reconfigure(config: Config): Promise<void> {
    const settings = { policy: policyOf(config), pace: paceOf(config) }
    await this.ask(() => ({ settings }))
  }

  /** Has every worker go by these fail modes of attachments while the endpoint is down. */
  async useFailModes(failModes: LiveSettings['failModes']): Promise<void> {
    await this.ask(() => ({ settings: { failModes } }))
  }

  /** Has every worker take over what was published of the endpoints, and probe them in this way. */
  async useEndpoints({ probe }: EndpointPool): Promise<void> {
    await this.ask(() => ({ settings: { probe } }))
  }

  /** Has every worker begin. */
  async receive(): Promise<void> {
    await this.ask(() => ({ receive: true }))
  }

  /** Has every worker receive no more, send what it has, and be paused. */
  async rest(): Promise<void> {
    await this.ask(() => ({ receive: false }))
    // None receives any more, so what is still on its way between them is the last.
    await this.ask(() => ({ rest: true }))
  }

  /** What the workers last published. */
  counters(): WorkerCounters[] {
    return this.all.map(({ name, counters }) => ({ worker: name, stages: readCounters(counters) }))
  }

  /** Flows that go to the endpoint of that number. */
  flowsTo(endpoint: number): number {
    return this.all.reduce((sum, { flows }) => sum + flows.countTo(endpoint), 0)
  }

  /** Ends all workers; called once. Rejects when one had failed. */
  async stop(): Promise<void> {
    const ended = await Promise.allSettled(this.all.map(one => one.worker.stop()))
    close(this.all, this.peers)
    for (const one of ended) if (one.status === 'rejected') throw one.reason
  }

  private async ask(request: (number: number) => ForwardRequest): Promise<void> {
    const answers = await Promise.allSettled(this.all.map((one, number) => one.worker.ask(request(number))))
    for (const [number, answer] of answers.entries()) {
      if (answer.status === 'fulfilled') this.all[number].counters = answer.value as CountersHandle
    }
    for (const answer of answers) if (answer.status === 'rejected') throw answer.reason
  }
}

const policyOf = ({ bypass }: Config) => compile(bypass.map(bypassRule), VERDICT.STEER, 'bypass')

/** How the bypass rules are called, by their numbers. */
export const bypassNames = ({ bypass }: Config) => bypass.map(rule => bypassRule(rule).name)

/** The longest time between two heartbeats is a quarter of the limit. */
const paceOf = ({ heartbeatLimitMs, polling }: Config) => ({
  tickMs: Math.min(50, Math.max(5, Math.floor(heartbeatLimitMs / 4))),
  polling,
})

const RING = BigUint64Array.of(1n)

function close(all: readonly Pick<Forwarding, 'bell' | 'table'>[], peers: { close(): void }): void {
  for (const { bell, table } of all) {
    closeSync(bell.fd)
    bell.fd = -1
    closeSync(table.fd)
  }
  peers.close()
}

/** A bypass rule passes both directions of the flows that it describes by their first packet. */
function bypassRule(rule: Config['bypass'][number]): PolicyRule {
  const { name, cidr, from, protocol, port } = rule
  return {
    name: name ?? [protocol, cidr, port, from && `from ${from}`].filter(part => part !== undefined).join(' '),
    ...(cidr === undefined ? {} : { to: [cidr].flat() }),
    ...(from === undefined ? {} : { from: [from].flat() }),
    ...(protocol === undefined ? {} : { protocol }),
    ...(port === undefined ? {} : { ports: [port] }),
    verdict: VERDICT.PASS,
  }
}
