// Cases about inner packets: an inspector is a bump in the wire, so what it lets pass comes back as it was.

import * as icmp from '../../wire/icmp.ts'
import * as ipv4 from '../../wire/ipv4.ts'
import * as ipv6 from '../../wire/ipv6.ts'
import * as udp from '../../wire/udp.ts'
import { AWS_APPLIANCE, awsGuide, eachFamily, type PacketCase, whereFlowsDiffer } from '../case.ts'
import { connection } from '../connection.ts'
import { type Family, type Flow, fragments, icmpPacket, packet, udpPacket } from '../inner.ts'
import { identityUnchanged, innerUnchanged } from '../judges.ts'
import type { Maker, Probe } from '../probe.ts'
import { concat } from '../profile.ts'

const BUMP = `RFC 8926 section 1, RFC 7348 section 4.1; ${AWS_APPLIANCE}`

/** A datagram that fills the inner packet to `bytes`. */
function full(make: Maker, family: Family, bytes: number): Probe {
  const flow = make.flow(family)
  const headers = (family === 4 ? ipv4.HEADER : ipv6.HEADER) + udp.HEADER
  return make.probe(flow, udpPacket(flow, make.data(bytes - headers)))
}

/** The fragments of a UDP datagram, with a token in each. */
function fragmented(make: Maker, family: Family): Probe[] {
  const flow = make.flow(family)
  const data = [480, 480, 200].map((bytes, i) => make.data(bytes, i))
  const datagram = udpPacket(flow, concat(...data))
  const payload = datagram.subarray(datagram.length - udp.HEADER - 1160)
  const pieces = [payload.subarray(0, 488), payload.subarray(488, 968), payload.subarray(968)]
  return fragments(flow, ipv4.PROTOCOL.UDP, pieces, flow.number).map(piece => make.probe(flow, piece))
}

/** Errors about a packet of the flow, from a router in the server's net to the client. */
function errors(make: Maker, family: Family): Probe[] {
  const flow = make.flow(family)
  const router: Flow = { ...flow, server: flow.server.with(flow.server.length - 1, 254) }
  const four = family === 4
  const kinds: [number, number, number][] = [
    four ? [icmp.TYPE4.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, 1400] : [icmp.TYPE6.PACKET_TOO_BIG, 0, 1400],
    [four ? icmp.TYPE4.TIME_EXCEEDED : icmp.TYPE6.TIME_EXCEEDED, 0, 0],
  ]
  const error = (kind: [number, number, number]) =>
    icmpPacket(router, kind, udpPacket(flow, make.data()), { reply: true })
  return [make.plain(flow), ...kinds.map(kind => make.probe(flow, error(kind), { reply: true }))]
}

/** Two flows that differ in their ports only, each with metadata of its own, asked in turns and from both ends. */
function neighbours(make: Maker, options: Uint8Array): Probe[] {
  const flows = [make.flow(), make.flow()]
  return [0, 1, 0, 1].map((n, i) => {
    const reply = i > 1
    const vni = make.vnis[n % make.vnis.length]
    return make.probe(flows[n], udpPacket(flows[n], make.data(), { options, reply }), { reply, vni })
  })
}

/** A flow, and a fragmented datagram of another whose last piece begins like a header with the first one's ports. */
function masquerade(make: Maker, family: Family): Probe[] {
  const [first, second] = [make.flow(family), make.flow(family)]
  const vni = make.vnis[1 % make.vnis.length]
  const ports = new Uint8Array(8)
  udp.write(ports, 0, first.clientPort, first.serverPort, 48, 0)
  const [start, rest] = [make.data(480, 1), make.data(40, 2)]
  const datagram = udpPacket(second, concat(start, ports, rest))
  const payload = datagram.subarray(datagram.length - udp.HEADER - 528)
  const plain = make.plain(first)
  const pieces = fragments(second, ipv4.PROTOCOL.UDP, [payload.subarray(0, 488), payload.subarray(488)], first.number)
  return [plain, ...pieces.map(piece => make.probe(second, piece, { vni }))]
}

/** Three NOPs and the end of options: 4 bytes at the place where ports would be. */
const NOPS = Uint8Array.of(1, 1, 1, 0)

/** SCTP, ESP, GRE and one of those reserved for experiments (RFC 3692). */
const OTHERS = [132, 50, 47, 253]

/** An 802.1Q tag and an 802.1ad tag. */
const C_TAG = Uint8Array.of(0x81, 0x00, 0x00, 100)
const S_TAG = Uint8Array.of(0x88, 0xa8, 0x00, 200)

