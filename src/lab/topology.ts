// The laboratory's topology: a node with a primary CNI's bridge, two pods and an inspection endpoint, each in a
// network namespace of its own. Everything made here carries the run's prefix; nothing else is ever touched.

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import { PIN_DIRECTORY } from '../node/attachment.ts'
import { detachClassifiers } from '../os/classifier.ts'
import {
  createNamespace,
  deleteNamespace,
  inNamespace,
  ip,
  ipBatch,
  listNamespaces,
  namespacePath,
} from '../os/netns.ts'

export const ROLES = ['client', 'server', 'node', 'gateway'] as const
export type Role = (typeof ROLES)[number]

/** A network namespace of the laboratory; addresses are the ones its traffic uses, without prefix length. */
export interface Place {
  readonly role: Role
  /** The name `ip netns` knows it by. */
  readonly namespace: string
  /** The file to enter it by. */
  readonly path: string
  readonly ipv4: string
  readonly ipv6: string
  /** The interface that carries the address: `eth0` in the pods, `up-<run>` on the node, `gw-<run>` at the gateway. */
  readonly interface: string
  readonly mac: string
}

export interface Topology {
  readonly run: string
  readonly places: Readonly<Record<Role, Place>>
  /** The MTU of the underlay link between node and gateway. */
  readonly uplinkMtu: number
  /** Kills what runs in the namespaces and removes them; may be called twice. */
  close(): void
}

export interface TopologyOptions {
  /** Names a parallel run: namespaces are then `detour-lab-<run>-client` and so on; `main` is plain `detour-lab-client`. */
  run?: string
  /** MTU of the underlay link; the default carries a full inner frame and its tunnel headers. */
  uplinkMtu?: number
}

const STATE = '/run/detour'
const BRIDGE = { ipv4: '10.244.0.1', ipv6: 'fd00:244::1', mac: '02:de:00:00:00:01' }
const ADDRESS = {
  client: { ipv4: '10.244.0.2', ipv6: 'fd00:244::2', mac: '02:de:00:00:00:02' },
  server: { ipv4: '10.244.0.3', ipv6: 'fd00:244::3', mac: '02:de:00:00:00:03' },
  node: { ipv4: '10.99.0.1', ipv6: 'fd00:99::1', mac: '02:de:00:99:00:01' },
  gateway: { ipv4: '10.99.0.2', ipv6: 'fd00:99::2', mac: '02:de:00:99:00:02' },
} as const

/** Says why this process cannot build a laboratory, or null when it can. */
export function whyNoLab(): string | null {
  if (process.platform !== 'linux') return 'network namespaces need Linux'
  if (process.getuid?.() !== 0) return 'network namespaces and BPF programs need root (try with sudo)'
  // Root of a container may lack CAP_NET_ADMIN (bit 12) or CAP_SYS_ADMIN (bit 21); capabilities(7).
  const effective = BigInt(`0x${/^CapEff:\s*(\w+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`)
  for (const [name, bit] of [
    ['CAP_NET_ADMIN', 12n],
    ['CAP_SYS_ADMIN', 21n],
  ] as const) {
    if ((effective & (1n << bit)) === 0n) return `this root user has no ${name}`
  }
  return existsSync('/dev/net/tun') ? null : '/dev/net/tun is missing'
}

/** Builds the namespaces, links and addresses of one run; throws `permission`, `usage` when the run is alive, or `system`. */
export function buildTopology(options: TopologyOptions = {}): Topology {
  const run = checkRun(options.run ?? 'main')
  const uplinkMtu = options.uplinkMtu ?? 1600
  const reason = whyNoLab()
  if (reason !== null) throw new DetourError('permission', `lab: ${reason}`)
  const owner = readState(run)
  if (owner !== null && isAlive(owner)) {
    throw new DetourError(
      'usage',
      `lab: run '${run}' belongs to process ${owner.pid}; stop it or name another with --run`,
    )
  }
  removeRun(run)
  writeState({ run, pid: process.pid, startTime: startTime(process.pid) ?? '', keep: false })
  try {
    makeNamespaces(run, uplinkMtu)
  } catch (error) {
    removeRun(run)
    throw error
  }
  const places = Object.fromEntries(ROLES.map(role => [role, place(run, role)])) as Record<Role, Place>
  return { run, places, uplinkMtu, close: () => removeRun(run) }
}

/** Leaves a run in place when this process ends; `cleanUp` or the next run of that name removes it. */
export function keepTopology(topology: Topology): void {
  const state = readState(topology.run)
  if (state !== null) writeState({ ...state, keep: true })
}

