// Loopback: two connected devices over one shared pool, in two threads or in one.
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import type { Device } from './device.ts'

/** One end, for the thread that uses it; passes through workerData. */
export interface LoopbackHandle {
  name: string
  lossless: boolean
  receive: SharedArrayBuffer
  transmit: SharedArrayBuffer
  /** Frames that come home empty. */
  home: SharedArrayBuffer
  /** Frames to give back to the other end, empty. */
  back: SharedArrayBuffer
  /** Event file descriptors: the one that wakes this end, and the other's. */
  fd: number
  peerFd: number
}

export interface LoopbackOptions {
  name?: string
  /** Frames of the pool, all threads together. */
  frames: number
  /** Frames in flight each way, a power of two; 1024 when not given. */
  capacity?: number
  /** Hold what does not fit instead of dropping it; see `room`. */
  lossless?: boolean
}

/** Creates both ends; the creator closes when neither thread uses them any more. Throws DetourError. */
export function createLoopback(_options: LoopbackOptions): { left: LoopbackHandle; right: LoopbackHandle; close(): void } {
  throw new Error('soon')
}

/** One end of a loopback. */
export class LoopbackDevice implements Device {
  readonly name: string
  readonly capabilities = 0
  readonly fd: number
  readonly exhausted = false
  protected readonly parts: [Pool, StageCounters]

  constructor(pool: Pool, counters: StageCounters, handle: LoopbackHandle) {
    this.parts = [pool, counters]
    this.name = handle.name
    this.fd = handle.fd
  }

  /** Frames that transmit would pass on at once: a loop that may not lose anything asks before it receives elsewhere. */
  get room(): number {
    return 0
  }

  /** Frames that a lossless end holds until there is room. */
  get held(): number {
    return 0
  }

  receive(_batch: Batch): number {
    return 0
  }

  transmit(_batch: Batch): void {}

  close(): void {}
}
