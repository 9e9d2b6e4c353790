// Complete against the kernel: what we segment and complete in software must be, byte for byte, what Linux makes of the
// same packet, and what a TAP with USO makes of it must come out of Linux as the same segments.

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { LARGEST_SUPER_PACKET, OFFLOADS } from '../../src/os/tun.ts'
import { Complete } from '../../src/pipeline/complete.ts'
import { written } from '../device/written.ts'
import { KernelBridge } from './kernel.ts'
import { batchOf, build, load, type Packet, PLAIN, pattern, type Shape, Sink } from './super.ts'

const root = process.getuid?.() === 0
const CHECKSUM = CAPABILITY.CHECKSUM
const USO = CAPABILITY.USO4 | CAPABILITY.USO6

function completed(packet: Packet, capabilities: number): Packet[] {
  const pool = new Pool(createPool({ frames: 200, frameSize: SUPER_FRAME, headroom: HEADROOM }))
  const sink = new Sink(pool, capabilities)
  new Complete(pool, new StageCounters('complete'), sink).run(batchOf(load(pool, packet)))
  return sink.packets
}

const named = (packets: Uint8Array[]) => packets.map(bytes => Buffer.from(bytes).toString('hex'))

const outers: Partial<Shape>[] = [
  {},
  ...(['geneve', 'vxlan'] as const).flatMap(tunnel =>
    ([4, 6] as const).flatMap(outer =>
      [true, false].map(outerChecksum => ({ tunnel, outer, outerChecksum, outerDf: false })),
    ),
  ),
]
const inners: Partial<Shape>[] = [
  { protocol: 'tcp', inner: 4, flags: 0xf9 & ~0x22 },
  { protocol: 'tcp', inner: 6, flags: 0x19, options: 0 },
  { protocol: 'udp', inner: 4 },
  { protocol: 'udp', inner: 6 },
]
const label = (s: Shape) =>
  `${s.protocol} over IPv${s.inner}${s.tunnel ? ` in ${s.tunnel} over IPv${s.outer}${s.outerChecksum ? ' with checksum' : ''}` : ''}`
const shapes = (rest: Partial<Shape>) =>
  outers.flatMap(outer => inners.map(inner => ({ ...PLAIN, ...outer, ...inner, ...rest })))

describe.skipIf(!root)('complete against the kernel (needs root)', () => {
  let kernel: KernelBridge
  beforeAll(() => {
    kernel = new KernelBridge(`dtD-complete-${process.pid}`)
  })
  afterAll(() => kernel?.close())

  const supers = shapes({ payload: pattern(20_001), gsoSize: 1400 }).map(s => ({ name: label(s), shape: s }))

  test.for(supers)('segments as Linux does: $name', ({ shape }, { skip }) => {
    skip(shape.tunnel !== undefined && !(kernel.offloads & OFFLOADS.TUNNEL), 'the kernel lacks tunnel GSO (6.17)')
    const packet = build(shape)
    const ours = completed(packet, 0)
    expect(ours).toHaveLength(15)
    const asked = completed(packet, -1)
    expect(asked).toHaveLength(1)
    expect(named(ours.map(p => p.bytes))).toEqual(named(kernel.pass(asked[0], 15)))
  })

  test.each(supers)('leaves checksums to a device that has no more: $name', ({ shape }) => {
    const packet = build(shape)
    const ours = completed(packet, CHECKSUM)
    const wire = ours.map(p => kernel.pass(p, 1)[0])
    expect(named(wire)).toEqual(named(completed(packet, 0).map(p => p.bytes)))
  })

  test.each(supers.filter(s => s.shape.tunnel))(
    'becomes a super-packet of the outer UDP in a TAP with USO: $name',
    ({ shape }) => {
      const packet = build(shape)
      const given = completed(packet, CHECKSUM | USO)
      expect(given.every(p => p.transport === packet.outerTransport)).toBe(true)
      const packed = written(given, CHECKSUM | USO)
      expect(packed).toHaveLength(1)
      expect(packed[0]).toMatchObject({ gso: 5, gsoSize: 1400 + packet.payload - packet.outerTransport - 8 })
      const plain = completed(build({ ...shape, outerChecksum: true }), 0)
      expect(named(kernel.pass(packed[0], 15))).toEqual(named(plain.map(p => p.bytes)))
    },
  )

  test('64 datagrams or 64 KiB become one super-packet, the rest more', () => {
    const shape: Shape = { ...PLAIN, tunnel: 'geneve', outerDf: false, payload: pattern(65_000), gsoSize: 500 }
    const packed = written(completed(build(shape), CHECKSUM | USO), CHECKSUM | USO)
    expect(packed).toHaveLength(3)
    const counts = [64, 64, 2]
    const wire = packed.flatMap((p, i) => kernel.pass(p, counts[i]))
    const plain = completed(build({ ...shape, outerChecksum: true }), 0)
    expect(named(wire)).toEqual(named(plain.map(p => p.bytes)))

    const large = written(completed(build({ ...shape, gsoSize: 1400 }), CHECKSUM | USO), CHECKSUM | USO)
    expect(large).toHaveLength(2)
    for (const p of large) expect(p.bytes.length).toBeLessThan(LARGEST_SUPER_PACKET)
    expect(large.flatMap((p, i) => kernel.pass(p, i === 0 ? 43 : 4))).toHaveLength(47)
  })

  const singles = shapes({ payload: pattern(777) }).map(s => ({ name: label(s), shape: s }))

  test.each(singles)('completes as Linux does: $name', ({ shape }) => {
    const ours = completed(build(shape), 0)
    const given = completed(build(shape), CHECKSUM)
    expect(given[0].offload).toBe(1)
    expect(named([ours[0].bytes])).toEqual(named(kernel.pass(given[0], 1)))
    const inner = build({ ...shape, partial: false })
    expect(named([ours[0].bytes])).toEqual(named([completed(inner, 0)[0].bytes]))
    if (shape.outerChecksum) {
      const outerGiven = completed(inner, USO)[0]
      expect(outerGiven).toMatchObject({ offload: 1, transport: inner.outerTransport })
      expect(named([ours[0].bytes])).toEqual(named(kernel.pass(outerGiven, 1)))
    }
  })
})
