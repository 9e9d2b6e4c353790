// Tracing for a client of the control socket: one at a time, for a while, and off by itself when the client is silent.

import ipaddr from 'ipaddr.js'
import { OperationFailure } from '../control/operations.ts'
import {
  TRACE_VERDICTS,
  type TracePage,
  type TraceQuery,
  type TraceRequest,
  type TraceRow,
  type TraceStep,
  type TraceVerdict,
} from '../control/source.ts'
import { DROP, dropName, dropText } from '../drop.ts'
import { createRecords, RecordReader, type RecordsHandle } from '../memory/records.ts'
import {
  FATE,
  OUTCOME,
  OUTCOME_NAMES,
  STEP,
  STEP_NAMES,
  TRACE,
  TRACE_FLAG,
  type TraceFilter,
  type TraceInput,
} from '../pipeline/trace.ts'

/** Records that wait for the client, a worker. */
const CAPACITY = 1024
/** Rows of a page. */
const PAGE = 500
/** A client that has not asked for so long is gone. */
const SILENCE_MS = 3000
const MOST_PACKETS = 1_000_000
const LONGEST_MS = 3_600_000

/** What a trace is told of the node, and has it do. */
export interface TracedNode {
  /** Names of the workers. */
  workers: string[]
  attachment(number: number): string
  /** Undefined for an id that is not there. */
  numberOf(attachment: string): number | undefined
  endpoint(number: number): string
  /** How the rules are called by which packets pass. NB: of now; flows are told by the number that they were decided by. */
  bypass(): readonly (string | undefined)[]
  trace(inputs: TraceInput[] | undefined): Promise<void>
}

interface Session {
  id: number
  query: TraceQuery
  readers: RecordReader[]
  told: number
  /** When it ends by itself, ms of performance.now(). */
  until: number
  silence: NodeJS.Timeout
}

/** Serves traces: main thread only. */
export class Tracing {
  private readonly node: TracedNode
  private session: Session | undefined
  private opening = false
  private last = 0

  constructor(node: TracedNode) {
    this.node = node
  }

  /** Opens a trace, tells of packets, or ends it. Rejects with an OperationFailure. */
  async ask({ session, query, stop }: TraceRequest): Promise<TracePage> {
    if (session === 0) return this.open(query)
    const current = this.session
    if (current?.id !== session) return { session, rows: [], ended: 'it is over', lost: 0 }
    current.silence.refresh()
    const over = performance.now() > current.until
    const rows = this.read(current)
    current.told += rows.length
    const lost = current.readers.reduce((sum, reader) => sum + reader.lost, 0)
    const all = current.told >= current.query.count
    const ended = stop ? 'stopped' : all ? 'all packets that were asked for' : over ? 'the time is up' : ''
    if (ended !== '') await this.end(current)
    return { session, rows, ended, lost }
  }

  private async open(query: TraceQuery | undefined): Promise<TracePage> {
    if (!query) throw new OperationFailure('bad-request', 'a trace begins with what is to be traced')
    if (this.session !== undefined || this.opening)
      throw new OperationFailure('unavailable', 'another client traces; one can at a time: try again when it has ended')
    const count = Math.min(Math.max(1, query.count), MOST_PACKETS)
    const limitMs = Math.min(Math.max(1, query.limitMs), LONGEST_MS)
    const filter = this.filter(query)
    const records = this.node.workers.map(() => createRecords(CAPACITY, TRACE.WORDS))
    this.opening = true
    try {
      await this.node.trace(records.map((handle: RecordsHandle) => ({ records: handle, filter, count, limitMs })))
    } finally {
      this.opening = false
    }
    const id = ++this.last
    const session: Session = {
      id,
      query: { ...query, count },
      readers: records.map(handle => new RecordReader(handle)),
      told: 0,
      until: performance.now() + limitMs,
      silence: setTimeout(() => void this.end(session).catch(() => {}), SILENCE_MS).unref(),
    }
    this.session = session
    return { session: id, rows: [], ended: '', lost: 0 }
  }

  private async end(session: Session): Promise<void> {
    clearTimeout(session.silence)
    if (this.session !== session) return
    this.session = undefined
    await this.node.trace(undefined)
  }

