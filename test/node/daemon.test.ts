// The daemon as people run it: a process of its own with a control socket, real pods, a real gateway; signals, deaths and
// configurations that change.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { attachmentId } from '../../src/node/admission.ts'
import { PIN_DIRECTORY } from '../../src/node/attachment.ts'
import { capabilitySets, NODE_CAPABILITIES } from '../../src/os/capabilities.ts'
import { linkInfo } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, inNamespace } from '../../src/os/netns.ts'
import { listing, missing, Probe, title } from '../netns/support.ts'
import { type Daemon, DaemonScene, GATE, podAddress, threadStatus } from './daemon-scene.ts'

const RULES = `default: allow
rules:
  - { name: closed, protocol: udp, ports: [7777], action: drop }
`
const CLOSED = 7777
const OPEN = 7778
/** Load of other tests must count neither as a worker's death nor as the gateway's. */
const CALM = { heartbeatLimitMs: 5000, health: { probe: { limitMs: 5000 } } }
const WAIT = { timeout: 60_000, interval: 50 }

let scene: DaemonScene
let daemon: Daemon
const probes: Probe[] = []

/** Whether a datagram of a pod reaches the gateway's namespace: one that must not, by then; one that must, see `reaches`. */
function arrives(pod: number, port: number, timeoutMs = 300): boolean {
  const probe = new Probe(scene.pods[pod], scene.gate, GATE, port)
  try {
    return probe.send(timeoutMs)
  } finally {
    probe.close()
  }
}

/** The same of a datagram that must: none is sent a second time, but it may take as long as a busy machine needs. */
const reaches = (pod: number, port: number) => arrives(pod, port, 10_000)

/** Attaches a pod and waits until its packets take the way that they should. */
async function attach(pod: number): Promise<string> {
  const { id } = await scene.ask('attach', scene.request(pod))
  await expect.poll(() => arrives(pod, OPEN), WAIT).toBe(true)
  return id
}

const rows = async () => (await scene.ask('attachments', {})).rows

