// What a run of the laboratory is asked for, and what its steps share.

import type { Config, FailMode, WorkerCount } from '../control/config.ts'
import type { ProfileName } from '../pipeline/profile.ts'
import type { Running } from './process.ts'
import type { LabReport } from './report.ts'
import type { Topology } from './topology.ts'
import type { Probe } from './traffic.ts'

export interface LabOptions {
  profile: ProfileName
  /** IPv6 outside and inside the tunnel, else IPv4. */
  ipv6: boolean
  failMode: FailMode
  /** Of node and gateway. */
  rungs: Config['rungs']
  workers: WorkerCount
  /** Folder of the report. */
  report: string
  /** Leaves namespaces, gateway and node running. */
  keep: boolean
  /** Names a parallel run. */
  run?: string
  /** Length of each bulk transfer. */
  seconds: number
}

/** What the steps work on; each relies on what earlier ones have set. */
export interface Lab {
  readonly options: LabOptions
  readonly family: 'ipv4' | 'ipv6'
  readonly report: LabReport
  topology?: Topology
  http?: Running
  gateway?: Running
  node?: Running
  probe?: Probe
  /** Tells what is going on within a step. */
  progress(text: string): void
}

/** One step: what it should do and what it did. One that throws ends the run, for later ones build on it. */
export interface Step {
  name: string
  expectation(lab: Lab): string
  run(lab: Lab): Promise<{ ok: boolean; observed: string }>
}
