// Counters: private to a worker while packets flow, published to shared memory now and then.
//
// One row of 64-bit floats a stage (exact to 2^53): the columns of COLUMN, then one a drop reason. The invariant that
// tests assert on differences: in + created = out + dropped + held, with held counted by who holds.

import { DROP_COUNT, type DropReason } from '../drop.ts'

/** Columns of a stage's row in front of the drop reasons. */
export const COLUMN = {
  IN_PACKETS: 0,
  IN_BYTES: 1,
  OUT_PACKETS: 2,
  OUT_BYTES: 3,
  /** Frames that the stage made (segments, ICMP answers), less those it merged. */
  CREATED: 4,
  /** Payload bytes moved in memory by Detour itself. */
  COPIED_BYTES: 5,
  /** System calls. */
  CALLS: 6,
  /** Anomalies that cost no packet: failed system calls, ECN combinations that RFC 6040 wants logged. */
  ERRORS: 7,
  /** Of those that left: by the side outlet, past the endpoint. */
  PASSED: 8,
  /** Of those passed: only because endpoint or worker is down and the attachment fails open. */
  PASSED_DOWN: 9,
  /** Of those passed: inspected already, where they left another pod. */
  PASSED_INSPECTED: 10,
} as const

const DROPS = 11
const WIDTH = DROPS + DROP_COUNT

/** The counters of one stage of one worker: that thread only. */
export class StageCounters {
  readonly name: string
  readonly row: Float64Array

  constructor(name: string, row: Float64Array = new Float64Array(WIDTH)) {
    this.name = name
    this.row = row
  }

  received(packets: number, bytes: number): void {
    this.row[COLUMN.IN_PACKETS] += packets
    this.row[COLUMN.IN_BYTES] += bytes
  }

  sent(packets: number, bytes: number): void {
    this.row[COLUMN.OUT_PACKETS] += packets
    this.row[COLUMN.OUT_BYTES] += bytes
  }

  dropped(reason: DropReason, packets = 1): void {
    this.row[DROPS + reason] += packets
  }

  created(packets: number): void {
    this.row[COLUMN.CREATED] += packets
  }

  copied(bytes: number): void {
    this.row[COLUMN.COPIED_BYTES] += bytes
  }

  called(): void {
    this.row[COLUMN.CALLS] += 1
  }

  failed(): void {
    this.row[COLUMN.ERRORS] += 1
  }

  /** Frames that left by the side outlet, past the endpoint; how many of them only because it is down, or were inspected before. */
  passed(packets: number, becauseDown = 0, inspected = 0): void {
    this.row[COLUMN.PASSED] += packets
    this.row[COLUMN.PASSED_DOWN] += becauseDown
    this.row[COLUMN.PASSED_INSPECTED] += inspected
  }

  /** Packets dropped for one reason, or for all. */
  drops(reason?: DropReason): number {
    if (reason !== undefined) return this.row[DROPS + reason]
    let sum = 0
    for (let i = DROPS; i < WIDTH; i++) sum += this.row[i]
    return sum
  }

  /** The reason that a packet was dropped for since `before` was copied from the row, the first of several; 0 for none. */
  droppedSince(before: Float64Array): DropReason {
    for (let reason = 1; reason < DROP_COUNT; reason++) {
      if (this.row[DROPS + reason] !== before[DROPS + reason]) return reason
    }
    return 0
  }
}

/** What the main thread needs to read a worker's counters. */
export interface CountersHandle {
  memory: SharedArrayBuffer
  stages: string[]
}

/** A worker's counters: built by the worker, stage by stage, then published. */
export class Counters {
  readonly stages: StageCounters[] = []
  private shared: Float64Array | undefined

  /** Adds a stage; the name is what people see. */
  stage(name: string): StageCounters {
    const stage = new StageCounters(name)
    this.stages.push(stage)
    this.shared = undefined
    return stage
  }

  /** Forgets a stage, whose device is gone. */
  remove(stage: StageCounters): void {
    const at = this.stages.indexOf(stage)
    if (at >= 0) this.stages.splice(at, 1)
    this.shared = undefined
  }

  /** Shared memory for the stages so far; `publish` writes there. */
  share(): CountersHandle {
    const memory = new SharedArrayBuffer(Math.max(1, this.stages.length) * WIDTH * 8)
    this.shared = new Float64Array(memory)
    this.publish()
    return { memory, stages: this.stages.map(stage => stage.name) }
  }

  /** Copies the private rows to shared memory; nothing before `share`. */
  publish(): void {
    if (this.shared === undefined) return
    for (let i = 0; i < this.stages.length; i++) this.shared.set(this.stages[i].row, i * WIDTH)
  }
}

/** The rows that a worker published, as the main thread sees them; the values change under the reader. */
export function readCounters(handle: CountersHandle): StageCounters[] {
  return handle.stages.map((name, i) => new StageCounters(name, new Float64Array(handle.memory, i * WIDTH * 8, WIDTH)))
}

/** The rows of several workers with the same stages, added up stage by stage. */
export function sumCounters(workers: StageCounters[][]): StageCounters[] {
  const [first = []] = workers
  return first.map(({ name }, i) => {
    const sum = new StageCounters(name)
    for (const stages of workers) for (let at = 0; at < WIDTH; at++) sum.row[at] += stages[i].row[at]
    return sum
  })
}
