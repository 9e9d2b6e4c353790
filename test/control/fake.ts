// A face that never was: known counters, flows and rows for the tests of socket and command.

import { type FlowRow, type Source, selectFlows } from '../../src/control/source.ts'
import { DROP } from '../../src/drop.ts'
import { Counters, readCounters } from '../../src/memory/counters.ts'

/** What `fakeSource` answers; tests change `counters` and look for the difference. */
export interface Fake {
  source: Source
  counters: Counters
}

/** A lab with one worker of two stages, three flows, one attachment, one underlay and two alarms. */
export function fakeSource(): Fake {
  const counters = new Counters()
  const decide = counters.stage('decide')
  const encap = counters.stage('encap')
  counters.stage('idle')
  decide.received(1234567, 99_000_000)
  decide.sent(1234560, 98_000_000)
  decide.dropped(DROP.POLICY, 4)
  decide.dropped(DROP.UNKNOWN_PEER, 3)
  encap.received(1234560, 98_000_000)
  encap.sent(1234560, 160_000_000)
  encap.created(-5)
  const handle = counters.share()
  const source: Source = {
    info: () => ({ face: 'lab', profile: 'geneve' }),
    counters: () => [{ worker: 'forward-0', stages: readCounters(handle) }],
    flows: query => selectFlows(FLOWS, query, 1000),
    attachments: () => [
      {
        id: 'client',
        namespace: 'lab-client',
        interface: 'eth0',
        mac: '02:00:00:00:00:01',
        addresses: ['10.1.0.2', 'fd00::2'],
        mtu: 1500,
        failMode: 'closed',
        heartbeatAgeMs: 12,
        heartbeatLimitMs: 200,
        attachRung: 'tcx',
        offloadRung: 'tunnel-gso',
        redirected: 1000,
        failPassed: 0,
        failDropped: 9,
        missed: 4321,
      },
    ],
    underlay: () => [
      {
        device: 'tap:dtr0',
        profile: 'geneve',
        local: '192.0.2.1',
        remote: '192.0.2.2',
        port: 6081,
        vni: 7,
        mtu: 1500,
        rung: 'tunnel-gso',
        capabilities: ['checksum', 'tso4'],
      },
    ],
    endpoints: () => [
      {
        ...{ name: 'gw-a', address: '192.0.2.2', weight: 3, state: 'up', sinceMs: 61_000, flows: 2, mtu: 1450 },
        ...{ probesSent: 9, probesAnswered: 8, latency: { bounds: [0.5, 1, 250], counts: [1, 6, 0, 1], sumMs: 1503 } },
      },
      {
        ...{ name: 'gw-b', address: '2001:db8::2', weight: 1, state: 'down', sinceMs: 500, flows: 0 },
        ...{ probesSent: 9, probesAnswered: 0 },
      },
    ],
    alarms: () => [
      { name: 'uplink eth0', text: 'uplink eth0 is down', raised: true, times: 3, sinceMs: 1500 },
      { name: 'endpoint', text: 'endpoint 192.0.2.2 answers again', raised: false, times: 1, sinceMs: 90_000 },
    ],
  }
  return { source, counters }
}

function flow(sourcePort: number, sentPackets: number, sentBytes: number, verdict: FlowRow['verdict']): FlowRow {
  return {
    worker: 'forward-0',
    attachment: 'client',
    protocol: 6,
    source: '10.1.0.2',
    sourcePort,
    destination: '10.1.0.3',
    destinationPort: 443,
    verdict,
    sentPackets,
    sentBytes,
    receivedPackets: 1,
    receivedBytes: 60,
    ageMs: 5000,
    idleMs: 100,
    cookie: 0xfedcba98,
  }
}

export const FLOWS = [flow(40001, 10, 640, 'steer'), flow(40002, 3, 90_000, 'drop'), flow(40003, 7, 700, 'steer')]
