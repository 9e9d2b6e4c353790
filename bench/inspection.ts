// What does inspection cost? HTTP requests of 1 KiB over kept-alive connections, replayed through node and gateway: judged one by
// one by a policy that limits requests, or only let through by policies of ports, few and 10,000. Baseline: a gateway that
// allows everything.

import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tunnelOf } from '../src/cli/options.ts'
import type { Manifests, Policy } from '../src/gateway/judge.ts'
import { ALLOW_ALL } from '../src/gateway/rules.ts'
import { runReplay } from '../src/lab/replay.ts'
import * as ethernet from '../src/wire/ethernet.ts'
import * as ipv4 from '../src/wire/ipv4.ts'
import { LINKTYPE } from '../src/wire/linktype.ts'
import { RECORD_HEADER, writeHeader, writeRecord } from '../src/wire/pcap.ts'
import { MAX_CAPTURED } from '../src/wire/record.ts'
import * as tcp from '../src/wire/tcp.ts'
import type { Bench } from './harness.ts'

const CLIENT = 0x0a000001
const SERVER = 0x0a000002
const REQUEST = 1024
const CONNECTIONS = 500
const HEADERS = ethernet.HEADER + ipv4.HEADER + tcp.HEADER

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
  const items = [pod('client', '10.0.0.1'), pod('server', '10.0.0.2')]
  return {
    policies: Array.from({ length: count }, (_, i) => ({ value: policy(i), where: `policy ${i}` })),
    inventory: [{ value: { kind: 'List', items }, where: 'inventory' }],
    denial: 'reset',
  }
}

/** Writes connections that are opened, and then ask in turn, a request a packet; each is acknowledged. */
function writeRequests(path: string, requests: number): string {
  const text = 'GET /public/page HTTP/1.1\r\nHost: server.example\r\nUser-Agent: bench\r\nX-Filler: '
  const request = new TextEncoder().encode(`${text.padEnd(REQUEST - 4, 'x')}\r\n\r\n`)
  const fd = openSync(path, 'w')
  const buffer = new Uint8Array(1 << 20)
  const view = new DataView(buffer.buffer)
  const header = { little: true, nanoseconds: false, snaplen: MAX_CAPTURED, linktype: LINKTYPE.ETHERNET, fcs: 0 }
  let at = writeHeader(view, 0, header)
  let number = 0
  const packet = (connection: number, fromServer: boolean, sequence: number, ack: number, flags: number, data = 0) => {
    const size = HEADERS + data
    if (at + RECORD_HEADER + size > buffer.length) {
      writeSync(fd, buffer, 0, at)
      at = 0
    }
    writeRecord(view, at, header, 1_700_000_000 + Math.floor(number / 1e5), (number++ % 1e5) * 1e4, size, size)
    at += RECORD_HEADER
    const ip = at + ethernet.HEADER
    const segment = ip + ipv4.HEADER
    const [source, destination] = fromServer ? [SERVER, CLIENT] : [CLIENT, SERVER]
    const [from, to] = fromServer ? [80, 10_000 + connection] : [10_000 + connection, 80]
    ethernet.write(buffer, at, 0x0200, destination & 255, 0x0200, source & 255, ethernet.ETHERTYPE.IPV4)
    ipv4.write(buffer, ip, ipv4.HEADER, 0, size - ethernet.HEADER, 0, 0, 64, ipv4.PROTOCOL.TCP, source, destination)
    tcp.write(buffer, segment, tcp.HEADER, from, to, sequence, ack, flags, 65_535)
    if (data > 0) buffer.set(request, segment + tcp.HEADER)
    tcp.updateChecksum(buffer, ip, segment, segment + tcp.HEADER + data)
    at += size
  }
  for (let i = 0; i < CONNECTIONS; i++) {
    packet(i, false, 0, 0, tcp.SYN)
    packet(i, true, 0, 1, tcp.SYN | tcp.ACK)
  }
  for (let i = 0; i < requests; i++) {
    const sequence = 1 + Math.floor(i / CONNECTIONS) * REQUEST
    packet(i % CONNECTIONS, false, sequence, 1, tcp.ACK | tcp.PSH, REQUEST)
    packet(i % CONNECTIONS, true, 1, sequence + REQUEST, tcp.ACK)
  }
  writeSync(fd, buffer, 0, at)
  closeSync(fd)
  return path
}
