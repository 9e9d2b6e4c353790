// The plugin against what real runtimes gave it, and against what none should.

import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { INPUT_LIMIT, plugin } from '../../src/cni/plugin.ts'
import { OperationFailure, type Operations } from '../../src/control/operations.ts'
import { serveControl } from '../../src/control/socket.ts'
import { fakeSource } from '../control/fake.ts'
import { call, type FakeDaemon, recordings, serveDaemon } from './world.ts'

const VERSIONS = ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0']
const ENV = { CNI_CONTAINERID: 'c0ffee', CNI_IFNAME: 'eth0', CNI_NETNS: '/run/netns/blue', CNI_PATH: '/opt/cni/bin' }
const PREVIOUS = {
  interfaces: [
    { name: 'veth0' },
    { name: 'eth0', sandbox: '/run/netns/blue' },
    { name: 'net1', sandbox: '/run/netns/blue' },
  ],
  ips: [
    { address: '10.1.0.5/16', gateway: '10.1.0.1', interface: 1 },
    { address: 'fd00::5/64', interface: 1 },
    { address: '10.2.0.5/16', interface: 2 },
  ],
  routes: [{ dst: '0.0.0.0/0' }],
  dns: {},
}

const open: FakeDaemon[] = []
afterEach(async () => {
  for (const daemon of open.splice(0)) await daemon.close()
})

async function daemon(instead: Partial<Operations> = {}): Promise<FakeDaemon> {
  const served = await serveDaemon(instead)
  open.push(served)
  return served
}

const config = (socket: string, more: object = {}) => ({
  cniVersion: '1.1.0',
  name: 'net',
  type: 'detour-cni',
  socket,
  prevResult: PREVIOUS,
  ...more,
})

const run = (verb: string, json: unknown, env: Record<string, string> = {}) =>
  call({ ...ENV, CNI_COMMAND: verb, ...env }, json)

const NOWHERE = '/nonexistent/detour.sock'

describe('recorded calls', () => {
  const ASKED: [prefix: string, asked: string[]][] = [
    ['containerd-failed', ['attach', 'detach']],
    ['containerd', ['attach', 'detach', 'detach']],
    ['ctr', ['attach', 'detach']],
    ['podman', ['attach', 'detach']],
    ['libcni', ['ready', 'attach', 'check', 'collect', 'detach', 'collect']],
  ]

  it('are there', () => {
    expect(recordings().map(([name]) => name)).toHaveLength(9)
  })

  it.each(recordings())('%s', async (name, calls) => {
    const { socket, asked } = await daemon()
    for (const { env, stdin } of calls) {
      const given = JSON.parse(stdin)
      const { status, json } = await call(env, stdin.replace('/run/detour/detour.sock', socket))
      expect(status).toBe(0)
      const expected = {
        ADD: given.prevResult,
        VERSION: { cniVersion: given.cniVersion, supportedVersions: VERSIONS },
      }[env.CNI_COMMAND]
      expect(json).toEqual(expected)
    }
    expect(asked.map(([operation]) => operation)).toEqual(ASKED.find(([prefix]) => name.startsWith(prefix))![1])
  })

  const request = async (name: string, verb: string) => {
    const { socket, asked } = await daemon()
    const calls = recordings().find(([each]) => each === name)![1]
    for (const { env, stdin } of calls.filter(({ env }) => env.CNI_COMMAND === verb)) {
      await call(env, stdin.replace('/run/detour/detour.sock', socket))
    }
    return asked
  }

  it('containerd: everything of the pod reaches the daemon', async () => {
    const [[operation, attach]] = await request('containerd-1.0.0.json', 'ADD')
    expect(operation).toBe('attach')
    expect(attach).toMatchObject({
      ifname: 'eth0',
      podNamespace: 'shop',
      podName: 'web-0',
      annotations: { 'detour.dev/inspect': 'true' },
      addresses: ['10.244.5.2/24'],
      inspect: 'default',
      excludeNamespaces: ['kube-system'],
    })
    const { containerId, netns, podUid } = attach as Record<string, string>
    expect(containerId).toMatch(/^[0-9a-f]{64}$/)
    expect(netns).toMatch(/^\/var\/run\/netns\/cni-/)
    expect(podUid).toMatch(/^[0-9a-f-]{36}$/)
    expect(attach).not.toHaveProperty('failMode')
  })

  it('containerd: both DELs name the attachment, the second without a namespace', async () => {
    const [[, first], [, second]] = (await request('containerd-1.0.0.json', 'DEL')) as [
      string,
      Record<string, string>,
    ][]
    expect(second).toEqual({ ...first, netns: '' })
    expect(first.netns).toMatch(/^\/var\/run\/netns\/cni-/)
  })

  it('ctr: no pod, and that is fine', async () => {
    const [[, attach]] = await request('ctr-1.0.0.json', 'ADD')
    expect(attach).toMatchObject({ podNamespace: '', podName: '', podUid: '', annotations: {} })
    expect((attach as { netns: string }).netns).toMatch(/^\/proc\/\d+\/ns\/net$/)
  })

  it('libcni: GC with a list, and with null for none', async () => {
    const asked = await request('libcni-1.1.0.json', 'GC')
    expect(asked).toEqual([
      ['collect', { network: 'rec', valid: [{ containerId: '0123456789abcdef', ifname: 'eth0' }] }],
      ['collect', { network: 'rec', valid: [] }],
    ])
  })
})

