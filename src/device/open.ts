// Builds the devices of a worker from plain data: the one place that knows which kinds and wrappers there are.

import type { Counters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { CaptureDevice } from './capture.ts'
import type { Device } from './device.ts'
import { type Faults, FaultyDevice } from './faults.ts'
import { LoopbackDevice, type LoopbackHandle } from './loopback.ts'
import type { OutputFile } from './pcap.ts'
import { TapDevice, type TapSpec } from './tap.ts'
import { TraceDevice, type TraceOptions } from './trace.ts'
import { UdpDevice, type UdpHandle } from './udp.ts'

/** A device as plain data that passes through workerData, with the wrappers that people asked for. */
export interface DeviceSpec {
  device: ({ kind: 'tap' } & TapSpec) | ({ kind: 'udp' } & UdpHandle) | ({ kind: 'loopback' } & LoopbackHandle)
  /** Seeded loss, reordering and so on. */
  faults?: Faults
  /** Prints the first packets. */
  trace?: TraceOptions
  /** Writes every frame to a capture file. */
  capture?: OutputFile
}

/** Opens the device and wraps it: faults nearest to the wire, then capture and trace, which so show what the pipeline sees. */
export function openDevice(spec: DeviceSpec, pool: Pool, counters: Counters): Device {
  let device = bare(spec.device, pool, counters)
  if (spec.faults !== undefined) {
    device = new FaultyDevice(device, pool, counters.stage(`faults ${device.name}`), spec.faults)
  }
  if (spec.capture !== undefined) {
    device = new CaptureDevice(device, pool, counters.stage(`capture ${device.name}`), spec.capture)
  }
  if (spec.trace !== undefined) device = new TraceDevice(device, pool, spec.trace)
  return device
}

function bare(spec: DeviceSpec['device'], pool: Pool, counters: Counters): Device {
  switch (spec.kind) {
    case 'tap':
      return new TapDevice(pool, counters.stage(`tap ${spec.name}`), spec)
    case 'udp':
      return new UdpDevice(pool, counters.stage('udp'), spec)
    case 'loopback':
      return new LoopbackDevice(pool, counters.stage(`loopback ${spec.name}`), spec)
  }
}
