// Cases about flows: metadata of each, order, and what a load balancer's stickiness takes for granted.

import { AWS_APPLIANCE, awsGuide, type PacketCase, whereFlowsDiffer } from '../case.ts'
import { connection } from '../connection.ts'
import { udpPacket } from '../inner.ts'
import { identityUnchanged } from '../judges.ts'
import type { Probe } from '../probe.ts'

const AWS_FLOWS = `${AWS_APPLIANCE} (flow cookie)`
const MANY = 500
const IN_ORDER = 48

/** Positions of probes. */
const numbers = (probes: readonly Probe[], answered: readonly Probe[]) => answered.map(probe => probes.indexOf(probe))

export const FLOW_CASES: readonly PacketCase[] = [
  {
    name: 'answers',
    section: 'RFC 8926 section 1, RFC 7348 section 4.1',
    expected: 'a plain UDP packet is answered',
    sends: make => [make.plain()],
  },
  {
    name: 'flow-identity',
    section: AWS_FLOWS,
    expected: 'each of many flows gets its own metadata back, from both ends',
    without: whereFlowsDiffer,
    sends: make =>
      Array.from({ length: 64 }, () => make.flow()).flatMap(flow => {
        const vni = make.vnis[flow.number % make.vnis.length]
        return [make.plain(flow, { vni }), make.plain(flow, { vni, reply: true })]
      }),
    judge: identityUnchanged,
  },
  {
    name: 'flow-other-source',
    section: 'RFC 8926 section 3.3 (the source port carries entropy only)',
    expected: 'a flow that comes from another outer source port is served as before',
    sends: make => {
      const flow = make.flow()
      return [0, 1, 0].map(source => make.plain(flow, { source: source as 0 | 1 }))
    },
  },
  {
    name: 'flow-many',
    section: awsGuide('flow stickiness'),
    expected: `all of ${MANY} flows are answered`,
    sends: make => Array.from({ length: MANY }, () => make.plain()),
  },
  {
    name: 'flow-order',
    section: 'IEEE 802.1Q section 6.5.3',
    expected: 'the packets of a flow come back in order',
    burst: true,
    sends: make => {
      const flow = make.flow()
      return Array.from({ length: IN_ORDER }, () => make.plain(flow, { fate: 'either' }))
    },
    judgeAll: (probes, answered) => {
      const order = [...new Set(numbers(probes, answered))]
      const late = order.findIndex((number, i) => i > 0 && number < order[i - 1])
      return late < 0 ? undefined : `packet ${order[late] + 1} of the flow came after packet ${order[late - 1] + 1}`
    },
  },
  {
    name: 'flow-once',
    section: 'IEEE 802.1Q section 6.5.4',
    expected: 'each packet comes back once',
    burst: true,
    sends: make => {
      const flow = make.flow()
      return Array.from({ length: IN_ORDER }, () => make.plain(flow, { fate: 'either' }))
    },
    judgeAll: (probes, answered) => {
      const twice = numbers(probes, answered).find((number, i, all) => all.indexOf(number) !== i)
      return twice === undefined ? undefined : `packet ${twice + 1} of the flow came back more than once`
    },
  },
]

const AWS_IDLE = awsGuide('idle timeout')
const slowOnly = (protocol: string, profile: string, slow: boolean) =>
  profile !== 'aws-gwlb'
    ? 'the profile names no idle timeout'
    : slow
      ? undefined
      : `takes minutes of silence (${protocol}): --slow asks for it`

/** Seconds of silence: a little less than the load balancer's own timeouts. */
const IDLE = { TCP: 340, OTHERS: 110 }

export const IDLE_CASES: readonly PacketCase[] = [
  {
    name: 'idle-udp',
    section: AWS_IDLE,
    expected: `a UDP flow is still served after ${IDLE.OTHERS} s of silence (the load balancer keeps it for 120 s)`,
    without: ({ profile, slow }) => slowOnly('UDP', profile.name, slow),
    sends: make => {
      const flow = make.flow()
      return [0, IDLE.OTHERS].map(pauseSeconds => make.probe(flow, udpPacket(flow, make.data()), { pauseSeconds }))
    },
  },
  {
    name: 'idle-tcp',
    section: AWS_IDLE,
    expected: `a TCP connection is still served after ${IDLE.TCP} s of silence (the load balancer keeps it for 350 s)`,
    without: ({ profile, slow }) => slowOnly('TCP', profile.name, slow),
    sends: make => {
      const probes = connection(make, 4)
      probes[3].pauseSeconds = IDLE.TCP
      return probes
    },
  },
]
