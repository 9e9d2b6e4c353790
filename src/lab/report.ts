// The laboratory's report: what a run found out.

import { mkdirSync, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import type { DropRow, StageRow } from '../control/protocol.ts'
import type { AttachmentRow, FlowRow, UnderlayRow } from '../control/source.ts'
import { DetourError } from '../errors.ts'
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

/** Makes the folder that a report goes to, and those above it. Throws DetourError. */
export function makeReportFolder(path: string): void {
  // NB: not `recursive`, which tries for ever where a folder that exists takes none, as /proc does.
  try {
    for (const folder of missing(resolve(path))) mkdirSync(folder)
    if (statSync(path).isDirectory()) return
  } catch (error) {
    throw new DetourError('bad-file', `report folder ${path}: cannot be made (${(error as Error).message})`, {
      cause: error,
    })
  }
  throw new DetourError('bad-file', `report folder ${path}: something that is not a folder is there`)
}

/** The folders of a path that are not there, the outermost first. */
function missing(path: string): string[] {
  return statSync(path, { throwIfNoEntry: false }) === undefined ? [...missing(dirname(path)), path] : []
}

/** True when every step was reached and did what it should. */
export function passed(report: LabReport): boolean {
  return report.steps.length > 0 && report.steps.every(step => step.ok === true)
}
