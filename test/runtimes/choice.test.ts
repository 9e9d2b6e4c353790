// Which pods Detour takes: what annotations, namespaces and the conflist say, and pods from before and after
// `detour cni install` and `uninstall`. All run by containerd, as a kubelet drives it.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PLUGIN } from '../../src/cni/install/entry.ts'
import { detour } from '../../src/lab/process.ts'
import { type Containerd, startContainerd } from './containerd.ts'
import {
  calledFor,
  entry,
  type Gateway,
  makePlugins,
  socketOf,
  startDaemon,
  startGateway,
  tracesOf,
  writePlugin,
} from './faces.ts'
import { missing, title } from './needs.ts'
import { get, startServer } from './outside.ts'
import { byCri, type Pod, type Runtime } from './pods.ts'
import type { CniVersion, Network, Plugin } from './primaries.ts'
import { buildScene, type Scene, until } from './scene.ts'
import { watchTunnel } from './watching.ts'

const PORTMAP: Plugin = { type: 'portmap', capabilities: { portMappings: true } }

let scene: Scene
let plugins: string
let containerd: Containerd
let gateway: Gateway

beforeAll(async () => {
  if (missing !== '') return
  scene = await buildScene('which')
  plugins = makePlugins(scene)
  await startServer(scene)
  gateway = await startGateway(scene)
  await startDaemon(scene, { pods: { excludeNamespaces: ['kube-system'] } })
  containerd = await startContainerd(scene, plugins)
})

afterAll(async () => {
  await containerd?.close()
  await scene?.close()
})

let networks = 0
function network(cniVersion: CniVersion, ...chained: Plugin[]): Network {
  const name = `which${++networks}`
  return { name, primary: 'ptp', subnet: `10.244.${networks}.0/24`, cniVersion, dataDir: scene.file('ipam'), chained }
}

const verdict = (pod: Pod, rule: string) =>
  until(`a verdict by ${rule}`, () => gateway.verdicts(pod.address).find(each => each.rule === rule))

describe.skipIf(missing !== '')(title('which pods are inspected'), () => {
  let runtime: Runtime

  beforeAll(async () => {
    runtime = await byCri(scene, containerd, network('0.4.0', entry(scene, { excludeNamespaces: ['monitoring'] })))
  })

  it.each([
    ['with annotation detour.dev/inspect "false"', { annotations: { 'detour.dev/inspect': 'false' } }],
    ["in a namespace that the node's configuration excludes", { kubernetesNamespace: 'kube-system' }],
    ['in a namespace that the conflist excludes', { kubernetesNamespace: 'monitoring' }],
    [
      'in an excluded namespace, whatever it says itself',
      { kubernetesNamespace: 'kube-system', annotations: { 'detour.dev/inspect': 'true' } },
    ],
  ])('a pod %s goes around the gateway', async (_which, wanted) => {
    const link = await watchTunnel(scene)
    const pod = await runtime.run({ name: 'around', ...wanted })
    expect(await get(pod, '/secret')).toMatchObject({ stdout: '/secret' })
    const seen = await link.stop()
    expect(seen.filter(({ source, destination }) => [source, destination].includes(pod.address))).toEqual([])
    expect(gateway.verdicts(pod.address)).toEqual([])
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
  })

  it.each([
    ['detour.dev/inspect', 'true'],
    ['paloaltonetworks.com/firewall', 'pan-fw'],
  ])('where pods are left alone, one with annotation %s "%s" is inspected', async (key, value) => {
    const shy = await byCri(scene, containerd, network('1.0.0', entry(scene, { inspect: 'never' })))
    const pod = await shy.run({ name: 'asked', annotations: { [key]: value } })
    expect(await get(pod, '/asked')).toMatchObject({ stdout: '/asked' })
    expect(await verdict(pod, 'default')).toMatchObject({ action: 'allow' })
    const other = await shy.run({ name: 'silent' })
    expect(await get(other, '/silent')).toMatchObject({ stdout: '/silent' })
    expect(gateway.verdicts(other.address)).toEqual([])
    await pod.remove()
    await other.remove()
  })

  it('an annotation that cannot be understood keeps the pod from starting, with words that say why', async () => {
    const annotations = { 'detour.dev/inspect': 'maybe' }
    await expect(runtime.run({ name: 'odd', annotations })).rejects.toThrow(/detour\.dev\/inspect.*maybe/)
    for (const id of await containerd.cri.pods()) await containerd.cri.removePod(id)
  })
})

describe.skipIf(missing !== '')(title('a plugin behind Detour that fails'), () => {
  it('the pod does not start, and nothing is left of it', async () => {
    const failure = '{"cniVersion":"1.0.0","code":100,"msg":"not today"}'
    const script = `#!/bin/sh\nif [ $CNI_COMMAND = ADD ]; then echo '${failure}'; exit 1; fi\n`
    writeFileSync(join(plugins, 'fails'), script, { mode: 0o755 })
    const runtime = await byCri(scene, containerd, network('1.0.0', entry(scene), { type: 'fails' }))
    const before = calledFor(scene)
    await expect(runtime.run({ name: 'unlucky' })).rejects.toThrow('not today')
    const [id] = calledFor(scene).filter(each => !before.includes(each))
    expect(id).toMatch(/^[0-9a-f]{64}$/)
    expect(tracesOf(scene, id)).toEqual([])
  })
})

describe.skipIf(missing !== '')(title('detour cni install'), () => {
  it('puts Detour behind the primary plugin of a runtime that runs, and uninstall takes exactly that away', async () => {
    const confDir = containerd.confDir
    const wanted = network('1.0.0', PORTMAP)
    const runtime = await byCri(scene, containerd, wanted)
    const file = join(confDir, readdirSync(confDir)[0])
    const written = readFileSync(file, 'utf8')
    const alone = await runtime.run({ name: 'alone' })
    expect(await get(alone, '/secret')).toMatchObject({ stdout: '/secret' })

    mkdirSync(scene.file('release'))
    const source = scene.file(`release/${PLUGIN}`)
    writePlugin(source)
    const folders = ['--bin-dir', plugins, '--conf-dir', confDir]
    const cni = (...args: string[]) => scene.run('node', detour('cni', ...args, ...folders))
    expect(await cni('install', '--source', source, '--socket', socketOf(scene))).toContain(PLUGIN)
    await until('containerd took it over', async () => (await containerd.cri.status()).network.includes(PLUGIN))
    const pod = await runtime.run({ name: 'chained' })
    expect(await get(pod, '/installed')).toMatchObject({ stdout: '/installed' })
    expect(await verdict(pod, 'default')).toMatchObject({ action: 'allow' })
    // A pod from before is no reason to fail, whoever takes it away.
    await alone.remove()
    await pod.remove()

    await cni('uninstall')
    expect(readFileSync(file, 'utf8')).toBe(written)
    expect(readdirSync(plugins)).not.toContain(PLUGIN)
    await until('containerd took it over', async () => !(await containerd.cri.status()).network.includes(PLUGIN))
    const after = await runtime.run({ name: 'after' })
    expect(await get(after, '/secret')).toMatchObject({ stdout: '/secret' })
    await after.remove()
  })
})
