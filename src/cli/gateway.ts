// detour gateway: the inspection endpoint, simulated, until it is told to stop.

import { closeSync, constants, openSync } from 'node:fs'
import { isIP } from 'node:net'
import { Command, InvalidArgumentError, Option } from 'commander'
import { ATTACH_RUNGS, type AttachRung, OFFLOAD_RUNGS, type OffloadRung, type WorkerCount } from '../control/config.ts'
import { settingsOf } from '../control/profile.ts'
import { type ControlServer, dropRows, serveControl, stageRows } from '../control/socket.ts'
import { FAULT_NAMES, type Fault, parseFaults, SETTING_NAMES, SETTINGS } from '../device/faults.ts'
import { DetourError } from '../errors.ts'
import { readFaults } from '../gateway/faults-file.ts'
import { type GatewayOptions, type RunningGateway, startGateway } from '../gateway/gateway.ts'
import { PROFILE_NAMES, type ProfileName } from '../pipeline/profile.ts'
import { addPolicyFlags, type PolicyFlags, parseWorkerCount, policyOf, settingOption, signaturesOf } from './options.ts'
import { painter } from './table.ts'
import { VIEWS } from './views.ts'

interface Options extends PolicyFlags {
  listen: { address: string; port?: number }
  profile: ProfileName
  vni?: number
  set?: string[]
  log?: string
  namespace?: string
  interface?: string
  offload: OffloadRung
  attach: AttachRung
  inline?: [string, string]
  workers: WorkerCount
  write?: string
  faults?: string
  fault: string[]
  seed: number
  strictReserved?: boolean
  zeroChecksum6?: boolean
  control?: string
  json?: boolean
}

const STDOUT = 1

/** The subcommand `gateway`. */
export function gatewayCommand(): Command {
  const command = new Command('gateway')
    .description('Ends tunnels as an inspection endpoint does: applies a rule file and returns what it allows.')
    .requiredOption(
      '-l, --listen <ADDR[:PORT]>',
      "where tunnel packets come in; the profile's port when not given",
      parseListen,
    )
    .addOption(new Option('-p, --profile <NAME>', 'what the tunnel is like').choices(PROFILE_NAMES).default('geneve'))
    .option('--vni <N>', 'where a profile has two tunnels: that of the internal one', parseVni)
    .addOption(settingOption())
  return addPolicyFlags(command)
    .option('--log <FILE>', 'a JSON line a verdict is appended here; - for standard output')
    .option('--namespace <NS>', 'name or path of the network namespace to listen in')
    .option(
      '-i, --interface <IF>',
      'take packets from this interface, super-packets whole (root); otherwise a UDP socket',
    )
    .addOption(
      new Option('--offload <RUNG>', 'with --interface: how super-packets are carried')
        .choices(OFFLOAD_RUNGS)
        .default('auto'),
    )
    .addOption(
      new Option('--attach <RUNG>', 'with --interface: how packets are taken from it')
        .choices(ATTACH_RUNGS)
        .default('auto'),
    )
    .option(
      '--inline <IN,OUT>',
      'two interfaces between which an appliance decides what goes back (root); one worker',
      parseInline,
    )
    .option('--workers <N>', 'threads that share the flows, or auto; more than one need CAP_BPF', parseWorkerCount, 1)
    .option('-w, --write <FILE>', 'capture what comes in and goes out to a pcap file')
    .option('--faults <FILE>', 'a schedule (YAML) of what shall go wrong; see detour fault --help')
    .option(
      '--fault <SPEC>',
      'something that shall go wrong, such as drop=10%,port=80; may be repeated',
      (spec, specs: string[]) => [...specs, spec],
      [],
    )
    .option('--seed <N>', "the faults' dice", parseSeed, 1)
    .option('--strict-reserved', 'drop VXLAN packets with reserved bits set, as Linux does')
    .option('--zero-checksum6', 'accept zero UDP checksums over IPv6 (RFC 6935)')
    .option(
      '--control <SOCKET>',
      'control socket for detour show and fault, one a gateway (default: gateway.sock in /run/detour)',
    )
    .option('--json', 'events as JSON lines')
    .addHelpText(
      'after',
      `
The rule file; the first rule that matches decides:
  default: allow                                # allow, drop or reset
  rules:
    - { name: no-telnet, from: [10.0.0.0/8], protocol: tcp, ports: [23, '8000-8100'], action: reset }
    - { name: block-secret, protocol: tcp, ports: [80], signature: { regex: 'GET /secret', flags: i }, action: drop }

--inline IN,OUT: what the policy allows goes to an appliance (Suricata with copy-mode ips, a bridge with nftables …). Packets
from whoever opened a flow enter it at IN and are expected at OUT; the others travel from OUT to IN. What comes out goes back
through the tunnel by its addresses and ports, so it may be changed in all else; what belongs to no flow is dropped
(unknown-flow). A bridge must not learn addresses: bridge link set dev PORT learning off.

Examples:
  detour gateway --listen 0.0.0.0:6081 --policy rules.yaml --log verdicts.jsonl
  detour gateway --listen 0.0.0.0 --fault drop=1% --fault delay=50ms,at=30s,for=10s
  detour gateway --listen 0.0.0.0 --policy policies/ --inventory cluster.json --deny-with 403
  detour gateway --listen 0.0.0.0 --rules emerging.rules --rule-var 'HOME_NET=[10.0.0.0/8]' --eve eve.json
  detour gateway --listen [::1]:4789 --profile vxlan --log -
  sudo detour gateway --listen 10.99.0.2 --namespace endpoint --interface eth0
  sudo detour gateway --listen 10.99.0.2 --inline veth-in,veth-out`,
    )
    .action(run)
}

