// A pool of endpoints: real gateways in namespaces of their own; what each gets is told by tcpdump and tshark.

import { spawnSync } from 'node:child_process'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ipBatch } from '../../src/os/netns.ts'
import { CLIENT, ECHO, gatewayAddress, gatewayName, NODE, POD, Scene, type Script, SERVER, WORLD } from './pool.ts'
import { missing, runIn, title } from './support.ts'

const PORT = 7000
const THREE = [1, 2, 3]
const LIMIT = 120_000

// The package is compiled for one version of Node.js, and tests look at packets by it, too.
const raw = spawnSync(process.execPath, ['-e', "require('raw-socket')"]).status === 0
const name = raw ? 'a pool of endpoints' : 'a pool of endpoints (skipped: raw-socket is not compiled for this Node.js)'

describe.skipIf(missing !== '' || !raw)(title(name), () => {
  let scene: Scene
  let client: Script

  const pool = (version: 4 | 6 = 4, ...more: object[]) =>
    THREE.map((n, i) => ({ name: `gw-${n}`, address: gatewayAddress(n, version), weight: 1, drain: false, ...more[i] }))
  /** The endpoint row of a gateway. */
  const row = (n: number) => scene.node.source.endpoints!().find(({ name }) => name === `gw-${n}`)!
  const until = async (condition: () => boolean | Promise<boolean>) => {
    while (!(await condition())) await new Promise(resolve => setTimeout(resolve, 20))
  }
  /** What the node says: client ports by gateway. */
  const flows = async () => {
    const { rows } = await scene.node.source.flows({ limit: 5000, order: 'age' })
    const tcp = rows.filter(({ protocol, destinationPort }) => protocol === 6 && destinationPort === PORT)
    return THREE.map(n => tcp.filter(({ endpoint }) => endpoint === `gw-${n}`).map(({ sourcePort }) => sourcePort))
  }
  /** What tshark says: client ports by gateway, by the direction of their packets, since `listen`. */
  const shares = async (version: 4 | 6 = 4) => {
    const found: { there: number[]; back: number[] }[] = []
    const outer = version === 4 ? 'ip.dst' : 'ipv6.dst'
    for (const n of THREE) {
      const rows = await scene.heard(n, `geneve && tcp.port == ${PORT}`, 'tcp.srcport', 'tcp.dstport', outer)
      const toward = rows.filter(([, , to]) => to.split(',')[0] === gatewayAddress(n, version))
      const ports = (rows: string[][], at: 0 | 1) =>
        [...new Set(rows.filter(row => Number(row[1 - at]) === PORT).map(row => Number(row[at])))].sort()
      found.push({ there: ports(toward, 0), back: ports(toward, 1) })
    }
    return found
  }
  const listen = () => Promise.all(THREE.map(n => scene.listen(n)))
  const sorted = (ports: number[]) => [...ports].sort()

  const build = async (version: 4 | 6 = 4, gateways = THREE) => {
    scene = new Scene()
    await scene.forward()
    await Promise.all(gateways.map(n => scene.gateway(n, version)))
    await (await scene.script(WORLD, ECHO, SERVER[4], PORT)).line('ready')
    client = await scene.script(POD, CLIENT, SERVER[4], PORT)
    await client.line('ready')
  }
  afterEach(() => scene.remove(), LIMIT)

  describe('of one address family and rung', () => {
    it.each([
      [4, 'auto', 1],
      [6, 'auto', 1],
      [4, 'uso', 2],
      [4, 'plain', 1],
      [4, 'udp-socket', 2],
    ] as const)(
      'shares flows out, both directions of each to one endpoint, over IPv%d, rung %s, workers %d',
      async (version, offload, workers) => {
        await build(version)
        // tshark sees the first datagram of a super-packet only; and a UDP socket sees inner packets as they were sent.
        await runIn(NODE, 'ethtool', '-K', 'uplink', 'tx-udp-segmentation', 'off')
        for (const n of THREE) await runIn(gatewayName(n), 'ethtool', '-K', 'eth0', 'tx', 'off')
        await scene.start({ endpoints: pool(version), rungs: { offload }, workers }, {}, version)
        await listen()
        await client.ask('open 40', 'open')
        expect(await client.ask('ping', 'back')).toBe('back 40')
        const heard = await shares(version)
        for (const { there, back } of heard) expect(there).toEqual(back)
        const ports = heard.flatMap(({ there }) => there)
        expect([ports.length, new Set(ports).size]).toEqual([40, 40])
        expect(heard.every(({ there }) => there.length > 0)).toBe(true)
        expect((await flows()).map(sorted)).toEqual(heard.map(({ there }) => there))
        expect(await client.ask('udp 20', 'udp')).toBe('udp 20')
        expect(THREE.reduce((sum, n) => sum + row(n).flows, 0)).toBe(60)
      },
      LIMIT,
    )
  })

  describe('that changes', () => {
    beforeEach(() => build(), LIMIT)

    it('a dead endpoint moves only its own flows, and TCP lives; when it is back, flows do not jump back', async () => {
      await scene.start({ endpoints: pool() })
      await client.ask('open 60', 'open')
      expect(await client.ask('ping', 'back')).toBe('back 60')
      const before = await flows()
      await scene.kill(2)
      await until(() => row(2).state === 'down')
      await listen()
      expect(await client.ask('ping', 'back')).toBe('back 60')
      const after = await shares()
      for (const n of [0, 2]) {
        for (const port of before[n]) expect(after[n].there).toContain(port)
        for (const port of after[n].there) expect([...before[n], ...before[1]]).toContain(port)
        expect(after[n].there).toEqual(after[n].back)
      }
      expect(after[1]).toEqual({ there: [], back: [] })
      expect(row(2).flows).toBe(0)
      await until(() => scene.log.some(line => /^endpoint gw-2 \(10\.99\.0\.12\) does not answer/.test(line)))

      await scene.gateway(2)
      await until(() => row(2).state === 'up')
      expect(await client.ask('ping', 'back')).toBe('back 60')
      expect(row(2).flows).toBe(0)
      await client.ask('open 40', 'open')
      expect(row(2).flows).toBeGreaterThan(0)
      const moved = new RegExp(`^endpoint gw-2 .* answers again; ${before[1].length} flows had moved`)
      await until(() => scene.log.some(line => moved.test(line)))
    })

    it('where flows never move, those of a dead endpoint leak nothing (fail-closed), and go on when it is back', async () => {
      await scene.start({ endpoints: pool(), rebalance: 'never', failMode: 'closed' })
      await client.ask('open 40', 'open')
      expect(await client.ask('ping', 'back')).toBe('back 40')
      const before = await flows()
      await scene.kill(2)
      await until(() => row(2).state === 'down')
      const seen = await scene.script(WORLD, SNIFF, PORT)
      await seen.line('ready')
      client.say('ping')
      // The others' packets arrive; when the dead one's have been sent and sent again, none of them has.
      const dropped = () => Number(scene.drops('decide', 'endpoint-down'))
      await until(() => dropped() >= 2 * before[1].length)
      const arrived = (await seen.ask('tell', 'ports')).split(' ').slice(1).map(Number)
      expect(sorted(arrived)).toEqual(sorted([...before[0], ...before[2]]))
      expect(row(2).flows).toBe(before[1].length)
      await scene.gateway(2)
      expect(await client.line('back')).toBe('back 40')
      expect((await flows()).map(sorted)).toEqual(before.map(sorted))
    })

    it('one that drains keeps its flows and gets no new ones; one that is taken out loses its own only', async () => {
      await scene.start({ endpoints: pool() })
      await client.ask('open 40', 'open')
      const before = await flows()
      await scene.node.setEndpoints(pool(4, { drain: true }, { weight: 7 }))
      expect(row(1)).toMatchObject({ state: 'draining', flows: before[0].length })
      expect(row(2).weight).toBe(7)
      await listen()
      expect(await client.ask('ping', 'back')).toBe('back 40')
      expect((await shares()).map(({ there }) => there)).toEqual(before.map(sorted))
      await client.ask('open 40', 'open')
      const more = await flows()
      expect(sorted(more[0])).toEqual(sorted(before[0]))
      expect(more[1].length - before[1].length).toBeGreaterThan(more[2].length - before[2].length)

      await scene.node.setEndpoints(pool(4).slice(1))
      expect(await client.ask('ping', 'back')).toBe('back 80')
      const after = await flows()
      expect(after.flat()).toHaveLength(80)
      expect(after[0]).toEqual([])
      for (const n of [1, 2]) for (const port of more[n]) expect(after[n]).toContain(port)
      // Back again it is no stranger, but must answer before it gets flows.
      await scene.node.setEndpoints(pool())
      await until(() => row(1).state === 'up')
      expect((await flows()).map(sorted)).toEqual(after.map(sorted))
      await expect(scene.node.setEndpoints([])).rejects.toThrow(/none is left/)
      await expect(scene.node.setEndpoints([...pool(), ...pool()])).rejects.toThrow(/10\.99\.0\.11 is there twice/)
      const six = [...pool(), { address: 'fd99::9', weight: 1, drain: false }]
      await expect(scene.node.setEndpoints(six)).rejects.toThrow(/endpoint fd99::9 and tunnel.local 10.99.0.1 differ/)
      expect(scene.node.source.endpoints!()).toHaveLength(3)
    })

    it('ICMP echoes and TCP connections tell, too, where they are asked for', async () => {
      const every = { intervalMs: 50, limitMs: 2000 }
      for (const n of THREE) await (await scene.script(gatewayName(n), ACCEPT, gatewayAddress(n), 80)).line('ready')
      await scene.start({
        endpoints: pool(),
        health: { probe: { limitMs: 2000 }, icmp: every, tcp: { port: 80, ...every } },
      })
      await until(() => row(1).probesAnswered > 10)
      expect(THREE.map(n => row(n).state)).toEqual(['up', 'up', 'up'])

      await runIn(gatewayName(1), 'sysctl', '-qw', 'net.ipv4.icmp_echo_ignore_all=1')
      await until(() => row(1).state === 'down')
      await until(() =>
        scene.log.some(line => line.startsWith('endpoint gw-1 (10.99.0.11) does not answer ICMP echoes')),
      )
      // The probe through the tunnel is still answered.
      const { probesAnswered } = row(1)
      await until(() => row(1).probesAnswered > probesAnswered + 5)
      expect(THREE.map(n => row(n).state)).toEqual(['down', 'up', 'up'])
      await runIn(gatewayName(1), 'sysctl', '-qw', 'net.ipv4.icmp_echo_ignore_all=0')
      await until(() => row(1).state === 'up')

      // Whoever listens there is gone: connections are refused.
      scene.end(ACCEPT, gatewayName(3))
      await until(() => row(3).state === 'down')
      await until(() =>
        scene.log.some(line => line.includes('gw-3 (10.99.0.13) does not answer TCP connections to port 80')),
      )
      await (await scene.script(gatewayName(3), ACCEPT, gatewayAddress(3), 80)).line('ready')
      await until(() => row(3).state === 'up')
    })
  })

  it.each([
    [4, 'auto'],
    [6, 'auto'],
    [4, 'udp-socket'],
    [4, 'af-xdp'],
  ] as const)(
    'learns the path MTU to an endpoint behind a router with a smaller one, over IPv%d, rung %s; SYNs then announce what fits',
    async (version, offload) => {
      await build(version, [1])
      // The third gateway's namespace is a router, and a gateway is behind it.
      const router = gatewayName(3)
      const [network, last] = version === 4 ? ['10.98.0.', '24'] : ['fd98::', '64']
      const behind = scene.extra('far')
      await runIn(router, 'sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
      ipBatch([`link add far netns ${router} mtu 1400 type veth peer name eth0 netns ${behind} mtu 1400`])
      const nodad = version === 4 ? '' : ' nodad'
      ipBatch([`address add ${network}1/${last} dev far${nodad}`, 'link set far addrgenmode none up'], router)
      ipBatch([`address add ${network}2/${last} dev eth0${nodad}`, 'link set eth0 addrgenmode none up'], behind)
      // A router asks for neighbours from link-local addresses (ndisc_solicit in net/ipv6/ndisc.c).
      for (const name of ['eth0', 'far']) ipBatch([`address add fe80::99/64 dev ${name} nodad`], router)
      ipBatch([`route add default via ${network}1`], behind)
      ipBatch([`route add ${network}0/${last} via ${gatewayAddress(3, version)}`], NODE)
      if (offload !== 'auto')
        for (const name of [behind, router]) await runIn(name, 'ethtool', '-K', 'eth0', 'tx', 'off')
      await scene.gatewayIn(behind, `${network}2`)

      const [one] = pool(version)
      const far = { name: 'far', address: `${network}2`, weight: 1, drain: false }
      const endpoints = [{ ...one, drain: true }, far]
      await scene.start({ endpoints, rungs: { offload } }, {}, version)
      const mtu = (name: string) => scene.node.source.endpoints!().find(row => row.name === name)?.mtu
      const overhead = 14 + (version === 4 ? 20 : 40) + 8 + 8 + 12
      expect([mtu('gw-1'), mtu('far')]).toEqual([1600 - overhead, 1600 - overhead])
      await client.ask('open 1', 'open')
      expect(await client.ask('bulk 300000', 'bulk')).toBe('bulk 300000')
      await until(() => mtu('far') === 1400 - overhead)
      expect(mtu('gw-1')).toBe(1600 - overhead)
      const segments = await scene.script(WORLD, SNIFF, PORT)
      await segments.line('ready')
      await client.ask('open 1', 'open')
      expect(await segments.ask('tell', 'segment')).toBe(`segment ${1400 - overhead - 40}`)
      expect(await client.ask('bulk 300000', 'bulk')).toBe('bulk 300000')
    },
    LIMIT,
  )
})

/** Accepts TCP connections: argv address, port. */
const ACCEPT = `
  const [address, port] = process.argv.slice(1)
  require('net').createServer(s => { s.on('error', () => {}); s.end() }).listen(+port, address, () => console.log('ready'))`

/**
 * Which TCP packets come in for a port, by a raw socket: argv port. "tell" says "ports P P …" of those that carried data, and
 * "segment BYTES", what the last SYN announced.
 */
const SNIFF = `
  const raw = require('${process.cwd()}/node_modules/raw-socket')
  const port = +process.argv[1]
  const ports = new Set()
  let segment = 0
  const s = raw.createSocket({ protocol: 6 })
  s.on('message', b => {
    const at = (b[0] & 15) * 4
    if (b.readUInt16BE(at + 2) !== port) return
    const header = (b[at + 12] >> 4) * 4
    if (b.readUInt16BE(2) > at + header) ports.add(b.readUInt16BE(at))
    if (b[at + 13] & 2) for (let o = at + 20; o < at + header; o += b[o] < 2 ? 1 : b[o + 1]) if (b[o] === 2) segment = b.readUInt16BE(o + 2)
  })
  require('readline').createInterface({ input: process.stdin }).on('line', () => {
    console.log('ports ' + [...ports].join(' '))
    console.log('segment ' + segment)
  })
  console.log('ready')`