describe.skipIf(missing !== '')(title('detour node'), () => {
  beforeAll(async () => {
    scene = new DaemonScene('dtd', 8)
    await scene.startGateway(RULES)
  })

  afterEach(async () => {
    for (const probe of probes.splice(0)) probe.close()
    await daemon?.end('SIGTERM')
    await scene.clean()
  })

  afterAll(async () => scene?.close())

  it('finds its uplink, serves a private socket, attaches, and leaves a pod as it was', async () => {
    scene.configure(CALM)
    const before = listing(scene.pods[0], 'eth0')
    daemon = await scene.start()
    expect(daemon.log()).toContain('ready: uplink uplink')
    expect(statSync(scene.control).mode & 0o777).toBe(0o600)
    expect(await scene.ask('ready', {})).toMatchObject({ ready: true })
    expect(reaches(0, CLOSED)).toBe(true)
    const id = await attach(0)
    expect(id).toBe(attachmentId(scene.request(0)))
    expect(arrives(0, CLOSED)).toBe(false)
    expect(await scene.ask('check', scene.key(0))).toMatchObject({ ok: true })
    expect(await rows()).toMatchObject([{ id, mac: (await scene.ask('attach', scene.request(0))).mac }])
    await scene.ask('attach', scene.request(1, { annotations: { 'detour.dev/fail-mode': 'open' } }))
    expect((await rows()).map(({ failMode }) => failMode)).toEqual(['closed', 'open'])
    await scene.ask('detach', scene.key(1))
    expect(await scene.ask('detach', scene.key(0))).toEqual({ found: true })
    expect(listing(scene.pods[0], 'eth0')).toBe(before)
    expect(reaches(0, CLOSED)).toBe(true)
    expect(scene.records()).toEqual([])
    expect(existsSync(`${PIN_DIRECTORY}/${id}`)).toBe(false)
  })

  it('is killed and started again: pods are protected meanwhile, and what ended meanwhile is forgotten', async () => {
    scene.configure({ ...CALM, heartbeatLimitMs: 1000 })
    daemon = await scene.start()
    await attach(0)
    const gone = `dtd-${process.pid}-gone`
    createNamespace(gone)
    const key = { containerId: 'gone', netns: `/run/netns/${gone}` }
    await expect(scene.ask('attach', { ...scene.request(1), ...key })).rejects.toThrow(/interface eth0 does not exist/)
    await scene.ask('attach', { ...scene.request(1), ...key, podNamespace: 'kube-system' })
    expect(scene.records()).toHaveLength(2)
    await daemon.end('SIGKILL')
    deleteNamespace(gone)
    // Fail-closed: the kernel's word as soon as the heartbeat is too old.
    await expect.poll(() => [arrives(0, OPEN, 50), arrives(0, CLOSED, 50)], WAIT).toEqual([false, false])
    daemon = await scene.start()
    await expect.poll(() => arrives(0, OPEN), WAIT).toBe(true)
    expect(arrives(0, CLOSED)).toBe(false)
    expect(daemon.log()).toMatch(/kube-system\/web-1: eth0 detached: its network namespace .* is gone/)
    expect(scene.records()).toHaveLength(1)
  })

  it('SIGTERM leaves attachments under their fail mode; --clean takes all away, when no daemon runs', async () => {
    scene.configure({ ...CALM, failMode: 'open' })
    const before = [0, 1].map(pod => listing(scene.pods[pod], 'eth0'))
    daemon = await scene.start()
    await attach(0)
    await attach(1)
    await expect(scene.clean()).rejects.toThrow(/a daemon runs, process \d+: stop it first/)
    expect(await daemon.end('SIGTERM')).toBe(0)
    expect(scene.records()).toHaveLength(2)
    expect(listing(scene.pods[0], 'eth0')).not.toBe(before[0])
    // Fail-open: what the gateway would stop passes.
    await expect.poll(() => arrives(0, CLOSED, 50), WAIT).toBe(true)
    const said = await scene.clean()
    expect(said).toContain('default/web-0: eth0 is as it was')
    expect([0, 1].map(pod => listing(scene.pods[pod], 'eth0'))).toEqual(before)
    expect(existsSync(`${PIN_DIRECTORY}/${attachmentId(scene.request(0))}`)).toBe(false)
  })

  it('SIGHUP and the control operation take over what can change, and nothing of a file with faults', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    await attach(0)
    expect(await rows()).toMatchObject([{ failMode: 'closed', heartbeatLimitMs: 5000 }])
    expect(arrives(0, CLOSED)).toBe(false)
    const bypass = [{ protocol: 'udp', port: CLOSED }]
    scene.configure({ ...CALM, failMode: 'open', heartbeatLimitMs: 4000, bypass, workers: 2 })
    daemon.process.kill('SIGHUP')
    await daemon.said('changed: failMode, heartbeatLimitMs, bypass')
    await daemon.said('these count from the next start on: workers')
    expect(await rows()).toMatchObject([{ failMode: 'open', heartbeatLimitMs: 4000 }])
    // New flows go by the new rule; this one is new, as its port is.
    expect(reaches(0, CLOSED)).toBe(true)
    expect(await scene.ask('reload', {})).toEqual({ applied: [], waiting: ['workers'] })

    const faults = [
      [{ failMode: 'ajar' }, /failMode: "ajar" is not allowed/],
      [{ failMod: 'open' }, /unknown key "failMod".*did you mean "failMode"/],
      [{ failMode: 'closed', endpoints: [{ address: 'fd00::1' }], tunnel: {} }, /differ in IP version/],
    ] as const
    for (const [fault, message] of faults) {
      scene.configure(fault)
      await expect(scene.ask('reload', {})).rejects.toMatchObject({
        failure: 'bad-request',
        message: expect.stringMatching(message),
      })
      expect(await rows()).toMatchObject([{ failMode: 'open', heartbeatLimitMs: 4000 }])
    }
    writeFileSync(scene.file, 'node: [')
    await expect(scene.ask('reload', {})).rejects.toMatchObject({ failure: 'bad-request' })
    scene.configure(CALM)
    expect(reaches(0, CLOSED)).toBe(true)
    expect(reaches(0, OPEN)).toBe(true)
  })

  it('what the node opens toward a pod is not steered, unless the configuration says so', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    await attach(0)
    const probe = new Probe(scene.node, scene.pods[0], podAddress(0), CLOSED)
    probes.push(probe)
    expect(probe.send(10_000)).toBe(true)
    scene.configure({ ...CALM, pods: { bypassNode: false } })
    expect(await scene.ask('reload', {})).toMatchObject({ applied: ['pods.bypassNode'] })
    const again = new Probe(scene.node, scene.pods[0], podAddress(0), CLOSED + 10)
    const closed = new Probe(scene.node, undefined, podAddress(0), CLOSED)
    probes.push(again, closed)
    await expect.poll(() => again.send(), WAIT).toBe(true)
    const verdicts = async () => (await scene.ask('flows', { limit: 10, order: 'idle', port: CLOSED + 10 })).rows
    expect((await verdicts()).map(({ verdict }) => verdict)).toEqual(['steer'])
  })

  it('a port for metrics that is taken, as by a process that dies, is tried again', async () => {
    const listen = 'require("net").createServer().listen(9469, "127.0.0.1", () => console.log("listens"))'
    const holder = inNamespace(scene.node, () =>
      spawn(process.execPath, ['-e', listen], { stdio: ['ignore', 'pipe', 'inherit'] }),
    )
    try {
      await once(holder.stdout, 'data')
      scene.configure({ ...CALM, metrics: { listen: '127.0.0.1:9469' } })
      daemon = await scene.start()
      expect(daemon.log()).toContain('no metrics: ')
    } finally {
      holder.kill('SIGKILL')
    }
    await daemon.said('metrics at http://127.0.0.1:9469')
    expect(daemon.log().split('no metrics: ')).toHaveLength(2)
  })

  it('two runtimes at once: eight pods by eight clients, each served once', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    const pods = [...scene.pods.keys()]
    const replies = await Promise.all([...pods, ...pods].map(pod => scene.ask('attach', scene.request(pod))))
    expect(new Set(replies.map(({ mac }) => mac)).size).toBe(8)
    for (const pod of pods) await expect.poll(() => arrives(pod, OPEN), WAIT).toBe(true)
    expect(await rows()).toHaveLength(8)
    const keep = pods.slice(0, 2).map(pod => scene.key(pod))
    expect((await scene.ask('collect', { network: 'cluster', valid: keep })).removed).toHaveLength(6)
    await Promise.all(pods.map(pod => scene.ask('detach', scene.key(pod))))
    expect([await rows(), scene.records()]).toEqual([[], []])
  })

  it('a path that comes to name another pod’s namespace, as that of a process may, is not followed there', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    const path = join(scene.folder, 'netns')
    writeFileSync(path, '')
    const name = (pod: number) => execFileSync('mount', ['--bind', `/run/netns/${scene.pods[pod]}`, path])
    const tap = () => linkInfo('dt-eth0', scene.pods[1]).index
    try {
      name(0)
      await scene.ask('attach', scene.request(0, { netns: path }))
      await attach(1)
      const before = tap()
      name(1)
      await daemon.said(`the namespace of eth0 of ${path} is gone`)
      expect(await scene.ask('detach', { ...scene.key(0), netns: '' })).toEqual({ found: true })
      expect(tap()).toBe(before)
      expect(reaches(1, OPEN)).toBe(true)
      expect(arrives(1, CLOSED)).toBe(false)
      expect(daemon.log()).not.toContain('has another address')
    } finally {
      for (const _ of [0, 1]) execFileSync('umount', [path])
    }
  })

  it('enters a namespace that a runtime names by a process with more capabilities than its own', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    const sleeper = inNamespace(scene.pods[2], () => spawn('sleep', ['600'], { stdio: 'ignore' }))
    try {
      const netns = `/proc/${sleeper.pid}/ns/net`
      expect(await scene.ask('attach', scene.request(2, { netns }))).toMatchObject({ inspected: true })
      await expect.poll(() => arrives(2, OPEN), WAIT).toBe(true)
      const own = `/proc/${daemon.pid}/ns/net`
      await expect(scene.ask('attach', scene.request(3, { netns: own }))).rejects.toThrow(
        /node's own network namespace/,
      )
    } finally {
      await scene.ask('detach', scene.key(2))
      sleeper.kill()
    }
  })

  it('has no more capabilities than it lists, in any thread; says which one is missing and what for', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    await attach(0)
    const kept = NODE_CAPABILITIES.reduce((set, { number }) => set | (1n << BigInt(number)), 0n)
    const sets = threadStatus(daemon.pid).map(capabilitySets)
    expect(sets.length).toBeGreaterThan(6)
    for (const set of sets) {
      expect(set).toMatchObject({ permitted: kept, effective: kept, bounding: kept, noNewPrivileges: true })
    }
    await daemon.end('SIGTERM')
    const poor = scene.launch({}, ['setpriv', '--bounding-set', '-net_admin', '--inh-caps', '-net_admin'])
    expect(await poor.ended).toBe(1)
    expect(poor.log()).toMatch(/missing: CAP_NET_ADMIN \(TAP devices and BPF programs on interfaces\); run as root/)
  })

  it('tells systemd: ready, reloading, ready again, alive, stopping', async () => {
    scene.configure(CALM)
    const path = join(scene.folder, 'notify')
    const program = `import socket,sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('listening', flush=True)
while True: print(s.recv(4096).decode().replace('\\n', ' '), flush=True)`
    const manager = spawn('python3', ['-c', program, path], { stdio: ['ignore', 'pipe', 'inherit'] })
    const heard: string[] = []
    createInterface({ input: manager.stdout }).on('line', line => heard.push(line))
    try {
      await expect.poll(() => heard, WAIT).toContain('listening')
      daemon = await scene.start({ NOTIFY_SOCKET: path, WATCHDOG_USEC: '400000' })
      const seen = (text: RegExp) => expect.poll(() => heard.some(line => text.test(line)), WAIT).toBe(true)
      await seen(new RegExp(`^READY=1 MAINPID=${daemon.pid} STATUS=`))
      await seen(/^WATCHDOG=1$/)
      heard.length = 0
      daemon.process.kill('SIGHUP')
      await seen(/^RELOADING=1 MONOTONIC_USEC=\d+$/)
      await seen(/^READY=1 /)
      await daemon.end('SIGTERM')
      await seen(/^STOPPING=1$/)
    } finally {
      manager.kill()
    }
  })

  it('two processes: the partner serves, is told by SIGHUP, and is replaced when it dies; SIGTERM ends both', async () => {
    scene.configure({ ...CALM, standby: true })
    daemon = await scene.start()
    const active = async () => (await scene.ask('info', {})).pid
    const other = (pid: number) => expect.poll(() => active().catch(() => pid), WAIT).not.toBe(pid)
    await other(daemon.pid)
    const first = await active()
    await attach(0)
    expect(arrives(0, CLOSED)).toBe(false)
    for (const set of threadStatus(first).map(capabilitySets)) expect(set).toMatchObject({ noNewPrivileges: true })

    scene.configure({ ...CALM, standby: true, failMode: 'open' })
    daemon.process.kill('SIGHUP')
    await daemon.said('changed: failMode')
    expect(await rows()).toMatchObject([{ failMode: 'open' }])

    // The main process takes over, then the next partner does.
    process.kill(first, 'SIGKILL')
    await other(first)
    await other(daemon.pid)
    expect(await rows()).toMatchObject([{ id: attachmentId(scene.request(0)), failMode: 'open' }])
    await expect.poll(() => arrives(0, OPEN), WAIT).toBe(true)
    expect(arrives(0, CLOSED)).toBe(false)
    await attach(1)
    expect(await scene.ask('detach', scene.key(0))).toEqual({ found: true })

    const last = await active()
    expect(await daemon.end('SIGTERM')).toBe(0)
    await expect.poll(() => existsSync(`/proc/${last}/stat`), WAIT).toBe(false)
    expect(scene.records()).toHaveLength(1)
  })

  it('an upgrade: a second daemon takes over from the first, which ends', async () => {
    scene.configure(CALM)
    const old = await scene.start()
    await attach(0)
    daemon = await scene.start()
    expect(await old.ended).toBe(0)
    expect((await scene.ask('info', {})).pid).toBe(daemon.pid)
    expect(await rows()).toMatchObject([{ id: attachmentId(scene.request(0)) }])
    expect(arrives(0, CLOSED)).toBe(false)
    expect(reaches(0, OPEN)).toBe(true)
    await attach(1)
  })

  it('stands garbage, oversize frames, slow writers and a crowd on its socket', async () => {
    scene.configure(CALM)
    daemon = await scene.start()
    await attach(0)
    const sockets = Array.from({ length: 300 }, (_, i) => {
      const socket = connect(scene.control).on('error', () => {})
      const size = Buffer.alloc(4)
      size.writeUInt32LE(i % 2 === 0 ? 0xffff_ffff : 100)
      socket.write(i % 3 === 0 ? Buffer.alloc(2000, i) : size)
      return socket
    })
    const closed = Promise.all(sockets.map(socket => new Promise(resolve => socket.resume().once('close', resolve))))
    await closed
    expect(await scene.ask('ready', {})).toMatchObject({ ready: true })
    const id = 'x'.repeat(900_000)
    await expect(scene.ask('detach', { containerId: id, ifname: 'eth0', netns: '' })).rejects.toMatchObject({
      failure: 'bad-request',
    })
    expect(reaches(0, OPEN)).toBe(true)
    expect(await scene.ask('attach', scene.request(1))).toMatchObject({ inspected: true })
  })
})

describe('detour node, as a command', () => {
  const cli = (...args: string[]) => {
    const main = new URL('../../dist/src/cli/main.js', import.meta.url).pathname
    return execFileSync(process.execPath, [main, 'node', ...args], { encoding: 'utf8', stdio: 'pipe' })
  }

  it('prints a configuration that wants only an endpoint; of another it says what is wrong', () => {
    const folder = mkdtempSync(join(tmpdir(), 'dtd-print-'))
    const file = join(folder, 'node.yaml')
    try {
      const printed = cli('--print-config')
      writeFileSync(file, printed)
      expect(() => cli('--config', file, '--check')).toThrow(/no endpoint: name one as tunnel\.remote/)
      writeFileSync(file, printed.replace('# remote:', 'remote: 192.0.2.1'))
      expect(cli('--config', file, '--check')).toBe(`${file}: valid\n`)
      writeFileSync(file, printed.replace('failMode: closed', 'failMode: closd'))
      expect(() => cli('--config', file, '--check')).toThrow(
        /failMode: "closd" is not allowed; .*did you mean "closed"/,
      )
      expect(() => cli('--config', join(folder, 'none.yaml'), '--check')).toThrow(
        /none\.yaml is not there; .*--print-config/,
      )
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
