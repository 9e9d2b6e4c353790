// What a long-running face tells about itself on the control socket: plain data, read when somebody asks.

import type { StageCounters } from '../memory/counters.ts'

/** Something that is or was wrong, or a change that somebody should know of. */
export interface AlarmRow {
  /** What it is about: `uplink eth0`. */
  name: string
  /** What was said of it last. */
  text: string
  raised: boolean
  /** How often it began. */
  times: number
  /** For how long it has been as it is. */
  sinceMs: number
}

/** The long-running faces; the name of one is also the name of its socket. */
export const FACES = ['lab', 'gateway', 'node', 'replay'] as const
export type Face = (typeof FACES)[number]

/** Who answers. The server adds process id, uptime and version. */
export interface FaceInfo {
  face: Face
  /** The tunnel's profile: `geneve`, `vxlan`. */
  profile: string
}

/** One worker's counters, as `readCounters` gives them: live views or a copy. */
export interface WorkerCounters {
  worker: string
  stages: StageCounters[]
}

/** What was decided for a flow. */
export type FlowVerdict = 'pass' | 'steer' | 'drop' | 'allow' | 'reset'

/** One flow; source and destination are those of its first packet, sent and received are as its source sees them. */
export interface FlowRow {
  worker: string
  /** Id of the attachment, or of the tunnel's peer at a gateway; empty when unknown. */
  attachment: string
  /** Name of the endpoint that it goes to, where one is known. */
  endpoint?: string
  /** IP protocol number. */
  protocol: number
  source: string
  sourcePort: number
  destination: string
  destinationPort: number
  verdict: FlowVerdict
  /** The bypass rule that decided; undefined when none did. */
  rule?: string
  sentPackets: number
  sentBytes: number
  receivedPackets: number
  receivedBytes: number
  /** Since the first packet. */
  ageMs: number
  /** Since the last packet, either way. */
  idleMs: number
  /** The flow cookie as it goes on the wire; 0 when there is none. */
  cookie: number
}

export const FLOW_ORDERS = ['bytes', 'packets', 'age', 'idle'] as const
export type FlowOrder = (typeof FLOW_ORDERS)[number]

/** Which flows are wanted: every field that is set must match. */
export interface FlowQuery {
  /** At most so many rows; the server has clamped it to FLOW_LIMIT. */
  limit: number
  /** Largest first; `idle` is least idle first. */
  order: FlowOrder
  /** Either side's address, exactly. */
  address?: string
  /** Either side's port. */
  port?: number
  protocol?: number
  attachment?: string
  verdict?: FlowVerdict
}

/** The rows asked for, and how many matched and how many there are in all. */
export interface FlowPage {
  rows: FlowRow[]
  matched: number
  total: number
  /** How many the table holds at most, over all workers. */
  capacity: number
}

/** One pod interface. */
export interface AttachmentRow {
  id: string
  /** What people know the pod by: `default/web-0`; where it is known. */
  pod?: string
  /** Name or path of the network namespace. */
  namespace: string
  interface: string
  mac: string
  addresses: string[]
  mtu: number
  failMode: 'open' | 'closed'
  /** Age of the heartbeat that the interception program compares with its limit; undefined where there is none. */
  heartbeatAgeMs?: number
  heartbeatLimitMs: number
  /** `tcx`, `clsact`. */
  attachRung: string
  /** `tunnel-gso`, `uso`, `udp-socket`, `plain`. */
  offloadRung: string
  /** Packets that the kernel gave to the workers; a super-packet is one. */
  redirected?: number
  /** Packets that the kernel passed untouched, or dropped, because the heartbeat was too old. */
  failPassed: number
  failDropped: number
  /** Packets that the queue to the worker had no room for: dropped by the kernel, in no stage's counters. */
  missed?: number
}

/** One way to the endpoint. */
export interface UnderlayRow {
  /** The device: `tap:dtr0`, `udp:10.0.0.1:6081`. */
  device: string
  profile: string
  local: string
  remote: string
  port: number
  vni: number
  mtu: number
  /** The offload rung that was chosen. */
  rung: string
  /** Names of the CAPABILITY bits. */
  capabilities: string[]
  /** As of an attachment; undefined where there is no TAP. */
  missed?: number
}

/** How many of what was measured were how long. */
export interface Histogram {
  /** Upper bounds in ms, ascending; what is longer than the last one is counted behind it. */
  bounds: readonly number[]
  /** One more than bounds, each on its own. */
  counts: number[]
  sumMs: number
}

/** One inspection endpoint. */
export interface EndpointRow {
  name: string
  address: string
  weight: number
  /** `draining`: answers, and gets no new flows. */
  state: 'up' | 'down' | 'draining'
  /** For how long it has been so. */
  sinceMs: number
  /** Flows that go to it now. */
  flows: number
  probesSent: number
  probesAnswered: number
  /** How long probes through the tunnel took. */
  latency?: Histogram
  /** Largest inner datagram that it was found to carry. */
  mtu?: number
}

