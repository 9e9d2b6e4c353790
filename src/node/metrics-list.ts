// Every metric that a node exports, but for latencies: its name, what it means, and where its values come from.

import { packageVersion } from '../control/package.ts'
import type {
  AlarmRow,
  AttachmentRow,
  EndpointRow,
  Source,
  UnderlayRow,
  WorkerCounters,
  WorkerRow,
} from '../control/source.ts'
import { DROP, DROP_COUNT, dropName } from '../drop.ts'
import { COLUMN, type StageCounters } from '../memory/counters.ts'

/** What one scrape reads. */
export interface Snapshot {
  counters: WorkerCounters[]
  workers: WorkerRow[]
  attachments: AttachmentRow[]
  underlay: UnderlayRow[]
  endpoints: EndpointRow[]
  alarms: AlarmRow[]
  flowLogLost: number
  /** The most that the main thread was late. */
  lagMs: number
}

/** A value and what it is of. */
export type Sample = [labels: Record<string, string>, value: number]

export interface Metric {
  kind: 'counter' | 'gauge'
  name: string
  help: string
  labels: string[]
  samples(snapshot: Snapshot): Sample[]
}

/** Alarms and attachments beyond so many are left out. */
const MOST = 1000

export async function takeSnapshot(source: Source, lagMs: number): Promise<Snapshot> {
  return {
    counters: source.counters(),
    workers: source.workers?.() ?? [],
    attachments: (await source.attachments()).slice(0, MOST),
    underlay: await source.underlay(),
    endpoints: source.endpoints?.() ?? [],
    alarms: (source.alarms?.() ?? []).slice(0, MOST),
    flowLogLost: source.flowLogLost?.() ?? 0,
    lagMs,
  }
}

/** What a packet is dropped for whose flow found no room. */
const REFUSALS = [DROP.FLOW_TABLE_FULL, DROP.FLOW_QUOTA]

type Kind = Metric['kind']

/** Samples of rows: the row's own labels in front of those of each sample. */
function ofRows<Row>(rows: Row[], own: (row: Row) => Record<string, string>, of: (row: Row) => Sample[]): Sample[] {
  return rows.flatMap(row => of(row).map(([labels, value]): Sample => [{ ...own(row), ...labels }, value]))
}

const one = (value: number | undefined): Sample[] => (value === undefined ? [] : [[{}, value]])

function node(kind: Kind, name: string, help: string, value: (snapshot: Snapshot) => number): Metric {
  return { kind, name, help, labels: [], samples: snapshot => one(value(snapshot)) }
}

function stage(name: string, help: string, labels: string[], of: (stage: StageCounters) => Sample[]): Metric {
  const samples = ({ counters }: Snapshot) =>
    counters.flatMap(({ worker, stages }) => ofRows(stages, row => ({ worker, stage: row.name }), of))
  return { kind: 'counter', name, help, labels: ['worker', 'stage', ...labels], samples }
}

const column = (at: number) => (row: StageCounters) => one(row.row[at])
const bothWays =
  (ins: number, outs: number) =>
  ({ row }: StageCounters): Sample[] => [
    [{ direction: 'in' }, row[ins]],
    [{ direction: 'out' }, row[outs]],
  ]

function worker(kind: Kind, name: string, help: string, of: (row: WorkerRow) => number): Metric {
  const own = (row: WorkerRow) => ({ worker: row.worker })
  return { kind, name, help, labels: ['worker'], samples: ({ workers }) => ofRows(workers, own, row => one(of(row))) }
}

function pod(kind: Kind, name: string, help: string, labels: string[], of: (row: AttachmentRow) => Sample[]): Metric {
  const own = (row: AttachmentRow) => ({ attachment: row.id, pod: row.pod ?? '' })
  const samples = ({ attachments }: Snapshot) => ofRows(attachments, own, of)
  return { kind, name, help, labels: ['attachment', 'pod', ...labels], samples }
}

