// Cases about flows that other endpoints or gateways had before: when an endpoint fails, a load balancer may move its flows
// in mid-stream, and what it takes for a new flow may have the addresses and ports of an old one.

import * as tcp from '../../wire/tcp.ts'
import {
  AWS_APPLIANCE,
  awsGuide,
  eachFamily,
  OWN_PORT,
  type PacketCase,
  type Target,
  whereFlowsDiffer,
} from '../case.ts'
import { connection, exchange, FIRST, handshake, segment } from '../connection.ts'
import { identityUnchanged } from '../judges.ts'

const OURS = 'Detour, README (endpoints)'
const AWS_FAILOVER = awsGuide('target failover: rebalance')
const GOOGLE = 'Google Cloud, "Compute Engine API" (connectionPersistenceOnUnhealthyBackends)'
const AZURE = 'Azure, "Azure Load Balancer health probes" (probe down behavior)'

/** How far a connection goes on elsewhere, in bytes: beyond every window (RFC 7323 section 2.3). */
const ELSEWHERE = 0x5000_0000

const whereMoved = ({ profile }: Target) =>
  profile.moves === undefined ? 'nobody says whether flows are moved' : undefined
const whereConnectionsMoved = (target: Target) =>
  whereMoved(target) ?? (target.profile.moves === 'all' ? undefined : 'connections stay where they are')

export const REBALANCE_CASES: readonly PacketCase[] = [
  ...eachFamily({
    name: 'rebalance-tcp',
    section: `${AWS_FAILOVER}; ${GOOGLE}; ${OURS}`,
    expected: 'a connection that comes in mid-stream, no SYN seen, is served, whichever end is heard first',
    without: whereConnectionsMoved,
    sends: (make, family) => {
      const [first, second] = [make.flow(family), make.flow(family)]
      const flags = tcp.ACK | tcp.PSH
      return [
        ...exchange(make, first, FIRST),
        segment(make, second, flags, [FIRST, FIRST, 300], { reply: true }),
        segment(make, second, tcp.ACK, [FIRST, FIRST + 300]),
        segment(make, second, tcp.ACK | tcp.FIN, [FIRST, FIRST + 300]),
      ]
    },
  }),
  ...eachFamily({
    name: 'rebalance-return',
    section: `${AWS_FAILOVER}; ${GOOGLE}; ${OURS}`,
    expected: 'a connection that went on elsewhere and comes back, its numbers far from those seen last, is served',
    without: whereConnectionsMoved,
    sends: (make, family) => {
      const here = connection(make, family)
      return [...here, ...exchange(make, here[0].flow, FIRST + ELSEWHERE)]
    },
  }),
  ...eachFamily({
    name: 'rebalance-udp',
    section: `${AZURE}; ${AWS_FAILOVER}; ${GOOGLE}; ${OURS}`,
    expected: "a UDP flow of which the server's answer is the first that is heard is served",
    without: whereMoved,
    sends: (make, family) => {
      const flow = make.flow(family)
      return [true, false].map(reply => make.plain(flow, { reply }))
    },
  }),
  {
    name: 'flow-new-metadata',
    section: `${awsGuide('idle timeout')}, ${AWS_APPLIANCE} (flow cookie); RFC 7348 section 4`,
    expected:
      'addresses and ports that come again with a new flow cookie, or in another VNI, are a flow of its own: each packet keeps its metadata',
    without: whereFlowsDiffer,
    sends: make => {
      const [flow, another] = [make.flow(), make.flow()]
      return [flow, another, flow].flatMap(metadataOf => {
        const vni = make.profile.kind === 'vxlan' && metadataOf === another ? make.vnis[1] : make.vnis[0]
        return [false, true].map(reply => make.plain(flow, { reply, vni, metadataOf }))
      })
    },
    judge: identityUnchanged,
  },
  {
    name: 'flow-reopened',
    section: `${awsGuide('idle timeout')}; RFC 9293 section 3.5.1`,
    expected: 'a SYN with the addresses and ports of a connection that was never closed is served: it is a new flow',
    sends: make => {
      const open = connection(make, 4)
      return [...open, ...handshake(make, open[0].flow, FIRST + ELSEWHERE, { metadataOf: make.flow() })]
    },
  },
  {
    name: 'flow-other-gateway',
    section: `${awsGuide('cross-zone load balancing')}, ${AWS_APPLIANCE}; ${OURS}`,
    expected: 'each answer goes to the gateway that sent the packet, whichever one sent others of its flow',
    without: ({ ownsPort, twoAddresses }) =>
      ownsPort ? (twoAddresses ? undefined : 'takes two addresses of ours: --second-local asks for it') : OWN_PORT,
    sends: make => {
      const flow = make.flow()
      return [false, true, false].map(second => make.plain(flow, { second }))
    },
    judge: ({ from }, { destination }) => {
      if (Buffer.compare(from, destination) === 0) return undefined
      return 'it went to another address than the packet came from'
    },
  },
]
