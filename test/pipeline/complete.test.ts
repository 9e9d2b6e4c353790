// Complete, without the kernel: tshark agrees with every segment, payloads survive, every frame is accounted for, and
// offload fields that lie are refused.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { DROP } from '../../src/drop.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, OFFLOAD, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { Complete } from '../../src/pipeline/complete.ts'
import { MAX_SEGMENTS } from '../../src/pipeline/segment.ts'
import { batchOf, build, load, type Packet, PLAIN, pattern, type Shape, Sink } from './super.ts'
import { decode, hasTshark } from './tshark.ts'

const USO = CAPABILITY.CHECKSUM | CAPABILITY.USO4 | CAPABILITY.USO6
const FRAMES = 300
const handle = createPool({ frames: FRAMES, frameSize: SUPER_FRAME, headroom: HEADROOM })

function stage(capabilities: number, frames = FRAMES) {
  const pool = new Pool(handle, 0, frames)
  const sink = new Sink(pool, capabilities)
  const counters = new StageCounters('complete')
  return { pool, sink, counters, complete: new Complete(pool, counters, sink) }
}

/** in + created = out + dropped, and every frame is free again. */
function balanced({ pool, counters, sink }: ReturnType<typeof stage>, frames = FRAMES): void {
  const { row } = counters
  expect(row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED]).toBe(row[COLUMN.OUT_PACKETS] + counters.drops())
  expect(row[COLUMN.OUT_PACKETS]).toBe(sink.packets.length)
  expect(row[COLUMN.OUT_BYTES]).toBe(sink.packets.reduce((sum, p) => sum + p.bytes.length, 0))
  expect(pool.available).toBe(frames)
}

function refused(change: (packet: Packet) => void, shape: Partial<Shape> = {}): number[] {
  const packet = build({ ...PLAIN, payload: pattern(5000), gsoSize: 1000, ...shape })
  change(packet)
  const s = stage(0)
  s.complete.run(batchOf(load(s.pool, packet)))
  expect(s.sink.packets).toHaveLength(0)
  balanced(s)
  return Object.values(DROP).filter(reason => s.counters.drops(reason) > 0)
}

const version = fc.constantFrom(4 as const, 6 as const)
const anyShape: fc.Arbitrary<Shape> = fc.record({
  tunnel: fc.constantFrom(undefined, 'geneve' as const, 'vxlan' as const),
  outer: version,
  outerChecksum: fc.boolean(),
  outerDf: fc.boolean(),
  inner: version,
  protocol: fc.constantFrom('tcp' as const, 'udp' as const),
  options: fc.integer({ min: 0, max: 10 }).map(n => n * 4),
  ipOptions: fc.integer({ min: 0, max: 10 }).map(n => n * 4),
  flags: fc.integer({ min: 0, max: 255 }).map(n => n & ~0x06),
  payload: fc.tuple(fc.integer({ min: 1, max: 30_000 }), fc.nat()).map(([n, seed]) => pattern(n, seed + 1)),
  gsoSize: fc.integer({ min: 300, max: 9000 }),
  partial: fc.constant(true),
})