/** Removes what dead laboratories left behind, kept ones only when asked to, of one run or of all; returns the names of the runs removed. */
export function cleanUp(kept = false, run?: string): string[] {
  const removed: string[] = []
  for (const state of allStates()) {
    if (isAlive(state) || (state.keep && !kept) || (run !== undefined && state.run !== run)) continue
    removeRun(state.run)
    removed.push(state.run)
  }
  return removed
}

/** The control socket of a face; that of the run `main` has the name that `detour show` looks for. */
export function controlSocket(run: string, face: 'node' | 'gateway'): string {
  return `${STATE}/${run === 'main' ? face : `${face}-${run}`}.sock`
}

/** The namespaces, pinned BPF programs and sockets of one run that exist now; empty after a clean-up. */
export function leftOver(run: string): string[] {
  return [...namespacesOf(run), ...pinsOf(run), ...socketsOf(run)]
}

function socketsOf(run: string): string[] {
  return [controlSocket(run, 'node'), controlSocket(run, 'gateway')].filter(path => existsSync(path))
}

function namespacesOf(run: string): string[] {
  const names = new Set(ROLES.map(role => namespaceName(run, role)))
  return listNamespaces().filter(name => names.has(name))
}

function makeNamespaces(run: string, uplinkMtu: number): void {
  for (const role of ROLES) {
    createNamespace(namespaceName(run, role))
    setSysctls(namespaceName(run, role))
  }
  const [client, server, node, gateway] = ROLES.map(role => namespaceName(run, role))
  const links = [
    `link add cni0 address ${BRIDGE.mac} type bridge forward_delay 0 mcast_snooping 0`,
    `addr add ${BRIDGE.ipv4}/24 dev cni0`,
    `addr add ${BRIDGE.ipv6}/64 dev cni0 nodad`,
    'link set cni0 up',
    ...[
      ['client', client],
      ['server', server],
    ].flatMap(([role, namespace]) => [
      `link add veth-${role} type veth peer name eth0 address ${ADDRESS[role as 'client' | 'server'].mac} netns ${namespace}`,
      `link set veth-${role} master cni0`,
      `link set veth-${role} up`,
    ]),
    `link add ${interfaceName(run, 'node')} mtu ${uplinkMtu} address ${ADDRESS.node.mac} type veth peer name ${interfaceName(run, 'gateway')} mtu ${uplinkMtu} address ${ADDRESS.gateway.mac} netns ${gateway}`,
    ...addressed(run, 'node'),
  ]
  ipBatch(links, node)
  const routes = [`route add default via ${BRIDGE.ipv4}`, `route add default via ${BRIDGE.ipv6}`]
  ipBatch([...addressed(run, 'client'), ...routes], client)
  ipBatch([...addressed(run, 'server'), ...routes], server)
  // The way to pods' own addresses, which a profile may return packets to.
  const { ipv4, ipv6 } = ADDRESS.node
  const pods = [`route add 10.244.0.0/24 via ${ipv4}`, `route add fd00:244::/64 via ${ipv6}`]
  ipBatch([...addressed(run, 'gateway'), ...pods], gateway)
}

function addressed(run: string, role: Role): string[] {
  const { ipv4, ipv6 } = ADDRESS[role]
  const name = interfaceName(run, role)
  return [`addr add ${ipv4}/24 dev ${name}`, `addr add ${ipv6}/64 dev ${name} nodad`, `link set ${name} up`]
}

// NB: a new namespace inherits some of the machine's settings (ip_forward among them), so each is set here.
function setSysctls(namespace: string): void {
  const settings = {
    'net/ipv4/ip_forward': 0,
    'net/ipv6/conf/all/forwarding': 0,
    'net/ipv6/conf/all/disable_ipv6': 0,
    'net/ipv6/conf/default/disable_ipv6': 0,
    'net/ipv6/conf/all/accept_dad': 0,
    'net/ipv6/conf/default/accept_dad': 0,
    'net/ipv6/conf/default/router_solicitations': 0,
    'net/ipv4/conf/all/rp_filter': 0,
    'net/ipv4/conf/default/rp_filter': 0,
  }
  inNamespace(namespace, () => {
    for (const [key, value] of Object.entries(settings)) writeFileSync(`/proc/sys/${key}`, String(value))
  })
}

// The run stands in the interface's name, so that the pins of a dead run's underlay can be told by theirs.
function interfaceName(run: string, role: Role): string {
  if (role === 'node') return `up-${run}`
  return role === 'gateway' ? `gw-${run}` : 'eth0'
}

