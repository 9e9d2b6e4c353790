// The TAP device over a socket that keeps message boundaries, as a TAP does: what it makes of virtio-net headers, honest and not.
// test/netns has it on real TAPs.

import { afterEach, describe, expect, it } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { TapDevice } from '../../src/device/tap.ts'
import { DROP } from '../../src/drop.ts'
import { BATCH, Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, GSO, HEADROOM, OFFLOAD, Pool } from '../../src/memory/pool.ts'
import { addressOf, close, read, write } from '../../src/os/libc.ts'
import { pair } from './pair.ts'

const HEADER = 24
const ALL = 0x1ef

function setUp({ frames = 8, frameSize = HEADROOM + 2048, capabilities = ALL } = {}) {
  const [fd, kernel] = pair()
  const pool = new Pool(createPool({ frames, frameSize, headroom: HEADROOM }))
  const counters = new StageCounters('tap')
  const device = new TapDevice(pool, counters, { name: 'test', fd, headerSize: HEADER, capabilities })
  const batch = new Batch()
  const give = (bytes: Uint8Array) => expect(write(kernel, addressOf(bytes), bytes.length)).toBe(bytes.length)
  const taken = () => {
    const into = new Uint8Array(65_536)
    const n = read(kernel, addressOf(into), into.length)
    return n < 0 ? undefined : into.subarray(0, n)
  }
  cleanUp.push(() => {
    device.close()
    close(kernel)
  })
  return { pool, counters, device, batch, give, taken }
}
const cleanUp: (() => void)[] = []
afterEach(() => {
  for (const action of cleanUp.splice(0)) action()
})

interface Fields {
  flags?: number
  gso?: number
  headerLength?: number
  size?: number
  start?: number
  offset?: number
  outer?: number
  inner?: number
}

/** A virtio-net header and a frame of `length` bytes, with a TCP data offset of 5 words at `doff`. */
function message(fields: Fields, length: number, doff = 0x50): Uint8Array {
  const bytes = new Uint8Array(HEADER + length).fill(0xa5)
  const view = new DataView(bytes.buffer)
  bytes.fill(0, 0, HEADER)
  bytes[0] = fields.flags ?? 0
  bytes[1] = fields.gso ?? 0
  view.setUint16(2, fields.headerLength ?? 0, true)
  view.setUint16(4, fields.size ?? 0, true)
  view.setUint16(6, fields.start ?? 0, true)
  view.setUint16(8, fields.offset ?? 0, true)
  view.setUint16(20, fields.outer ?? 0, true)
  view.setUint16(22, fields.inner ?? 0, true)
  if (HEADER + (fields.start ?? 0) + 12 < bytes.length) bytes[HEADER + (fields.start ?? 0) + 12] = doff
  return bytes
}

const TCP: Fields = { flags: 1, gso: GSO.TCP4, headerLength: 66, size: 100, start: 34, offset: 16 }
const TUNNELLED: Fields = { ...TCP, flags: 9, gso: GSO.TCP4 | GSO.TUNNEL4, start: 84, outer: 34, inner: 64 }

