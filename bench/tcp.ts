// How fast does TCP go through the tunnel: one way from a pod to an endpoint, and from pod to pod through a gateway and
// back (hairpin)? Baseline: the same pods without any tunnel; beside it the kernel's own VXLAN device at both ends.
// Needs root, iproute2, iperf3, kernel VXLAN. Everything runs in network namespaces of its own, and each measurement of
// Detour fails unless its counters saw the bytes pass. iperf3, node and gateway share the machine's processors.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { configSchema } from '../src/control/config.ts'
import { type RunningNode, startNode } from '../src/control/node.ts'
import { detour, run as runProgram, start } from '../src/lab/process.ts'
import { COLUMN } from '../src/memory/counters.ts'
import {
  createNamespace,
  deleteNamespace,
  inNamespace,
  ip,
  ipBatch,
  listNamespaces,
  namespacePath,
} from '../src/os/netns.ts'
import { TUNNEL_PORT } from '../src/pipeline/tunnel.ts'
import type { Bench, Contender } from './harness.ts'

type Profile = keyof typeof TUNNEL_PORT

/** A way from a client to a server that is set up and waits for traffic. */
interface Path {
  name: string
  client: string
  server: string
  address: string
  /** Bytes that its tunnel carried so far; undefined where Detour is not on the way. */
  carried?: () => number
  close(): Promise<void>
}

const PREFIX = 'dtbench-'
const VNI = 77
const CLIENT = { address: '10.244.0.2', mac: '02:00:00:00:00:02' }
const SERVER = { address: '10.244.0.3', mac: '02:00:00:00:00:03' }
const ENDPOINT = { address: '10.244.0.9', mac: '02:00:00:00:00:09' }
const NODE = '10.99.0.1'
const FAR = '10.99.0.2'
/** Carries a full inner frame and its tunnel headers. */
const UPLINK_MTU = 1600
const LIMIT_MS = 20_000

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot()
  if (reason !== '') return bench.skip(reason)
  removeAll()
  const seconds = bench.short ? 1 : 3
  const paths: Path[] = []
  const ask = (name: string, contenders: Path[], streams: number, reverse: boolean) =>
    bench.ask({
      name: `${name}, ${streams === 1 ? '1 stream' : `${streams} streams`}`,
      unit: 'Gbit/s',
      better: 'more',
      contenders: contenders.map((path): Contender => {
        return { name: path.name, measure: () => transfer(path, seconds, streams, reverse) }
      }),
    })
  const open = async (opening: Path | Promise<Path>) => {
    const path = await opening
    paths.push(path)
    return path
  }
  const close = async () => {
    for (const path of paths.splice(0)) await path.close()
    removeAll()
  }
  const interrupted = () => void close().finally(() => process.exit(130))
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  try {
    const oneWay = [await open(plainWay()), await open(kernelWay()), await open(detourWay())]
    for (const streams of [1, 4]) {
      await ask('pod to endpoint', oneWay, streams, false)
      await ask('endpoint to pod', oneWay, streams, true)
    }
    const hairpin = [await open(plainHairpin()), await open(kernelHairpin())]
    for (const profile of ['vxlan', 'geneve'] as const) hairpin.push(await open(detourHairpin(profile)))
    for (const streams of [1, 4]) await ask('pod to gateway and back to another pod', hairpin, streams, false)
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
    await close()
  }
}

function whyNot(): string {
  if (process.getuid?.() !== 0) return 'network namespaces need root'
  for (const [command, argument] of [
    ['ip', '-V'],
    ['iperf3', '-v'],
  ])
    if (spawnSync(command, [argument], { stdio: 'ignore' }).error !== undefined) return `${command} is not installed`
  try {
    createNamespace(`${PREFIX}try`)
    ipBatch(['link add vx0 type vxlan id 1 dstport 4789'], `${PREFIX}try`)
  } catch (error) {
    return `the kernel's VXLAN device cannot be made (${(error as Error).message})`
  } finally {
    deleteNamespace(`${PREFIX}try`)
  }
  return ''
}

/** Removes the namespaces of this run or of one that was killed, with what still runs in them. */
function removeAll(): void {
  for (const name of listNamespaces().filter(name => name.startsWith(PREFIX))) {
    for (const pid of ip(['netns', 'pids', name]).split('\n').filter(Boolean)) kill(Number(pid))
    deleteNamespace(name)
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // gone already
  }
}

