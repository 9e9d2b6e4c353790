// The verbs that the runtimes here never call, CHECK, STATUS and GC, about pods that containerd runs: what the plugin is given
// is what containerd's libcni keeps of the pods' results.

import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { PLUGIN } from '../../src/cni/install/entry.ts'
import { inNamespace, ip } from '../../src/os/netns.ts'
import { type Containerd, startContainerd } from './containerd.ts'
import { type Daemon, entry, makePlugins, socketOf, startDaemon, startGateway, tracesOf } from './faces.ts'
import { missing, title } from './needs.ts'
import { get, startServer } from './outside.ts'
import { byCri, type Pod, type Runtime } from './pods.ts'
import { buildScene, type Scene, until } from './scene.ts'

const LIMIT_MS = 120_000
vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS })

const NETWORK = 'dtrverb'

let scene: Scene
let plugins: string
let containerd: Containerd
let runtime: Runtime
let daemon: Daemon
let pods: Pod[]

beforeAll(async () => {
  if (missing !== '') return
  scene = await buildScene('verb')
  plugins = makePlugins(scene)
  await startServer(scene)
  await startGateway(scene)
  daemon = await startDaemon(scene)
  containerd = await startContainerd(scene, plugins)
  const network = { name: NETWORK, primary: 'ptp', subnet: '10.244.8.0/24', cniVersion: '1.0.0' } as const
  runtime = await byCri(scene, containerd, { ...network, dataDir: scene.file('ipam'), chained: [entry(scene)] })
  pods = [await runtime.run({ name: 'one' }), await runtime.run({ name: 'two' })]
})

afterAll(async () => {
  await containerd?.close()
  await scene?.close()
})

interface Answer {
  status: number | null
  /** What it printed; an error object, when it failed. */
  output: { code?: number; msg?: string; details?: string }
}

/** Calls the plugin on the node, as a runtime that knows the specification's version 1.1.0. */
async function call(verb: string, environment: Record<string, string>, more: object = {}): Promise<Answer> {
  const env = { ...process.env, CNI_COMMAND: verb, CNI_PATH: plugins, ...environment }
  const child = inNamespace(scene.node, () => spawn(join(plugins, PLUGIN), { env, stdio: ['pipe', 'pipe', 'inherit'] }))
  child.stdin.end(JSON.stringify({ cniVersion: '1.1.0', name: NETWORK, ...entry(scene), ...more }))
  const status = new Promise<number | null>(resolve => child.once('close', resolve))
  const printed = await text(child.stdout)
  return { status: await status, output: printed === '' ? {} : JSON.parse(printed) }
}

/** CHECK, with the result that libcni has cached when it added the pod. */
function check(pod: Pod): Promise<Answer> {
  const folder = scene.file('var-lib-cni/results')
  const name = readdirSync(folder).find(each => each.includes(pod.id) && each.endsWith('-eth0')) ?? ''
  const prevResult = { ...JSON.parse(readFileSync(join(folder, name), 'utf8')).result, cniVersion: '1.1.0' }
  return call('CHECK', { CNI_CONTAINERID: pod.id, CNI_IFNAME: 'eth0', CNI_NETNS: pod.namespace }, { prevResult })
}

describe.skipIf(missing !== '')(title('CHECK, STATUS and GC on containerd’s pods'), () => {
  it('CHECK is content with a pod as it was added', async () => {
    expect(await check(pods[0])).toEqual({ status: 0, output: {} })
  })

  it('STATUS is content with a daemon that serves', async () => {
    expect(await call('STATUS', {})).toEqual({ status: 0, output: {} })
  })

  it('GC removes the attachment that the runtime does not name, and no other', async () => {
    const valid = [{ containerID: pods[0].id, ifname: 'eth0' }]
    expect(await call('GC', {}, { 'cni.dev/valid-attachments': valid })).toEqual({ status: 0, output: {} })
    expect(tracesOf(scene, pods[1].id)).toEqual([])
    expect(tracesOf(scene, pods[0].id)).not.toEqual([])
    expect(await get(pods[0], '/secret')).toMatchObject({ stdout: '' })
    expect(await get(pods[1], '/secret')).toMatchObject({ stdout: '/secret' })
    expect(await check(pods[0])).toEqual({ status: 0, output: {} })
    expect(await check(pods[1])).toMatchObject({ status: 1, output: { msg: expect.any(String) } })
    await pods[1].remove()
  })

  it('CHECK says what is wrong when the interface is gone', async () => {
    const pod = await runtime.run({ name: 'broken' })
    ip(['link', 'del', 'eth0'], pod.namespace)
    const { status, output } = await check(pod)
    expect(status).toBe(1)
    expect(`${output.msg} ${output.details}`).toContain('eth0')
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
  })

  it('without the daemon, STATUS is 50, CHECK fails and GC too, each naming its socket', async () => {
    await daemon.killAll()
    for (const answer of [await call('STATUS', {}), await check(pods[0])]) {
      expect(answer.status).toBe(1)
      expect(answer.output.details).toContain(socketOf(scene))
    }
    expect((await call('STATUS', {})).output.code).toBe(50)
    daemon = await startDaemon(scene)
    await until('CHECK is content again', async () => (await check(pods[0])).status === 0)
    expect(await call('STATUS', {})).toEqual({ status: 0, output: {} })
    await pods[0].remove()
    expect(tracesOf(scene, pods[0].id)).toEqual([])
  })
})
