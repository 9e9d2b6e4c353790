// What a node does when others take its interfaces, addresses, TAPs and programs away: real traffic goes on or comes back, and
// each fault is told once.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { type RunningNode, startNode } from '../../src/node/node.ts'
import { getPinned } from '../../src/os/bpf.ts'
import { type FailMode, Heartbeat } from '../../src/os/heartbeat.ts'
import { addressOf, bpf, close, interfaceIndex, must } from '../../src/os/libc.ts'
import { deleteLink, linkInfo } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, inNamespace, ip, ipBatch, tc } from '../../src/os/netns.ts'
import { said } from '../processes.ts'
import { missing, runIn, title } from './support.ts'

const PODS = ['dth-pod', 'dth-pod2']
const [POD, POD2] = PODS
const NODE = 'dth-node'
const ENDPOINT = 'dth-endpoint'
const FAR = '10.244.0.9'
const FAR_MAC = '02:00:00:00:00:bb'
const VNI = 77

const macOf = (pod: string) => `02:00:00:00:00:a${PODS.indexOf(pod)}`
const addressOfPod = (pod: string) => `10.244.0.${2 + PODS.indexOf(pod)}`
const quiet = (name: string) => `link set ${name} addrgenmode none up`

let node: RunningNode | undefined
let gateway: RunningGateway | undefined
let log: string[] = []
const servers: ChildProcess[] = []

function buildPod(pod: string): void {
  ipBatch([`link add eth0 netns ${pod} address ${macOf(pod)} type veth peer name ${pod} netns ${NODE}`])
  ipBatch([`link set ${pod} master cni0`, quiet(pod)], NODE)
  inNamespace(pod, () => writeFileSync('/proc/sys/net/ipv4/ping_group_range', '0 0'))
  const neighbour = `neighbor add ${FAR} lladdr ${FAR_MAC} dev eth0`
  ipBatch([`address add ${addressOfPod(pod)}/24 dev eth0`, quiet('eth0'), neighbour], pod)
}

function buildUplink(): void {
  ipBatch([`link add uplink netns ${NODE} mtu 1600 type veth peer name eth0 netns ${ENDPOINT} mtu 1600`])
  ipBatch(['address add 10.99.0.1/24 dev uplink', quiet('uplink')], NODE)
  ipBatch(['address add 10.99.0.2/24 dev eth0', quiet('eth0')], ENDPOINT)
  // NB: a veth leaves checksums to a wire that never comes, and a socket shows what is inside as it was sent.
  inNamespace(ENDPOINT, () => execFileSync('ethtool', ['-K', 'eth0', 'tx', 'off']))
}

/** Two pods behind a bridge, an uplink, and at its other end a VXLAN device that the pods' subnet reaches. */
function build(): void {
  remove()
  for (const name of [...PODS, NODE, ENDPOINT]) createNamespace(name)
  ipBatch(['link add cni0 type bridge', quiet('cni0')], NODE)
  for (const pod of PODS) buildPod(pod)
  buildUplink()
  ipBatch(
    [
      `link add vx0 address ${FAR_MAC} mtu 1500 type vxlan id ${VNI} dstport 4789 local 10.99.0.2 remote 10.99.0.1`,
      ...[`address add ${FAR}/24 dev vx0`, quiet('vx0')],
      ...PODS.map(pod => `neighbor add ${addressOfPod(pod)} lladdr ${macOf(pod)} dev vx0`),
    ],
    ENDPOINT,
  )
}

function remove(): void {
  for (const name of [...PODS, NODE, ENDPOINT]) deleteNamespace(name)
}

async function start(
  options: { attach?: string; offload?: string; probe?: boolean; failMode?: string } = {},
): Promise<void> {
  const { attach = 'auto', offload = 'auto', probe = false, failMode = 'closed' } = options
  const tunnel = { profile: 'vxlan', vni: VNI, local: '10.99.0.1', remote: '10.99.0.2' }
  log = []
  node = await startNode({
    // A worker may wait for a processor for long, and an answer, too: that would be told.
    config: configSchema.parse({ tunnel, failMode, heartbeatLimitMs: 10_000, rungs: { attach, offload } }),
    namespace: NODE,
    uplink: 'uplink',
    pods: PODS.map(pod => ({ id: pod, namespace: pod })),
    // A kernel endpoint does not return probes.
    probe: probe ? { intervalMs: 20, limitMs: 3000 } : { intervalMs: 0, limitMs: 0 },
    log: line => log.push(line),
  })
  log.splice(0)
}