describe('versions', () => {
  const SINCE = { ADD: 0, DEL: 0, CHECK: 2, STATUS: 4, GC: 4 }
  const cases = Object.entries(SINCE).flatMap(([verb, since]) =>
    VERSIONS.map((cniVersion, at) => ({ verb, cniVersion, exists: at >= since })),
  )

  it.each(cases)('$verb in $cniVersion: $exists', async ({ verb, cniVersion, exists }) => {
    const { socket, asked } = await daemon()
    const { status, json } = await run(verb, config(socket, { cniVersion, 'cni.dev/attachments': [] }))
    expect(status).toBe(exists ? 0 : 1)
    expect(asked).toHaveLength(exists ? 1 : 0)
    if (!exists) expect(json).toMatchObject({ cniVersion, code: 1, details: expect.stringContaining(cniVersion) })
    else if (verb === 'ADD') expect(json).toEqual({ ...PREVIOUS, cniVersion })
    else expect(json).toBeUndefined()
  })

  it.each(['0.2.0', '1.2.0', '2.0.0', '', 'x', undefined])('%j is not supported', async cniVersion => {
    const { json } = await run('ADD', config(NOWHERE, { cniVersion }))
    expect(json).toMatchObject({
      cniVersion: '1.1.0',
      code: 1,
      details: expect.stringContaining('0.3.1, 0.4.0, 1.0.0'),
    })
  })

  it('VERSION needs no more than a version, and not even that', async () => {
    const env = { CNI_COMMAND: 'VERSION' }
    expect((await call(env, '{"cniVersion":"0.4.0"}')).json).toEqual({
      cniVersion: '0.4.0',
      supportedVersions: VERSIONS,
    })
    expect((await call(env, '')).json).toEqual({ cniVersion: '1.1.0', supportedVersions: VERSIONS })
    expect((await call(env, '{')).json).toMatchObject({ code: 6 })
  })
})

describe('without a daemon', () => {
  it.each([
    ['ADD', 11],
    ['CHECK', 11],
    ['GC', 11],
    ['STATUS', 50],
  ])('%s fails with %i', async (verb, code) => {
    const { status, json } = await run(verb, config(NOWHERE, { 'cni.dev/attachments': [] }))
    expect(status).toBe(1)
    expect(json).toMatchObject({ cniVersion: '1.1.0', code, details: expect.stringContaining(NOWHERE) })
  })

  const quiet: [string, object, Record<string, string>][] = [
    ['as ADD was called', {}, {}],
    ['without CNI_NETNS', {}, { CNI_NETNS: '' }],
    ['with a CNI_NETNS that is no path', {}, { CNI_NETNS: 'dummy' }],
    ['without prevResult', { prevResult: undefined }, {}],
    ['with CNI_ARGS that are none', {}, { CNI_ARGS: ';;=;K8S_POD_NAME=../..' }],
    ['with a configuration that ADD refuses', { excludeNamespaces: 1, prevResult: [], inspect: {} }, {}],
    ['with a socket that is none', { socket: {} }, {}],
  ]
  it.each(quiet)('DEL succeeds %s', async (_title, more, env) => {
    const { status, output } = await run('DEL', config(NOWHERE, more), env)
    expect([status, output]).toEqual([0, ''])
  })

  it('pods of excluded namespaces start and are fine', async () => {
    const json = config(NOWHERE, { excludeNamespaces: ['kube-system'] })
    const env = { CNI_ARGS: 'K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns' }
    expect((await run('ADD', json, env)).json).toEqual({ ...PREVIOUS, cniVersion: '1.1.0' })
    expect((await run('CHECK', json, env)).status).toBe(0)
    expect((await run('ADD', json, { CNI_ARGS: 'K8S_POD_NAMESPACE=kube-systems' })).json.code).toBe(11)
  })
})

