// The rung af-xdp: a node whose underlay is AF_XDP on the uplink, against the kernel's own VXLAN device as the endpoint, and
// against a gateway of the same rung.

import { execFileSync, spawn } from 'node:child_process'
import { afterEach, describe, expect, it } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { DROP } from '../../src/drop.ts'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { COLUMN, type StageCounters } from '../../src/memory/counters.ts'
import { type RunningNode, startNode } from '../../src/node/node.ts'
import { Assembler, XDP_PASS } from '../../src/os/assembler.ts'
import { attachXdp, loadXdp } from '../../src/os/bpf.ts'
import { close, interfaceIndex, must } from '../../src/os/libc.ts'
import { createNamespace, deleteNamespace, inNamespace, ip, ipBatch } from '../../src/os/netns.ts'
import { said } from '../processes.ts'
import { connectByVxlan, missing, Probe, program, runIn, title, transfer } from './support.ts'

const POD = 'dtL-pod'
const NODE = 'dtL-node'
const ENDPOINT = 'dtL-endpoint'
const PEER = 'dtL-peer'
const NAMES = [POD, PEER, NODE, ENDPOINT]
const POD_MAC = '02:00:00:00:00:aa'
const ENDPOINT_MAC = '02:00:00:00:00:bb'
const VNI = 77

const LISTEN = `
import socket, time
held = []
for port in (23, 24):
  s = socket.create_server(('10.244.0.3', port))
  held.append(s)
print('listening', flush=True)
time.sleep(600)
`
const CONNECT = `
import socket, sys
try:
  socket.create_connection(('10.244.0.3', int(sys.argv[1])), 30)
  print('connected')
except ConnectionRefusedError: print('refused')
`

let node: RunningNode | undefined
let gateway: RunningGateway | undefined

/** A pod behind a veth, an uplink, and at its other end a VXLAN device that the pods' subnet reaches. */
function build(family: 4 | 6 = 4, mtu = 1600): void {
  remove()
  for (const name of NAMES) createNamespace(name)
  const quiet = (name: string) => `link set ${name} addrgenmode none up`
  ipBatch([`link add eth0 netns ${POD} address ${POD_MAC} type veth peer name veth0 netns ${NODE}`])
  ipBatch([`link add uplink netns ${NODE} mtu ${mtu} type veth peer name eth0 netns ${ENDPOINT} mtu ${mtu}`])
  ipBatch([`link add eth0 netns ${PEER} type veth peer name veth1 netns ${NODE}`])
  const ports = ['veth0', 'veth1']
  ipBatch(
    [
      'link add cni0 type bridge',
      ...ports.map(port => `link set ${port} master cni0`),
      ...['cni0', 'uplink', ...ports].map(quiet),
    ],
    NODE,
  )
  connectByVxlan({
    pod: POD,
    node: NODE,
    endpoint: ENDPOINT,
    podMac: POD_MAC,
    endpointMac: ENDPOINT_MAC,
    vni: VNI,
    family,
  })
  ipBatch(['address add 10.244.0.3/24 dev eth0', 'address add fd00:244::3/64 dev eth0 nodad', quiet('eth0')], PEER)
  // NB: a veth leaves checksums to a wire that never comes, and AF_XDP shows packets as they were sent.
  ethtool(ENDPOINT, '-K', 'eth0', 'tx', 'off')
}

function remove(): void {
  for (const name of NAMES) deleteNamespace(name)
}

const ethtool = (namespace: string, ...args: string[]) =>
  inNamespace(namespace, () => execFileSync('ethtool', args, { encoding: 'utf8' }))

/** What AF_XDP changes on an uplink and at its other end. */
const look = () => [
  ip(['-d', 'link', 'show', 'uplink'], NODE).replaceAll(/NO-CARRIER,|state \w+/g, ''),
  ethtool(NODE, '-k', 'uplink'),
  ethtool(ENDPOINT, '-k', 'eth0'),
]

