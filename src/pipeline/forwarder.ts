// The node's two legs: toward the endpoint (from each pod's device) and the return (from the underlay).

import type { Device } from '../device/device.ts'
import { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import { keepJournal } from '../flow/journal.ts'
import type { FlowTableHandle } from '../flow/layout.ts'
import { Policy, type PolicyHandle } from '../flow/policy.ts'
import { FlowTable } from '../flow/table.ts'
import { Batch } from '../memory/batch.ts'
import type { Counters } from '../memory/counters.ts'
import { ENDPOINT, ENDPOINT_NUMBERS, ENDPOINT_STATE, oneEndpoint } from '../memory/endpoints.ts'
import { createHealth } from '../memory/health.ts'
import type { Pool } from '../memory/pool.ts'
import type { RecordsHandle } from '../memory/records.ts'
import { monotonicMs } from '../os/clock.ts'
import { DESTINATION, SOURCE } from '../wire/ethernet.ts'
import { ARRIVING, AttachmentIndex, LEAVING, MAX_ATTACHMENTS, PROBE_ATTACHMENT } from './attachments.ts'
import { Classify } from './classify.ts'
import { Complete } from './complete.ts'
import { Decap } from './decap.ts'
import { Decide } from './decide.ts'
import { Encap } from './encap.ts'
import { Endpoints, type EndpointsHandle } from './endpoints.ts'
import { Fit } from './fit.ts'
import type { Handover } from './handover.ts'
import { Links } from './links.ts'
import type { Leg } from './loop.ts'
import { Outlet } from './outlet.ts'
import { PROBE_MAC, PROBE_SOURCE, Probe, type ProbeOptions } from './probe.ts'
import { Restore } from './restore.ts'
import { Split } from './split.ts'
import { STEP, type TracedStage, type TraceInput, Tracer } from './trace.ts'
import { innerMtu, type TunnelConfig } from './tunnel.ts'

export interface ForwarderOptions {
  tunnel: TunnelConfig
  /** MTU of the underlay in bytes, where there are no endpoints but the tunnel's remote. */
  underlayMtu: number
  /** The pool of endpoints, which the main thread keeps; without it, the tunnel's remote is the only one. */
  endpoints?: EndpointsHandle
  flows: FlowTableHandle
  seed: Seed
  policy: PolicyHandle
  probe: ProbeOptions
  /** False where another worker sends the probes; true when not given. */
  sendsProbes?: boolean
  /** Takes a record of each flow that begins or ends. */
  journal?: RecordsHandle
}

/** A pod's device, its leg toward the endpoint, and what came back for it in this breath. */
interface Pod {
  leg: Leg
  out: Complete
  returned: Batch
}

/** Both legs of one worker: that thread only. */
export class Forwarder {
  readonly table: FlowTable
  readonly underlayLeg: Leg
  private readonly pool: Pool
  private readonly counters: Counters
  private readonly tunnel: TunnelConfig
  private readonly fragments = new FragmentTable()
  private readonly index: AttachmentIndex
  /** Where packets travel without their link headers. */
  private readonly links: Links | undefined
  private readonly classify: Classify
  private readonly decide: Decide
  private readonly fit: Fit
  private readonly encap: Encap
  private readonly restore: Restore
  private readonly handover: Handover | undefined
  private readonly decap: Decap
  private readonly probe: Probe
  private readonly endpoints: Endpoints
  private readonly underlayOut: Outlet
  private readonly direct: boolean
  private readonly podCounters: ReturnType<Counters['stage']>
  /** Frames for the device that they came from: local, passed, ICMP answers. */
  private readonly back = new Batch()
  private readonly pods: (Pod | undefined)[] = []
  private readonly touched = new Batch(MAX_ATTACHMENTS)
  private readonly split: Split
  private readonly tracedSplit: Split
  private tracer: Tracer | undefined

  /**
   * `handover` where there are other workers, `express` where small packets leave by a device of their own, `direct` where the
   * underlay itself sends past the kernel: then nothing leaves while the next hop is not known.
   */
  constructor(
    pool: Pool,
    counters: Counters,
    underlay: Device,
    options: ForwarderOptions,
    { handover, express, direct = false }: { handover?: Handover; express?: Device; direct?: boolean } = {},
  ) {
    this.pool = pool
    this.counters = counters
    this.tunnel = options.tunnel
    this.direct = direct
    this.table = new FlowTable(options.flows)
    this.index = new AttachmentIndex(pool)
    const { fragments, table, index, back } = this
    const { tunnel, seed } = options
    const mtu = innerMtu(tunnel, options.underlayMtu)
    const { endpoints: handle = onlyEndpoint(tunnel, options.underlayMtu, seed), sendsProbes = true } = options
    const endpoints = new Endpoints(handle)
    this.endpoints = endpoints
    this.classify = new Classify(pool, counters.stage('classify'), {
      fragments,
      seed,
      withAttachment: true,
      local: back,
      table,
    })
    const failClosed = new Uint8Array(MAX_ATTACHMENTS)
    const policy = new Policy(options.policy)
    this.decide = new Decide(pool, counters.stage('decide'), table, policy, back, failClosed, endpoints)
    this.fit = new Fit(pool, counters.stage('fit'), mtu, back)
    const links = tunnel.inner === 'ip' ? new Links(pool, options.flows.capacity, PROBE_SOURCE) : undefined
    this.links = links
    this.encap = new Encap(pool, counters.stage('encap'), tunnel, links)
    const outlet = new Outlet(pool, counters.stage('complete underlay'), underlay, express)
    this.underlayOut = outlet
    // NB: not by the express device, or the kernel would forget the next hop, which it confirms for its own packets only.
    const sendProbes = (batch: Batch) => outlet.main.run(batch)
    this.probe = new Probe(pool, this.encap, endpoints, handle.health, sendProbes, options.probe, sendsProbes)
    if (options.probe.intervalMs > 0) index.set(PROBE_ATTACHMENT, PROBE_MAC)
    const decapOptions = { anyPeer: false, keep: false, anyInner: false }
    this.decap = new Decap(pool, counters.stage('decap'), tunnel, decapOptions)
    const probes = this.probe.returned
    const checksCookie = tunnel.options?.mustReturn
    const attachments = links ?? index
    const restoreOptions = { table, fragments, seed, attachments, probes, handover, links, checksCookie }
    this.restore = new Restore(pool, counters.stage('restore'), restoreOptions)
    this.handover = handover
    this.podCounters = counters.stage('complete pod')
    const splitCounters = counters.stage('split')
    this.split = new Split(pool, splitCounters, batch => this.comeBack(batch))
    this.tracedSplit = new Split(pool, splitCounters, batch => this.comeBackTraced(batch))
    this.underlayLeg = { device: underlay, run: this.underlayRun() }
    if (options.journal !== undefined) keepJournal(table, options.journal)
    this.follow()
  }

  /** Serves a pod's device; returns the leg for the loop. Attachment numbers are below MAX_ATTACHMENTS. */
  attach(attachment: number, device: Device, mac: Uint8Array, failClosed: boolean): Leg {
    const out = new Complete(this.pool, this.podCounters, device)
    const leg = { device, run: this.podRun(attachment, out) }
    this.pods[attachment] = { leg, out, returned: new Batch() }
    this.index.set(attachment, mac)
    this.table.setGone(attachment, false)
    this.useFailMode(attachment, failClosed)
    return leg
  }

  /** Serves it no more, and returns its device. */
  detach(attachment: number): Device | undefined {
    const pod = this.pods[attachment]
    this.pods[attachment] = undefined
    this.index.delete(attachment)
    this.links?.delete(attachment)
    this.table.setGone(attachment, true)
    return pod?.leg.device
  }

  /** Has packets told of from now on, until all that were asked for are, or no more. */
  trace(input: TraceInput | undefined): void {
    const { pool, counters, table, back } = this
    this.tracer = input && new Tracer({ pool, counters, table, aside: back }, input)
    for (const [attachment, pod] of this.pods.entries()) {
      if (pod !== undefined) pod.leg.run = this.podRun(attachment, pod.out)
    }
    this.underlayLeg.run = this.underlayRun()
  }

  // NB: a leg is another function while it is traced, so that those that are not do not even ask.
  private podRun(attachment: number, out: Complete): Leg['run'] {
    const { tracer, back } = this
    if (tracer?.wants(attachment) !== true) return batch => this.goOut(batch, attachment, out)
    const stages: TracedStage[] = [
      { step: STEP.RECEIVE, run: batch => this.admit(batch, attachment) },
      { step: STEP.CLASSIFY, run: this.classify.run },
      { step: STEP.DECIDE, run: this.decide.run },
      { step: STEP.FIT, run: this.fit.run },
      { step: STEP.ENCAP, run: this.encap.run },
    ]
    return batch => {
      tracer.run(0, batch, stages, this.sendOut)
      if (back.length > 0) out.run(back)
    }
  }

  private underlayRun(): Leg['run'] {
    const split = this.tracer === undefined ? this.split : this.tracedSplit
    return batch => split.run(batch)
  }

  /** Has new flows decided by this policy. */
  usePolicy(policy: PolicyHandle): void {
    this.decide.policy = new Policy(policy)
  }

  /** Has endpoints probed and judged in this way. */
  useProbe(options: ProbeOptions): void {
    this.probe.use(options)
  }

  /** What becomes of an attachment's packets while no endpoint may have them. */
  useFailMode(attachment: number, closed: boolean): void {
    this.decide.failClosed[attachment] = closed ? 1 : 0
  }

  /** Takes over who the endpoints are and what is known of the ways to them. */
  private follow(): void {
    const { view } = this.endpoints
    const { expressOpen } = this.underlayOut
    this.fit.follow(view, this.tunnel)
    this.encap.follow(view, this.direct)
    this.decap.follow(view)
    for (let number = 1; number < ENDPOINT_NUMBERS; number++) {
      const state = view.words[number * ENDPOINT.WORDS + ENDPOINT.STATE]
      expressOpen[number] = (state & ENDPOINT_STATE.HOP) === 0 ? 0 : 1
    }
  }

  /** Has small packets leave by this device from now on, or with all others; the last one is its owner's to close. */
  useExpress(device: Device | undefined): void {
    this.underlayOut.useExpress(device)
  }

  /** Whether an endpoint answers. */
  get endpointUp(): boolean {
    return this.endpoints.usableCount > 0
  }

  get probes(): { sent: number; answered: number } {
    return this.probe
  }

  /** Once a tick: time, expiry, endpoints and their probes. `now` in ms of performance.now(). */
  tick(now: number): void {
    this.table.now = monotonicMs()
    this.table.expire(EXPIRE_BUDGET)
    this.probe.tick(now)
    if (this.endpoints.refresh()) this.follow()
    this.underlayOut.tick()
    if (this.tracer?.ended === true) this.trace(undefined)
  }

  private readonly goOut = (batch: Batch, attachment: number, out: Complete): void => {
    const { back } = this
    this.admit(batch, attachment)
    this.classify.run(batch)
    this.decide.run(batch)
    this.fit.run(batch)
    this.encap.run(batch)
    this.sendOut(batch)
    if (back.length > 0) out.run(back)
  }

  private readonly sendOut = (batch: Batch): void => {
    if (batch.length > 0) this.underlayOut.run(batch)
  }

  private readonly admit = (batch: Batch, attachment: number): void => {
    const { pool, index, back } = this
    const { frames, length } = batch
    let kept = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const from = index.find(pool.start[frame] + SOURCE)
      const foreign = from >= 0 && from !== attachment && from !== PROBE_ATTACHMENT
      // Each packet is inspected once, where it leaves; steered here too, it would come back to where it left.
      if (foreign && index.find(pool.start[frame] + DESTINATION) === attachment) {
        back.push(frame)
        continue
      }
      // NB: a frame that neither leaves nor arrives by its addresses (promiscuous, group) arrives.
      pool.direction[frame] = from === attachment ? LEAVING : ARRIVING
      pool.attachment[frame] = attachment
      frames[kept++] = frame
    }
    batch.length = kept
  }

  private readonly comeBack = (batch: Batch): void => {
    this.decap.run(batch)
    this.restore.run(batch)
    this.handOut(batch)
  }

  private comeBackTraced(batch: Batch): void {
    const stages = [
      { step: STEP.DECAP, run: this.decap.run },
      { step: STEP.RESTORE, run: this.restore.run },
    ]
    this.tracer?.run(1, batch, stages, this.handOut)
  }

  private readonly handOut = (batch: Batch): void => {
    this.handover?.flush()
    this.deliver(batch)
  }

  /** Legs for what other workers hand over. */
  get strayLegs(): Leg[] {
    const restore = (batch: Batch) => this.restore.runStrays(batch)
    const run = (batch: Batch) => {
      if (this.tracer !== undefined) {
        this.tracer.run(1, batch, [{ step: STEP.RESTORE, run: restore }], this.deliver)
        return
      }
      restore(batch)
      this.deliver(batch)
    }
    return this.handover?.legs(run) ?? []
  }

  private readonly deliver = (batch: Batch): void => {
    const { pool, pods, touched } = this
    const { frames, length } = batch
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const attachment = pool.attachment[frame]
      const pod = pods[attachment] as Pod
      if (pod.returned.length === 0) touched.push(attachment)
      pod.returned.push(frame)
    }
    batch.length = 0
    for (let i = 0; i < touched.length; i++) {
      const pod = pods[touched.frames[i]] as Pod
      pod.out.run(pod.returned)
    }
    touched.length = 0
    this.probe.collect()
  }
}

/** Flow rows looked at in a tick: at a tick of 50 ms a million rows take 13 s. */
const EXPIRE_BUDGET = 4096

/** The pool of the tunnel's remote alone. */
function onlyEndpoint(tunnel: TunnelConfig, underlayMtu: number, seed: Seed): EndpointsHandle {
  return { table: oneEndpoint(tunnel.remote, underlayMtu), health: createHealth(), seed }
}