describe('one daemon after another', () => {
  it('ADD does not fail while the one stops, is gone, and the other comes', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'dtcni-'))
    const path = join(folder, 'd.sock')
    const serve = (attach: Operations['attach']) =>
      serveControl(fakeSource().source, { path, operations: { attach } as Operations })
    const stopping = new OperationFailure('busy', 'the daemon is stopping')
    const asked = new Promise<void>(resolve => {
      void serve(() => {
        resolve()
        return Promise.reject(stopping)
      }).then(first => asked.then(() => first.close()))
    })
    const added = run('ADD', config(path))
    await asked
    while (existsSync(path)) await new Promise(setImmediate)
    const second = await serve(async () => ({ inspected: true, reason: '', id: 'second', mac: '02:00:00:00:00:01' }))
    expect(await added).toMatchObject({ status: 0, note: { id: 'second' } })
    await second.close()
    rmSync(folder, { recursive: true })
  })
})

describe('what the daemon answers', () => {
  const failing = (failure: Error) => {
    const fail = () => Promise.reject(failure)
    return daemon({ attach: fail, detach: fail, check: fail, ready: fail, collect: fail })
  }

  it.each([
    [new OperationFailure('unavailable', 'starting up'), 11],
    [new OperationFailure('busy', 'stopping for long'), 11],
    [new OperationFailure('bad-request', 'annotation x'), 7],
    [new Error('no such link'), 100],
  ])('%s: its words reach the runtime', async (failure, code) => {
    const { socket } = await failing(failure)
    const { status, json } = await run('ADD', config(socket))
    expect(status).toBe(1)
    expect(json).toMatchObject({ code, details: expect.stringContaining(failure.message) })
    const refused = await run('STATUS', config(socket))
    expect(refused.json).toMatchObject({ code: 50, details: expect.stringContaining(failure.message) })
    const del = await run('DEL', config(socket))
    expect([del.status, del.output]).toEqual([0, ''])
    expect(del.note.details).toContain(failure.message)
  })

  it.each([
    [{ ready: true, degraded: false, reason: '' }, undefined],
    [{ ready: true, degraded: true, reason: 'one endpoint is down' }, undefined],
    [{ ready: false, degraded: false, reason: 'no memory' }, 50],
    [{ ready: false, degraded: true, reason: 'no endpoint' }, 51],
  ])('STATUS of %j is %s', async (reply, code) => {
    const { socket } = await daemon({ ready: async () => reply })
    const { status, json } = await run('STATUS', config(socket, { prevResult: undefined }), {
      CNI_CONTAINERID: '',
      CNI_NETNS: '',
    })
    expect(status).toBe(code === undefined ? 0 : 1)
    expect(json).toEqual(code === undefined ? undefined : expect.objectContaining({ code, details: reply.reason }))
  })

  it('CHECK tells what is wrong', async () => {
    const { socket, asked } = await daemon({ check: async () => ({ ok: false, reason: 'the TAP is gone' }) })
    expect((await run('CHECK', config(socket))).json).toMatchObject({ code: 103, details: 'the TAP is gone' })
    const addresses = ['10.1.0.5/16', 'fd00::5/64']
    expect(asked).toEqual([['check', { containerId: 'c0ffee', ifname: 'eth0', netns: '/run/netns/blue', addresses }]])
  })

  it('a face that is no daemon is not taken for one', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'dtcni-'))
    const server = await serveControl(fakeSource().source, { path: join(folder, 'lab.sock') })
    expect((await run('ADD', config(server.path))).json.code).toBe(101)
    await server.close()
    rmSync(folder, { recursive: true })
  })

  const silent = async (answer: Buffer | undefined, verb: string) => {
    const folder = mkdtempSync(join(tmpdir(), 'dtcni-'))
    const path = join(folder, 's')
    const server = createServer(socket => {
      socket.on('error', () => {})
      if (answer !== undefined) socket.end(answer)
    })
    await new Promise<void>(resolve => server.listen(path, resolve))
    const reply = await call({ ...ENV, CNI_COMMAND: verb }, config(path), { ADD: 50, DEL: 50, STATUS: 50 })
    server.close()
    rmSync(folder, { recursive: true })
    return reply
  }

  it.each([
    ['nothing', undefined],
    ['garbage', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ['an end', Buffer.alloc(0)],
    ['a frame too long', Buffer.from([255, 255, 255, 127, 1])],
  ])('%s: ADD is to be tried again, DEL succeeds, STATUS is 50', async (_what, answer) => {
    expect((await silent(answer, 'ADD')).json.code).toBe(11)
    expect((await silent(answer, 'DEL')).status).toBe(0)
    expect((await silent(answer, 'STATUS')).json.code).toBe(50)
  })
})