function options(family: 4 | 6 = 4, workers = 1, profile = 'vxlan') {
  const [local, remote] = family === 4 ? ['10.99.0.1', '10.99.0.2'] : ['fd00:99::1', 'fd00:99::2']
  const tunnel = { profile, vni: VNI, local, remote }
  // A worker may wait for a processor for long, and that is no fault here.
  const config = configSchema.parse({ tunnel, workers, heartbeatLimitMs: 10_000, rungs: { offload: 'af-xdp' } })
  const pods = [{ id: POD, namespace: POD }]
  // A kernel endpoint does not return probes.
  return { config, namespace: NODE, uplink: 'uplink', pods, probe: { intervalMs: 0, limitMs: 0 } }
}

function stage(name: string): StageCounters {
  const found = node?.source.counters()[0].stages.find(each => each.name === name)
  if (found === undefined) throw new Error(`no stage ${name}`)
  return found
}

/** Puts somebody's program on the uplink; returns what takes it off. */
function occupy(): () => void {
  const other = loadXdp('somebody', new Assembler().exit(XDP_PASS).assemble())
  const link = inNamespace(NODE, () => must(attachXdp(other, interfaceIndex('uplink'), 'native'), 'link', 'uplink'))
  return () => {
    close(link)
    close(other)
  }
}

/** Starts a node where there was one: on a busy machine the kernel takes its time to let go of a queue. */
async function startAgain(): Promise<void> {
  const end = performance.now() + 60_000
  while (node === undefined) {
    node = await startNode(options()).catch(error => {
      if (!/another AF_XDP socket/.test(error.message) || performance.now() > end) throw error
      return undefined
    })
  }
}

