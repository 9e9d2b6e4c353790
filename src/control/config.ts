// The configuration of a node, parts of which other faces share.

import { isIP } from 'node:net'
import { availableParallelism } from 'node:os'
import { z } from 'zod'
import { MAX_WORKERS } from '../os/limits.ts'
import { DEFAULT_POLLING, POLLING_MODES } from '../pipeline/busy-poll.ts'
import { PROFILE_NAMES } from '../pipeline/profile.ts'
import type { Settings } from '../pipeline/setting.ts'
import { completeProfile, isSettings, profileFlaws } from './profile.ts'
import { integer, oneOf, section, such, text, yesNo } from './yaml.ts'

/** How packets are taken from a pod: the first rung that works, or the one that is named. */
export const ATTACH_RUNGS = ['auto', 'tcx', 'clsact'] as const
export type AttachRung = (typeof ATTACH_RUNGS)[number]

/** How super-packets leave on the underlay: the first rung that works, or the one that is named. `auto` never takes `af-xdp`. */
export const OFFLOAD_RUNGS = ['auto', 'tunnel-gso', 'uso', 'udp-socket', 'plain', 'af-xdp'] as const
export type OffloadRung = (typeof OFFLOAD_RUNGS)[number]

/** What small packets to the endpoint leave by. */
export const EXPRESS_RUNGS = ['auto', 'af-xdp', 'none'] as const
export type ExpressRung = (typeof EXPRESS_RUNGS)[number]

/** What the kernel does with a pod's packets when the daemon is dead or hung. */
export const FAIL_MODES = ['open', 'closed'] as const
export type FailMode = (typeof FAIL_MODES)[number]

/** How urgent a line of the log is; pino's names. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** How many workers a face has. */
export type WorkerCount = 'auto' | number

const AUTO_LIMIT = 4

/** The number behind `auto`: a worker a processor, but no more than 4, which a node's other work must share with them. */
export function workerCount(workers: WorkerCount): number {
  return workers === 'auto' ? Math.min(AUTO_LIMIT, availableParallelism()) : workers
}

const isAddress = (value: string) => isIP(value) !== 0 && !value.includes('%')
const address = () => text('an IPv4 or IPv6 address', isAddress)
const isWithin = (value: unknown, most: number) => Number.isInteger(value) && +value! >= 0 && +value! <= most

const isPath = (value: string) => /^\/[^\0]{0,1023}$/.test(value)
const isName = (value: string) => /^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/.test(value)
// IFNAMSIZ; dev_valid_name() of net/core/dev.c.
const isInterface = (value: string) => /^[^\s/:\0]{1,15}$/.test(value) && value !== '.' && value !== '..'

function isListen(value: string): boolean {
  if (value === 'none') return true
  const [, inner, plain, port] = /^(?:\[(.+)\]|([\d.]+)):(\d{1,5})$/.exec(value) ?? []
  return isIP(inner ?? '') === 6 || isIP(plain ?? '') === 4 ? isWithin(Number(port), 65535) : false
}

function isPrefix(value: string): boolean {
  const [base, bits, ...rest] = value.split('/')
  return rest.length === 0 && isAddress(base) && /^\d{1,3}$/.test(bits ?? '') && +bits <= (isIP(base) === 4 ? 32 : 128)
}

function isPorts(value: unknown): boolean {
  const [first, last] = /^(\d{1,5})-(\d{1,5})$/.exec(String(value))?.slice(1).map(Number) ?? []
  return isWithin(value, 65535) || (first <= last && last <= 65535)
}

// What is described here is what `detour node --print-config` prints.

