// A report with every part filled in, for tests of the page.

import type { LabReport } from '../../src/lab/report.ts'

const second = (gbps: number) =>
  Array.from({ length: 20 }, (_, at): [number, number] => [(at + 1) / 4 + 0.0003, gbps + Math.sin(at)])

const stage = (worker: string, name: string, drops: number) => ({
  worker,
  stage: name,
  inPackets: 1_444_600,
  inBytes: 9.9e9,
  outPackets: 1_444_600 - drops,
  outBytes: 9.9e9,
  created: 0,
  copiedBytes: 0,
  calls: 30_000,
  errors: 0,
  drops,
})

export function sampleReport(): LabReport {
  const start = Date.UTC(2026, 0, 2, 3, 4, 5)
  const lost = (at: number) => (at >= 100 && at < 112) || (at >= 300 && at < 309)
  return {
    startedAt: new Date(start).toISOString(),
    machine: { kernel: '6.18', cpus: 2, cpuModel: 'Some <processor>', memoryGib: 24, node: '24.0.0', detour: '0.1.0' },
    options: { profile: 'geneve', family: 'IPv4', failMode: 'open' },
    places: {
      client: { namespace: 'detour-lab-client', interface: 'eth0', address: '10.244.0.2' },
      server: { namespace: 'detour-lab-server', interface: 'eth0', address: '10.244.0.3' },
      node: { namespace: 'detour-lab-node', interface: 'uplink', address: '10.99.0.1' },
      gateway: { namespace: 'detour-lab-gateway', interface: 'eth0', address: '10.99.0.2' },
    },
    steps: [
      {
        name: 'Build the topology',
        expectation: 'four namespaces with addresses',
        ok: true,
        observed: 'ready',
        ms: 44,
      },
      {
        name: 'Blocked request',
        expectation: 'GET /secret is stopped',
        ok: false,
        observed: 'status 200 & </script>',
        ms: 1200,
      },
      { name: 'Clean up', expectation: 'nothing is left', ok: null, observed: '', ms: 0 },
    ],
    links: {
      client: { rxPackets: 210_000, rxBytes: 11_200_000, txPackets: 1_234_567, txBytes: 9_876_543_210 },
      server: { rxPackets: 1_234_567, rxBytes: 9_876_543_210, txPackets: 210_000, txBytes: 11_200_000 },
      node: { rxPackets: 1_444_567, rxBytes: 9_976_543_210, txPackets: 1_444_600, txBytes: 9_976_643_210 },
    },
    faces: ['node', 'gateway'].map(face => ({
      face,
      stages: [stage(face, 'receive', 0), stage(face, 'decide', 7)],
      drops: [{ worker: face, stage: 'decide', reason: 'policy', text: 'a rule says drop', packets: 7 }],
      flows: [
        {
          worker: face,
          attachment: 'client',
          protocol: 6,
          source: '10.244.0.2',
          sourcePort: 40001,
          destination: '10.244.0.3',
          destinationPort: 8080,
          verdict: 'steer',
          sentPackets: 6,
          sentBytes: 512,
          receivedPackets: 5,
          receivedBytes: 2600,
          ageMs: 900,
          idleMs: 10,
          cookie: 7,
        },
      ],
      attachments: [],
      underlay: [],
    })),
    throughput: [
      { label: 'without Detour', bulk: { tool: 'iperf3', gbps: 24.4, series: second(24), retransmits: 0 } },
      { label: 'through tunnel and gateway', bulk: { tool: 'iperf3', gbps: 8.6, series: second(8), retransmits: 0 } },
    ],
    probe: {
      intervalMs: 20,
      records: Array.from({ length: 500 }, (_, at) => ({
        sentMs: start + at * 20,
        answeredMs: lost(at) ? null : start + at * 20 + 0.08 + ((at * 7919) % 97) / 200,
      })),
      events: [
        { atMs: start + 2000, label: 'gateway killed' },
        { atMs: start + 4000, label: 'gateway restarted' },
        { atMs: start + 6000, label: 'node killed' },
      ],
    },
    captures: [{ file: 'overlay.pcapng', text: "the pods' packets" }],
  }
}
