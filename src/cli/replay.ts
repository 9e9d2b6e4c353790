// detour replay: a capture through the dataplane and a gateway, with a report.

import { lookup } from 'node:dns/promises'
import { Command, InvalidArgumentError, Option } from 'commander'
import type { CaptureFormat, Rate } from '../device/pcap.ts'
import { DetourError } from '../errors.ts'
import { runReplay } from '../lab/replay.ts'
import type { ReplayReport } from '../lab/replay-report.ts'
import { COLUMN, type StageCounters } from '../memory/counters.ts'
import { dropsOf } from './convert.ts'
import {
  addPolicyFlags,
  addTunnelOptions,
  addWrapperOptions,
  type PolicyFlags,
  policyOf,
  signaturesOf,
  type TunnelFlags,
  tunnelOf,
  type WrapperFlags,
  wrappersOf,
} from './options.ts'
import { bytes, count, duration, Progress, packetRate, table } from './table.ts'

interface ReplayFlags extends TunnelFlags, WrapperFlags, PolicyFlags {
  read: string
  write?: string
  format?: CaptureFormat
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
  return addWrapperOptions(addTunnelOptions(addPolicyFlags(command)))
    .option('--log <FILE>', "the gateway's verdicts, one JSON line each; - for standard output")
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
  detour replay -r in.pcap --policy policies/ --inventory cluster.json --log -
  detour replay -r in.pcap --rules emerging.rules --eve -       which threats would be told of?
  detour replay -r in.pcap --profile vxlan --endpoint 127.0.0.1:4789 --rate 5000pps
  detour replay -r in.pcap --fault loss=1%,seed=7 --pcap underlay.pcapng`,
    )
    .action((flags: ReplayFlags) => replay(flags))
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
  refuseContradictions(flags)
  const progress = new Progress()
  const report = await runReplay({
    input: flags.read,
    output: flags.write,
    format: flags.format,
    tunnel: tunnelOf(flags.endpoint === undefined ? flags : await liveTunnel(flags, flags.endpoint)),
    policy: policyOf(flags),
    log: flags.log,
    signatures: signaturesOf(flags),
    eve: flags.eve,
    live: flags.endpoint !== undefined,
    rate: flags.rate,
    workers: flags.workers,
    underlay: wrappersOf(flags),
    progress: (read, returned) => progress.show(`${count(read)} packets read, ${count(returned)} returned`),
  })
  progress.clear()
  const out = [flags.write, flags.log, flags.eve, flags.pcap].includes('-') ? process.stderr : process.stdout
  out.write(flags.json ? `${JSON.stringify(asData(report), null, 2)}\n` : `${asText(report, flags).join('\n')}\n`)
  for (const fault of report.faults) process.stderr.write(`detour: ${fault}\n`)
  if (report.faults.length > 0) process.exitCode = 1
}

function refuseContradictions({
  write,
  log,
  eve,
  rules,
  pcap,
  endpoint,
  policy,
  remote,
  port,
  workers,
}: ReplayFlags): void {
  const usage = (text: string) => new DetourError('usage', text)
  const outputs = [write, log, eve, pcap].filter(path => path !== undefined)
  const twice = outputs.find((path, i) => outputs.indexOf(path) !== i)
  if (twice !== undefined) throw usage(`-w, --log, --eve and --pcap: only one of them can write to ${twice}`)
  if (endpoint === undefined) return
  if (policy !== undefined || log !== undefined || (rules ?? []).length > 0)
    throw usage('--policy, --rules and --log are for the gateway in this process; a live endpoint has its own')
  if (remote !== undefined || port !== undefined)
    throw usage(`--remote and --port: --endpoint ${endpoint} says both already`)
  if (workers > 1) throw usage(`--workers ${workers}: a live endpoint returns packets to one port, so to one worker`)
}

/** The flags with the endpoint as the tunnel's far end, and any address of the same family as its near one. */
async function liveTunnel(flags: ReplayFlags, endpoint: string): Promise<TunnelFlags> {
  const found = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(endpoint)
  if (found === null)
    throw new DetourError('usage', `--endpoint '${endpoint}': give HOST:PORT, an IPv6 address as [ADDRESS]:PORT`)
  const host = found[1] ?? found[2]
  const wanted = flags.local === undefined ? 0 : flags.local.includes(':') ? 6 : 4
  const { address, family } = await lookup(host, { family: wanted, verbatim: false }).catch(error => {
    throw new DetourError('not-found', `--endpoint ${endpoint}: no address of ${host} (${error.code})`, {
      cause: error,
    })
  })
  return { ...flags, local: flags.local ?? (family === 4 ? '0.0.0.0' : '::'), remote: address, port: found[3] }
}

/** The lines that people read. */
export function asText(report: ReplayReport, flags: { profile?: string; endpoint?: string } = {}): string[] {
  const { packets, sent, unchanged, changed, notReturned, made, flows, packetsPerSecond, seconds } = report
  const far = flags.endpoint ?? 'a gateway in this process'
  const numbers = (titles: string[]) => titles.map(title => ({ title, right: true }))
  const verdicts = verdictsOf(report).map(row => [
    row.verdict,
    count(row.packets),
    bytes(row.bytes),
    share(row.packets, packets),
    row.means,
  ])
  const fates: [string, number][] = [
    ['returned unchanged', unchanged],
    ['returned changed', changed],
    ['not returned', notReturned],
  ]
  const lines = [
    `${report.input}: ${plural(packets, 'packet')} of ${plural(flows, 'flow')}, through ${flags.profile ?? 'geneve'} to ${far}`,
    '',
    ...table([{ title: 'verdict' }, ...numbers(['packets', 'bytes', 'share']), { title: 'that is' }], verdicts),
    '',
    ...table(
      [{ title: 'steered packets' }, ...numbers(['packets', 'share'])],
      fates.map(([fate, n]) => [fate, count(n), share(n, sent)]),
    ),
  ]
  if (made > 0)
    lines.push('', `${plural(made, 'packet')} came that had not been sent: answers of the endpoint, or second copies`)
  const drops = dropTable(report)
  if (drops.length > 0) lines.push('', ...drops)
  lines.push('', `replayed in ${duration(seconds * 1000)}, ${packetRate(packetsPerSecond)}${latency(report)}`)
  if (flags.endpoint !== undefined && sent > 0 && unchanged + changed + made === 0)
    lines.push(
      `nothing came back: is there an endpoint at ${flags.endpoint}, and does it return packets to this machine?`,
    )
  return lines
}

const plural = (n: number, noun: string) => `${count(n)} ${noun}${n === 1 ? '' : 's'}`

const share = (n: number, of: number) => (of === 0 ? '' : `${((100 * n) / of).toFixed(1)}%`)

function latency({ unchanged, latencyP50Us, latencyP99Us }: ReplayReport): string {
  if (unchanged === 0) return ''
  return `; there and back in ${duration(latencyP50Us / 1000)} (p50), ${duration(latencyP99Us / 1000)} (p99)`
}

/** What was dropped where, by which side; no lines when nothing was. */
function dropTable({ node, gateway }: ReplayReport): string[] {
  const sides = [...node.map(stage => ['node', stage] as const), ...gateway.map(stage => ['gateway', stage] as const)]
  const rows = sides.flatMap(([side, stage]) =>
    dropsOf(stage).map(({ reason, packets, text }) => [side, stage.name, reason, count(packets), text]),
  )
  const titles = ['side', 'stage', 'dropped', 'packets', 'because']
  return rows.length === 0
    ? []
    : table(
        titles.map(title => ({ title, right: title === 'packets' })),
        rows,
      )
}

interface VerdictRow {
  verdict: string
  packets: number
  bytes: number
  means: string
}

/** Packets and bytes by verdict of the node. */
function verdictsOf({ node }: ReplayReport): VerdictRow[] {
  const stage = (name: string) => node.find(each => each.name === name)
  const row = (verdict: string, name: string, means: string): VerdictRow => ({
    verdict,
    packets: stage(name)?.row[COLUMN.IN_PACKETS] ?? 0,
    bytes: stage(name)?.row[COLUMN.IN_BYTES] ?? 0,
    means,
  })
  const stopping = ['read', 'classify', 'decide'].flatMap(name => stage(name) ?? [])
  // NB: what the reader refused was never a frame, so its bytes are not known.
  const lost = stopping.filter(({ name }) => name !== 'read').map(s => s.row[COLUMN.IN_BYTES] - s.row[COLUMN.OUT_BYTES])
  return [
    row('steer', 'encap', 'sent to the endpoint'),
    row('pass', 'passed', 'left to go its own way'),
    row('local', 'local', 'of the link: ARP, neighbour discovery, DHCP, not IP'),
    {
      verdict: 'drop',
      packets: stopping.reduce((sum, each) => sum + each.drops(), 0),
      bytes: lost.reduce((sum, n) => sum + n, 0),
      means: 'cannot be forwarded',
    },
  ]
}

/** The report as data; times in the units that the names say. */
export function asData(report: ReplayReport): object {
  const { node, gateway, seconds, packetsPerSecond, latencyP50Us, latencyP99Us, ...figures } = report
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
  return {
    ...figures,
    verdicts: verdictsOf(report).map(({ verdict, packets, bytes: size }) => ({ verdict, packets, bytes: size })),
    seconds: Math.round(seconds * 1000) / 1000,
    packetsPerSecond: Math.round(packetsPerSecond),
    latencyP50Us: Math.round(latencyP50Us),
    latencyP99Us: Math.round(latencyP99Us),
    node: stages(node),
    gateway: stages(gateway),
  }
}