const tunnel = section({
  profile: oneOf(PROFILE_NAMES).default('geneve').describe('Which headers packets get: see detour profiles.'),
  port: integer(1, 65535).optional().describe("The endpoint's UDP port; the profile's own when not given."),
  vni: integer(0, 0xffffff).optional().describe("Virtual network identifier; the profile's own when not given."),
  settings: such<Settings>('a mapping of the settings that the profile has', isSettings)
    .default({})
    .describe('What the profile has beside: see detour profiles.'),
  local: address().optional().describe("This node's own address of the tunnel; the uplink's when not given."),
  remote: address().optional().describe('The endpoint, where there is one; of several, see endpoints.'),
  ttl: integer(1, 255).default(64).describe('Of the outer header (pipe model).'),
  dscp: such<'copy' | number>('copy, or an integer from 0 to 63', value => value === 'copy' || isWithin(value, 63))
    .default('copy')
    .describe("Of the outer header: the inner one's, or a fixed code point (RFC 2983)."),
  ecn: oneOf(['normal', 'compatibility'])
    .default('normal')
    .describe('RFC 6040: normal copies the inner field outward, compatibility sends Not-ECT.'),
  udpChecksum: oneOf(['auto', 'zero', 'always'])
    .default('auto')
    .describe('auto: zero for VXLAN over IPv4, else computed; zero over IPv6 needs a peer that agrees (RFC 6935).'),
  strictReserved: yesNo()
    .default(false)
    .describe(
      'Drops VXLAN packets with non-zero reserved bits, as Linux does; RFC 7348 section 5 says to ignore them.',
    ),
})
  .refine(t => t.local === undefined || t.remote === undefined || isIP(t.local) === isIP(t.remote), {
    path: ['remote'],
    error: 'allowed: an address of the same IP version as local',
  })
  .superRefine((t, context) => {
    for (const { path, message } of profileFlaws(t)) context.addIssue({ code: 'custom', path, message })
  })
  .transform(completeProfile)

const flows = section({
  capacity: integer(1, 1_048_576)
    .default(1_048_576)
    .describe('Of each worker; further flows are refused and counted (flow-table-full).'),
  tcpTimeoutSeconds: integer(1, 86_400, 'seconds').default(350).describe('Idle time after which TCP flows end.'),
  otherTimeoutSeconds: integer(1, 86_400, 'seconds').default(120).describe('Idle time after which other flows end.'),
})

const prefix = () => text('a prefix like 10.0.0.0/8 or fd00::/8', isPrefix)

const prefixes = () =>
  such<string | string[]>('a prefix like 10.0.0.0/8 or fd00::/8, or a list of them', value =>
    Array.isArray(value) ? value.length > 0 && value.every(isPrefix) : typeof value === 'string' && isPrefix(value),
  )

const bypassRule = section({
  name: text('a name of 1 to 63 letters, digits, ".", "_" or "-"', isName)
    .optional()
    .describe('By which flows tell of it; what it says when not given.'),
  cidr: prefixes().optional().describe('Where the flow goes: the side that did not open it.'),
  from: prefixes().optional().describe('The side that opens the flow.'),
  protocol: oneOf(['tcp', 'udp', 'icmp']).optional(),
  port: such<number | string>('a port from 0 to 65535, or a range like 8000-8100', isPorts)
    .optional()
    .describe("The destination's."),
})
  .refine(({ name, ...rule }) => Object.values(rule).some(value => value !== undefined), {
    error: 'allowed: a rule with at least one of cidr, from, protocol, port',
  })
  .refine(rule => rule.port === undefined || rule.protocol === 'tcp' || rule.protocol === 'udp', {
    path: ['protocol'],
    error: 'allowed beside a port: tcp, udp',
  })

const endpoint = section({
  address: address().describe('Of the IP version of tunnel.local.'),
  name: text('a name of 1 to 63 letters, digits, ".", "_" or "-"', isName)
    .optional()
    .describe('The address when not given.'),
  weight: integer(1, 1000).default(1).describe('Share of the flows among healthy endpoints.'),
  drain: yesNo().default(false).describe('Keeps its flows and gets no new ones.'),
})

const check = (intervalMs: number, limitMs: number) => ({
  intervalMs: integer(10, 60_000, 'milliseconds').default(intervalMs).describe('Time between two.'),
  limitMs: integer(20, 60_000, 'milliseconds').default(limitMs).describe('Silence after which an endpoint is down.'),
})

