// Capabilities (capabilities(7)): which a node needs and why, and how a process keeps those alone.
//
// Sets belong to threads, and Node.js has threads from its first moment on. So the process gives up what it does not need and
// then executes its own program again: all threads of that have what the thread that executed it had kept.

import { readFileSync } from 'node:fs'
import koffi from 'koffi'
import { DetourError } from '../errors.ts'
import { must, systemError } from './libc.ts'

const libc = koffi.load(null)
const c = {
  prctl: libc.func('int prctl(int, ulong, ulong, ulong, ulong)'),
  capset: libc.func('int capset(void *, void *)'),
  execve: libc.func('int execve(const char *, const char **, const char **)'),
  fcntl: libc.func('int fcntl(int, int, int)'),
}

/** A capability: its number (linux/capability.h), what it is for, and whether a node works without, but for that. */
export interface Capability {
  name: string
  number: number
  purpose: string
  optional: boolean
}

/** What a node needs. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON too (bpf_capable() of linux/capability.h). */
export const NODE_CAPABILITIES: readonly Capability[] = [
  { name: 'CAP_NET_ADMIN', number: 12, purpose: 'TAP devices and BPF programs on interfaces', optional: false },
  {
    name: 'CAP_SYS_ADMIN',
    number: 21,
    purpose: "entering pods' network namespaces, loading BPF programs",
    optional: false,
  },
  { name: 'CAP_NET_RAW', number: 13, purpose: 'AF_XDP, for small packets, and ICMP health checks', optional: true },
  { name: 'CAP_IPC_LOCK', number: 14, purpose: 'memory that AF_XDP sends from', optional: true },
  { name: 'CAP_SYS_PTRACE', number: 19, purpose: 'namespaces that a runtime names by process', optional: true },
  {
    name: 'CAP_SYS_NICE',
    number: 23,
    purpose: 'workers before other threads where the heartbeat limit is short',
    optional: true,
  },
]

/** The capability sets of a thread, a bit a capability; named as in proc_pid_status(5). */
export interface CapabilitySets {
  effective: bigint
  permitted: bigint
  inheritable: bigint
  bounding: bigint
  ambient: bigint
  noNewPrivileges: boolean
}

/** Reads the sets of the calling thread. */
export function capabilitySets(status = readFileSync('/proc/thread-self/status', 'latin1')): CapabilitySets {
  const field = (name: string) => new RegExp(`^${name}:\\s+(\\w+)`, 'm').exec(status)?.[1] ?? '0'
  const set = (name: string) => BigInt(`0x${field(`Cap${name}`)}`)
  return {
    effective: set('Eff'),
    permitted: set('Prm'),
    inheritable: set('Inh'),
    bounding: set('Bnd'),
    ambient: set('Amb'),
    noNewPrivileges: field('NoNewPrivs') === '1',
  }
}

const bit = ({ number }: { number: number }) => 1n << BigInt(number)

/** Those that are not in a set. */
export function missingCapabilities(needed: readonly Capability[], permitted: bigint): Capability[] {
  return needed.filter(capability => (permitted & bit(capability)) === 0n)
}

/** Throws DetourError that names every capability without which a node cannot work; returns the others that are missing. */
export function requireCapabilities(
  needed: readonly Capability[],
  permitted = capabilitySets().permitted,
): Capability[] {
  const missing = missingCapabilities(needed, permitted)
  const fatal = missing.filter(({ optional }) => !optional)
  if (fatal.length === 0) return missing
  const list = fatal.map(({ name, purpose }) => `${name} (${purpose})`).join(', ')
  const advice =
    'run as root, or grant them (systemd: AmbientCapabilities=, a container: securityContext.capabilities.add)'
  throw new DetourError('permission', `missing: ${list}; ${advice}`)
}

const PR = { CAPBSET_DROP: 24, SET_NO_NEW_PRIVS: 38, CAP_AMBIENT: 47 } as const
const AMBIENT = { RAISE: 2, CLEAR_ALL: 4 } as const
const CAPSET_VERSION_3 = 0x2008_0522
const CAP_SETPCAP = { number: 8 }
const F_SETFD = 2

/** Marks a process that has executed itself. */
const AGAIN = 'DETOUR_CAPABILITIES_REDUCED'

/**
 * Leaves this process with those of the given capabilities that it has, and no way to more (no_new_privs), in all of its threads: executes the
 * program again, so it belongs at the very start; returns when that is done or was not needed. Without CAP_SETPCAP the bounding set stays. Throws DetourError.
 */
export function keepOnly(kept: readonly Capability[]): void {
  const wanted = kept.reduce((set, capability) => set | bit(capability), 0n)
  const { permitted, bounding, effective, noNewPrivileges } = capabilitySets()
  const settled = ((permitted | bounding) & ~wanted) === 0n && noNewPrivileges
  if (settled || process.env[AGAIN] === '1') return
  if ((effective & bit(CAP_SETPCAP)) !== 0n) {
    for (const number of numbers(bounding & ~wanted)) prctl('PR_CAPBSET_DROP', PR.CAPBSET_DROP, number, 0)
  }
  prctl('PR_CAP_AMBIENT', PR.CAP_AMBIENT, AMBIENT.CLEAR_ALL, 0)
  // Who executes a program as root gets the bounding set; anybody else what is ambient.
  const passed = process.geteuid?.() === 0 ? 0n : permitted & wanted
  capset(permitted & wanted, passed)
  for (const number of numbers(passed)) prctl('PR_CAP_AMBIENT', PR.CAP_AMBIENT, AMBIENT.RAISE, number)
  prctl('PR_SET_NO_NEW_PRIVS', PR.SET_NO_NEW_PRIVS, 1, 0)
  executeAgain()
}

function* numbers(set: bigint): Generator<number> {
  for (let number = 0; set >> BigInt(number) !== 0n; number++) if ((set >> BigInt(number)) & 1n) yield number
}

function prctl(name: string, option: number, first: number, second: number): void {
  must(c.prctl(option, first, second, 0, 0) < 0 ? -koffi.errno() : 0, name, `${first}`)
}

// The header is version and thread (0: the calling one); then for each 32 capabilities effective, permitted, inheritable.
function capset(permitted: bigint, inheritable: bigint): void {
  const half = (shift: bigint) => [permitted, permitted, inheritable].map(set => Number((set >> shift) & 0xffff_ffffn))
  const data = Uint32Array.of(...half(0n), ...half(32n))
  must(c.capset(Uint32Array.of(CAPSET_VERSION_3, 0), data) < 0 ? -koffi.errno() : 0, 'capset', 'this thread')
}

// NB: Node.js marks its standard streams close-on-exec when it starts.
function executeAgain(): never {
  for (const fd of [0, 1, 2]) c.fcntl(fd, F_SETFD, 0)
  const { execPath, execArgv, argv } = process
  const env = Object.entries({ ...process.env, [AGAIN]: '1' }).map(([name, value]) => `${name}=${value}`)
  c.execve(execPath, [execPath, ...execArgv, ...argv.slice(1), null], [...env, null])
  throw systemError('execve', execPath, -koffi.errno())
}
