// The express way of small packets, against the kernel's VXLAN device: who leaves by AF_XDP, in which order, and what happens
// while the next hop is not known.

import { afterEach, describe, expect, it, vi } from 'vitest'
import { configSchema, type ExpressRung } from '../../src/control/config.ts'
import { COLUMN } from '../../src/memory/counters.ts'
import { type RunningNode, startNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, ip, ipBatch } from '../../src/os/netns.ts'
import { missing, runIn, title, transfer } from './support.ts'

const POD = 'dtx-pod'
const NODE = 'dtx-node'
const ENDPOINT = 'dtx-endpoint'
const NAMES = [POD, NODE, ENDPOINT]
const POD_MAC = '02:00:00:00:00:a1'
const FAR_MAC = '02:00:00:00:00:b1'
const PORT = 7001

/** Receives datagrams until one says the given end, and prints how many came, and how many before one that was sent earlier. */
const RECEIVE = `
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
s.bind((sys.argv[1], ${PORT}))
s.settimeout(60)
n = late = last = 0
while True:
  d = s.recv(65536)
  if d == sys.argv[2].encode(): break
  # Of an earlier sender.
  if d[:3] == b'end': continue
  i = int.from_bytes(d[:4], 'big')
  if any(b != i & 255 for b in d[4:]): raise SystemExit('a datagram has other bytes than were sent')
  late += i < last
  last = i
  n += 1
print(n, late)
`
/** Sends datagrams of the given sizes, each of one number, and then the given end; no more than a TAP's queue of 500 holds when the worker does not run for a while. */
const SEND = `
import socket, sys, time
far, end, count, *sizes = sys.argv[1:]
s = socket.socket(socket.AF_INET6 if ':' in far else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 32, 1 << 24)
s.connect((far, ${PORT}))
for i in range(int(count)):
  s.send(i.to_bytes(4, 'big') + bytes([i & 255]) * int(sizes[i % len(sizes)]))
  if i % 50 == 49: time.sleep(0.002)
for i in range(5):
  time.sleep(0.02)
  try: s.send(end.encode())
  except ConnectionRefusedError: break
`

let node: RunningNode | undefined
let senders = 0

const quiet = (name: string) => `link set ${name} addrgenmode none up`

function buildUplink(): void {
  ipBatch([`link add uplink mtu 1600 type veth peer name eth0 netns ${ENDPOINT} mtu 1600`], NODE)
  ipBatch(['address add 10.99.0.1/24 dev uplink', quiet('uplink')], NODE)
  ipBatch(['address add 10.99.0.2/24 dev eth0', quiet('eth0')], ENDPOINT)
}

function build(): void {
  remove()
  for (const name of NAMES) createNamespace(name)
  ipBatch([`link add eth0 netns ${POD} address ${POD_MAC} type veth peer name pod netns ${NODE}`])
  ipBatch([quiet('pod')], NODE)
  buildUplink()
  ipBatch(['address add 10.244.0.2/24 dev eth0', 'address add fd00:244::2/64 dev eth0 nodad', quiet('eth0')], POD)
  ipBatch(
    ['10.244.0.9', 'fd00:244::9'].map(far => `neighbor add ${far} lladdr ${FAR_MAC} dev eth0`),
    POD,
  )
  ipBatch(
    [
      `link add tun0 address ${FAR_MAC} mtu 1500 type vxlan id 77 dstport 4789 local 10.99.0.2 remote 10.99.0.1`,
      ...['address add 10.244.0.9/24 dev tun0', 'address add fd00:244::9/64 dev tun0 nodad', quiet('tun0')],
      ...['10.244.0.2', 'fd00:244::2'].map(own => `neighbor add ${own} lladdr ${POD_MAC} dev tun0`),
    ],
    ENDPOINT,
  )
}

function remove(): void {
  for (const name of NAMES) deleteNamespace(name)
}

async function start(express: ExpressRung): Promise<string[]> {
  build()
  const log: string[] = []
  const tunnel = { profile: 'vxlan', vni: 77, local: '10.99.0.1', remote: '10.99.0.2' }
  node = await startNode({
    config: configSchema.parse({ tunnel, rungs: { express }, heartbeatLimitMs: 5000 }),
    ...{ namespace: NODE, uplink: 'uplink', pods: [{ id: POD, namespace: POD }], log: line => log.push(line) },
    // The kernel's device returns no probes.
    probe: { intervalMs: 0, limitMs: 0 },
  })
  return log
}

/** Packets that a stage has sent by now. */
async function sent(prefix: string): Promise<number> {
  await worked()
  const stages = (node as RunningNode).source.counters().flatMap(({ stages }) => stages)
  return stages.filter(({ name }) => name.startsWith(prefix)).reduce((sum, { row }) => sum + row[COLUMN.OUT_PACKETS], 0)
}

/** Resolves when every worker has taken what there was, looked at what the node tells it, and published: it answers after that. */
const worked = () => (node as RunningNode).reconfigure()

