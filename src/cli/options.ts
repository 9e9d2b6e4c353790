// Options that several subcommands share: the tunnel's, as people write them.

import { statSync } from 'node:fs'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { type Config, configSchema, type WorkerCount } from '../control/config.ts'
import { settingsOf } from '../control/profile.ts'
import { tunnelConfig } from '../control/tunnel.ts'
import { readYamlDocuments } from '../control/yaml.ts'
import { DEVICE_KINDS, parseFaults } from '../device/faults.ts'
import { DEVICE_SETTINGS } from '../device/faulty.ts'
import { DetourError } from '../errors.ts'
import { DENIALS, type Denial, type Policy } from '../gateway/judge.ts'
import { inventoryOf } from '../gateway/policy/inventory.ts'
import { policiesOf, readManifests } from '../gateway/policy/policies.ts'
import { ALLOW_ALL, readRules } from '../gateway/rules.ts'
import type { Signature } from '../gateway/suricata/model.ts'
import { readRuleFiles, readVariables, UNSUPPORTED } from '../gateway/suricata/parse.ts'
import type { ReplayOptions } from '../lab/replay.ts'
import { MAX_WORKERS } from '../os/limits.ts'
import { PROFILE_NAMES, profileNamed } from '../pipeline/profile.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'

/** What `addTunnelOptions` parses; strings as given. */
export interface TunnelFlags {
  profile?: string
  local?: string
  remote?: string
  vni?: string
  port?: string
  set?: string[]
  zeroChecksum6?: boolean
}

/** Adds --profile, --port and --set: what a tunnel packet is known by. */
export function addProfileOptions(command: Command): Command {
  return command
    .addOption(new Option('--profile <NAME>', 'the tunnel').choices(PROFILE_NAMES).default('geneve'))
    .option('--port <N>', "UDP destination port (default: the profile's)")
    .addOption(settingOption())
}

/** --set, for what a profile has beside. */
export function settingOption(): Option {
  const collect = (line: string, before: string[] = []) => [...before, line]
  return new Option('--set <NAME=VALUE>', 'a setting of the profile (detour profiles); may be repeated').argParser(
    collect,
  )
}

/** Adds those, --local, --remote and --vni. */
export function addTunnelOptions(command: Command): Command {
  return addProfileOptions(command)
    .option('--local <IP>', 'outer source address (default: 192.0.2.1 or 2001:db8::1)')
    .option('--remote <IP>', 'outer destination address (default: 192.0.2.2 or 2001:db8::2)')
    .option('--vni <N>', "virtual network identifier, 24 bits (default: the profile's)")
}

/** The tunnel that the flags ask for; the addresses default to documentation ones (RFC 5737, RFC 3849). With `anyVni`, a VNI that the profile wants is not missed. Throws DetourError. */
export function tunnelOf(flags: TunnelFlags, anyVni = false): TunnelConfig {
  const six = (flags.local ?? flags.remote ?? '').includes(':')
  const number = (key: 'vni' | 'port') => {
    const text = flags[key]
    if (text === undefined) return undefined
    if (!/^\d+$/.test(text)) throw new DetourError('usage', `--${key} '${text}': give a number`)
    return Number(text)
  }
  const tunnel = tunnelConfig(
    checked({
      profile: flags.profile,
      local: flags.local ?? (six ? '2001:db8::1' : '192.0.2.1'),
      remote: flags.remote ?? (six ? '2001:db8::2' : '192.0.2.2'),
      vni: number('vni') ?? (anyVni ? anyVniOf(flags.profile) : undefined),
      port: number('port'),
      settings: settingsOf(flags.set ?? []),
    }),
  )
  return { ...tunnel, zeroChecksum6: flags.zeroChecksum6 ?? tunnel.zeroChecksum6 }
}

function anyVniOf(profile = 'geneve'): number {
  const { vnis } = profileNamed(profile)
  return 'fixed' in vnis ? vnis.fixed : (vnis.usual ?? vnis.min)
}

function checked(tunnel: Record<string, unknown>): Config['tunnel'] {
  const given = Object.fromEntries(Object.entries(tunnel).filter(([, value]) => value !== undefined))
  const parsed = configSchema.safeParse({ tunnel: given })
  if (parsed.success) return parsed.data.tunnel
  const [issue] = parsed.error.issues
  const [, key, setting] = issue.path.map(String)
  if (setting !== undefined) throw new DetourError('usage', `--set ${setting}: ${issue.message}`)
  throw new DetourError(
    'usage',
    `--${key} ${given[key] === undefined ? 'is missing' : `'${given[key]}'`}: ${issue.message}`,
  )
}

/** The value of --workers: a number of threads, or `auto`. */
export function parseWorkerCount(word: string): WorkerCount {
  if (word === 'auto') return word
  const workers = Number(word)
  if (Number.isInteger(workers) && workers >= 1 && workers <= MAX_WORKERS) return workers
  throw new InvalidArgumentError(`Allowed: auto, or 1 to ${MAX_WORKERS}.`)
}

