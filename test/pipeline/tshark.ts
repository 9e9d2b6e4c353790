// tshark as an oracle: decodes frames and verifies every checksum that it finds.

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** True when tshark is installed. */
export const hasTshark = spawnSync('tshark', ['--version']).status === 0

/** A pcap file (microseconds, Ethernet) of the frames, taken at these times, ms, or a second after another. */
export function pcapOf(frames: Uint8Array[], timesMs = frames.map((_, i) => 1000 * i)): Buffer {
  const header = Buffer.alloc(24)
  header.writeUInt32LE(0xa1b2c3d4, 0)
  header.writeUInt16LE(2, 4)
  header.writeUInt16LE(4, 6)
  header.writeUInt32LE(262_144, 16)
  header.writeUInt32LE(1, 20)
  const records = frames.map((frame, i) => {
    const record = Buffer.alloc(16)
    record.writeUInt32LE(Math.floor(timesMs[i] / 1000), 0)
    record.writeUInt32LE((timesMs[i] % 1000) * 1000, 4)
    record.writeUInt32LE(frame.length, 8)
    record.writeUInt32LE(frame.length, 12)
    return Buffer.concat([record, frame])
  })
  return Buffer.concat([header, ...records])
}

const CHECKED = ['ip', 'tcp', 'udp'].flatMap(name => ['-o', `${name}.check_checksum:TRUE`])

// Payloads here are random; tshark would guess at them.
const OPAQUE = ['tcp', 'udp'].flatMap(protocol => ['-d', `${protocol}.port==40001,data`])

/** The values of fields in every frame, an array a field: a field may occur more than once. */
export function decode(frames: Uint8Array[], fields: string[]): Record<string, string[]>[] {
  const directory = mkdtempSync(join(tmpdir(), 'detour-tshark-'))
  const file = join(directory, 'frames.pcap')
  try {
    writeFileSync(file, pcapOf(frames))
    const args = ['-r', file, ...OPAQUE, ...CHECKED, '-T', 'json', ...fields.flatMap(field => ['-e', field])]
    const out = execFileSync('tshark', args, { maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'ignore'] })
    return JSON.parse(out.toString()).map((packet: { _source: { layers?: object } }) => packet._source.layers ?? {})
  } finally {
    rmSync(directory, { recursive: true })
  }
}
