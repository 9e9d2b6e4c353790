// The underlay against the kernel's own VXLAN device, on real interfaces with real traffic.

import { spawnSync } from 'node:child_process'
import { closeSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { openUnderlay, type Underlay, type UnderlayOptions } from '../../src/control/underlay.ts'
import { addressOf, POLL, poll, read } from '../../src/os/libc.ts'
import { linkInfo } from '../../src/os/link.ts'
import { inNamespace, ipBatch } from '../../src/os/netns.ts'
import { ALL_OFFLOADS, OFFLOADS, openTap } from '../../src/os/tun.ts'
import { HOST4, HOST6, listing, missing, POD4, POD6, Probe, runIn, start, title, transfer, wire } from './support.ts'

interface Report {
  out: number
  in: number
  drops: number
  supersOut: number
  supersIn: number
  largest: number
  free: number
}

describe.skipIf(missing !== '')(title('underlay'), () => {
  // The pod of `wire` plays the node here, its eth0 the uplink; the host plays the endpoint.
  let wired: ReturnType<typeof wire>
  let underlay: Underlay | undefined
  const opened: number[] = []

  const open = (options: Partial<UnderlayOptions> = {}) => {
    underlay = openUnderlay({ namespace: wired.pod, interface: 'eth0', localAddress: POD4, port: 4789, ...options })
    opened.push(...underlay.fds)
    return underlay
  }

  beforeAll(() => {
    wired = wire('dtc-und')
    ipBatch(
      [
        `link add vx4 type vxlan id 77 local ${HOST4} remote ${POD4} dstport 4789`,
        'address add 10.99.4.2/24 dev vx4',
        'link set vx4 addrgenmode none mtu 1430 up',
      ],
      wired.host,
    )
    ipBatch(
      [
        `link add vx6 type vxlan id 78 local ${HOST6} remote ${POD6} dstport 4789 udp6zerocsumrx`,
        'address add 10.99.6.2/24 dev vx6',
        'link set vx6 addrgenmode none mtu 1430 up',
      ],
      wired.host,
    )
  })
  afterEach(() => {
    underlay?.close()
    underlay = undefined
    for (const fd of opened.splice(0)) closeSync(fd)
  })
  afterAll(() => wired.remove())

  const exchange = async (version: 4 | 6, options: Partial<UnderlayOptions>, offloads: number, size = '300M') => {
    const it = open({ localAddress: version === 4 ? POD4 : POD6, ...options })
    const tap = openTap({ name: 'inner0', namespace: wired.pod, offloads })
    opened.push(tap.fd)
    const subnet = `10.99.${version}`
    ipBatch([`address add ${subnet}.1/24 dev inner0`, 'link set inner0 addrgenmode none mtu 1430 up'], wired.pod)
    const hex = (address: string) =>
      Buffer.from(
        address.includes(':')
          ? `fd91${'0'.repeat(27)}${address.at(-1)}`
          : address
              .split('.')
              .map(byte => (+byte).toString(16).padStart(2, '0'))
              .join(''),
        'hex',
      ).toString('hex')
    const [local, remote] = version === 4 ? [POD4, HOST4] : [POD6, HOST6]
    const args = [hex(local), hex(remote), version === 4 ? 77 : 78, tap.offloads, it.capabilities]
    const tunneller = await start<Report>('tunneller', args, [tap.fd, it.fds[0]])
    const there = await transfer(wired.pod, wired.host, `${subnet}.2`, '-n', size)
    const back = await transfer(wired.pod, wired.host, `${subnet}.2`, '-n', size, '-R')
    if (process.env.SHOW) console.log(version, options, there.toFixed(2), back.toFixed(2), 'Gbit/s')
    const report = await tunneller.stop()
    if (process.env.SHOW) console.log(report)
    expect(report).toMatchObject({ drops: 0, free: 512 })
    return report
  }

  for (const version of [4, 6] as const) {
    for (const attach of ['tcx', 'clsact'] as const) {
      it(`exchanges super-packets with the kernel's VXLAN over IPv${version} (${attach})`, async () => {
        const report = await exchange(version, { attach, rung: 'tunnel-gso' }, ALL_OFFLOADS)
        expect(underlay).toMatchObject({ offloadRung: 'tunnel-gso', attachRung: attach })
        expect(report.supersOut).toBeGreaterThan(3_000)
        expect(report.supersIn).toBeGreaterThan(3_000)
        expect(report.largest).toBeGreaterThan(16_384)
        // 600 MB in packets of 1500 bytes would be 400,000.
        expect(report.out + report.in).toBeLessThan(200_000)
      })
    }

    it(`gives the kernel what it needs to cut and sum super-packets over IPv${version} itself`, async () => {
      const off = 'tx off tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off'.split(' ')
      const set = (features: string[]) =>
        inNamespace(wired.pod, () => spawnSync('ethtool', ['-K', 'eth0', ...features], { encoding: 'utf8' }))
      set(off)
      try {
        const report = await exchange(version, { rung: 'tunnel-gso' }, ALL_OFFLOADS)
        expect(underlay!.capabilities & OFFLOADS.CHECKSUM).toBe(0)
        expect(report.supersOut).toBeGreaterThan(3_000)
        const counters = await runIn(
          wired.host,
          'nstat',
          '-asz',
          'UdpInCsumErrors',
          'Udp6InCsumErrors',
          'TcpInCsumErrors',
        )
        for (const name of ['UdpInCsumErrors', 'Udp6InCsumErrors', 'TcpInCsumErrors'])
          expect(counters).toMatch(new RegExp(`${name} +0 `))
      } finally {
        set(off.map(word => (word === 'off' ? 'on' : word)))
      }
    })
  }

  it('carries packets one by one on the lowest rung', async () => {
    const report = await exchange(4, { rung: 'plain' }, OFFLOADS.CHECKSUM, '30M')
    expect(underlay).toMatchObject({ offloadRung: 'plain', capabilities: OFFLOADS.CHECKSUM })
    expect(report).toMatchObject({ supersOut: 0, supersIn: 0 })
    expect(report.largest).toBeLessThanOrEqual(1514)
  })

  it('tells rung and uplink', () => {
    const { mac } = linkInfo('eth0', wired.pod)
    expect(open()).toMatchObject({ offloadRung: 'tunnel-gso', attachRung: 'tcx', uplinkMtu: 1500, localMac: mac })
    underlay?.close()
    expect(open({ rung: 'uso' })).toMatchObject({ offloadRung: 'uso', capabilities: OFFLOADS.CHECKSUM | OFFLOADS.USO })
    underlay?.close()
    expect(open({ rung: 'udp-socket' })).toMatchObject({ offloadRung: 'udp-socket', fds: [], uplinkMtu: 1500 })
  })

  it('leaves the uplink as it was found', () => {
    const found = listing(wired.pod, 'eth0')
    for (const attach of ['tcx', 'clsact'] as const) {
      const { fds, close } = open({ attach })
      expect(listing(wired.pod, 'eth0')).not.toBe(found)
      close()
      expect(listing(wired.pod, 'eth0')).toBe(found)
      expect(() => closeSync(fds[0])).not.toThrow()
      opened.length = 0
    }
  })

  it('takes only the tunnel: another port, another address and fragments stay with the kernel', async () => {
    const [fd] = open({ port: 4790 }).fds
    const frame = new Uint8Array(2048)
    const taken = (timeoutMs: number) => {
      if (poll(addressOf(Int32Array.of(fd, POLL.IN)), 1, timeoutMs) <= 0) return false
      return read(fd, addressOf(frame), frame.length) > 0
    }
    const send = (to: string | undefined, port: number, address: string, size: number) => {
      const probe = new Probe(wired.host, to, address, port, { size })
      const arrived = probe.send()
      probe.close()
      return arrived
    }
    ipBatch(['address add 10.91.0.9/24 dev eth0'], wired.pod)
    send(undefined, 4790, POD4, 4)
    expect(taken(5000)).toBe(true)
    expect(frame.subarray(24 + 14 + 20 + 2, 24 + 14 + 20 + 4)).toEqual(Uint8Array.of(4790 >> 8, 4790 & 255))
    expect(send(wired.pod, 4800, POD4, 4)).toBe(true)
    expect(send(wired.pod, 4790, '10.91.0.9', 4)).toBe(true)
    send(undefined, 4790, POD4, 3000)
    let reassembled = ''
    while (!/IpReasmOKs +1 /.test(reassembled)) reassembled = await runIn(wired.pod, 'nstat', '-asz', 'IpReasmOKs')
    expect(taken(0)).toBe(false)
  })

  it('holds the port, so that nobody else takes it and the kernel answers nothing for it', async () => {
    open({ port: 4791 })
    expect(() => new Probe(wired.host, wired.pod, POD4, 4791)).toThrow(/EADDRINUSE/)
    expect(() => openUnderlay({ namespace: wired.pod, interface: 'eth0', localAddress: POD4, port: 4791 })).toThrow(
      /bind UDP 10\.91\.0\.1 port 4791: EADDRINUSE/,
    )
  })

  it('refuses what it cannot do in words that help', () => {
    expect(() => open({ interface: 'eth7' })).toThrow(/interface eth7 does not exist/)
    expect(() => open({ localAddress: '192.0.2.1' })).toThrow(
      /192\.0\.2\.1 is not on uplink eth0, which has 10\.91\.0\.1/,
    )
    expect(() => open({ localAddress: 'here' })).toThrow(/local address 'here'/)
    expect(() => open({ interface: 'lo', localAddress: '127.0.0.1', rung: 'uso' })).toThrow(/type loopback/)
    expect(open({ interface: 'lo', localAddress: '127.0.0.1' }).offloadRung).toBe('udp-socket')
  })
})