/** Resolves when the workers no longer know a next hop that is gone: the node looks every half second. */
async function forgotten(): Promise<void> {
  await new Promise(resolve => setTimeout(resolve, 1200))
  await worked()
}

/** Resolves when the workers know the next hop, which the kernel finds for what goes by the TAP. */
async function found(): Promise<void> {
  for (const before = await sent('xdp'); (await sent('xdp')) === before; ) await datagrams('10.244.0.9', 1, 20)
}

async function datagrams(far: string, count: number, ...sizes: number[]): Promise<string> {
  const end = `end ${++senders}`
  const received = runIn(ENDPOINT, 'python3', '-c', RECEIVE, far, end)
  received.catch(() => {})
  await listening(far)
  await runIn(POD, 'python3', '-c', SEND, far, end, `${count}`, ...sizes.map(String))
  return (await received).trim()
}

async function listening(address: string): Promise<void> {
  while (
    !(await runIn(ENDPOINT, 'ss', '-Hlun')).includes(`${address.includes(':') ? `[${address}]` : address}:${PORT}`)
  )
    await new Promise(resolve => setTimeout(resolve, 20))
}

afterEach(async () => {
  await node?.stop()
  node = undefined
  remove()
})

describe.skipIf(missing !== '')(title('small packets on their express way'), () => {
  it('takes small UDP over IPv4 and IPv6, whole and in order, and leaves TCP with the TAP', async () => {
    const log = await start('af-xdp')
    expect(log).toContain('small packets leave uplink by AF_XDP')
    await found()
    for (const far of ['10.244.0.9', 'fd00:244::9']) {
      const before = await sent('xdp')
      expect(await datagrams(far, 400, 0, 60, 1000, 1444)).toBe('400 0')
      expect((await sent('xdp')) - before).toBeGreaterThanOrEqual(400)
    }
    const before = await sent('xdp')
    expect(await transfer(POD, ENDPOINT, '10.244.0.9')).toBeGreaterThan(0)
    expect((await sent('xdp')) - before).toBe(0)
    const wrong = await runIn(ENDPOINT, 'nstat', '-asz', 'UdpInCsumErrors', 'Udp6InCsumErrors', 'TcpInCsumErrors')
    expect(wrong).toMatch(/UdpInCsumErrors +0 /)
    expect(wrong).toMatch(/Udp6InCsumErrors +0 /)
    expect(wrong).toMatch(/TcpInCsumErrors +0 /)
  })

  it('keeps the order of a flow whose large datagrams come in fragments', async () => {
    await start('af-xdp')
    await found()
    const before = await sent('xdp')
    expect(await datagrams('10.244.0.9', 240, 40, 4000, 40)).toBe('240 0')
    expect((await sent('xdp')) - before).toBeGreaterThan(240)
  })

  it('sends all by the TAP while the next hop is not known, and takes up again when it is', async () => {
    await start('af-xdp')
    await found()
    ip(['-n', NODE, 'link', 'set', 'uplink', 'down'])
    await forgotten()
    ip(['-n', NODE, 'link', 'set', 'uplink', 'up'])
    // Nothing is known of the neighbour after that, so the first ones ask the kernel.
    expect(await datagrams('10.244.0.9', 100, 20)).toBe('100 0')
    await found()
    const before = await sent('xdp')
    expect(await datagrams('10.244.0.9', 100, 20)).toBe('100 0')
    expect((await sent('xdp')) - before).toBeGreaterThanOrEqual(100)
  })

  it('follows a next hop that changes its address', async () => {
    await start('af-xdp')
    await found()
    ip(['-n', ENDPOINT, 'link', 'set', 'eth0', 'address', '02:00:00:00:00:c7'])
    ip(['-n', NODE, 'neighbor', 'flush', 'dev', 'uplink'])
    await forgotten()
    // Now the kernel is asked again.
    await found()
    const before = await sent('xdp')
    expect(await datagrams('10.244.0.9', 100, 20)).toBe('100 0')
    expect((await sent('xdp')) - before).toBeGreaterThanOrEqual(100)
  })

  it('takes them again when the uplink is deleted and made anew, again and again', async () => {
    const log = await start('af-xdp')
    for (let times = 1; times <= 3; times++) {
      ip(['-n', NODE, 'link', 'delete', 'uplink'])
      // What is sent meanwhile is lost, and its frames with the socket if that gave none back.
      await runIn(POD, 'python3', '-c', SEND, '10.244.0.9', 'end', '1000', '20')
      buildUplink()
      await vi.waitFor(() => expect(log.filter(line => line.includes('by AF_XDP'))).toHaveLength(1 + times), 60_000)
      await found()
      const before = await sent('xdp')
      expect(await datagrams('10.244.0.9', 400, 0, 60, 1000, 1444)).toBe('400 0')
      expect((await sent('xdp')) - before).toBeGreaterThanOrEqual(400)
    }
  })

  it('is not there when it is not wanted', async () => {
    const log = await start('none')
    expect(log.join('\n')).not.toContain('AF_XDP')
    expect(await datagrams('10.244.0.9', 100, 20)).toBe('100 0')
  })
})