/** Gbit/s that iperf3 received; throws when Detour should have carried it and did not. */
async function transfer(path: Path, seconds: number, streams: number, reverse: boolean): Promise<number> {
  const before = path.carried?.() ?? 0
  const server = start(at(path.server), 'iperf3 server', ['iperf3', '-s', '-1', '--forceflush'])
  try {
    await server.line(line => line.includes('listening'), LIMIT_MS)
    const wanted = ['-c', path.address, '-t', `${seconds}`, '-P', `${streams}`, '-J', ...(reverse ? ['-R'] : [])]
    const report = await runProgram(at(path.client), 'iperf3', ['iperf3', ...wanted], seconds * 1000 + LIMIT_MS)
    const { bytes, bits_per_second } = JSON.parse(report).end.sum_received
    const carried = (path.carried?.() ?? Number.POSITIVE_INFINITY) - before
    // Counters are published now and then, so the last of the bytes may be missing.
    if (carried < bytes / 2) throw new Error(`${path.name}: ${bytes} bytes arrived, the tunnel carried ${carried}`)
    return bits_per_second / 1e9
  } finally {
    await server.stop('SIGKILL')
  }
}

const at = (namespace: string) => ({ path: namespacePath(namespace) })

/** Namespaces of one path: pods on bridges of a node, and what its uplink leads to. */
interface Scene {
  client: string
  server: string
  node: string
  far: string
  /** The node's interface, and the one at its other end. */
  uplink: string
  downlink: string
}

/** Builds pods `client` and, for a hairpin, `server`, each behind a bridge of the node. */
function build(scene: string, { server = false, bridges = ['cni0', 'cni0'] } = {}): Scene {
  const name = (role: string) => `${PREFIX}${scene}-${role}`
  const places: Scene = {
    client: name('client'),
    server: name('server'),
    node: name('node'),
    far: name('far'),
    uplink: 'uplink',
    downlink: 'downlink',
  }
  const { client, node, far, uplink, downlink } = places
  for (const namespace of [client, node, far, ...(server ? [places.server] : [])]) {
    createNamespace(namespace)
    // NB: a new namespace inherits some of the machine's settings.
    inNamespace(namespace, () => {
      for (const key of ['ipv4/ip_forward', 'ipv4/conf/all/rp_filter', 'ipv4/conf/default/rp_filter'])
        writeFileSync(`/proc/sys/net/${key}`, key === 'ipv4/ip_forward' && namespace === node ? '1' : '0')
    })
  }
  const pods = [
    { namespace: client, host: 'veth-client', bridge: bridges[0], ...CLIENT },
    ...(server ? [{ namespace: places.server, host: 'veth-server', bridge: bridges[1], ...SERVER }] : []),
  ]
  ipBatch(
    [...new Set(bridges)].flatMap(bridge => [`link add ${bridge} type bridge`, up(bridge)]),
    node,
  )
  for (const pod of pods) {
    ipBatch([`link add eth0 netns ${pod.namespace} address ${pod.mac} type veth peer name ${pod.host} netns ${node}`])
    ipBatch([`link set ${pod.host} master ${pod.bridge}`, up(pod.host)], node)
    ipBatch([`address add ${pod.address}/24 dev eth0`, up('eth0')], pod.namespace)
  }
  const peer = `peer name ${downlink} mtu ${UPLINK_MTU} netns ${far}`
  ipBatch(
    [`link add ${uplink} mtu ${UPLINK_MTU} type veth ${peer}`, `address add ${NODE}/24 dev ${uplink}`, up(uplink)],
    node,
  )
  ipBatch([`address add ${FAR}/24 dev ${downlink}`, up(downlink)], far)
  return places
}

const up = (name: string) => `link set ${name} addrgenmode none up`

const vxlan = (name: string, vni: number, local: string, remote: string) =>
  `link add ${name} mtu 1500 type vxlan id ${vni} dstport ${TUNNEL_PORT.vxlan} local ${local} remote ${remote}`

async function nothing(): Promise<void> {}

function plainWay(): Path {
  const { client, node, far, downlink } = build('w0')
  ipBatch(['address add 10.244.0.1/24 dev cni0'], node)
  ipBatch(['route add default via 10.244.0.1'], client)
  ipBatch([`route add 10.244.0.0/24 via ${NODE} dev ${downlink}`], far)
  return { name: 'no tunnel', client, server: far, address: FAR, close: nothing }
}

