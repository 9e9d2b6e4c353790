// detour lab: the whole topology on this machine, with real traffic, a table as it goes, and a report.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command, InvalidArgumentError, Option } from 'commander'
import {
  ATTACH_RUNGS,
  type AttachRung,
  EXPRESS_RUNGS,
  type ExpressRung,
  FAIL_MODES,
  type FailMode,
  OFFLOAD_RUNGS,
  type OffloadRung,
  type WorkerCount,
} from '../control/config.ts'
import { packageRoot } from '../control/package.ts'
import { DetourError } from '../errors.ts'
import { readRules } from '../gateway/rules.ts'
import type { LabOptions } from '../lab/lab.ts'
import { runReplay } from '../lab/replay.ts'
import { makeReportFolder } from '../lab/report.ts'
import { type LabEvents, runLab } from '../lab/run.ts'
import { cleanUp, isRunName, whyNoLab } from '../lab/topology.ts'
import { PROFILE_NAMES, type ProfileName } from '../pipeline/profile.ts'
import { parseWorkerCount, tunnelOf } from './options.ts'
import { asData, asText } from './replay.ts'
import { duration, Progress, painter, printable } from './table.ts'

interface Options {
  profile: ProfileName
  ipv6?: boolean
  fail: FailMode
  offload: OffloadRung
  attach: AttachRung
  express: ExpressRung
  workers: WorkerCount
  report: string
  keep?: boolean
  clean?: boolean
  run: string
  seconds: number
  json?: boolean
}

/** The subcommand `lab`. */
export function labCommand(): Command {
  return new Command('lab')
    .description(
      'Builds pods, a node and a gateway in network namespaces, sends real traffic through the tunnel, kills the gateway ' +
        'and the node, and shows what the fail mode does. Exits with 0 only when every step did what it should. ' +
        'Without root it runs the replay of a capture instead.',
    )
    .addOption(new Option('--profile <NAME>', 'the tunnel').choices(PROFILE_NAMES).default('geneve'))
    .option('--ipv6', 'IPv6 outside and inside the tunnel, else IPv4')
    .addOption(
      new Option('--fail <MODE>', 'what becomes of packets that nobody can inspect')
        .choices(FAIL_MODES)
        .default('closed'),
    )
    .addOption(
      new Option('--offload <RUNG>', 'how super-packets cross the underlay').choices(OFFLOAD_RUNGS).default('auto'),
    )
    .addOption(
      new Option('--attach <RUNG>', 'how packets are taken from interfaces').choices(ATTACH_RUNGS).default('auto'),
    )
    .addOption(
      new Option('--express <RUNG>', 'what small packets leave the node by').choices(EXPRESS_RUNGS).default('auto'),
    )
    .option('--workers <N>', 'threads of node and gateway each, or auto', parseWorkerCount, 1)
    .option('--report <DIR>', 'where the report goes', 'lab-report')
    .option('--seconds <N>', 'length of each bulk transfer', parseSeconds, 3)
    .option('--keep', 'leave everything running when done')
    .option('--clean', 'only remove what earlier runs left, kept ones too; with --run, that one')
    .option('--run <NAME>', 'a name of its own lets labs run side by side', parseRun, 'main')
    .option('--json', 'the results as JSON instead of the table')
    .addHelpText(
      'after',
      `
Examples:
  sudo detour lab                                   GENEVE over IPv4, fail-closed
  sudo detour lab --profile vxlan --ipv6 --fail open
  sudo detour lab --offload plain --attach clsact   as on an older kernel
  sudo detour lab --keep                            then: ip netns exec detour-lab-client curl http://10.244.0.3:8080/allowed
  sudo detour show flows --socket /run/detour/node.sock
  sudo detour lab --clean`,
    )
    .action(lab)
}

