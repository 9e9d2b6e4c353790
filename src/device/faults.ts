// Faults: a device around a device that loses, doubles, reorders, flips and cuts packets, the same ones for the same seed.
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import type { Device } from './device.ts'

export interface Faults {
  /** Probabilities, 0 to 1. */
  loss: number
  duplicate: number
  reorder: number
  corrupt: number
  truncate: number
  /** How many packets a reordered one lets pass, at most. */
  delay: number
  seed: number
}

/** Reads `loss=1%,reorder=5%,delay=8,seed=7`. Throws DetourError (usage). */
export function parseFaults(_text: string): Faults {
  throw new Error('soon')
}

/** Applies faults to what is received and, with dice of their own, to what is transmitted. */
export class FaultyDevice implements Device {
  readonly name: string
  readonly capabilities: number
  readonly fd: number
  private readonly device: Device
  protected readonly parts: [Pool, StageCounters, Faults]

  constructor(device: Device, pool: Pool, counters: StageCounters, faults: Faults) {
    this.device = device
    this.name = device.name
    this.capabilities = device.capabilities
    this.fd = device.fd
    this.parts = [pool, counters, faults]
  }

  get exhausted(): boolean {
    return this.device.exhausted
  }

  receive(batch: Batch): number {
    return this.device.receive(batch)
  }

  transmit(batch: Batch): void {
    this.device.transmit(batch)
  }

  close(): void {
    this.device.close()
  }
}