export const INNER_CASES: readonly PacketCase[] = [
  ...eachFamily({
    name: 'inner-udp',
    section: BUMP,
    expected: 'UDP comes back as it was sent, from both ends',
    sends: (make, family) => {
      const flow = make.flow(family)
      const reply = true
      return [make.plain(flow), make.plain(flow, { reply })]
    },
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-tcp',
    section: BUMP,
    expected: 'the segments of a TCP connection come back as they were sent, from both ends',
    sends: connection,
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-icmp',
    section: BUMP,
    expected: 'ICMP echo requests and replies come back as they were sent',
    sends: (make, family) => {
      const flow = make.flow(family)
      const { ECHO_REQUEST, ECHO_REPLY } = family === 4 ? icmp.TYPE4 : icmp.TYPE6
      const word = (flow.clientPort << 16) | 1
      return [false, true].map(reply =>
        make.probe(flow, icmpPacket(flow, [reply ? ECHO_REPLY : ECHO_REQUEST, 0, word], make.data(), { reply }), {
          reply,
        }),
      )
    },
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-icmp-error',
    section: 'RFC 792, RFC 4443 section 3; RFC 1812 section 4.3',
    expected: 'ICMP errors about a flow come back as they were sent: path MTU discovery hangs on them',
    sends: errors,
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-protocols',
    section: BUMP,
    expected: 'SCTP, ESP, GRE and unknown protocols come back as they were sent',
    sends: (make, family) =>
      OTHERS.map(protocol => {
        const flow = make.flow(family)
        return make.probe(flow, packet(flow, protocol, concat(new Uint8Array(12), make.data())))
      }),
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-ttl',
    section: 'RFC 1812 section 5.3.1 (who does not route does not count hops)',
    expected: 'the TTL inside is not touched, not even one of 1',
    sends: (make, family) =>
      [1, 255].map(ttl => {
        const flow = make.flow(family)
        return make.probe(flow, udpPacket(flow, make.data(), { ttl }))
      }),
    judge: innerUnchanged,
  }),
  {
    name: 'inner-checksum-none',
    section: 'RFC 768',
    expected: 'UDP without a checksum comes back without one',
    sends: make => {
      const flow = make.flow()
      return [make.probe(flow, udpPacket(flow, make.data(), { checksum: false }))]
    },
    judge: innerUnchanged,
  },
  {
    name: 'inner-ip-options',
    section: 'RFC 791 section 3.1',
    expected: 'packets with IPv4 options come back as they were sent',
    sends: make => neighbours(make, NOPS),
    judge: innerUnchanged,
  },
  {
    name: 'inner-ip-options-flow',
    section: 'RFC 791 section 3.1',
    expected: 'behind IPv4 options the ports are still found: two flows that differ in them keep their own metadata',
    without: whereFlowsDiffer,
    sends: make => neighbours(make, NOPS),
    judge: identityUnchanged,
  },
  ...eachFamily({
    name: 'inner-fragments',
    section: 'RFC 791 section 3.2, RFC 8200 section 4.5',
    expected: 'all fragments of a datagram come back as they were sent',
    sends: fragmented,
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-fragments-flow',
    section: 'RFC 791 section 3.2, RFC 8200 section 4.5',
    expected: 'no ports are read from a fragment that is not the first: it keeps its own metadata',
    without: whereFlowsDiffer,
    sends: masquerade,
    judge: identityUnchanged,
  }),
  {
    name: 'inner-vlan',
    section: 'RFC 7348 section 6.1, RFC 8926 section 4.7',
    expected:
      'frames with VLAN tags are dropped or, where that is configured, come back as they were sent: not without tags',
    without: ({ profile }) => (profile.inner === 'ethernet' ? undefined : 'the profile has no frames inside'),
    sends: make => [C_TAG, concat(S_TAG, C_TAG)].map(tags => make.plain(make.flow(), { tags, fate: 'either' })),
    judge: innerUnchanged,
  },
  ...eachFamily({
    name: 'inner-1500',
    section: 'RFC 8926 section 4.4.1, RFC 7348 section 4.3',
    expected: 'packets of 1500 bytes come back whole',
    sends: (make, family) => [full(make, family, 1500)],
    judge: innerUnchanged,
  }),
  ...eachFamily({
    name: 'inner-largest',
    section: awsGuide('MTU'),
    expected: 'the largest packets that the profile carries come back whole',
    without: ({ profile }) => (profile.largest === undefined ? 'the profile names no size beyond 1500' : undefined),
    sends: (make, family) => [full(make, family, make.profile.largest ?? 1500)],
    judge: innerUnchanged,
  }),
]
