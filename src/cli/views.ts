// The tables of `detour show`: one view a topic, from the rows of a reply to lines of text.

import { protocolName } from '../control/flows.ts'
import type { DropRow, ReplyBodies, Rows, StageRow } from '../control/protocol.ts'
import type { FlowRow, Histogram } from '../control/source.ts'
import { bitRate, bytes, type Column, count, duration, type Paint, packetRate, table } from './table.ts'

/** The topics that people can ask for. */
export const TOPICS = ['stats', 'drops', 'flows', 'attachments', 'endpoints', 'underlay', 'alarms', 'faults'] as const
export type ShowTopic = (typeof TOPICS)[number]

/** How a view is to be drawn. */
export interface ViewOptions<T extends ShowTopic> {
  paint: Paint
  /** Zero rows too. */
  all: boolean
  /** The reply before this one, and how long ago that was: rates are shown. */
  before?: { reply: ReplyBodies[T]; seconds: number }
}

type Views = { [T in ShowTopic]: (reply: ReplyBodies[T], options: ViewOptions<T>) => string[] }

const left = (title: string): Column => ({ title })
const right = (title: string): Column => ({ title, right: true })
const varying = (title: string): Column => ({ title, varying: true })

/** The lines of a topic's table. */
export const VIEWS: Views = {
  stats({ rows }, { paint, all, before }) {
    const shown = withSums(rows, stageKey).filter(
      row => all || row.inPackets + row.outPackets + row.drops + row.errors + row.calls !== 0,
    )
    if (shown.length === 0) return [nothing('no packet yet', all)]
    const columns = [varying('WORKER'), left('STAGE'), right('IN'), right('OUT'), right('DROPPED')]
    if (before !== undefined) columns.push(right('IN/S'), right('OUT/S'), right('OUT RATE'))
    columns.push(
      right('PASSED'),
      right('IN BYTES'),
      right('OUT BYTES'),
      right('CREATED'),
      right('COPIED'),
      right('CALLS'),
      right('ERRORS'),
    )
    const old = index(withSums(before?.reply.rows ?? [], stageKey), stageKey)
    const cells = shown.map(row => {
      const was = old.get(stageKey(row))
      const rate = (now: number, then = 0) => Math.max(0, now - then) / (before?.seconds || 1)
      const rates = [
        packetRate(rate(row.inPackets, was?.inPackets)),
        packetRate(rate(row.outPackets, was?.outPackets)),
        bitRate(rate(row.outBytes, was?.outBytes)),
      ]
      return [
        ...[row.worker, row.stage, count(row.inPackets), count(row.outPackets), count(row.drops)],
        ...(before === undefined ? [] : rates),
        ...[
          count(row.passed ?? 0),
          bytes(row.inBytes),
          bytes(row.outBytes),
          count(row.created),
          bytes(row.copiedBytes),
        ],
        ...[count(row.calls), count(row.errors)],
      ]
    })
    return table(columns, cells, paint)
  },

  drops({ rows }, { paint, before }) {
    if (rows.length === 0) return ['nothing was dropped']
    const columns = [varying('WORKER'), left('STAGE'), left('REASON'), right('PACKETS')]
    if (before !== undefined) columns.push(right('PER SECOND'))
    const old = index(withSums(before?.reply.rows ?? [], dropKey), dropKey)
    const cells = withSums(rows, dropKey).map(row => {
      const gone = Math.max(0, row.packets - (old.get(dropKey(row))?.packets ?? 0))
      const rates = before === undefined ? [] : [packetRate(gone / before.seconds)]
      return [row.worker, row.stage, row.reason, count(row.packets), ...rates, row.text]
    })
    return table([...columns, left('MEANING')], cells, paint)
  },

  flows({ rows, matched, total, capacity }, { paint, before }) {
    const summary = `${count(total)} of at most ${count(capacity)} flows; ${count(matched)} match, ${count(rows.length)} shown`
    if (rows.length === 0) return [summary]
    const rate = rates(before, flowKey)
    const lines = cells(rows, paint, [
      [varying('WORKER'), row => row.worker],
      [varying('ATTACHMENT'), row => row.attachment],
      [varying('ENDPOINT'), row => row.endpoint ?? '-'],
      [left('PROTOCOL'), row => protocolName(row.protocol)],
      [left('SOURCE'), row => endpoint(row.source, row.sourcePort)],
      [left('DESTINATION'), row => endpoint(row.destination, row.destinationPort)],
      [left('VERDICT'), row => row.verdict],
      ...only(rows, row => row.rule !== undefined, [left('RULE'), row => row.rule ?? '-']),
      [right('TOWARD'), row => count(row.sentPackets)],
      [right('BYTES'), row => bytes(row.sentBytes)],
      ...rate([right('RATE'), (row, per) => bitRate(per(of => of.sentBytes, row))]),
      [right('RETURN'), row => count(row.receivedPackets)],
      [right('BYTES'), row => bytes(row.receivedBytes)],
      ...rate([right('RATE'), (row, per) => bitRate(per(of => of.receivedBytes, row))]),
      [right('AGE'), row => duration(row.ageMs)],
      [right('IDLE'), row => duration(row.idleMs)],
    ])
    return [summary, ...lines]
  },

  attachments({ rows }, { paint, before }) {
    if (rows.length === 0) return ['no attachments']
    const rate = rates(before, row => row.id)
    return cells(rows, paint, [
      [left('ID'), row => row.id],
      ...only(rows, row => row.pod !== undefined, [left('POD'), row => row.pod ?? '-']),
      [left('NAMESPACE'), row => row.namespace],
      [left('INTERFACE'), row => row.interface],
      [left('MAC'), row => row.mac],
      [left('ADDRESSES'), row => row.addresses.join(' ')],
      [right('MTU'), row => String(row.mtu)],
      [left('FAIL'), row => row.failMode],
      [right('HEARTBEAT'), row => heartbeat(row.heartbeatAgeMs, row.heartbeatLimitMs)],
      [left('ATTACH'), row => row.attachRung],
      [left('OFFLOAD'), row => row.offloadRung],
      [right('TAKEN'), row => (row.redirected === undefined ? '-' : count(row.redirected))],
      ...rate([right('TAKEN/S'), (row, per) => packetRate(per(of => of.redirected ?? 0, row))]),
      [right('FAIL-PASSED'), row => count(row.failPassed)],
      [right('FAIL-DROPPED'), row => count(row.failDropped)],
      [right('MISSED'), missed],
      ...rate([right('LOST/S'), (row, per) => packetRate(per(of => of.failDropped + (of.missed ?? 0), row))]),
    ])
  },

  endpoints({ rows }, { paint, before }) {
    if (rows.length === 0) return ['no endpoints']
    const rate = rates(before, row => `${row.name}\0${row.address}`)
    return cells(rows, paint, [
      [left('NAME'), row => row.name],
      [left('ADDRESS'), row => row.address],
      [right('WEIGHT'), row => String(row.weight)],
      [left('STATE'), row => (row.state === 'down' ? 'DOWN' : row.state)],
      [right('SINCE'), row => duration(row.sinceMs)],
      [right('FLOWS'), row => count(row.flows)],
      [right('PROBES'), row => count(row.probesSent)],
      [right('ANSWERED'), row => count(row.probesAnswered)],
      ...rate([right('ANSWERED/S'), (row, per) => per(of => of.probesAnswered, row).toFixed(1)]),
      [right('P50'), row => quantile(row.latency, 0.5)],
      [right('P99'), row => quantile(row.latency, 0.99)],
      [right('MTU'), row => (row.mtu ? String(row.mtu) : '-')],
    ])
  },

  underlay({ rows }, { paint, before }) {
    if (rows.length === 0) return ['no underlay']
    const rate = rates(before, row => row.device)
    return cells(rows, paint, [
      [left('DEVICE'), row => row.device],
      [left('PROFILE'), row => row.profile],
      [left('LOCAL'), row => row.local],
      [left('REMOTE'), row => row.remote],
      [right('PORT'), row => String(row.port)],
      [right('VNI'), row => String(row.vni)],
      [right('MTU'), row => String(row.mtu)],
      [left('RUNG'), row => row.rung],
      [right('MISSED'), missed],
      ...rate([right('MISSED/S'), (row, per) => packetRate(per(of => of.missed ?? 0, row))]),
      [left('CAPABILITIES'), row => row.capabilities.join(' ') || '-'],
    ])
  },

  alarms({ rows }, { paint }) {
    if (rows.length === 0) return ['nothing has been wrong']
    const columns = [left('STATE'), right('SINCE'), right('TIMES'), left('ALARM')]
    const cells = rows.map(row => [row.raised ? 'RAISED' : 'over', duration(row.sinceMs), count(row.times), row.text])
    return table(columns, cells, paint)
  },

  faults({ rows }, { paint, before }) {
    if (rows.length === 0) return ['no faults']
    const rate = rates(before, row => String(row.id))
    return cells(rows, paint, [
      [right('ID'), row => String(row.id)],
      [left('STATE'), row => row.state],
      [right('LEFT'), row => (row.leftMs === undefined ? '-' : duration(row.leftMs))],
      [right('PACKETS'), row => count(row.packets)],
      ...rate([right('PACKETS/S'), (row, per) => packetRate(per(of => of.packets, row))]),
      [left('FAULT'), row => row.spec],
    ])
  },
}

