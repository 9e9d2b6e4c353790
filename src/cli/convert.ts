// detour encap, detour decap: captures into a tunnel and out of it, each file a job of a thread pool.

import { statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command, Option } from 'commander'
import { Piscina } from 'piscina'
import { workerFile } from '../control/spawn.ts'
import type { ConvertJob, ConvertResult } from '../control/worker-input.ts'
import {
  type CaptureFile,
  type CaptureFormat,
  closeCapture,
  createCapture,
  createPieces,
  type OutputFile,
  openCapture,
} from '../device/pcap.ts'
import { DROP_COUNT, dropName, dropText } from '../drop.ts'
import { DetourError } from '../errors.ts'
import { COLUMN, readCounters, type StageCounters, sumCounters } from '../memory/counters.ts'
import { addProfileOptions, addTunnelOptions, type TunnelFlags, tunnelOf } from './options.ts'
import { count, Progress, packetRate, table } from './table.ts'

/** Bytes of a file that are worth a thread of their own. */
const SHARE = 8 << 20

interface ConvertFlags extends TunnelFlags {
  read: string[]
  write: string
  format?: CaptureFormat
  json?: boolean
}

/** The subcommand `encap`. */
export function encapCommand(): Command {
  const command = convertCommand('encap', 'Puts the packets of a capture into a tunnel.', [
    'detour encap -r in.pcap -w out.pcap --local 10.0.0.1 --remote 10.0.0.2 --vni 7',
    'zcat in.pcapng.gz | detour encap -r - -w out.pcap --profile vxlan',
    'detour encap -r a.pcap -r b.pcap -w folder/            several files at once, each to a file of its name',
  ])
  return addTunnelOptions(command)
}

/** The subcommand `decap`. */
export function decapCommand(): Command {
  const command = convertCommand('decap', 'Takes the packets of a capture out of a tunnel, whoever sent them.', [
    'detour decap -r underlay.pcap -w pods.pcap --profile vxlan',
    'detour decap -r underlay.pcap -w - | tcpdump -nr -     what is not of the tunnel is counted on stderr',
  ])
  return addProfileOptions(command).option('--zero-checksum6', 'accept zero UDP checksums over IPv6 (RFC 6935)')
}

function convertCommand(direction: 'encap' | 'decap', description: string, examples: string[]): Command {
  return new Command(direction)
    .description(`${description} pcap and pcapng, compressed by gzip too.`)
    .requiredOption('-r, --read <IN>', 'capture file, - for standard input; may be repeated', collect)
    .requiredOption('-w, --write <OUT>', 'capture file, - for standard output; a folder for several inputs')
    .addOption(
      new Option('--format <FORMAT>', 'of the output (default: as the input)').choices(['pcap', 'pcap-ns', 'pcapng']),
    )
    .option('--json', 'the report as data')
    .addHelpText('after', `\nExamples:\n${examples.map(example => `  ${example}`).join('\n')}`)
    .action((flags: ConvertFlags) => run(direction, flags))
}

const collect = (value: string, before: string[] = []) => [...before, value]

/** What became of one file. */
interface Done {
  input: string
  output: string
  /** Summed over the threads; none when the file could not be opened. */
  stages: StageCounters[]
  ms: number
  faults: string[]
}

async function run(direction: 'encap' | 'decap', flags: ConvertFlags): Promise<void> {
  const tunnel = tunnelOf(flags, direction === 'decap')
  const targets = targetsOf(flags)
  const maxThreads = availableParallelism()
  const pool = new Piscina({
    filename: fileURLToPath(workerFile('convert')),
    name: 'convert',
    minThreads: 1,
    maxThreads,
  })
  const threads = Math.max(1, Math.floor(maxThreads / flags.read.length))
  const progress = new Progress()

  async function convert(path: string, to: string): Promise<Done> {
    const input = await openCapture(path)
    let output: OutputFile | undefined
    const shared = new SharedArrayBuffer(8)
    const timer = watch(progress, input, shared)
    try {
      output = createCapture(to, input)
      const format = flags.format ?? input.format
      const job: ConvertJob = { direction, tunnel, input, output, format, progress: shared }
      // The pool takes jobs in order, so those of one file, which wait for each other, run at the same time.
      const results: ConvertResult[] = await Promise.all(shares(job, threads).map(share => pool.run(share)))
      const stages = sumCounters(results.map(result => readCounters(result.counters)))
      const faults = [...new Set(results.flatMap(result => result.faults))]
      return { input: input.name, output: output.name, stages, ms: Math.max(...results.map(({ ms }) => ms)), faults }
    } finally {
      clearInterval(timer)
      closeCapture(input)
      if (output !== undefined) closeCapture(output)
    }
  }

  /** Of several files, one that cannot be opened leaves the others alone. */
  function excuse(error: unknown, input: string): Done {
    if (flags.read.length === 1 || !(error instanceof DetourError)) throw error
    return { input, output: '', stages: [], ms: 0, faults: [error.message] }
  }

  try {
    const jobs = flags.read.map((path, i) => convert(path, targets[i]).catch(error => excuse(error, path)))
    const done = await Promise.all(jobs)
    progress.clear()
    report(direction, done, flags)
  } finally {
    await pool.destroy()
  }
}

