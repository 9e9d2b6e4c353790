// The daemon's operations over a real control socket, with real namespaces and real files; the node is a stand-in that notes
// what it is asked for.

import { execFileSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type ControlClient, connectControl } from '../../src/control/client.ts'
import { configSchema } from '../../src/control/config.ts'
import type { AttachRequest } from '../../src/control/operations.ts'
import { type ControlServer, serveControl } from '../../src/control/socket.ts'
import { DetourError } from '../../src/errors.ts'
import { ANNOTATION, attachmentId } from '../../src/node/admission.ts'
import { PIN_DIRECTORY } from '../../src/node/attachment.ts'
import type { PodOptions } from '../../src/node/node.ts'
import { NodeService, type ServiceOptions } from '../../src/node/service.ts'
import { bootId, Store } from '../../src/node/store.ts'
import { createArrayMap, makePinDirectory, pin, unpin } from '../../src/os/bpf.ts'
import { HEARTBEAT_SIZE, Heartbeat } from '../../src/os/heartbeat.ts'
import { createNamespace, deleteNamespace } from '../../src/os/netns.ts'
import { fakeSource } from '../control/fake.ts'

const missing = process.getuid?.() !== 0 ? 'needs root' : ''
const A = `dtd-a-${process.pid}`
const B = `dtd-b-${process.pid}`
const folder = mkdtempSync(join(tmpdir(), 'dtd-service-'))

/** Of one test. */
let state: string
let node: ReturnType<typeof standIn>
let service: NodeService
let server: ControlServer
let client: ControlClient
const lines: string[] = []

/** Attaching waits until `gate` is open, so that the order of things can be told. */
function standIn() {
  const attached = new Map<string, PodOptions>()
  const events: string[] = []
  const self = {
    attached,
    events,
    gate: Promise.resolve(),
    endpointUp: true,
    attach: async (pod: PodOptions) => {
      events.push(`attach ${pod.id}`)
      await self.gate
      if (pod.interface === 'none0') throw new DetourError('not-found', 'interface none0 does not exist')
      if (pod.interface === 'bad0') throw new DetourError('system', 'BPF_PROG_LOAD: ENOMEM')
      attached.set(pod.id, pod)
      events.push(`attached ${pod.id}`)
    },
    detach: async (id: string) => {
      if (id.includes('stuck')) throw new DetourError('system', 'cannot')
      if (attached.delete(id)) events.push(`detached ${id}`)
    },
    setFailMode: async (id: string, mode?: string) => void events.push(`${id} ${mode}`),
    attachment: (id: string) =>
      attached.has(id)
        ? ({
            isAttached: () => true,
            heartbeatAgeMs: () => 10,
            addresses: ['10.0.0.2'],
            mac: '02:00:00:00:00:01',
          } as never)
        : undefined,
    pods: () => [...attached.values()],
    status: () => ({ endpointUp: self.endpointUp, probesSent: 0, probesAnswered: 0 }),
    alarms: () => [],
  }
  return self
}

function build(options: Partial<ServiceOptions> = {}): NodeService {
  const config = configSchema.parse({ tunnel: { remote: '10.9.9.9' } })
  const log = (line: string) => void lines.push(line)
  return new NodeService({ config, node, store: new Store(state), own: undefined, log, ...options })
}

const request = (more: Partial<AttachRequest> = {}): AttachRequest => ({
  containerId: 'c0ffee',
  ifname: 'eth0',
  netns: `/run/netns/${A}`,
  network: 'cluster',
  podNamespace: 'default',
  podName: 'web-0',
  podUid: 'u-1',
  annotations: {},
  addresses: ['10.0.0.2/24'],
  inspect: 'default',
  excludeNamespaces: [],
  ...more,
})

/** Of another container, with an interface of its own in the same namespace. */
const another = (containerId: string, more: Partial<AttachRequest> = {}) =>
  request({ containerId, ifname: `if-${containerId}`, ...more })

const files = () => readdirSync(join(state, 'attachments')).sort()

beforeAll(() => {
  if (missing !== '') return
  for (const name of [A, B]) createNamespace(name)
})

afterAll(() => {
  if (missing === '') for (const name of [A, B]) deleteNamespace(name)
  rmSync(folder, { recursive: true })
})

beforeEach(async () => {
  if (missing !== '') return
  lines.length = 0
  state = mkdtempSync(join(folder, 'state-'))
  node = standIn()
  service = build()
  await service.open()
  server = await serveControl(fakeSource().source, { path: join(state, 'd.sock'), operations: service })
  client = await connectControl(server.path)
})

