// Restoring: finds the attachment and the flow of what came back from the endpoint. What was never sent out is not let in.

import { DROP, type DropReason } from '../drop.ts'
import type { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import { readKey } from '../flow/key.ts'
import type { FlowTable } from '../flow/table.ts'
import { VERDICT } from '../flow/verdict.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { KEY_WORDS, type Pool } from '../memory/pool.ts'
import { type Finder, PROBE_ATTACHMENT } from './attachments.ts'
import type { Handover } from './handover.ts'
import { COOKIE_WORD, type Links } from './links.ts'

export interface RestoreOptions {
  table: FlowTable
  fragments: FragmentTable
  seed: Seed
  /** Undefined where there are no attachments (replay): every frame belongs to attachment 0. */
  attachments: Finder | undefined
  /** Takes returned probes. */
  probes: Batch | undefined
  /** Takes what belongs to other workers; undefined where there are none. */
  handover?: Handover
  /** Has the link headers of packets that came back without. */
  links?: Links
  /** Drops what came back without its flow's cookie. */
  checksCookie?: boolean
}

const STEER = VERDICT.STEER

/** The stage behind decap. */
export class Restore {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly table: FlowTable
  private readonly fragments: FragmentTable
  private readonly seed: Seed
  private readonly attachments: Finder | undefined
  private readonly probes: Batch | undefined
  private readonly handover: Handover | undefined
  private readonly links: Links | undefined
  private readonly checksCookie: boolean

  constructor(pool: Pool, counters: StageCounters, options: RestoreOptions) {
    this.pool = pool
    this.counters = counters
    this.table = options.table
    this.fragments = options.fragments
    this.seed = options.seed
    this.attachments = options.attachments
    this.probes = options.probes
    this.handover = options.handover
    this.links = options.links
    this.checksCookie = options.checksCookie ?? false
  }

  /** Frames with an attachment and a flow stay; probes and strays leave by their outlets; the rest is dropped. */
  readonly run = (batch: Batch): void => this.all(batch, this.handover)

  /** The same for what other workers have handed over. */
  runStrays(batch: Batch): void {
    this.all(batch, undefined)
  }

  private readonly all = (batch: Batch, handover: Handover | undefined): void => {
    const { pool, counters, probes } = this
    const { frames, length } = batch
    let kept = 0
    let dropped = 0
    let strays = 0
    let bytes = 0
    let droppedBytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const size = pool.length[frame]
      let reason = this.restore(frame)
      if (this.links !== undefined && reason === 0 && pool.attachment[frame] !== PROBE_ATTACHMENT)
        reason = this.complete(frame, this.links)
      if (reason !== 0 && handover !== undefined && this.mayBeStray(reason) && handover.take(frame)) {
        strays++
        continue
      }
      bytes += size
      if (reason !== 0) {
        dropped++
        droppedBytes += size
        counters.dropped(reason)
        pool.free(frame)
      } else if (probes !== undefined && pool.attachment[frame] === PROBE_ATTACHMENT) probes.push(frame)
      else frames[kept++] = frame
    }
    // A stray is counted where it is at home.
    counters.received(length - strays, bytes)
    counters.sent(length - strays - dropped, bytes - droppedBytes)
    batch.length = kept
  }

  private readonly restore = (frame: number): DropReason => {
    const { pool, attachments, table, fragments, seed } = this
    if (attachments === undefined) pool.attachment[frame] = 0
    else {
      if (!attachments.assign(frame)) return DROP.UNKNOWN_ATTACHMENT
      if (pool.attachment[frame] === PROBE_ATTACHMENT) return 0
    }
    const bad = readKey(pool, frame, fragments, seed, attachments !== undefined, table)
    if (bad !== 0) return bad
    if (this.known(frame)) return 0
    // What an endpoint answers one pod of the node in the name of another (a reset) belongs to the flow of the pod it answers.
    if (attachments === undefined || !attachments.arriveInstead(frame)) return DROP.UNKNOWN_FLOW
    pool.flow[frame] = -1
    const other = readKey(pool, frame, fragments, seed, true, table)
    if (other !== 0) return other
    return this.known(frame) ? 0 : DROP.UNKNOWN_FLOW
  }

  /** What a tunnel without link headers leaves to do. */
  private complete(frame: number, links: Links): DropReason {
    const { pool } = this
    // Every packet of the flow has its hash for a cookie.
    if (this.checksCookie && pool.key[frame * KEY_WORDS + COOKIE_WORD] !== pool.hash[frame]) return DROP.FLOW_COOKIE
    return links.putBack(frame) ? 0 : DROP.UNKNOWN_FLOW
  }

  /** Every worker knows the pods' Ethernet addresses, but whose an IP address is only its own flows tell. */
  private mayBeStray(reason: DropReason): boolean {
    return reason === DROP.UNKNOWN_FLOW || (this.links !== undefined && reason === DROP.UNKNOWN_ATTACHMENT)
  }

  private readonly known = (frame: number): boolean => {
    const { pool, table } = this
    let row = pool.flow[frame]
    if (row < 0) pool.flow[frame] = row = table.find(pool.key, frame * KEY_WORDS, pool.hash[frame])
    return row >= 0 && table.verdict(row) === STEER
  }
}
