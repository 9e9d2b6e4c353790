// The daemon's death under real pods: nothing of a fail-closed pod leaks, a fail-open pod goes on, connections live through
// it, the runtime is told why no pod starts, and what was removed meanwhile is cleaned up.

import { readdirSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { ip } from '../../src/os/netns.ts'
import { type Containerd, startContainerd } from './containerd.ts'
import {
  active,
  calledFor,
  cleanNode,
  type Daemon,
  entry,
  type Gateway,
  makePlugins,
  socketOf,
  startDaemon,
  startGateway,
  tracesOf,
} from './faces.ts'
import { missing, title } from './needs.ts'
import { datagram, get, startServer } from './outside.ts'
import { byCri, type Pod, type Runtime } from './pods.ts'
import { buildScene, kill, machineForwards, pinsOf, type Scene, SERVER, until } from './scene.ts'
import { watch } from './watching.ts'

const LIMIT_MS = 240_000
/** TCP tries again after twice the time each time: a connection may need as long once more as it was cut off. */
const GOES_ON_MS = 90_000
vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS })

/** Where the server outside sends back what it gets, and which it tells of each connection. */
const ECHO_PORT = 7000
const ECHO = `
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        print('connection from', self.client_address[0])
        while data := self.request.recv(65536):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer((sys.argv[1], int(sys.argv[2])), Handler)
print('ready')
server.serve_forever()
`
/** Counts over one connection for as long as the pod lives. */
const COUNT = `i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done | nc ${SERVER} ${ECHO_PORT} >/tmp/echo`

let scene: Scene
let containerd: Containerd
let runtime: Runtime
let daemon: Daemon
let gateway: Gateway
let served: () => string[]
let connections: () => string[]
let linksBefore: string[]
let closed: Pod
let open: Pod
const forwards = machineForwards()

beforeAll(async () => {
  if (missing !== '') return
  scene = await buildScene('live')
  served = await startServer(scene)
  const echo = scene.start('out', 'echo', ['python3', '-u', '-c', ECHO, SERVER, `${ECHO_PORT}`])
  await echo.line(line => line === 'ready', LIMIT_MS)
  connections = () => echo.lines.slice(1)
  gateway = await startGateway(scene)
  linksBefore = links(scene.node)
  daemon = await startDaemon(scene)
  containerd = await startContainerd(scene, makePlugins(scene))
  const dataDir = scene.file('ipam')
  const network = { name: 'dtrlive', primary: 'ptp', subnet: '10.244.9.0/24', cniVersion: '1.0.0', dataDir } as const
  runtime = await byCri(scene, containerd, { ...network, chained: [entry(scene)] })
  closed = await runtime.run({ name: 'closed', command: ['sh', '-c', COUNT] })
  await counting(closed)
  open = await runtime.run({
    name: 'open',
    annotations: { 'detour.dev/fail-mode': 'open' },
    command: ['sh', '-c', COUNT],
  })
  await counting(open)
})

afterAll(async () => {
  await containerd?.close()
  await scene?.close()
  expect(machineForwards()).toBe(forwards)
})

/** The names of a namespace's interfaces. */
function links(namespace: string): string[] {
  const lines = ip(['-o', 'link'], namespace).split('\n').filter(Boolean)
  return lines.map(line => line.split(': ')[1].split('@')[0]).sort()
}

/** What the daemon remembers of pods, by its files. */
const records = () => readdirSync(scene.file('detour/attachments')).sort()

/** What came back of a pod's counting, a number a line; the last line may be half there. */
async function counted(pod: Pod): Promise<number[]> {
  const { stdout } = await pod.exec('cat', '/tmp/echo')
  return stdout.split('\n').slice(0, -1).map(Number)
}

/** Resolves when a pod's connection has carried some more numbers than now; none may be missing. */
async function counting(pod: Pod): Promise<void> {
  const start = (await counted(pod)).length
  const more = async () => {
    const numbers = await counted(pod)
    return numbers.length >= start + 10 && numbers
  }
  const numbers = await until('the connection goes on', more, GOES_ON_MS)
  expect(numbers).toEqual(numbers.map((_number, index) => index + 1))
  expect(connections()).toEqual([
    `connection from ${closed.address}`,
    ...(open ? [`connection from ${open.address}`] : []),
  ])
}

describe.skipIf(missing !== '')(title('kill -9 of the active process'), () => {
  it.each([1, 2])('the standby takes over, time %i: connections go on, packets are inspected, pods start', async () => {
    // NB: until the main process has handed over, its partner is on its way only: nobody stands by.
    const first = await daemon.partner()
    kill(first)
    await until('another serves', async () => ![0, first].includes(await active(scene)))
    await counting(closed)
    await counting(open)
    expect((await get(closed, '/secret')).stdout).toBe('')
    const pod = await runtime.run({ name: 'after' })
    expect(await get(pod, '/after')).toMatchObject({ stdout: '/after' })
    await until('the verdict', () => gateway.verdicts(pod.address).length === 1)
    await daemon.partner()
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
  })
})