describe('the configuration', () => {
  const wrong: [key: string, value: unknown, code: number][] = [
    ['name', undefined, 7],
    ['name', '../etc', 7],
    ['name', 7, 7],
    ['socket', 7, 7],
    ['socket', 'run/d.sock', 7],
    ['socket', `/${'x'.repeat(107)}`, 7],
    ['socket', '/a\0b', 7],
    ['inspect', true, 7],
    ['inspect', 'sometimes', 2],
    ['failMode', 'ajar', 2],
    ['failMode', [], 7],
    ['excludeNamespaces', 'kube-system', 7],
    ['excludeNamespaces', ['a', 1], 7],
    ['unchained', 'yes', 7],
    ['logFile', 'log', 7],
    ['runtimeConfig', [], 7],
    ['prevResult', 'x', 7],
    ['cniVersion', 1, 6],
  ]
  it.each(wrong)('%s %j is an error that names both', async (key, value, code) => {
    const { status, json } = await run('ADD', config(NOWHERE, { [key]: value }))
    expect([status, json.code]).toEqual([1, code])
    expect(`${json.msg} ${json.details}`).toContain(key)
    if (value !== undefined) expect(json.details).toContain(JSON.stringify(value).slice(0, 90))
  })

  const inside: [where: string, prevResult: object][] = [
    ['prevResult.interfaces', { interfaces: {} }],
    ['prevResult.interfaces', { interfaces: [null] }],
    ['prevResult.ips', { ips: 'x' }],
    ['prevResult.ips[1].address', { ips: [{ address: '10.0.0.1/8' }, { address: '10.0.0.1/33' }] }],
    ['prevResult.ips[0].address', { ips: [{ address: 'fe80::1%eth0/64' }] }],
    ['prevResult.ips[0].address', { ips: [{}] }],
    ['prevResult.ips[0].interface', { ips: [{ address: '10.0.0.1/8', interface: '0' }] }],
  ]
  it.each(inside)('%s of %j is an error that names the place', async (where, prevResult) => {
    const { json } = await run('ADD', config(NOWHERE, { prevResult }))
    expect(json).toMatchObject({ code: 7, details: expect.stringContaining(`${where} is `) })
  })

  it('keys that nobody knows are no error, nor is __proto__ more than one of them', async () => {
    const { socket, asked } = await daemon()
    const text = JSON.stringify(config(socket, { future: [1], capabilities: {}, args: {} })).replace(
      '{',
      '{"__proto__":{"inspect":"never"},"constructor":1,',
    )
    expect((await run('ADD', text)).status).toBe(0)
    expect(asked[0][1]).toMatchObject({ inspect: 'default' })
  })

  it('a result is passed on with all that Detour does not know', async () => {
    const { socket } = await daemon()
    const prevResult = {
      ...PREVIOUS,
      future: { deep: [{ n: 1e21 }, null, 'ü\u2028'] },
      ips: [{ address: '10.0.0.1/8', x: 1 }],
    }
    const { json } = await run('ADD', config(socket, { prevResult }))
    expect(json).toEqual({ ...prevResult, cniVersion: '1.1.0' })
  })

  it('says what it wants: inspect, excludeNamespaces, failMode', async () => {
    const { socket, asked } = await daemon()
    const wanted = { inspect: 'never', excludeNamespaces: ['a', 'b'], failMode: 'open' }
    await run('ADD', config(socket, wanted))
    expect(asked[0][1]).toMatchObject({ ...wanted, network: 'net' })
  })

  it('the pod says more: annotations of Detour, those of the runtime before CNI_ARGS', async () => {
    const { socket, asked } = await daemon()
    const annotations = {
      'detour.dev/inspect': 'false',
      'paloaltonetworks.com/firewall': 'pan-fw',
      other: 'x'.repeat(1e6),
    }
    const runtimeConfig = { 'io.kubernetes.cri.pod-annotations': annotations }
    const args = 'IgnoreUnknown=1;DETOUR_INSPECT=true;DETOUR_FAIL_MODE=closed;K8S_POD_NAME=web.0_x-1;X=a=b;'
    await run('ADD', config(socket, { runtimeConfig }), { CNI_ARGS: args })
    expect(asked[0][1]).toMatchObject({
      podName: 'web.0_x-1',
      annotations: {
        'detour.dev/inspect': 'false',
        'detour.dev/fail-mode': 'closed',
        'paloaltonetworks.com/firewall': 'pan-fw',
      },
    })
    const bad = { 'io.kubernetes.cri.pod-annotations': { 'detour.dev/inspect': true } }
    const { json } = await run('ADD', config(socket, { runtimeConfig: bad }))
    expect(json).toMatchObject({ code: 7, details: expect.stringContaining('detour.dev/inspect') })
  })

  it('without a chain there is nothing to stand behind', async () => {
    for (const prevResult of [undefined, null]) {
      const { json } = await run('ADD', config(NOWHERE, { prevResult }))
      expect(json).toMatchObject({ code: 7, msg: 'detour must be called as a chained plugin' })
    }
    expect((await run('CHECK', config(NOWHERE, { prevResult: undefined }))).json.code).toBe(7)
  })

  it('an unchained entry is about eth0, whatever Multus calls the network', async () => {
    const { socket, asked } = await daemon()
    const json = config(socket, {
      unchained: true,
      prevResult: undefined,
      'cni.dev/valid-attachments': [{ containerID: 'a', ifname: 'net1' }],
    })
    const env = { CNI_IFNAME: 'net1' }
    expect((await run('ADD', json, env)).json).toEqual({ cniVersion: '1.1.0' })
    for (const verb of ['CHECK', 'DEL', 'GC']) expect((await run(verb, json, env)).status).toBe(0)
    const target = { containerId: 'c0ffee', ifname: 'eth0' }
    expect(asked.map(([, request]) => request)).toEqual([
      expect.objectContaining(target),
      expect.objectContaining(target),
      expect.objectContaining(target),
      { network: 'net', valid: [{ containerId: 'a', ifname: 'eth0' }] },
    ])
  })
})