/** One worker. */
export interface WorkerRow {
  worker: string
  /** In its flow table now, at most, and ever. */
  flows: number
  capacity: number
  created: number
  /** Since it was last heard of. */
  ageMs: number
}

/** Which packets are traced: every field that is set must match, either side's where there are two. */
export interface TraceQuery {
  /** Id of an attachment; packets of all, and those that belong to none, when not given. */
  attachment?: string
  address?: string
  port?: number
  protocol?: number
  verdict?: TraceVerdict
  /** Packets, and time: the trace ends by itself. */
  count: number
  limitMs: number
}

/** What became of a packet: `deliver` is a returned one that goes to its pod. */
export const TRACE_VERDICTS = ['steer', 'pass', 'drop', 'deliver'] as const
export type TraceVerdict = (typeof TRACE_VERDICTS)[number]

/** What one stage made of a packet. */
export interface TraceStep {
  stage: string
  /** `on`, `passed`, `dropped`, `answered`, `sent`. */
  outcome: string
  /** Of a drop: the reason's name. */
  reason: string
  /** In words; may be empty. */
  text: string
}

export interface TraceRow {
  worker: string
  /** Since the epoch. */
  timeMs: number
  /** Toward the endpoint, or on the return. */
  leg: 'toward' | 'return'
  attachment: string
  verdict: TraceVerdict
  /** Bytes of the packet, and of a segment of a super-packet, else 0. */
  length: number
  segment: number
  /** How it begins. */
  bytes: Uint8Array
  steps: TraceStep[]
}

/** Opens a trace, with a query, or asks for more of one; who does not ask for seconds has it ended. */
export interface TraceRequest {
  /** 0 to open one. */
  session: number
  query?: TraceQuery
  /** Ends it. */
  stop: boolean
}

export interface TracePage {
  session: number
  rows: TraceRow[]
  /** Why no more will come; empty while more may. */
  ended: string
  /** Packets that matched and could not be told of, because they were too many. */
  lost: number
}

/** One fault on demand. */
export interface FaultRow {
  id: number
  /** As it would be written: `drop,share=10%,port=80`. */
  spec: string
  state: 'waiting' | 'active' | 'over'
  /** How many packets it has befallen. */
  packets: number
  /** Until it begins or ends; undefined where it has no end. */
  leftMs?: number
}

/** Faults on demand. */
export interface FaultControl {
  rows(): FaultRow[]
  /** Adds the faults of a SPEC; resolves when every worker has them. Throws DetourError for one that is not allowed. */
  add(spec: string): Promise<FaultRow[]>
  /** Ends and forgets one fault, or all; resolves to those when no worker has them any more. Throws DetourError where there is none of the id. */
  clear(id?: number): Promise<FaultRow[]>
}

/** What the control server reads from; functions return at once or soon, and do not throw for an empty table. */
export interface Source {
  info(): FaceInfo
  counters(): WorkerCounters[]
  flows(query: FlowQuery): FlowPage | Promise<FlowPage>
  attachments(): AttachmentRow[] | Promise<AttachmentRow[]>
  underlay(): UnderlayRow[] | Promise<UnderlayRow[]>
  /** Those that hold first; of faces that keep watch. */
  alarms?(): AlarmRow[]
  endpoints?(): EndpointRow[]
  workers?(): WorkerRow[]
  /** Records of flows that nobody could be told of. */
  flowLogLost?(): number
  /** Throws DetourError when another client traces, or the attachment is not there. */
  trace?(request: TraceRequest): Promise<TracePage>
  /** Of faces that do wrong when asked to. */
  faults?: FaultControl
}

/** More rows than this are never sent. */
export const FLOW_LIMIT = 5000

/** Filters and orders flows for a source that can list them, holding no more than the rows asked for. */
export function selectFlows(flows: Iterable<FlowRow>, query: FlowQuery, capacity: number): FlowPage {
  const rank = ranks[query.order]
  const before = (a: FlowRow, b: FlowRow) => rank(b) - rank(a)
  let rows: FlowRow[] = []
  let matched = 0
  let total = 0
  for (const flow of flows) {
    total++
    if (!matches(flow, query)) continue
    matched++
    rows.push(flow)
    if (rows.length >= 2 * query.limit + 64) rows = rows.sort(before).slice(0, query.limit)
  }
  return { rows: rows.sort(before).slice(0, query.limit), matched, total, capacity }
}

const ranks: Record<FlowOrder, (flow: FlowRow) => number> = {
  bytes: flow => flow.sentBytes + flow.receivedBytes,
  packets: flow => flow.sentPackets + flow.receivedPackets,
  age: flow => flow.ageMs,
  idle: flow => -flow.idleMs,
}

function matches(flow: FlowRow, query: FlowQuery): boolean {
  return (
    (query.address === undefined || query.address === flow.source || query.address === flow.destination) &&
    (query.port === undefined || query.port === flow.sourcePort || query.port === flow.destinationPort) &&
    (query.protocol === undefined || query.protocol === flow.protocol) &&
    (query.attachment === undefined || query.attachment === flow.attachment) &&
    (query.verdict === undefined || query.verdict === flow.verdict)
  )
}
