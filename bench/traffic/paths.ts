// The ways from a pod to an endpoint and from a pod to another through a gateway: without a tunnel, by the kernel's VXLAN
// device, by Open vSwitch's userspace datapath, by Detour.

import { existsSync, mkdirSync, mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { configSchema } from '../../src/control/config.ts'
import { detour, program, type Running, start } from '../../src/lab/process.ts'
import { COLUMN } from '../../src/memory/counters.ts'
import { type NodeOptions, type RunningNode, startNode } from '../../src/node/node.ts'
import { ipBatch } from '../../src/os/netns.ts'
import type { TUNNEL_PORT } from '../../src/pipeline/tunnel.ts'
import { type PortType, type Switch, startSwitch } from './ovs.ts'
import {
  at,
  build,
  CLIENT,
  ENDPOINT,
  type End,
  ethtool,
  FAR,
  FOLDER,
  GATEWAY_MAC,
  kernelEndpoint,
  NODE,
  neighbour,
  plainRoutes,
  type Scene,
  SERVER,
  TUNNEL_DEVICE,
  UPLINK_MTU,
  up,
  VNI,
  vxlan,
} from './scene.ts'

export type Profile = keyof typeof TUNNEL_PORT
export type Rung = ReturnType<typeof configSchema.parse>['rungs']['offload']

/** A way from a client to a server that is set up and waits for traffic. */
export interface Path {
  name: string
  scene: Scene
  /** Namespaces. */
  client: string
  server: string
  /** Where the client finds the server. */
  target: End
  /** The path is somebody else's work. */
  rival: boolean
  /** What Detour carried so far; undefined where it is not on the way. */
  carried?: () => Carried
  node?: RunningNode
  /** The endpoint is not the kernel's VXLAN device, and costs what it costs. */
  bothEnds?: boolean
  /** Processes that forward. */
  pids?: number[]
  /** Takes a path that uses processor time at rest out of the others' way, and puts it back. */
  pause?: () => void
  resume?: () => void
  close(): Promise<void>
}

/** Put into the tunnel, or taken out of it for a pod. */
export interface Carried {
  bytes: number
  packets: number
}

const LIMIT_MS = 20_000
const KERNEL = "kernel's VXLAN device"

async function nothing(): Promise<void> {}

/** The pod's packets are routed by the node. */
export async function plainWay(): Promise<Path> {
  const scene = build('plain')
  plainRoutes(scene)
  const target = { address: FAR.address, mac: GATEWAY_MAC }
  const { client, far: server } = scene
  return { name: 'no tunnel', scene, client, server, target, rival: true, close: nothing }
}

/** The kernel's VXLAN device on the node's bridge; so at the endpoint. */
export async function kernelWay(): Promise<Path> {
  const scene = build('kernel')
  ipBatch([vxlan('vx0', VNI, NODE.address, FAR.address), 'link set vx0 master cni0', up('vx0')], scene.node)
  kernelEndpoint(scene)
  return { ...toEndpoint(KERNEL, scene), close: nothing }
}

export interface DetourOptions {
  rung?: Rung
  /** Further pods of the scene, which are not attached. */
  idle?: number
  /** Of the configuration, beside what the scene gives. */
  config?: object
  /** What else `startNode` takes. */
  node?: Partial<NodeOptions>
}

/** Detour on the node, the kernel's VXLAN device at the endpoint, which answers no probes. */
export async function detourWay(options: DetourOptions = {}): Promise<Path> {
  const { rung = 'auto', idle = 0 } = options
  const name = rung === 'auto' ? 'Detour, VXLAN' : `Detour, rung ${rung}`
  // A veth leaves checksums to a wire that never comes, and a socket cannot tell.
  const short = rung === 'auto' ? 'detour' : `rung-${rung}`
  const scene = build(idle === 0 ? short : `${short}-${idle}`, { raw: rung === 'udp-socket', idle })
  kernelEndpoint(scene)
  const node = await detourNode(scene, 'vxlan', [scene.client], {
    ...options,
    node: { probe: NO_PROBE, ...options.node },
  })
  return { ...toEndpoint(name, scene), rival: false, ...ofNode(node), close: () => node.stop() }
}

const NO_PROBE = { intervalMs: 0, limitMs: 0 }

/** Open vSwitch on the node; with GENEVE, which no kernel here speaks, at the endpoint as well. */
export async function switchWay(profile: Profile, ports: PortType = 'system', track = false): Promise<Path> {
  const short = `ovs-${profile}${ports === 'system' ? '' : `-${ports}`}`
  const scene = build(short, { bridges: [], raw: true })
  const by = ports === 'system' ? '' : ' over AF_XDP'
  const name = `Open vSwitch${by}, ${profile.toUpperCase()}${profile === 'vxlan' ? '' : ' at both ends'}`
  ethtool(scene.client, 'eth0', ['tx', 'off'])
  const near = await nodeSwitch(scene, ports)
  await near.wire({ inside: 'veth-client', tunnel: profile, vni: VNI }, track)
  const switches = [near]
  if (profile === 'vxlan') kernelEndpoint(scene)
  else switches.push(await endpointSwitch(scene))
  return { ...toEndpoint(name, scene), ...ofSwitches(switches), bothEnds: profile === 'geneve' }
}

/** The pods of a hairpin are joined by the node's bridge: no tunnel. */
export async function plainHairpin(): Promise<Path> {
  const scene = build('plain-hairpin', { server: true })
  return { ...toServer('no tunnel', scene), close: nothing }
}

/** A VXLAN of its own for each pod; the gateway bridges the two. */
export async function kernelHairpin(): Promise<Path> {
  const bridges = ['cni0', 'cni1']
  const scene = build('kernel-hairpin', { server: true, bridges })
  for (const [i, bridge] of bridges.entries()) {
    const name = `vx${i}`
    const device = vxlan(name, VNI + i, NODE.address, FAR.address)
    ipBatch([device, `link set ${name} master ${bridge}`, up(name)], scene.node)
  }
  kernelGateway(scene)
  return { ...toServer(`${KERNEL}s, bridged`, scene), close: nothing }
}

function kernelGateway({ far }: Scene): void {
  ipBatch(['link add gw0 type bridge', up('gw0')], far)
  for (const i of [0, 1]) {
    const device = vxlan(`vx${i}`, VNI + i, FAR.address, NODE.address)
    ipBatch([device, `link set vx${i} master gw0`, up(`vx${i}`)], far)
  }
}

/** A VXLAN or GENEVE of its own for each pod; with VXLAN the kernel bridges the two at the gateway, with GENEVE another Open vSwitch. */
export async function switchHairpin(profile: Profile): Promise<Path> {
  const scene = build(`ovs-${profile}-hairpin`, { server: true, bridges: [], raw: true })
  for (const pod of [scene.client, scene.server]) ethtool(pod, 'eth0', ['tx', 'off'])
  const near = await nodeSwitch(scene, 'system')
  const switches = [near]
  for (const [i, inside] of ['veth-client', 'veth-server'].entries())
    await near.wire({ inside, tunnel: profile, vni: VNI + i })
  if (profile === 'vxlan') kernelGateway(scene)
  else {
    const { far: namespace, downlink: uplink } = scene
    ipBatch(['link add loop0 type veth peer name loop1', up('loop0'), up('loop1')], namespace)
    const options = { namespace, uplink, local: FAR, remote: NODE, mtu: UPLINK_MTU, ports: 'system' } as const
    const far = await startSwitch(options)
    switches.push(far)
    for (const i of [0, 1]) await far.wire({ inside: `loop${i}`, tunnel: profile, vni: VNI + i })
  }
  const name = `Open vSwitch, ${profile.toUpperCase()}${profile === 'vxlan' ? '' : ' at both ends'}`
  return { ...toServer(name, scene), ...ofSwitches(switches) }
}

/** Detour on the node, its own gateway at the far side. */
export async function detourHairpin(profile: Profile, options: DetourOptions = {}): Promise<Path> {
  const scene = build(`detour-${profile}-hairpin`, { server: true })
  const gateway = await startGateway(scene, profile)
  try {
    const node = await detourNode(scene, profile, [scene.client, scene.server], options)
    return {
      ...toServer(`Detour, ${profile.toUpperCase()}, its gateway`, scene),
      ...{ rival: false, ...ofNode(node) },
      close: () => node.stop().finally(gateway.close),
    }
  } catch (error) {
    await gateway.close()
    throw error
  }
}

/** A face of Detour as a process of its own; `control` is its socket. */
export interface FaceProcess {
  running: Running
  control: string
  close(): Promise<void>
}

/** Detour's gateway at the far side. */
export async function startGateway({ far, downlink }: Scene, profile: Profile): Promise<FaceProcess> {
  const control = controlSocket('gateway')
  const options = ['--listen', FAR.address, '--interface', downlink, '--profile', profile, '--control', control]
  const running = start(at(far), 'gateway', detour('gateway', ...options, '--json'))
  await running.line(line => line.includes('listening'), LIMIT_MS)
  return { running, control, close: () => running.stop() }
}

/** Detour's node as a process of its own, which logs to its standard output. */
export async function startNodeProcess(scene: Scene, profile: Profile, pods: string[]): Promise<FaceProcess> {
  const control = controlSocket('node')
  const input = {
    ...{ control, config: { tunnel: tunnelOf(profile) }, uplink: scene.uplink },
    pods: pods.map(namespace => ({ id: namespace, namespace })),
  }
  const running = start(at(scene.node), 'node', program('node', JSON.stringify(input)))
  const deadline = performance.now() + LIMIT_MS
  while (!existsSync(control)) {
    const ended = await Promise.race([running.done.then(() => true), sleep(50, false)])
    if (ended || performance.now() > deadline) throw running.failure('did not start')
  }
  return { running, control, close: () => running.stop() }
}

function controlSocket(face: string): string {
  mkdirSync(FOLDER, { recursive: true })
  return join(mkdtempSync(join(FOLDER, `${face}-`)), 'control.sock')
}

export function detourNode(
  scene: Scene,
  profile: Profile,
  pods: string[],
  options: DetourOptions,
): Promise<RunningNode> {
  const { rung = 'auto', config = {}, node = {} } = options
  return startNode({
    config: configSchema.parse({ tunnel: tunnelOf(profile), rungs: { offload: rung }, ...config }),
    namespace: scene.node,
    uplink: scene.uplink,
    pods: pods.map(namespace => ({ id: namespace, namespace })),
    ...node,
  })
}

export const tunnelOf = (profile: Profile) => ({ profile, vni: VNI, local: NODE.address, remote: FAR.address })

function toEndpoint(name: string, scene: Scene) {
  return { name, scene, client: scene.client, server: scene.far, target: ENDPOINT, rival: true }
}

function toServer(name: string, scene: Scene) {
  return { name, scene, client: scene.client, server: scene.server, target: SERVER, rival: true }
}

function ofNode(node: RunningNode) {
  return { node, carried: () => carriedBy(node) }
}

/** What a node put into its tunnel and took out of it for its pods; published now and then, so a little late. */
function carriedBy(node: RunningNode): Carried {
  const stages = node.source.counters().flatMap(worker => worker.stages)
  const out = stages.filter(stage => stage.name === 'encap' || stage.name === 'restore')
  const sum = (column: number) => out.reduce((sum, stage) => sum + stage.row[column], 0)
  return { bytes: sum(COLUMN.OUT_BYTES), packets: sum(COLUMN.OUT_PACKETS) }
}

function nodeSwitch({ node: namespace, uplink }: Scene, ports: PortType): Promise<Switch> {
  return startSwitch({ namespace, uplink, local: NODE, remote: FAR, mtu: UPLINK_MTU, ports })
}

async function endpointSwitch({ client, far: namespace, downlink: uplink }: Scene): Promise<Switch> {
  const far = await startSwitch({ namespace, uplink, local: FAR, remote: NODE, mtu: UPLINK_MTU, ports: 'system' })
  await far.wire({ inside: { name: TUNNEL_DEVICE, ...ENDPOINT }, tunnel: 'geneve', vni: VNI })
  ipBatch([neighbour(CLIENT, TUNNEL_DEVICE)], namespace)
  ipBatch([neighbour(ENDPOINT, 'eth0')], client)
  return far
}

/** The daemons rest unless their path is measured. */
function ofSwitches(switches: Switch[]) {
  const pause = () => {
    for (const it of switches) it.pause()
  }
  const resume = () => {
    for (const it of switches) it.resume()
  }
  const close = async () => {
    for (const it of switches) await it.close()
  }
  pause()
  return { pause, resume, close, pids: switches.flatMap(it => it.pids) }
}