/** A column and what it says of a row. */
type Cells<Row> = [column: Column, text: (row: Row) => string]
/** What a number of a row has grown by a second. */
type Per<Row> = (of: (row: Row) => number, row: Row) => number
type RateCells<Row> = [column: Column, text: (row: Row, per: Per<Row>) => string]

function cells<Row>(rows: Row[], paint: Paint, columns: Cells<Row>[]): string[] {
  const lines = rows.map(row => columns.map(([, text]) => text(row)))
  return table(
    columns.map(([column]) => column),
    lines,
    paint,
  )
}

/** A column where any row has something to say. */
function only<Row>(rows: Row[], has: (row: Row) => boolean, column: Cells<Row>): Cells<Row>[] {
  return rows.some(has) ? [column] : []
}

/** Columns of rates; none without a reply from before. */
function rates<Row>(before: { reply: Rows<Row>; seconds: number } | undefined, key: (row: Row) => string) {
  const old = index(before?.reply.rows ?? [], key)
  const per: Per<Row> = (of, row) => {
    const was = old.get(key(row))
    return was === undefined ? 0 : Math.max(0, of(row) - of(was)) / (before?.seconds || 1)
  }
  return ([column, text]: RateCells<Row>): Cells<Row>[] =>
    before === undefined ? [] : [[column, row => text(row, per)]]
}

