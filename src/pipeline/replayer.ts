// A replay's two legs: packets of a capture go through the same stages as a pod's, to a gateway in the next thread or
// to a live endpoint, and what comes back is compared with what was sent and written down.

import type { Device } from '../device/device.ts'
import type { PcapReader } from '../device/pcap.ts'
import { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import { Policy, type PolicyHandle } from '../flow/policy.ts'
import { FlowTable, type FlowTableHandle } from '../flow/table.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import type { Counters, StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { Classify } from './classify.ts'
import { Complete } from './complete.ts'
import { Decap } from './decap.ts'
import { Decide } from './decide.ts'
import { Encap } from './encap.ts'
import { Ledger } from './ledger.ts'
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
  /** Most packets on their way to a live endpoint; undefined where the underlay itself holds what does not fit. */
  window: number | undefined
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
  private forgiven = 0
  private lastMove = 0

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
    const { tunnel, seed } = options
    const fragments = new FragmentTable()
    this.classify = new Classify(pool, counters.stage('classify'), { fragments, seed, withAttachment: false, local })
    this.decide = new Decide(pool, counters.stage('decide'), table, new Policy(options.policy), passed)
    this.localCounters = counters.stage('local')
    this.passedCounters = counters.stage('passed')
    this.encap = new Encap(pool, counters.stage('encap'), tunnel)
    this.out = new Complete(pool, counters.stage('complete underlay'), underlay)
    const split = new Split(pool, counters.stage('split'), batch => this.comeBack(batch))
    this.decap = new Decap(pool, counters.stage('decap'), tunnel, { anyPeer: false, keep: false, anyInner: false })
    const restore = { table, fragments, seed, attachments: undefined, probes: undefined }
    this.restore = new Restore(pool, counters.stage('restore'), restore)
    this.readerLeg = {
      device: reader,
      run: batch => this.goOut(batch),
      ready: () => this.mayRead(underlay),
      due: () => (reader.exhausted ? Number.POSITIVE_INFINITY : performance.now() + reader.nextDue()),
    }
    this.underlayLeg = { device: underlay, run: batch => split.run(batch) }
  }

  /** Ms of performance.now() when a packet last went out or came back. */
  get lastMoved(): number {
    return this.lastMove
  }

  /** Packets sent to a live endpoint and neither back nor given up. */
  get outstanding(): number {
    const { ledger } = this
    return ledger.sent - ledger.unchanged - ledger.changed - this.forgiven
  }

  private mayRead(underlay: { readonly room?: number }): boolean {
    if (this.reader.exhausted || this.pool.available < BATCH) return false
    const { window } = this.options
    if (window === undefined) return underlay.room === undefined || underlay.room >= BATCH
    if (this.outstanding + BATCH <= window) return true
    if (performance.now() - this.lastMove < FORGIVE_MS) return false
    this.forgiven += this.outstanding
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
    for (let i = 0; i < batch.length; i++) ledger.send(frames[i], now)
    if (batch.length > 0) this.lastMove = now
    this.encap.run(batch)
    this.out.run(batch)
    this.retire(local, this.localCounters)
    this.retire(passed, this.passedCounters)
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
    this.decap.run(batch)
    this.restore.run(batch)
    const { frames, length } = batch
    const now = performance.now()
    for (let i = 0; i < length; i++) ledger.back(frames[i], now)
    if (length > 0) this.lastMove = now
    if (this.writer === undefined) {
      pool.freeAll(batch)
      return
    }
    if (this.options.share.count > 1) this.note(batch)
    this.writer.transmit(batch)
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
