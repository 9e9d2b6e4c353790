// A device for tests of devices around devices: gives what it is told to, keeps what it is given.

import type { Device } from '../../src/device/device.ts'
import { Batch } from '../../src/memory/batch.ts'
import { createPool, Pool } from '../../src/memory/pool.ts'

export const FRAMES = 2048

export function smallPool(frames = FRAMES): Pool {
  return new Pool(createPool({ frames, frameSize: 512, headroom: 64 }))
}

export class FakeDevice implements Device {
  readonly name = 'fake:0'
  readonly capabilities = 5
  readonly fd = 7
  /** Nothing comes behind what was given. */
  ends = false
  closed = false
  /** Bytes of what was transmitted. */
  readonly sent: Uint8Array[] = []
  private readonly queue: Uint8Array[] = []
  private readonly pool: Pool

  constructor(pool: Pool) {
    this.pool = pool
  }

  get exhausted(): boolean {
    return this.ends && this.queue.length === 0
  }

  /** What receive will give. */
  give(...packets: Uint8Array[]): void {
    this.queue.push(...packets)
  }

  receive(batch: Batch): number {
    let n = 0
    for (; batch.room > 0 && this.queue.length > 0; n++)
      batch.push(frameOf(this.pool, this.queue.shift() as Uint8Array))
    return n
  }

  transmit(batch: Batch): void {
    this.sent.push(...bytesOf(this.pool, batch))
  }

  close(): void {
    this.closed = true
  }
}

/** A frame of these bytes. */
export function frameOf(pool: Pool, bytes: Uint8Array): number {
  const frame = pool.alloc()
  pool.bytes.set(bytes, pool.start[frame])
  pool.length[frame] = bytes.length
  return frame
}

/** The bytes of a batch; frees it. */
export function bytesOf(pool: Pool, batch: Batch): Uint8Array[] {
  const found = Array.from(batch.frames.subarray(0, batch.length), frame =>
    pool.bytes.slice(pool.start[frame], pool.start[frame] + pool.length[frame]),
  )
  pool.freeAll(batch)
  return found
}

/** A batch of these packets. */
export function batchOf(pool: Pool, packets: Uint8Array[]): Batch {
  const batch = new Batch(Math.max(1, packets.length))
  for (const bytes of packets) batch.push(frameOf(pool, bytes))
  return batch
}
