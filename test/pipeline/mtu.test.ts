// What is larger than the tunnel carries: answered with ICMP as a router would, or counted; never lost in silence.

import { describe, expect, test } from 'vitest'
import { GSO, OFFLOAD } from '../../src/memory/pool.ts'
import { innerMtu } from '../../src/pipeline/tunnel.ts'
import { frame, ICMP, ICMPV6, type Inner, icmpError, PEER, POD } from './packets.ts'
import { Rig, TUNNELS, tunnelConfig } from './rig.ts'
import { build, PLAIN, pattern } from './super.ts'
import { decode, hasTshark } from './tshark.ts'

const UNDERLAY = 1500

/** A UDP datagram that makes an IP packet of so many bytes. */
const sized = (bytes: number, inner: Inner = {}): Inner => ({
  ...inner,
  data: pattern(
    bytes - (inner.version === 6 ? 40 : 20) - 8 - (inner.fragment !== undefined && inner.version === 6 ? 8 : 0),
  ),
})

function rigOf(tunnel = tunnelConfig()) {
  const rig = new Rig({ tunnel, underlayMtu: UNDERLAY })
  const pod = rig.pod()
  const mtu = innerMtu(tunnel, UNDERLAY)
  return { rig, pod, mtu }
}

const ICMP_FIELDS = ['type', 'code', 'mtu', 'checksum.status'].flatMap(name => [`icmp.${name}`, `icmpv6.${name}`])
const IP_FIELDS = ['src', 'dst', 'ttl', 'len', 'flags.df', 'checksum.status'].map(name => `ip.${name}`)
const FIELDS = [
  ...ICMP_FIELDS,
  ...IP_FIELDS,
  ...[
    'ipv6.src',
    'ipv6.dst',
    'ipv6.hlim',
    'ipv6.plen',
    'eth.src',
    'eth.dst',
    'vlan.id',
    'udp.srcport',
    '_ws.malformed',
  ],
]

describe('what the tunnel carries', () => {
  test.each(TUNNELS)(
    'the largest packet fills the underlay to the byte, one more is answered ($name)',
    ({ kind, outer }) => {
      for (const metadata of [true, false])
        for (const version of [4, 6] as const) {
          const { rig, pod, mtu } = rigOf(tunnelConfig(kind, outer, { metadata }))
          const [sent] = rig.toward(pod, frame(sized(mtu, { version })))
          expect(sent.bytes.length - 14).toBe(UNDERLAY)
          expect(rig.toward(pod, frame(sized(mtu + 1, { version })))).toHaveLength(0)
          expect(pod.take()).toHaveLength(1)
          expect(rig.drops).toEqual({ 'fit too-big': 1 })
          rig.balanced()
        }
    },
  )

  test('RFC 7348 section 4.3: overhead is 50 bytes over IPv4 and 70 over IPv6', () => {
    expect(innerMtu(tunnelConfig('vxlan', 4), 1500)).toBe(1450)
    expect(innerMtu(tunnelConfig('vxlan', 6), 1500)).toBe(1430)
  })

  test('VLAN tags and bytes behind the packet take their part of it', () => {
    const { rig, pod, mtu } = rigOf(tunnelConfig('vxlan', 4, { innerVlan: true }))
    const tags = [0x8100, 5]
    const [sent] = rig.toward(pod, frame(sized(mtu - 4, { tags })))
    expect(sent.bytes.length - 14).toBe(UNDERLAY)
    expect(rig.toward(pod, frame(sized(mtu - 3, { tags })), frame(sized(100, { padding: mtu - 99 })))).toHaveLength(0)
    expect(rig.drops).toEqual({ 'fit too-big': 2 })
    rig.balanced()
  })
})

