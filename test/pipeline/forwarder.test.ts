// A node's two legs between devices of arrays: what goes out to the endpoint, what comes back to which pod, what stays.

import { describe, expect, test } from 'vitest'
import { VERDICT } from '../../src/flow/verdict.ts'
import { GSO, OFFLOAD } from '../../src/memory/pool.ts'
import { PROBE_MAC } from '../../src/pipeline/probe.ts'
import {
  frame,
  ICMP,
  ICMPV6,
  type Inner,
  icmpError,
  ip,
  PEER,
  POD,
  TCP,
  TUNNEL_ENDS,
  tunnelled,
  UDP,
} from './packets.ts'
import { type FakeDevice, Rig, TUNNELS, tunnelConfig } from './rig.ts'
import { batchOf, build, type Packet, PLAIN, pattern } from './super.ts'

const OTHER = { mac: '02:00:00:00:0a:02', ip4: '10.1.0.6', ip6: 'fd00:1::6' } as const

const bytesOf = (packets: Packet[]) => packets.map(packet => packet.bytes)

/** Gives frames to a pod, has the endpoint return them, and says what then came to that pod. */
function roundTrip(rig: Rig, pod: FakeDevice, ...frames: Uint8Array[]): Uint8Array[] {
  rig.bounce(rig.toward(pod, ...frames))
  return bytesOf(pod.take())
}

const kinds: [string, Inner][] = [
  ['UDP', {}],
  ['TCP', { protocol: TCP }],
  ['ICMP echo', { protocol: ICMP }],
  ['UDP over IPv6', { version: 6 }],
  ['TCP over IPv6', { version: 6, protocol: TCP }],
  ['ICMPv6 echo', { version: 6, protocol: ICMPV6 }],
  ['GRE', { protocol: 47, body: [0, 0, 8, 0, 1, 2, 3] }],
  ['an unknown protocol over IPv6', { version: 6, protocol: 253, body: [] }],
  ['IPv4 options', { options: 40, protocol: TCP }],
  ['no data', { data: [] }],
  ['padding', { data: [], padding: 18 }],
  ['a broadcast that leaves', { toMac: 'ff:ff:ff:ff:ff:ff', to: '255.255.255.255' }],
  ['mDNS that leaves', { toMac: '01:00:5e:00:00:fb', to: '224.0.0.251', port: 5353 }],
]
const reply = (inner: Inner): Inner => {
  const [from, to] = inner.version === 6 ? [PEER.ip6, POD.ip6] : [PEER.ip4, POD.ip4]
  return { ...inner, from, to, fromMac: PEER.mac, toMac: POD.mac, sourcePort: inner.port, port: inner.sourcePort }
}