async function run(options: Options, command: Command): Promise<void> {
  if (options.interface === undefined) refuseRungs(options, command)
  const policy = policyOf(options)
  const signatures = signaturesOf(options)
  const logFd = options.log === undefined ? undefined : openLog(options.log)
  const eveFd = options.eve === undefined ? undefined : openLog(options.eve)
  // With verdicts on standard output, what is for people goes beside it.
  const say = options.json || (logFd !== STDOUT && eveFd !== STDOUT) ? process.stdout : process.stderr
  // Heard from here on, so that a signal never leaves an interface half changed.
  const stopped = stopSignal()
  const gateway = await startGateway({ ...startOptions(options), policy, logFd, signatures, eveFd })
  let control: ControlServer | undefined
  try {
    control = await serveControl(gateway.source, { path: options.control })
    const listening = {
      where: gateway.where,
      profile: options.profile,
      rules: ('rules' in policy ? policy.rules.length : policy.policies.length) + (signatures?.length ?? 0),
      control: control.path,
    }
    say.write(options.json ? `${JSON.stringify({ event: 'listening', ...listening })}\n` : introduce(listening))
    await Promise.race([stopped, gateway.done])
  } finally {
    await control?.close()
    const faults = await gateway.stop()
    for (const fault of faults) process.stderr.write(`detour: ${fault}\n`)
    if (faults.length > 0) process.exitCode = 1
    for (const fd of [logFd, eveFd]) if (fd !== undefined && fd !== STDOUT) closeSync(fd)
  }
  say.write(`${summary(gateway, options.json === true)}\n`)
}

function startOptions(options: Options): Omit<GatewayOptions, 'policy' | 'signatures'> {
  const { listen, profile, namespace, write, strictReserved = false, zeroChecksum6 = false } = options
  return {
    ...listen,
    profile,
    vni: options.vni,
    settings: settingsOf(options.set ?? []),
    namespace,
    interface: options.interface,
    rung: options.offload,
    attach: options.attach,
    inline: options.inline,
    workers: options.workers,
    capture: write === undefined ? undefined : { path: write },
    faults: faultsOf(options),
    faultSeed: options.seed,
    tunnel: { strictReserved, zeroChecksum6 },
  }
}

/** The faults of the schedule and of the SPECs. Throws DetourError. */
function faultsOf({ faults: file, fault: specs, seed }: Options): Fault[] | undefined {
  const faults = file === undefined ? [] : readFaults(file, seed)
  for (const spec of specs) faults.push(...parseFaults(spec, FAULT_NAMES, SETTING_NAMES, seed).faults)
  return faults.length === 0 ? undefined : faults
}

function parseSeed(word: string): number {
  const seed = SETTINGS.seed.read(word)
  if (seed === undefined) throw new InvalidArgumentError(`Allowed: ${SETTINGS.seed.allowed}.`)
  return seed
}

function introduce({
  where,
  profile,
  rules,
  control,
}: {
  where: string
  profile: string
  rules: number
  control: string
}): string {
  return `gateway: listens on ${where}, profile ${profile}, ${rules} rules, control socket ${control}; Ctrl-C ends it\n`
}

/** What went where, for people or as data. */
function summary(gateway: RunningGateway, json: boolean): string {
  const counters = gateway.source.counters()
  const stats = { rows: stageRows(counters) }
  const drops = { rows: dropRows(counters) }
  if (json) return JSON.stringify({ event: 'stopped', stages: stats.rows, drops: drops.rows })
  const view = { paint: painter(process.stdout), all: false }
  return [...VIEWS.stats(stats, view), '', ...VIEWS.drops(drops, view)].join('\n')
}

function refuseRungs(options: Options, command: Command): void {
  for (const name of ['offload', 'attach'] as const)
    if (options[name] !== 'auto')
      command.error(`error: --${name} ${options[name]}: only with --interface; without one a UDP socket is used`)
}

function openLog(path: string): number {
  if (path === '-') return STDOUT
  try {
    // NB: a reader that falls behind must not stop packets.
    return openSync(path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NONBLOCK)
  } catch (error) {
    throw new DetourError('bad-file', `log ${path}: cannot be written (${(error as Error).message})`, { cause: error })
  }
}

/** Resolves with the first SIGINT or SIGTERM; a second one ends the process at once. */
function stopSignal(): Promise<void> {
  return new Promise(resolve => {
    const stop = () => resolve()
    process.once('SIGINT', stop).once('SIGTERM', stop)
  })
}

function parseVni(word: string): number {
  if (/^\d{1,8}$/.test(word) && Number(word) <= 0xffffff) return Number(word)
  throw new InvalidArgumentError('Allowed: 0 to 16777215.')
}

function parseInline(word: string): [string, string] {
  const [inside, outside, ...more] = word.split(',')
  if (inside && outside && inside !== outside && more.length === 0) return [inside, outside]
  throw new InvalidArgumentError('Allowed: two interfaces, such as veth-in,veth-out.')
}

function parseListen(word: string): { address: string; port?: number } {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]*)\]|([^:]*))(?::(\d{1,5}))?$/.exec(word) ?? []
  const address = bracketed ?? plain ?? (isIP(word) === 6 ? word : '')
  const port = digits === undefined ? undefined : Number(digits)
  const family = bracketed === undefined && plain !== undefined ? 4 : 6
  if (isIP(address) === family && (port === undefined || (port > 0 && port <= 65535))) return { address, port }
  throw new InvalidArgumentError('Allowed: an address and a port, such as 0.0.0.0:6081 or [::1]:6081.')
}
