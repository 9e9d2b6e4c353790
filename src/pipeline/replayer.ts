// A replay's two legs: packets of a capture go through the same stages as a pod's, to a gateway in the next thread or
// to a live endpoint, and what comes back is compared with what was sent and written down.

import type { Device } from '../device/device.ts'
import type { PcapReader } from '../device/pcap.ts'
import { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import type { FlowTableHandle } from '../flow/layout.ts'
import { Policy, type PolicyHandle } from '../flow/policy.ts'
import { FlowTable } from '../flow/table.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import type { Counters, StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { Classify } from './classify.ts'
import { Complete } from './complete.ts'
import { Decap } from './decap.ts'
import { Decide } from './decide.ts'
import { Encap } from './encap.ts'
import { Ledger } from './ledger.ts'
import { Links, trim } from './links.ts'
import type { Leg } from './loop.ts'
import { Restore } from './restore.ts'
import { Split } from './split.ts'
import type { TunnelConfig } from './tunnel.ts'

export interface ReplayerOptions {
  tunnel: TunnelConfig
  flows: FlowTableHandle
  seed: Seed
  policy: PolicyHandle
  /** Packets of other shares are left to other workers: those whose flow hash, modulo `count`, is not `index`. */
  share: { index: number; count: number }
  /** Undefined where the gateway is in this process: its packets bear their times, and the underlay holds what does not fit. */
  live: LiveEndpoint | undefined
}

export interface LiveEndpoint {
  /** Most packets on their way. */
  window: number
  /** UDP port at which packets come back: the tunnel's, or that of our socket. */
  returnPort: number
}

/** After this silence a live endpoint is taken to have dropped what is still out, and the window opens again. */
const FORGIVE_MS = 50

/** Both legs of one replay worker: that thread only. */
export class Replayer {
  readonly readerLeg: Leg
  readonly underlayLeg: Leg
  readonly ledger: Ledger
  readonly table: FlowTable
  private readonly pool: Pool
  private readonly reader: PcapReader
  private readonly options: ReplayerOptions
  private readonly classify: Classify
  private readonly decide: Decide
  private readonly encap: Encap
  private readonly decap: Decap
  private readonly restore: Restore
  private readonly out: Complete
  private readonly writer: Device | undefined
  private readonly local = new Batch()
  private readonly passed = new Batch()
  private readonly localCounters: StageCounters
  private readonly passedCounters: StageCounters
  /** For each packet written, the number of the packet that it goes back to. */
  order = new Int32Array(1 << 16)
  written = 0
  private lastMove = 0
  // Of the packet sent last.
  private lastSequence = 0
  private lastTime = 0

  constructor(
    pool: Pool,
    counters: Counters,
    reader: PcapReader,
    underlay: Device & { readonly room?: number },
    writer: Device | undefined,
    options: ReplayerOptions,
  ) {
    this.pool = pool
    this.reader = reader
    this.options = options
    this.writer = writer
    this.ledger = new Ledger(pool)
    this.table = new FlowTable(options.flows)
    const { table, local, passed } = this
    const { tunnel, seed, live } = options
    const fragments = new FragmentTable()
    this.classify = new Classify(pool, counters.stage('classify'), { fragments, seed, withAttachment: false, local })
    this.decide = new Decide(pool, counters.stage('decide'), table, new Policy(options.policy), passed)
    this.decide.expires = false
    this.localCounters = counters.stage('local')
    this.passedCounters = counters.stage('passed')
    const links = tunnel.inner === 'ip' ? new Links(pool, options.flows.capacity, 0) : undefined
    this.encap = new Encap(pool, counters.stage('encap'), tunnel, links)
    this.out = new Complete(pool, counters.stage('complete underlay'), underlay)
    const split = new Split(pool, counters.stage('split'), batch => this.comeBack(batch))
    const back = { ...tunnel, port: live?.returnPort ?? tunnel.port }
    this.decap = new Decap(pool, counters.stage('decap'), back, { anyPeer: false, keep: false, anyInner: false })
    const checksCookie = tunnel.options?.mustReturn
    const restore = { table, fragments, seed, attachments: undefined, probes: undefined, links, checksCookie }
    this.restore = new Restore(pool, counters.stage('restore'), restore)
    this.readerLeg = {
      device: reader,
      run: batch => this.goOut(batch),
      ready: () => this.mayRead(underlay),
      due: () => (reader.exhausted ? Number.POSITIVE_INFINITY : performance.now() + reader.nextDue()),
    }
    this.underlayLeg = { device: underlay, run: batch => split.run(batch) }
  }

  /** Flows seen so far. */
  get flows(): number {
    return this.decide.flows
  }

  /** Ms of performance.now() when a packet last went out, or one of those came back. */
  get lastMoved(): number {
    return this.lastMove
  }

  private mayRead(underlay: { readonly room?: number }): boolean {
    if (this.reader.exhausted || this.pool.available < BATCH) return false
    const { ledger } = this
    const { live } = this.options
    if (live === undefined) return underlay.room === undefined || underlay.room >= BATCH
    if (ledger.outstanding + BATCH <= live.window) return true
    if (performance.now() - this.lastMove < FORGIVE_MS) return false
    ledger.forgive()
    return true
  }

  private goOut(batch: Batch): void {
    const { pool, ledger, local, passed } = this
    const { frames } = batch
    // NB: metadata of an earlier life; a capture has no pods, so all its packets leave.
    for (let i = 0; i < batch.length; i++) {
      pool.attachment[frames[i]] = 0
      pool.direction[frames[i]] = 0
    }
    this.classify.run(batch)
    if (this.options.share.count > 1) this.takeShare(batch)
    this.decide.run(batch)
    const now = performance.now()
    if (this.options.tunnel.inner === 'ip') for (let i = 0; i < batch.length; i++) trim(pool, frames[i])
    for (let i = 0; i < batch.length; i++) ledger.send(frames[i], now)
    if (batch.length > 0) this.sent(frames[batch.length - 1], now)
    this.encap.run(batch)
    this.out.run(batch)
    this.retire(local, this.localCounters)
    this.retire(passed, this.passedCounters)
  }

  private sent(last: number, now: number): void {
    this.lastMove = now
    this.lastSequence = this.pool.sequence[last]
    this.lastTime = this.pool.time[last]
  }

  private takeShare(batch: Batch): void {
    const { pool } = this
    const { index, count } = this.options.share
    const { frames, length } = batch
    let kept = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      if ((pool.hash[frame] >>> 0) % count === index) frames[kept++] = frame
      else pool.free(frame)
    }
    batch.length = kept
    if (index !== 0) pool.freeAll(this.local)
  }

  private retire(batch: Batch, counters: StageCounters): void {
    const { frames, length } = batch
    let bytes = 0
    for (let i = 0; i < length; i++) bytes += this.pool.length[frames[i]]
    counters.received(length, bytes)
    counters.sent(length, bytes)
    this.pool.freeAll(batch)
  }

  private comeBack(batch: Batch): void {
    const { pool, ledger } = this
    if (this.options.live !== undefined) this.date(batch)
    this.decap.run(batch)
    this.restore.run(batch)
    const { frames, length } = batch
    const now = performance.now()
    const { outstanding } = ledger
    for (let i = 0; i < length; i++) ledger.back(frames[i], now)
    if (ledger.outstanding !== outstanding) this.lastMove = now
    if (this.writer === undefined) {
      pool.freeAll(batch)
      return
    }
    if (this.options.share.count > 1) this.note(batch)
    this.writer.transmit(batch)
  }

  /** A live endpoint's packets come at the time of the packet sent last, until the ledger knows better: there is one clock, the capture's. */
  private date(batch: Batch): void {
    const { pool, lastTime } = this
    const { frames, length } = batch
    const seconds = Math.floor(lastTime / 1000)
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      pool.sequence[frame] = this.lastSequence
      pool.time[frame] = lastTime
      pool.seconds[frame] = seconds
      pool.nanoseconds[frame] = Math.round((lastTime - seconds * 1000) * 1e6)
    }
  }

  private note(batch: Batch): void {
    const { frames, length } = batch
    if (this.written + length > this.order.length) {
      const larger = new Int32Array(this.order.length * 2)
      larger.set(this.order)
      this.order = larger
    }
    for (let i = 0; i < length; i++) this.order[this.written++] = this.pool.sequence[frames[i]]
  }
}
