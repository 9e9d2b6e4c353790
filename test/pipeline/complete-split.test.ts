// Split against complete: what was packed for the underlay comes apart into the very segments that were put in.

import { describe, expect, test } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { DROP } from '../../src/drop.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, GSO, HEADROOM, OFFLOAD, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { Complete } from '../../src/pipeline/complete.ts'
import { Split } from '../../src/pipeline/split.ts'
import { written } from '../device/written.ts'
import { batchOf, build, load, type Packet, PLAIN, pattern, type Shape, Sink } from './super.ts'

const FRAMES = 100
const USO = CAPABILITY.CHECKSUM | CAPABILITY.USO4 | CAPABILITY.USO6

function run(
  packet: Packet,
  stage: (pool: Pool, counters: StageCounters, sink: Sink) => Complete | Split,
  capabilities = 0,
) {
  const pool = new Pool(createPool({ frames: FRAMES, frameSize: SUPER_FRAME, headroom: HEADROOM }))
  const sink = new Sink(pool, capabilities)
  const counters = new StageCounters('x')
  stage(pool, counters, sink).run(batchOf(load(pool, packet)))
  expect(pool.available).toBe(FRAMES)
  const { row } = counters
  expect(row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED]).toBe(row[COLUMN.OUT_PACKETS] + counters.drops())
  return { packets: sink.packets, counters }
}
const complete = (packet: Packet, capabilities: number) =>
  run(packet, (pool, counters, sink) => new Complete(pool, counters, sink), capabilities).packets
const split = (packet: Packet) =>
  run(packet, (pool, counters, sink) => new Split(pool, counters, batch => sink.transmit(batch)))

/** As a device gives it: it knows nothing of tunnels. */
const received = (packet: Packet): Packet => ({ ...packet, outerTransport: 0, network: 0, payload: 0 })

describe('split', () => {
  test.each([4, 6] as const)('takes a super-packet of the underlay over IPv%i apart', outer => {
    for (const tunnel of ['geneve', 'vxlan'] as const) {
      const shape: Shape = {
        ...PLAIN,
        tunnel,
        outer,
        outerChecksum: true,
        outerDf: false,
        payload: pattern(40_001),
        gsoSize: 1400,
      }
      const [packed] = written(complete(build(shape), USO), USO)
      const { packets, counters } = split(received(packed))
      expect(packets).toHaveLength(29)
      expect(packets.every(p => p.gso === 0 && p.offload === OFFLOAD.NEEDS_CHECKSUM)).toBe(true)
      expect(counters.row[COLUMN.COPIED_BYTES]).toBe(28 * packed.gsoSize)
      const wire = packets.map(p => complete(p, 0)[0].bytes)
      expect(wire).toEqual(complete(build(shape), 0).map(p => p.bytes))
    }
  })

  test('keeps a checksum that is not there', () => {
    const packet = received(build({ ...PLAIN, protocol: 'udp', payload: pattern(3000), gsoSize: 1000 }))
    packet.offload = 0
    packet.bytes.fill(0, packet.bytes.length - 3002, packet.bytes.length - 3000)
    const { packets } = split(packet)
    expect(packets).toHaveLength(3)
    for (const p of packets) {
      expect(p.offload).toBe(OFFLOAD.CHECKSUM_VALID)
      expect(p.bytes.length).toBe(1042)
      expect([p.bytes[40], p.bytes[41]]).toEqual([0, 0])
    }
  })

  test('leaves everything else alone', () => {
    for (const packet of [
      build({ ...PLAIN, payload: pattern(100) }),
      build({ ...PLAIN, tunnel: 'vxlan', payload: pattern(3000), gsoSize: 1000 }),
    ]) {
      expect(split(packet).packets).toEqual([packet])
    }
  })

  test('drops a super-packet that is none', () => {
    const packet = build({ ...PLAIN, payload: pattern(3000), gsoSize: 1000 })
    packet.gso = GSO.UDP
    expect(split(packet).counters.drops(DROP.OFFLOAD)).toBe(1)
  })
})
