// Coalescing as a TAP does it: what is written there, segmented again, must be the packets that were given, byte for byte
// and in order. Segmentation is the kernel's (needs root), and for many packets ours, which test/pipeline holds against it.

import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { BATCH } from '../../src/memory/batch.ts'
import { StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, OFFLOAD, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { Complete } from '../../src/pipeline/complete.ts'
import { KernelBridge } from '../pipeline/kernel.ts'
import { batchOf, build, load, type Packet, PLAIN, pattern, plainSum, type Shape, Sink } from '../pipeline/super.ts'
import { written } from './written.ts'

const root = process.getuid?.() === 0

const memory = createPool({ frames: BATCH, frameSize: SUPER_FRAME, headroom: HEADROOM })

/** The packets as they would stand on a wire: super-packets segmented, checksums complete. */
function onWire(packets: Packet[]): string[] {
  const pool = new Pool(memory)
  const sink = new Sink(pool, 0)
  const complete = new Complete(pool, new StageCounters('complete'), sink)
  for (const packet of packets) complete.run(batchOf(load(pool, packet)))
  return hex(sink.packets.map(({ bytes }) => bytes))
}

const hex = (packets: Uint8Array[]) => packets.map(bytes => Buffer.from(bytes).toString('hex'))

/** Segments of a super-packet, each a packet of its own: complete, or its checksum left partial. */
function segments(shape: Partial<Shape>, partial = false): Packet[] {
  const pool = new Pool(memory)
  const sink = new Sink(pool, partial ? CAPABILITY.CHECKSUM : 0)
  new Complete(pool, new StageCounters('complete'), sink).run(batchOf(load(pool, build({ ...PLAIN, ...shape }))))
  return sink.packets.map(packet => (partial ? packet : { ...packet, offload: 0 }))
}

const STREAM: Partial<Shape> = { payload: pattern(10_001), gsoSize: 1000, flags: 0x10 }
const KINDS: Partial<Shape>[] = [
  { ...STREAM, protocol: 'tcp', inner: 4 },
  { ...STREAM, protocol: 'tcp', inner: 6, options: 0 },
  { ...STREAM, protocol: 'udp', inner: 4 },
  { ...STREAM, protocol: 'udp', inner: 6 },
]
const named = KINDS.map(shape => ({ name: `${shape.protocol} over IPv${shape.inner}`, shape }))

describe('coalescing', () => {
  test.each(named)('$name: a stream is one super-packet', ({ shape }) => {
    for (const partial of [false, true]) {
      const given = segments(shape, partial)
      expect(given).toHaveLength(11)
      const [packet, ...rest] = written(given)
      expect(rest).toEqual([])
      expect(packet).toMatchObject({ gsoSize: 1000, offload: OFFLOAD.NEEDS_CHECKSUM })
      const wanted = build({ ...PLAIN, ...shape })
      expect(packet.gso).toBe(wanted.gso)
      expect(hex([packet.bytes])).toEqual(hex([wanted.bytes]))
    }
  })

  test.each(named)('$name: stays as it is without the capability', ({ shape }) => {
    expect(written(segments(shape), 0)).toHaveLength(11)
    const other = shape.protocol === 'tcp' ? 0x60 : 0x0e
    expect(written(segments(shape), CAPABILITY.CHECKSUM | other)).toHaveLength(11)
  })

  test('flows that alternate are as many super-packets', () => {
    const flows = [0, 1, 2, 3].map(port => segments(STREAM).map(packet => edit(packet, b => flip(b, 35, port))))
    flows.push(segments({ ...STREAM, protocol: 'udp' }))
    const mixed = flows[0].flatMap((_, i) => flows.map(flow => flow[i]))
    const found = written(mixed)
    expect(found.map(packet => packet.gso)).toEqual([1, 1, 1, 1, 5])
    expect(onWire(found)).toEqual(onWire(flows.flat()))
  })

  test('the last segment brings FIN and PSH', () => {
    const given = segments({ ...STREAM, flags: 0x19 })
    expect(given.map(({ bytes }) => bytes[47])).toEqual([...new Array(10).fill(0x10), 0x19])
    expect(written([...given, ...given])).toHaveLength(2)
    expect(onWire(written(given))).toEqual(onWire(given))
  })

  test('a super-packet stays under what a TAP takes whole, and under 64 datagrams', () => {
    const tcp = segments({ ...STREAM, payload: pattern(1448 * 40), gsoSize: 1448 })
    const more = segments({ ...STREAM, payload: pattern(1448 * 40), gsoSize: 1448 }).map(p => later(p, 40 * 1448, 40))
    const sizes = written([...tcp, ...more]).map(packet => packet.bytes.length)
    expect(sizes).toEqual([66 + 45 * 1448, 66 + 35 * 1448])
    expect(Math.max(...sizes)).toBeLessThan(65_400)
    expect(onWire(written([...tcp, ...more]))).toEqual(onWire([...tcp, ...more]))
    const udp = segments({ ...STREAM, protocol: 'udp', payload: pattern(100 * 100), gsoSize: 100 })
    expect(written(udp).map(packet => packet.bytes.length)).toEqual([42 + 6400, 42 + 3600])
  })

  test('identifications may stand still where DF is set', () => {
    const given = segments(STREAM).map(packet => edit(packet, b => b.set([0x12, 0x34], 18)))
    expect(written(given)).toHaveLength(1)
    const fragmentable = given.map(packet => edit(packet, b => b.fill(0, 20, 22)))
    expect(written(fragmentable)).toHaveLength(11)
  })

  const edits: [string, (b: Uint8Array) => void][] = [
    ['a destination MAC address', b => flip(b, 5)],
    ['a source MAC address', b => flip(b, 6)],
    ['DSCP', b => flip(b, 15, 4)],
    ['a congestion mark', b => flip(b, 15, 3)],
    ['an identification that skips', b => flip(b, 19, 0x40)],
    ['DF cleared', b => flip(b, 20, 0x40)],
    ['the first of fragments', b => flip(b, 20, 0x60)],
    ['a later fragment', b => b.set([0, 9], 20)],
    ['TTL', b => flip(b, 22)],
    ['another source', b => flip(b, 29)],
    ['another port', b => flip(b, 35)],
    ['a sequence number out of order', b => flip(b, 39)],
    ['an acknowledgment', b => flip(b, 45)],
    ['SYN', b => flip(b, 47, 2)],
    ['RST', b => flip(b, 47, 4)],
    ['PSH', b => flip(b, 47, 8)],
    ['FIN', b => flip(b, 47, 1)],
    ['no ACK', b => flip(b, 47, 0x10)],
    ['URG', b => flip(b, 47, 0x20)],
    ['ECE', b => flip(b, 47, 0x40)],
    ['CWR', b => flip(b, 47, 0x80)],
    ['a reserved flag', b => flip(b, 46, 1)],
    ['a window', b => flip(b, 49)],
    ['an urgent pointer without URG', b => flip(b, 53)],
    ['an option', b => flip(b, 60)],
  ]
  test.each(edits)('TCP: %s in the middle breaks the stream and comes through', (_, change) => {
    for (const middle of [0, 5]) {
      const given = segments(STREAM).map((packet, i) => (i === middle ? edit(packet, change) : packet))
      const found = written(given)
      expect(found.length).toBeGreaterThan(1)
      expect(onWire(found).sort()).toEqual(onWire(given).sort())
      expect(inOrder(onWire(found))).toEqual(inOrder(onWire(given)))
    }
  })

  test.each(named)('$name: a wrong checksum stays wrong', ({ shape }) => {
    for (const middle of [0, 1, 5, 10]) {
      const given = segments(shape)
      flip(given[middle].bytes, given[middle].bytes.length - 1)
      const found = written(given)
      expect(found.length).toBeGreaterThan(1)
      expect(onWire(found)).toEqual(onWire(given))
    }
  })

  test('a wrong IPv4 header checksum stays wrong', () => {
    for (const middle of [0, 1, 5]) {
      const given = segments(STREAM)
      flip(given[middle].bytes, 24)
      expect(onWire(written(given))).toEqual(onWire(given))
    }
  })

  test('duplicates, gaps, acknowledgments and padding', () => {
    const given = segments(STREAM)
    const acknowledgment = edit({ ...given[5], bytes: given[5].bytes.slice(0, 66) }, b => b.set([0, 52], 16))
    const padded = { ...given[5], bytes: Uint8Array.from([...given[5].bytes, 0]) }
    for (const odd of [[given[4], given[4]], [], [acknowledgment], [given[5], acknowledgment, given[5]], [padded]]) {
      const packets = [...given.slice(0, 5), ...odd, ...given.slice(6)]
      const found = written(packets)
      expect(found.length).toBeGreaterThan(1)
      expect(onWire(found)).toEqual(onWire(packets))
    }
  })

  test('a shorter segment ends a super-packet, a longer one begins one', () => {
    const short = segments({ ...STREAM, payload: pattern(1500) })
    const rest = segments({ ...STREAM, payload: pattern(6000), gsoSize: 1200 }).map(p => later(p, 1500, 2))
    expect(written([...short, ...rest]).map(({ bytes }) => bytes.length)).toEqual([66 + 1500, 66 + 6000])
  })

  test('UDP without a checksum stays without one', () => {
    const given = segments({ ...STREAM, protocol: 'udp' }).map(packet => edit(packet, b => b.fill(0, 40, 42), false))
    expect(written(given).map(({ bytes }) => Buffer.from(bytes).toString('hex'))).toEqual(hex(given.map(p => p.bytes)))
  })

  test('IPv6 extension headers and VLAN tags are left alone', () => {
    const six = segments({ ...KINDS[1], payload: pattern(3000) })
    const extended = six.map(({ bytes, ...rest }) => {
      const b = Uint8Array.from([...bytes.subarray(0, 54), 6, 0, 1, 4, 0, 0, 0, 0, ...bytes.subarray(54)])
      b[20] = 60
      b[18] = (b.length - 54) >> 8
      b[19] = b.length - 54
      return { ...rest, bytes: b, transport: 62, payload: 82 }
    })
    const tagged = segments(STREAM).map(({ bytes, ...rest }) => {
      const b = Uint8Array.from([...bytes.subarray(0, 12), 0x81, 0, 0, 5, ...bytes.subarray(12)])
      return { ...rest, bytes: b, network: 18, transport: 38, payload: 70 }
    })
    for (const given of [extended, tagged]) expect(written(given).map(p => p.bytes)).toEqual(given.map(p => p.bytes))
  })

  test('any streams, mixed and damaged, come through', () => {
    const shape = fc.record({
      protocol: fc.constantFrom('tcp' as const, 'udp' as const),
      inner: fc.constantFrom(4 as const, 6 as const),
      options: fc.constantFrom(0, 12),
      ipOptions: fc.constantFrom(0, 0, 4),
      flags: fc.constantFrom(0x10, 0x18, 0x11, 0x50),
      bytes: fc.integer({ min: 1, max: 6000 }),
      gsoSize: fc.integer({ min: 100, max: 1460 }),
      partial: fc.boolean(),
    })
    const damage = fc.record({ at: fc.nat(), position: fc.nat(), bit: fc.nat(7) })
    const swaps = fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 6 })
    fc.assert(
      fc.property(
        fc.array(shape, { minLength: 1, maxLength: 3 }),
        fc.array(damage, { maxLength: 3 }),
        swaps,
        (shapes, damages, moves) => {
          const packets = shapes
            .flatMap(({ bytes, partial, ...rest }) => segments({ ...rest, payload: pattern(bytes) }, partial))
            .slice(0, BATCH)
          for (const [from, to] of moves)
            packets.splice(to % packets.length, 0, ...packets.splice(from % packets.length, 1))
          for (const { at, position, bit } of damages) {
            const { bytes, offload } = packets[at % packets.length]
            // Whoever leaves a checksum partial vouches for the bytes.
            if (offload === 0) flip(bytes, position % bytes.length, 1 << bit)
          }
          const found = written(packets)
          expect(atomic(onWire(found)).sort()).toEqual(atomic(onWire(packets)).sort())
          expect(inOrder(atomic(onWire(found)))).toEqual(inOrder(atomic(onWire(packets))))
        },
      ),
      { numRuns: 300 },
    )
  })

  describe.skipIf(!root)('against the kernel (needs root)', () => {
    let kernel: KernelBridge
    beforeAll(() => {
      kernel = new KernelBridge(`dtC-coalesce-${process.pid}`)
    })
    afterAll(() => kernel?.close())

    test.each(named)('$name: what Linux segments becomes what it was, and Linux makes the same of it', ({ shape }) => {
      const whole = build({ ...PLAIN, ...shape, flags: 0x19 })
      const wire = kernel.pass(whole, 11)
      const given = wire.map(bytes => ({ ...whole, bytes, gso: 0, gsoSize: 0, offload: 0 }))
      const [packet, ...rest] = written(given)
      expect(rest).toEqual([])
      expect(hex([packet.bytes])).toEqual(hex([whole.bytes]))
      expect(hex(kernel.pass(packet, 11))).toEqual(hex(wire))
    })
  })
})