const health = section({
  probe: section(check(100, 350))
    .prefault({})
    .describe('A packet through the tunnel that must come back, as pods’ packets do.'),
  icmp: section(check(1000, 2500))
    .optional()
    .describe("Echo requests to the endpoint's address; needs the package raw-socket."),
  tcp: section({ port: integer(1, 65535).describe('Of the endpoint.'), ...check(1000, 2500) })
    .optional()
    .describe('Connections to a port of the endpoint.'),
  rise: integer(1, 32).default(3).describe('Successes in a row of each check after which an endpoint is up again.'),
  fall: integer(1, 32).default(3).describe('Failures in a row, beside the silence, after which it is down.'),
  holdDownSeconds: integer(0, 3600, 'seconds')
    .default(1)
    .describe('How long an endpoint that went down stays so at least.'),
})

const node = section({
  uplink: text('the name of an interface', isInterface)
    .optional()
    .describe('Interface toward the endpoints; the one that the route to the first takes when not given.'),
  namespace: text('the path of a network namespace', isPath)
    .optional()
    .describe("Network namespace of the uplink; the daemon's own when not given."),
  control: text('an absolute path', isPath).default('/run/detour/detour.sock').describe('Control socket.'),
  state: text('an absolute path', isPath)
    .default('/run/detour')
    .describe('Folder of what must outlive the daemon but not a reboot.'),
  standby: yesNo().default(true).describe('Keeps a second process ready to take over when this one dies.'),
})

const pods = section({
  inspect: yesNo()
    .default(true)
    .describe('Whether pods are inspected that say nothing; their annotation detour.dev/inspect says it.'),
  excludeNamespaces: z
    .array(text('a Kubernetes namespace', isName), { error: 'allowed: a list of namespaces' })
    .default(['kube-system'])
    .describe('Pods of these Kubernetes namespaces are never inspected, whatever they say.'),
  bypassNode: yesNo()
    .default(true)
    .describe("What the node itself opens toward its pods is not steered: kubelet's probes."),
  antiSpoofing: yesNo().default(true).describe('A pod may send from its own MAC and IP addresses only.'),
  protectedCidrs: z
    .array(prefix(), { error: 'allowed: a list of prefixes' })
    .max(4096, { error: 'allowed: at most 4096 prefixes' })
    .default([])
    .describe(
      'Pods of other nodes that are inspected there when they send: what arrives from these is not inspected again.',
    ),
  flows: integer(1, 1_048_576)
    .default(131_072)
    .describe("Of one attachment at each worker; a pod's further flows are refused and counted."),
})

/** Of RFC 1918, 6598, 3927 (a node's own DNS cache) and 4193. */
const PRIVATE = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', '169.254.0.0/16', 'fc00::/7']

