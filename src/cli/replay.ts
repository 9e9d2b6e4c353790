// detour replay: a capture through the dataplane and a gateway, with a report.

import { Command, InvalidArgumentError, Option } from 'commander'
import type { CaptureFormat, Rate } from '../device/pcap.ts'
import { DetourError } from '../errors.ts'
import { ALLOW_ALL, readRules } from '../gateway/rules.ts'
import { type ReplayReport, runReplay } from '../lab/replay.ts'
import { COLUMN, type StageCounters } from '../memory/counters.ts'
import { dropsOf } from './convert.ts'
import {
  addTunnelOptions,
  addWrapperOptions,
  type TunnelFlags,
  tunnelOf,
  type WrapperFlags,
  wrappersOf,
} from './options.ts'
import { bytes, count, duration, Progress, packetRate, table } from './table.ts'

interface ReplayFlags extends TunnelFlags, WrapperFlags {
  read: string
  write?: string
  format?: CaptureFormat
  policy?: string
  log?: string
  endpoint?: string
  rate: Rate
  workers: number
  json?: boolean
}

/** The subcommand `replay`. */
export function replayCommand(): Command {
  const command = new Command('replay')
    .description('Sends the packets of a capture through the dataplane to a gateway and says what became of them.')
    .requiredOption('-r, --read <IN>', 'capture file (pcap, pcapng, also compressed by gzip), - for standard input')
    .option('-w, --write <RETURNED>', 'capture file for what came back, - for standard output')
    .addOption(
      new Option('--format <FORMAT>', 'of RETURNED (default: as the input)').choices(['pcap', 'pcap-ns', 'pcapng']),
    )
    .option('--policy <FILE>', "the gateway's rule file (default: allow everything)")
    .option('--log <FILE>', "the gateway's verdicts, one JSON line each")
    .option('--endpoint <HOST:PORT>', 'a live endpoint over UDP, instead of a gateway in this process')
    .option(
      '--rate <RATE>',
      'max, 1x (by timestamps) or a number of packets a second such as 5000pps',
      parseRate,
      'max',
    )
    .option('--workers <N>', 'threads for the node; as many gateways beside them', parseWorkers, 1)
    .option('--json', 'the report as data')
    .addHelpText(
      'after',
      `
Examples:
  detour replay -r in.pcap                              what would the tunnel and a gateway do to this?
  detour replay -r in.pcap -w returned.pcap --policy rules.yaml --log verdicts.jsonl
  detour replay -r in.pcap --profile vxlan --endpoint 127.0.0.1:4789 --rate 5000pps
  detour replay -r in.pcap --fault loss=1%,seed=7 --pcap underlay.pcapng`,
    )
    .action((flags: ReplayFlags) => replay(flags))
  return addWrapperOptions(addTunnelOptions(command))
}

function parseRate(text: string): Rate {
  if (text === 'max' || text === '1x') return text
  const pps = /^(\d+(?:\.\d+)?)(?:pps)?$/.exec(text)
  if (pps === null || Number(pps[1]) <= 0)
    throw new InvalidArgumentError('allowed: max, 1x, or a number such as 5000pps')
  return Number(pps[1])
}

function parseWorkers(text: string): number {
  const workers = Number(text)
  if (!Number.isInteger(workers) || workers < 1 || workers > 64) throw new InvalidArgumentError('allowed: 1 to 64')
  return workers
}

async function replay(flags: ReplayFlags): Promise<void> {
  const rules = flags.policy === undefined ? ALLOW_ALL : readRules(flags.policy)
  if (flags.endpoint !== undefined && (flags.policy !== undefined || flags.log !== undefined))
    throw new DetourError(
      'usage',
      '--policy and --log are for the gateway in this process; a live endpoint has its own',
    )
  const progress = new Progress()
  const report = await runReplay({
    input: flags.read,
    output: flags.write,
    format: flags.format,
    tunnel: tunnelOf(flags.endpoint === undefined ? flags : liveTunnel(flags, flags.endpoint)),
    rules,
    log: flags.log,
    live: flags.endpoint !== undefined,
    rate: flags.rate,
    workers: flags.workers,
    underlay: wrappersOf(flags),
    progress: (read, returned) => progress.show(`${count(read)} packets read, ${count(returned)} returned`),
  })
  progress.clear()
  const out = flags.write === '-' ? process.stderr : process.stdout
  out.write(flags.json ? `${JSON.stringify(asData(report), null, 2)}\n` : `${asText(report, flags).join('\n')}\n`)
  for (const fault of report.faults) process.stderr.write(`detour: ${fault}\n`)
  if (report.faults.length > 0) process.exitCode = 1
}