const flowKey = (row: FlowRow) =>
  [row.worker, row.attachment, row.protocol, row.source, row.sourcePort, row.destination, row.destinationPort].join()
const stageKey = (row: StageRow) => `${row.worker}\0${row.stage}`
const dropKey = (row: DropRow) => `${row.worker}\0${row.stage}\0${row.reason}`

const ALL = 'all'
/** Stages of the kernel have no others beside them. */
const KERNEL = 'kernel'

/** The rows and, where there are several workers, what those of one key come to together. */
function withSums<Row extends { worker: string }>(all: Row[], key: (row: Row) => string): Row[] {
  const rows = all.filter(row => row.worker !== KERNEL)
  if (new Set(rows.map(row => row.worker)).size < 2) return all
  const sums = new Map<string, Row>()
  for (const row of rows) {
    const own = { ...row, worker: ALL }
    const sum = sums.get(key(own))
    sums.set(key(own), sum === undefined ? own : added(sum, own))
  }
  return [...all, ...sums.values()]
}

/** Two rows as one, numbers added. */
function added<Row extends object>(a: Row, b: Row): Row {
  const other = b as Record<string, unknown>
  const sum = Object.entries(a).map(([name, value]) => [
    name,
    typeof value === 'number' ? value + Number(other[name]) : value,
  ])
  return Object.fromEntries(sum) as Row
}

function index<Row>(rows: Row[], key: (row: Row) => string): Map<string, Row> {
  return new Map(rows.map(row => [key(row), row]))
}

function nothing(what: string, all: boolean): string {
  return all ? 'no stages' : `${what} (--all shows zero rows too)`
}

function endpoint(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}

const missed = (row: { missed?: number }) => (row.missed === undefined ? '-' : count(row.missed))

function heartbeat(ageMs: number | undefined, limitMs: number): string {
  if (ageMs === undefined) return '-'
  return `${duration(ageMs)} ${ageMs > limitMs ? 'DEAD' : `of ${duration(limitMs)}`}`
}

/** The time that a share of all stays under, as far as the histogram tells. */
function quantile(latency: Histogram | undefined, share: number): string {
  const total = latency?.counts.reduce((sum, n) => sum + n, 0) ?? 0
  if (!latency || total === 0) return '-'
  let rest = Math.ceil(total * share)
  const bucket = latency.counts.findIndex(n => {
    rest -= n
    return rest <= 0
  })
  const { bounds } = latency
  return bucket < bounds.length ? `< ${duration(bounds[bucket])}` : `> ${duration(bounds[bounds.length - 1])}`
}
