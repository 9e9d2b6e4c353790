// A node in the form of AWS's load balancer, against an appliance in Python that knows nothing of ours.

import { type ChildProcess, spawn } from 'node:child_process'
import { afterEach, describe, expect, it } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { DROP } from '../../src/drop.ts'
import { type RunningNode, startNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { missing, Probe, runIn, title, transfer } from './support.ts'

const [POD, SERVER, NODE, ENDPOINT] = ['pod', 'server', 'node', 'endpoint'].map(role => `dtq1-${role}`)
const MAC = { pod: '02:00:00:00:00:aa', server: '02:00:00:00:00:bb' }
const ADDRESS = { pod: '10.244.0.2', server: '10.244.0.3' }
const SIX = { pod: 'fd00:244::2', server: 'fd00:244::3' }
const SECONDS = 60_000

// What an appliance behind AWS's load balancer does (and its sample handler, less its defects): takes GENEVE off, looks, and sends
// the same GENEVE bytes back with the addresses exchanged. By TAMPER the cookie is another, or the options are left out.
const APPLIANCE = `
import json, socket, struct, sys
tamper, ends = sys.argv[1], sys.argv[2:]
idle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
idle.bind(('10.99.0.2', 6081))
taken = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
flows, seen, bad = {}, 0, []
def total(b):
    b = b + bytes(len(b) % 2)
    s = sum(struct.unpack('!%dH' % (len(b) // 2), b))
    while s > 0xffff: s = (s & 0xffff) + (s >> 16)
    return s
print('ready', flush=True)
while True:
    p = taken.recv(70000)
    ihl = (p[0] & 15) * 4
    sport, dport, length, check = struct.unpack('!HHHH', p[ihl:ihl + 8])
    if dport != 6081: continue
    g = p[ihl + 8:ihl + length]
    words = struct.unpack('!IIIIIIIIII', g[:40])
    if (words[0] >> 16, words[1], words[2], words[5], words[8]) != (0x0800, 0, 0x01080102, 0x01080202, 0x01080301):
        bad.append(g[:40].hex())
    if check and total(p[12:20] + struct.pack('!HH', 17, length) + p[ihl:ihl + length]) != 0xffff: bad.append('checksum')
    inner = g[40:]
    if inner[0] >> 4 == 4:
        h = (inner[0] & 15) * 4
        protocol = inner[9]
        key = sorted([inner[12:16] + inner[h:h + 2], inner[16:20] + inner[h + 2:h + 4]]) if protocol in (6, 17) else None
    else:
        protocol = inner[6]
        key = sorted([inner[8:24] + inner[40:42], inner[24:40] + inner[42:44]]) if protocol in (6, 17) else None
    seen += 1
    if key is not None and inner[:1] and not inner[12:14] == bytes([198, 18]):
        name = (b'|'.join(key) + bytes([protocol])).hex()
        flows.setdefault(name, set()).add(words[9])
    if seen in (1, 10) or seen % 100 == 0 or bad:
        print(json.dumps({'seen': seen, 'flows': len(flows), 'cookies': max(len(c) for c in flows.values()) if flows else 0, 'bad': bad[:3]}), flush=True)
    if tamper == 'cookie': g = g[:36] + struct.pack('!I', words[9] ^ 1) + g[40:]
    if tamper == 'options': g = bytes([0]) + g[1:8] + inner
    udp = struct.pack('!HHHH', sport, dport, 8 + len(g), 0) + g
    ip = struct.pack('!BBHHHBBH', 0x45, p[1], 20 + len(udp), 0, 0x4000, 64, 17, 0) + p[16:20] + p[12:16]
    sender.sendto(ip + udp, (socket.inet_ntoa(p[12:16]), 0))
`

let node: RunningNode | undefined
let appliance: ChildProcess | undefined

const quiet = (name: string) => `link set ${name} addrgenmode none up`

/** A pod and a server on a bridge of the node, and an endpoint at the other end of its uplink. */
function build(uplinkMtu = 1600): void {
  remove()
  for (const name of [POD, SERVER, NODE, ENDPOINT]) createNamespace(name)
  for (const [role, namespace] of [
    ['pod', POD],
    ['server', SERVER],
  ] as const) {
    ipBatch([`link add eth0 netns ${namespace} address ${MAC[role]} type veth peer name ${role} netns ${NODE}`])
    const own = [`address add ${ADDRESS[role]}/24 dev eth0`, `address add ${SIX[role]}/64 dev eth0 nodad`]
    ipBatch([...own, quiet('eth0')], namespace)
  }
  ipBatch([
    `link add uplink netns ${NODE} mtu ${uplinkMtu} type veth peer name eth0 netns ${ENDPOINT} mtu ${uplinkMtu}`,
  ])
  const bridge = [
    'link add cni0 type bridge forward_delay 0',
    'link set pod master cni0',
    'link set server master cni0',
  ]
  const uplink = ['address add 10.99.0.1/24 dev uplink', 'address add fd00:99::1/64 dev uplink nodad']
  ipBatch([...bridge, ...uplink, ...['cni0', 'pod', 'server', 'uplink'].map(quiet)], NODE)
  ipBatch(['address add 10.99.0.2/24 dev eth0', 'address add fd00:99::2/64 dev eth0 nodad', quiet('eth0')], ENDPOINT)
}

function remove(): void {
  for (const name of [POD, SERVER, NODE, ENDPOINT]) deleteNamespace(name)
}

async function start(settings: object, probe = { intervalMs: 0, limitMs: 0 }): Promise<RunningNode> {
  // NB: a veth leaves checksums to a wire that never comes, and the appliance sees what is inside as it was sent.
  await runIn(NODE, 'ethtool', '-K', 'uplink', 'tx', 'off')
  const tunnel = { profile: 'aws-gwlb', local: '10.99.0.1', remote: '10.99.0.2', settings }
  const rungs = { offload: 'plain', express: 'none' }
  // A worker may wait for a processor for long, and that is no fault here.
  const config = configSchema.parse({ tunnel, heartbeatLimitMs: 10_000, rungs })
  return startNode({ config, namespace: NODE, uplink: 'uplink', pods: [{ id: POD, namespace: POD }], probe })
}

/** One stage's counters, as the worker last published them. */
function stage(running: RunningNode, name: string) {
  const found = running.source.counters()[0].stages.find(each => each.name === name)
  if (found === undefined) throw new Error(`no stage ${name}`)
  return found
}

/** Starts the appliance; resolves when it is ready, with what it last said of what it saw. */
async function inspectAs(tamper: string): Promise<() => Record<string, unknown>> {
  const child = inNamespace(ENDPOINT, () =>
    spawn('/usr/bin/python3', ['-c', APPLIANCE, tamper], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
  appliance = child
  let out = ''
  await new Promise<void>(resolve =>
    child.stdout.on('data', data => {
      out += data
      if (out.includes('ready')) resolve()
    }),
  )
  return () =>
    JSON.parse(
      out
        .slice(0, out.lastIndexOf('}') + 1)
        .split('\n')
        .at(-1) ?? '{}',
    )
}

describe.skipIf(missing !== '')(title('a node in the form of a cloud'), () => {
  afterEach(async () => {
    await node?.stop()
    node = undefined
    if (appliance !== undefined) {
      const gone = new Promise(resolve => appliance?.once('close', resolve))
      appliance.kill('SIGKILL')
      await gone
      appliance = undefined
    }
    remove()
  })

  it(
    'aws-gwlb and an appliance: both directions, both IP versions, one cookie a flow',
    async () => {
      build()
      const said = await inspectAs('nothing')
      const ids = { endpointId: '0123456789abcdef', attachmentId: 'fedcba9876540000' }
      node = await start(ids, { intervalMs: 100, limitMs: 5000 })
      for (const address of [ADDRESS.server, SIX.server]) {
        expect(await transfer(POD, SERVER, address, '-n', '5M')).toBeGreaterThan(0)
        expect(
          await transfer(SERVER, POD, address === ADDRESS.server ? ADDRESS.pod : SIX.pod, '-n', '5M'),
        ).toBeGreaterThan(0)
      }
      expect(said()).toMatchObject({ cookies: 1, bad: [] })
      expect(said().flows).toBeGreaterThanOrEqual(8)
      await node.stop()
      expect(stage(node, 'restore').row[2]).toBeGreaterThan(1000)
      node = undefined
    },
    2 * SECONDS,
  )

  it.each(['cookie', 'options'])(
    'aws-gwlb: what comes back with another %s does not reach the pod',
    async tamper => {
      build()
      await inspectAs(tamper)
      const running = await start({})
      node = running
      ipBatch([`neighbor replace ${ADDRESS.server} lladdr ${MAC.server} dev eth0`], POD)
      const probe = new Probe(POD, SERVER, ADDRESS.server, 7777)
      // The first may be lost while neighbours are found.
      for (let i = 0; i < 5; i++) expect(probe.send(200)).toBe(false)
      // The appliance answers when it comes to it.
      const stopped = () => stage(running, 'restore').drops(DROP.FLOW_COOKIE)
      for (let i = 0; i < 100 && stopped() === 0; i++) {
        expect(probe.send(200)).toBe(false)
        await new Promise(resolve => setTimeout(resolve, 50))
      }
      probe.close()
      await node.stop()
      expect(stopped()).toBeGreaterThan(0)
      node = undefined
    },
    2 * SECONDS,
  )
})