function place(run: string, role: Role): Place {
  const namespace = namespaceName(run, role)
  return { role, namespace, path: namespacePath(namespace), ...ADDRESS[role], interface: interfaceName(run, role) }
}

/** How often a clean-up is begun again when something is left, and the time in between, ms. */
const REMOVALS = 5
const REMOVAL_PAUSE_MS = 200

// A face that is told to end at the same time, and is killed in the middle of its own clean-up, may still
// hold, or make anew, what was just looked at.
function removeRun(run: string): void {
  for (let left = REMOVALS; ; left--) {
    const [failure] = removeOnce(run)
    if (namespacesOf(run).length === 0 && pinsOf(run).length === 0) break
    if (left === 1) throw failure ?? new DetourError('system', `lab: ${leftOver(run).join(', ')} cannot be removed`)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, REMOVAL_PAUSE_MS)
  }
  // Last, because a later clean-up finds the run by it.
  rmSync(statePath(run), { force: true })
}

// Every step is tried, whatever becomes of the others; returns what failed.
function removeOnce(run: string): unknown[] {
  const failures: unknown[] = []
  const attempt = (step: () => void) => {
    try {
      step()
    } catch (error) {
      failures.push(error)
    }
  }
  const namespaces = namespacesOf(run)
  for (const namespace of namespaces) {
    attempt(() => {
      for (const pid of ip(['netns', 'pids', namespace]).split('\n').filter(Boolean)) kill(Number(pid))
    })
  }
  for (const name of pinsOf(run)) {
    attempt(() => detachClassifiers(namespaceName(run, pinnedAt(run, name)), `${PIN_DIRECTORY}/${name}`))
  }
  for (const namespace of namespaces) attempt(() => deleteNamespace(namespace))
  for (const file of socketsOf(run)) attempt(() => rmSync(file, { force: true }))
  return failures
}

/** The id of a pod's attachment, which also names its pins. */
export function attachmentId(run: string, role: Role): string {
  return `lab-${run}-${role}`
}

function pinsOf(run: string): string[] {
  const names = existsSync(PIN_DIRECTORY) ? readdirSync(PIN_DIRECTORY) : []
  const pods = [attachmentId(run, 'client'), attachmentId(run, 'server')]
  return names.filter(name => pods.includes(name) || (isPlace(name) && /_(up|gw)-([a-z0-9]+)_/.exec(name)?.[2] === run))
}

/** Pins of an underlay or a node, which have their interface's name. */
const isPlace = (name: string) => name.startsWith('underlay') || name.startsWith('node_')

function pinnedAt(run: string, name: string): Role {
  if (isPlace(name)) return name.includes('_gw-') ? 'gateway' : 'node'
  return name === attachmentId(run, 'client') ? 'client' : 'server'
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // gone already
  }
}

/** Whether a run may have this name: interfaces and pins carry it. */
export function isRunName(run: string): boolean {
  return /^[a-z0-9]{1,12}$/.test(run)
}

function checkRun(run: string): string {
  if (!isRunName(run)) {
    throw new DetourError('usage', `lab: run name '${run}': one to twelve lower-case letters and digits are allowed`)
  }
  return run
}

function namespaceName(run: string, role: Role): string {
  return run === 'main' ? `detour-lab-${role}` : `detour-lab-${run}-${role}`
}

interface State {
  run: string
  pid: number
  /** Clock ticks after boot, so that a reused process id is not taken for the owner. */
  startTime: string
  keep: boolean
}

function statePath(run: string): string {
  return `${STATE}/lab-${run}.json`
}

function writeState(state: State): void {
  mkdirSync(STATE, { recursive: true })
  writeFileSync(statePath(state.run), `${JSON.stringify(state)}\n`)
}

function readState(run: string): State | null {
  try {
    return JSON.parse(readFileSync(statePath(run), 'utf8')) as State
  } catch {
    return null
  }
}

function allStates(): State[] {
  try {
    const runs = readdirSync(STATE).map(name => /^lab-([a-z0-9]{1,12})\.json$/.exec(name)?.[1])
    return runs.filter(run => run !== undefined).flatMap(run => readState(run) ?? [])
  } catch {
    return []
  }
}

function isAlive(state: State): boolean {
  return state.startTime !== '' && startTime(state.pid) === state.startTime
}

/** Field 22 of /proc/pid/stat (proc(5)), null when the process is gone; the name in front may hold spaces and parentheses. */
function startTime(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    // A zombie has ended, though nobody has asked for its status yet.
    return fields[0] === 'Z' ? null : fields[19]
  } catch {
    return null
  }
}