describe('TapDevice', () => {
  it('reads header and frame into headroom and frame, positions absolute', () => {
    const { pool, device, batch, give, counters } = setUp()
    give(message(TUNNELLED, 1000))
    expect(device.receive(batch)).toBe(1)
    const frame = batch.frames[0]
    const start = frame * pool.frameSize + HEADROOM
    expect(pool.start[frame]).toBe(start)
    expect(pool.length[frame]).toBe(1000)
    expect(pool.offload[frame]).toBe(OFFLOAD.NEEDS_CHECKSUM | OFFLOAD.OUTER_CHECKSUM)
    expect(pool.gso[frame]).toBe(GSO.TCP4 | GSO.TUNNEL4)
    expect(pool.gsoSize[frame]).toBe(100)
    expect(pool.checksumStart[frame] - start).toBe(84)
    expect(pool.checksumOffset[frame]).toBe(16)
    expect(pool.outerTransport[frame] - start).toBe(34)
    expect(pool.network[frame] - start).toBe(64)
    // From the TCP header: hdr_len is a hint.
    expect(pool.payload[frame] - start).toBe(104)
    expect([counters.row[COLUMN.IN_PACKETS], counters.row[COLUMN.IN_BYTES], counters.row[COLUMN.CALLS]]).toEqual([
      1, 1000, 2,
    ])
  })

  it('writes what it read: the header comes out as it went in, wherever the frame has moved', () => {
    const { pool, device, batch, give, taken, counters } = setUp()
    for (const moved of [0, 50, -50]) {
      give(message(TUNNELLED, 1000))
      expect(device.receive(batch)).toBe(1)
      const frame = batch.frames[0]
      pool.start[frame] += moved
      pool.length[frame] -= moved
      device.transmit(batch)
      const move = (fields: Fields) => ({
        ...fields,
        start: fields.start! - moved,
        outer: fields.outer! - moved,
        inner: fields.inner! - moved,
        headerLength: 104 - moved,
      })
      const expected = message(move(TUNNELLED), 1000 - moved)
      expect(taken()!.subarray(0, HEADER)).toEqual(expected.subarray(0, HEADER))
    }
    expect(batch.length).toBe(0)
    expect(pool.available).toBe(8)
    expect(counters.row[COLUMN.OUT_PACKETS]).toBe(3)
  })

  it('clears the header of a plain frame', () => {
    const { device, batch, give, taken, pool } = setUp()
    give(message({ flags: OFFLOAD.CHECKSUM_VALID }, 60))
    device.receive(batch)
    expect(pool.offload[batch.frames[0]]).toBe(OFFLOAD.CHECKSUM_VALID)
    const at = pool.start[batch.frames[0]]
    pool.bytes.fill(0xff, at - HEADER, at)
    device.transmit(batch)
    expect(taken()!.subarray(0, HEADER)).toEqual(new Uint8Array(HEADER))
  })

  it('takes partial checksums of frames that are no super-packets', () => {
    const { device, batch, give, pool } = setUp()
    give(message({ flags: 1, start: 34, offset: 6 }, 42))
    expect(device.receive(batch)).toBe(1)
    expect(pool.gso[batch.frames[0]]).toBe(GSO.NONE)
    expect(pool.checksumStart[batch.frames[0]] - pool.start[batch.frames[0]]).toBe(34)
  })

  const lies: [string, Fields, number, number?][] = [
    ['a super-packet without a checksum', { ...TCP, flags: 0 }, 1000],
    ['a checksum that starts in the Ethernet header', { ...TCP, start: 13 }, 1000],
    ['a checksum field behind the end', { flags: 1, start: 34, offset: 7 }, 42],
    ['a checksum that starts behind the end', { flags: 1, start: 0xffff, offset: 0xffff }, 100],
    ['a TCP header cut off', TCP, 53],
    ['a TCP header shorter than 20 bytes', TCP, 1000, 0x40],
    ['a TCP header beyond the end', TCP, 90, 0xf0],
    ['no segment size', { ...TCP, size: 0 }, 1000],
    ['an unknown kind', { ...TCP, gso: 2 }, 1000],
    ['a tunnel over both IP versions', { ...TUNNELLED, gso: GSO.TCP4 | GSO.TUNNEL }, 1000],
    ['an outer UDP header in the Ethernet header', { ...TUNNELLED, outer: 13 }, 1000],
    ['an inner packet inside the outer UDP header', { ...TUNNELLED, inner: 41 }, 1000],
    ['an inner transport header inside the inner IP header', { ...TUNNELLED, inner: 65 }, 1000],
  ]
  for (const [what, fields, length, doff] of lies) {
    it(`drops ${what}`, () => {
      const { device, batch, give, counters, pool } = setUp()
      give(message(fields, length, doff))
      give(message(TCP, 1000))
      expect(device.receive(batch)).toBe(1)
      expect(counters.drops(DROP.OFFLOAD)).toBe(1)
      expect(counters.drops()).toBe(1)
      expect(pool.available).toBe(7)
    })
  }

  it('keeps every position inside the frame, whatever the header says', () => {
    const { device, batch, give, counters, pool } = setUp()
    let seed = 1
    const random = (below: number) => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0
      return (seed >>> 8) % below
    }
    const rounds = 5000
    let good = 0
    for (let round = 0; round < rounds; round++) {
      const length = 14 + random(200)
      const bytes = message(TUNNELLED, length)
      for (let i = random(6); i > 0; i--) bytes[random(HEADER)] = random(2) === 0 ? random(256) : random(100)
      if (random(2) === 0) bytes[1] = [0, 1, 4, 5, 0x21, 0x44, 0x25][random(7)]
      give(bytes)
      good += device.receive(batch)
      for (let i = 0; i < batch.length; i++) {
        const frame = batch.frames[i]
        const start = pool.start[frame]
        const end = start + pool.length[frame]
        if ((pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) === 0) continue
        const positions = [pool.checksumStart[frame], pool.checksumStart[frame] + pool.checksumOffset[frame]]
        if (pool.gso[frame] !== 0) positions.push(pool.payload[frame])
        if ((pool.gso[frame] & GSO.TUNNEL) !== 0) positions.push(pool.outerTransport[frame], pool.network[frame])
        for (const at of positions) if (at < start || at > end) expect.fail(`position ${at} outside ${start}..${end}`)
      }
      pool.freeAll(batch)
    }
    expect(good).toBeGreaterThan(rounds / 20)
    expect(good + counters.drops()).toBe(rounds)
    expect(counters.row[COLUMN.IN_PACKETS]).toBe(rounds)
  })

  it('drops frames too short and frames that do not fit', () => {
    const { device, batch, give, counters, pool } = setUp()
    give(message({}, 13))
    give(message({}, 2048))
    expect(device.receive(batch)).toBe(0)
    expect([counters.drops(DROP.ETHERNET_TRUNCATED), counters.drops(DROP.OVERSIZED)]).toEqual([1, 1])
    expect(pool.available).toBe(8)
  })

  it('stops a breath at what stays in the cache, and at the batch', () => {
    const { device, batch, give, pool } = setUp({ frames: 64, frameSize: HEADROOM + 40_000 })
    for (let i = 0; i < 5; i++) give(message({}, 36_000))
    expect(device.receive(batch)).toBe(4)
    expect(device.receive(batch)).toBe(1)
    pool.freeAll(batch)
    const small = new Batch(2)
    for (let i = 0; i < 3; i++) give(message({}, 60))
    expect(device.receive(small)).toBe(2)
    expect(small.capacity).toBeLessThan(BATCH)
    pool.freeAll(small)
    expect(device.receive(small)).toBe(1)
  })

  it('says whether it took all that was there, and asks one call more than there are packets to know', () => {
    const { device, batch, give, counters, pool } = setUp()
    for (let i = 0; i < 3; i++) give(message({}, 60))
    expect(device.receive(new Batch(2))).toBe(2)
    expect([device.drained, counters.row[COLUMN.CALLS]]).toEqual([false, 2])
    expect(device.receive(batch)).toBe(1)
    expect([device.drained, counters.row[COLUMN.CALLS]]).toEqual([true, 4])
    pool.freeAll(batch)
    give(message({}, 60))
    device.receive(batch)
    expect(device.drained).toBe(true)
  })

  it('leaves packets in the kernel when the pool is empty', () => {
    const { device, batch, give, counters, pool } = setUp({ frames: 1 })
    give(message({}, 60))
    give(message({}, 61))
    expect(device.receive(batch)).toBe(1)
    expect(counters.drops()).toBe(0)
    pool.freeAll(batch)
    expect(device.receive(batch)).toBe(1)
    expect(pool.length[batch.frames[0]]).toBe(61)
  })

  it('counts what it cannot transmit, and goes on', () => {
    const { device, batch, give, taken, counters, pool } = setUp()
    for (let i = 0; i < 3; i++) give(message(TCP, 1000))
    device.receive(batch)
    pool.start[batch.frames[0]] = batch.frames[0] * pool.frameSize + HEADER - 1
    pool.offload[batch.frames[1]] = 0
    device.transmit(batch)
    expect([counters.drops(DROP.NO_HEADROOM), counters.drops(DROP.OFFLOAD)]).toEqual([1, 1])
    expect(taken()).toBeDefined()
    expect(taken()).toBeUndefined()
    expect(pool.available).toBe(8)
  })

  it('has the capabilities it was given', () => {
    expect(setUp({ capabilities: CAPABILITY.CHECKSUM }).device).toMatchObject({ name: 'tap:test', capabilities: 1 })
  })
})