describe.each(TUNNELS)('there and back through $name', ({ kind, outer }) => {
  test.each(kinds)('%s: unchanged, byte for byte', (_, inner) => {
    const rig = new Rig({ tunnel: tunnelConfig(kind, outer) })
    const pod = rig.pod()
    const packet = frame(inner)
    expect(roundTrip(rig, pod, packet)).toEqual([packet])
    expect(rig.forwarder.table.count).toBe(1)
    expect(rig.drops).toEqual({})
    rig.balanced()
  })

  test('both directions of a flow, each where it belongs', () => {
    const rig = new Rig({ tunnel: tunnelConfig(kind, outer) })
    const pod = rig.pod()
    for (const version of [4, 6] as const) {
      const there: Inner = { version, protocol: TCP, sourcePort: 40_000, port: 443 }
      expect(roundTrip(rig, pod, frame(there), frame(reply(there)))).toEqual([frame(there), frame(reply(there))])
    }
    expect(rig.forwarder.table.count).toBe(2)
    rig.balanced()
  })

  test('the destination port is the tunnel’s in both directions, never reversed', () => {
    const rig = new Rig({ tunnel: tunnelConfig(kind, outer) })
    const pod = rig.pod()
    const sent = rig.toward(pod, frame(), frame(reply({ sourcePort: 40_000, port: 40_001 })))
    const at = (outer === 4 ? 34 : 54) + 2
    for (const { bytes } of sent) expect((bytes[at] << 8) | bytes[at + 1]).toBe(kind === 'geneve' ? 6081 : 4789)
    rig.balanced()
  })

  test('super-packets stay whole where devices take them, and are cut and come back in pieces where not', () => {
    const tunnel = tunnelConfig(kind, outer)
    const packet = build({ ...PLAIN, payload: pattern(9000), gsoSize: 1400 })
    const ours = '02:00:00:00:77:01'
    const able = new Rig({ tunnel, underlayCapabilities: -1, podCapabilities: -1 })
    const pod = able.pod(ours)
    const [whole] = able.toward(pod, packet)
    expect(whole.gso).toBe(GSO.TCP4 | (outer === 4 ? GSO.TUNNEL4 : GSO.TUNNEL6))
    able.bounce([whole])
    const back = pod.take()
    expect(bytesOf(back)).toEqual([packet.bytes])
    expect(back[0]).toMatchObject({ gso: GSO.TCP4, gsoSize: 1400, offload: OFFLOAD.NEEDS_CHECKSUM, outerTransport: 0 })
    able.balanced()

    const unable = new Rig({ tunnel })
    const poor = unable.pod(ours)
    const pieces = unable.toward(poor, packet)
    expect(pieces).toHaveLength(7)
    unable.bounce(pieces)
    const payload = poor.take().flatMap(({ bytes }) => [...bytes.subarray(14 + 20 + 32)])
    expect(payload).toEqual([...packet.bytes.subarray(14 + 20 + 32)])
    unable.balanced()
  })
})

describe('attachments', () => {
  test('each pod gets its own, in order', () => {
    const rig = new Rig()
    const one = rig.pod(POD.mac)
    const two = rig.pod(OTHER.mac)
    const ofOne = [1, 2, 3].map(i => frame({ data: [i] }))
    const ofTwo = [1, 2, 3].map(i => frame({ data: [i], fromMac: OTHER.mac, from: OTHER.ip4 }))
    const arriving = frame(reply({ sourcePort: 9, port: 10 }))
    const sent = [rig.toward(one, ...ofOne, arriving), rig.toward(two, ...ofTwo)]
    rig.bounce([sent[1][0], sent[0][0], sent[0][1], sent[1][1], sent[1][2], sent[0][2], sent[0][3]])
    expect(bytesOf(one.take())).toEqual([...ofOne, arriving])
    expect(bytesOf(two.take())).toEqual(ofTwo)
    rig.balanced()
  })

  test('pods with the same addresses do not share flows', () => {
    const rig = new Rig()
    const [one, two] = [rig.pod(POD.mac), rig.pod(OTHER.mac)]
    const same = frame({ fromMac: OTHER.mac })
    const sent = [...rig.toward(one, frame()), ...rig.toward(two, same)]
    rig.bounce(sent.reverse())
    expect(bytesOf(one.take())).toEqual([frame()])
    expect(bytesOf(two.take())).toEqual([same])
    rig.balanced()
  })

  test('what one protected pod sends another is steered where it leaves, and passed where it arrives', () => {
    const rig = new Rig()
    const [one, two] = [rig.pod(POD.mac), rig.pod(OTHER.mac)]
    const packet = frame({ toMac: OTHER.mac, to: OTHER.ip4 })
    rig.bounce(rig.toward(one, packet))
    const [delivered] = bytesOf(one.take())
    expect(rig.toward(two, delivered)).toHaveLength(0)
    expect(bytesOf(two.take())).toEqual([packet])
    expect(rig.forwarder.table.count).toBe(1)
    rig.balanced()
  })

  test.each([4, 6] as const)(
    'what an endpoint answers one pod in the name of another, IPv%i, reaches the pod it answers',
    version => {
      const rig = new Rig()
      const [one, two] = [rig.pod(POD.mac), rig.pod(OTHER.mac)]
      const [own, others] = version === 4 ? [POD.ip4, OTHER.ip4] : [POD.ip6, OTHER.ip6]
      const flow: Inner = { version, protocol: 6, sourcePort: 7000, port: 23, toMac: OTHER.mac, to: others }
      rig.toward(one, frame(flow))
      const ports = { sourcePort: 23, port: 7000 }
      const reset = { version, protocol: 6, ...ports, fromMac: OTHER.mac, toMac: POD.mac, from: others, to: own }
      const stranger = { ...reset, port: 7001 }
      rig.back(tunnelled(frame(reset)), tunnelled(frame(stranger)))
      expect(bytesOf(one.take())).toEqual([frame(reset)])
      expect(two.take()).toHaveLength(0)
      expect(rig.drops).toEqual({ 'restore unknown-flow': 1 })
      rig.balanced()
    },
  )

  test('another pod’s source address lets nothing by that leaves', () => {
    const rig = new Rig({ probe: { intervalMs: 1000, limitMs: 3000 } })
    const [one] = [rig.pod(POD.mac), rig.pod(OTHER.mac)]
    expect(rig.toward(one, frame({ fromMac: OTHER.mac }))).toHaveLength(1)
    const probe = Array.from(PROBE_MAC, byte => byte.toString(16).padStart(2, '0')).join(':')
    expect(rig.toward(one, frame({ fromMac: probe, toMac: POD.mac }))).toHaveLength(1)
    expect(one.take()).toHaveLength(0)
    rig.balanced()
  })

  test('a detached pod gets nothing more', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const sent = rig.toward(pod, frame())
    expect(rig.forwarder.detach(0)).toBe(pod)
    rig.bounce(sent)
    expect(pod.take()).toHaveLength(0)
    expect(rig.drops).toEqual({ 'restore unknown-attachment': 1 })
    expect(rig.forwarder.detach(0)).toBeUndefined()
    rig.balanced()
  })
})