describe('GC', () => {
  it('takes both names of the list, and anything else', async () => {
    const { socket, asked } = await daemon()
    const lists = {
      'cni.dev/attachments': [{ containerID: 'a', ifname: 'eth0', extra: 1 }],
      'cni.dev/valid-attachments': [{ containerID: 'b', ifname: 'net1' }],
      'cni.dev/future': 1,
    }
    const { status, note } = await run('GC', config(socket, lists), {
      CNI_CONTAINERID: '',
      CNI_IFNAME: '',
      CNI_NETNS: '',
    })
    expect(status).toBe(0)
    expect(note.removed).toBe('gone')
    const valid = [
      { containerId: 'a', ifname: 'eth0' },
      { containerId: 'b', ifname: 'net1' },
    ]
    expect(asked).toEqual([['collect', { network: 'net', valid }]])
  })

  it.each([
    [{}],
    [{ 'cni.dev/attachments': {} }],
    [{ 'cni.dev/attachments': ['a'] }],
    [
      {
        'cni.dev/attachments': [
          { containerID: 'a', ifname: 'eth0' },
          { containerId: 'b', ifname: 'eth0' },
        ],
      },
    ],
    [{ 'cni.dev/attachments': [{ containerID: 'a' }] }],
  ])('removes nothing when %j does not say what is valid', async lists => {
    const { socket, asked } = await daemon()
    expect((await run('GC', config(socket, lists))).json.code).toBe(7)
    expect(asked).toEqual([])
  })
})

