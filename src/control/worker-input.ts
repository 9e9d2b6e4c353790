// What the main thread hands to each kind of worker: plain data, shared memory and file descriptors.

import type { DeviceSpec } from '../device/open.ts'
import type { PoolHandle } from '../memory/pool.ts'
import type { FailMode } from '../os/heartbeat.ts'
import type { ForwarderOptions } from '../pipeline/forwarder.ts'
import type { WorkerInput } from './spawn.ts'

/** One pod interface as the worker serves it. */
export interface AttachmentInput {
  attachment: number
  device: DeviceSpec
  mac: number[]
  failMode: FailMode
  heartbeatFd: number
}

/** Input of workers/forward. */
export interface ForwardInput extends WorkerInput {
  pool: PoolHandle
  underlay: DeviceSpec
  attachments: AttachmentInput[]
  forwarder: ForwarderOptions
  heartbeatLimitMs: number
  /** The longest time between two ticks, and so between two heartbeats. */
  tickMs: number
  /** Words: endpoint up (0 or 1), probes sent, probes answered. */
  status: SharedArrayBuffer
}