async function lab(options: Options, command: Command): Promise<void> {
  const reason = whyNoLab()
  if (reason !== null && options.clean) throw new DetourError('permission', `lab: ${reason}`)
  if (reason !== null) return replayInstead(reason, options)
  if (options.clean) {
    const named = command.getOptionValueSource('run') === 'cli'
    const removed = cleanUp(true, named ? options.run : undefined)
    console.log(removed.length === 0 ? 'Nothing was left.' : `Removed: ${removed.join(', ')}.`)
    return
  }
  const { profile, fail, offload, attach, express, workers, report, run, seconds, keep = false, ipv6 = false } = options
  const rungs = { offload, attach, express }
  const labOptions: LabOptions = { profile, ipv6, failMode: fail, rungs, workers, report, keep, run, seconds }
  const screen = options.json ? silent : new Screen()
  if (!options.json) {
    console.log(`Detour laboratory: ${profile.toUpperCase()} over ${ipv6 ? 'IPv6' : 'IPv4'}, fail-${fail}\n`)
  }
  const result = await runLab(labOptions, screen)
  const good = result.report.steps.filter(step => step.ok).length
  if (options.json)
    console.log(JSON.stringify({ ok: result.ok, page: result.page, steps: result.report.steps }, null, 2))
  else {
    const all = result.report.steps.length
    const verdict = result.ok
      ? paint('green', `All ${all} steps did what they should.`)
      : paint('red', `${all - good} of ${all} steps failed or were not reached.`)
    console.log(`\n${verdict}\nReport: ${result.page}`)
  }
  process.exitCode = result.ok ? 0 : 1
}

const paint = painter(process.stdout)
const silent: LabEvents = { started() {}, progress() {}, finished() {} }

/** One paragraph a step as it ends, and on a terminal a line that says what goes on meanwhile. */
class Screen implements LabEvents {
  private readonly line = new Progress()
  private text = ''
  private startedMs = 0
  private timer: NodeJS.Timeout | undefined

  started(number: number, total: number, name: string): void {
    this.startedMs = performance.now()
    this.text = `${number}/${total} ${name}`
    this.timer = setInterval(() => this.show(), 200)
    this.show()
  }

  progress(text: string): void {
    this.text = text
    if (process.stderr.isTTY) this.show()
    else process.stderr.write(`     … ${printable(text)}\n`)
  }

  finished(
    number: number,
    result: { name: string; ok: boolean | null; observed: string; expectation: string; ms: number },
  ): void {
    clearInterval(this.timer)
    this.line.clear()
    const mark = result.ok ? paint('green', '✓') : paint('red', '✗')
    const title = `${String(number).padStart(2)} ${result.name}`
    console.log(`${mark} ${paint('bold', title.padEnd(40))} ${duration(result.ms).padStart(8)}`)
    if (!result.ok) console.log(`     ${paint('dim', 'should:')} ${printable(result.expectation)}`)
    console.log(`     ${printable(result.observed)}`)
  }

  private show(): void {
    this.line.show(`     ${this.text} (${duration(performance.now() - this.startedMs)})`)
  }
}

/** The shipped capture through the same stages in memory, with a rule file that stops one of its requests. */
async function replayInstead(reason: string, { profile, report: folder, json }: Options): Promise<void> {
  const [input, policy] = ['captures/http.pcap', 'policy/example.yaml'].map(name =>
    fileURLToPath(new URL(`fixtures/${name}`, packageRoot)),
  )
  makeReportFolder(folder)
  const output = join(folder, 'returned.pcap')
  const log = join(folder, 'verdicts.jsonl')
  const report = await runReplay({
    input,
    output,
    log,
    tunnel: tunnelOf({ profile }),
    policy: readRules(policy),
    live: false,
    rate: 'max',
    workers: 1,
  })
  const stopped = readFileSync(log, 'utf8')
    .split('\n')
    .filter(line => line !== '' && !line.includes('"action":"allow"'))
  if (json) console.log(JSON.stringify({ instead: reason, ...asData(report) }, null, 2))
  else {
    console.log(
      `The laboratory cannot run here: ${reason}. Instead, a capture goes through the dataplane and a gateway in memory.\n`,
    )
    console.log(asText(report, { profile }).join('\n'))
    console.log(`\nStopped by ${policy}:\n${stopped.join('\n')}\n\nReturned packets: ${output}; verdicts: ${log}`)
  }
  process.exitCode = report.faults.length === 0 && report.unchanged > 0 && stopped.length > 0 ? 0 : 1
}

function parseRun(value: string): string {
  if (!isRunName(value)) throw new InvalidArgumentError('allowed: one to twelve lower-case letters and digits')
  return value
}

function parseSeconds(value: string): number {
  const seconds = Number(value)
  if (!Number.isInteger(seconds) || seconds < 1 || seconds > 600) throw new InvalidArgumentError('allowed: 1 to 600')
  return seconds
}
