// Detour behind the reference plugins, called by real runtimes: containerd as a kubelet drives it, ctr, podman. What a pod
// sends goes through the gateway from its first packet on, what the policy forbids is stopped, and nothing is left of a
// pod that is removed.

import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { inNamespace, ip } from '../../src/os/netns.ts'
import { type Containerd, startContainerd } from './containerd.ts'
import { CLOSED_PORT, entry, type Gateway, makePlugins, startDaemon, startGateway, tracesOf } from './faces.ts'
import { missing, title } from './needs.ts'
import { datagram, get, PORT, startServer, url } from './outside.ts'
import { type Podman, setUpPodman } from './podman.ts'
import { byCri, byCtr, byPodman, type Pod, type Runtime } from './pods.ts'
import type { CniVersion, Network, Plugin, Primary } from './primaries.ts'
import { buildScene, GATEWAY, machineForwards, NODE, PODS, type Scene, SERVER, SERVER6, until } from './scene.ts'
import { type Seen, watch, watchTunnel } from './watching.ts'

const LIMIT_MS = 120_000
vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS })

const PORTMAP: Plugin = { type: 'portmap', capabilities: { portMappings: true } }

let scene: Scene
let plugins: string
let containerd: Containerd
let podman: Podman
let gateway: Gateway
let served: () => string[]
const forwards = machineForwards()

beforeAll(async () => {
  if (missing !== '') return
  scene = await buildScene('chain')
  plugins = makePlugins(scene)
  served = await startServer(scene)
  gateway = await startGateway(scene)
  await startDaemon(scene, { pods: { excludeNamespaces: ['kube-system'] } })
  containerd = await startContainerd(scene, plugins)
  podman = setUpPodman(scene, plugins)
})

afterAll(async () => {
  await podman?.close()
  await containerd?.close()
  await scene?.close()
  expect(machineForwards()).toBe(forwards)
})

let networks = 0
function network(primary: Primary, cniVersion: CniVersion, ...chained: Plugin[]): Network {
  const number = ++networks
  const subnet = `10.244.${number}.0/24`
  return { name: `dtr${number}`, primary, subnet, cniVersion, dataDir: scene.file('ipam'), chained }
}

/** What pods could leave behind: interfaces, routes, packet filters of the node, and what the daemon keeps. */
function inventory(): string[] {
  const rules = inNamespace(scene.node, () => execFileSync('iptables-save', { encoding: 'utf8' }))
  const links = ip(['-o', 'link'], scene.node).split('\n')
  return [
    ...links.map(line => line.split(':')[1]?.trim().split('@')[0] ?? ''),
    // A bridge without a pod has no carrier, some time later.
    ...ip(['-o', 'route'], scene.node).replaceAll(' linkdown', '').split('\n'),
    ...rules.split('\n').filter(line => line.startsWith('-A')),
    ...readdirSync(scene.file('detour'), { recursive: true, encoding: 'utf8' }),
  ].sort()
}

/** The same without pods. NB: ctr leaves the interface to the kernel, which takes it away some time after the namespace. */
async function inventoryWithoutPods(): Promise<string[]> {
  await until('no pod has an interface', () => !inventory().some(line => line.startsWith('veth')))
  return inventory()
}

/** The flows that a pod's packets belong to. */
function flowsOf(pod: Pod, packets: Seen[]): Set<string> {
  const own = packets.filter(packet => packet.source === pod.address && packet.protocol !== 'icmp')
  return new Set(own.map(each => `${each.protocol} ${each.sourcePort} ${each.destination}:${each.destinationPort}`))
}

const verdict = (pod: Pod, rule: string) =>
  until(`a verdict by ${rule}`, () => gateway.verdicts(pod.address).find(each => each.rule === rule))

const runtimes: [string, () => Promise<Runtime> | Runtime][] = [
  ['containerd CRI, bridge, 0.4.0', () => byCri(scene, containerd, network('bridge', '0.4.0', entry(scene)))],
  [
    'containerd CRI, ptp and portmap, 1.0.0',
    () => byCri(scene, containerd, network('ptp', '1.0.0', PORTMAP, entry(scene))),
  ],
  ['ctr run --cni, ptp, 1.0.0', () => byCtr(scene, containerd, network('ptp', '1.0.0', entry(scene)))],
  [
    'podman, bridge and portmap, 0.4.0',
    () => byPodman(scene, podman, network('bridge', '0.4.0', PORTMAP, entry(scene))),
  ],
]

