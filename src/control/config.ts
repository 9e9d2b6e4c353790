// The configuration of a tunnel and its pipeline, shared by every face.

import { isIP } from 'node:net'
import { availableParallelism } from 'node:os'
import { z } from 'zod'
import { MAX_WORKERS } from '../os/limits.ts'
import { DEFAULT_POLLING, POLLING_MODES } from '../pipeline/busy-poll.ts'
import { integer, oneOf, section, such, text, yesNo } from './yaml.ts'

/** Tunnel profiles and their standard UDP ports (RFC 8926 section 3.3, RFC 7348 section 5). */
export const PROFILE_PORT = { geneve: 6081, vxlan: 4789 } as const
export type ProfileName = keyof typeof PROFILE_PORT
const PROFILES = Object.keys(PROFILE_PORT) as [ProfileName, ...ProfileName[]]

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

function isPrefix(value: string): boolean {
  const [base, bits, ...rest] = value.split('/')
  return rest.length === 0 && isAddress(base) && /^\d{1,3}$/.test(bits ?? '') && +bits <= (isIP(base) === 4 ? 32 : 128)
}

function isPorts(value: unknown): boolean {
  const [first, last] = /^(\d{1,5})-(\d{1,5})$/.exec(String(value))?.slice(1).map(Number) ?? []
  return isWithin(value, 65535) || (first <= last && last <= 65535)
}

const tunnel = section({
  profile: oneOf(PROFILES).default('geneve'),
  /** The endpoint's UDP port; the profile's own when not given. */
  port: integer(1, 65535).optional(),
  vni: integer(0, 0xffffff).default(1),
  local: address().optional(),
  remote: address().optional(),
  /** Of the outer header (pipe model). */
  ttl: integer(1, 255).default(64),
  /** Of the outer header: the inner one's, or a fixed code point (RFC 2983). */
  dscp: such<'copy' | number>(
    'copy, or an integer from 0 to 63',
    value => value === 'copy' || isWithin(value, 63),
  ).default('copy'),
  /** RFC 6040: `normal` copies the inner field outward, `compatibility` sends Not-ECT. */
  ecn: oneOf(['normal', 'compatibility']).default('normal'),
  /** `auto`: zero over IPv4, computed over IPv6; `zero` over IPv6 needs a peer that agrees (RFC 6935). */
  udpChecksum: oneOf(['auto', 'zero', 'always']).default('auto'),
  /** Drops VXLAN packets with non-zero reserved bits, as Linux does; RFC 7348 section 5 says to ignore them. */
  strictReserved: yesNo().default(false),
})
  .refine(t => t.local === undefined || t.remote === undefined || isIP(t.local) === isIP(t.remote), {
    path: ['remote'],
    error: 'allowed: an address of the same IP version as local',
  })
  .transform(t => ({ ...t, port: t.port ?? PROFILE_PORT[t.profile] }))

const flows = section({
  /** Of each worker; further flows are refused with FLOW_TABLE_FULL. */
  capacity: integer(1, 1_048_576).default(1_048_576),
  tcpTimeoutSeconds: integer(1, 86_400, 'seconds').default(350),
  otherTimeoutSeconds: integer(1, 86_400, 'seconds').default(120),
})

const bypassRule = section({
  /** The far side. */
  cidr: text('a prefix like 10.0.0.0/8 or fd00::/8', isPrefix).optional(),
  protocol: oneOf(['tcp', 'udp', 'icmp']).optional(),
  /** The destination's. */
  port: such<number | string>('a port from 0 to 65535, or a range like 8000-8100', isPorts).optional(),
})
  .refine(rule => Object.values(rule).some(value => value !== undefined), {
    error: 'allowed: a rule with at least one of cidr, protocol, port',
  })
  .refine(rule => rule.port === undefined || rule.protocol === 'tcp' || rule.protocol === 'udp', {
    path: ['protocol'],
    error: 'allowed beside a port: tcp, udp',
  })

/** The whole configuration; every key has a default, except the addresses. */
export const configSchema = section({
  tunnel: tunnel.prefault({}),
  flows: flows.prefault({}),
  failMode: oneOf(FAIL_MODES).default('closed'),
  /** The age of the heartbeat at which the kernel takes the daemon for dead. */
  heartbeatLimitMs: integer(20, 60_000, 'milliseconds').default(200),
  rungs: section({
    attach: oneOf(ATTACH_RUNGS).default('auto'),
    offload: oneOf(OFFLOAD_RUNGS).default('auto'),
    /** A device of their own for small packets to the endpoint, where there is one; it passes by the uplink's queueing discipline and egress programs. */
    express: oneOf(EXPRESS_RUNGS).default('auto'),
  }).prefault({}),
  /** Threads that share the flows, each with a queue of every device; `auto` goes by the processors there are. */
  workers: such<WorkerCount>(
    `auto, or an integer from 1 to ${MAX_WORKERS}`,
    value => value === 'auto' || (isWithin(value, MAX_WORKERS) && value !== 0),
  ).default(1),
  /** What a worker does before it sleeps: `adaptive` looks for packets as long as they come often, `always` keeps a processor busy, `never` looks once. */
  polling: section({
    mode: oneOf(POLLING_MODES).default(DEFAULT_POLLING.mode),
    /** The longest look; less costs less processor time, more saves more wake-ups. */
    maxMicroseconds: integer(1, 1_000_000, 'microseconds').default(DEFAULT_POLLING.maxMicroseconds),
  }).prefault({}),
  /** Packets that match any of these are never steered; the cloud's metadata service by default. */
  bypass: z.array(bypassRule, { error: 'allowed: a list of rules' }).default([{ cidr: '169.254.169.254/32' }]),
})

export type Config = z.output<typeof configSchema>
export type TunnelConfig = Config['tunnel']
export type BypassRule = Config['bypass'][number]
