// What do threat signatures cost? Random bytes over TCP, in full segments of 100 connections, replayed through node and gateway with
// 1, 1,000 and 10,000 signatures. Baseline: a gateway without any.

import { randomFillSync } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tunnelOf } from '../src/cli/options.ts'
import { ALLOW_ALL } from '../src/gateway/rules.ts'
import { parseRules } from '../src/gateway/suricata/parse.ts'
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
const SEGMENT = 1460
const CONNECTIONS = 100
const HEADERS = ethernet.HEADER + ipv4.HEADER + tcp.HEADER
const MIB = 1 << 20

export async function run(bench: Bench): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'detour-bench-'))
  try {
    const size = (bench.short ? 64 : 1024) * MIB
    const input = writeRandom(join(folder, 'random.pcap'), size)
    const rate = (count: number) => {
      const signatures = count === 0 ? undefined : signaturesOf(count)
      return async () => {
        const tunnel = tunnelOf({ profile: 'vxlan' })
        const report = await runReplay({
          input,
          tunnel,
          policy: ALLOW_ALL,
          signatures,
          live: false,
          rate: 'max',
          workers: 1,
        })
        if (report.notReturned > 0) throw new Error(`${report.notReturned} packets did not come back`)
        return size / MIB / report.seconds
      }
    }
    await bench.ask({
      name: `${size / MIB} MiB of random TCP`,
      unit: 'MiB/s',
      better: 'more',
      contenders: [
        { name: 'no signature', measure: rate(0) },
        { name: '1 signature', measure: rate(1) },
        { name: '1,000 signatures', measure: rate(1000) },
        { name: '10,000 signatures', measure: rate(10_000) },
      ],
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Rules as rule sets have them: most with one content, of 4 to 24 bytes; some with two, an expression, or about requests. */
function signaturesOf(count: number) {
  let seed = 12345
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fff_ffff
    return (seed >>> 8) % below
  }
  const word = () => Array.from({ length: 4 + random(21) }, () => String.fromCharCode(97 + random(26))).join('')
  const binary = () =>
    `|${Array.from({ length: 4 + random(9) }, () => (256 + random(256)).toString(16).slice(1)).join(' ')}|`
  const bodies = [
    () => `content:"${word()}"; nocase;`,
    () => `content:"${word()}";`,
    () => `content:"${binary()}";`,
    () => `content:"${word()}"; content:"${word()}"; distance:0; within:100;`,
    () => `content:"${word()}"; pcre:"/${word()}\\d+/";`,
    () => `flow:established,to_server; http.uri; content:"/${word()}";`,
  ]
  const lines = Array.from(
    { length: count },
    (_, i) => `alert tcp any any -> any any (${bodies[i % bodies.length]()} sid:${i + 1};)`,
  )
  return parseRules([{ file: 'bench', text: lines.join('\n') }], {}, 'refuse').signatures
}

/** Writes connections that are opened, and then send in turn, a full segment a packet; each is acknowledged. */
function writeRandom(path: string, size: number): string {
  const fd = openSync(path, 'w')
  const buffer = new Uint8Array(1 << 22)
  const view = new DataView(buffer.buffer)
  const random = new Uint8Array(16 * MIB)
  const header = { little: true, nanoseconds: false, snaplen: MAX_CAPTURED, linktype: LINKTYPE.ETHERNET, fcs: 0 }
  let at = writeHeader(view, 0, header)
  let number = 0
  let used = random.length
  const packet = (connection: number, fromServer: boolean, sequence: number, ack: number, flags: number, data = 0) => {
    const length = HEADERS + data
    if (at + RECORD_HEADER + length > buffer.length) {
      writeSync(fd, buffer, 0, at)
      at = 0
    }
    writeRecord(view, at, header, 1_700_000_000 + Math.floor(number / 1e5), (number++ % 1e5) * 1e4, length, length)
    at += RECORD_HEADER
    const ip = at + ethernet.HEADER
    const segment = ip + ipv4.HEADER
    const [source, destination] = fromServer ? [SERVER, CLIENT] : [CLIENT, SERVER]
    const [from, to] = fromServer ? [9000, 10_000 + connection] : [10_000 + connection, 9000]
    ethernet.write(buffer, at, 0x0200, destination & 255, 0x0200, source & 255, ethernet.ETHERTYPE.IPV4)
    ipv4.write(buffer, ip, ipv4.HEADER, 0, length - ethernet.HEADER, 0, 0, 64, ipv4.PROTOCOL.TCP, source, destination)
    tcp.write(buffer, segment, tcp.HEADER, from, to, sequence, ack, flags, 65_535)
    if (data > 0) {
      if (used + data > random.length) {
        randomFillSync(random)
        used = 0
      }
      buffer.set(random.subarray(used, used + data), segment + tcp.HEADER)
      used += data
    }
    tcp.updateChecksum(buffer, ip, segment, segment + tcp.HEADER + data)
    at += length
  }
  for (let i = 0; i < CONNECTIONS; i++) {
    packet(i, false, 0, 0, tcp.SYN)
    packet(i, true, 0, 1, tcp.SYN | tcp.ACK)
    packet(i, false, 1, 1, tcp.ACK)
  }
  for (let i = 0, segments = Math.ceil(size / SEGMENT); i < segments; i++) {
    const sequence = 1 + Math.floor(i / CONNECTIONS) * SEGMENT
    packet(i % CONNECTIONS, false, sequence, 1, tcp.ACK | tcp.PSH, SEGMENT)
    packet(i % CONNECTIONS, true, 1, sequence + SEGMENT, tcp.ACK)
  }
  writeSync(fd, buffer, 0, at)
  closeSync(fd)
  return path
}
