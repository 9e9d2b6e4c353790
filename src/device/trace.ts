// Trace: a device around a device that writes a line a packet.
import type { Batch } from '../memory/batch.ts'
import type { Pool } from '../memory/pool.ts'
import { type ShowOptions, show } from '../wire/show.ts'
import type { Device } from './device.ts'

export interface TraceOptions extends ShowOptions {
  /** Takes a line, without a newline. NB: in a worker, process.stderr would show it only when the loop ends. */
  write: (line: string) => void
  /** Lines at most; endless when not given. */
  count?: number
}

/** Writes a line for each packet received (`<`) and transmitted (`>`). For people: it allocates. */
export class TraceDevice implements Device {
  readonly name: string
  readonly capabilities: number
  readonly fd: number
  private readonly device: Device
  private readonly pool: Pool
  private readonly options: TraceOptions
  private left: number

  constructor(device: Device, pool: Pool, options: TraceOptions) {
    this.device = device
    this.pool = pool
    this.options = options
    this.name = device.name
    this.capabilities = device.capabilities
    this.fd = device.fd
    this.left = options.count ?? Number.POSITIVE_INFINITY
  }

  get exhausted(): boolean {
    return this.device.exhausted
  }

  get held(): number {
    return this.device.held ?? 0
  }

  get wanting(): boolean {
    return this.device.wanting === true
  }

  receive(batch: Batch): number {
    const before = batch.length
    const received = this.device.receive(batch)
    for (let i = before; i < batch.length && this.left > 0; i++) this.line('<', batch.frames[i])
    return received
  }

  transmit(batch: Batch): void {
    for (let i = 0; i < batch.length && this.left > 0; i++) this.line('>', batch.frames[i])
    this.device.transmit(batch)
  }

  close(): void {
    this.device.close()
  }

  private line(direction: '<' | '>', frame: number): void {
    const { pool, options } = this
    const start = pool.start[frame]
    const text = show(pool.bytes, start, start + pool.length[frame], options)
    const segments = pool.gso[frame] === 0 ? '' : ` (segments of ${pool.gsoSize[frame]})`
    this.left--
    options.write(`${this.name} ${direction} ${text}${segments}`)
  }
}