describe.skipIf(!hasTshark)('the answer, by tshark (needs tshark)', () => {
  test('RFC 1191 section 4: ICMP type 3 code 4 with the next-hop MTU, from the packet’s destination', () => {
    const { rig, pod, mtu } = rigOf()
    const packet = frame(sized(mtu + 1, { tos: 0x10 }))
    rig.toward(pod, packet)
    const [{ bytes }] = pod.take()
    const [layers] = decode([bytes], FIELDS)
    expect(layers['_ws.malformed']).toBeUndefined()
    expect(layers['eth.src'][0]).toBe(PEER.mac)
    expect(layers['eth.dst'][0]).toBe(POD.mac)
    expect(layers['ip.src']).toEqual([PEER.ip4, POD.ip4])
    expect(layers['ip.dst']).toEqual([POD.ip4, PEER.ip4])
    expect([layers['icmp.type'], layers['icmp.code'], layers['icmp.mtu']]).toEqual([['3'], ['4'], [String(mtu)]])
    expect(layers['icmp.checksum.status']).toEqual(['1'])
    expect(layers['ip.checksum.status'][0]).toBe('1')
    // RFC 1812 section 4.3.2.3: as much of the packet as fits 576 bytes, as it came.
    expect(Number(layers['ip.len'][0])).toBe(576)
    expect(bytes.length).toBe(14 + 576)
    expect(bytes.subarray(14 + 28)).toEqual(packet.subarray(14, 14 + 548))
    rig.balanced()
  })

  test('RFC 4443 section 3.2: ICMPv6 type 2 with the MTU, quoting up to 1280 bytes in all', () => {
    const { rig, pod, mtu } = rigOf(tunnelConfig('vxlan', 6))
    const packet = frame(sized(mtu + 1, { version: 6 }))
    rig.toward(pod, packet)
    const [{ bytes }] = pod.take()
    const [layers] = decode([bytes], FIELDS)
    expect(layers['_ws.malformed']).toBeUndefined()
    expect(layers['ipv6.src']).toEqual([PEER.ip6, POD.ip6])
    expect(layers['ipv6.dst']).toEqual([POD.ip6, PEER.ip6])
    expect([layers['icmpv6.type'], layers['icmpv6.code'], layers['icmpv6.mtu']]).toEqual([['2'], ['0'], [String(mtu)]])
    expect(layers['icmpv6.checksum.status']).toEqual(['1'])
    expect(bytes.length).toBe(14 + 1280)
    expect(bytes.subarray(14 + 48)).toEqual(packet.subarray(14, 14 + 1232))
    rig.balanced()
  })

  test('the answer to a packet that arrives goes back to where that came from', () => {
    const { rig, pod, mtu } = rigOf()
    const arriving: Inner = { from: PEER.ip4, to: POD.ip4, fromMac: PEER.mac, toMac: POD.mac }
    rig.toward(pod, frame(sized(mtu + 1, arriving)))
    const [layers] = decode([pod.take()[0].bytes], FIELDS)
    expect([layers['eth.src'][0], layers['eth.dst'][0]]).toEqual([POD.mac, PEER.mac])
    expect([layers['ip.src'][0], layers['ip.dst'][0]]).toEqual([POD.ip4, PEER.ip4])
    rig.balanced()
  })

  test('the answer to a tagged packet has its tag, and the MTU that is left', () => {
    const { rig, pod, mtu } = rigOf(tunnelConfig('geneve', 4, { innerVlan: true }))
    rig.toward(pod, frame(sized(mtu, { tags: [0x8100, 0x6005] })))
    const [layers] = decode([pod.take()[0].bytes], FIELDS)
    expect(layers['vlan.id']).toEqual(['5'])
    expect(layers['icmp.mtu']).toEqual([String(mtu - 4)])
    expect(layers['icmp.checksum.status']).toEqual(['1'])
    rig.balanced()
  })

  test('a first fragment is answered', () => {
    const { rig, pod, mtu } = rigOf()
    rig.toward(pod, frame(sized(mtu + 1, { fragment: 0x2000 })), frame(sized(mtu + 9, { version: 6, fragment: 1 })))
    const answers = decode(
      pod.take().map(packet => packet.bytes),
      FIELDS,
    )
    expect(answers.map(layers => (layers['icmp.type'] ?? layers['icmpv6.type'])[0])).toEqual(['3', '2'])
    expect(rig.drops).toEqual({ 'fit too-big': 2 })
    rig.balanced()
  })
})

