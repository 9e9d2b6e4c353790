// UDP: the underlay over a plain UDP socket. No root, no interface of its own; the pipeline still sees whole frames.
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import type { Device } from './device.ts'

export interface UdpOptions {
  /** Local address, as text; `0.0.0.0` or `::` for all. */
  address: string
  /** 0 lets the kernel choose. */
  port: number
  /** Where packets will go: a wildcard address becomes the one that the kernel would send from. */
  remote?: string
  /** UDP_SEGMENT and UDP_GRO; true when not given, off where the kernel lacks them. */
  offload?: boolean
}

/** An open socket: plain data that passes through workerData (a descriptor belongs to the process). */
export interface UdpHandle {
  fd: number
  family: 4 | 6
  /** Bound address, 4 or 16 bytes. */
  address: number[]
  port: number
  segment: boolean
  gro: boolean
}

/** Opens and binds in the calling thread's network namespace. Throws DetourError. */
export function openUdp(_options: UdpOptions): UdpHandle {
  throw new Error('soon')
}

/** The device over the socket of `handle`; close() closes the socket. */
export class UdpDevice implements Device {
  readonly name: string
  readonly capabilities = 0
  readonly fd: number
  readonly exhausted = false
  protected readonly parts: [Pool, StageCounters]

  constructor(pool: Pool, counters: StageCounters, handle: UdpHandle) {
    this.parts = [pool, counters]
    this.name = `udp:${handle.port}`
    this.fd = handle.fd
  }

  receive(_batch: Batch): number {
    return 0
  }

  transmit(_batch: Batch): void {}

  close(): void {}
}