/** Resolves when it is so; the node's upkeep runs meanwhile. */
async function until(what: string, condition: () => unknown): Promise<void> {
  const end = Date.now() + 60_000
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`it never came to pass: ${what}; log:\n${log.join('\n')}`)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

const logged = (words: string) => until(words, () => log.some(line => line.includes(words)))
const lines = (words: string) => log.filter(line => line.includes(words))

/** Packets that a stage has sent on, by all workers. */
const sent = (name: string) =>
  (node?.source.counters() ?? [])
    .flatMap(({ stages }) => stages)
    .filter(stage => stage.name === name)
    .reduce((sum, stage) => sum + stage.row[2], 0)

/** Echo requests from a pod to the far side through the tunnel until one is answered: for the node's upkeep, in a process of its own. */
const ping = (pod: string) => runIn(pod, 'python3', '-c', PING, addressOfPod(pod), FAR)
const PING = `
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)
s.bind((sys.argv[1], 0)); s.connect((sys.argv[2], 0)); s.settimeout(0.2)
for i in range(100):
  try:
    s.send(bytes([8, 0, 0, 0, 0, 0, 0, i]) + b'detour'); s.recv(100); break
  except OSError: pass
else: sys.exit('nobody answered')
`

/** A datagram that nobody waits for. */
const SEND = `
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'detour', (sys.argv[1], 9))
`

/** Steered traffic works: what a pod sends goes out by the tunnel and is answered. */
async function checkSteered(pod: string): Promise<void> {
  const before = sent('encap')
  await ping(pod)
  await until('it went by the tunnel', () => sent('encap') > before)
}

/** Takes what one connection sends, and tells the sender how much it was. */
const TAKE = `
import socket, sys
s = socket.create_server((sys.argv[1], 5201))
print('listening', flush=True)
c = s.accept()[0]
got = 0
while n := len(c.recv(1 << 20)): got += n
c.sendall(str(got).encode())
`

/** Sends so many megabytes, and more until its input ends; prints how many arrived. */
const GIVE = `
import select, socket, sys
s = socket.create_connection((sys.argv[1], 5201))
block, given = bytes(1 << 20), 0
while given < int(sys.argv[2]) or not select.select([sys.stdin], [], [], 0)[0]:
  s.sendall(block)
  given += 1
s.shutdown(socket.SHUT_WR)
got = int(s.recv(100))
assert got == given << 20, (got, given)
print(given)
`

