// A node with several workers: every flow at home at one of them, whatever tunnel device answers; and what becomes of it when one hangs.

import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import type { OffloadRung } from '../../src/control/config.ts'
import { configSchema } from '../../src/control/config.ts'
import { DROP } from '../../src/drop.ts'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { type NodeOptions, type RunningNode, startNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { said } from '../processes.ts'
import { listing, missing, Probe, runIn, title, transfer } from './support.ts'

const PODS = ['dtf-pod', 'dtf-pod2']
const [POD, POD2] = PODS
const NODE = 'dtf-node'
const ENDPOINT = 'dtf-endpoint'
/** Echo requests by raw socket: so many bytes to each address, over IPv4 and IPv6; prints how many replies came. */
const PING = `
import os, select, socket, struct, sys
def total(b):
  s = sum(struct.unpack('!%dH' % (len(b) // 2), b))
  while s >> 16: s = (s & 65535) + (s >> 16)
  return 65535 - s
back = 0
size = int(sys.argv[1])
for far in sys.argv[2:]:
  six = ':' in far
  s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 58 if six else 1)
  s.connect((far, 0))
  for i in range(10):
    data = bytes([i]) * size
    head = struct.pack('!BBHHH', 128 if six else 8, 0, 0, i, 1)
    head = struct.pack('!BBHHH', 128 if six else 8, 0, 0 if six else total(head + data), i, 1)
    for tries in range(20):
      s.send(head + data)
      got = b''
      while select.select([s], [], [], 0.2)[0]:
        got = s.recv(65536)[0 if six else 20:]
        if got[0] == (129 if six else 0) and got[4:6] == head[4:6] and got[8:] == data: break
      else: continue
      back += 1
      break
print(back)
`
const ENDPOINT_MAC = '02:00:00:00:00:bb'
const FAR = ['10.244.0.9', 'fd00:244::9']
const VNI = 77

let node: RunningNode | undefined
let gateway: RunningGateway | undefined
const children: ChildProcess[] = []

const macOf = (pod: string) => `02:00:00:00:00:a${PODS.indexOf(pod)}`
const addressesOf = (pod: string) => [`10.244.0.${2 + PODS.indexOf(pod)}`, `fd00:244::${2 + PODS.indexOf(pod)}`]

/** Pods behind a bridge, an uplink, and at its other end the kernel's own VXLAN device with some options, which the pods' subnet reaches, or none. */
function build(device: string): void {
  remove()
  for (const name of [...PODS, NODE, ENDPOINT]) createNamespace(name)
  const quiet = (name: string) => `link set ${name} addrgenmode none up`
  ipBatch(['link add cni0 type bridge', quiet('cni0')], NODE)
  for (const pod of PODS) {
    ipBatch([`link add eth0 netns ${pod} address ${macOf(pod)} type veth peer name ${pod} netns ${NODE}`])
    ipBatch([`link set ${pod} master cni0`, quiet(pod)], NODE)
    const [four, six] = addressesOf(pod)
    const neighbours = FAR.map(far => `neighbor add ${far} lladdr ${ENDPOINT_MAC} dev eth0`)
    ipBatch([`address add ${four}/24 dev eth0`, `address add ${six}/64 dev eth0 nodad`, quiet('eth0')], pod)
    ipBatch(neighbours, pod)
    for (const other of PODS.filter(other => other !== pod))
      ipBatch(
        addressesOf(other).map(address => `neighbor add ${address} lladdr ${macOf(other)} dev eth0`),
        pod,
      )
  }
  ipBatch([`link add uplink netns ${NODE} mtu 1600 type veth peer name eth0 netns ${ENDPOINT} mtu 1600`])
  ipBatch(['address add 10.99.0.1/24 dev uplink', quiet('uplink')], NODE)
  ipBatch(['address add 10.99.0.2/24 dev eth0', quiet('eth0')], ENDPOINT)
  if (device === 'without') return
  ipBatch(
    [
      `link add tun0 address ${ENDPOINT_MAC} mtu 1500 type vxlan id ${VNI} dstport 4789 local 10.99.0.2 remote 10.99.0.1 ${device}`,
      ...[`address add ${FAR[0]}/24 dev tun0`, `address add ${FAR[1]}/64 dev tun0 nodad`, quiet('tun0')],
      ...PODS.flatMap(pod => addressesOf(pod).map(own => `neighbor add ${own} lladdr ${macOf(pod)} dev tun0`)),
    ],
    ENDPOINT,
  )
}

function remove(): void {
  for (const name of [...PODS, NODE, ENDPOINT]) deleteNamespace(name)
}

async function start(kind: 'vxlan' | 'geneve', more: object, options: Partial<NodeOptions> = {}): Promise<void> {
  const tunnel = { profile: kind, vni: VNI, local: '10.99.0.1', remote: '10.99.0.2' }
  // A worker may wait for a processor for long, and that is no fault here.
  const config = configSchema.parse({ tunnel, heartbeatLimitMs: 10_000, ...more })
  const pods = [{ id: POD, namespace: POD }]
  // A kernel endpoint does not return probes.
  node = await startNode({
    ...{ config, namespace: NODE, uplink: 'uplink', pods, probe: { intervalMs: 0, limitMs: 0 } },
    ...options,
  })
}

/** A stage of every worker, as last published. */
const stages = (name: string) =>
  (node as RunningNode).source
    .counters()
    .filter(({ worker }) => worker !== 'kernel')
    .map(({ worker, stages }) => {
      const found = stages.find(stage => stage.name === name)
      if (found === undefined) throw new Error(`${worker} has no stage ${name}`)
      return found
    })
const dropped = (name: string, reason?: number) => stages(name).reduce((sum, stage) => sum + stage.drops(reason), 0)
/** Packets that came to one worker and belonged to another. */
const handedOver = () =>
  (node as RunningNode).source
    .counters()
    .flatMap(({ stages }) => stages.filter(stage => stage.name.startsWith('loopback')))
    .reduce((sum, stage) => sum + stage.row[2], 0)

/** Every worker has flows. */
async function usesAll(workers: number): Promise<void> {
  const { rows } = await (node as RunningNode).source.flows({ limit: 5000, order: 'bytes' })
  expect(new Set(rows.map(row => row.worker)).size).toBe(workers)
}

const ECHO = `
  const open = process.argv.slice(1)
  for (const address of [...open]) {
    const s = require('dgram').createSocket(address.includes(':') ? 'udp6' : 'udp4')
    s.on('message', (m, from) => s.send(m, from.port, from.address))
    s.bind(7777, address, () => { if (open.pop() && open.length === 0) console.log('ready') })
  }`

/** Answers datagrams. */
async function echo(namespace: string, addresses: string[]): Promise<void> {
  const child = inNamespace(namespace, () =>
    spawn(process.execPath, ['-e', ECHO, ...addresses], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
  children.push(child)
  await said(child.stdout, 'ready')
}

// Sends a datagram of so many bytes from each of 40 sockets until it comes back the same, and says how many did.
const ASK = `
  const [size, ...addresses] = process.argv.slice(1)
  let back = 0
  for (let i = 0; i < 40; i++) {
    const address = addresses[i % 2]
    const s = require('dgram').createSocket(address.includes(':') ? 'udp6' : 'udp4')
    const data = Buffer.alloc(+size, i)
    const send = () => s.send(data, 7777, address)
    const again = setInterval(send, 200)
    const end = () => { clearInterval(again); clearTimeout(last); s.close() }
    const last = setTimeout(end, 30000)
    s.once('message', m => { if (m.equals(data)) back++; end() })
    send()
  }
  process.on('exit', () => console.log(back))`

// Each sends until it is told: the kernel answers no more than one a second, and a few at once (net.ipv4.icmp_ratelimit).
const REFUSED = `
  for (let i = 0; i < 5; i++) {
    const s = require('dgram').createSocket('udp4')
    let again
    const end = word => { console.log(word); clearInterval(again); clearTimeout(last); s.close() }
    const last = setTimeout(end, 30000, 'silence')
    s.once('error', e => end(e.code))
    s.connect(7999, process.argv[1], () => {
      s.send('x')
      again = setInterval(() => s.send('x'), 700)
    })
  }`

/** Traffic of every kind: TCP both ways, datagrams and pings whole and fragmented, ICMP errors. */
async function everything(from: string, to: string, far: string[]): Promise<void> {
  await echo(to, far)
  for (const address of far) {
    expect(await transfer(from, to, address, '-P', '8', '-n', '50M')).toBeGreaterThan(0)
    expect(await transfer(from, to, address, '-P', '8', '-n', '50M', '-R')).toBeGreaterThan(0)
  }
  for (const size of ['100', '4000']) {
    expect(await runIn(from, '/usr/bin/python3', '-c', PING, size, ...far)).toBe('20\n')
    expect(await runIn(from, process.execPath, '-e', ASK, size, ...far)).toBe('40\n')
  }
  // Nobody is at that port: the ICMP error must find the flow that it is about.
  const refused = await runIn(from, process.execPath, '-e', REFUSED, far[0])
  expect(refused.trim().split('\n')).toEqual(new Array(5).fill('ECONNREFUSED'))
}

// A VXLAN endpoint that answers in the name of whoever was asked, up to 20 packets in one send with UDP_SEGMENT (udp(7)).
const TOGETHER = `
import select, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('10.99.0.2', 4789))
while True:
  replies = []
  while len(replies) < 20 and (not replies or select.select([s], [], [], 0.02)[0]):
    p, peer = s.recvfrom(65536)
    if len(p) != 150 or p[20:22] != b'\\x08\\x00' or p[31] != 17: continue
    replies.append(p[:8] + p[14:20] + p[8:14] + p[20:34] + p[38:42] + p[34:38] + p[44:46] + p[42:44] + p[46:])
  s.sendmsg([b''.join(replies)], [(17, 103, struct.pack('H', 150))], 0, ('10.99.0.1', 4789))
`

/** Stops one thread of this process as a debugger would, until the returned function lets it go on. */
async function hang(thread: string): Promise<() => Promise<void>> {
  const tasks = `/proc/${process.pid}/task`
  const tid = readdirSync(tasks).find(task => readFileSync(`${tasks}/${task}/comm`, 'utf8').trim() === thread)
  if (tid === undefined) throw new Error(`no thread ${thread}`)
  const tracer = spawn('/usr/bin/python3', ['-c', HOLD, tid], { stdio: ['pipe', 'pipe', 'inherit'] })
  children.push(tracer)
  const gone = new Promise<void>(resolve => tracer.once('close', () => resolve()))
  await said(tracer.stdout, 'held')
  return () => {
    tracer.stdin.end()
    return gone
  }
}

const HOLD = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
tid = int(sys.argv[1])
ATTACH, DETACH, WALL = 16, 17, 0x40000000
assert libc.ptrace(ATTACH, tid, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.waitpid(tid, WALL)
print('held', flush=True)
sys.stdin.read()
libc.ptrace(DETACH, tid, 0, 0)
`

describe.skipIf(missing !== '')(title('a node with several workers'), () => {
  afterEach(async () => {
    for (const child of children.splice(0)) child.kill()
    await node?.stop()
    await gateway?.stop()
    node = gateway = undefined
    remove()
  })

  for (const [workers, device] of [
    [1, ''],
    [2, ''],
    [3, ''],
    // All packets of the endpoint come from one port.
    [3, 'srcport 5000 5001'],
  ] as const) {
    it(`finds every returned packet's flow, kernel VXLAN device ${device}, ${workers} workers`, async () => {
      build(device)
      await start('vxlan', { workers })
      await everything(POD, ENDPOINT, FAR)
      await usesAll(workers)
      await node?.stop()
      expect(dropped('restore', DROP.UNKNOWN_FLOW)).toBe(0)
      expect(dropped('decap')).toBe(0)
      expect(handedOver()).toBe(0)
      for (const name of ['encap', 'restore']) {
        for (const stage of stages(name)) expect(stage.row[2], name).toBeGreaterThan(0)
      }
    })
  }

  for (const kind of ['vxlan', 'geneve'] as const) {
    for (const offload of ['tunnel-gso', 'uso', 'udp-socket']) {
      it(`and a gateway with several, through which one pod talks to another: ${kind}, ${offload}`, async () => {
        build('without')
        if (offload === 'udp-socket') for (const pod of PODS) await runIn(pod, 'ethtool', '-K', 'eth0', 'tx', 'off')
        gateway = await startGateway({
          ...{ profile: kind, address: '10.99.0.2', namespace: ENDPOINT, policy: ALLOW_ALL, workers: 2 },
          ...(offload === 'udp-socket' ? {} : { interface: 'eth0', rung: offload as OffloadRung }),
        })
        await start(kind, { workers: 3, rungs: { offload } }, { pods: PODS.map(pod => ({ id: pod, namespace: pod })) })
        await everything(POD, POD2, addressesOf(POD2))
        await usesAll(3)
        await node?.stop()
        await gateway.stop()
        expect(dropped('restore')).toBe(0)
        expect(dropped('decap')).toBe(0)
        const { rows } = await gateway.source.flows({ limit: 5000, order: 'bytes' })
        expect(new Set(rows.map(row => row.worker)).size).toBe(2)
        const all = gateway.source.counters().flatMap(one => one.stages)
        expect(all.filter(stage => stage.drops() !== 0).map(stage => stage.name)).toEqual([])
        if (offload === 'udp-socket') expect(handedOver()).toBeGreaterThan(0)
      })
    }
  }

  for (const offload of ['tunnel-gso', 'uso', 'udp-socket']) {
    it(`takes apart what an endpoint puts together of several flows, rung ${offload}`, async () => {
      build('without')
      // A veth leaves checksums to a wire that never comes, and this endpoint sees what is inside as it was sent.
      await runIn(POD, 'ethtool', '-K', 'eth0', 'tx', 'off')
      const child = inNamespace(ENDPOINT, () => spawn('/usr/bin/python3', ['-c', TOGETHER], { stdio: 'inherit' }))
      children.push(child)
      await start('vxlan', { workers: 3, rungs: { offload } })
      expect(await runIn(POD, process.execPath, '-e', ASK, '100', FAR[0], FAR[0])).toBe('40\n')
      await node?.stop()
      expect(dropped('restore', DROP.UNKNOWN_FLOW)).toBe(0)
      expect(handedOver()).toBeGreaterThan(0)
    })
  }

  it('applies the fail mode when a single worker hangs, and ends it when the worker goes on', async () => {
    build('')
    await start('vxlan', { workers: 3, failMode: 'closed', heartbeatLimitMs: 200 })
    const probe = new Probe(POD, ENDPOINT, FAR[0], 9000)
    const attachment = async () => (await (node as RunningNode).source.attachments())[0]
    const until = async (condition: () => Promise<boolean>) => {
      for (const end = Date.now() + 60_000; !(await condition()); ) {
        if (Date.now() > end) throw new Error('it never came to pass')
        await new Promise(setImmediate)
      }
    }
    for (let worker = 0; worker < 3; worker++) {
      await until(async () => probe.send(20))
      const { failDropped } = await attachment()
      const release = await hang(`forward-${worker}`)
      await until(async () => (await attachment()).heartbeatAgeMs! > 210)
      for (let i = 0; i < 20; i++) expect(probe.send(5)).toBe(false)
      expect((await attachment()).failDropped).toBeGreaterThanOrEqual(failDropped + 20)
      await release()
    }
    await until(async () => probe.send(20))
    probe.close()
  })

  it('attaches and detaches pods while packets flow', async () => {
    build('')
    const found = listing(POD2, 'eth0')
    await start('vxlan', { workers: 2 })
    const probes = PODS.map((pod, i) => new Probe(pod, ENDPOINT, FAR[0], 9000 + i))
    const ids = async () => (await (node as RunningNode).source.attachments()).map(({ id }) => id)
    const tunnelled = () => stages(`tap ${POD2}:dt-eth0`).reduce((sum, stage) => sum + stage.row[0], 0)
    for (let round = 0; round < 3; round++) {
      await node!.attach({ id: POD2, namespace: POD2 })
      expect(await ids()).toEqual([POD, POD2])
      for (const probe of probes) for (let i = 0; i < 10; i++) expect(probe.send()).toBe(true)
      await expect(node!.attach({ id: POD2, namespace: POD2 })).rejects.toThrow(/dtf-pod2 is there already/)
      await expect(node!.attach({ id: 'x', namespace: 'dtf-none' })).rejects.toThrow(/dtf-none does not exist/)
      while (tunnelled() < 10) await new Promise(setImmediate)
      await node!.detach(POD2)
      await node!.detach(POD2)
      expect(await ids()).toEqual([POD])
      expect(listing(POD2, 'eth0')).toBe(found)
      expect(tunnelled).toThrow('no stage')
      expect(probes[0].send()).toBe(true)
    }
    for (const probe of probes) probe.close()
  })
})