/** The endpoint is the kernel's VXLAN device, with an address of the pods' subnet. */
function kernelEndpoint(far: string): void {
  const address = [`link set vx0 address ${ENDPOINT.mac}`, `address add ${ENDPOINT.address}/24 dev vx0`]
  ipBatch([vxlan('vx0', VNI, FAR, NODE), ...address, up('vx0')], far)
}

function kernelWay(): Path {
  const { client, node, far } = build('w1')
  ipBatch([vxlan('vx0', VNI, NODE, FAR), 'link set vx0 master cni0', up('vx0')], node)
  kernelEndpoint(far)
  return { name: "kernel's VXLAN device", client, server: far, address: ENDPOINT.address, close: nothing }
}

async function detourWay(): Promise<Path> {
  const scene = build('w2')
  const { client, far } = scene
  kernelEndpoint(far)
  // ARP stays on the node, so both ends are told.
  ipBatch([`neighbor add ${CLIENT.address} lladdr ${CLIENT.mac} dev vx0`], far)
  ipBatch([`neighbor add ${ENDPOINT.address} lladdr ${ENDPOINT.mac} dev eth0`], client)
  const node = await detourNode(scene, 'vxlan', [client], false)
  const close = () => node.stop()
  const carried = () => tunnelBytes(node)
  return { name: 'Detour, VXLAN', client, server: far, address: ENDPOINT.address, carried, close }
}

function plainHairpin(): Path {
  const { client, server } = build('h0', { server: true })
  return { name: 'no tunnel', client, server, address: SERVER.address, close: nothing }
}

/** A VXLAN of its own for each pod; the gateway bridges the two. */
function kernelHairpin(): Path {
  const bridges = ['cni0', 'cni1']
  const { client, server, node, far } = build('h1', { server: true, bridges })
  ipBatch(['link add gw0 type bridge', up('gw0')], far)
  for (const [i, bridge] of bridges.entries()) {
    const name = `vx${i}`
    ipBatch([vxlan(name, VNI + i, NODE, FAR), `link set ${name} master ${bridge}`, up(name)], node)
    ipBatch([vxlan(name, VNI + i, FAR, NODE), `link set ${name} master gw0`, up(name)], far)
  }
  return { name: "kernel's VXLAN devices, bridged", client, server, address: SERVER.address, close: nothing }
}

async function detourHairpin(profile: Profile): Promise<Path> {
  const scene = build(profile === 'vxlan' ? 'h2' : 'h3', { server: true })
  const { client, server, far, downlink } = scene
  const folder = mkdtempSync(join(tmpdir(), 'detour-bench-'))
  const control = ['--control', join(folder, 'gateway.sock')]
  const command = detour(
    'gateway',
    '--listen',
    FAR,
    '--interface',
    downlink,
    '--profile',
    profile,
    ...control,
    '--json',
  )
  const gateway = start(at(far), 'gateway', command)
  const close = async () => {
    await gateway.stop()
    rmSync(folder, { recursive: true })
  }
  try {
    await gateway.line(line => line.includes('listening'), LIMIT_MS)
    const node = await detourNode(scene, profile, [client, server], true)
    return {
      name: `Detour, ${profile.toUpperCase()}, its gateway`,
      client,
      server,
      address: SERVER.address,
      carried: () => tunnelBytes(node),
      close: () => node.stop().finally(close),
    }
  } catch (error) {
    await close()
    throw error
  }
}

function detourNode(scene: Scene, profile: Profile, pods: string[], probe: boolean): Promise<RunningNode> {
  return startNode({
    config: configSchema.parse({ tunnel: { profile, vni: VNI, local: NODE, remote: FAR } }),
    namespace: scene.node,
    uplink: scene.uplink,
    pods: pods.map(namespace => ({ id: namespace, namespace })),
    // The kernel's device returns no probes.
    ...(probe ? {} : { probe: { intervalMs: 0, limitMs: 0 } }),
  })
}

/** Bytes that the node put into the tunnel, and took out of it for its pods. */
function tunnelBytes(node: RunningNode): number {
  const stages = node.source.counters().flatMap(worker => worker.stages)
  const out = stages.filter(stage => stage.name === 'encap' || stage.name === 'restore')
  return out.reduce((sum, stage) => sum + stage.row[COLUMN.OUT_BYTES], 0)
}
