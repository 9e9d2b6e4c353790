// Capture: a device around a device that writes every packet to a pcapng file, super-packets as they are.
import type { Batch } from '../memory/batch.ts'
import type { Device } from './device.ts'
import { DIRECTION, type PcapWriter } from './pcap-writer.ts'

/** How long packets may wait in the buffer while nothing arrives, in ms. */
const PATIENCE = 200

/**
 * Writes what is received and transmitted, with the time of day and the direction, as an interface of the writer that bears the
 * device's name, until the writer holds `limitBytes`; devices may share a writer. `close` flushes the writer.
 */
export class CaptureDevice implements Device {
  readonly name: string
  readonly capabilities: number
  readonly fd: number
  private readonly device: Device
  private readonly writer: PcapWriter
  private readonly number: number
  private readonly limitBytes: number
  private flushed = 0
  private seconds = 0
  private nanoseconds = 0

  constructor(device: Device, writer: PcapWriter, limitBytes = Number.POSITIVE_INFINITY) {
    this.device = device
    this.writer = writer
    this.name = device.name
    this.capabilities = device.capabilities
    this.fd = device.fd
    this.number = writer.addInterface(device.name)
    this.limitBytes = limitBytes
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
    if (received > 0) this.record(batch, before, DIRECTION.RECEIVED)
    else this.idle()
    return received
  }

  transmit(batch: Batch): void {
    if (batch.length > 0) this.record(batch, 0, DIRECTION.TRANSMITTED)
    this.device.transmit(batch)
  }

  close(): void {
    this.device.close()
    this.writer.flush()
  }

  private record(batch: Batch, from: number, direction: number): void {
    if (this.writer.packetBytes >= this.limitBytes) return
    this.stamp()
    for (let i = from; i < batch.length; i++)
      this.writer.write(batch.frames[i], this.seconds, this.nanoseconds, this.number, direction)
  }

  // A file that is looked at while it grows shows what has happened.
  private idle(): void {
    const now = performance.now()
    if (now - this.flushed < PATIENCE) return
    this.flushed = now
    this.writer.flush()
  }

  private stamp(): void {
    const now = performance.timeOrigin + performance.now()
    this.seconds = Math.floor(now / 1000)
    this.nanoseconds = Math.floor((now - this.seconds * 1000) * 1e6)
  }
}
