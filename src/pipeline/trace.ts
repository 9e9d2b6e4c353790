// Traced legs: in place of a forwarder's own while somebody wants to see what becomes of each packet, and why.
//
// Each stage is run on one frame at a time, so that its counters tell what it did with that frame; devices get whole batches, as
// ever. Packets fare as they would untraced. Afterwards the forwarder's own legs are back: untraced packets pay nothing.

import type { DropReason } from '../drop.ts'
import type { FlowTable } from '../flow/table.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import type { Counters } from '../memory/counters.ts'
import { KEY_WORDS, type Pool } from '../memory/pool.ts'
import { type RecordsHandle, RecordWriter } from '../memory/records.ts'

/** What happens to a packet on its way, in order: toward the endpoint up to `send`, then the return. */
export const STEP = {
  RECEIVE: 0,
  CLASSIFY: 1,
  DECIDE: 2,
  FIT: 3,
  ENCAP: 4,
  SEND: 5,
  DECAP: 6,
  RESTORE: 7,
  DELIVER: 8,
} as const
export const STEP_NAMES = [
  ...['receive', 'classify', 'decide', 'fit', 'encap', 'send'],
  ...['decap', 'restore', 'deliver'],
] as const

/** What a stage did with a packet. */
export const OUTCOME = { ON: 0, PASSED: 1, DROPPED: 2, SENT: 3 } as const
export const OUTCOME_NAMES = ['on', 'passed', 'dropped', 'sent'] as const

/** What became of it. */
export const FATE = { STEER: 0, PASS: 1, DROP: 2, DELIVER: 3 } as const

/** Words of a record. TIME is a double, ms since the epoch; BYTES is how the packet begins. */
export const TRACE = {
  LEG: 0, // 0 toward the endpoint, 1 the return
  ATTACHMENT: 1, // -1 for none
  FATE: 2,
  LENGTH: 3,
  SEGMENT: 4, // payload bytes a segment, 0 for what is no super-packet
  CAPTURED: 5,
  STEPS: 6, // how many there are
  FLAGS: 7,
  TIME: 8,
  RULE: 10,
  ENDPOINT: 11,
  STEP: 12, // step << 24 | outcome << 16 | drop reason
  KEY: 20,
  BYTES: 30,
  WORDS: 62,
} as const

export const TRACE_BYTES = (TRACE.WORDS - TRACE.BYTES) * 4
const MOST_STEPS = TRACE.KEY - TRACE.STEP
const KEY = 10

export const TRACE_FLAG = {
  /** The key is there. */
  KEY: 1,
  /** The packet was the first of its flow. */
  NEW: 2,
  /** A rule was found, or the default, -1. */
  RULE: 4,
} as const

/** Which packets are told of; plain data. What is undefined matches any. */
export interface TraceFilter {
  attachment?: number
  /** As in a flow key: four words, of IPv4 the first. */
  address?: { version: number; words: number[] }
  port?: number
  protocol?: number
  /** FATE. */
  fate?: number
}

/** What a worker needs to trace; plain data. */
export interface TraceInput {
  records: RecordsHandle
  filter: TraceFilter
  /** Packets after which it ends by itself, and the time, ms. */
  count: number
  limitMs: number
}

/** One stage, as a tracer runs it; it counts drops under the step's name, or has none. */
export interface TracedStage {
  step: number
  run(batch: Batch): void
}

/** The parts of a forwarder that a tracer looks at. */
export interface TracedParts {
  pool: Pool
  counters: Counters
  table: FlowTable
  /** The side outlet of the stages toward the endpoint. */
  aside: Batch
}

/** Runs the stages of traced legs and tells of what they do; that thread only. */
export class Tracer {
  private readonly filter: TraceFilter
  private readonly parts: TracedParts
  private readonly writer: RecordWriter
  private readonly until: number
  private left: number
  private readonly one = new Batch(1)
  /** By frame: its place in `scratch`, while it is under way. */
  private readonly place: Int32Array
  private readonly scratch = new Int32Array(BATCH * TRACE.WORDS)
  private readonly times = new Float64Array(this.scratch.buffer)
  private readonly bytes = new Uint8Array(this.scratch.buffer)
  private before = new Float64Array(0)
  private started = 0

