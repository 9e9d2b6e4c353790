// Detour behind the reference plugins, called by real runtimes: containerd as a kubelet drives it, ctr, podman. What a pod
// sends goes through the gateway from its first packet on, what the policy forbids is stopped, and nothing is left of a
// pod that is removed.

import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { inNamespace, ip, listNamespaces } from '../../src/os/netns.ts'
import { type Containerd, startContainerd } from './containerd.ts'
import { CLOSED_PORT, entry, type Gateway, makePlugins, startDaemon, startGateway, tracesOf } from './faces.ts'
import { type Podman, setUpPodman } from './podman.ts'
import { byCri, byCtr, byPodman, type Pod, type Runtime } from './pods.ts'
import type { CniVersion, Plugin, Primary } from './primaries.ts'
import { buildScene, machineForwards, missing, PORT, type Scene, SERVER, startServer, title, until } from './scene.ts'
import { type Seen, watch } from './watching.ts'

const LIMIT_MS = 120_000
const PORTMAP: Plugin = { type: 'portmap', capabilities: { portMappings: true } }

let scene: Scene
let containerd: Containerd
let podman: Podman
let gateway: Gateway
let served: () => string[]
const forwards = machineForwards()

beforeAll(async () => {
  if (missing !== '') return
  scene = buildScene('chain')
  const plugins = makePlugins(scene)
  served = await startServer(scene)
  gateway = await startGateway(scene)
  await startDaemon(scene, { pods: { excludeNamespaces: ['kube-system'] } })
  containerd = await startContainerd(scene, plugins)
  podman = setUpPodman(scene, plugins)
}, LIMIT_MS)

afterAll(async () => {
  await podman?.close()
  await containerd?.close()
  await scene?.close()
  expect(machineForwards()).toBe(forwards)
}, LIMIT_MS)

let networks = 0
function network(primary: Primary, cniVersion: CniVersion, more: Plugin[] = []) {
  const number = ++networks
  const subnet = `10.244.${number}.0/24`
  const dataDir = scene.file('ipam')
  return { name: `dtr${number}`, primary, subnet, cniVersion, dataDir, chained: [...more, entry(scene)] }
}

const url = (path: string) => `http://${SERVER}:${PORT}${path}`
const get = (pod: Pod, path: string) => pod.exec('timeout', '5', 'wget', '-q', '-O', '-', url(path))

/** What a pod could leave behind: interfaces, namespaces, addresses, pins, state, packet filters. */
function inventory(): string[] {
  const rules = inNamespace(scene.node, () => execFileSync('iptables-save', { encoding: 'utf8' }))
  return [
    ...ip(['-o', 'link'], scene.node)
      .split('\n')
      .map(line => line.split(':')[1]?.trim().split('@')[0] ?? ''),
    ...ip(['-o', 'route'], scene.node).split('\n'),
    ...rules.split('\n').filter(line => line.startsWith('-A')),
    ...listNamespaces().filter(name => /^(cni|netns)-/.test(name)),
    ...readdirSync(scene.file('detour'), { recursive: true, encoding: 'utf8' }),
  ].sort()
}

/** Flows (TCP connections, datagrams) that a pod begins, as `address:port`s. */
function flowsFrom(pod: Pod, packets: Seen[]): Set<string> {
  const own = packets.filter(packet => packet.source === pod.address && packet.protocol !== 'icmp')
  return new Set(own.map(each => `${each.protocol} ${each.sourcePort} ${each.destination}:${each.destinationPort}`))
}

const runtimes: [string, () => Promise<Runtime> | Runtime][] = [
  ['containerd CRI, bridge, 0.4.0', () => byCri(scene, containerd, network('bridge', '0.4.0'))],
  ['containerd CRI, ptp and portmap, 1.0.0', () => byCri(scene, containerd, network('ptp', '1.0.0', [PORTMAP]))],
  ['ctr run --cni, ptp, 1.0.0', () => byCtr(scene, containerd, network('ptp', '1.0.0'))],
  ['podman, bridge and portmap, 0.4.0', () => byPodman(podman, network('bridge', '0.4.0', [PORTMAP]))],
]

describe.skipIf(missing !== '').each(runtimes)(title('%s'), (_name, make) => {
  let runtime: Runtime
  let pod: Pod
  let before: string[]

  beforeAll(async () => {
    runtime = await make()
    // What the primary makes once and keeps (its bridge) is there after the first pod.
    await (await runtime.run({ name: 'first' })).remove()
    before = inventory()
    pod = await runtime.run({ name: 'web' })
  }, LIMIT_MS)

  it(
    'leads its requests through the gateway, with the pod’s own address in the tunnel',
    async () => {
      const link = await watch(scene, 'gate', 'eth0', 'udp port 6081')
      expect(await get(pod, '/allowed')).toMatchObject({ stdout: expect.stringContaining('/allowed') })
      await until('the verdict', () => gateway.verdicts(pod.address).find(verdict => verdict.destinationPort === PORT))
      const seen = await link.stop()
      const toward = { outer: '10.99.0.1', source: pod.address, destination: SERVER, destinationPort: PORT }
      expect(seen).toContainEqual(expect.objectContaining(toward))
      expect(seen).toContainEqual(expect.objectContaining({ ...toward, outer: '10.99.0.2' }))
      expect(seen).toContainEqual(
        expect.objectContaining({ outer: '10.99.0.1', source: SERVER, destination: pod.address }),
      )
      expect(gateway.verdicts(pod.address)[0]).toMatchObject({ action: 'allow', destination: SERVER })
    },
    LIMIT_MS,
  )

  it(
    'stops the request that the policy forbids',
    async () => {
      const { exitCode, stdout } = await get(pod, '/secret')
      expect(exitCode).not.toBe(0)
      expect(stdout).not.toContain('secret')
      await until('the verdict', () => gateway.verdicts(pod.address).find(verdict => verdict.rule === 'no-secrets'))
      expect(served()).not.toContain(`${pod.address} /secret`)
      expect(served()).toContain(`${pod.address} /allowed`)
    },
    LIMIT_MS,
  )

  it(
    'inspects a container whose first act is to send',
    async () => {
      const host = await watch(scene, 'node', 'any', 'src net 10.244.0.0/16')
      const link = await watch(scene, 'gate', 'eth0', 'udp port 6081')
      const send = `echo first | nc -u -w 1 ${SERVER} ${CLOSED_PORT}; wget -q -O /tmp/page ${url('/at-once')}; sleep 100000`
      const hasty = await runtime.run({ name: 'hasty', command: ['sh', '-c', send] })
      await until('its request arrives', () => served().includes(`${hasty.address} /at-once`))
      const left = await host.stop()
      const inspected = (await link.stop()).filter(packet => packet.outer === '10.99.0.1')
      await hasty.remove()
      expect(inspected).toContainEqual(expect.objectContaining({ source: hasty.address, destinationPort: CLOSED_PORT }))
      expect(left).not.toContainEqual(expect.objectContaining({ source: hasty.address, destinationPort: CLOSED_PORT }))
      const flows = [...flowsFrom(hasty, left)]
      expect(flows).toContainEqual(expect.stringMatching(`^tcp .*:${PORT}$`))
      expect([...flowsFrom(hasty, inspected)]).toEqual(expect.arrayContaining(flows))
    },
    LIMIT_MS,
  )

  it(
    'leaves nothing of a pod behind',
    async () => {
      expect(tracesOf(scene, pod.id)).not.toEqual([])
      await pod.remove()
      expect(tracesOf(scene, pod.id)).toEqual([])
      expect(inventory()).toEqual(before)
    },
    LIMIT_MS,
  )
})