  private filter({ attachment, address, port, protocol, verdict }: TraceQuery): TraceFilter {
    const filter: TraceFilter = {}
    if (attachment !== undefined) {
      filter.attachment = this.node.numberOf(attachment)
      if (filter.attachment === undefined)
        throw new OperationFailure('bad-request', `attachment ${attachment} is not there; see detour show attachments`)
    }
    if (address !== undefined) {
      if (!ipaddr.isValid(address)) throw new OperationFailure('bad-request', `${address} is no IP address`)
      const bytes = Uint8Array.from(ipaddr.parse(address).toByteArray())
      const view = new DataView(bytes.buffer)
      const words = [0, 4, 8, 12].map(at => (at < bytes.length ? view.getInt32(at) : 0))
      filter.address = { version: bytes.length === 4 ? 4 : 6, words }
    }
    if (port !== undefined) filter.port = port
    if (protocol !== undefined) filter.protocol = protocol
    if (verdict !== undefined) {
      filter.fate = TRACE_VERDICTS.indexOf(verdict)
      if (filter.fate < 0) throw new OperationFailure('bad-request', `verdict ${verdict}: ${TRACE_VERDICTS.join(', ')}`)
    }
    return filter
  }

  private read({ readers, query, told }: Session): TraceRow[] {
    const rows: TraceRow[] = []
    const most = Math.min(PAGE, query.count - told)
    for (const [worker, reader] of readers.entries()) {
      // Each worker gets its share of a page, so that none waits for another.
      const share = Math.ceil(most / readers.length)
      for (let i = 0; i < share && rows.length < most; i++) {
        const record = reader.next()
        if (record === undefined) break
        rows.push(this.row(record, this.node.workers[worker]))
      }
    }
    return rows.sort((a, b) => a.timeMs - b.timeMs)
  }

  private row(record: Int32Array, worker: string): TraceRow {
    const number = record[TRACE.ATTACHMENT]
    const captured = record[TRACE.CAPTURED]
    return {
      worker,
      timeMs: new Float64Array(record.buffer)[TRACE.TIME / 2],
      leg: record[TRACE.LEG] === 0 ? 'toward' : 'return',
      attachment: number < 0 ? '' : this.node.attachment(number),
      verdict: TRACE_VERDICTS[record[TRACE.FATE]] as TraceVerdict,
      length: record[TRACE.LENGTH],
      segment: record[TRACE.SEGMENT],
      bytes: new Uint8Array(record.buffer, TRACE.BYTES * 4, captured),
      steps: Array.from({ length: record[TRACE.STEPS] }, (_, i) => this.step(record, record[TRACE.STEP + i])),
    }
  }

  private step(record: Int32Array, word: number): TraceStep {
    const [step, outcome, reason] = [word >>> 24, (word >>> 16) & 0xff, word & 0xffff]
    return {
      stage: STEP_NAMES[step],
      outcome: OUTCOME_NAMES[outcome],
      reason: reason === 0 ? '' : dropName(reason),
      text: this.explain(record, step, outcome, reason),
    }
  }

  private explain(record: Int32Array, step: number, outcome: number, reason: number): string {
    if (outcome === OUTCOME.SENT)
      return reason === 0 ? '' : `some of those that were sent together were dropped: ${dropText(reason)}`
    if (reason !== 0) return reason === DROP.POLICY ? `${dropText(reason)}: ${this.rule(record)}` : dropText(reason)
    if (step === STEP.RECEIVE) return outcome === OUTCOME.PASSED ? 'was inspected where it left' : ''
    if (step === STEP.CLASSIFY) return outcome === OUTCOME.PASSED ? 'is of the link: never leaves the node' : ''
    if (step === STEP.ENCAP || step === STEP.RESTORE) return this.node.endpoint(record[TRACE.ENDPOINT])
    if (step !== STEP.DECIDE) return ''
    const flow = (record[TRACE.FLAGS] & TRACE_FLAG.NEW) !== 0 ? 'new flow' : 'known flow'
    const isDown = outcome === OUTCOME.PASSED && record[TRACE.FATE] === FATE.PASS && record[TRACE.RULE] < 0
    return `${flow}, ${isDown ? 'no endpoint answers and the attachment fails open' : this.rule(record)}`
  }

  private rule(record: Int32Array): string {
    const rule = record[TRACE.RULE]
    if ((record[TRACE.FLAGS] & TRACE_FLAG.RULE) === 0 || rule < 0) return 'no rule: steered by default'
    return `bypass rule ${this.node.bypass()[rule] ?? rule}`
  }
}