describe('no answer, but a count (RFC 1122 section 3.2.2, RFC 4443 section 2.4)', () => {
  const mtu = innerMtu(tunnelConfig(), UNDERLAY)
  const error4 = { protocol: ICMP, sourcePort: 0x0301, data: pattern(mtu) }
  const error6 = { version: 6 as const, protocol: ICMPV6, sourcePort: 0x0100, data: pattern(mtu) }
  const silent: [string, Inner][] = [
    ['an ICMP error', error4],
    ['an ICMPv6 error', error6],
    ['a fragment but the first', sized(mtu + 1, { fragment: 0x2008 })],
    ['an IPv6 fragment but the first', sized(mtu + 9, { version: 6, fragment: 0x09 })],
    ['an IPv4 group address', sized(mtu + 1, { to: '239.1.1.1' })],
    ['the IPv4 broadcast address', sized(mtu + 1, { to: '255.255.255.255' })],
    ['an IPv6 group address', sized(mtu + 1, { version: 6, to: 'ff0e::1' })],
    ['an Ethernet group address', sized(mtu + 1, { toMac: '01:00:5e:00:00:01' })],
    ['no IPv4 source', sized(mtu + 1, { from: '0.0.0.0' })],
    ['no IPv6 source', sized(mtu + 1, { version: 6, from: '::' })],
    ['a source that is a group', sized(mtu + 1, { from: '224.0.0.1' })],
    ['a loopback source', sized(mtu + 1, { from: '127.0.0.1' })],
  ]
  test.each(silent)('%s', (_, inner) => {
    const { rig, pod } = rigOf()
    expect(rig.toward(pod, frame(inner))).toHaveLength(0)
    expect(pod.take()).toHaveLength(0)
    expect(rig.drops).toEqual({ 'fit too-big-silent': 1 })
    rig.balanced()
  })

  test('echo is no error', () => {
    const { rig, pod } = rigOf()
    rig.toward(
      pod,
      frame({ protocol: ICMP, data: pattern(mtu) }),
      frame({ version: 6, protocol: ICMPV6, data: pattern(mtu) }),
    )
    expect(rig.drops).toEqual({ 'fit too-big': 2 })
    rig.balanced()
  })

  test('an ICMP error that fits goes its way', () => {
    const { rig, pod } = rigOf()
    expect(rig.toward(pod, frame(icmpError({}, 0x0301, 28, PEER.ip4)))).toHaveLength(1)
    rig.balanced()
  })

  test('without a free frame for the answer, the drop says so', () => {
    const rig = new Rig({ underlayMtu: UNDERLAY, frames: 1 })
    rig.toward(rig.pod(), frame(sized(mtu + 1)))
    expect(rig.drops).toEqual({ 'fit no-frame': 1 })
    rig.balanced()
  })
})

describe('super-packets are judged by what their segments become', () => {
  // TCP over IPv4 with 12 bytes of options: 52 bytes of headers.
  const shape = { ...PLAIN, payload: pattern(9000), flags: 0x10 }
  const mtu = innerMtu(tunnelConfig(), UNDERLAY)
  const offloads = { podCapabilities: -1, underlayCapabilities: -1, underlayMtu: UNDERLAY }

  test('segments that fit, the super-packet does not', () => {
    const rig = new Rig(offloads)
    const [sent] = rig.toward(rig.pod(), build({ ...shape, gsoSize: mtu - 52 }))
    expect(sent).toMatchObject({ gso: GSO.TCP4 | GSO.TUNNEL4, gsoSize: mtu - 52 })
    const all = new Rig({ ...offloads, underlayCapabilities: 0 })
    const segments = all.toward(all.pod(), build({ ...shape, gsoSize: mtu - 52 }))
    expect(Math.max(...segments.map(packet => packet.bytes.length))).toBe(UNDERLAY + 14)
    rig.balanced()
    all.balanced()
  })

  test('segments that do not are answered with one ICMP error', () => {
    const rig = new Rig(offloads)
    const pod = rig.pod()
    expect(rig.toward(pod, build({ ...shape, gsoSize: mtu - 51 }))).toHaveLength(0)
    expect(pod.take()).toHaveLength(1)
    expect(rig.drops).toEqual({ 'fit too-big': 1 })
    rig.balanced()
  })

  test('a super-packet of one short segment is that segment', () => {
    const rig = new Rig(offloads)
    const [sent] = rig.toward(rig.pod(), build({ ...shape, payload: pattern(1000), gsoSize: 1448 }))
    expect(sent.bytes.length - 14).toBeLessThan(UNDERLAY)
    rig.balanced()
  })

  test('a super-packet that is in a tunnel already has no fields for another', () => {
    const rig = new Rig(offloads)
    const nested = build({ ...shape, tunnel: 'vxlan', gsoSize: 1000 })
    expect(rig.toward(rig.pod(), nested)).toHaveLength(0)
    expect(rig.drops).toEqual({ 'encap offload': 1 })
    expect(nested.offload & OFFLOAD.NEEDS_CHECKSUM).not.toBe(0)
    rig.balanced()
  })
})