describe.skipIf(missing !== '').each(runtimes)(title('%s'), (_name, make) => {
  let runtime: Runtime
  let pod: Pod
  let before: string[]

  beforeAll(async () => {
    runtime = await make()
    // What the primary makes once and keeps, its bridge, is there after the first pod.
    await (await runtime.run({ name: 'first' })).remove()
    before = await inventoryWithoutPods()
    pod = await runtime.run({ name: 'web' })
  })

  it('leads requests through the gateway, with the pod’s own address in the tunnel', async () => {
    const link = await watchTunnel(scene)
    expect(await get(pod, '/allowed')).toMatchObject({ stdout: '/allowed' })
    expect(await verdict(pod, 'default')).toMatchObject({ action: 'allow', destinationPort: PORT })
    const seen = await link.stop()
    for (const outer of [NODE, GATEWAY]) {
      expect(seen).toContainEqual(expect.objectContaining({ outer, source: pod.address, destinationPort: PORT }))
      expect(seen).toContainEqual(expect.objectContaining({ outer, destination: pod.address, sourcePort: PORT }))
    }
    expect(served()).toContain(`${pod.address} /allowed`)
  })

  it('stops the request that the policy forbids', async () => {
    const { exitCode, stdout } = await get(pod, '/secret')
    expect({ failed: exitCode !== 0, stdout }).toEqual({ failed: true, stdout: '' })
    expect(await verdict(pod, 'no-secrets')).toMatchObject({ action: 'reset' })
    expect(served()).not.toContain(`${pod.address} /secret`)
  })

  it('inspects a container whose first act is to send', async () => {
    const host = await watch(scene, 'node', 'any', `src net ${PODS}`)
    const link = await watchTunnel(scene)
    const send = `${datagram(CLOSED_PORT)}; wget -q -O /tmp/page ${url('/at-once')}; sleep 100000`
    const hasty = await runtime.run({ name: 'hasty', command: ['sh', '-c', send] })
    await until('its request arrives', () => served().includes(`${hasty.address} /at-once`))
    const left = await host.stop()
    const inspected = (await link.stop()).filter(packet => packet.outer === NODE)
    await hasty.remove()
    const forbidden = expect.objectContaining({ source: hasty.address, destinationPort: CLOSED_PORT })
    expect(inspected).toContainEqual(forbidden)
    expect(left).not.toContainEqual(forbidden)
    const flows = [...flowsOf(hasty, left)]
    expect(flows).toContainEqual(expect.stringMatching(`^tcp .*:${PORT}$`))
    expect([...flowsOf(hasty, inspected)]).toEqual(expect.arrayContaining(flows))
  })

  it('leaves nothing of a pod behind', async () => {
    expect(tracesOf(scene, pod.id)).not.toEqual([])
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
    expect(existsSync(pod.namespace)).toBe(false)
    expect(await inventoryWithoutPods()).toEqual(before)
  })
})

describe.skipIf(missing !== '').each([
  ['containerd CRI, ptp', () => byCri(scene, containerd, network('ptp', '1.0.0', PORTMAP, entry(scene)))],
  ['podman, bridge', () => byPodman(scene, podman, network('bridge', '0.4.0', PORTMAP, entry(scene)))],
])(title('a port of the node that portmap leads to a pod: %s'), (_name, make) => {
  it('what comes in by it is inspected, once', async () => {
    const runtime = await make()
    const hostPort = 8100 + networks
    const serve = 'echo inside >/tmp/page; echo inside >/tmp/secret; exec httpd -f -p 8080 -h /tmp'
    const pod = await runtime.run({ name: 'served', command: ['sh', '-c', serve], hostPort })
    const ask = (path: string) =>
      scene.run('out', ['busybox', 'wget', '-q', '-O', '-', `http://10.77.0.1:${hostPort}${path}`])
    await until('the pod serves', async () => (await pod.exec('nc', '-w', '1', '127.0.0.1', '8080')).exitCode === 0)
    expect(await ask('/page')).toBe('inside')
    await expect(ask('/secret')).rejects.toThrow()
    const inbound = () => gateway.verdicts(SERVER).filter(each => each.destination === pod.address)
    await until('the verdict', () => inbound().find(each => each.rule === 'no-secrets'))
    expect(new Set(inbound().map(each => each.flow)).size).toBe(2)
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
    expect(inventory().filter(line => line.includes(`${pod.address}:`))).toEqual([])
  })
})

describe.skipIf(missing !== '')(title('a pod with IPv4 and IPv6'), () => {
  it('both are inspected', async () => {
    const both = { ...network('bridge', '1.0.0', entry(scene)), subnet6: 'fd00:244:0:9::/64' }
    const pod = await (await byCri(scene, containerd, both)).run({ name: 'both' })
    const { stdout } = await pod.exec('ip', '-6', '-o', 'address', 'show', 'eth0', 'scope', 'global')
    const address = /inet6 ([\da-f:]+)/.exec(stdout)?.[1] ?? ''
    expect(address).toMatch(/^fd00:244:0:9::/)
    const ask = (path: string) => pod.exec('wget', '-q', '-O', '-', url(path, `[${SERVER6}]`))
    expect(await ask('/six')).toMatchObject({ stdout: '/six' })
    await until('the server tells', () => served().includes(`${address} /six`))
    expect(await ask('/secret')).toMatchObject({ stdout: '' })
    await until('the verdict', () => gateway.verdicts(address).find(each => each.rule === 'no-secrets'))
    expect(await get(pod, '/four')).toMatchObject({ stdout: '/four' })
    await verdict(pod, 'default')
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
  })
})

describe.skipIf(missing !== '')(title('two runtimes at once'), () => {
  it('all of their pods are inspected, and removed without a trace', async () => {
    const cri = await byCri(scene, containerd, network('bridge', '1.0.0', entry(scene)))
    const libpod = byPodman(scene, podman, network('bridge', '0.4.0', PORTMAP, entry(scene)))
    const start = (prefix: string) =>
      [cri, libpod].flatMap((runtime, which) => [0, 1, 2].map(n => runtime.run({ name: `${prefix}-${which}-${n}` })))
    await Promise.all((await Promise.all(start('first'))).map(pod => pod.remove()))
    const before = await inventoryWithoutPods()
    const pods = await Promise.all(start('both'))
    expect(new Set(pods.map(pod => pod.address)).size).toBe(pods.length)
    await Promise.all(
      pods.map(async pod => {
        expect(await get(pod, '/both')).toMatchObject({ stdout: '/both' })
        await verdict(pod, 'default')
      }),
    )
    await Promise.all(pods.map(pod => pod.remove()))
    for (const pod of pods) expect(tracesOf(scene, pod.id)).toEqual([])
    expect(await inventoryWithoutPods()).toEqual(before)
  })
})
