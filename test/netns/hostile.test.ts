// A hostile pod: every malformed and forged frame of fixtures/hostile ends at one counted place, and the other pods go on.

import { type ChildProcess, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { DROP, DROP_COUNT, dropName } from '../../src/drop.ts'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { COLUMN } from '../../src/memory/counters.ts'
import type { RunningNode } from '../../src/node/node.ts'
import { inNamespace } from '../../src/os/netns.ts'
import { buildCluster, type Cluster, stagesOf, until } from './cluster.ts'
import { missing, runIn, title } from './support.ts'

const fixture = (name: string) => new URL(`../../fixtures/hostile/${name}`, import.meta.url)

/** Sends frames out of an interface: lines of a protocol for the socket's address and hexadecimal; answers each by what send(2) made of it. */
const SEND = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
for line in sys.stdin:
  protocol, data = line.split()
  try: print(s.sendto(bytes.fromhex(data), (sys.argv[1], int(protocol))), flush=True)
  except OSError as error: print(error.strerror, flush=True)
`

class Sender {
  private readonly child: ChildProcess
  private answer: (line: string) => void = () => {}

  constructor(namespace: string, name = 'eth0') {
    this.child = inNamespace(namespace, () =>
      spawn('/usr/bin/python3', ['-c', SEND, name], { stdio: ['pipe', 'pipe', 'inherit'] }),
    )
    this.child.stdout?.on('data', data => this.answer(`${data}`.trim()))
  }

  send(frame: Uint8Array, protocol = 0): Promise<string> {
    return new Promise(resolve => {
      this.answer = resolve
      this.child.stdin?.write(`${protocol} ${Buffer.from(frame).toString('hex')}\n`)
    })
  }

  end(): Promise<void> {
    return new Promise(resolve => {
      this.child.once('close', () => resolve())
      this.child.stdin?.end()
    })
  }
}

function frames(): { name: string; frame: Uint8Array }[] {
  const names = JSON.parse(readFileSync(fixture('names.json'), 'utf8')) as string[]
  const file = readFileSync(fixture('hostile.pcap'))
  let at = 24
  return names.map(name => {
    const length = file.readUInt32LE(at + 8)
    const frame = Uint8Array.from(file.subarray(at + 16, at + 16 + length))
    at += 16 + length
    return { name, frame }
  })
}

/** Where each frame ends, by stage and reason; on the link where a neighbour is meant, or no IP is in it. All others reach the gateway and come back. */
const ENDS: Record<string, string[]> = {
  link: [
    ...['LLC', 'LLDP', 'jumbo type', 'PPPoE session with IPv4', 'MPLS with IPv4', 'RARP'],
    ...['ARP', 'ARP probe', 'ARP of another size'],
    ...['neighbour solicitation', 'neighbour solicitation to one of the link', 'neighbour advertisement'],
    ...['duplicate address detection', 'router solicitation'],
  ],
  'classify passed': ['DHCP', 'MLD report'],
  'gate spoofed-mac': [
    ...['group source address', 'source address of nobody', 'source address of a stranger'],
    'ARP with the hardware address of a stranger',
  ],
  'gate spoofed-address': [
    ...['priority tag', 'VLAN tag', 'service tag', 'three tags', 'tag cut off'],
    ...['ARP for a stranger', 'ARP cut off'],
    ...[
      'of a stranger',
      'of its destination (land)',
      '127.0.0.1',
      'of a group',
      '255.255.255.255',
      '0.0.0.0 to one',
    ].map(source => `IPv4 source ${source}`),
    ...['IPv4 source of the endpoint', "the node's own probe", 'IPv6 header alone of a stranger'],
    ...['of a stranger', '::1', '::', 'of a group', 'of its IPv4 address, mapped', 'of a stranger on the link'].map(
      source => `IPv6 source ${source}`,
    ),
    ...['neighbour solicitation of a stranger', 'neighbour advertisement for a stranger'],
    ...['neighbour advertisement cut off', 'router advertisement', 'redirect'],
  ],
  'classify ipv4-truncated': [
    ...['no more than an Ethernet header', 'Ethernet header and one byte', 'IPv4 cut off in its header'],
  ],
  'classify ipv4-version': ['IPv4 version 5', 'IPv4 version 6 in the IPv4 type'],
  'classify ipv4-header-length': ['IPv4 header length 0', 'IPv4 header length 16'],
  'classify ipv4-total-length': [
    ...['IPv4 total length 0', 'IPv4 total length 19', 'IPv4 total length beyond the packet'],
    ...['IPv4 cut off behind its header', 'TCP cut off'],
  ],
  'classify ipv6-truncated': ['IPv6 type without a header', 'IPv6 cut off in its header'],
  'classify ipv6-version': ['IPv6 version 4 in the IPv6 type', 'IPv6 version 7'],
  'classify ipv6-payload-length': ['IPv6 payload length beyond the packet'],
  'classify ipv6-extension': [
    ...['two hop-by-hop headers', 'hop-by-hop behind another', 'jumbo payload', 'sixty destination options headers'],
    ...['extension header cut off', 'extension header longer than the packet', 'IPv6 fragment in a fragment'],
    'IPv6 fragment that ends in its extension headers',
  ],
  'classify udp-truncated': [
    ...['fragment without data', 'UDP cut off', 'IPv6 payload length 0', 'IPv6 payload length short'],
  ],
  'classify udp-length': [
    ...['IPv4 header length beyond the packet', 'IPv4 total length short'],
    ...['UDP length 0', 'UDP length 7', 'UDP length beyond the packet'],
  ],
  'classify tcp-header-length': ['0', '4', 'beyond the packet'].map(offset => `TCP data offset ${offset}`),
  'classify icmp-truncated': ['ICMP cut off'],
  'fit too-big': ['a packet larger than the tunnel carries', 'the same over IPv6'],
}

/** Sends what a line of hexadecimal says as fast as it can, each time from another UDP port. */
const FLOOD = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
frame = bytearray.fromhex(sys.argv[1])
n = 0
while True:
  n += 1
  frame[34:36] = (n & 65535).to_bytes(2, 'big')
  frame[36:38] = (n >> 16 & 65535).to_bytes(2, 'big')
  try: s.send(frame)
  except OSError: pass
`

/** Sends 100 echo requests, one after the other, none twice, and prints how many were answered within 5 s. */
const PING = `
import select, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
s.connect((sys.argv[1], 0))
answered = 0
for i in range(100):
  s.send(struct.pack('!BBHHH', 8, 0, 65535 - (0x800 + 77 + i), 77, i))
  while select.select([s], [], [], 5)[0]:
    got = s.recv(2048)[20:]
    if got[0] == 0 and got[4:8] == struct.pack('!HH', 77, i): break
  else: continue
  answered += 1
print(answered)
`

/** What neighbours cause, too. */
const isOfTheLink = (end: string) => /^(link|classify passed)/.test(end)

describe.skipIf(missing !== '')(title('a hostile pod'), () => {
  let cluster: Cluster
  let node: RunningNode
  let gateway: RunningGateway
  let sender: Sender
  const all = frames()
  const named = (name: string) => (all.find(one => one.name === name) as (typeof all)[number]).frame
  const evil = () => cluster.nodes[0].pods[0]
  const good = () => cluster.nodes[0].pods[1]

  beforeAll(async () => {
    cluster = buildCluster('dth-evil', 1, 2)
    // Only the test is to speak in the pod; what is its own, the CNI result says.
    await runIn(evil().namespace, 'sysctl', '-qw', 'net.ipv6.conf.all.disable_ipv6=1')
    const { namespace, address } = cluster.gateways[0]
    gateway = await startGateway({ profile: 'geneve', address, namespace, interface: 'eth0', policy: ALLOW_ALL })
    const own = { id: evil().namespace, namespace: evil().namespace, addresses: ['10.244.0.2/24', 'fd00:244::2/64'] }
    node = await cluster.nodes[0].start({ failMode: 'closed', pods: { flows: 200 } }, { pods: [own] })
    sender = new Sender(evil().namespace)
  })
  afterAll(async () => {
    await sender?.end()
    await node?.stop()
    await gateway?.stop()
    cluster?.remove()
  })

  /** How many frames have ended where. */
  function ends(): Map<string, number> {
    const found = new Map<string, number>()
    const add = (key: string, n: number) => found.set(key, (found.get(key) ?? 0) + n)
    for (const [face, { source }] of [['', node] as const, ['gateway ', gateway] as const]) {
      for (const stage of source.counters().flatMap(({ stages }) => stages)) {
        for (let reason = 1; reason < DROP_COUNT; reason++)
          add(`${face}${stage.name.replace(` ${evil().namespace}`, '')} ${dropName(reason)}`, stage.drops(reason))
      }
    }
    add('classify passed', stagesOf(node, 'classify')[0].row[COLUMN.PASSED])
    add('link', node.attachment(evil().namespace)?.failCounters().link ?? 0)
    const came = stagesOf(gateway, 'decap')[0].row[COLUMN.IN_PACKETS]
    // Back from there, too.
    add('gateway', Math.min(came, stagesOf(node, 'restore')[0].row[COLUMN.OUT_PACKETS]))
    return found
  }

  /** Sends a frame and waits for its end, and that it has no other. What is the link's, neighbours have, too. */
  async function expectEnd(expected: string, frame: Uint8Array, protocol = 0, from = sender): Promise<void> {
    const before = ends()
    await from.send(frame, protocol)
    const changed = () => {
      const now = [...ends()].filter(([key, n]) => n !== (before.get(key) ?? 0))
      return now.map(([key, n]) => `${key} ${n - (before.get(key) ?? 0)}`).filter(key => !isOfTheLink(key))
    }
    if (isOfTheLink(expected)) await until(() => (ends().get(expected) ?? 0) > (before.get(expected) ?? 0), expected)
    else await until(() => changed().length > 0, expected)
    expect(changed()).toEqual(isOfTheLink(expected) ? [] : [`${expected} 1`])
  }

  it('sends every malformed frame there is: each ends in one counted place, or comes back from the gateway', async () => {
    const expected = new Map(Object.entries(ENDS).flatMap(([end, names]) => names.map(name => [name, end])))
    for (const name of expected.keys()) expect(all.map(one => one.name)).toContain(name)
    for (const { name, frame } of all) {
      await expectEnd(expected.get(name) ?? 'gateway', frame).catch(error => {
        throw new Error(`${name}: ${error.message}`)
      })
    }
    // A tunnel of its own is payload: nobody has looked into it.
    const { rows } = await gateway.source.flows({ limit: 5000, order: 'bytes', port: 6081 })
    expect(rows.map(row => [row.source, row.destination])).toEqual(Array(rows.length).fill([evil().four, '10.99.0.2']))
    expect(rows.length).toBeGreaterThan(0)
    const strangers = await gateway.source.flows({ limit: 5000, order: 'bytes', address: '10.244.0.77' })
    expect(strangers.rows).toEqual([])
  })

  it('does not get past the gate by what a raw socket calls its packets', async () => {
    const calls = [0x0003, 0x88b5, 0x0806, 0x0800, 0x86dd, 0x8100]
    for (const protocol of calls) {
      await expectEnd('gateway', named('IPv4, as it should be'), protocol)
      await expectEnd('gateway', named('IPv6, as it should be'), protocol)
      await expectEnd('gate spoofed-address', named('IPv4 source of a stranger'), protocol)
    }
  })

  it('does not get past the gate by the TAP beside its interface', async () => {
    const beside = new Sender(evil().namespace, 'dt-eth0')
    await expectEnd('gate spoofed-mac', named('IPv4, as it should be'), 0, beside)
    await expectEnd('gate spoofed-mac', named('IPv4 source of a stranger'), 0, beside)
    await beside.end()
  })

  it('fills only its own share of the flows, and all pings of another pod are answered while it floods', async () => {
    await node.attach({ id: good().namespace, namespace: good().namespace })
    const hex = Buffer.from(named('UDP without data')).toString('hex')
    const flood = inNamespace(evil().namespace, () =>
      spawn('/usr/bin/python3', ['-c', FLOOD, hex], { stdio: ['ignore', 'ignore', 'inherit'] }),
    )
    const refused = () => stagesOf(node, 'decide')[0].drops(DROP.FLOW_QUOTA)
    try {
      await until(() => refused() > 1000, 'a full quota')
      const before = refused()
      const pings = await runIn(good().namespace, '/usr/bin/python3', '-c', PING, cluster.nodes[0].gateway4)
      expect(pings).toBe('100\n')
      await until(() => refused() > before)
    } finally {
      const gone = new Promise(resolve => flood.once('close', resolve))
      flood.kill('SIGKILL')
      await gone
    }
    const { rows } = await node.source.flows({ limit: 5000, order: 'bytes', attachment: evil().namespace })
    expect(rows).toHaveLength(200)
    expect(stagesOf(node, 'decide')[0].drops(DROP.FLOW_TABLE_FULL)).toBe(0)
  })

  it('leaves the other pods alone when it sends everything at once', async () => {
    const pings = runIn(good().namespace, '/usr/bin/python3', '-c', PING, cluster.nodes[0].gateway4)
    pings.catch(() => {})
    for (let round = 0; round < 20; round++) for (const { frame } of all) await sender.send(frame)
    expect(await pings).toBe('100\n')
    await node.stop()
    const stages = [node, gateway].flatMap(({ source }) => source.counters().flatMap(one => one.stages))
    for (const stage of stages.filter(({ name }) => !/^(tap|xdp|loopback)/.test(name))) {
      const { row } = stage
      expect([stage.name, row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED]]).toEqual([
        stage.name,
        row[COLUMN.OUT_PACKETS] + stage.drops(),
      ])
    }
  })
})
