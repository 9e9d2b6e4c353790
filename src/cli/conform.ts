// detour conform: asks an inspection endpoint what a cloud would ask of it, and judges the answers.

import { lookup } from 'node:dns/promises'
import { Command, InvalidArgumentError, Option } from 'commander'
import type { Case, Target } from '../conform/case.ts'
import { openChannel } from '../conform/channel.ts'
import { Maker } from '../conform/probe.ts'
import { CONFORM_PROFILES, conformProfile } from '../conform/profile.ts'
import { junit, tally, write, writeCapture } from '../conform/report.ts'
import { type Result, Runner } from '../conform/run.ts'
import { casesNamed } from '../conform/suite.ts'
import { DetourError } from '../errors.ts'
import { type Paint, Progress, painter, printable, table } from './table.ts'

interface Options {
  profile: string
  target?: { host: string; port?: number }
  local?: string
  secondLocal?: string
  vni?: number[]
  case?: string[]
  timeout: number
  slow?: boolean
  health?: number
  killCommand?: string
  pcap?: string
  junit?: string
  json?: boolean
  list?: boolean
}

/** The subcommand `conform`. */
export function conformCommand(): Command {
  const collect = (value: string, before: string[] = []) => [...before, value]
  return new Command('conform')
    .description('Sends an inspection endpoint what a cloud would send, and checks what comes back.')
    .addOption(new Option('-p, --profile <NAME>', 'whose behaviour').choices(CONFORM_PROFILES).default('geneve'))
    .option('-t, --target <HOST[:PORT]>', "the endpoint; the profile's port when not given", parseTarget)
    .option('--local <IP>', 'our address (default: the one that leads to the target)')
    .option('--second-local <IP>', 'a second address of ours, as of the gateway of another zone (default: on loopback)')
    .option('--vni <N,...>', "VNIs that the target serves (default: the profile's)", parseVnis)
    .option('--case <NAME>', 'only this case, or those that begin so: ecn-*; may be given again', collect)
    .option('--timeout <SECONDS>', 'how long an answer is waited for', parseSeconds, 1)
    .option('--slow', 'cases that take minutes of silence as well')
    .option('--health <PORT>', "the target's TCP port for health checks", parsePort)
    .option('--kill-command <COMMAND>', 'ends the data path of the target, for the last case; run by the shell')
    .option('--pcap <DIR>', 'a pcap file a failure is written here, both directions')
    .option('--junit <FILE>', 'the results as JUnit XML')
    .option('--json', 'the results as JSON')
    .option('--list', 'the cases and where they are written, without asking anybody')
    .addHelpText(
      'after',
      `
The target must allow everything: what its policy stops looks like a failure. It should answer to the tunnel's port at
our address; a target on this machine wants an address of its own, such as 127.0.0.1, to which 127.0.0.2 then speaks.
Without root all but wrong outer checksums and outer fragments can be sent. The exit status is 1 when a case fails.

Examples:
  detour conform --target 127.0.0.1
  detour conform --profile vxlan --target 10.0.0.2:4789 --vni 42 --pcap failures/ --junit conform.xml
  detour conform --target fw.example.net --case 'options-*' --case outer-ttl
  detour conform --profile geneve --list`,
    )
    .action(run)
}

async function run(options: Options, command: Command): Promise<void> {
  const profile = conformProfile(options.profile)
  const cases = casesNamed(options.case ?? [])
  if (options.list) {
    list(cases, options)
    return
  }
  if (options.target === undefined)
    return command.error("error: required option '--target <HOST[:PORT]>' not specified")
  const { host } = options.target
  const port = options.target.port ?? profile.port
  const address = await addressOf(host)
  const family = address.includes(':') ? 6 : 4
  if (!profile.outer.includes(family))
    throw new DetourError(
      'usage',
      `target ${address}: profile ${profile.name} is over IPv${profile.outer.join(' and ')} only`,
    )
  const timeoutMs = options.timeout * 1000
  const otherPort = profile.other && port + profile.other.port - profile.port
  const channel = openChannel({
    remote: address,
    port,
    otherPort,
    local: options.local,
    secondLocal: options.secondLocal,
  })
  const started = new Date()
  const results: Result[] = []
  try {
    const { ownsPort, second } = channel
    const target: Target = { ...targetOf(options), family, ownsPort, twoAddresses: second !== undefined }
    const make = new Maker(profile, channel, target.vnis, started.getTime() % 1_000_000)
    const sleep = (ms: number) => new Promise<void>(resolve => setTimeout(resolve, ms))
    const runner = new Runner({ target, channel, make, host: address, timeoutMs, sleep })
    await runAll(runner, cases, options, results)
  } finally {
    channel.close()
  }
  if (options.junit !== undefined)
    write(options.junit, junit(`detour conform ${profile.name} ${host}`, results, started))
  if (options.json) console.log(JSON.stringify(plain(results, { profile: profile.name, host, port, started }), null, 2))
  else console.log(`\n${summary(results)}`)
  if (results.some(({ outcome }) => outcome === 'fail')) process.exitCode = 1
}