  constructor(parts: TracedParts, { records, filter, count, limitMs }: TraceInput) {
    this.parts = parts
    this.filter = filter
    this.writer = new RecordWriter(records)
    this.until = performance.now() + limitMs
    this.left = count
    this.place = new Int32Array(parts.pool.frames)
  }

  /** Whether packets of an attachment may match. */
  wants(attachment: number): boolean {
    return this.filter.attachment === undefined || this.filter.attachment === attachment
  }

  /** Whether all that was asked for has been told, or the time is up. */
  get ended(): boolean {
    return this.left <= 0 || performance.now() > this.until
  }

  /** Runs frames through stages, then has `send` take those that are left; all are told of. */
  run(leg: 0 | 1, batch: Batch, stages: readonly TracedStage[], send: (batch: Batch) => void): void {
    this.begin(leg, batch)
    for (const stage of stages) this.stage(stage, batch)
    this.send(leg, batch, send)
    for (let place = 0; place < this.started; place++) this.tell(place * TRACE.WORDS)
  }

  private begin(leg: number, batch: Batch): void {
    const { scratch, times, place } = this
    this.started = Math.min(batch.length, BATCH)
    const now = performance.timeOrigin + performance.now()
    for (let i = 0; i < this.started; i++) {
      const frame = batch.frames[i]
      const at = i * TRACE.WORDS
      place[frame] = at
      scratch.fill(0, at, at + TRACE.WORDS)
      scratch[at + TRACE.LEG] = leg
      scratch[at + TRACE.ATTACHMENT] = -1
      scratch[at + TRACE.FATE] = -1
      times[(at + TRACE.TIME) / 2] = now
      this.capture(frame, at)
    }
  }

  private capture(frame: number, at: number): void {
    const { scratch, bytes } = this
    const { pool } = this.parts
    const start = pool.start[frame]
    const captured = Math.min(pool.length[frame], TRACE_BYTES)
    scratch[at + TRACE.LENGTH] = pool.length[frame]
    scratch[at + TRACE.SEGMENT] = pool.gso[frame] === 0 ? 0 : pool.gsoSize[frame]
    scratch[at + TRACE.CAPTURED] = captured
    bytes.set(pool.bytes.subarray(start, start + captured), (at + TRACE.BYTES) * 4)
  }