const local: [string, Inner][] = [
  ['ARP', { raw: [0x0806, [0, 1, 8, 0, 6, 4, 0, 1, ...new Array(20).fill(1)]], toMac: 'ff:ff:ff:ff:ff:ff' }],
  ['ARP to one', { raw: [0x0806, [0, 1, 8, 0, 6, 4, 0, 2, ...new Array(20).fill(1)]] }],
  ['LLDP', { raw: [0x88cc, new Array(40).fill(3)] }],
  ['an IEEE 802.3 frame', { raw: [0x0026, new Array(38).fill(3)] }],
  ['MLD report', { version: 6, protocol: ICMPV6, sourcePort: 131 << 8, toMac: '33:33:00:00:00:01' }],
  ['MLDv2 report', { version: 6, protocol: ICMPV6, sourcePort: 143 << 8, toMac: '33:33:00:00:00:16' }],
  [
    'IGMP',
    { protocol: 2, body: [0x16, 0, 9, 4, 224, 0, 0, 251], to: '224.0.0.251', toMac: '01:00:5e:00:00:fb', ttl: 1 },
  ],
  ['DHCP request', { sourcePort: 68, port: 67, from: '0.0.0.0', to: '255.255.255.255', toMac: 'ff:ff:ff:ff:ff:ff' }],
  ['DHCP reply', { sourcePort: 67, port: 68, fromMac: PEER.mac, toMac: POD.mac, from: PEER.ip4, to: POD.ip4 }],
  ['DHCPv6', { version: 6, sourcePort: 546, port: 547, to: 'ff02::1:2', toMac: '33:33:00:01:00:02' }],
  ['DHCPv6 reply', { version: 6, sourcePort: 547, port: 546, fromMac: PEER.mac, toMac: POD.mac }],
  ['a broadcast that arrives', { fromMac: PEER.mac, toMac: 'ff:ff:ff:ff:ff:ff', from: PEER.ip4, to: '10.1.255.255' }],
  ['multicast that arrives', { fromMac: PEER.mac, toMac: '01:00:5e:00:00:fb', from: PEER.ip4, to: '224.0.0.251' }],
]