/** The flags with the endpoint as the tunnel's far end, and any address of the same family as its near one. */
function liveTunnel(flags: ReplayFlags, endpoint: string): TunnelFlags {
  const found = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(endpoint)
  if (found === null)
    throw new DetourError('usage', `--endpoint '${endpoint}': give ADDRESS:PORT, IPv6 as [ADDRESS]:PORT`)
  const remote = found[1] ?? found[2]
  return { ...flags, local: flags.local ?? (found[1] === undefined ? '0.0.0.0' : '::'), remote, port: found[3] }
}

/** The lines that people read. */
export function asText(
  report: ReplayReport,
  flags: { profile?: string; endpoint?: string; workers?: number } = {},
): string[] {
  const far = flags.endpoint ?? 'a gateway in this process'
  const lines = [`${report.input}: ${count(report.packets)} packets through ${flags.profile ?? 'geneve'} to ${far}`, '']
  const share = (n: number) => (report.packets === 0 ? '' : `${((100 * n) / report.packets).toFixed(1)}%`)
  const verdicts = verdictsOf(report).map(({ verdict, packets, bytes: size }) => [
    verdict,
    count(packets),
    bytes(size),
    share(packets),
  ])
  lines.push(
    ...table([{ title: 'verdict' }, ...['packets', 'bytes', 'share'].map(title => ({ title, right: true }))], verdicts),
    '',
  )
  const returned = [
    ['returned unchanged', count(report.unchanged)],
    ['returned changed, or made by the endpoint', count(report.changed)],
    ['not returned', count(report.notReturned)],
  ]
  lines.push(...table([{ title: 'steered packets' }, { title: 'packets', right: true }], returned))
  const drops = [
    ...report.node.map(s => ['node', s] as const),
    ...report.gateway.map(s => ['gateway', s] as const),
  ].flatMap(([side, stage]) =>
    dropsOf(stage).map(({ reason, packets, text }) => [side, stage.name, reason, count(packets), text]),
  )
  const titles = ['side', 'stage', 'dropped', 'packets', 'because']
  if (drops.length > 0)
    lines.push(
      '',
      ...table(
        titles.map(title => ({ title, right: title === 'packets' })),
        drops,
      ),
    )
  const latency = `latency p50 ${duration(report.latencyP50Us / 1000)}, p99 ${duration(report.latencyP99Us / 1000)}`
  const { flows, packetsPerSecond, seconds } = report
  lines.push('', `${count(flows)} flows; ${packetRate(packetsPerSecond)} for ${duration(seconds * 1000)}; ${latency}`)
  return lines
}

interface VerdictRow {
  verdict: string
  packets: number
  bytes: number
}

/** Packets and bytes by verdict of the node. */
function verdictsOf({ node }: ReplayReport): VerdictRow[] {
  const stage = (name: string) => node.find(each => each.name === name)
  const row = (verdict: string, name: string): VerdictRow => ({
    verdict,
    packets: stage(name)?.row[COLUMN.IN_PACKETS] ?? 0,
    bytes: stage(name)?.row[COLUMN.IN_BYTES] ?? 0,
  })
  const dropped = ['read', 'classify', 'decide'].map(name => stage(name)?.drops() ?? 0)
  // NB: what the reader refused was never a frame, so its bytes are not known.
  const lost = ['classify', 'decide'].map(name => row('', name).bytes - (stage(name)?.row[COLUMN.OUT_BYTES] ?? 0))
  return [
    row('steer', 'encap'),
    row('pass', 'passed'),
    row('local', 'local'),
    {
      verdict: 'drop',
      packets: dropped.reduce((sum, n) => sum + n, 0),
      bytes: lost.reduce((sum, n) => sum + n, 0),
    },
  ]
}

/** The report as data; times in the units that the names say. */
export function asData(report: ReplayReport): object {
  const { node, gateway, ...figures } = report
  const stages = (rows: StageCounters[]) =>
    rows.map(stage => ({
      stage: stage.name,
      inPackets: stage.row[COLUMN.IN_PACKETS],
      inBytes: stage.row[COLUMN.IN_BYTES],
      outPackets: stage.row[COLUMN.OUT_PACKETS],
      outBytes: stage.row[COLUMN.OUT_BYTES],
      created: stage.row[COLUMN.CREATED],
      drops: dropsOf(stage).map(({ reason, packets }) => ({ reason, packets })),
    }))
  return { ...figures, verdicts: verdictsOf(report), node: stages(node), gateway: stages(gateway) }
}
