// The stage of a real-traffic question: a node with pods on its bridges, and what its uplink leads to, each in a network
// namespace of its own whose name tells the process it belongs to. Nothing else is touched, no setting is inherited.

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DetourError } from '../../src/errors.ts'
import { BPFFS } from '../../src/os/bpf.ts'
import {
  createNamespace,
  deleteNamespace,
  inNamespace,
  ip,
  ipBatch,
  listNamespaces,
  namespaceId,
  namespacePath,
} from '../../src/os/netns.ts'
import { TUNNEL_PORT } from '../../src/pipeline/tunnel.ts'

const PREFIX = 'dtbench-'
const OWN = `${PREFIX}${process.pid}-`
/** Temporary folders of this process. */
export const FOLDER = join(tmpdir(), OWN)

export interface End {
  mac: string
  address: string
}

export const CLIENT: End = { address: '10.244.0.2', mac: '02:00:00:00:00:02' }
export const SERVER: End = { address: '10.244.0.3', mac: '02:00:00:00:00:03' }
/** The endpoint's address behind its tunnel device. */
export const ENDPOINT: End = { address: '10.244.0.9', mac: '02:00:00:00:00:09' }
const BRIDGE: End = { address: '10.244.0.1', mac: '02:00:00:00:00:01' }
/** The two ends of the underlay. */
export const NODE: End = { address: '10.99.0.1', mac: '02:00:00:00:99:01' }
export const FAR: End = { address: '10.99.0.2', mac: '02:00:00:00:99:02' }
export const VNI = 77
/** Carries a full inner frame and its tunnel headers. */
export const UPLINK_MTU = 1600
/** The kernel's VXLAN device at the endpoint. */
export const TUNNEL_DEVICE = 'vx0'

/** Namespaces of one path, and the names of the interfaces at the two ends of the underlay. */
export interface Scene {
  client: string
  /** The second pod's, or that of the first where there is only one. */
  server: string
  node: string
  far: string
  uplink: string
  downlink: string
  /** The far side leaves neither checksums nor segments to the node. */
  raw: boolean
}

const SYSCTLS: Record<string, string> = {
  'ipv4/conf/all/rp_filter': '0',
  'ipv4/conf/default/rp_filter': '0',
  'ipv4/tcp_rmem': '4096 131072 6291456',
  'ipv4/tcp_wmem': '4096 16384 4194304',
  'ipv4/tcp_ecn': '2',
  'ipv6/conf/all/disable_ipv6': '1',
  'ipv6/conf/default/disable_ipv6': '1',
  'bridge/bridge-nf-call-iptables': '0',
  'bridge/bridge-nf-call-arptables': '0',
}

/** Says why no real traffic can be measured here; empty when it can. */
export function whyNot(...programs: string[]): string {
  if (process.platform !== 'linux') return 'network namespaces need Linux'
  if (process.getuid?.() !== 0) return 'network namespaces need root'
  for (const program of ['ip', 'ethtool', ...programs])
    if (!installed(program)) return `${program} is not installed (package ${program === 'ip' ? 'iproute2' : program})`
  const name = `${OWN}try`
  try {
    createNamespace(name)
    ipBatch(['link add vx0 type vxlan id 1 dstport 4789'], name)
  } catch (error) {
    return `the kernel's VXLAN device cannot be made (${(error as Error).message})`
  } finally {
    deleteNamespace(name)
  }
  return ''
}

export function installed(program: string): boolean {
  return spawnSync('sh', ['-c', 'command -v "$0"', program], { stdio: 'ignore' }).status === 0
}

/**
 * Runs `body` with an empty stage and clears it afterwards, also when the process is asked to end. What a killed run left behind is taken away
 * before.
 */
export async function onStage(body: (stage: Stage) => Promise<void>): Promise<void> {
  removeDead()
  const stage = new Stage()
  const interrupted = () => void stage.clear().finally(() => process.exit(130))
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  try {
    await body(stage)
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
    await stage.clear()
  }
}

/** What was set up, to be closed in the opposite order. */
export class Stage {
  private readonly opened: { close(): Promise<void> }[] = []

  async open<T extends { close(): Promise<void> }>(opening: T | Promise<T>): Promise<T> {
    const it = await opening
    this.opened.push(it)
    return it
  }

  /** Closes all and removes every namespace of this process. */
  async clear(): Promise<void> {
    try {
      for (const it of this.opened.splice(0).reverse()) await it.close()
    } finally {
      remove(name => name.startsWith(OWN))
      rmSync(FOLDER, { recursive: true, force: true })
    }
  }
}

/** Removes what benches left behind that were killed. */
function removeDead(): void {
  const isDead = (name: string) => {
    const pid = /^dtbench-(\d+)-/.exec(name)?.[1]
    if (pid === undefined || pid === String(process.pid)) return pid !== undefined
    try {
      return !readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('bench')
    } catch {
      return true
    }
  }
  remove(isDead)
  for (const name of readdirSync(tmpdir()).filter(isDead))
    rmSync(join(tmpdir(), name), { recursive: true, force: true })
}

