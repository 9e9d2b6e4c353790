// The faults that a gateway was asked for, on its main thread: when each begins and ends, what it has done, and the messages
// by which the workers learn of it. What befalls the process happens here.

import type { FaultControl, FaultRow } from '../control/source.ts'
import { describeFault, FAULT_NAMES, type Fault, MAX_FAULTS, parseFaults, SETTING_NAMES } from '../device/faults.ts'
import { DetourError } from '../errors.ts'

/** Faults that are over are still told of, so many of them. */
const MAX_OVER = 100
/** Between the order to die and the death, which whoever gave it on the control socket is still answered in. */
const LAST_WORD_MS = 50

interface Entry {
  fault: Fault
  state: FaultRow['state']
  tally: Float64Array
  /** Of its next change, ms of performance.now(); Infinity when there is none. */
  changeMs: number
  timer?: NodeJS.Timeout
}

export interface FaultBoardOptions {
  workers: number
  /** Of faults that say none themselves. */
  seed: number
  /** Gives every worker the faults that are active, and resolves when they have them. */
  tell(faults: Fault[]): Promise<unknown>
}

export class FaultBoard implements FaultControl {
  private readonly options: FaultBoardOptions
  private entries: Entry[] = []
  private nextId = 1

  constructor(options: FaultBoardOptions) {
    this.options = options
  }

  rows(): FaultRow[] {
    return this.entries.map(rowOf)
  }

  async add(spec: string): Promise<FaultRow[]> {
    const { faults } = parseFaults(spec, FAULT_NAMES, SETTING_NAMES, this.options.seed)
    if (faults.length === 0) throw new DetourError('usage', `fault '${spec}': none is named`)
    return this.start(faults)
  }

  /** Adds faults, whose `at` counts from now. Throws DetourError when they are too many. */
  async start(faults: readonly Fault[]): Promise<FaultRow[]> {
    const pending = this.entries.filter(({ state }) => state !== 'over').length
    if (pending + faults.length > MAX_FAULTS)
      throw new DetourError('usage', `faults: ${pending} there already, ${MAX_FAULTS} at most; clear some`)
    const added = faults.map(fault => {
      const tally = new SharedArrayBuffer(8 * this.options.workers)
      const entry: Entry = {
        fault: { ...fault, id: this.nextId++, tally },
        state: 'waiting',
        tally: new Float64Array(tally),
        changeMs: 0,
      }
      return entry
    })
    this.entries.push(...added)
    for (const entry of added) {
      if (entry.fault.at) this.later(entry, entry.fault.at, () => this.begin(entry))
      else this.begin(entry)
    }
    await this.publish()
    // Not before, for workers may take longer to answer than the last word.
    for (const { fault } of added) if (!fault.at) this.die(fault)
    return added.map(rowOf)
  }

  async clear(id?: number): Promise<FaultRow[]> {
    const cleared = this.entries.filter(({ fault }) => id === undefined || fault.id === id)
    if (id !== undefined && cleared.length === 0) {
      const known = this.entries.map(({ fault }) => fault.id).join(', ')
      throw new DetourError(
        'usage',
        `fault ${id}: there is none such; ${known === '' ? 'there are none' : `there are ${known}`}`,
      )
    }
    for (const { timer } of cleared) clearTimeout(timer)
    this.entries = this.entries.filter(entry => !cleared.includes(entry))
    await this.publish()
    return cleared.map(rowOf)
  }

  /** Nothing begins or ends any more. */
  close(): void {
    for (const { timer } of this.entries) clearTimeout(timer)
  }

  private begin(entry: Entry): void {
    const { fault } = entry
    entry.state = 'active'
    entry.changeMs = Number.POSITIVE_INFINITY
    if (fault.for !== undefined) this.later(entry, fault.for, () => this.end(entry))
    if (fault.at) this.die(fault)
  }

  /** What befalls the process, if that is what the fault is. */
  private die({ kind }: Fault): void {
    if (kind === 'exit') setTimeout(() => process.exit(1), LAST_WORD_MS)
    else if (kind === 'kill') setTimeout(() => process.kill(process.pid, 'SIGKILL'), LAST_WORD_MS)
  }

  private end(entry: Entry): void {
    entry.state = 'over'
    entry.changeMs = Number.POSITIVE_INFINITY
    const over = this.entries.filter(({ state }) => state === 'over')
    const forgotten = over.slice(0, Math.max(0, over.length - MAX_OVER))
    this.entries = this.entries.filter(entry => !forgotten.includes(entry))
  }

  private later(entry: Entry, ms: number, change: () => void): void {
    entry.changeMs = performance.now() + ms
    entry.timer = setTimeout(() => {
      change()
      // Of a worker that has ended its own promise tells.
      this.publish().catch(() => {})
    }, ms)
    entry.timer.unref()
  }

  private publish(): Promise<unknown> {
    return this.options.tell(this.entries.filter(({ state }) => state === 'active').map(({ fault }) => fault))
  }
}

function rowOf({ fault, state, tally, changeMs }: Entry): FaultRow {
  const leftMs = Math.max(0, Math.round(changeMs - performance.now()))
  return {
    id: fault.id,
    spec: describeFault(fault),
    state,
    packets: tally.reduce((sum, packets) => sum + packets, 0),
    ...(Number.isFinite(changeMs) && { leftMs }),
  }
}
