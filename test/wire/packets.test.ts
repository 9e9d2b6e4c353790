// Frames that scapy built: our reading against tshark's, field by field, and our line against tcpdump's.
// Frames that we built: tshark's reading against ours.

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { show } from '../../src/wire/show.ts'
import { buildFrames } from './build.ts'
import { dissect, type Fields } from './dissect.ts'
import { FIXTURES, fixture, toHex } from './harness.ts'

const ORACLE = new URL('../../fixtures/wire/oracle.py', import.meta.url).pathname

const missing = [
  ['tshark', '--version'],
  ['tcpdump', '--version'],
  ['/usr/bin/python3', '-c', 'import scapy'],
].find(([command, ...args]) => spawnSync(command, args).status !== 0)
const without = missing === undefined ? '' : ` (skipped: '${missing.join(' ')}' fails)`

describe('in the frames that scapy built', () => {
  for (const { name, tshark } of FIXTURES) {
    it(`tshark and we read the same: ${name}`, () => expect(dissect(fixture(name))).toEqual(tshark))
  }

  // What tcpdump words differently on purpose: VLAN tags only with -e, fragments and extension headers, quoted packets, payloads that it decodes.
  const otherwise =
    /vlan|fragment|extensions|header|esp|every field|hop-by-hop|icmp.*(unre|exc|need|big|router)|unknown|critical|control|three|options$|longest|reserved/
  const alike = FIXTURES.filter(({ name }) => !otherwise.test(name))

  it('there are enough to compare with tcpdump', () => expect(alike.length).toBeGreaterThan(20))
  for (const { name, tcpdump } of alike) {
    it(`tcpdump and we show the same: ${name}`, () => expect(show(fixture(name))).toBe(inOneLine(tcpdump)))
  }
})

describe.skipIf(missing !== undefined)(`with tshark, tcpdump and scapy at hand${without}`, () => {
  it('the fixtures are what they build and read', () => {
    expect(oracle('build')).toEqual(FIXTURES)
  })

  it('tshark reads in 400 frames of ours what we wrote, and finds every checksum right', () => {
    const frames = buildFrames(400, 20261121)
    const folder = mkdtempSync(join(tmpdir(), 'detour-wire-'))
    const file = join(folder, 'frames.pcap')
    try {
      writeFileSync(file, capture(frames.map(frame => frame.bytes)))
      const seen = oracle('read', file) as Fields[]
      expect(seen.length).toBe(frames.length)
      for (const [i, { bytes, fields }] of frames.entries()) {
        expect(seen[i], toHex(bytes)).toEqual(dissect(bytes))
        expect(seen[i], toHex(bytes)).toMatchObject(fields)
        for (const [name, values] of Object.entries(seen[i])) {
          if (name.endsWith('checksum.status')) expect(values, `${name} of ${toHex(bytes)}`).not.toContain('0')
        }
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})

/** tcpdump's words for the same thing: the VNI of GENEVE in hexadecimal, VXLAN's packet on a line of its own. */
function inOneLine(line: string): string {
  return line
    .replaceAll(/Flags \[none\], vni|(?<=Flags \[C\], )vni/g, 'vni')
    .replaceAll(/vni (0x[0-9a-f]+)/g, (_, vni) => `vni ${Number(vni)}`)
    .replaceAll(/flags \[I\] \(0x08\), (vni \d+)\n/g, '$1: ')
}

function oracle(...args: string[]): unknown {
  return JSON.parse(execFileSync('/usr/bin/python3', [ORACLE, ...args], { encoding: 'utf8', maxBuffer: 1 << 28 }))
}

/** A little-endian microsecond pcap file of Ethernet frames. */
function capture(frames: Uint8Array[]): Buffer {
  const header = Buffer.alloc(24)
  header.writeUInt32LE(0xa1b2c3d4, 0)
  header.writeUInt32LE(0x00040002, 4)
  header.writeUInt32LE(0xffff, 16)
  header.writeUInt32LE(1, 20)
  const records = frames.flatMap(frame => {
    const record = Buffer.alloc(16)
    record.writeUInt32LE(frame.length, 8)
    record.writeUInt32LE(frame.length, 12)
    return [record, Buffer.from(frame)]
  })
  return Buffer.concat([header, ...records])
}
