// Runs the laboratory: does the steps, writes the report, and leaves the machine as it was.

import { rmSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { packageVersion } from '../control/package.ts'
import { RUN_FILES } from './faces.ts'
import type { Lab, LabOptions, Step } from './lab.ts'
import { writeReport } from './page.ts'
import { type LabReport, makeReportFolder, passed, type StepResult } from './report.ts'
import { CLEAN_UP, KEEP, STEPS } from './steps.ts'
import { cleanUp } from './topology.ts'
import { PROBE_INTERVAL_MS } from './traffic.ts'

/** Who wants to know how it goes. */
export interface LabEvents {
  started(number: number, total: number, name: string): void
  progress(text: string): void
  finished(number: number, result: StepResult): void
}

export interface LabResult {
  ok: boolean
  report: LabReport
  /** Path of the HTML page. */
  page: string
}

/** Does every step and writes the report. Needs root (ask `whyNoLab` first); cleans up also when the process is told to end. */
export async function runLab(options: LabOptions, events: LabEvents): Promise<LabResult> {
  const removed = cleanUp()
  if (removed.length > 0) events.progress(`removed what an earlier laboratory left behind: ${removed.join(', ')}`)
  prepareFolder(options.report)
  const report = emptyReport(options)
  const family = options.ipv6 ? 'ipv6' : 'ipv4'
  const lab: Lab = { options, family, report, progress: events.progress }
  const stopWatching = cleanUpOnExit(lab)
  try {
    await doSteps(lab, events)
  } finally {
    stopWatching()
    if (lab.probe !== undefined && report.probe !== null) report.probe.records = [...lab.probe.records]
  }
  return { report, page: writeReport(options.report, report), ok: passed(report) }
}

async function doSteps(lab: Lab, events: LabEvents): Promise<void> {
  const steps = [...STEPS, lab.options.keep ? KEEP : CLEAN_UP]
  const results = lab.report.steps
  for (const step of steps) {
    results.push({ name: step.name, expectation: step.expectation(lab), ok: null, observed: '', ms: 0 })
  }
  let broken = false
  for (const [at, step] of steps.entries()) {
    const last = at === steps.length - 1
    if (broken && !last) continue
    events.started(at + 1, steps.length, step.name)
    const result = await attempt(broken ? CLEAN_UP : step, lab, results[at])
    broken ||= result === 'threw'
    events.finished(at + 1, results[at])
  }
}

async function attempt(step: Step, lab: Lab, result: StepResult): Promise<'threw' | 'done'> {
  const started = performance.now()
  try {
    Object.assign(result, await step.run(lab))
    return 'done'
  } catch (error) {
    Object.assign(result, { ok: false, observed: (error as Error).message })
    return 'threw'
  } finally {
    result.ms = performance.now() - started
  }
}

/** Logs and captures are appended to by several processes, so those of an earlier run go first. */
function prepareFolder(folder: string): void {
  makeReportFolder(folder)
  for (const file of RUN_FILES) rmSync(join(folder, file), { force: true })
}

/** Removes the namespaces when the process ends before the steps do; returns how to stop watching. */
function cleanUpOnExit(lab: Lab): () => void {
  const leave = () => lab.topology?.close()
  const interrupted = () => process.exit(130)
  const terminated = () => process.exit(143)
  // NB: not `once`: a second Ctrl-C while the first one cleans up would kill.
  process.once('exit', leave).on('SIGINT', interrupted).on('SIGTERM', terminated)
  return () => process.off('exit', leave).off('SIGINT', interrupted).off('SIGTERM', terminated)
}

function emptyReport({ profile, ipv6, failMode }: LabOptions): LabReport {
  const nowhere = { namespace: '', interface: '', address: '' }
  return {
    startedAt: new Date().toISOString(),
    machine: {
      kernel: release(),
      cpus: cpus().length,
      cpuModel: cpus()[0]?.model.trim() ?? 'unknown processor',
      memoryGib: Math.round(totalmem() / 2 ** 30),
      node: process.versions.node,
      detour: packageVersion(),
    },
    options: { profile, family: ipv6 ? 'IPv6' : 'IPv4', failMode },
    places: { client: nowhere, server: nowhere, node: nowhere, gateway: nowhere },
    steps: [],
    links: {},
    faces: [],
    throughput: [],
    probe: { intervalMs: PROBE_INTERVAL_MS, records: [], events: [] },
    captures: [],
  }
}