/** The whole configuration; every key has a default, except the addresses. */
export const configSchema = section({
  node: node.prefault({}).describe('The daemon itself.'),
  tunnel: tunnel.prefault({}).describe('How packets travel to the endpoints.'),
  endpoints: z
    .array(endpoint, { error: 'allowed: a list of endpoints' })
    .max(64, { error: 'allowed: at most 64 endpoints' })
    .default([])
    .describe('Where packets are inspected. tunnel.remote is the short form of one.'),
  health: health.prefault({}).describe('How endpoints are found to be up or down.'),
  rebalance: oneOf(['never', 'onFailure'])
    .default('onFailure')
    .describe('What becomes of the flows of an endpoint that is down: they stay with it, or move to the others.'),
  endpointSeed: text('a text of up to 256 characters', value => value.length <= 256)
    .default('')
    .describe('Which endpoint a flow goes to follows from it; nodes with the same endpoints and seed choose alike.'),
  pods: pods.prefault({}).describe('Which pods are inspected, and what they may do.'),
  failMode: oneOf(FAIL_MODES)
    .default('closed')
    .describe(
      'What becomes of packets that cannot be inspected: open passes them, closed drops them. A pod may say otherwise by its annotation detour.dev/fail-mode.',
    ),
  heartbeatLimitMs: integer(20, 60_000, 'milliseconds')
    .default(200)
    .describe('The age of the heartbeat at which the kernel takes the daemon for dead.'),
  flows: flows.prefault({}).describe('The flow tables.'),
  bypass: z
    .array(bypassRule, { error: 'allowed: a list of rules' })
    .default([
      { name: 'metadata', cidr: ['169.254.169.254/32', 'fd00:ec2::254/128'] },
      { name: 'dns', cidr: PRIVATE, protocol: 'udp', port: 53 },
      { name: 'dns', cidr: PRIVATE, protocol: 'tcp', port: 53 },
    ])
    .describe(
      "Packets of flows that match any of these are never steered: by default the cloud's metadata service, and DNS servers with private addresses, as a cluster's have.",
    ),
  mssClamp: such<'auto' | 'none' | number>(
    'auto, none, or an integer from 536 to 65495 (bytes)',
    value => value === 'auto' || value === 'none' || (isWithin(value, 65495) && +value! >= 536),
  )
    .default('auto')
    .describe("The largest segment that TCP's SYN packets may announce: auto lowers it to what fits the tunnel."),
  rungs: section({
    attach: oneOf(ATTACH_RUNGS).default('auto').describe('How packets are taken from a pod.'),
    offload: oneOf(OFFLOAD_RUNGS).default('auto').describe('How super-packets leave; auto never takes af-xdp.'),
    express: oneOf(EXPRESS_RUNGS)
      .default('auto')
      .describe(
        "A device of their own for small packets to the endpoint, where there is one; it passes by the uplink's queueing discipline and egress programs.",
      ),
  })
    .prefault({})
    .describe('Ways of the kernel: the best that works, or the one that is named.'),
  workers: such<WorkerCount>(
    `auto, or an integer from 1 to ${MAX_WORKERS}`,
    value => value === 'auto' || (isWithin(value, MAX_WORKERS) && value !== 0),
  )
    .default(1)
    .describe(
      'Threads that share the flows, each with a queue of every device; auto goes by the processors there are.',
    ),
  polling: section({
    mode: oneOf(POLLING_MODES)
      .default(DEFAULT_POLLING.mode)
      .describe('adaptive looks as long as packets come often, always keeps a processor busy, never looks once.'),
    maxMicroseconds: integer(1, 1_000_000, 'microseconds')
      .default(DEFAULT_POLLING.maxMicroseconds)
      .describe('The longest look; less costs less processor time, more saves more wake-ups.'),
  })
    .prefault({})
    .describe('What a worker does before it sleeps.'),
  metrics: section({
    listen: text('none, or an address and port like 127.0.0.1:9469 or [::1]:9469', isListen)
      .default('127.0.0.1:9469')
      .describe('Where /metrics, /healthz and /readyz are served over HTTP; none turns it off.'),
  })
    .prefault({})
    .describe('What Prometheus reads.'),
  log: section({
    level: oneOf(LOG_LEVELS).default('info').describe('The least urgent lines that are written.'),
    format: oneOf(['auto', 'text', 'json']).default('auto').describe('auto: text on a terminal, else JSON.'),
  })
    .prefault({})
    .describe('What the daemon writes on standard output.'),
  flowLog: text('none, or an absolute path', value => value === 'none' || isPath(value))
    .default('none')
    .describe('File that gets a line of JSON when a flow starts and when it ends.'),
}).refine(config => config.tunnel.remote === undefined || config.endpoints.length === 0, {
  path: ['endpoints'],
  error: 'allowed: an empty list beside tunnel.remote, which is the short form of one endpoint',
})

export type Config = z.output<typeof configSchema>
export type TunnelConfig = Config['tunnel']
export type BypassRule = Config['bypass'][number]
export type EndpointConfig = Config['endpoints'][number]

/** The endpoints, whichever form they were given in; empty when none was. */
export function configuredEndpoints({ tunnel, endpoints }: Config): EndpointConfig[] {
  return tunnel.remote === undefined ? endpoints : [{ address: tunnel.remote, weight: 1, drain: false }]
}