function remove(wanted: (name: string) => boolean): void {
  const pins = `${BPFFS}/detour`
  const pinned = () => (existsSync(pins) ? readdirSync(pins) : [])
  const removePins = (name: string) => rmSync(join(pins, name), { recursive: true, force: true })
  for (const name of listNamespaces().filter(wanted)) {
    for (const pid of ip(['netns', 'pids', name]).split('\n').filter(Boolean)) kill(Number(pid))
    const inode = namespaceId(name)
    deleteNamespace(name)
    for (const pin of pinned().filter(pin => pin.startsWith('underlay') && pin.endsWith(`_${inode}`))) removePins(pin)
  }
  for (const pin of pinned().filter(wanted)) removePins(pin)
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // gone already
  }
}

export interface SceneOptions {
  /** A second pod. */
  server?: boolean
  /** Bridges of the two pods; without any, their host ends stand alone. */
  bridges?: string[]
  /** Further pods, which send nothing. */
  idle?: number
  raw?: boolean
}

/** Builds the namespaces of one path: pods, node, underlay link, and the far side. */
export function build(scene: string, options: SceneOptions = {}): Scene {
  const { server = false, bridges = ['cni0', 'cni0'], idle = 0, raw = false } = options
  const name = (role: string) => `${OWN}${scene}-${role}`
  const [client, node, far] = ['client', 'node', 'far'].map(name)
  const places: Scene = {
    ...{ client, node, far, uplink: 'uplink', downlink: 'downlink', raw },
    server: server ? name('server') : client,
  }
  for (const namespace of [client, node, far]) makeNamespace(namespace, namespace === node)
  ipBatch(
    [...new Set(bridges)].flatMap(bridge => [
      `link add ${bridge} address ${BRIDGE.mac} type bridge forward_delay 0 mcast_snooping 0`,
      up(bridge),
    ]),
    node,
  )
  addPod(places, client, CLIENT, 'veth-client', bridges[0])
  if (server) {
    makeNamespace(places.server, false)
    addPod(places, places.server, SERVER, 'veth-server', bridges[1])
  }
  for (let i = 0; i < idle; i++) {
    const pod = idlePod(places, i)
    makeNamespace(pod, false)
    addPod(places, pod, { address: `10.244.1.${i + 1}`, mac: `02:00:00:00:01:${hex(i + 1)}` }, `veth-${i}`, bridges[0])
  }
  const link = `link add uplink address ${NODE.mac} mtu ${UPLINK_MTU} type veth`
  ipBatch([`${link} peer name downlink address ${FAR.mac} mtu ${UPLINK_MTU} netns ${far}`, up('uplink')], node)
  ipBatch([`address add ${NODE.address}/24 dev uplink`], node)
  ipBatch([`address add ${FAR.address}/24 dev downlink`, up('downlink')], far)
  if (raw) ethtool(far, 'downlink', ['tx', 'off'])
  return places
}

/** The namespace of the further pod `i`. */
export function idlePod(scene: Scene, i: number): string {
  return scene.client.replace(/client$/, `idle${i}`)
}

const hex = (value: number) => value.toString(16).padStart(2, '0')

function makeNamespace(namespace: string, forward: boolean): void {
  createNamespace(namespace)
  inNamespace(namespace, () => {
    for (const [key, value] of Object.entries({ ...SYSCTLS, 'ipv4/ip_forward': forward ? '1' : '0' })) {
      const path = `/proc/sys/net/${key}`
      // Bridges and IPv6 may be missing from a kernel.
      if (existsSync(path)) writeFileSync(path, value)
    }
  })
}

/** Makes a pod's interface, whose host end may join a bridge of the node. */
export function addPod({ node }: Scene, namespace: string, { address, mac }: End, host: string, bridge?: string): void {
  ipBatch([`link add eth0 netns ${namespace} address ${mac} type veth peer name ${host} netns ${node}`])
  ipBatch([...(bridge === undefined ? [] : [`link set ${host} master ${bridge}`]), up(host)], node)
  ipBatch([`address add ${address}/24 dev eth0`, up('eth0')], namespace)
}

/** The `ip` command that takes an interface up without an IPv6 address. */
export const up = (name: string) => `link set ${name} addrgenmode none up`

/** The `ip` command that makes a kernel VXLAN device between two underlay addresses. */
export const vxlan = (name: string, vni: number, local: string, remote: string) =>
  `link add ${name} mtu 1500 type vxlan id ${vni} dstport ${TUNNEL_PORT.vxlan} local ${local} remote ${remote}`

