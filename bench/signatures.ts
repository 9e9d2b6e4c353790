// What do threat signatures cost? Random bytes over TCP, in full segments of 100 connections, replayed through node and gateway with
// 1, 1,000 and 10,000 signatures. Baseline: a gateway without any.

import { randomFillSync } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tunnelOf } from '../src/cli/options.ts'
import { ALLOW_ALL } from '../src/gateway/rules.ts'
import { parseRules } from '../src/gateway/suricata/parse.ts'
import { runReplay } from '../src/lab/replay.ts'
import type { Bench } from './harness.ts'
import { writeConnections } from './traffic/connections.ts'

const SEGMENT = 1460
const CONNECTIONS = 100
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

/** Connections that send random bytes, a full segment a packet. */
function writeRandom(path: string, size: number): string {
  const random = new Uint8Array(16 * MIB)
  let used = random.length
  return writeConnections(path, {
    ...{ connections: CONNECTIONS, port: 9000, segments: Math.ceil(size / SEGMENT), size: SEGMENT },
    data() {
      if (used + SEGMENT > random.length) {
        randomFillSync(random)
        used = 0
      }
      used += SEGMENT
      return random.subarray(used - SEGMENT, used)
    },
  })
}
