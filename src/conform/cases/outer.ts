// Cases about the outer headers: ports, checksum, TTL, DSCP, and ECN by RFC 6040.

import * as ipv4 from '../../wire/ipv4.ts'
import * as ipv6 from '../../wire/ipv6.ts'
import * as udp from '../../wire/udp.ts'
import { AWS_APPLIANCE, eachFamily, OWN_PORT, type PacketCase } from '../case.ts'
import { type Family, udpPacket } from '../inner.ts'
import { innerEcnIs, innerWhole, outerEcnShowsInner } from '../judges.ts'
import { type Fate, fragmentOf, type Maker, type Probe } from '../probe.ts'

const NOT_ECT = 0
const ECT1 = 1
const ECT0 = 2
const CE = 3
const EF = 46

/** Bytes of a UDP datagram that its first fragment has. */
const CUT = 512

/** Hops that a path has at most, of the 64 that a packet should start with. */
const HOPS = 32

function ecn(make: Maker, family: Family, inner: number, outer: number, fate: Fate = 'back') {
  const flow = make.flow(family)
  return make.probe(flow, udpPacket(flow, make.data(), { tos: inner }), { tos: outer, fate })
}

/** A packet in two fragments, and one that looks like a whole packet and is the end of a datagram that never began. */
function outerFragments(make: Maker): Probe[] {
  const flow = make.flow()
  const whole = make.probe(flow, udpPacket(flow, make.data(1000)), { fate: 'either' })
  const alone = make.plain(make.flow(), { fate: 'nothing' })
  const datagram = whole.packet.subarray(ipv4.HEADER)
  return [
    fragmentOf(whole, datagram.subarray(0, CUT), 0, true),
    fragmentOf(whole, datagram.subarray(CUT), CUT, false),
    fragmentOf(alone, alone.packet.subarray(ipv4.HEADER), CUT, false),
  ]
}