/** What `addWrapperOptions` parses. */
export interface WrapperFlags {
  pcap?: string
  trace?: number | true
  fault?: string
}

/** Adds --pcap, --trace and --fault, which wrap the underlay's device. */
export function addWrapperOptions(command: Command): Command {
  return command
    .option('--pcap <FILE>', 'write what the underlay carries to a pcapng file')
    .option('--trace [COUNT]', 'print what the underlay carries on standard error, so many packets', parseCount)
    .option('--fault <SPEC>', 'seeded faults on the underlay, such as loss=1%,reorder=5%,seed=7')
}

function parseCount(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('allowed: a number of packets')
  return Number(text)
}

const TRACE_COUNT = 100

/** The wrappers that the flags ask for. Throws DetourError. */
export function wrappersOf({ pcap, trace, fault }: WrapperFlags): ReplayOptions['underlay'] {
  return {
    ...(pcap === undefined ? {} : { capture: pcap }),
    ...(trace === undefined ? {} : { trace: { count: trace === true ? TRACE_COUNT : trace } }),
    ...(fault === undefined ? {} : { faults: parseFaults(fault, DEVICE_KINDS, DEVICE_SETTINGS) }),
  }
}

/** Flags that say what a gateway decides by. */
export interface PolicyFlags extends SignatureFlags {
  policy?: string
  inventory?: string
  denyWith: Denial
}

/** Adds them to a command. */
export function addPolicyFlags(command: Command): Command {
  return command
    .option('--policy <PATH>', 'rule file (YAML), or manifests of policies beside --inventory; all is allowed without')
    .option('--inventory <FILE>', 'pods and namespaces as kubectl prints them: --policy is NetworkPolicy and such')
    .addOption(
      new Option('--deny-with <HOW>', 'what policies of Kubernetes and Cilium do to a flow that they deny')
        .choices(DENIALS)
        .default('reset'),
    )
    .option('--rules <FILE>', "threat signatures in Suricata's rule language (repeatable)", collect, [])
    .option('--rule-vars <FILE>', 'variables of rules: vars of a YAML file as suricata.yaml has them')
    .option('--rule-var <NAME=VALUE>', 'a variable of rules, such as HOME_NET=[10.0.0.0/8] (repeatable)', collect, [])
    .addOption(
      new Option('--unsupported <HOW>', 'rules with keywords that are not supported')
        .choices(UNSUPPORTED)
        .default('skip'),
    )
    .option('--eve <FILE>', "alerts of rules, as Suricata's EVE JSON; - for standard output")
}

function collect(word: string, before: string[]): string[] {
  return [...before, word]
}

/** Flags about threat signatures. */
export interface SignatureFlags {
  rules?: string[]
  ruleVars?: string
  ruleVar?: string[]
  unsupported?: (typeof UNSUPPORTED)[number]
  eve?: string
}

/** Reads the rules that the flags name and says on standard error which were left out; undefined where there are none. Throws DetourError. */
export function signaturesOf({
  rules = [],
  ruleVars,
  ruleVar = [],
  unsupported = 'skip',
  eve,
}: SignatureFlags): Signature[] | undefined {
  if (rules.length === 0) {
    if (eve !== undefined) throw new DetourError('usage', '--eve is of use only to rules; name them with --rules')
    return undefined
  }
  const variables = ruleVars === undefined ? {} : readVariables(ruleVars)
  for (const one of ruleVar) {
    const [, name, value] = /^(\w+)=(.+)$/s.exec(one) ?? []
    if (name === undefined)
      throw new DetourError('usage', `--rule-var '${one}': give NAME=VALUE, such as HOME_NET=[10.0.0.0/8]`)
    variables[name] = value
  }
  const { signatures, skipped } = readRuleFiles(rules, variables, unsupported)
  for (const { where, why } of skipped) process.stderr.write(`detour: ${where}: left out: ${why}\n`)
  return signatures
}

/** Reads what the flags name; throws DetourError. */
export function policyOf({ policy, inventory, denyWith }: PolicyFlags): Policy {
  if (inventory === undefined) {
    if (policy === undefined) return ALLOW_ALL
    if (!statSync(policy, { throwIfNoEntry: false })?.isDirectory()) return readRules(policy)
    throw new DetourError('usage', `--policy ${policy}: manifests of a directory need --inventory beside them`)
  }
  if (policy === undefined)
    throw new DetourError('usage', '--inventory is of use only to policies; name them with --policy')
  const manifests = { policies: readManifests([policy]), inventory: readYamlDocuments(inventory), denial: denyWith }
  // Said here rather than by a worker.
  policiesOf(manifests.policies)
  inventoryOf(manifests.inventory)
  return manifests
}
