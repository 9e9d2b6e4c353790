// What the main thread hands to each kind of worker: plain data, shared memory and file descriptors.

import type { DeviceSpec } from '../device/open.ts'
import type { CaptureFile, CaptureFormat, OutputFile, PiecesHandle, Rate } from '../device/pcap.ts'
import type { SharedFlowTable } from '../flow/live.ts'
import type { PolicyHandle } from '../flow/policy.ts'
import type { Steering } from '../flow/steering.ts'
import type { CountersHandle } from '../memory/counters.ts'
import type { PoolHandle } from '../memory/pool.ts'
import type { FailMode } from '../os/heartbeat.ts'
import type { PollingOptions } from '../pipeline/busy-poll.ts'
import type { ForwarderOptions } from '../pipeline/forwarder.ts'
import type { ProbeOptions } from '../pipeline/probe.ts'
import type { ReplayerOptions } from '../pipeline/replayer.ts'
import type { TraceInput } from '../pipeline/trace.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import type { PeerInput } from './peers.ts'
import type { WorkerInput } from './spawn.ts'

/** One pod interface as a worker serves it. */
export interface AttachmentInput {
  attachment: number
  device: DeviceSpec
  mac: number[]
  failMode: FailMode
  heartbeatFd: number
}

/** Input of workers/forward. */
export interface ForwardInput extends WorkerInput, PeerInput {
  steering: Steering
  underlay: DeviceSpec
  /** The device for small packets to the endpoint, where there is one. */
  express?: DeviceSpec
  /** The worker's own. */
  flows: SharedFlowTable
  forwarder: Omit<ForwarderOptions, 'flows'>
  /** Opens what it is given, but receives nothing and beats no heart until it is told to resume. */
  paused: boolean
  /** An eventfd that wakes it for a request; the main thread closes it. */
  wakeFd: number
  /** The longest time between two ticks, and so between two heartbeats. */
  tickMs: number
  polling: PollingOptions
}

/** What may change while packets flow; what is not given stays. */
export interface LiveSettings {
  policy?: PolicyHandle
  probe?: ProbeOptions
  pace?: { tickMs: number; polling: PollingOptions }
  /** Of attachments, by number. */
  failModes?: [attachment: number, mode: FailMode][]
}

/** What the main thread asks of workers/forward; each is answered by the worker's counters as they are then. */
export type ForwardRequest =
  | { attach: AttachmentInput }
  | { detach: number }
  | { express: DeviceSpec | undefined }
  | { settings: LiveSettings }
  /** Tell of packets from now on, or no more. */
  | { trace: TraceInput | undefined }
  /** Receive: the flow table is nobody else's any more. Or receive no more, but beat on. */
  | { receive: boolean }
  /** No other worker receives any more: finish with what they handed over, and be paused. */
  | { rest: true }

/** Words of `ReplayInput.status`, doubles. */
export const REPLAY_STATUS = {
  READ: 0,
  SENT: 1,
  UNCHANGED: 2,
  CHANGED: 3,
  MADE: 4,
  P50_US: 5,
  P99_US: 6,
  ALL_SENT: 7,
  FLOWS: 8,
  WORDS: 9,
} as const

/** Input of workers/replay. */
export interface ReplayInput extends WorkerInput {
  pool: PoolHandle
  /** The frames that this worker hands out: [first, first + count). */
  frames: { first: number; count: number }
  input: CaptureFile
  rate: Rate
  output: OutputFile | undefined
  format: CaptureFormat
  underlay: DeviceSpec
  replayer: ReplayerOptions
  /** Silence after which a live endpoint is taken to have returned all that it will; undefined where the main thread says when. */
  quietMs: number | undefined
  status: SharedArrayBuffer
}

/** What workers/replay posts when it is done, after its counters. */
export interface ReplayResult {
  /** For each packet written, the number of the packet that it goes back to. */
  order: Int32Array
  faults: string[]
}

/** Input of workers/merge. */
export interface MergeJob extends WorkerInput {
  /** What was replayed: the merged file has its sections, interfaces and options, where the format has such. */
  input: CaptureFile
  /** Each file and, for each of its packets, the number of the packet that it goes back to. */
  parts: { file: CaptureFile; order: Int32Array }[]
  output: OutputFile
  format: CaptureFormat
}

/** What workers/merge posts when it is done. */
export interface MergeResult {
  faults: string[]
}

/** What a call of workers/convert takes. */
export interface ConvertJob {
  direction: 'encap' | 'decap'
  tunnel: TunnelConfig
  input: CaptureFile
  output: OutputFile
  format: CaptureFormat
  /** With it, this job is one of several for the file, which run at the same time. */
  pieces?: PiecesHandle
  /** One double, written as the work goes on: packets read. */
  progress: SharedArrayBuffer
}

/** What it returns. */
export interface ConvertResult {
  counters: CountersHandle
  /** What was wrong with the input, or with writing the output; all that could be converted was. */
  faults: string[]
  /** What it took. */
  ms: number
}