describe('order', () => {
  it('ADD twice, DEL first and again: all go to the daemon, all succeed', async () => {
    const { socket, asked } = await daemon({ detach: async () => ({ found: false }) })
    for (const verb of ['DEL', 'ADD', 'ADD', 'DEL', 'DEL']) expect((await run(verb, config(socket))).status).toBe(0)
    expect(asked.map(([operation]) => operation)).toEqual(['detach', 'attach', 'attach', 'detach', 'detach'])
  })

  it('nothing is attached when the answer cannot be written', async () => {
    const { socket, asked } = await daemon()
    const deep = `${'['.repeat(100_000)}${']'.repeat(100_000)}`
    const text = JSON.stringify(config(socket)).replace('"dns":{}', `"dns":${deep}`)
    const { status, json } = await run('ADD', text)
    expect([status, json.code]).toEqual([1, 100])
    expect(asked).toEqual([])
  })
})

describe('the environment', () => {
  const wrong: [name: string, value: string][] = [
    ['CNI_CONTAINERID', ''],
    ['CNI_CONTAINERID', '../x'],
    ['CNI_CONTAINERID', '-x'],
    ['CNI_CONTAINERID', 'a b'],
    ['CNI_CONTAINERID', 'a\nb'],
    ['CNI_CONTAINERID', 'a'.repeat(256)],
    ['CNI_IFNAME', ''],
    ['CNI_IFNAME', '..'],
    ['CNI_IFNAME', '.'],
    ['CNI_IFNAME', 'a/b'],
    ['CNI_IFNAME', 'a:b'],
    ['CNI_IFNAME', 'a\u00a0b'],
    ['CNI_IFNAME', '0123456789abcdef'],
    ['CNI_IFNAME', 'ääääääää'],
    ['CNI_NETNS', ''],
    ['CNI_NETNS', 'netns/blue'],
    ['CNI_NETNS', `/${'x'.repeat(4095)}`],
    ['CNI_ARGS', 'K8S_POD_NAME'],
    ['CNI_ARGS', '=x'],
    ['CNI_ARGS', 'K8S_POD_NAMESPACE=../../etc'],
    ['CNI_ARGS', 'K8S_POD_NAME=\u001b[31mred'],
  ]
  it.each(wrong)('%s %j is an error that names it', async (name, value) => {
    const { status, json } = await run('ADD', config(NOWHERE), { [name]: value })
    expect([status, json.code]).toEqual([1, 4])
    expect(json.msg).toContain(name)
  })

  it('all that is missing is named', async () => {
    const { json } = await call({ CNI_COMMAND: 'ADD' }, config(NOWHERE))
    expect(json.msg).toBe('missing in the environment: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS')
  })

  it.each(['', 'add', 'UPDATE', 'toString', '__proto__'])('CNI_COMMAND %j is none', async verb => {
    expect((await run(verb, config(NOWHERE))).json).toMatchObject({
      code: 4,
      msg: expect.stringContaining('CNI_COMMAND'),
    })
  })

  it.each(['eth0', 'a', '0123456789abcde', 'ä', 'eth0.100@x'])('%s is a name of an interface', async name => {
    expect((await run('ADD', config(NOWHERE), { CNI_IFNAME: name })).json.code).toBe(11)
  })
})

describe('standard input', () => {
  it.each([
    ['', 6],
    ['null', 6],
    ['[]', 6],
    ['"x"', 6],
    ['{"name":"net"', 6],
    ['{"name":"net"}{}', 6],
  ])('%j is undecodable', async (text, code) => {
    expect((await run('ADD', text)).json).toMatchObject({ cniVersion: '1.1.0', code })
  })

  it('has a limit', async () => {
    expect((await run('ADD', ' '.repeat(INPUT_LIMIT + 1))).json.code).toBe(5)
  })

  it('that cannot be read is an error', async () => {
    const failing = (async function* () {
      yield Buffer.from('{')
      throw new Error('EIO: i/o error, read')
    })()
    const { status, output } = await plugin({ ...ENV, CNI_COMMAND: 'DEL' }, failing)
    expect([status, JSON.parse(output)]).toMatchObject([1, { code: 5, details: 'EIO: i/o error, read' }])
  })

  it('must be UTF-8', async () => {
    const bytes = Buffer.from(JSON.stringify(config(NOWHERE, { future: 'ÿ' })), 'latin1')
    const { output } = await plugin({ ...ENV, CNI_COMMAND: 'ADD' }, [bytes])
    expect(JSON.parse(output)).toMatchObject({
      code: 6,
      details: expect.stringContaining('encoded data was not valid'),
    })
  })
})