export const OUTER_CASES: readonly PacketCase[] = [
  {
    name: 'outer-port',
    section: 'RFC 8926 section 3.3, RFC 7348 section 5',
    expected: "answers go to the tunnel's port, not back to the source port",
    without: ({ ownsPort }) => (ownsPort ? undefined : OWN_PORT),
    sends: make => [make.plain()],
    judge: ({ port }, { destinationPort }) => {
      return destinationPort === port ? undefined : `it came to port ${destinationPort} instead of ${port}`
    },
  },
  {
    name: 'outer-ports-kept',
    section: AWS_APPLIANCE,
    expected:
      'each answer has both UDP ports as they were sent, whatever its flow had before: only the addresses change places',
    without: ({ profile, ownsPort }) =>
      profile.ports !== 'kept' ? 'the profile does not ask for it' : ownsPort ? undefined : OWN_PORT,
    sends: make => {
      const flow = make.flow()
      return [make.plain(flow), make.plain(make.flow(), { source: 1 }), make.plain(flow, { source: 1 })]
    },
    judge: ({ packet, port }, { sourcePort, destinationPort }) => {
      const source = sourcePortOf(packet)
      if (destinationPort === port && sourcePort === source) return undefined
      return `it came from port ${sourcePort} to ${destinationPort} instead of from ${source} to ${port}`
    },
  },
  {
    name: 'outer-address',
    section: 'RFC 8926 section 3.3, RFC 7348 section 4.1',
    expected: 'answers come from the address that was asked',
    sends: make => [make.plain()],
    judge: ({ packet }, { source }) => {
      const asked = packet[0] >> 4 === 4 ? packet.subarray(16, 20) : packet.subarray(24, 40)
      return Buffer.compare(asked, source) === 0 ? undefined : 'it came from another address'
    },
  },
  {
    name: 'outer-checksum-zero',
    section: 'RFC 8926 section 4.3, RFC 7348 section 5',
    expected: 'a packet without an outer UDP checksum is accepted',
    without: ({ family }) => (family === 4 ? undefined : 'over IPv6 only for peers that are configured so (RFC 6935)'),
    sends: make => [make.plain(make.flow(), { checksum: 'zero' })],
  },
  {
    name: 'outer-checksum-right',
    section: 'RFC 8926 section 4.3, RFC 7348 section 5',
    expected: 'a packet with a right outer UDP checksum is accepted',
    sends: make => [make.plain(make.flow(), { checksum: 'right' })],
  },
  {
    name: 'outer-checksum-wrong-dropped',
    section: 'RFC 8926 section 4.3, RFC 7348 section 5',
    expected: 'a packet with a wrong outer UDP checksum is dropped',
    sends: make => [make.plain(make.flow(), { checksum: 'wrong', fate: 'nothing' })],
  },
  {
    name: 'outer-ttl',
    section: 'RFC 1122 section 3.2.1.7, RFC 8200 section 3',
    expected: `answers start with a TTL that reaches anywhere (64): at least ${HOPS} are left here`,
    sends: make => [make.plain()],
    judge: (_, { ttl }) => (ttl >= HOPS ? undefined : `the answer's TTL is ${ttl}`),
  },
  {
    name: 'outer-dscp',
    section: 'RFC 8926 section 4.4.2, RFC 2983 section 4.1',
    expected: 'the DSCP of the inner packet, which is the outer one as well, is that of the answer',
    sends: make => {
      const flow = make.flow()
      return [make.probe(flow, udpPacket(flow, make.data(), { tos: EF << 2 }), { tos: EF << 2 })]
    },
    judge: (_, { tos }) => (tos >> 2 === EF ? undefined : `sent as ${EF}, the DSCP of the answer is ${tos >> 2}`),
  },
  {
    name: 'outer-fragments',
    section: 'RFC 791 section 3.2; RFC 7348 section 4.3, RFC 8926 section 4.4.1',
    expected:
      'fragments of the outer packet come back as the whole that they are or not at all; one alone is no packet',
    without: ({ family }) =>
      family === 4 ? undefined : 'over IPv4 only: no IPv6 router fragments (RFC 8200 section 5)',
    sends: outerFragments,
    judge: innerWhole,
  },
  ...eachFamily({
    name: 'ecn-outer',
    section: 'RFC 6040 section 4.1',
    expected: 'the outer ECN field of an answer shows the inner one',
    sends: (make, family) => [
      ecn(make, family, ECT0, ECT0),
      ecn(make, family, NOT_ECT, NOT_ECT),
      ecn(make, family, CE, CE),
    ],
    judge: outerEcnShowsInner,
  }),
  ...eachFamily({
    name: 'ecn-congestion-dropped',
    section: 'RFC 6040 section 4.2',
    expected: 'CE outside a packet that is Not-ECT: it is dropped, because nobody could be told',
    sends: (make, family) => [ecn(make, family, NOT_ECT, CE, 'nothing')],
  }),
  ...eachFamily({
    name: 'ecn-congestion-shown',
    section: 'RFC 6040 section 4.2',
    expected: 'CE outside a packet that is ECT(0) or ECT(1): it is CE inside afterwards',
    sends: (make, family) => [ecn(make, family, ECT0, CE), ecn(make, family, ECT1, CE)],
    judge: innerEcnIs(CE),
  }),
  ...eachFamily({
    name: 'ecn-congestion-kept',
    section: 'RFC 6040 section 4.2',
    expected: 'CE inside stays, whatever is outside',
    sends: (make, family) => [NOT_ECT, ECT0, ECT1, CE].map(outer => ecn(make, family, CE, outer)),
    judge: innerEcnIs(CE),
  }),
  ...eachFamily({
    name: 'ecn-ect1-shown',
    section: 'RFC 6040 section 4.2',
    expected: 'ECT(1) outside ECT(0): it is ECT(1) inside afterwards',
    sends: (make, family) => [ecn(make, family, ECT0, ECT1)],
    judge: innerEcnIs(ECT1),
  }),
  ...eachFamily({
    name: 'ecn-not-ect-kept',
    section: 'RFC 6040 section 4.2',
    expected: 'ECT outside a packet that is Not-ECT: it stays Not-ECT and is not dropped',
    sends: (make, family) => [ecn(make, family, NOT_ECT, ECT0), ecn(make, family, NOT_ECT, ECT1)],
    judge: innerEcnIs(NOT_ECT),
  }),
]

/** Source port of an outer packet of ours. */
const sourcePortOf = (packet: Uint8Array) => udp.sourcePort(packet, packet[0] >> 4 === 4 ? ipv4.HEADER : ipv6.HEADER)