const flip = (b: Uint8Array, at: number, bits = 1) => {
  b[at] ^= bits
}

/** A changed TCP or UDP packet over IPv4, whose checksums are right again. */
function edit(packet: Packet, change: (b: Uint8Array) => void, transport = true): Packet {
  const bytes = packet.bytes.slice()
  change(bytes)
  const put = (at: number, sum: number) => bytes.set([(~sum >> 8) & 255, ~sum & 255], at)
  put(24, plainSum([...bytes.subarray(14, 24), 0, 0, ...bytes.subarray(26, 34)]))
  if (transport) {
    const length = bytes.length - 34
    bytes.fill(0, 50, 52)
    put(50, plainSum([...bytes.subarray(26, 34), 0, 6, length >> 8, length & 255, ...bytes.subarray(34)]))
  }
  return { ...packet, bytes }
}

/** A TCP segment that stands `bytes` further in its stream, `packets` packets later. */
function later(packet: Packet, bytes: number, packets: number): Packet {
  return edit(packet, b => {
    const v = new DataView(b.buffer)
    v.setUint32(38, v.getUint32(38) + bytes)
    v.setUint16(18, v.getUint16(18) + packets)
  })
}

/** Packets whose identification means nothing (RFC 6864 section 4.1) lose it. */
function atomic(packets: string[]): string[] {
  return packets.map(packet => {
    const b = Buffer.from(packet, 'hex')
    const sound = b.readUInt16BE(12) === 0x0800 && b[14] === 0x45 && plainSum(b.subarray(14, 34)) === 0xffff
    if (sound && (b[20] & 0x40) !== 0) for (const at of [18, 24]) b.writeUInt16BE(0, at)
    return b.toString('hex')
  })
}

/** Packets by flow: EtherType, protocol, addresses and ports, where nothing lies between them and their places. */
function inOrder(packets: string[]): Map<string, string[]> {
  const flows = new Map<string, string[]>()
  for (const packet of packets) {
    const b = Buffer.from(packet, 'hex')
    const four = b.readUInt16BE(12) === 0x0800 && b[14] === 0x45 && (b.readUInt16BE(20) & 0x3fff) === 0
    const six = b.readUInt16BE(12) === 0x86dd && (b[20] === 6 || b[20] === 17)
    if (!four && !six) continue
    const key = four
      ? `${b[23]} ${b.subarray(26, 38).toString('hex')}`
      : `${b[20]} ${b.subarray(22, 58).toString('hex')}`
    flows.set(key, [...(flows.get(key) ?? []), packet])
  }
  return flows
}