describe.skipIf(missing !== '')(title('an upgrade'), () => {
  it('a daemon that is started beside the one that runs takes over, and connections go on', async () => {
    const before = daemon
    const old = before.pids()
    daemon = await startDaemon(scene)
    await before.running.done
    await until('the old processes are gone', () => !daemon.pids().some(pid => old.includes(pid)))
    expect(old).not.toContain(await daemon.partner())
    await counting(closed)
    await counting(open)
    expect((await get(closed, '/secret')).stdout).toBe('')
    const pod = await runtime.run({ name: 'upgraded' })
    expect(await get(pod, '/upgraded')).toMatchObject({ stdout: '/upgraded' })
    await pod.remove()
    expect(tracesOf(scene, pod.id)).toEqual([])
  })
})

describe.skipIf(missing !== '')(title('kill -9 of the whole daemon'), () => {
  let removed: Pod

  beforeAll(async () => {
    removed = await runtime.run({ name: 'removed' })
    expect(tracesOf(scene, removed.id)).not.toEqual([])
    await daemon.killAll()
  })

  it('nothing of a fail-closed pod leaks', async () => {
    const host = await watch(scene, 'node', 'any', `src host ${closed.address}`)
    expect((await get(closed, '/leak', 3)).exitCode).not.toBe(0)
    await closed.exec('sh', '-c', `${datagram(9001)}; ping -c 2 -W 1 ${SERVER}`)
    expect(await host.stop()).toEqual([])
    expect(served()).not.toContain(`${closed.address} /leak`)
  })

  it('a fail-open pod goes on, uninspected', async () => {
    expect(await get(open, '/secret')).toMatchObject({ stdout: '/secret' })
    await counting(open)
  })

  it('no pod starts, the runtime says why, and nothing is left of it', async () => {
    const pods = await containerd.cri.pods()
    const failure = await runtime.run({ name: 'too-early' }).then(
      () => 'it started',
      (error: { details: string }) => error.details,
    )
    expect(failure).toContain(socketOf(scene))
    expect(failure).toMatch(/detour/i)
    for (const id of await containerd.cri.pods()) if (!pods.includes(id)) await containerd.cri.removePod(id)
  })

  it('a pod can be removed', async () => {
    await removed.remove()
  })

  it('when the daemon is back, connections go on, packets are inspected, and what was removed is cleaned up', async () => {
    daemon = await startDaemon(scene)
    await counting(closed)
    await counting(open)
    expect(await get(closed, '/back')).toMatchObject({ stdout: '/back' })
    for (const pod of [closed, open]) {
      const { exitCode, stdout } = await get(pod, '/secret')
      expect({ failed: exitCode !== 0, stdout }).toEqual({ failed: true, stdout: '' })
    }
    await until('the removed pod is cleaned up', () => tracesOf(scene, removed.id).length === 0)
  })
})

describe.skipIf(missing !== '')(title('kill -9 while pods start'), () => {
  it('a pod that starts is inspected, and of one that does not nothing is left', async () => {
    const kept = records()
    const starting = Promise.allSettled(['a', 'b', 'c'].map(name => runtime.run({ name })))
    await until('an attachment is made', () => records().length > kept.length)
    await daemon.killAll()
    const outcomes = await starting
    daemon = await startDaemon(scene)
    const started = outcomes.flatMap(outcome => (outcome.status === 'fulfilled' ? [outcome.value] : []))
    for (const pod of started) {
      expect(await get(pod, '/started')).toMatchObject({ stdout: '/started' })
      expect(await get(pod, '/secret')).toMatchObject({ stdout: '' })
      await pod.remove()
    }
    await until('nothing else is left', () => records().join() === kept.join())
    const living = [closed.id, open.id]
    for (const id of calledFor(scene)) if (!living.includes(id)) expect(tracesOf(scene, id)).toEqual([])
  })
})

describe.skipIf(missing !== '')(title('the end of the daemon'), () => {
  it('SIGTERM leaves pods under their fail mode', async () => {
    await daemon.running.stop()
    await until('its other process is gone too', () => daemon.pids().length === 0)
    expect((await get(closed, '/stopped', 3)).exitCode).not.toBe(0)
    expect(await get(open, '/stopped')).toMatchObject({ stdout: '/stopped' })
  })

  it('detour node --clean leaves pods as the primary plugin made them', async () => {
    await cleanNode(scene)
    for (const pod of [closed, open]) {
      expect(await get(pod, '/secret')).toMatchObject({ stdout: '/secret' })
      await counting(pod)
      expect(tracesOf(scene, pod.id)).toEqual([])
      expect(links(pod.namespace)).toEqual(['eth0', 'lo'])
    }
    expect(links(scene.node)).toEqual(expect.arrayContaining(linksBefore))
    expect(links(scene.node).filter(name => !linksBefore.includes(name) && !name.startsWith('veth'))).toEqual([])
    expect(pinsOf(scene).filter(name => name.includes(scene.uplink))).toEqual([])
  })
})
