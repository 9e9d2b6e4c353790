// Every packet is accounted for in three places that must agree: what `detour trace` tells of it, what `detour show drops` counts,
// and what Prometheus reads.

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type ControlClient, connectControl } from '../../src/control/client.ts'
import { type FlowLine, type FlowLog, openFlowLog } from '../../src/control/flow-log.ts'
import { type ControlServer, serveControl } from '../../src/control/socket.ts'
import type { TraceQuery, TraceRow } from '../../src/control/source.ts'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { type MetricsServer, startMetrics } from '../../src/node/metrics.ts'
import type { RunningNode } from '../../src/node/node.ts'
import { inNamespace, ip } from '../../src/os/netns.ts'
import { buildCluster, type Cluster, type Pod, until } from './cluster.ts'
import { missing, runIn, title } from './support.ts'

/** Datagrams of so many bytes from one port, a given one or any (0), or one each from as many ports; their size is no matter of path MTU. */
const SEND = `
import socket, sys
to, port, count, size, ports, source = sys.argv[1], *map(int, sys.argv[2:])
for i in range(ports):
  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
  s.bind(('', source))
  s.setsockopt(socket.IPPROTO_IP, 10, 3)
  for j in range(count): s.sendto(bytes(size), (to, port))
`

/** Takes datagrams, so that no ICMP comes back. */
const SINK = `
import socket, sys, time
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for port in sys.argv[1:]]
for s, port in zip(sockets, sys.argv[1:]): s.bind(('', int(port)))
print('ready', flush=True)
while True: time.sleep(1000)
`

/** Datagrams from an address that is another's; what the gate drops, the sender is told of. */
const SPOOF = `
from scapy.all import *
packet = Ether(src=sys.argv[1], dst='02:00:00:00:00:99')/IP(src='10.244.0.200', dst='10.99.0.100')/UDP(sport=1, dport=9)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
for i in range(6):
  try: s.send(bytes(packet))
  except OSError as error: assert error.errno == 105
`

/** What an endpoint might send a pod unasked, in GENEVE. */
const UNASKED = `
from scapy.all import *
inner = Ether(src='02:00:00:00:00:99', dst=sys.argv[1])/IP(src='10.99.0.100', dst=sys.argv[2])/UDP(sport=7, dport=4444)/b'unasked'
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[3], 0))
for i in range(3): s.sendto(bytes.fromhex('0000655800004d00') + bytes(inner), (sys.argv[4], 6081))
`

const QUOTA = 16

