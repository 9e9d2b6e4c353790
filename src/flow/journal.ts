// The journal of a flow table: a record when a flow was decided and one when it has ended, for another thread to tell people.
// What it costs is paid by the flow, not by the packet.

import { type RecordsHandle, RecordWriter } from '../memory/records.ts'
import { PROTOCOL } from '../wire/ipv4.ts'
import { HOT, isClosed, LINE, SEEN } from './layout.ts'
import type { FlowTable } from './table.ts'
import { type FlowRecord, flowRecord } from './view.ts'

/** Words of a record: what happened, when (a double, ms of the table's clock), then the flow's two lines. */
export const JOURNAL_WORDS = 4 + 2 * LINE
const TIME = 2
const LINES = 4

/** What happened to a flow: it began, or why it ended. */
export const FLOW_EVENT = { START: 0, IDLE: 1, CLOSED: 2, RESET: 3, DETACHED: 4 } as const
export const FLOW_EVENTS = ['start', 'idle', 'closed', 'reset', 'detached'] as const
export type FlowEventName = (typeof FLOW_EVENTS)[number]

/** Has a table tell of its flows from now on; the table's thread only. */
export function keepJournal(table: FlowTable, handle: RecordsHandle): void {
  const writer = new RecordWriter(handle)
  const { words, doubles } = writer
  const write = (row: number, event: number): number => {
    const at = writer.take()
    if (at < 0) return at
    table.copy(row, words, at + LINES)
    words[at] = event
    doubles[(at + TIME) / 2] = table.now
    return at
  }
  table.onBegin = row => {
    if (write(row, FLOW_EVENT.START) >= 0) writer.submit()
  }
  table.onEnd = row => {
    const at = write(row, FLOW_EVENT.IDLE)
    if (at < 0) return
    words[at] = endOf(table.isGone(row), words[at + LINES + HOT.KIND], words[at + LINES + HOT.VERDICT])
    writer.submit()
  }
}

function endOf(gone: boolean, kind: number, seen: number): number {
  if (gone) return FLOW_EVENT.DETACHED
  if (((kind >>> 16) & 0xff) !== PROTOCOL.TCP || !isClosed(seen)) return FLOW_EVENT.IDLE
  return (seen & SEEN.RST) !== 0 ? FLOW_EVENT.RESET : FLOW_EVENT.CLOSED
}

/** What a record of the journal says. */
export function journalEntry(record: Int32Array): { event: FlowEventName; timeMs: number; flow: FlowRecord } {
  const lines = record.slice(LINES)
  const flow = flowRecord(lines, new Float64Array(lines.buffer), 0)
  return { event: FLOW_EVENTS[record[0]], timeMs: new Float64Array(record.buffer)[TIME / 2], flow }
}