describe('what stays on the node', () => {
  test.each(local)('%s goes back to its device untouched', (_, inner) => {
    const rig = new Rig()
    const pod = rig.pod()
    const packet = frame(inner)
    expect(rig.toward(pod, packet)).toHaveLength(0)
    expect(bytesOf(pod.take())).toEqual([packet])
    expect(rig.forwarder.table.count).toBe(0)
    rig.balanced()
  })

  test('it stays even where the attachment fails closed and the endpoint is down', () => {
    const rig = new Rig({ probe: { intervalMs: 10, limitMs: 50 } })
    const pod = rig.pod(POD.mac, true)
    rig.forwarder.tick(0)
    rig.forwarder.tick(1000)
    expect(rig.forwarder.endpointUp).toBe(false)
    for (const [, inner] of local) rig.toward(pod, frame(inner))
    expect(pod.take()).toHaveLength(local.length)
    rig.balanced()
  })

  test('look-alikes are steered', () => {
    const rig = new Rig()
    const pod = rig.pod()
    for (const inner of [
      { protocol: ICMP, sourcePort: 135 << 8 },
      { protocol: TCP, sourcePort: 68, port: 67 },
      { sourcePort: 546, port: 547 },
      { sourcePort: 68, port: 67 },
      { sourcePort: 67, port: 68 },
      { version: 6 as const, sourcePort: 546, port: 547 },
      { sourcePort: 40000, port: 67, toMac: 'ff:ff:ff:ff:ff:ff' },
      { version: 6 as const, sourcePort: 68, port: 67 },
      { protocol: 2, body: [0x16, 0, 9, 4, 224, 0, 0, 251] },
      { version: 6 as const, protocol: ICMPV6, sourcePort: 138 << 8 },
      // MLD that goes to one host, and neighbour discovery that the gate did not take for the link's.
      { version: 6 as const, protocol: ICMPV6, sourcePort: 143 << 8 },
      { version: 6 as const, protocol: ICMPV6, sourcePort: 135 << 8, ttl: 64 },
    ])
      expect(rig.toward(pod, frame(inner))).toHaveLength(1)
    expect(pod.take()).toHaveLength(0)
    rig.balanced()
  })
})

describe('policy', () => {
  const rules = [
    { name: 'dns', protocol: 'udp' as const, ports: [53], verdict: VERDICT.PASS },
    { name: 'telnet', protocol: 'tcp' as const, ports: [23], verdict: VERDICT.DROP },
  ]

  test('PASS goes back untouched, in both directions', () => {
    const rig = new Rig({ rules })
    const pod = rig.pod()
    const dns: Inner = { sourcePort: 5555, port: 53 }
    const answer = reply(dns)
    expect(rig.toward(pod, frame(dns), frame(answer))).toHaveLength(0)
    expect(bytesOf(pod.take())).toEqual([frame(dns), frame(answer)])
    rig.balanced()
  })

  test('DROP is counted, in both directions', () => {
    const rig = new Rig({ rules })
    const pod = rig.pod()
    const telnet: Inner = { protocol: TCP, sourcePort: 5555, port: 23 }
    expect(rig.toward(pod, frame(telnet), frame(reply(telnet)))).toHaveLength(0)
    expect(pod.take()).toHaveLength(0)
    expect(rig.drops).toEqual({ 'decide policy': 2 })
    rig.balanced()
  })

  test('it is the flow’s first packet that decides', () => {
    const rig = new Rig({ rules })
    const pod = rig.pod()
    // A connection to the pod from port 23 is no telnet, and so are its answers not, although they go to port 23.
    const from23 = reply({ protocol: TCP, sourcePort: 80, port: 23 })
    expect(rig.toward(pod, frame(from23))).toHaveLength(1)
    expect(rig.toward(pod, frame({ protocol: TCP, sourcePort: 80, port: 23 }))).toHaveLength(1)
    rig.balanced()
  })

  test('what was never sent out is not let in, whatever was decided for it', () => {
    const rig = new Rig({ rules })
    const pod = rig.pod()
    rig.toward(pod, frame({ sourcePort: 5555, port: 53 }), frame({ protocol: TCP, sourcePort: 5555, port: 23 }))
    pod.take()
    for (const inner of [
      { sourcePort: 5555, port: 53 },
      { protocol: TCP, sourcePort: 5555, port: 23 },
      { sourcePort: 1, port: 2 },
    ])
      rig.back(tunnelled(frame(inner)))
    rig.back(tunnelled(frame({ fromMac: '02:00:00:00:0c:01', toMac: '02:00:00:00:0c:02' })))
    expect(pod.take()).toHaveLength(0)
    expect(rig.drops).toEqual({ 'decide policy': 1, 'restore unknown-flow': 3, 'restore unknown-attachment': 1 })
    rig.balanced()
  })

  test('an endpoint may answer for either end of a steered flow', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const syn: Inner = { protocol: TCP, flags: 2 }
    rig.toward(pod, frame(syn))
    const reset = frame({ ...reply({ ...syn, sourcePort: 40_000, port: 40_001 }), flags: 0x14, data: [] })
    rig.back(tunnelled(reset))
    expect(bytesOf(pod.take())).toEqual([reset])
    rig.balanced()
  })
})