describe('complete', () => {
  test.skipIf(!hasTshark)(
    'every segment of any super-packet is sound to tshark and carries its part (needs tshark)',
    () => {
      const shapes = fc.sample(anyShape, { numRuns: 60, seed: 7 })
      const made: { shape: Shape; packets: Packet[] }[] = shapes.map(shape => {
        const s = stage(0)
        s.complete.run(batchOf(load(s.pool, build(shape))))
        balanced(s)
        expect(s.counters.row[COLUMN.COPIED_BYTES]).toBeLessThan(shape.payload.length)
        return { shape, packets: s.sink.packets }
      })
      const status = ['ip', 'tcp', 'udp'].map(name => `${name}.checksum.status`)
      const fields = [...status, 'tcp.payload', 'udp.payload', 'tcp.seq_raw', 'tcp.flags', 'ip.id', '_ws.malformed']
      const decoded = decode(
        made.flatMap(m => m.packets.map(p => p.bytes)),
        fields,
      )
      let at = 0
      for (const { shape, packets } of made) {
        const parts: string[] = []
        packets.forEach((_, i) => {
          const layers = decoded[at++]
          expect(layers['_ws.malformed']).toBeUndefined()
          const statuses = status.flatMap(name => layers[name] ?? [])
          const absent = shape.tunnel !== undefined && !shape.outerChecksum
          // 1 good, 3 not present; tshark calls a zero UDP checksum over IPv6 bad (0).
          expect(statuses.filter(s => s !== '1')).toEqual(absent ? [shape.outer === 4 ? '3' : expect.any(String)] : [])
          parts.push(layers[`${shape.protocol}.payload`]?.at(-1) ?? '')
          const last = i === packets.length - 1
          if (shape.protocol === 'tcp') {
            expect(Number(layers['tcp.seq_raw'][0])).toBe((0xfffffff0 + i * shape.gsoSize) % 2 ** 32)
            const expected = shape.flags & (last ? 0xff : ~0x09) & (i === 0 ? 0xff : ~0x80)
            expect(Number(layers['tcp.flags'][0]) & 0xff).toBe(expected)
          }
          if (shape.inner === 4) expect(Number(layers['ip.id'].at(-1))).toBe((0xfffe + i) & 0xffff)
        })
        expect(parts.join('')).toBe(Buffer.from(shape.payload).toString('hex'))
      }
      expect(at).toBe(decoded.length)
    },
  )

  test('the same super-packet gives the same payload by every rung', () => {
    fc.assert(
      fc.property(anyShape, shape => {
        const plain = stage(0)
        plain.complete.run(batchOf(load(plain.pool, build({ ...shape, outerChecksum: true }))))
        balanced(plain)
        const uso = stage(USO)
        uso.complete.run(batchOf(load(uso.pool, build({ ...shape, outerChecksum: true }))))
        balanced(uso)
        if (shape.tunnel === undefined) return
        const behindOuter = (p: Packet, outer: number) => p.bytes.subarray(outer)
        const outer = 14 + (shape.outer === 4 ? 20 : 40) + 8
        expect(Buffer.concat(uso.sink.packets.map(p => behindOuter(p, outer)))).toEqual(
          Buffer.concat(plain.sink.packets.map(p => behindOuter(p, outer))),
        )
      }),
      { numRuns: 100, seed: 11 },
    )
  })

  test('frames that need nothing keep their place among those that do', () => {
    const s = stage(0)
    const small = build({ ...PLAIN, partial: false, payload: pattern(10) })
    const large = build({ ...PLAIN, payload: pattern(64_000), gsoSize: 100 })
    const batch = batchOf(load(s.pool, small), load(s.pool, large), load(s.pool, small))
    s.complete.run(batch)
    expect(batch.length).toBe(0)
    expect(s.sink.packets).toHaveLength(642)
    expect(s.sink.packets[0].bytes).toEqual(small.bytes)
    expect(s.sink.packets[641].bytes).toEqual(small.bytes)
    expect(Math.max(...s.sink.batches)).toBe(256)
    balanced(s)
  })

  test('a device that does everything gets every frame untouched', () => {
    for (const tunnel of [undefined, 'geneve'] as const) {
      const packet = build({ ...PLAIN, tunnel, payload: pattern(20_000), gsoSize: 1400 })
      const s = stage(-1)
      s.complete.run(batchOf(load(s.pool, packet)))
      expect(s.sink.packets).toEqual([packet])
      expect(s.counters.row[COLUMN.COPIED_BYTES]).toBe(0)
    }
  })

  test('two frames are enough for any super-packet, one drops what cannot be made', () => {
    const packet = build({ ...PLAIN, payload: pattern(30_000), gsoSize: 1000 })
    const two = stage(0, 2)
    two.complete.run(batchOf(load(two.pool, packet)))
    expect(two.sink.packets).toHaveLength(30)
    balanced(two, 2)
    const one = stage(0, 1)
    one.complete.run(batchOf(load(one.pool, packet)))
    expect(one.counters.drops(DROP.NO_FRAME)).toBe(30)
    balanced(one, 1)
  })

  test('a super-packet that came back with its flag for congestion needs TSO_ECN', () => {
    const packet = build({ ...PLAIN, payload: pattern(3000), gsoSize: 1000 })
    packet.gso |= 0x80
    for (const [ecn, count] of [
      [0, 3],
      [CAPABILITY.TSO_ECN, 1],
    ] as const) {
      const s = stage(CAPABILITY.CHECKSUM | CAPABILITY.TSO4 | ecn)
      s.complete.run(batchOf(load(s.pool, packet)))
      expect(s.sink.packets).toHaveLength(count)
    }
  })

  test('offload fields that contradict the packet are refused', () => {
    const refusal = [DROP.OFFLOAD]
    expect(refused(p => (p.gsoSize = 0))).toEqual(refusal)
    expect(refused(p => (p.gso = 5))).toEqual(refusal)
    expect(refused(p => (p.gso = 1), { protocol: 'udp' })).toEqual(refusal)
    expect(refused(p => (p.gso |= 0x20))).toEqual(refusal)
    expect(refused(p => (p.network = 20), { tunnel: 'vxlan' })).toEqual(refusal)
    expect(refused(p => (p.outerTransport = 20), { tunnel: 'vxlan' })).toEqual(refusal)
    expect(refused(p => (p.gsoSize = 1), { payload: pattern(MAX_SEGMENTS + 1) })).toEqual(refusal)
    expect(refused(() => {}, { payload: new Uint8Array(0) })).toEqual(refusal)
    const single = { gsoSize: 0 }
    expect(refused(p => (p.checksumOffset = 0xffff), single)).toEqual(refusal)
    expect(refused(p => (p.transport = p.bytes.length - 1), single)).toEqual(refusal)
    expect(refused(p => (p.transport = -1), single)).toEqual(refusal)
    expect(refused(p => (p.offload = OFFLOAD.OUTER_CHECKSUM), single)).toEqual(refusal)
    expect(refused(p => p.transport++, { ...single, tunnel: 'geneve', outerChecksum: true })).toEqual(refusal)
    const long = (p: Packet) => p.bytes.fill(0xff, p.outerTransport + 4, p.outerTransport + 6)
    expect(refused(p => long(p), { ...single, tunnel: 'geneve', outerChecksum: true })).toEqual(refusal)
  })

  test('a super-packet cut anywhere in its headers is refused, whatever bytes it has', () => {
    for (const shape of [
      {},
      { tunnel: 'geneve' as const, inner: 6 as const },
      { protocol: 'udp' as const, ipOptions: 12 },
    ]) {
      const { payload } = build({ ...PLAIN, ...shape })
      for (let n = 0; n < payload; n++) {
        expect(refused(p => (p.bytes = p.bytes.subarray(0, n)), shape)).toHaveLength(1)
      }
    }
  })

  test('random bytes and offload fields lose no frame', () => {
    const s = stage(0)
    let sent = 0
    fc.assert(
      fc.property(
        anyShape,
        fc.array(fc.tuple(fc.nat(150), fc.nat(255)), { maxLength: 8 }),
        fc.nat(255),
        fc.nat(255),
        (shape, hits, gso, offload) => {
          const packet = build({ ...shape, payload: shape.payload.subarray(0, 3000) })
          for (const [at, value] of hits) packet.bytes[at] = value
          packet.gso = gso
          packet.offload = offload
          s.complete.run(batchOf(load(s.pool, packet)))
          sent += s.sink.packets.length
          s.sink.packets.length = 0
        },
      ),
      { numRuns: 2000, seed: 3 },
    )
    expect(s.pool.available).toBe(FRAMES)
    const { row } = s.counters
    expect(row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED]).toBe(sent + s.counters.drops())
    expect(sent).toBeGreaterThan(100)
    expect(s.counters.drops()).toBeGreaterThan(100)
  })
})
