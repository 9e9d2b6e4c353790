// The laboratory's report: what a run found out.

import type { DropRow, StageRow } from '../control/protocol.ts'
import type { AttachmentRow, FlowRow, UnderlayRow } from '../control/source.ts'
import type { Role } from './topology.ts'
import type { Bulk, ProbeRecord } from './traffic.ts'

/** What one step should do, and what it did. */
export interface StepResult {
  name: string
  expectation: string
  /** Null when the step was not reached. */
  ok: boolean | null
  observed: string
  ms: number
}

/** What a running face told on its control socket at one moment. */
export interface FaceSnapshot {
  face: string
  stages: StageRow[]
  drops: DropRow[]
  flows: FlowRow[]
  attachments: AttachmentRow[]
  underlay: UnderlayRow[]
}

/** The kernel's own counters of an interface; receive and transmit as its namespace sees them. */
export interface LinkCounters {
  rxPackets: number
  rxBytes: number
  txPackets: number
  txBytes: number
}

export interface LabReport {
  /** When the run began, ISO 8601. */
  startedAt: string
  machine: { kernel: string; cpus: number; cpuModel: string; memoryGib: number; node: string; detour: string }
  options: { profile: string; family: 'IPv4' | 'IPv6'; failMode: 'open' | 'closed' }
  places: Record<Role, { namespace: string; interface: string; address: string }>
  steps: StepResult[]
  /** From the start of gateway and node to the end of the bulk transfer. */
  links: Partial<Record<Role, LinkCounters>>
  /** At the end of the bulk transfer. */
  faces: FaceSnapshot[]
  throughput: { label: string; bulk: Bulk }[]
  probe: { intervalMs: number; records: ProbeRecord[]; events: { atMs: number; label: string }[] } | null
  captures: { file: string; text: string }[]
}

/** True when every step was reached and did what it should. */
export function passed(report: LabReport): boolean {
  return report.steps.length > 0 && report.steps.every(step => step.ok === true)
}
