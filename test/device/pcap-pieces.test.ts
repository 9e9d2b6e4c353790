// A pcap file read and written in pieces by several threads: the bytes, the packets and the fault of one thread. The plain
// reader, which tshark and tcpdump are held against elsewhere, is the oracle; a command of its own runs real threads.
import { readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  closeCapture,
  createCapture,
  createPieces,
  openCapture,
  PcapReader,
  PcapWriter,
  Pieces,
} from '../../src/device/pcap.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { detour } from '../cli/run.ts'
import { copy, fixture, newPool, temporary } from './captures.ts'

const THREADS = 3
const pool = newPool(64, 300_000)

/** What several threads do, by one thread that plays all of them, in the order in which their turns come. */
async function inPieces(path: string, to: string) {
  const file = await openCapture(path)
  const output = createCapture(to, file)
  const players = createPieces(THREADS).map(handle => {
    const pieces = new Pieces(handle)
    const counters = [new StageCounters('receive'), new StageCounters('transmit')]
    const reader = new PcapReader(pool, counters[0], file, { pieces })
    const writer = new PcapWriter(pool, counters[1], output, { format: file.format, pieces })
    return { reader, writer, counters }
  })
  const batch = new Batch(16)
  let taken = 0
  for (; players[taken % THREADS].reader.nextPiece(); taken++) {
    const { reader, writer } = players[taken % THREADS]
    while (!reader.exhausted) {
      reader.receive(batch)
      writer.transmit(batch)
    }
    writer.endPiece()
  }
  // The others hear of it too, or they would wait for ever.
  for (let i = 1; i < THREADS; i++) expect(players[(taken + i) % THREADS].reader.nextPiece()).toBe(false)
  for (const { writer } of players) writer.close()
  closeCapture(file)
  closeCapture(output)
  const faults = players.flatMap(({ reader }) => (reader.fault === undefined ? [] : [reader.fault.message]))
  const written = players.reduce((sum, { counters }) => sum + counters[1].row[COLUMN.OUT_PACKETS], 0)
  return { pieces: taken, faults, written }
}

/** A capture of several pieces: shipped packets again and again, with one of the largest size now and then. */
function large(): Buffer {
  const shipped = readFileSync(fixture('http.pcap'))
  const giant = Buffer.alloc(16 + 262_144, 0x5a)
  giant.writeUInt32LE(262_144, 8)
  giant.writeUInt32LE(262_144, 12)
  const parts = [shipped.subarray(0, 24)]
  for (let i = 0; i < 4; i++) {
    for (let bytes = 0; bytes < 700_000; bytes += shipped.length) parts.push(shipped.subarray(24))
    parts.push(giant)
  }
  return Buffer.concat(parts)
}

describe('a pcap file in pieces', () => {
  const path = temporary('large.pcap')
  const [one, many] = [temporary('one.pcap'), temporary('many.pcap')]
  const whole = large()

  async function compare(bytes: Buffer) {
    writeFileSync(path, bytes)
    const plain = await copy(path, one)
    const pieces = await inPieces(path, many)
    expect(readFileSync(many).equals(readFileSync(one))).toBe(true)
    expect(pieces.faults).toEqual(plain.reader.fault === undefined ? [] : [plain.reader.fault.message])
    expect(pieces.written).toBe(plain.reader.packets)
    expect(pool.available).toBe(pool.frames)
    return pieces
  }

  it('gives what one thread gives, however often it is cut', async () => {
    expect((await compare(whole)).pieces).toBeGreaterThan(2 * THREADS)
  })

  it('ends at the same place when it is cut off', async () => {
    for (const end of [24, 25, 39, 40, 1 << 18, (1 << 18) + 1, 1 << 19, 1_000_003, whole.length - 1])
      await compare(whole.subarray(0, end))
  })

  it('stops at a record that lies, with the packets before it', async () => {
    const spoilt = Buffer.from(whole)
    // The first giant's length: more than any reader takes.
    spoilt.writeUInt32LE(262_145, spoilt.indexOf(Buffer.alloc(64, 0x5a)) - 8)
    const { faults } = await compare(spoilt)
    expect(faults).toHaveLength(1)
  })

  it('goes into a tunnel and out of it by real threads, every packet in its place', async () => {
    const shipped = readFileSync(fixture('http.pcap'))
    const body = shipped.subarray(24)
    const bytes = [shipped.subarray(0, 24), ...Array<Buffer>(Math.ceil(25e6 / body.length)).fill(body)]
    writeFileSync(path, Buffer.concat(bytes))
    await copy(path, one)
    const [tunnelled, back] = [temporary('tunnelled.pcap'), temporary('back.pcap')]
    const ends = ['--local', '10.0.0.1', '--remote', '10.0.0.2', '--vni', '7']
    for (const args of [
      ['encap', '-r', path, '-w', tunnelled, ...ends],
      ['decap', '-r', tunnelled, '-w', back],
    ])
      expect(await detour(args)).toMatchObject({ status: 0, stderr: '' })
    expect(readFileSync(back).equals(readFileSync(one))).toBe(true)
  })
})
