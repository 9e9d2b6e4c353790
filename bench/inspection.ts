// What does inspection cost? HTTP requests of 1 KiB over kept-alive connections, replayed through node and gateway: judged one by
// one by a policy that limits requests, or only let through by policies of ports, few and 10,000. Baseline: a gateway that
// allows everything.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tunnelOf } from '../src/cli/options.ts'
import type { Manifests, Policy } from '../src/gateway/judge.ts'
import { ALLOW_ALL } from '../src/gateway/rules.ts'
import { runReplay } from '../src/lab/replay.ts'
import type { Bench } from './harness.ts'
import { CLIENT, SERVER, writeConnections } from './traffic/connections.ts'

const REQUEST = 1024
const CONNECTIONS = 500

export async function run(bench: Bench): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'detour-bench-'))
  try {
    const requests = bench.short ? 20_000 : 200_000
    const input = writeRequests(join(folder, 'requests.pcap'), requests)
    const rate = (policy: Policy) => async () => {
      const tunnel = tunnelOf({ profile: 'vxlan' })
      const report = await runReplay({ input, tunnel, policy, live: false, rate: 'max', workers: 1 })
      if (report.notReturned > 0) throw new Error(`${report.notReturned} packets did not come back`)
      return requests / report.seconds / 1000
    }
    await bench.ask({
      name: `requests of ${REQUEST} bytes over ${CONNECTIONS} connections, ${requests.toLocaleString('en-US')} in all`,
      unit: 'thousand requests/s',
      better: 'more',
      contenders: [
        { name: 'nothing to judge', measure: rate(ALLOW_ALL) },
        { name: 'one policy of ports', measure: rate(policies(1, undefined)) },
        { name: '10,000 policies of ports', measure: rate(policies(10_000, undefined)) },
        { name: 'a policy of requests', measure: rate(policies(1, [{ method: 'GET|POST', path: '/public/.*' }])) },
      ],
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Policies that all select the server; the last one allows what is asked. */
function policies(count: number, http: object[] | undefined): Manifests {
  const rules = http && { http }
  const policy = (i: number) => ({
    apiVersion: 'cilium.io/v2',
    kind: 'CiliumNetworkPolicy',
    metadata: { name: `p${i}`, namespace: 'bench' },
    spec: {
      endpointSelector: { matchLabels: { app: 'server' } },
      ingress: [{ toPorts: [{ ports: [{ port: i === count - 1 ? '80' : `${1000 + (i % 50_000)}` }], rules }] }],
    },
  })
  const pod = (name: string, podIP: string) => ({
    kind: 'Pod',
    metadata: { name, namespace: 'bench', labels: { app: name } },
    status: { podIP },
  })
  const items = [pod('client', CLIENT), pod('server', SERVER)]
  return {
    policies: Array.from({ length: count }, (_, i) => ({ value: policy(i), where: `policy ${i}` })),
    inventory: [{ value: { kind: 'List', items }, where: 'inventory' }],
    denial: 'reset',
  }
}

/** Connections that ask, a request a packet. */
function writeRequests(path: string, requests: number): string {
  const text = 'GET /public/page HTTP/1.1\r\nHost: server.example\r\nUser-Agent: bench\r\nX-Filler: '
  const request = new TextEncoder().encode(`${text.padEnd(REQUEST - 4, 'x')}\r\n\r\n`)
  return writeConnections(path, {
    ...{ connections: CONNECTIONS, port: 80, segments: requests, size: REQUEST },
    data: () => request,
  })
}