/** A TCP transfer from a pod; `moving` resolves when it is under way; `end` ends it, and resolves with the megabytes sent when all have arrived. */
async function stream(pod: string, megabytes: number): Promise<{ end(): Promise<number>; moving(): Promise<void> }> {
  const server = inNamespace(ENDPOINT, () =>
    spawn('python3', ['-c', TAKE, FAR], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
  servers.push(server)
  await said(server.stdout, 'listening')
  const client = inNamespace(pod, () =>
    spawn('python3', ['-c', GIVE, FAR, `${megabytes}`], { stdio: ['pipe', 'pipe', 'inherit'] }),
  )
  servers.push(client)
  let out = ''
  client.stdout.on('data', data => (out += data))
  const gone = new Promise<number | null>(resolve => client.once('close', resolve))
  const moving = async () => {
    const before = sent('encap')
    await until('packets move', () => sent('encap') > before + 200)
  }
  const end = async () => {
    client.stdin.end()
    expect(await gone).toBe(0)
    return Number(out)
  }
  return { end, moving }
}

/** Takes the TCX programs off an interface, as another owner of CAP_NET_ADMIN and CAP_BPF could: BPF_PROG_QUERY, GET_FD_BY_ID, DETACH. */
function takeOff(namespace: string, name: string, attachType: number): void {
  inNamespace(namespace, () => {
    const links = new Uint32Array(16)
    const programs = new Uint32Array(16)
    const query = new DataView(new ArrayBuffer(128))
    query.setUint32(0, interfaceIndex(name), true)
    query.setUint32(4, attachType, true)
    query.setBigUint64(16, BigInt(addressOf(programs)), true)
    query.setUint32(24, 16, true)
    query.setBigUint64(40, BigInt(addressOf(links)), true)
    must(bpf(16, query), 'BPF_PROG_QUERY', name)
    expect(query.getUint32(24, true)).toBeGreaterThan(0)
    for (const id of links.subarray(0, query.getUint32(24, true))) {
      const fd = must(bpf(30, Uint32Array.of(id, ...Array(31).fill(0))), 'BPF_LINK_GET_FD_BY_ID', name)
      must(bpf(34, Uint32Array.of(fd, ...Array(31).fill(0))), 'BPF_LINK_DETACH', name)
      close(fd)
    }
  })
}
const TCX = { ingress: 46, egress: 47 }

describe.skipIf(missing !== '')(title('upkeep'), () => {
  afterEach(async () => {
    await node?.stop()
    await gateway?.stop()
    node = gateway = undefined
    for (const server of servers.splice(0)) server.kill('SIGKILL')
    remove()
  })

  const variants = [{ attach: 'tcx' }, { attach: 'clsact' }, { offload: 'udp-socket' }]
  for (const variant of variants) {
    it(`a transfer survives that the uplink is deleted and made again (${Object.values(variant)})`, async () => {
      build()
      await start(variant)
      const { end, moving } = await stream(POD, 1000)
      await moving()
      deleteLink('uplink', NODE)
      await logged('uplink uplink is gone')
      buildUplink()
      await moving()
      expect(await end()).toBeGreaterThanOrEqual(1000)
      await logged('uplink uplink works again after')
      expect(lines('uplink uplink')).toHaveLength(2)
      expect(node?.alarms()).toContainEqual(expect.objectContaining({ name: 'uplink uplink', raised: false, times: 1 }))
    })
  }

  it('a link that flaps is told once, and traffic comes back', async () => {
    build()
    await start()
    const flaps = () => node?.alarms().find(({ name }) => name === 'uplink uplink')?.times ?? 0
    for (let i = 1; i <= 3; i++) {
      ip(['link', 'set', 'uplink', 'down'], NODE)
      await until('it is seen', () => flaps() === i)
      ip(['link', 'set', 'uplink', 'up'], NODE)
      await until('it is over', () => node?.alarms().every(({ raised }) => !raised))
    }
    await checkSteered(POD)
    await logged('works again after')
    expect(log).toEqual([
      'uplink uplink is down',
      expect.stringMatching(/^uplink uplink works again after .* s, 3 times$/),
    ])
  })

  it('a smaller MTU of the uplink reaches the senders in the pods', async () => {
    build()
    await start()
    const mtu = () => /mtu (\d+)/.exec(ip(['route', 'get', FAR], POD))?.[1]
    ip(['link', 'set', 'uplink', 'mtu', '1400'], NODE)
    ip(['link', 'set', 'eth0', 'mtu', '1400'], ENDPOINT)
    await logged('uplink uplink: the path MTU was 1600 and is 1400')
    expect(await (await stream(POD, 50)).end()).toBeGreaterThanOrEqual(50)
    // 1400 less outer IPv4, UDP, VXLAN and the inner Ethernet header.
    expect(mtu()).toBe('1350')
    expect((await node!.source.underlay())[0].mtu).toBe(1400)
    expect(log).toHaveLength(1)
  })

  it('a pod that goes is cleaned up after while the other one transfers', async () => {
    build()
    await start()
    await checkSteered(POD)
    const { end, moving } = await stream(POD2, 2000)
    await moving()
    deleteNamespace(POD)
    await logged(`attachment ${POD}: the namespace of eth0 of ${POD} is gone`)
    await until('nothing of it is left', async () => (await node!.source.attachments()).length === 1)
    expect(existsSync(`/sys/fs/bpf/detour/${POD}`)).toBe(false)
    // Nobody holds on to the namespace: its veth goes, and with it the end at the bridge.
    await until('the veth is gone', () => !ip(['-o', 'link'], NODE).includes(`${POD}@`))
    await moving()
    expect(await end()).toBeGreaterThanOrEqual(2000)
    expect(log).toHaveLength(1)

    createNamespace(POD)
    buildPod(POD)
    await logged(`attachment ${POD}: eth0 of ${POD} is served again`)
    await checkSteered(POD)
  })

  it("a pod's link that goes down at the host is told, and that it is up again", async () => {
    build()
    await start()
    ip(['link', 'set', POD, 'down'], NODE)
    await logged(`attachment ${POD}: eth0 has no carrier`)
    const [worst] = (await node?.source.alarms?.()) ?? []
    expect(worst).toMatchObject({ name: `attachment ${POD} link`, raised: true, times: 1 })
    ip(['link', 'set', POD, 'up'], NODE)
    await logged(`attachment ${POD}: eth0 is up again after`)
    expect(log).toHaveLength(2)
    await checkSteered(POD)
  })

  for (const failMode of ['open', 'closed']) {
    it(`packets that the fail mode takes from a worker that hangs are told (fail-${failMode})`, async () => {
      build()
      await start({ failMode })
      await checkSteered(POD)
      const what = failMode === 'open' ? 'passed' : 'dropped'
      const fd = getPinned(`/sys/fs/bpf/detour/${POD}/heartbeat`)
      const heartbeat = new Heartbeat(fd)
      try {
        // The worker's ticks, 50 ms apart, are too rare for that.
        heartbeat.enable(failMode as FailMode, 2)
        await until('packets are stopped', async () => {
          await runIn(POD, 'python3', '-c', SEND, FAR)
          const { passed, dropped } = heartbeat.read()
          return passed + dropped > 0
        })
        await logged(`attachment ${POD}: a worker did not answer for`)
        heartbeat.enable(failMode as FailMode, 10_000)
        await logged(`attachment ${POD}: the workers answer again`)
        await checkSteered(POD)
        expect(heartbeat.read()[failMode === 'open' ? 'dropped' : 'passed']).toBe(0)
      } finally {
        heartbeat.close()
        close(fd)
      }
      expect(lines(`packets ${what} by the fail mode`)).toHaveLength(2)
      expect(log).toHaveLength(2)
    })
  }

  for (const attach of ['tcx', 'clsact']) {
    it(`what is taken from a pod is put back (${attach})`, async () => {
      build()
      await start({ attach })
      const repaired = async (what: string, act: () => void) => {
        log.splice(0)
        act()
        await logged(what)
        await logged('is served again')
        expect(lines(what)).toHaveLength(1)
        await checkSteered(POD)
      }
      await repaired(`eth0 of ${POD} was made anew`, () => {
        deleteLink('eth0', POD)
        buildPod(POD)
      })
      await repaired(`the programs on eth0 of ${POD} were taken off`, () => {
        if (attach === 'tcx') takeOff(POD, 'eth0', TCX.egress)
        else tc(['filter', 'del', 'dev', 'eth0', 'egress'], POD)
      })
      await repaired(`the TAP beside eth0 of ${POD} was taken away`, () => deleteLink('dt-eth0', POD))
      if (attach === 'clsact') return
      await repaired(`the TAP beside eth0 of ${POD} was set down`, () => ip(['link', 'set', 'dt-eth0', 'down'], POD))
      await repaired(`the programs on eth0 of ${POD} were taken off`, () =>
        rmSync(`/sys/fs/bpf/detour/${POD}/link_eth0_ingress`),
      )
      await repaired(`eth0 of ${POD} has another address, 02:00:00:00:00:cc`, () => {
        ip(['link', 'set', 'eth0', 'address', '02:00:00:00:00:cc'], POD)
        ip(['neighbor', 'replace', FAR, 'lladdr', FAR_MAC, 'dev', 'eth0'], POD)
        ip(['neighbor', 'replace', addressOfPod(POD), 'lladdr', '02:00:00:00:00:cc', 'dev', 'vx0'], ENDPOINT)
      })
      expect(node?.alarms().find(({ name }) => name === `attachment ${POD}`)?.times).toBe(6)
    })

    it(`what is taken from the underlay is put back (${attach})`, async () => {
      build()
      await start({ attach })
      const tap = 'dt-4-4789'
      ip(['link', 'set', tap, 'down'], NODE)
      await logged('uplink uplink has its TAP set down')
      await checkSteered(POD)
      if (attach === 'tcx') takeOff(NODE, tap, TCX.ingress)
      else tc(['filter', 'del', 'dev', 'uplink', 'ingress'], NODE)
      await until('it is noticed', () => (node?.alarms().find(({ name }) => name === 'uplink uplink')?.times ?? 0) >= 2)
      await checkSteered(POD)
      deleteLink(tap, NODE)
      await until('it is noticed', () => node?.alarms().some(({ text }) => text.includes(`has lost its TAP ${tap}`)))
    })
  }

  it("a pod's addresses and MTU follow its interface, and what is protected with them", async () => {
    build()
    await start()
    const row = async () => (await node!.source.attachments()).find(({ id }) => id === POD)
    // Other nodes of this machine may have a map of that name, too, but no pod of this address, not even in another run of this test.
    const extra = [10, 244, randomInt(100, 250), randomInt(1, 250)]
    const text = extra.join('.')
    const shown = extra.map(byte => `"0x${byte.toString(16).padStart(2, '0')}"`).join()
    const isProtected = async () => {
      const maps: { id: number; name?: string }[] = JSON.parse(await runIn('', 'bpftool', '-j', 'map', 'list'))
      const ids = maps.filter(({ name }) => name === 'dt_protected').map(({ id }) => `${id}`)
      const dumps = await Promise.all(
        ids.map(id => runIn('', 'bpftool', '-j', 'map', 'dump', 'id', id).catch(() => '')),
      )
      return dumps.some(dump => dump.includes(shown))
    }
    expect(await isProtected()).toBe(false)
    ipBatch([`address add ${text}/32 dev eth0`, 'link set eth0 mtu 1450'], POD)
    await logged(`eth0 now has ${addressOfPod(POD)}, ${text}, MTU 1450`)
    expect(await row()).toMatchObject({ addresses: linkInfo('eth0', POD).addresses, mtu: 1450 })
    expect(await isProtected()).toBe(true)
    ip(['address', 'del', `${text}/32`, 'dev', 'eth0'], POD)
    await logged(`eth0 now has ${addressOfPod(POD)}, MTU 1450`)
    expect(await isProtected()).toBe(false)

    // More than there is room for: told once, and the other pod is looked after.
    log.splice(0)
    ipBatch(
      Array.from({ length: 300 }, (_, i) => `address add fd91::${(i + 1).toString(16)}/128 dev eth0 nodad`),
      POD,
    )
    await logged('ENOSPC')
    ip(['address', 'add', '10.244.99.98/32', 'dev', 'eth0'], POD2)
    await logged(`eth0 now has ${addressOfPod(POD2)}, 10.244.99.98`)
    expect(lines('ENOSPC')).toHaveLength(1)
    expect(Math.max(...log.map(line => line.length))).toBeLessThan(1000)
  })

  for (const failMode of ['open', 'closed']) {
    it(`an endpoint that goes and comes is told once each (fail-${failMode})`, async () => {
      build()
      const run = async () => {
        gateway = await startGateway({ profile: 'vxlan', address: '10.99.0.2', namespace: ENDPOINT, policy: ALLOW_ALL })
      }
      deleteLink('vx0', ENDPOINT)
      await run()
      await start({ probe: true, failMode })
      await until('it answers', () => node?.status().probesAnswered)
      log.splice(0)
      await gateway?.stop()
      await logged('does not answer')
      const what = failMode === 'open' ? 'packets pass uninspected (fail-open)' : 'packets are dropped (fail-closed)'
      expect(log).toEqual([`endpoint 10.99.0.2 does not answer: ${what}`])
      await run()
      await logged('endpoint 10.99.0.2 answers again after')
      expect(log).toHaveLength(2)
    })
  }
})