  private stage({ step, run }: TracedStage, batch: Batch): void {
    const { one, place, parts } = this
    const { aside, table } = parts
    const counters = parts.counters.stages.find(({ name }) => name === STEP_NAMES[step])
    const { frames, length } = batch
    let kept = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const passed = aside.length
      const flows = table.everCreated
      if (counters !== undefined) {
        if (this.before.length !== counters.row.length) this.before = new Float64Array(counters.row.length)
        this.before.set(counters.row)
      }
      one.frames[0] = frame
      one.length = 1
      run(one)
      if (one.length === 1) frames[kept++] = frame
      const reason = one.length === 1 ? 0 : (counters?.droppedSince(this.before) ?? 0)
      const outcome = one.length === 1 ? OUTCOME.ON : reason !== 0 ? OUTCOME.DROPPED : OUTCOME.PASSED
      // A probe, or what is another worker's, is not told of here.
      if (outcome === OUTCOME.PASSED && aside.length === passed) continue
      const at = place[frame]
      this.note(at, step, outcome, reason)
      this.learn(at, frame, step, outcome, table.everCreated !== flows)
    }
    one.length = 0
    batch.length = kept
  }

  /** Adds a step to the record; a drop and a side outlet are also what became of the packet. */
  private note(at: number, step: number, outcome: number, reason: DropReason): void {
    const { scratch } = this
    const steps = scratch[at + TRACE.STEPS]
    if (steps === MOST_STEPS) return
    scratch[at + TRACE.STEP + steps] = (step << 24) | (outcome << 16) | reason
    scratch[at + TRACE.STEPS] = steps + 1
    if (outcome === OUTCOME.DROPPED) scratch[at + TRACE.FATE] = FATE.DROP
    if (outcome === OUTCOME.PASSED) scratch[at + TRACE.FATE] = FATE.PASS
  }

  /** What the frame says after a stage. NB: one that was dropped is free, but nobody has taken it yet. */
  private learn(at: number, frame: number, step: number, outcome: number, isNew: boolean): void {
    const { scratch, parts } = this
    const { pool, table } = parts
    const on = outcome === OUTCOME.ON
    if (step === STEP.DECAP && on) this.capture(frame, at)
    if (step === STEP.RECEIVE || step === STEP.RESTORE) scratch[at + TRACE.ATTACHMENT] = pool.attachment[frame]
    if ((step === STEP.CLASSIFY || step === STEP.RESTORE) && on) {
      scratch[at + TRACE.FLAGS] |= TRACE_FLAG.KEY
      for (let i = 0; i < KEY; i++) scratch[at + TRACE.KEY + i] = pool.key[frame * KEY_WORDS + i]
    }
    if (step !== STEP.DECIDE && step !== STEP.RESTORE) return
    if (on) scratch[at + TRACE.ENDPOINT] = pool.endpoint[frame]
    if (isNew) scratch[at + TRACE.FLAGS] |= TRACE_FLAG.NEW
    const row = pool.flow[frame]
    if (row <= 0 || (step === STEP.RESTORE && !on)) return
    scratch[at + TRACE.FLAGS] |= TRACE_FLAG.RULE
    scratch[at + TRACE.RULE] = table.rule(row)
  }

  /** NB: which of the frames a device refuses cannot be told, because it gets them together; all are told the reason. */
  private send(leg: number, batch: Batch, send: (batch: Batch) => void): void {
    const { place, scratch } = this
    const { stages } = this.parts.counters
    const { frames, length } = batch
    const places = Array.from({ length }, (_, i) => place[frames[i]])
    const before = stages.map(({ row }) => row.slice())
    send(batch)
    let reason = 0
    if (length > 0) for (const [i, row] of before.entries()) reason ||= stages[i].droppedSince(row)
    for (const at of places) {
      this.note(at, leg === 0 ? STEP.SEND : STEP.DELIVER, OUTCOME.SENT, reason)
      scratch[at + TRACE.FATE] = leg === 0 ? FATE.STEER : FATE.DELIVER
    }
  }

  private tell(at: number): void {
    const { scratch, writer } = this
    if (this.left <= 0 || scratch[at + TRACE.FATE] < 0 || !this.matches(at)) return
    this.left--
    const to = writer.take()
    if (to < 0) return
    for (let i = 0; i < TRACE.WORDS; i++) writer.words[to + i] = scratch[at + i]
    writer.submit()
  }

  private matches(at: number): boolean {
    const { scratch, filter } = this
    const { attachment, address, port, protocol, fate } = filter
    if (attachment !== undefined && scratch[at + TRACE.ATTACHMENT] !== attachment) return false
    if (fate !== undefined && scratch[at + TRACE.FATE] !== fate) return false
    if (address === undefined && port === undefined && protocol === undefined) return true
    if ((scratch[at + TRACE.FLAGS] & TRACE_FLAG.KEY) === 0) return false
    const kind = scratch[at + TRACE.KEY]
    const ports = scratch[at + TRACE.KEY + 1]
    if (protocol !== undefined && ((kind >>> 16) & 0xff) !== protocol) return false
    if (port !== undefined && ports >>> 16 !== port && (ports & 0xffff) !== port) return false
    if (address === undefined) return true
    const isAddress = (from: number) => address.words.every((word, i) => scratch[at + from + i] === word)
    return kind >>> 24 === address.version && (isAddress(TRACE.KEY + 2) || isAddress(TRACE.KEY + 6))
  }
}