async function until(holds: () => boolean): Promise<void> {
  for (const end = performance.now() + 60_000; !holds(); ) {
    if (performance.now() > end) throw new Error('it never came to be')
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

describe.skipIf(missing !== '')(title('AF_XDP as the whole underlay'), () => {
  afterEach(async () => {
    await node?.stop()
    await gateway?.stop()
    node = undefined
    gateway = undefined
    remove()
  })

  for (const family of [4, 6] as const)
    it(`exchanges TCP and UDP both ways with the kernel VXLAN device over IPv${family}, and leaves no trace`, async () => {
      build(family)
      const before = look()
      const log: string[] = []
      node = await startNode({ ...options(family), log: line => log.push(line) })
      expect(log).toContain('underlay uplink: offload rung af-xdp, attached by AF_XDP (copy, native)')
      const [row] = await node.source.underlay()
      expect(row).toMatchObject({ device: 'xdp:uplink', rung: 'af-xdp', capabilities: ['copy', 'native'] })
      expect(ip(['link', 'show', 'uplink'], NODE)).toMatch(/prog\/xdp id/)
      for (const address of ['10.244.0.9', 'fd00:244::9']) {
        const there = new Probe(POD, ENDPOINT, address, 7001)
        const back = new Probe(ENDPOINT, POD, address.replace(/9$/, '2'), 7001)
        expect(there.send()).toBe(true)
        there.close()
        back.close()
        expect(await transfer(POD, ENDPOINT, address, '-n', '150M')).toBeGreaterThan(0)
        expect(await transfer(POD, ENDPOINT, address, '-R', '-n', '150M')).toBeGreaterThan(0)
      }
      for (const [counter, where] of [
        ['TcpInCsumErrors', POD],
        ['TcpInCsumErrors', ENDPOINT],
        ['UdpInCsumErrors', ENDPOINT],
      ])
        expect(await runIn(where, 'nstat', '-asz', counter)).toMatch(new RegExp(`${counter} +0 `))
      await node.stop()
      expect(stage('xdp uplink:0').row[COLUMN.OUT_PACKETS]).toBeGreaterThan(100_000)
      expect(stage('xdp uplink:0').row[COLUMN.IN_PACKETS]).toBeGreaterThan(100_000)
      expect(stage('encap').drops() + stage('decap').drops()).toBe(0)
      // The kernel's device says things of its own, which belong to no flow.
      const restore = stage('restore')
      expect(restore.drops()).toBe(restore.drops(DROP.UNKNOWN_FLOW) + restore.drops(DROP.UNKNOWN_ATTACHMENT))
      // What came as single packets went to the pod as super-packets.
      const toPod = stage(`tap ${POD}:dt-eth0`).row
      expect(toPod[COLUMN.OUT_PACKETS]).toBeGreaterThan(2 * toPod[COLUMN.CALLS])
      expect(toPod[COLUMN.COPIED_BYTES]).toBe(0)
      node = undefined
      expect(look()).toEqual(before)
    })

  it('finds the next hop by itself, drops what comes before with a reason, and keeps it confirmed', async () => {
    build()
    await runIn(NODE, 'sysctl', '-w', 'net.ipv4.neigh.uplink.delay_first_probe_time=1')
    ip(['link', 'set', 'eth0', 'arp', 'off'], ENDPOINT)
    ip(['neighbor', 'flush', 'dev', 'uplink'], NODE)
    const log: string[] = []
    node = await startNode({ ...options(), log: line => log.push(line) })
    expect(log).toContain('the next hop toward 10.99.0.2 does not answer: packets are dropped until it does')
    const probe = new Probe(POD, ENDPOINT, '10.244.0.9', 7001)
    expect(probe.send(100)).toBe(false)
    await until(() => stage('encap').drops(DROP.NEXT_HOP) > 0)
    expect(stage('xdp uplink:0').row[COLUMN.OUT_PACKETS]).toBe(0)
    ip(['link', 'set', 'eth0', 'arp', 'on'], ENDPOINT)
    await until(() => probe.send(100))
    // The kernel sends nothing that way, and yet confirms what it knows.
    const state = () => ip(['neighbor', 'show', '10.99.0.2', 'dev', 'uplink'], NODE)
    ip(['neighbor', 'change', '10.99.0.2', 'dev', 'uplink', 'nud', 'stale'], NODE)
    await until(() => /REACHABLE/.test(state()))
    expect(probe.send()).toBe(true)
    probe.close()
  })

  it('refuses what it cannot carry or share, says what to do, and leaves nothing behind', async () => {
    build(4, 9000)
    const refused = () => startNode(options())
    await expect(refused()).rejects.toThrow(/at most 1650 bytes, and its MTU is 9000: "ip link set uplink mtu 1650"/)
    build()
    const before = look()
    const leave = occupy()
    await expect(refused()).rejects.toThrow(/uplink has an XDP program already \(id \d+, somebody\)/)
    leave()
    ethtool(NODE, '-L', 'uplink', 'rx', '2', 'tx', '2')
    await expect(refused()).rejects.toThrow(/receives by 2 queues: .* as many workers; ask for 2, or set 1 queues/)
    ethtool(NODE, '-L', 'uplink', 'rx', '1', 'tx', '1')
    expect(look()).toEqual(before)
    await startAgain()
    expect((await node!.source.underlay())[0].rung).toBe('af-xdp')
  })

  for (const workers of [1, 2])
    it(`carries what one pod sends another through a gateway of the same rung, workers ${workers}`, async () => {
      build()
      ipBatch(['link delete vx0'], ENDPOINT)
      ethtool(ENDPOINT, '-K', 'eth0', 'tx', 'on')
      for (const [namespace, name] of [
        [NODE, 'uplink'],
        [ENDPOINT, 'eth0'],
      ])
        ethtool(namespace, '-L', name, 'rx', `${workers}`, 'tx', `${workers}`)
      const before = look()
      gateway = await startGateway({
        ...{ profile: 'geneve', address: '10.99.0.2', namespace: ENDPOINT, interface: 'eth0', rung: 'af-xdp', workers },
        policy: { default: 'allow', rules: [{ name: 'no-telnet', protocol: 'tcp', ports: [23], action: 'reset' }] },
      })
      const [row] = await gateway.source.underlay()
      expect(row).toMatchObject({ device: 'xdp:eth0', rung: 'af-xdp', capabilities: ['copy', 'native'] })
      node = await startNode({ ...options(4, workers, 'geneve'), probe: { intervalMs: 50, limitMs: 10_000 } })
      await until(() => node?.status().endpointUp === true)
      // 8 streams, so that each worker has some.
      for (const address of ['10.244.0.3', 'fd00:244::3']) {
        expect(await transfer(POD, PEER, address, '-P', '8', '-n', '60M')).toBeGreaterThan(0)
        expect(await transfer(POD, PEER, address, '-P', '8', '-R', '-n', '60M')).toBeGreaterThan(0)
      }
      const listening = inNamespace(PEER, () =>
        spawn('/usr/bin/python3', ['-c', LISTEN], { stdio: ['ignore', 'pipe', 'inherit'] }),
      )
      await said(listening.stdout, 'listening')
      const connect = (port: number) => runIn(POD, '/usr/bin/python3', '-c', CONNECT, `${port}`)
      try {
        expect(await connect(24)).toBe('connected\n')
        expect(await connect(23)).toBe('refused\n')
      } finally {
        listening.kill()
      }
      await node.stop()
      await gateway.stop()
      // A device's ring may be full on a busy machine, which is counted as that.
      for (const { stages } of gateway.source.counters())
        for (const each of stages)
          expect(each.drops(), each.name).toBe(
            each.name === 'inspect'
              ? each.drops(DROP.RESET)
              : each.name.includes(' ')
                ? each.drops(DROP.DEVICE_FULL)
                : 0,
          )
      for (const name of ['decap', 'encap', 'restore']) expect(stage(name).drops(), name).toBe(0)
      for (const pod of [POD, PEER])
        for (const counter of ['TcpInCsumErrors', 'UdpInCsumErrors'])
          expect(await runIn(pod, 'nstat', '-asz', counter)).toMatch(new RegExp(`${counter} +0 `))
      node = gateway = undefined
      expect(look()).toEqual(before)
    })

  it('says that an uplink that was made anew needs a restart, and then works', async () => {
    build()
    node = await startNode(options())
    ip(['link', 'delete', 'uplink'], NODE)
    const alarm = () => node?.alarms().find(({ name }) => name === 'uplink uplink')
    await until(() => /is gone/.test(alarm()?.text ?? ''))
    ipBatch([`link add uplink netns ${NODE} mtu 1600 type veth peer name eth0 netns ${ENDPOINT} mtu 1600`])
    ipBatch(['address add 10.99.0.1/24 dev uplink', 'link set uplink up'], NODE)
    ipBatch(['address add 10.99.0.2/24 dev eth0', 'link set eth0 up'], ENDPOINT)
    ethtool(ENDPOINT, '-K', 'eth0', 'tx', 'off')
    await until(() => /was made anew, .*: restart the node/.test(alarm()?.text ?? ''))
    await node.stop()
    expect(stage('encap').drops()).toBe(stage('encap').drops(DROP.NEXT_HOP))
    node = await startNode(options())
    const probe = new Probe(POD, ENDPOINT, '10.244.0.9', 7001)
    await until(() => probe.send(100))
    probe.close()
  })

  it('leaves the uplink as found when it is killed', async () => {
    build()
    const before = look()
    const child = spawn(process.execPath, [program('xdp-underlay-child'), NODE, 'uplink', POD], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const gone = new Promise(resolve => child.once('close', resolve))
    await said(child.stdout, 'ready')
    expect(ip(['link', 'show', 'uplink'], NODE)).toMatch(/prog\/xdp id/)
    expect(look()).not.toEqual(before)
    child.kill('SIGKILL')
    await gone
    await until(() => JSON.stringify(look()) === JSON.stringify(before))
    await startAgain()
    const probe = new Probe(POD, ENDPOINT, '10.244.0.9', 7001)
    await until(() => probe.send(100))
    probe.close()
  })
})
