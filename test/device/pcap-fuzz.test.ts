// Capture files that lie: every shipped capture, changed by seeded dice, read and written on. Nothing throws, nothing
// hangs, every packet is accounted for, and the tools of others can read what comes out.
import { closeSync, readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { createCapture, Origins, openCapture, PcapReader, PcapWriter } from '../../src/device/pcap.ts'
import { DetourError } from '../../src/errors.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { captures, fields, fixture, missing, newPool, temporary } from './captures.ts'

const ROUNDS = 12
const pool = newPool(64, 8192)

function dice(seed: number): (sides: number) => number {
  let state = seed
  return sides => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * sides)
  }
}

const WORDS = [0, 1, 4, 8, 12, 15, 16, 27, 28, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, 0xffff_ffff, 262_144, 262_145]

/** Changes the bytes in place, or returns fewer of them. */
function spoil(bytes: Buffer, roll: (sides: number) => number): Buffer {
  for (let changes = 1 + roll(4); changes > 0; changes--) {
    const at = roll(bytes.length)
    const kind = roll(5)
    if (kind === 0) bytes[at] ^= 1 << roll(8)
    else if (kind === 1) bytes[at] = roll(256)
    else if (kind === 2 && at + 4 <= bytes.length) bytes.writeUInt32LE(WORDS[roll(WORDS.length)], at)
    else if (kind === 3 && at + 4 <= bytes.length) bytes.writeUInt32BE(WORDS[roll(WORDS.length)], at & ~3)
    else if (kind === 4) return bytes.subarray(0, at)
  }
  return bytes
}

/** Reads and writes on; returns the packets written, or -1 when the file was refused at the door. */
async function survive(path: string, to: string): Promise<number> {
  const file = await openCapture(path).catch((error: unknown) => {
    if (error instanceof DetourError && error.code === 'bad-file' && error.message.includes(path)) return undefined
    throw error
  })
  if (file === undefined) return -1
  const origins = new Origins(file.format, 64)
  const [received, sent] = [new StageCounters('receive'), new StageCounters('transmit')]
  const reader = new PcapReader(pool, received, file, { origins })
  const output = createCapture(to)
  const writer = new PcapWriter(pool, sent, output, { format: file.format, origins })
  const batch = new Batch(16)
  for (let turns = 0; !reader.exhausted; turns++) {
    expect(turns).toBeLessThan(file.size + 2)
    reader.receive(batch)
    for (const frame of batch.frames.subarray(0, batch.length)) {
      expect(pool.start[frame] + pool.length[frame]).toBeLessThanOrEqual(pool.limit(frame))
      expect(pool.nanoseconds[frame]).toBeLessThan(1e9)
    }
    writer.transmit(batch)
  }
  writer.close()
  closeSync(file.fd)
  closeSync(output.fd)
  const written = sent.row[COLUMN.OUT_PACKETS]
  expect(received.row[COLUMN.IN_PACKETS]).toBe(reader.packets)
  expect(written + received.drops() + sent.drops()).toBe(reader.packets)
  expect(pool.available).toBe(pool.frames)
  if (reader.fault !== undefined) expect(reader.fault.message).toMatch(new RegExp(`^${path}: offset \\d+: `))
  return written
}

describe('a capture that was changed', () => {
  it.each(captures)('%s', async name => {
    const original = readFileSync(fixture(name))
    const path = temporary('changed')
    for (let seed = 0; seed < ROUNDS; seed++) {
      const bytes = spoil(Buffer.from(original), dice(seed * 7919 + original.length))
      writeFileSync(path, bytes)
      await survive(path, temporary('out'))
    }
  })

  it.skipIf(missing !== undefined)('is written as a file that tshark reads to its end', async () => {
    const path = temporary('changed')
    const to = temporary('out')
    let checked = 0
    for (let seed = 0; seed < 12; seed++) {
      for (const name of ['pcapng/be/test102.pcapng', 'tcpdump/vxlan.pcap']) {
        writeFileSync(path, spoil(readFileSync(fixture(name)), dice(seed)))
        const written = await survive(path, to)
        if (written <= 0) continue
        const packets = fields(to, 'frame.encap_type').filter(line => line === '1')
        expect(packets, `seed ${seed}, ${name}`).toHaveLength(written)
        checked++
      }
    }
    expect(checked).toBeGreaterThan(10)
  })
})

describe('bytes that were never a capture', () => {
  it.each([
    ['pcap', 'd4c3b2a1020004000000000000000000000004000100'.concat('0000')],
    ['pcapng', '0a0d0d0a1c0000004d3c2b1a01000000ffffffffffffffff1c000000'],
  ])('behind the head of a %s', async (_name, head) => {
    const roll = dice(42)
    for (let round = 0; round < 200; round++) {
      const noise = Buffer.from(Array.from({ length: 300 }, () => roll(roll(2) === 0 ? 256 : 8)))
      const path = temporary('noise')
      writeFileSync(path, Buffer.concat([Buffer.from(head, 'hex'), noise]))
      await survive(path, temporary('out'))
    }
  })
})