/** The endpoint is the kernel's VXLAN device, with an address of the pods' subnet; both ends are told where the other is. */
export function kernelEndpoint({ client, far }: Scene): void {
  const device = [
    `link set ${TUNNEL_DEVICE} address ${ENDPOINT.mac}`,
    `address add ${ENDPOINT.address}/24 dev ${TUNNEL_DEVICE}`,
  ]
  ipBatch([vxlan(TUNNEL_DEVICE, VNI, FAR.address, NODE.address), ...device, up(TUNNEL_DEVICE)], far)
  ipBatch([neighbour(CLIENT, TUNNEL_DEVICE)], far)
  ipBatch([neighbour(ENDPOINT, 'eth0')], client)
}

/** The `ip` command that makes a neighbour known for good. */
export const neighbour = ({ address, mac }: End, device: string) =>
  `neighbor replace ${address} lladdr ${mac} dev ${device} nud permanent`

/** The node sends the far side's traffic through its bridge: no tunnel. */
export function plainRoutes({ client, node, far, downlink }: Scene): void {
  ipBatch([`address add ${BRIDGE.address}/24 dev cni0`, neighbour(CLIENT, 'cni0'), neighbour(FAR, 'uplink')], node)
  ipBatch([`route add default via ${BRIDGE.address}`, neighbour(BRIDGE, 'eth0')], client)
  ipBatch([`route add 10.244.0.0/24 via ${NODE.address} dev ${downlink}`, neighbour(NODE, downlink)], far)
}

/** Where the plain path's packets go first. */
export const GATEWAY_MAC = BRIDGE.mac

/** What crosses the underlay: super-packets, which only a NIC with tunnel segmentation carries, or packets of its MTU, as with every other NIC. */
export const UNDERLAYS = ['super-packets', 'MTU-sized packets'] as const
export type UnderlayKind = (typeof UNDERLAYS)[number]

/**
 * Sets both ends of the underlay: MTU-sized packets are segmented by the sender's kernel and coalesced by the receiver's. A node whose userspace
 * takes nothing but packets as they are on a wire (`raw`) has them so in any case, and only the endpoint's coalescing changes.
 */
export function setUnderlay({ node, far, uplink, downlink, raw }: Scene, kind: UnderlayKind): void {
  const [cut, merge] = kind === 'super-packets' ? ['on', 'off'] : ['off', 'on']
  const segmentation = ['tso', 'gso', 'tx-udp-segmentation', 'tx-udp_tnl-segmentation', 'tx-udp_tnl-csum-segmentation']
  const settings = [...segmentation.flatMap(feature => [feature, cut]), 'gro', merge]
  if (!raw) ethtool(node, uplink, settings)
  ethtool(far, downlink, raw ? ['gro', merge] : settings)
}

/** `ethtool -K` in a namespace. Throws DetourError. */
export function ethtool(namespace: string, name: string, settings: string[]): void {
  try {
    inNamespace(namespace, () => execFileSync('ethtool', ['-K', name, ...settings], { stdio: 'pipe' }))
  } catch (cause) {
    throw new DetourError('system', `ethtool -K ${name} ${settings.join(' ')}: ${(cause as Error).message}`, { cause })
  }
}

/** Counters of an interface (proc_pid_net(5)). */
export interface Traffic {
  receivedBytes: number
  receivedPackets: number
  sentBytes: number
  sentPackets: number
}

export function traffic(namespace: string, name: string): Traffic {
  const table = inNamespace(namespace, () => readFileSync('/proc/thread-self/net/dev', 'utf8'))
  return parseTraffic(table, name)
}

/** The row of an interface in /proc/net/dev. Throws DetourError when it has none. */
export function parseTraffic(table: string, name: string): Traffic {
  const line = table.split('\n').find(line => line.trimStart().startsWith(`${name}:`))
  if (line === undefined) throw new DetourError('not-found', `interface ${name} is not in /proc/net/dev`)
  const numbers = line
    .slice(line.indexOf(':') + 1)
    .trim()
    .split(/\s+/)
    .map(Number)
  const [receivedBytes, receivedPackets] = numbers
  return { receivedBytes, receivedPackets, sentBytes: numbers[8], sentPackets: numbers[9] }
}

/** A counter of a namespace's /proc/net/snmp: `Udp`, `RcvbufErrors`. */
export function snmp(namespace: string, protocol: string, counter: string): number {
  return parseSnmp(
    inNamespace(namespace, () => readFileSync('/proc/thread-self/net/snmp', 'utf8')),
    protocol,
    counter,
  )
}

/** Throws DetourError when the table has no such counter. */
export function parseSnmp(table: string, protocol: string, counter: string): number {
  const [names, values] = table
    .split('\n')
    .filter(line => line.startsWith(`${protocol}:`))
    .map(line => line.split(' '))
  const at = names?.indexOf(counter) ?? -1
  if (at < 0) throw new DetourError('not-found', `/proc/net/snmp has no ${protocol} ${counter}`)
  return Number(values[at])
}

/** A namespace as a place to start processes in. */
export const at = (namespace: string) => ({ path: namespacePath(namespace) })