afterEach(async () => {
  if (missing !== '') return
  client.close()
  await server.close()
})

describe.skipIf(missing !== '')(`the daemon's operations${missing && ` (skipped: ${missing})`}`, () => {
  it('attach writes a record and says why; detach takes both away, and is fine with nothing', async () => {
    const id = attachmentId(request())
    const reply = await client.ask('attach', request())
    expect(reply).toEqual({
      inspected: true,
      id,
      mac: '02:00:00:00:00:01',
      reason: "the node's configuration inspects all pods",
    })
    expect(node.attached.get(id)).toMatchObject({
      namespace: `/run/netns/${A}`,
      interface: 'eth0',
      label: 'default/web-0',
    })
    expect(files()).toEqual([`${id}.json`])
    const key = { containerId: 'c0ffee', ifname: 'eth0', netns: '' }
    expect(await client.ask('detach', key)).toEqual({ found: true })
    expect(await client.ask('detach', key)).toEqual({ found: false })
    expect([files(), node.attached.size]).toEqual([[], 0])
  })

  it('attach twice is once; in another namespace it replaces; with another fail mode that is set', async () => {
    const id = attachmentId(request())
    await client.ask('attach', request())
    await client.ask('attach', request())
    await client.ask('attach', request({ failMode: 'open' }))
    await client.ask('attach', request({ netns: `/run/netns/${B}`, failMode: 'open' }))
    const expected = ['attach', 'attached'].map(word => `${word} ${id}`)
    expect(node.events).toEqual([...expected, `${id} open`, `detached ${id}`, ...expected])
    expect(node.attached.get(id)?.namespace).toBe(`/run/netns/${B}`)
    expect(files()).toHaveLength(1)
  })

  it('two runtimes at once: one attachment in turn, others meanwhile', async () => {
    let open = () => {}
    node.gate = new Promise(resolve => {
      open = resolve
    })
    const second = await connectControl(server.path)
    const [same, other] = [attachmentId(request()), attachmentId(another('other'))]
    const asked = [
      client.ask('attach', request()),
      second.ask('detach', { containerId: 'c0ffee', ifname: 'eth0', netns: '' }),
      (await connectControl(server.path)).ask('attach', another('other')),
    ]
    await expect.poll(() => node.events).toContain(`attach ${other}`)
    expect(node.events).toContain(`attach ${same}`)
    open()
    await Promise.all(asked)
    expect(node.events.filter(event => event.endsWith(same))).toEqual(
      ['attach', 'attached', 'detached'].map(word => `${word} ${same}`),
    )
    expect([...node.attached.keys()]).toEqual([other])
    second.close()
  })

  it('an attachment that fails leaves no record, and says whether trying again helps', async () => {
    await expect(client.ask('attach', request({ ifname: 'none0' }))).rejects.toMatchObject({
      failure: 'bad-request',
      message: expect.stringContaining('pod default/web-0: cannot attach none0: interface none0 does not exist'),
    })
    await expect(client.ask('attach', request({ ifname: 'bad0' }))).rejects.toMatchObject({ failure: 'unavailable' })
    expect(files()).toEqual([])
  })

  it('what is no pod’s network namespace is refused by name', async () => {
    mkdirSync(join(state, 'directory'))
    writeFileSync(join(state, 'file'), '')
    execFileSync('mkfifo', [join(state, 'pipe')])
    const wrong = (netns: string) => expect(client.ask('attach', request({ netns }))).rejects
    await wrong('/proc/self/ns/net').toThrow("/proc/self/ns/net is the node's own network namespace: not a pod's")
    await wrong('/proc/self/ns/mnt').toThrow('/proc/self/ns/mnt is not a network namespace')
    for (const name of ['directory', 'file', 'pipe'])
      await wrong(join(state, name)).toThrow('is not a network namespace')
    await wrong(`/run/netns/${A}-gone`).toThrow('does not exist (any more)')
    await wrong('').toThrow('netns: "" is not allowed')
    expect(node.events).toEqual([])
  })

  it('a pod that is deleted while it is attached is an error, and nothing is left', async () => {
    const gone = `dtd-c-${process.pid}`
    createNamespace(gone)
    let open = () => {}
    node.gate = new Promise(resolve => {
      open = resolve
    })
    const asked = expect(client.ask('attach', request({ netns: `/run/netns/${gone}` }))).rejects.toThrow(
      /went away meanwhile/,
    )
    await expect.poll(() => node.events.length).toBe(1)
    deleteNamespace(gone)
    open()
    await asked
    expect([files(), node.attached.size]).toEqual([[], 0])
  })

  it('strings of any length and list of any kind are a refusal, and the connection lives', async () => {
    const odd: Partial<AttachRequest>[] = [
      { containerId: '' },
      { containerId: '../../etc' },
      { containerId: 'a'.repeat(100_000) },
      { ifname: 'a/b' },
      { ifname: 'a'.repeat(16) },
      { ifname: '..' },
      { podName: 'x'.repeat(5000) },
      { addresses: ['ten'] },
      { addresses: ['10.0.0.1/24', 'x'.repeat(500_000)] },
      { addresses: Array(2000).fill('10.0.0.1') },
      { inspect: 'perhaps' as never },
      { failMode: 'ajar' as never },
      { annotations: { [ANNOTATION.INSPECT]: 'yes' } },
    ]
    for (const more of odd)
      await expect(client.ask('attach', request(more)), JSON.stringify(more).slice(0, 60)).rejects.toMatchObject({
        failure: 'bad-request',
      })
    await expect(client.ask('detach', { containerId: '/', ifname: 'eth0', netns: '' })).rejects.toMatchObject({
      failure: 'bad-request',
    })
    expect(await client.ask('ready', {})).toMatchObject({ ready: true })
    expect(files()).toEqual([])
  })

  it('two containers that want one interface at the same time: the first has it', async () => {
    const wanted = [request({ containerId: 'one' }), request({ containerId: 'two' })]
    const answers = await Promise.allSettled(wanted.map(each => service.attach(each)))
    expect(answers.map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
    expect(answers[1]).toMatchObject({
      reason: { message: expect.stringContaining('is attached already, for container one') },
    })
    expect(node.attached.size).toBe(1)
    // By whatever path.
    const path = join(state, 'netns')
    symlinkSync(`/run/netns/${A}`, path)
    await expect(service.attach(request({ containerId: 'three', netns: path }))).rejects.toThrow('attached already')
  })

  it('many pods are worked on one after the other, so that the main loop gets its turns between them', async () => {
    let now = 0
    let most = 0
    const slowly = async (work: () => void) => {
      most = Math.max(most, ++now)
      await new Promise(resolve => setImmediate(resolve))
      work()
      now--
    }
    const ids = ['a', 'b', 'c', 'd']
    for (const id of ids) await client.ask('attach', another(id))
    const { attached } = node
    node.detach = (id: string) => slowly(() => attached.delete(id))
    await client.ask('collect', { network: 'cluster', valid: [] })
    expect([most, attached.size]).toEqual([1, 0])
    for (const id of ids) await client.ask('attach', another(id))
    attached.clear()
    node.attach = (pod: PodOptions) => slowly(() => attached.set(pod.id, pod))
    await service.sweep()
    expect([most, attached.size]).toEqual([1, 4])
  })

  it('a pod that is left alone is remembered as such', async () => {
    const reply = await client.ask('attach', request({ podNamespace: 'kube-system' }))
    expect(reply).toMatchObject({
      inspected: false,
      mac: '',
      reason: "namespace kube-system is excluded by the node's configuration",
    })
    expect(node.attached.size).toBe(0)
    expect(await client.ask('check', { containerId: 'c0ffee', ifname: 'eth0', netns: '', addresses: [] })).toEqual({
      ok: true,
      reason: reply.reason,
    })
    expect(await client.ask('detach', { containerId: 'c0ffee', ifname: 'eth0', netns: '' })).toEqual({ found: true })
  })

  it('check tells what is wrong', async () => {
    const key = { containerId: 'c0ffee', ifname: 'eth0', netns: `/run/netns/${A}`, addresses: ['10.0.0.2/24'] }
    const check = (more: object = {}) => client.ask('check', { ...key, ...more })
    expect(await check()).toMatchObject({ ok: false, reason: expect.stringContaining('is not known') })
    await client.ask('attach', request())
    expect(await check()).toMatchObject({ ok: true })
    expect(await check({ netns: `/run/netns/${B}` })).toMatchObject({ ok: false, reason: expect.stringContaining(B) })
    expect(await check({ addresses: ['10.0.0.3/24'] })).toMatchObject({
      ok: false,
      reason: expect.stringContaining('10.0.0.3'),
    })
    node.endpointUp = false
    expect(await check()).toEqual({ ok: true, reason: 'no endpoint answers: packets are dropped (fail-closed)' })
    node.attached.clear()
    expect(await check()).toMatchObject({ ok: false, reason: expect.stringContaining('eth0 is not attached') })
  })

  it('ready: starting, then ready, degraded without an endpoint, stopping', async () => {
    expect(await build().ready()).toMatchObject({
      ready: false,
      degraded: false,
      reason: expect.stringContaining('starting'),
    })
    expect(await client.ask('ready', {})).toMatchObject({ ready: true, degraded: false })
    node.endpointUp = false
    expect(await client.ask('ready', {})).toMatchObject({ ready: true, degraded: true })
    await service.close()
    expect(await client.ask('ready', {})).toMatchObject({ ready: false, reason: expect.stringContaining('stopping') })
    await expect(client.ask('attach', request())).rejects.toMatchObject({ failure: 'busy' })
  })

  it('collect removes what its network does not name, and goes on past errors', async () => {
    for (const containerId of ['keep', 'stuck', 'go']) await client.ask('attach', another(containerId))
    await client.ask('attach', another('elsewhere', { network: 'other' }))
    const valid = [
      { containerId: 'keep', ifname: 'if-keep' },
      { containerId: 'unknown', ifname: 'eth0' },
    ]
    await expect(client.ask('collect', { network: 'cluster', valid })).rejects.toThrow(
      /not removed: default\/web-0: cannot/,
    )
    expect(files().map(name => name.split('-')[0])).toEqual(['elsewhere', 'keep', 'stuck'])
    expect(await client.ask('collect', { network: 'other', valid: [] })).toEqual({
      removed: [attachmentId(another('elsewhere'))],
    })
  })
})

describe.skipIf(missing !== '')(`what the daemon remembers${missing && ` (skipped: ${missing})`}`, () => {
  it('the next one attaches again; what went away meanwhile is forgotten', async () => {
    await client.ask('attach', request())
    const gone = `dtd-d-${process.pid}`
    createNamespace(gone)
    await client.ask('attach', request({ containerId: 'gone', netns: `/run/netns/${gone}` }))
    await client.ask('attach', request({ containerId: 'alone', podNamespace: 'kube-system' }))
    deleteNamespace(gone)
    node = standIn()
    const next = build()
    await next.open()
    expect([...node.attached.keys()]).toEqual([attachmentId(request())])
    expect(node.attached.get(attachmentId(request()))).toMatchObject({
      addresses: ['10.0.0.2/24'],
      label: 'default/web-0',
    })
    expect(files()).toHaveLength(2)
    expect(lines.join('\n')).toMatch(/default\/web-0: eth0 detached: its network namespace .* is gone/)
  })

  it('a pod that cannot be attached is told once, and makes the daemon degraded', async () => {
    await client.ask('attach', request())
    node = standIn()
    node.attach = async () => {
      throw new DetourError('system', 'no memory')
    }
    const next = build()
    await next.open()
    await next.sweep()
    expect(lines.filter(line => line === 'default/web-0: no memory')).toHaveLength(1)
    expect(await next.ready()).toMatchObject({
      ready: true,
      degraded: true,
      reason: expect.stringContaining('default/web-0'),
    })
    expect(files()).toHaveLength(1)
  })

  it('a namespace of the same name that is another one is not the pod’s', async () => {
    const name = `dtd-e-${process.pid}`
    createNamespace(name)
    await client.ask('attach', request({ netns: `/run/netns/${name}` }))
    deleteNamespace(name)
    // NB: it may well have the inode number of the last one.
    createNamespace(name)
    try {
      await service.sweep()
      expect([files(), node.attached.size]).toEqual([[], 0])
    } finally {
      deleteNamespace(name)
    }
  })

  it('a file where a namespace was mounted is none', async () => {
    const name = `dtd-g-${process.pid}`
    createNamespace(name)
    await client.ask('attach', request({ netns: `/run/netns/${name}` }))
    try {
      execFileSync('umount', [`/run/netns/${name}`])
      await service.sweep()
      expect([files(), node.attached.size]).toEqual([[], 0])
    } finally {
      rmSync(`/run/netns/${name}`)
    }
  })

  it('an interface has one attachment, whatever containers are called', async () => {
    const name = `dtd-h-${process.pid}`
    createNamespace(name)
    const netns = `/run/netns/${name}`
    await client.ask('attach', request({ netns }))
    await expect(client.ask('attach', request({ netns, containerId: 'other' }))).rejects.toThrow(
      `eth0 of ${netns} is attached already, for container c0ffee`,
    )
    deleteNamespace(name)
    createNamespace(name)
    try {
      await client.ask('attach', request({ netns, containerId: 'other' }))
      expect([...node.attached.keys()]).toEqual([attachmentId({ containerId: 'other', ifname: 'eth0' })])
      expect(node.events.indexOf(`detached ${attachmentId(request())}`)).toBeGreaterThan(0)
      expect(files()).toHaveLength(1)
    } finally {
      deleteNamespace(name)
    }
  })

  it('records of another boot, half a file and garbage are told and removed', async () => {
    await client.ask('attach', request())
    const [name] = files()
    const record = JSON.parse(readFileSync(join(state, 'attachments', name), 'utf8'))
    expect(record.boot).toBe(bootId())
    const put = (file: string, content: string) => writeFileSync(join(state, 'attachments', file), content)
    put('earlier.json', JSON.stringify({ ...record, id: 'earlier', boot: 'another' }))
    put('half.json', JSON.stringify(record).slice(0, 40))
    put('other.json', JSON.stringify(record))
    put('new.json.new', '')
    // Killed while it wrote again what it had written before: that one counts, and nothing of it is taken away.
    put(`${name}.new`, '{')
    // Whoever left these: they name no attachment, and so none is taken away for them.
    put('.swp', '')
    put('.json', '')
    mkdirSync(join(state, 'attachments', 'folder.json'))
    const { records, stale } = new Store(state).load()
    expect(records.map(({ id }) => id)).toEqual([record.id])
    expect(stale.map(({ id, why }) => `${id} ${why.replace(/ \(.*/, '')}`)).toEqual([
      'earlier is of an earlier boot',
      'folder cannot be read',
      'half cannot be read',
      'new was being written',
      `other says that it is ${record.id}`,
    ])
    expect(files()).toEqual(['.json', '.swp', name])
  })

  it('pins without a record go, once they are old and nobody has beaten their heart for long', async () => {
    const id = (name: string) => `dtd-${name}-eth0-0123abcd`
    const pinHeartbeat = (name: string) => {
      makePinDirectory(`${PIN_DIRECTORY}/${id(name)}`)
      const map = createArrayMap('dt_heartbeat', HEARTBEAT_SIZE, 1)
      pin(map, `${PIN_DIRECTORY}/${id(name)}/heartbeat`)
      return map
    }
    const [dead, map, fresh] = ['dead', 'alive', 'new'].map(pinHeartbeat)
    for (const fd of [dead, fresh]) closeSync(fd)
    for (const name of ['dead', 'alive']) utimesSync(`${PIN_DIRECTORY}/${id(name)}`, 1, 1)
    const heartbeat = new Heartbeat(map)
    heartbeat.beat()
    try {
      await build().open()
      const there = ['dead', 'alive', 'new'].map(name => existsSync(`${PIN_DIRECTORY}/${id(name)}`))
      expect(there).toEqual([false, true, true])
      expect(lines).toContain(`attachment ${id('dead')}: pins without a record: removed`)
    } finally {
      heartbeat.close()
      closeSync(map)
      for (const name of ['alive', 'new']) unpin(`${PIN_DIRECTORY}/${id(name)}`)
    }
  })

  it('a full disk refuses the pod before it is touched, and loses nothing', async () => {
    const full = join(folder, 'full')
    mkdirSync(full)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16k,mode=0700', 'tmpfs', full])
    try {
      state = full
      const small = build()
      await small.open()
      await small.attach(request())
      node.events.length = 0
      let refused = 0
      for (let i = 0; i < 40 && refused === 0; i++) {
        await small.attach(another(`c${i}`)).catch(error => {
          expect(error).toMatchObject({
            code: 'unavailable',
            message: expect.stringMatching(/record cannot be written: ENOSPC/),
          })
          refused++
        })
      }
      expect(refused).toBe(1)
      expect(node.events.filter(event => event.startsWith('attach '))).toHaveLength(node.attached.size - 1)
      expect(files().every(name => name.endsWith('.json'))).toBe(true)
      expect(files()).toHaveLength(node.attached.size)
      // An attachment that is there stays when its new record does not fit.
      await expect(small.attach(request({ failMode: 'open' }))).rejects.toMatchObject({ code: 'unavailable' })
      expect(new Store(full).load().records).toHaveLength(node.attached.size)
      expect(await small.detach({ containerId: 'c0ffee', ifname: 'eth0', netns: '' })).toEqual({ found: true })
    } finally {
      execFileSync('umount', [full])
    }
  })
})
