// The flow log of a node: takes what the workers noted of flows that began and ended, and writes it as lines.

import type { FlowEnd, FlowLine, FlowLog } from '../control/flow-log.ts'
import { type FlowNames, flowRow, protocolName } from '../control/flows.ts'
import { JOURNAL_WORDS, journalEntry } from '../flow/journal.ts'
import type { FlowRecord, FlowView } from '../flow/view.ts'
import { createRecords, RecordReader, type RecordsHandle } from '../memory/records.ts'
import { monotonicMs } from '../os/clock.ts'

/** Records that wait for the main thread, a worker: 80,000 flows a second begin or end between two looks. */
const CAPACITY = 8192
const LOOK_MS = 100

/** The journal of each worker; passes through workerData. */
export function createJournals(workers: number): RecordsHandle[] {
  return Array.from({ length: workers }, () => createRecords(CAPACITY, JOURNAL_WORDS))
}

/** How flows are named to people. */
export interface JournalNames extends FlowNames {
  /** `default/web-0`; empty when unknown. */
  pod(number: number): string
}

/** Writes the journals to the flow log: main thread only. */
export class FlowJournal {
  private readonly readers: RecordReader[]
  private readonly flowLog: FlowLog
  private readonly names: JournalNames
  private readonly timer: NodeJS.Timeout
  /** Names of attachments that flows outlive. */
  private readonly known = new Map<number, { attachment: string; pod: string }>()

  /** Starts; `close` ends it. */
  constructor(journals: RecordsHandle[], flowLog: FlowLog, names: JournalNames) {
    this.readers = journals.map(handle => new RecordReader(handle))
    this.flowLog = flowLog
    this.names = names
    this.timer = setInterval(() => this.look(), LOOK_MS)
    this.timer.unref()
  }

  /** Records that were lost because there were too many. */
  get lost(): number {
    return this.readers.reduce((sum, reader) => sum + reader.lost, this.flowLog.lost)
  }

  /** Writes what is there, and of flows that go on that the node was stopped; the workers have ended. */
  close(views: FlowView[]): void {
    clearInterval(this.timer)
    this.look()
    for (const view of views) {
      let lines: FlowLine[] = []
      for (const flow of view.flows()) {
        lines.push(this.line('stopped', monotonicMs(), flow))
        if (lines.length < CAPACITY) continue
        this.flowLog.write(lines)
        lines = []
      }
      this.flowLog.write(lines)
    }
  }

  private look(): void {
    for (const reader of this.readers) {
      const lines: FlowLine[] = []
      // What is added meanwhile is for the next look, so that the main thread gets to other things.
      for (let left = reader.waiting; left > 0; left--) {
        const { event, timeMs, flow } = journalEntry(reader.next() as Int32Array)
        lines.push(this.line(event, timeMs, flow))
      }
      this.flowLog.write(lines)
    }
  }

  private line(event: FlowEnd | 'start', timeMs: number, flow: FlowRecord): FlowLine {
    const row = flowRow(flow, '', this.names, timeMs)
    const { attachment, pod } = this.who(flow.attachment)
    const common = {
      time: new Date(Date.now() - monotonicMs() + timeMs).toISOString(),
      attachment,
      ...(pod === '' ? {} : { pod }),
      protocol: protocolName(row.protocol),
      source: row.source,
      sourcePort: row.sourcePort,
      destination: row.destination,
      destinationPort: row.destinationPort,
      verdict: row.verdict,
      ...(row.endpoint === undefined ? {} : { endpoint: row.endpoint }),
    }
    if (event === 'start') return { event, ...common }
    return {
      event: 'end',
      ...common,
      reason: event,
      durationMs: Math.round(flow.lastSeenMs - flow.firstSeenMs),
      sentPackets: row.sentPackets,
      sentBytes: row.sentBytes,
      receivedPackets: row.receivedPackets,
      receivedBytes: row.receivedBytes,
    }
  }

  private who(number: number): { attachment: string; pod: string } {
    const attachment = this.names.attachment(number)
    if (attachment === '') return this.known.get(number) ?? { attachment, pod: '' }
    const who = { attachment, pod: this.names.pod(number) }
    this.known.set(number, who)
    return who
  }
}
