// Netlink against what iproute2 shows and does.

import { writeFileSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { close } from '../../src/os/libc.ts'
import { linkInfo } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, inNamespace, ip, ipBatch, tc } from '../../src/os/netns.ts'
import { GROUP, Rtnetlink } from '../../src/os/rtnetlink.ts'
import { openTap } from '../../src/os/tun.ts'
import { missing, Probe, title } from './support.ts'

describe.skipIf(missing !== '')(title('netlink'), () => {
  const here = 'dth-nl'
  const there = 'dth-nl-far'
  let ask: Rtnetlink
  let hear: Rtnetlink

  const bytes = (address: string) => Uint8Array.from(address.split('.'), Number)
  const bytes6 = (last: number) => Uint8Array.of(0xfd, 0x92, ...Array(13).fill(0), last)
  const macOf = (mac: string) => Uint8Array.from(mac.split(':'), byte => Number.parseInt(byte, 16))
  const index = () => linkInfo('eth0', here).index
  /** What was heard, but for what is known of eth0: the kernel tells of its carrier when it comes to it. */
  const news = () =>
    hear.events()?.filter(event => event.kind !== 'link' || !isDeepStrictEqual(event.link, ask.link('eth0')))

  beforeAll(() => {
    for (const name of [here, there]) {
      deleteNamespace(name)
      createNamespace(name)
    }
    ipBatch([`link add eth0 netns ${here} mtu 1450 type veth peer name far0 netns ${there}`])
    // NB: an address that the kernel makes is told once more when nobody else was found to have it, a second or two later.
    const quiet = (name: string) => `link set ${name} addrgenmode none up`
    ipBatch(['address add 10.92.0.1/24 dev eth0', 'address add fd92::1/64 dev eth0 nodad', quiet('eth0')], here)
    ipBatch(['address add 10.92.0.2/24 dev far0', 'address add fd92::2/64 dev far0 nodad', quiet('far0')], there)
    ask = new Rtnetlink(here)
    for (const end = Date.now() + 20_000; !ask.link('eth0')?.running && Date.now() < end; );
    hear = new Rtnetlink(here, GROUP.LINK | GROUP.ADDRESS | GROUP.FILTER)
  })
  afterAll(() => {
    ask?.close()
    hear?.close()
    for (const name of [here, there]) deleteNamespace(name)
  })

  it('reads a link and its addresses as ip does', () => {
    const info = linkInfo('eth0', here)
    expect(ask.link('eth0')).toEqual({
      index: info.index,
      name: 'eth0',
      type: 'ether',
      up: true,
      running: true,
      mtu: 1450,
      mac: info.mac,
      txDropped: 0,
    })
    expect(ask.link('lo')).toMatchObject({ type: 'loopback', mtu: 65_536, mac: '00:00:00:00:00:00' })
    expect(ask.link('eth7')).toBeUndefined()
    const addresses = ask.addresses(info.index).map(address => Array.from(address))
    expect(addresses).toHaveLength(info.addresses.length)
    expect(addresses).toContainEqual([10, 92, 0, 1])
    expect(addresses).toContainEqual(Array.from(bytes6(1)))
  })

  it('finds ways: on the link, by a gateway, by an IPv6 gateway for IPv4, with an MTU of their own, and none', () => {
    const eth0 = index()
    ipBatch(
      [
        'route add 10.93.0.0/24 via 10.92.0.2',
        'route add 10.94.0.0/24 via inet6 fd92::2 dev eth0 mtu 1300',
        'route add fd93::/64 via fd92::2 mtu 1400',
      ],
      here,
    )
    const from = bytes('10.92.0.1')
    const way = (to: Uint8Array, source = from) => ask.route(to, source, eth0)
    expect(way(bytes('10.92.0.2'))).toMatchObject({ gateway: undefined, index: eth0, mtu: undefined })
    expect(way(bytes('10.93.0.9'))).toMatchObject({ gateway: bytes('10.92.0.2'), index: eth0, mtu: undefined })
    expect(way(bytes('10.94.0.9'))).toMatchObject({ gateway: bytes6(2), index: eth0, mtu: 1300 })
    const six = Uint8Array.of(0xfd, 0x93, ...Array(13).fill(0), 9)
    expect(way(six, bytes6(1))).toMatchObject({ gateway: bytes6(2), index: eth0, mtu: 1400 })
    expect(way(bytes('10.92.0.1'))).toBeUndefined()
    expect(way(Uint8Array.of(0xfd, 0x95, ...Array(13).fill(0), 9), bytes6(1))).toBeUndefined()
    expect(way(bytes('10.92.0.2'), bytes('10.92.0.77'))).toBeUndefined()
  })

  it('finds the interface and the own address of a way of which neither is known', () => {
    const four = ask.route(bytes('10.92.0.2'), new Uint8Array(4), 0)
    expect(four).toMatchObject({ index: index(), source: bytes('10.92.0.1') })
    expect(ask.route(bytes6(2), new Uint8Array(16), 0)).toMatchObject({ index: index(), source: bytes6(1) })
    expect(ask.link(four?.index ?? 0)).toEqual(ask.link('eth0'))
    expect(ask.link(0x7fff_fff0)).toBeUndefined()
  })

  it('gives the address of a neighbour only while the kernel would use it', () => {
    const eth0 = index()
    const far = bytes('10.92.0.20')
    const mac = '02:00:00:00:00:20'
    expect(ask.neighbour(far, eth0)).toBeUndefined()
    for (const [state, usable] of Object.entries({
      permanent: true,
      stale: true,
      incomplete: false,
      reachable: true,
    })) {
      ip(['neigh', 'replace', '10.92.0.20', 'lladdr', mac, 'dev', 'eth0', 'nud', state], here)
      expect([state, ask.neighbour(far, eth0)]).toEqual([state, usable ? macOf(mac) : undefined])
    }
    ip(['neigh', 'replace', 'fd92::20', 'lladdr', mac, 'dev', 'eth0'], here)
    expect(ask.neighbour(bytes6(0x20), eth0)).toEqual(macOf(mac))
  })

  it('hears what iproute2 does, in order', () => {
    const eth0 = index()
    hear.events()
    ipBatch(
      ['link set eth0 mtu 1400', 'link set eth0 down', 'link set eth0 up', 'address add 10.92.0.3/24 dev eth0'],
      here,
    )
    const events = hear.events() ?? []
    const links = events.flatMap(event => (event.kind === 'link' ? [event] : []))
    expect(links.every(event => event.link.name === 'eth0' && !event.gone)).toBe(true)
    expect(links.find(event => event.link.mtu === 1400)).toBeDefined()
    const ups = links.map(event => event.link.up)
    expect(ups.indexOf(false)).toBeGreaterThan(0)
    expect(ups.lastIndexOf(true)).toBeGreaterThan(ups.lastIndexOf(false))
    expect(events).toContainEqual({ kind: 'address', index: eth0 })

    ipBatch(['route add 10.96.0.0/24 dev eth0', 'neigh replace 10.92.0.30 lladdr 02:00:00:00:00:30 dev eth0'], here)
    expect(news()).toEqual([])
    tc(['qdisc', 'add', 'dev', 'eth0', 'clsact'], here)
    expect(news()).toEqual([{ kind: 'filter', index: eth0 }])

    ip(['link', 'add', 'gone0', 'type', 'bridge'], here)
    ip(['link', 'set', 'gone0', 'address', '02:00:00:00:00:aa'], here)
    ip(['link', 'delete', 'gone0'], here)
    const gone = (hear.events() ?? []).flatMap(event => (event.kind === 'link' ? [event] : []))
    expect(gone.at(-1)).toMatchObject({ gone: true, link: { name: 'gone0', mac: '02:00:00:00:00:aa' } })
    expect(news()).toEqual([])
  })

  it("tells what a TAP's queue had no room for, as ip does", () => {
    const tap = openTap({ name: 'full0', namespace: here })
    // Reports of its own would be lost between the two counts.
    inNamespace(here, () => writeFileSync('/proc/sys/net/ipv6/conf/full0/disable_ipv6', '1'))
    ipBatch(['link set full0 txqueuelen 10 up', 'address add 10.97.0.1/24 dev full0'], here)
    ip(['neigh', 'add', '10.97.0.2', 'lladdr', '02:00:00:00:00:02', 'dev', 'full0'], here)
    const probe = new Probe(here, undefined, '10.97.0.2', 9)
    for (let i = 0; i < 50; i++) probe.send()
    probe.close()
    const [{ stats64 }] = JSON.parse(ip(['-j', '-s', 'link', 'show', 'dev', 'full0'], here))
    expect(stats64.tx.dropped).toBeGreaterThanOrEqual(40)
    expect(ask.link('full0')?.txDropped).toBe(stats64.tx.dropped)
    for (const fd of tap.fds) close(fd)
  })

  it('says so when there was more than it could hear, and hears on afterwards', () => {
    const flood = Array.from({ length: 1500 }, (_, i) => `link set lo mtu ${60_000 + (i % 2)}`)
    ipBatch(flood, here)
    expect(hear.events()).toBeUndefined()
    expect(news()).toEqual([])
    ip(['link', 'set', 'lo', 'mtu', '50000'], here)
    expect(hear.events()).toContainEqual(expect.objectContaining({ kind: 'link', gone: false }))
  })
})
