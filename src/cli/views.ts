// The tables of `detour show`: one view a topic, from the rows of a reply to lines of text.

import type { DropRow, ReplyBodies, StageRow } from '../control/protocol.ts'
import { bitRate, bytes, type Column, count, duration, type Paint, packetRate, table } from './table.ts'

/** The topics that people can ask for. */
export const TOPICS = ['stats', 'drops', 'flows', 'attachments', 'underlay', 'alarms'] as const
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
        ...[bytes(row.inBytes), bytes(row.outBytes), count(row.created), bytes(row.copiedBytes)],
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

  flows({ rows, matched, total, capacity }, { paint }) {
    const summary = `${count(total)} of at most ${count(capacity)} flows; ${count(matched)} match, ${count(rows.length)} shown`
    if (rows.length === 0) return [summary]
    const columns = [
      ...[varying('WORKER'), varying('ATTACHMENT'), left('PROTOCOL'), left('SOURCE'), left('DESTINATION')],
      ...[
        left('VERDICT'),
        right('TOWARD'),
        right('BYTES'),
        right('RETURN'),
        right('BYTES'),
        right('AGE'),
        right('IDLE'),
      ],
    ]
    const cells = rows.map(row => [
      ...[row.worker, row.attachment, protocolName(row.protocol)],
      ...[endpoint(row.source, row.sourcePort), endpoint(row.destination, row.destinationPort), row.verdict],
      ...[count(row.sentPackets), bytes(row.sentBytes), count(row.receivedPackets), bytes(row.receivedBytes)],
      ...[duration(row.ageMs), duration(row.idleMs)],
    ])
    return [summary, ...table(columns, cells, paint)]
  },

  attachments({ rows }, { paint }) {
    if (rows.length === 0) return ['no attachments']
    const columns = [
      ...[left('ID'), left('NAMESPACE'), left('INTERFACE'), left('MAC'), left('ADDRESSES'), right('MTU'), left('FAIL')],
      ...[
        right('HEARTBEAT'),
        left('ATTACH'),
        left('OFFLOAD'),
        right('FAIL-PASSED'),
        right('FAIL-DROPPED'),
        right('MISSED'),
      ],
    ]
    const cells = rows.map(row => [
      ...[row.id, row.namespace, row.interface, row.mac, row.addresses.join(' '), String(row.mtu), row.failMode],
      ...[heartbeat(row.heartbeatAgeMs, row.heartbeatLimitMs), row.attachRung, row.offloadRung],
      ...[count(row.failPassed), count(row.failDropped), missed(row)],
    ])
    return table(columns, cells, paint)
  },

  underlay({ rows }, { paint }) {
    if (rows.length === 0) return ['no underlay']
    const columns = [
      ...[left('DEVICE'), left('PROFILE'), left('LOCAL'), left('REMOTE'), right('PORT'), right('VNI'), right('MTU')],
      ...[left('RUNG'), right('MISSED'), left('CAPABILITIES')],
    ]
    const cells = rows.map(row => [
      ...[row.device, row.profile, row.local, row.remote, String(row.port), String(row.vni), String(row.mtu)],
      ...[row.rung, missed(row), row.capabilities.join(' ') || '-'],
    ])
    return table(columns, cells, paint)
  },

  alarms({ rows }, { paint }) {
    if (rows.length === 0) return ['nothing has been wrong']
    const columns = [left('STATE'), right('SINCE'), right('TIMES'), left('ALARM')]
    const cells = rows.map(row => [row.raised ? 'RAISED' : 'over', duration(row.sinceMs), count(row.times), row.text])
    return table(columns, cells, paint)
  },
}

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

const PROTOCOLS: Record<number, string> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmp6', 132: 'sctp' }

function protocolName(protocol: number): string {
  return PROTOCOLS[protocol] ?? String(protocol)
}

function endpoint(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}

const missed = (row: { missed?: number }) => (row.missed === undefined ? '-' : count(row.missed))

function heartbeat(ageMs: number | undefined, limitMs: number): string {
  if (ageMs === undefined) return '-'
  return `${duration(ageMs)} ${ageMs > limitMs ? 'DEAD' : `of ${duration(limitMs)}`}`
}