describe('flow table', () => {
  test('full: new flows are counted drops, known ones go on', () => {
    const rig = new Rig({ flows: { capacity: 4 } })
    const pod = rig.pod()
    const flow = (i: number) => frame({ sourcePort: 1000 + i })
    for (let i = 0; i < 10; i++) rig.toward(pod, flow(i))
    expect(rig.drops).toEqual({ 'decide flow-table-full': 6 })
    expect(roundTrip(rig, pod, flow(0), flow(3))).toEqual([flow(0), flow(3)])
    expect(rig.toward(pod, flow(9))).toHaveLength(0)
    rig.balanced()
  })

  test('full of idle flows: they make room', () => {
    const rig = new Rig({ flows: { capacity: 4, idleMs: 100 } })
    const pod = rig.pod()
    for (let i = 0; i < 4; i++) rig.toward(pod, frame({ sourcePort: i + 1 }))
    pod.now += 101
    expect(rig.toward(pod, frame({ sourcePort: 9 }))).toHaveLength(1)
    rig.balanced()
  })

  test('packets and bytes are counted where they leave the node, by direction, segments of a super-packet each', () => {
    const rig = new Rig({ podCapabilities: -1, underlayCapabilities: -1 })
    const pod = rig.pod('02:00:00:00:77:01')
    const packet = build({ ...PLAIN, payload: pattern(4001), gsoSize: 1000 })
    rig.bounce(rig.toward(pod, packet))
    const answer = { from: '10.7.0.2', to: '10.7.0.1', sourcePort: 40_001, port: 40_000, protocol: TCP }
    const [bytesAB, bytesBA] = [packet.bytes.length, frame(answer).length]
    rig.toward(pod, frame({ ...answer, fromMac: PEER.mac, toMac: '02:00:00:00:77:01' }))
    const counted = { packetsAB: 5, packetsBA: 1, bytesAB, bytesBA, openedBy: 'a', addressA: '10.7.0.1', attachment: 0 }
    expect([...rig.flows.flows()]).toEqual([expect.objectContaining(counted)])
    rig.balanced()
  })
})