function endpoint(kind: Kind, name: string, help: string, of: (row: EndpointRow) => number): Metric {
  const own = (row: EndpointRow) => ({ endpoint: row.name, address: row.address })
  const samples = ({ endpoints }: Snapshot) => ofRows(endpoints, own, row => one(of(row)))
  return { kind, name, help, labels: ['endpoint', 'address'], samples }
}

function underlay(kind: Kind, name: string, help: string, of: (row: UnderlayRow) => Sample[]): Metric {
  const own = (row: UnderlayRow) => ({ device: row.device, rung: row.rung })
  return { kind, name, help, labels: ['device', 'rung'], samples: snapshot => ofRows(snapshot.underlay, own, of) }
}

function alarm(kind: Kind, name: string, help: string, of: (row: AlarmRow) => number): Metric {
  const own = (row: AlarmRow) => ({ alarm: row.name })
  return { kind, name, help, labels: ['alarm'], samples: ({ alarms }) => ofRows(alarms, own, row => one(of(row))) }
}

function drops(row: StageCounters): Sample[] {
  const samples: Sample[] = []
  for (let reason = 1; reason < DROP_COUNT; reason++) {
    if (row.drops(reason) > 0) samples.push([{ reason: dropName(reason) }, row.drops(reason)])
  }
  return samples
}

/** Gates pass packets when no worker is there, decide when no endpoint is; only decide knows rules. */
function bypassed({ name, row }: StageCounters): Sample[] {
  const down = row[COLUMN.PASSED_DOWN]
  const inspected = row[COLUMN.PASSED_INSPECTED]
  const reasons: [string, number][] = [
    [name === 'decide' ? 'rule' : 'link-local', row[COLUMN.PASSED] - down - inspected],
    [name === 'decide' ? 'endpoint-down' : 'no-worker', down],
    ['inspected', inspected],
  ]
  return reasons.filter(([, packets]) => packets > 0).map(([reason, packets]) => [{ reason }, packets])
}

const refused = ({ stages }: WorkerCounters) =>
  stages.reduce((sum, row) => sum + REFUSALS.reduce((n, reason) => n + row.drops(reason), 0), 0)

