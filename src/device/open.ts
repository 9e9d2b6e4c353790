// Builds the devices of a worker from plain data: the one place that knows which kinds and wrappers there are.

import { writeSync } from 'node:fs'
import type { DetourError } from '../errors.ts'
import type { Counters, StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import type { XdpHandle } from '../os/xdp.ts'
import type { ShowOptions } from '../wire/show.ts'
import { CaptureDevice } from './capture.ts'
import type { Device } from './device.ts'
import type { Faults } from './faults.ts'
import { FaultyDevice } from './faulty.ts'
import { LoopbackDevice, type LoopbackHandle } from './loopback.ts'
import { type OutputFile, PcapWriter } from './pcap.ts'
import { TapDevice, type TapSpec } from './tap.ts'
import { TraceDevice } from './trace.ts'
import { UdpDevice, type UdpHandle } from './udp.ts'
import { XdpDevice } from './xdp.ts'

/** A device as plain data that passes through workerData, with the wrappers that people asked for. */
export interface DeviceSpec {
  device:
    | ({ kind: 'tap' | 'packet' } & TapSpec)
    | ({ kind: 'xdp' } & XdpHandle)
    | ({ kind: 'udp' } & UdpHandle)
    | ({ kind: 'loopback' } & LoopbackHandle)
  /** Seeded loss, reordering and so on. */
  faults?: Faults
  /** Prints packets on standard error, so many at most. */
  trace?: { count: number } & ShowOptions
  /** Writes every packet to a capture file, which several devices may share. */
  capture?: OutputFile
}

/** The devices of one worker. */
export class Devices {
  private readonly pool: Pool
  private readonly counters: Counters
  /** Devices, and the counters that go with each. */
  private readonly opened = new Map<Device, StageCounters[]>()
  private readonly writers = new Map<number, PcapWriter>()

  constructor(pool: Pool, counters: Counters) {
    this.pool = pool
    this.counters = counters
  }

  /** Opens a device and wraps it: faults nearest to the wire, then capture and trace, which so show what the pipeline sees. */
  open(spec: DeviceSpec): Device {
    const { pool, counters } = this
    const before = counters.stages.length
    let device = this.bare(spec.device)
    if (spec.faults !== undefined) {
      device = new FaultyDevice(device, pool, counters.stage(`faults ${device.name}`), spec.faults)
    }
    const own = counters.stages.slice(before)
    if (spec.capture !== undefined) {
      device = new CaptureDevice(device, this.writer(spec.capture), spec.capture.limitBytes)
    }
    if (spec.trace !== undefined)
      device = new TraceDevice(device, pool, { ...spec.trace, write: line => writeSync(2, `${line}\n`) })
    this.opened.set(device, own)
    return device
  }

  /** What was wrong with capture files. */
  get faults(): DetourError[] {
    return [...this.writers.values()].flatMap(({ fault }) => fault ?? [])
  }

  /** Closes a device, and forgets its counters. */
  release(device: Device): void {
    device.close()
    for (const stage of this.opened.get(device) ?? []) this.counters.remove(stage)
    this.opened.delete(device)
  }

  /** Closes every device; capture files are complete afterwards. */
  close(): void {
    for (const device of this.opened.keys()) device.close()
    this.opened.clear()
  }

  private writer(file: OutputFile): PcapWriter {
    const known = this.writers.get(file.fd)
    if (known !== undefined) return known
    const writer = new PcapWriter(this.pool, this.counters.stage(`capture ${file.name}`), file)
    this.writers.set(file.fd, writer)
    return writer
  }

  private bare(spec: DeviceSpec['device']): Device {
    const { pool } = this
    switch (spec.kind) {
      case 'tap':
      case 'packet':
        return new TapDevice(pool, this.counters.stage(`${spec.kind} ${spec.name}`), spec)
      case 'xdp':
        return new XdpDevice(pool, this.counters.stage(`xdp ${spec.name}`), spec)
      case 'udp':
        return new UdpDevice(pool, this.counters.stage('udp'), spec)
      case 'loopback':
        return new LoopbackDevice(pool, this.counters.stage(spec.name), spec)
    }
  }
}