describe('what belongs to a flow', () => {
  test.each([4, 6] as const)('ICMP errors over IPv%i reach the flow they quote, both ways', version => {
    const rig = new Rig()
    const pod = rig.pod()
    const flow: Inner = { version, sourcePort: 7000, port: 8000 }
    const there = rig.toward(pod, frame(flow))
    const router = version === 4 ? '203.0.113.1' : '2001:db8:1::1'
    const quoted = version === 4 ? 28 : 48
    const arriving = {
      ...icmpError(flow, version === 4 ? 0x0b00 : 0x0300, quoted, router),
      fromMac: PEER.mac,
      toMac: POD.mac,
    }
    const sent = rig.toward(pod, frame(arriving))
    expect(rig.forwarder.table.count).toBe(1)
    const port = ({ bytes }: Packet) => (bytes[34] << 8) | bytes[35]
    expect(port(sent[0])).toBe(port(there[0]))
    rig.bounce(sent)
    expect(bytesOf(pod.take())).toEqual([frame(arriving)])
    // The pod's own error about what it received.
    const answer = reply({ ...flow })
    const leaving = icmpError(answer, version === 4 ? 0x0303 : 0x0104, quoted, version === 4 ? POD.ip4 : POD.ip6)
    expect(roundTrip(rig, pod, frame({ ...leaving, to: version === 4 ? PEER.ip4 : PEER.ip6 }))).toHaveLength(1)
    expect(rig.forwarder.table.count).toBe(1)
    rig.balanced()
  })

  test('an ICMP error from the endpoint’s side about a steered flow is let in, about another not', () => {
    const rig = new Rig()
    const pod = rig.pod()
    rig.toward(pod, frame({ sourcePort: 7000, port: 8000 }))
    const about = (sourcePort: number) =>
      frame({ ...icmpError({ sourcePort, port: 8000 }, 0x0304, 28, '203.0.113.1'), fromMac: PEER.mac, toMac: POD.mac })
    rig.back(tunnelled(about(7000)), tunnelled(about(7001)))
    expect(bytesOf(pod.take())).toEqual([about(7000)])
    expect(rig.drops).toEqual({ 'restore unknown-flow': 1 })
    rig.balanced()
  })

  test.each([4, 6] as const)('fragments over IPv%i follow their first one, both ways', version => {
    const rig = new Rig()
    const pod = rig.pod()
    const flow: Inner = { version, id: 77, sourcePort: 7000, port: 8000 }
    // A datagram of 48 bytes, whose length the first fragment says, in three parts.
    const datagram = ip({ ...flow, data: pattern(40) }).slice(version === 4 ? 20 : 40)
    const part = (from: number, to: number) => {
      const more = to < datagram.length ? 1 : 0
      const fragment = version === 4 ? (from >> 3) | (more << 13) : from | more
      return frame({ ...flow, fragment, body: datagram.slice(from, to) })
    }
    const [first, second, third] = [part(0, 24), part(24, 40), part(40, 48)]
    expect(roundTrip(rig, pod, first, second, third)).toEqual([first, second, third])
    expect(rig.forwarder.table.count).toBe(1)
    // An unfragmented packet of the flow is of the same flow.
    rig.toward(pod, frame(flow))
    expect(rig.forwarder.table.count).toBe(1)
    rig.balanced()
  })

  test('a fragment whose first one was not seen still goes to the endpoint, and comes back', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const stray = frame({ fragment: 0x0003, body: [...pattern(24)] })
    expect(roundTrip(rig, pod, stray)).toEqual([stray])
    rig.balanced()
  })
})

describe('the endpoint', () => {
  const probe = { intervalMs: 100, limitMs: 300 }

  test('a probe is a sound tunnel packet and comes back', () => {
    for (const { kind, outer } of TUNNELS) {
      const rig = new Rig({ tunnel: tunnelConfig(kind, outer), probe })
      const now = performance.now()
      rig.forwarder.tick(now)
      const sent = rig.underlay.take()
      expect(sent).toHaveLength(1)
      rig.bounce(sent)
      expect(rig.forwarder.probes).toMatchObject({ sent: 1, answered: 1 })
      expect(rig.forwarder.endpointUp).toBe(true)
      expect(rig.drops).toEqual({})
      rig.balanced()
    }
  })

  test('probes go out at their interval, whatever the rhythm of ticks', () => {
    const rig = new Rig({ probe })
    for (let now = 5000; now < 6000; now += 10) rig.forwarder.tick(now)
    expect(rig.forwarder.probes.sent).toBe(10)
    rig.balanced()
  })

  test('down after silence: fail-open passes, fail-closed drops; up again with the first answer', () => {
    const rig = new Rig({ probe })
    const open = rig.pod(POD.mac, false)
    const closed = rig.pod(OTHER.mac, true)
    const ofOpen = frame()
    const ofClosed = frame({ fromMac: OTHER.mac, from: OTHER.ip4 })
    // Long ago, so that only an answer can count as recent.
    const start = performance.now() - 60_000
    const toBoth = () => rig.toward(open, ofOpen).length + rig.toward(closed, ofClosed).length

    rig.forwarder.tick(start)
    rig.forwarder.tick(start + 300)
    expect(rig.forwarder.endpointUp).toBe(true)
    rig.underlay.take()
    expect(toBoth()).toBe(2)

    rig.forwarder.tick(start + 301)
    expect(rig.forwarder.endpointUp).toBe(false)
    rig.underlay.take()
    expect(toBoth()).toBe(0)
    expect(bytesOf(open.take())).toEqual([ofOpen])
    expect(closed.take()).toHaveLength(0)
    expect(rig.drops).toEqual({ 'decide endpoint-down': 1 })

    // Probes go on, and what returns counts from when it returned.
    rig.forwarder.tick(start + 500)
    rig.bounce(rig.underlay.take())
    rig.forwarder.tick(performance.now())
    expect(rig.forwarder.endpointUp).toBe(true)
    rig.underlay.take()
    expect(toBoth()).toBe(2)
    expect(open.take()).toHaveLength(0)
    rig.balanced()
  })

  test('without probes the endpoint counts as up', () => {
    const rig = new Rig()
    rig.forwarder.tick(0)
    rig.forwarder.tick(1e9)
    expect(rig.forwarder.endpointUp).toBe(true)
    expect(rig.forwarder.probes.sent).toBe(0)
    rig.balanced()
  })

  test('a probe from elsewhere is none', () => {
    const rig = new Rig({ probe })
    rig.forwarder.tick(performance.now())
    const [sent] = rig.underlay.take()
    const forged = sent.bytes.slice()
    rig.back(forged)
    expect(rig.forwarder.probes.answered).toBe(0)
    expect(rig.drops).toEqual({ 'decap unknown-peer': 1 })
    rig.balanced()
  })
})