/** A result, and where its packets are. */
interface Reported extends Result {
  pcap?: string
}

async function runAll(runner: Runner, cases: readonly Case[], options: Options, results: Reported[]): Promise<void> {
  const progress = new Progress()
  const paint = painter(process.stdout)
  const width = Math.max(...cases.map(({ name }) => name.length))
  for (const [i, each] of cases.entries()) {
    progress.show(`${i + 1} of ${cases.length}: ${each.name}`)
    const result: Reported = await runner.run(each)
    if (options.pcap !== undefined && result.packets.length > 0)
      result.pcap = writeCapture(options.pcap, result.name, result.packets)
    results.push(result)
    if (options.json) continue
    progress.clear()
    for (const line of lines(result, width, paint)) console.log(line)
  }
  progress.clear()
}

const MARKS = { pass: ['✓', 'green'], fail: ['✗', 'red'], skip: ['–', 'dim'] } as const

function lines({ name, outcome, section, why, sent, expected, seen, pcap }: Reported, width: number, paint: Paint) {
  const [mark, style] = MARKS[outcome]
  const head = `${paint(style, mark)} ${name.padEnd(width)}  ${paint('dim', outcome === 'skip' ? (why ?? '') : section)}`
  if (outcome !== 'fail') return [head]
  const more = Object.entries({ sent, expected, seen, pcap }).filter(([, text]) => text !== undefined)
  return [head, ...more.map(([key, text]) => `    ${`${key}:`.padEnd(9)} ${printable(text ?? '')}`)]
}

function summary(results: readonly Result[]): string {
  const { pass, fail, skip } = tally(results)
  return `${pass} passed, ${fail} failed, ${skip} not asked`
}

function plain(results: readonly Reported[], head: { profile: string; host: string; port: number; started: Date }) {
  const cases = results.map(({ packets, ...rest }) => rest)
  return { ...head, ...tally(results), cases }
}

function list(cases: readonly Case[], options: Options): void {
  const target = targetOf(options)
  const rows = cases.map(each => ({
    name: each.name,
    section: each.section,
    expected: each.expected,
    why: each.without?.(target),
  }))
  if (options.json) {
    console.log(JSON.stringify(rows, null, 2))
    return
  }
  const columns = ['CASE', 'EXPECTED', 'SECTION', 'NOT ASKED BECAUSE'].map(title => ({ title }))
  const cells = rows.map(({ name, expected, section, why = '' }) => [name, expected, section, why])
  console.log(table(columns, cells, painter(process.stdout)).join('\n'))
}

function targetOf(options: Options): Target {
  const profile = conformProfile(options.profile)
  const { slow = false, health: healthPort, killCommand, secondLocal } = options
  const seen = { family: 4, ownsPort: true, twoAddresses: secondLocal !== undefined } as const
  return { profile, vnis: options.vni ?? profile.vnis, ...seen, slow, healthPort, killCommand }
}

async function addressOf(host: string): Promise<string> {
  try {
    return (await lookup(host)).address
  } catch (error) {
    throw new DetourError('not-found', `target ${host}: no address found (${(error as Error).message})`, {
      cause: error,
    })
  }
}

function parseTarget(word: string): { host: string; port?: number } {
  const [, bracketed, plainHost, digits] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d{1,5}))?$/.exec(word) ?? []
  const host = bracketed ?? plainHost ?? (/^[\da-f:.]+$/i.test(word) ? word : undefined)
  const port = digits === undefined ? undefined : Number(digits)
  if (host !== undefined && (port === undefined || (port > 0 && port <= 65535))) return { host, port }
  throw new InvalidArgumentError('Allowed: a host, or host:port, such as 10.0.0.2:6081 or [fd00::2]:6081.')
}

function parseVnis(text: string): number[] {
  const vnis = text.split(',').map(word => (/^\d{1,8}$/.test(word.trim()) ? Number(word) : -1))
  if (vnis.every(vni => vni >= 0 && vni < 1 << 24)) return vnis
  throw new InvalidArgumentError('Allowed: numbers below 2^24, with commas between them.')
}

function parseSeconds(word: string): number {
  const seconds = Number(word)
  if (seconds >= 0.01 && seconds <= 60) return seconds
  throw new InvalidArgumentError('Allowed: 0.01 to 60 seconds.')
}

function parsePort(word: string): number {
  if (/^\d{1,5}$/.test(word) && Number(word) > 0 && Number(word) <= 65535) return Number(word)
  throw new InvalidArgumentError('Allowed: a port from 1 to 65535.')
}