describe.skipIf(missing !== '')(title('every packet is explicable'), () => {
  const directory = mkdtempSync(join(tmpdir(), 'detour-explicable-'))
  const flowFile = join(directory, 'flows.jsonl')
  let cluster: Cluster
  let pod: Pod
  let node: RunningNode
  let gateway: RunningGateway
  let control: ControlServer
  let client: ControlClient
  let metrics: MetricsServer
  let flowLog: FlowLog
  let sink: ChildProcess

  beforeAll(async () => {
    cluster = buildCluster('dto', 1, 1)
    pod = cluster.nodes[0].pods[0]
    ip(['link', 'set', 'p0', 'mtu', '1600'], cluster.nodes[0].namespace)
    ip(['link', 'set', 'eth0', 'mtu', '1600'], pod.namespace)
    const { namespace, address } = cluster.gateways[0]
    gateway = await startGateway({ profile: 'geneve', address, namespace, interface: 'eth0', policy: ALLOW_ALL })
    const ports = ['9', '10', '11', '5353']
    sink = inNamespace(cluster.outside.namespace, () =>
      spawn('python3', ['-c', SINK, ...ports], { stdio: ['ignore', 'pipe', 'inherit'] }),
    )
    await new Promise(resolve => sink.stdout?.once('data', resolve))
    flowLog = openFlowLog(flowFile)
    node = await cluster.nodes[0].start(
      {
        failMode: 'closed',
        pods: { flows: QUOTA },
        // None ends before its time.
        flows: { otherTimeoutSeconds: 3600 },
        bypass: [{ name: 'mdns', cidr: '10.99.0.100/32', protocol: 'udp', port: 5353 }],
      },
      { flowLog, probe: { intervalMs: 20, limitMs: 2000 } },
    )
    control = await serveControl(node.source, { path: join(directory, 'node.sock') })
    client = await connectControl(control.path)
    metrics = await startMetrics(node.source, {
      ...{ listen: '127.0.0.1:0', heartbeatLimitMs: 60_000, ready: () => ({ ok: true, text: '' }), log: () => {} },
    })
    await until(() => node.status().probesAnswered > 0, 'a probe comes back')
  })
  afterAll(async () => {
    sink?.kill('SIGKILL')
    client?.close()
    await metrics?.close()
    await control?.close()
    await node?.stop()
    flowLog?.close()
    await gateway?.stop()
    cluster?.remove()
    rmSync(directory, { recursive: true, force: true })
  })

  const send = (port: number, count: number, size = 32, ports = 1, source = 0) => {
    const numbers = [port, count, size, ports, source].map(String)
    return runIn(pod.namespace, 'python3', '-c', SEND, cluster.outside.address, ...numbers)
  }
  /** The same flow each time, however often: a pod may have but a few. */
  const sendAgain = (count: number) => send(5353, count, 32, 1, 4000)

  /** What `detour show drops` says of a reason, at all stages. */
  async function shown(reason: string): Promise<number> {
    const { rows } = await client.ask('drops', {})
    return rows.filter(row => row.reason === reason).reduce((sum, row) => sum + row.packets, 0)
  }

  /** The sum of a metric's samples with these labels. */
  async function scraped(name: string, ...labels: string[]): Promise<number> {
    const page = await (await fetch(`http://${metrics.address}/metrics`)).text()
    const lines = page.split('\n').filter(line => line.startsWith(`${name}{`) && labels.every(l => line.includes(l)))
    return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
  }

  /** What is told of the packets that match while something is done, once there are so many. */
  async function traced(query: Partial<TraceQuery>, count: number, act: () => Promise<unknown>): Promise<TraceRow[]> {
    const all = { attachment: pod.namespace, count, limitMs: 20_000, ...query }
    const { session } = await client.ask('trace', { session: 0, query: all, stop: false })
    await act()
    const rows: TraceRow[] = []
    for (;;) {
      const page = await client.ask('trace', { session, stop: false })
      rows.push(...page.rows)
      if (page.ended !== '') {
        expect([page.ended, page.lost]).toEqual(['all packets that were asked for', 0])
        return rows
      }
      await new Promise(resolve => setTimeout(resolve, 10))
    }
  }

  /** Counts of drops of a reason before something is done, and how many more there are now in both places. */
  async function drops(reason: string) {
    const label = `reason="${reason}"`
    const before = [await shown(reason), await scraped('detour_dropped_packets_total', label)]
    return async (more: number) => {
      await until(async () => (await shown(reason)) >= before[0] + more, `${more} ${reason}`)
      const now = [await shown(reason), await scraped('detour_dropped_packets_total', label)]
      expect(now.map((n, i) => n - before[i])).toEqual([more, more])
    }
  }

  const lastSteps = (rows: TraceRow[]) => rows.map(({ steps }) => [steps.at(-1)?.stage, steps.at(-1)?.reason])

  test('steered, returned', async () => {
    const before = await scraped('detour_stage_packets_total', 'stage="encap"', 'direction="out"')
    const rows = await traced({ port: 9 }, 10, () => send(9, 5))
    const ways = (leg: string) => rows.filter(row => row.leg === leg)
    expect(ways('toward').map(({ verdict }) => verdict)).toEqual(Array(5).fill('steer'))
    expect(ways('return').map(({ verdict }) => verdict)).toEqual(Array(5).fill('deliver'))
    const [first] = ways('toward')
    expect(first.steps.map(({ stage, outcome }) => `${stage} ${outcome}`)).toEqual([
      ...['receive on', 'classify on', 'decide on', 'fit on', 'encap on', 'send sent'],
    ])
    expect(first.steps[2].text).toBe('new flow, no rule: steered by default')
    expect(first.steps[4].text).toBe(cluster.gateways[0].address)
    // Probes are encapsulated, too.
    const now = () => scraped('detour_stage_packets_total', 'stage="encap"', 'direction="out"')
    await until(async () => (await now()) >= before + 5, 'five are encapsulated')
  })

  test('passed by a bypass rule', async () => {
    const passed = () => scraped('detour_bypassed_packets_total', 'stage="decide"', 'reason="rule"')
    const before = await passed()
    const rows = await traced({ port: 5353 }, 4, () => send(5353, 4))
    expect(rows.map(({ verdict }) => verdict)).toEqual(Array(4).fill('pass'))
    expect(rows.map(({ steps }) => steps.at(-1)?.text)).toEqual([
      'new flow, bypass rule mdns',
      ...Array(3).fill('known flow, bypass rule mdns'),
    ])
    await until(async () => (await passed()) === before + 4, 'four have passed')
  })

  test('too big for the tunnel', async () => {
    const more = await drops('too-big')
    const rows = await traced({ port: 10 }, 3, () => send(10, 3, 1560))
    expect(lastSteps(rows)).toEqual(Array(3).fill(['fit', 'too-big']))
    await more(3)
  })

  /** Runs `detour trace` while something is done again and again: it may take a while until it listens. */
  async function command(args: string[], act: () => Promise<unknown>): Promise<{ out: string; err: string }> {
    const child = spawn(process.execPath, ['dist/src/cli/main.js', 'trace', '--socket', control.path, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let [out, err] = ['', '']
    child.stdout.on('data', data => (out += data))
    child.stderr.on('data', data => (err += data))
    let status: number | undefined
    child.once('close', code => (status = code ?? -1))
    while (status === undefined) await act()
    expect(status).toBe(0)
    return { out, err }
  }

  test('detour trace prints packets with their stages', async () => {
    const { out, err } = await command(['--count', '2', '--filter', 'port=5353'], () => sendAgain(2))
    expect(err).toBe('2 packets, ended: all packets that were asked for\n')
    const lines = out.trimEnd().split('\n')
    expect(lines).toHaveLength(4)
    expect(lines[0]).toMatch(/^[\d:.]{15} dto-pod0-0 > IP 10\.244\.0\.2\.\d+ > 10\.99\.0\.100\.5353: UDP, length 32$/)
    expect(lines[1]).toMatch(/^ {4}receive ok \| classify ok \| decide PASSED \((new|known) flow, bypass rule mdns\)$/)
  })

  test('detour trace --json: an object a line; what the kernel stopped is told at the end otherwise', async () => {
    const { out } = await command(['--count', '3', '--json', '--filter', 'port=5353'], () => sendAgain(1))
    const rows = out
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    expect(rows).toHaveLength(3)
    expect(rows[0]).toMatchObject({ attachment: pod.namespace, leg: 'toward', verdict: 'pass', length: 74 })
    expect(rows[0].packet).toContain('10.99.0.100.5353: UDP, length 32')
    const spoofing = ['--count', '3', '--filter', 'port=5353', '--attachment', pod.namespace]
    const { err } = await command(spoofing, async () => {
      await runIn(pod.namespace, '/usr/bin/python3', '-c', SPOOF, pod.mac)
      await sendAgain(1)
    })
    expect(err).toMatch(/\nthe kernel stopped \d+ before any stage: spoofed-address \(the pod sent from/)
  })

  test('what an endpoint sends unasked', async () => {
    const more = await drops('unknown-flow')
    const { namespace, address } = cluster.gateways[0]
    const args = [pod.mac, pod.four, address, cluster.nodes[0].address]
    const rows = await traced({ verdict: 'drop' }, 3, () =>
      runIn(namespace, '/usr/bin/python3', '-c', UNASKED, ...args),
    )
    expect(lastSteps(rows)).toEqual(Array(3).fill(['restore', 'unknown-flow']))
    expect(rows[0]).toMatchObject({ leg: 'return', attachment: pod.namespace, verdict: 'drop' })
    await more(3)
  })

  test('spoofed: the kernel stops it before any stage, and tells', async () => {
    const more = await drops('spoofed-address')
    await runIn(pod.namespace, '/usr/bin/python3', '-c', SPOOF, pod.mac)
    await more(6)
  })

  test('one client at a time, and a query that makes no sense is refused', async () => {
    const query = { count: 1, limitMs: 20_000 }
    const { session } = await client.ask('trace', { session: 0, query, stop: false })
    await expect(client.ask('trace', { session: 0, query, stop: false })).rejects.toThrow(/another client traces/)
    expect((await client.ask('trace', { session, stop: true })).ended).toBe('stopped')
    const bad = (more: object) => client.ask('trace', { session: 0, query: { ...query, ...more }, stop: false })
    await expect(bad({ attachment: 'nobody' })).rejects.toThrow(/attachment nobody is not there; see detour show/)
    await expect(bad({ address: '10.0.0.0/8' })).rejects.toThrow(/no IP address/)
    await expect(client.ask('trace', { session: 0, stop: false })).rejects.toThrow(/begins with what/)
  })

  test('more flows than a pod may have', async () => {
    const more = await drops('flow-quota')
    const refused = await scraped('detour_flows_refused_total')
    const rows = await traced({ port: 11, verdict: 'drop' }, 4, async () => {
      const { total } = await client.ask('flows', { limit: 1, order: 'bytes' })
      await send(11, 1, 32, QUOTA - total + 4)
    })
    expect(lastSteps(rows)).toEqual(Array(4).fill(['decide', 'flow-quota']))
    await more(4)
    expect(await scraped('detour_flows_refused_total')).toBe(refused + 4)
  })

  test('the endpoint is down', async () => {
    await gateway.stop()
    await until(() => !node.status().endpointUp, 'the endpoint is found to be down')
    const more = await drops('endpoint-down')
    const rows = await traced({ port: 9 }, 3, () => send(9, 3))
    expect(lastSteps(rows).map(([stage]) => stage)).toEqual(Array(3).fill('decide'))
    await more(rows.filter(({ steps }) => steps.at(-1)?.reason === 'endpoint-down').length)
  })

  test('the flow log has each flow once, begun and ended', async () => {
    await node.stop()
    const lines = readFileSync(flowFile, 'utf8').trimEnd().split('\n')
    const all = lines.map(line => JSON.parse(line) as FlowLine)
    const [steered] = all.filter(({ destinationPort }) => destinationPort === 9)
    expect(steered).toEqual({
      ...{ event: 'start', time: expect.stringMatching(/^\d{4}-.*Z$/), attachment: pod.namespace, protocol: 'udp' },
      ...{ source: pod.four, sourcePort: expect.any(Number) },
      ...{ destination: cluster.outside.address, destinationPort: 9, verdict: 'steer' },
      endpoint: cluster.gateways[0].address,
    })
    const end = all.find(({ event, sourcePort }) => event === 'end' && sourcePort === steered.sourcePort)
    expect(end).toMatchObject({ reason: 'stopped', verdict: 'steer', sentPackets: 5, sentBytes: 5 * 74 })
    const key = ({ source, sourcePort, destinationPort }: FlowLine) => `${source} ${sourcePort} ${destinationPort}`
    const keys = (event: string) => all.filter(line => line.event === event).map(key)
    expect(keys('end').sort()).toEqual(keys('start').sort())
    expect(Math.abs(Date.parse(steered.time) - Date.now())).toBeLessThan(600_000)
  })
})