describe('bad input, by stage', () => {
  test('malformed packets of a pod are dropped with their reason', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const packet = frame({ protocol: UDP })
    const bad = (at: number, value: number) => {
      const copy = packet.slice()
      copy[at] = value
      return copy
    }
    rig.toward(
      pod,
      bad(14, 0x55),
      bad(14, 0x44),
      bad(16, 0xff),
      bad(39, 99),
      packet.subarray(0, 20),
      packet.subarray(0, 14),
    )
    expect(rig.drops).toEqual({
      'classify ipv4-version': 1,
      'classify ipv4-header-length': 1,
      'classify ipv4-total-length': 1,
      'classify udp-length': 1,
      'classify ipv4-truncated': 2,
    })
    expect(pod.take()).toHaveLength(0)
    rig.balanced()
  })

  test('a packet without room for the outer headers is dropped; with just enough it is sent', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const packet = frame()
    // Ethernet, IPv4, UDP, GENEVE and our option.
    for (const headroom of [61, 62]) {
      const at = rig.pool.alloc()
      rig.pool.start[at] = at * rig.pool.frameSize + headroom
      rig.pool.length[at] = packet.length
      rig.pool.bytes.set(packet, rig.pool.start[at])
      pod.received++
      rig.attached[0].leg.run(batchOf(at))
    }
    expect(rig.drops).toEqual({ 'encap no-headroom': 1 })
    expect(rig.underlay.take()).toHaveLength(1)
    rig.balanced()
  })

  test('an outer packet over 64 KiB is not sent', () => {
    const rig = new Rig({
      frames: 2,
      frameSize: 66_560,
      underlayMtu: 1500,
      podCapabilities: -1,
      underlayCapabilities: -1,
    })
    const pod = rig.pod('02:00:00:00:77:01')
    // The inner packet is the largest there is.
    const packet = build({ ...PLAIN, payload: pattern(65_535 - 52), gsoSize: 1000 })
    rig.toward(pod, packet)
    expect(rig.drops).toEqual({ 'encap oversized': 1 })
    rig.balanced()
  })

  test('underlay packets of others are refused', () => {
    const rig = new Rig()
    rig.pod()
    rig.back(tunnelled(frame(), { from: '10.8.0.77' }), tunnelled(frame(), { vni: 1 }), frame())
    rig.back(tunnelled(frame(), { to: TUNNEL_ENDS[6].local }))
    expect(rig.drops).toEqual({ 'decap unknown-peer': 2, 'decap unknown-vni': 1, 'decap not-tunnel': 1 })
    rig.balanced()
  })
})