/** Where each input goes. Throws DetourError when two would go to one file. */
function targetsOf({ read, write }: ConvertFlags): string[] {
  const folder = statSync(write, { throwIfNoEntry: false })?.isDirectory() ?? false
  if (read.length > 1 && !folder)
    throw new DetourError('usage', `-w ${write}: with several inputs, name a folder that exists`)
  if (!folder) return [write]
  const targets = read.map(path => join(write, path === '-' ? 'stdin.pcap' : basename(path).replace(/\.gz$/, '')))
  targets.forEach((target, i) => {
    const first = targets.indexOf(target)
    if (first < i)
      throw new DetourError('usage', `-r ${read[first]} and -r ${read[i]} would both be written to ${target}`)
  })
  return targets
}

/** The jobs of one file: pieces of a pcap file for several threads, and one job where the file has state. */
function shares(job: ConvertJob, threads: number): ConvertJob[] {
  if (job.input.format === 'pcapng' || job.format === 'pcapng') return [job]
  const useful = Math.max(1, Math.min(threads, Math.ceil(job.input.size / SHARE)))
  return createPieces(useful).map(pieces => ({ ...job, pieces }))
}

function watch(progress: Progress, input: CaptureFile, shared: SharedArrayBuffer): NodeJS.Timeout {
  const packets = new Float64Array(shared)
  return setInterval(() => progress.show(`${input.name}: ${count(packets[0])} packets`), 200)
}

/** One line a file and one a drop reason, on stderr when the packets go to standard output; exit status 1 after a fault. */
function report(direction: 'encap' | 'decap', done: Done[], flags: ConvertFlags): void {
  const files = done.map(({ input, output, stages, ms, faults }) => {
    const read = stages.find(({ name }) => name === 'read')?.row[COLUMN.IN_PACKETS] ?? 0
    return {
      input,
      output,
      read,
      written: stages.find(({ name }) => name === 'write')?.row[COLUMN.OUT_PACKETS] ?? 0,
      packetsPerSecond: ms === 0 ? 0 : Math.round((read / ms) * 1000),
      drops: stages.flatMap(dropsOf),
      faults,
    }
  })
  const faults = files.flatMap(f => f.faults)
  // A reader of standard output that has seen enough, like `tcpdump -c`, is no failure.
  if (flags.write === '-' && faults.some(fault => fault.includes('EPIPE'))) return
  const out = flags.write === '-' ? process.stderr : process.stdout
  if (flags.json) out.write(`${JSON.stringify({ command: direction, files }, null, 2)}\n`)
  else {
    const columns = ['input', 'output', 'read', 'written', 'rate'].map((title, i) => ({ title, right: i > 1 }))
    const rows = files.map(f => [f.input, f.output, count(f.read), count(f.written), packetRate(f.packetsPerSecond)])
    out.write(`${table(columns, rows).join('\n')}\n`)
    const drops = files.flatMap(f => f.drops.map(d => [f.input, d.stage, d.reason, count(d.packets), d.text]))
    const titles = ['input', 'stage', 'dropped', 'packets', 'because']
    const dropColumns = titles.map(title => ({ title, right: title === 'packets' }))
    if (drops.length > 0) out.write(`\n${table(dropColumns, drops).join('\n')}\n`)
    if (direction === 'decap' && files.some(f => f.read > 0 && f.written === 0))
      out.write('\nnothing was of this tunnel: --profile and --port say which it is\n')
  }
  for (const fault of faults) process.stderr.write(`detour: ${fault}\n`)
  if (faults.length > 0) process.exitCode = 1
}

interface DropRow {
  stage: string
  reason: string
  packets: number
  text: string
}

/** The reasons for which a stage dropped packets. */
export function dropsOf(stage: StageCounters): DropRow[] {
  const rows: DropRow[] = []
  for (let reason = 1; reason < DROP_COUNT; reason++) {
    const packets = stage.drops(reason)
    if (packets > 0) rows.push({ stage: stage.name, reason: dropName(reason), packets, text: dropText(reason) })
  }
  return rows
}