export const METRICS: Metric[] = [
  stage(
    'detour_stage_packets_total',
    'Packets that came into a stage and went on; a super-packet is one.',
    ['direction'],
    bothWays(COLUMN.IN_PACKETS, COLUMN.OUT_PACKETS),
  ),
  stage(
    'detour_stage_bytes_total',
    'Bytes that came into a stage and went on.',
    ['direction'],
    bothWays(COLUMN.IN_BYTES, COLUMN.OUT_BYTES),
  ),
  stage(
    'detour_dropped_packets_total',
    'Packets that a stage dropped, for reasons that have occurred; "detour show drops" says what each means.',
    ['reason'],
    drops,
  ),
  stage(
    'detour_bypassed_packets_total',
    'Packets that went on past the endpoint: link-local, by a bypass rule, inspected before, or because it or the workers are down and they may (fail-open).',
    ['reason'],
    bypassed,
  ),
  stage('detour_stage_system_calls_total', 'System calls that a stage made.', [], column(COLUMN.CALLS)),
  stage('detour_stage_errors_total', 'Anomalies that cost no packet.', [], column(COLUMN.ERRORS)),
  stage('detour_stage_copied_bytes_total', 'Payload bytes moved in memory.', [], column(COLUMN.COPIED_BYTES)),

  worker('gauge', 'detour_flows', 'Flows in the table.', row => row.flows),
  worker('gauge', 'detour_flow_table_capacity', 'Flows that the table holds at most.', row => row.capacity),
  worker('counter', 'detour_flows_created_total', 'Flows that began.', row => row.created),
  worker('counter', 'detour_flows_ended_total', 'Flows that ended.', row => Math.max(0, row.created - row.flows)),
  {
    kind: 'counter',
    name: 'detour_flows_refused_total',
    help: 'Packets whose flow found no room.',
    labels: ['worker'],
    samples: ({ counters, workers }) =>
      counters
        .filter(row => workers.some(({ worker }) => worker === row.worker))
        .map(row => [{ worker: row.worker }, refused(row)]),
  },
  worker('gauge', 'detour_worker_heartbeat_age_seconds', 'Since a worker was last heard of.', row => row.ageMs / 1000),
  node(
    'counter',
    'detour_flow_log_lost_total',
    'Lines of the flow log that were lost, because flows came and went faster than they could be written.',
    ({ flowLogLost }) => flowLogLost,
  ),

  node('gauge', 'detour_attachments', 'Pod interfaces that are attached.', ({ attachments }) => attachments.length),
  pod(
    'gauge',
    'detour_attachment_info',
    'How a pod interface is attached, and what becomes of its packets without a worker.',
    ['interface', 'fail_mode', 'rung'],
    row => [[{ interface: row.interface, fail_mode: row.failMode, rung: row.attachRung }, 1]],
  ),
  pod(
    'gauge',
    'detour_attachment_heartbeat_age_seconds',
    'Age of the heartbeat that the kernel compares with the limit.',
    [],
    row => one(row.heartbeatAgeMs === undefined ? undefined : row.heartbeatAgeMs / 1000),
  ),
  pod(
    'counter',
    'detour_attachment_redirected_packets_total',
    'Packets that the kernel gave to the workers; a super-packet is one.',
    [],
    row => one(row.redirected),
  ),
  pod(
    'counter',
    'detour_attachment_fail_mode_packets_total',
    'Packets that the kernel passed uninspected or dropped, because a worker was silent for too long.',
    ['action'],
    row => [
      [{ action: 'passed' }, row.failPassed],
      [{ action: 'dropped' }, row.failDropped],
    ],
  ),
  pod(
    'counter',
    'detour_attachment_missed_packets_total',
    'Packets that the queue to the worker had no room for.',
    [],
    row => one(row.missed),
  ),

  underlay('gauge', 'detour_underlay_mtu_bytes', 'MTU toward the endpoint.', row => one(row.mtu)),
  underlay(
    'counter',
    'detour_underlay_missed_packets_total',
    'Packets that the queue from the underlay had no room for.',
    row => one(row.missed),
  ),
  endpoint('gauge', 'detour_endpoint_up', 'Whether an endpoint answers.', row => (row.state === 'down' ? 0 : 1)),
  endpoint('gauge', 'detour_endpoint_draining', 'Whether an endpoint gets no new flows.', row =>
    row.state === 'draining' ? 1 : 0,
  ),
  endpoint('gauge', 'detour_endpoint_weight', 'Share of the flows among healthy endpoints.', row => row.weight),
  endpoint('gauge', 'detour_endpoint_flows', 'Flows that go to an endpoint.', row => row.flows),
  endpoint('counter', 'detour_endpoint_probes_sent_total', 'Probes sent through the tunnel.', row => row.probesSent),
  endpoint('counter', 'detour_endpoint_probes_answered_total', 'Probes that came back.', row => row.probesAnswered),

  alarm('gauge', 'detour_alarm_raised', 'Whether an alarm holds.', row => (row.raised ? 1 : 0)),
  alarm('counter', 'detour_alarms_total', 'How often an alarm was raised.', row => row.times),

  {
    kind: 'gauge',
    name: 'detour_build_info',
    help: 'One, with the version that runs.',
    labels: ['version'],
    samples: () => [[{ version: packageVersion() }, 1]],
  },
  node(
    'gauge',
    'detour_event_loop_lag_seconds',
    'The most that the main thread was late since the last scrape; packets do not wait for it.',
    ({ lagMs }) => lagMs / 1000,
  ),
  node('gauge', 'process_resident_memory_bytes', 'Resident memory.', () => process.memoryUsage.rss()),
  node('counter', 'process_cpu_seconds_total', 'Processor time of all threads.', () => {
    const { user, system } = process.cpuUsage()
    return (user + system) / 1e6
  }),
  node(
    'gauge',
    'process_start_time_seconds',
    'When the process started, since the epoch.',
    () => performance.timeOrigin / 1000,
  ),
]
