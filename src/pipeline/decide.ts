// The decision: looks the flow up, decides a new one by policy, and sorts frames into steered, passed and dropped.

import { DROP } from '../drop.ts'
import type { Policy } from '../flow/policy.ts'
import { type FlowTable, REFUSED } from '../flow/table.ts'
import { VERDICT } from '../flow/verdict.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { ENDPOINT_NUMBERS } from '../memory/endpoints.ts'
import { GSO, KEY_WORDS, type Pool } from '../memory/pool.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as tcp from '../wire/tcp.ts'
import type { Endpoints } from './endpoints.ts'

/** Packets that a frame stands for: the segments of a super-packet, otherwise one. */
export function packetsOf(pool: Pool, frame: number): number {
  if (pool.gso[frame] === GSO.NONE) return 1
  const size = pool.gsoSize[frame]
  const bytes = pool.start[frame] + pool.length[frame] - pool.payload[frame]
  return size > 0 && bytes > size ? Math.ceil(bytes / size) : 1
}

// By packets and not by time, so that a replay decides the same each time.
const EXPIRE_EVERY = 1024
const EXPIRE_BUDGET = 256

/** The stage that decides; needs key, hash and attachment. */
export class Decide {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly table: FlowTable
  /** Decides flows from now on; those that are known keep what was decided. */
  policy: Policy
  private readonly pass: Batch | undefined
  private seen = 0
  /** Flows decided so far; one that had left the table counts again. */
  flows = 0
  /** False where idle flows stay until the table is full: their packets may still be on the way when a capture's clock jumps. */
  expires = true
  private readonly endpoints: Endpoints | undefined
  /** By number: 0 where flows may not go, so that they go elsewhere or the attachment's fail mode decides instead of the policy. */
  private readonly usable: Uint8Array
  /** 1 for attachments that fail closed, by attachment number. */
  readonly failClosed: Uint8Array

  /** `pass` takes the frames that go back untouched; without it they are steered like the rest. Without `endpoints` there is one, number 0. */
  constructor(
    pool: Pool,
    counters: StageCounters,
    table: FlowTable,
    policy: Policy,
    pass?: Batch,
    failClosed?: Uint8Array,
    endpoints?: Endpoints,
  ) {
    this.pool = pool
    this.counters = counters
    this.table = table
    this.policy = policy
    this.pass = pass
    this.failClosed = failClosed ?? new Uint8Array(0)
    this.endpoints = endpoints
    this.usable = endpoints?.usable ?? new Uint8Array(ENDPOINT_NUMBERS).fill(1)
  }

  /** Steered frames stay in the batch, passed ones leave by the side outlet. */
  readonly run = (batch: Batch): void => {
    const { pool, counters, table, pass, usable } = this
    const { frames, length } = batch
    table.warm(batch, pool.hash, pool.flow)
    let kept = 0
    let dropped = 0
    let bytes = 0
    let droppedBytes = 0
    let passed = 0
    let passedDown = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const size = pool.length[frame]
      bytes += size
      table.now = pool.time[frame]
      this.seen = (this.seen + 1) % EXPIRE_EVERY
      if (this.seen === 0 && this.expires) table.expire(EXPIRE_BUDGET)
      const row = this.row(frame)
      let reason = 0
      let verdict: number = VERDICT.STEER
      if (row < 0) reason = row === REFUSED.QUOTA ? DROP.FLOW_QUOTA : DROP.FLOW_TABLE_FULL
      else {
        pool.flow[frame] = row
        table.touch(row, pool.reversed[frame], packetsOf(pool, frame), size)
        if (pool.protocol[frame] === ipv4.PROTOCOL.TCP && pool.transport[frame] !== 0)
          table.tcpFlags(row, pool.reversed[frame], tcp.flags(pool.bytes, pool.transport[frame]))
        verdict = table.verdict(row)
        if (verdict === VERDICT.DROP) reason = DROP.POLICY
      }
      if (reason === 0 && verdict === VERDICT.STEER) {
        let endpoint = table.endpoint(row)
        if (usable[endpoint] === 0) endpoint = this.replace(row, frame)
        if (endpoint >= 0) pool.endpoint[frame] = endpoint
        else if (this.failClosed[pool.attachment[frame]] === 1) reason = DROP.ENDPOINT_DOWN
        else {
          verdict = VERDICT.PASS
          passedDown++
        }
      }
      if (reason !== 0) {
        dropped++
        droppedBytes += size
        counters.dropped(reason)
        pool.free(frame)
      } else if (verdict === VERDICT.PASS && pass !== undefined) {
        passed++
        pass.push(frame)
      } else {
        frames[kept++] = frame
      }
    }
    counters.received(length, bytes)
    counters.sent(length - dropped, bytes - droppedBytes)
    counters.passed(passed, passedDown)
    batch.length = kept
  }

  /** The flow's row; a new flow is decided and entered. One of REFUSED when there is no room for it. */
  private row(frame: number): number {
    const { pool, table } = this
    const at = frame * KEY_WORDS
    let row = table.known(pool.flow[frame], pool.key, at, pool.hash[frame])
    if (row < 0) row = this.enter(frame)
    if (row >= 0) table.remember(pool.key, at, row)
    return row
  }

  private enter(frame: number): number {
    const { pool, table, policy } = this
    const at = frame * KEY_WORDS
    const hash = pool.hash[frame]
    const row = table.insert(pool.key, at, hash, pool.reversed[frame])
    if (row < 0) return row
    this.flows++
    const rule = policy.match(pool.key, at, pool.reversed[frame])
    table.setRule(row, rule)
    table.setVerdict(row, policy.verdict(rule))
    table.setCookie(row, hash)
    if (this.endpoints !== undefined && policy.verdict(rule) === VERDICT.STEER) this.replace(row, frame)
    if (table.onBegin !== undefined) table.onBegin(row)
    return row
  }

  /** Gives a flow an endpoint whose own may not be used, and returns its number; -1 when there is none. */
  private replace(row: number, frame: number): number {
    const { pool, table, endpoints } = this
    const next = endpoints?.replace(table.endpoint(row), pool.key, frame * KEY_WORDS) ?? 0
    if (next === 0) return -1
    table.setEndpoint(row, next)
    return next
  }
}
