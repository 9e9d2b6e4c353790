// What people and machines read of a run: one line for a packet, JUnit XML, and a pcap of each failure.

import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DetourError } from '../errors.ts'
import { LINKTYPE } from '../wire/linktype.ts'
import * as pcap from '../wire/pcap.ts'
import { showPacket } from '../wire/show.ts'
import type { ConformProfile } from './profile.ts'
import type { Captured, Outcome, Result } from './run.ts'

/** One line for an outer IP packet, with what tcpdump would not say of it unasked. */
export function line(kind: ConformProfile['kind'], ports: readonly number[], b: Uint8Array): string {
  const four = b[0] >> 4 === 4
  const [tos, ttl] = four ? [b[1], b[8]] : [((b[0] << 4) | (b[1] >> 4)) & 0xff, b[7]]
  return `(tos 0x${tos.toString(16)}, ttl ${ttl}) ${showPacket(b, 0, b.length, { [kind]: ports })}`
}

/** How many cases passed, failed and were not asked. */
export function tally(results: readonly Result[]): Record<Outcome, number> {
  const counts = { pass: 0, fail: 0, skip: 0 }
  for (const { outcome } of results) counts[outcome]++
  return counts
}

/** The results as JUnit XML, one test suite. */
export function junit(suite: string, results: readonly Result[], started: Date): string {
  const { fail, skip } = tally(results)
  const seconds = (ms: number) => (ms / 1000).toFixed(3)
  const total = results.reduce((sum, { ms }) => sum + ms, 0)
  const attributes = `name="${escaped(suite)}" tests="${results.length}" failures="${fail}" errors="0" skipped="${skip}"`
  const cases = results.map(({ name, section, expected, outcome, why, sent, seen, ms }) => {
    const head = `    <testcase classname="${escaped(suite)}" name="${escaped(name)}" time="${seconds(ms)}"`
    if (outcome === 'pass') return `${head}/>`
    if (outcome === 'skip') return `${head}>\n      <skipped message="${escaped(why ?? '')}"/>\n    </testcase>`
    const text = [`section:  ${section}`, `sent:     ${sent}`, `expected: ${expected}`, `seen:     ${seen}`].join('\n')
    return `${head}>\n      <failure message="${escaped(seen ?? '')}">${escaped(text)}</failure>\n    </testcase>`
  })
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    '<testsuites>',
    `  <testsuite ${attributes} time="${seconds(total)}" timestamp="${started.toISOString().slice(0, 19)}">`,
    ...cases,
    '  </testsuite>',
    '</testsuites>',
    '',
  ].join('\n')
}

const ENTITIES: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }

/** Text for an attribute or an element; what XML 1.0 has no way to say (section 2.2) is replaced. */
function escaped(text: string): string {
  return text
    .replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, '\ufffd')
    .replace(/[&<>"\t\n\r]/g, character => ENTITIES[character] ?? `&#${character.charCodeAt(0)};`)
}

/** Writes packets of both directions as a pcap file of raw IP packets (microseconds). */
export function writeCapture(directory: string, name: string, packets: readonly Captured[]): string {
  const path = join(directory, `${name}.pcap`)
  const size = packets.reduce((sum, { packet }) => sum + pcap.RECORD_HEADER + packet.length, pcap.FILE_HEADER)
  const bytes = new Uint8Array(size)
  const view = new DataView(bytes.buffer)
  const header = { little: true, nanoseconds: false, snaplen: 65_535, linktype: LINKTYPE.RAW, fcs: 0 }
  let at = pcap.writeHeader(view, 0, header)
  for (const { packet, time } of packets) {
    const seconds = Math.floor(time / 1000)
    const nanoseconds = Math.round((time - seconds * 1000) * 1e6)
    pcap.writeRecord(view, at, header, seconds, nanoseconds, packet.length, packet.length)
    at += pcap.RECORD_HEADER
    bytes.set(packet, at)
    at += packet.length
  }
  write(path, bytes, () => mkdirSync(directory, { recursive: true }))
  return path
}

/** Writes a file; throws DetourError when that fails. */
export function write(path: string, content: string | Uint8Array, before = () => {}): void {
  try {
    before()
    writeFileSync(path, content)
  } catch (error) {
    throw new DetourError('bad-file', `${path}: cannot be written (${(error as Error).message})`, { cause: error })
  }
}
