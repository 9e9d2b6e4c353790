// Faults: the same for the same seed, as often as asked for, bounded, and every packet accounted for.

import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { DEVICE_KINDS, describeFault, parseFaults } from '../../src/device/faults.ts'
import { DEVICE_SETTINGS, FaultyDevice } from '../../src/device/faulty.ts'
import { DROP } from '../../src/drop.ts'
import { DetourError } from '../../src/errors.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { OFFLOAD } from '../../src/memory/pool.ts'
import { batchOf, bytesOf, FakeDevice, FRAMES, frameOf, smallPool } from './fake.ts'

function faulty(spec: string, frames = FRAMES) {
  const pool = smallPool(frames)
  const device = new FakeDevice(pool)
  const counters = new StageCounters('faults')
  return { pool, device, counters, faults: new FaultyDevice(device, pool, counters, parseFaults(spec)) }
}

/** Packet `n`: recognisable, 60 bytes. */
function packet(n: number): Uint8Array {
  const bytes = new Uint8Array(60).fill(n)
  new DataView(bytes.buffer).setUint32(0, n)
  return bytes
}

const numberOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(0)
const packets = (count: number) => Array.from({ length: count }, (_, n) => packet(n))

/** What comes out of transmit, in pieces of `size`. */
function transmitted(spec: string, count: number, size = 100) {
  const f = faulty(spec)
  const all = packets(count)
  for (let i = 0; i < count; i += size) f.faults.transmit(batchOf(f.pool, all.slice(i, i + size)))
  const beforeClose = f.device.sent.length
  f.faults.close()
  return { ...f, sent: f.device.sent, beforeClose }
}

/** What comes out of receive. */
function received(spec: string, count: number, room = 256) {
  const f = faulty(spec)
  f.device.give(...packets(count))
  f.device.ends = true
  const sent: Uint8Array[] = []
  const batch = new Batch(room)
  while (!f.faults.exhausted) {
    f.faults.receive(batch)
    sent.push(...bytesOf(f.pool, batch))
  }
  return { ...f, sent }
}

function balanced({ pool, counters, faults }: ReturnType<typeof faulty>): void {
  const { row } = counters
  expect(row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED]).toBe(row[COLUMN.OUT_PACKETS] + counters.drops() + faults.held)
  expect(pool.available).toBe(FRAMES - faults.held)
}

const COUNT = 20_000

describe('faults', () => {
  test('without any, nothing changes', () => {
    const f = transmitted('seed=3', 1000)
    expect(f.sent).toEqual(packets(1000))
    expect(received('seed=3', 1000).sent).toEqual(packets(1000))
    balanced(f)
    expect([f.faults.name, f.faults.capabilities, f.faults.fd, f.device.closed]).toEqual(['fake:0', 5, 7, true])
  })

  test('everything at once is the same for the same seed, whatever the batches, and another for another', () => {
    const spec = 'loss=5%,duplicate=5%,reorder=10%,corrupt=5%,truncate=5%,delay=20,seed='
    const one = transmitted(`${spec}9`, 5000, 100).sent
    expect(transmitted(`${spec}9`, 5000, 7).sent).toEqual(one)
    expect(transmitted(`${spec}10`, 5000).sent).not.toEqual(one)
    const got = received(`${spec}9`, 5000).sent
    expect(received(`${spec}9`, 5000, 3).sent).toEqual(got)
    expect(got).not.toEqual(one)
  })

  test('one fault does not move another', () => {
    const lost = (spec: string) => {
      const seen = new Set(transmitted(spec, 2000).sent.map(numberOf))
      return packets(2000)
        .map(numberOf)
        .filter(n => !seen.has(n))
    }
    expect(lost('loss=3%,duplicate=20%,reorder=20%,seed=5')).toEqual(lost('loss=3%,seed=5'))
  })

  test.each(['loss', 'duplicate', 'reorder', 'corrupt', 'truncate'])('%s happens as often as asked for', fault => {
    const f = transmitted(`${fault}=10%,seed=42`, COUNT)
    const order = f.sent.map(numberOf)
    const hits = {
      loss: COUNT - f.sent.length,
      duplicate: f.sent.length - COUNT,
      reorder: order.filter((n, i) => order.slice(Math.max(0, i - 20), i).some(earlier => earlier > n)).length,
      corrupt: f.sent.filter((bytes, i) => Buffer.compare(bytes, packet(i)) !== 0).length,
      truncate: f.sent.filter(bytes => bytes.length < 60).length,
    }[fault] as number
    // Five standard deviations of a binomial; reorders hide behind each other.
    const expected = COUNT / 10
    expect(hits).toBeGreaterThan(expected - (fault === 'reorder' ? expected / 2 : 5 * Math.sqrt(expected)))
    expect(hits).toBeLessThan(expected + 5 * Math.sqrt(expected))
    expect(f.counters.drops(DROP.FAULT)).toBe(fault === 'loss' ? hits : 0)
    expect(f.counters.row[COLUMN.CREATED]).toBe(fault === 'duplicate' ? hits : 0)
    balanced(f)
  })

  test('a packet held back is overtaken by so many at most, and nothing is held for ever', () => {
    const f = transmitted('reorder=30%,delay=5,seed=8', 5000)
    const order = f.sent.map(numberOf)
    expect([...order].sort((a, b) => a - b)).toEqual(packets(5000).map(numberOf))
    expect(order).not.toEqual(packets(5000).map(numberOf))
    const overtakers = order.map((n, i) => order.slice(0, i).filter(earlier => earlier > n).length)
    expect(Math.max(...overtakers)).toBeLessThanOrEqual(5)
    expect(5000 - f.beforeClose).toBeLessThanOrEqual(5)
  })

  test('corruption flips one bit, and nobody vouches for the checksum any more', () => {
    const f = faulty('corrupt=1')
    const frame = frameOf(f.pool, packet(7))
    f.pool.offload[frame] = OFFLOAD.CHECKSUM_VALID
    const batch = new Batch()
    batch.push(frame)
    f.faults.transmit(batch)
    expect(f.pool.offload[frame]).toBe(0)
    const bits = f.device.sent[0].reduce(
      (sum, byte, i) => sum + (byte ^ packet(7)[i]).toString(2).replaceAll('0', '').length,
      0,
    )
    expect(bits).toBe(1)
    for (const bytes of transmitted('truncate=1', 500).sent) {
      expect(bytes.length).toBeGreaterThanOrEqual(14)
      expect(bytes.length).toBeLessThan(60)
    }
  })

  test('a copy is whole: bytes and metadata, at its own place', () => {
    const f = faulty('duplicate=1')
    f.device.give(packet(1))
    const batch = new Batch()
    const original = frameOf(f.pool, packet(2))
    const { pool } = f
    pool.checksumStart[original] = pool.start[original] + 34
    pool.outerTransport[original] = pool.start[original] + 20
    pool.gso[original] = 1
    pool.gsoSize[original] = 99
    pool.offload[original] = 1
    batch.push(original)
    const frames: number[] = []
    f.device.transmit = given => {
      frames.push(...given.frames.subarray(0, given.length))
      given.length = 0
    }
    f.faults.transmit(batch)
    expect(frames).toHaveLength(2)
    const copy = frames.find(frame => frame !== original) as number
    const start = pool.start[copy]
    expect([pool.checksumStart[copy] - start, pool.outerTransport[copy] - start]).toEqual([34, 20])
    expect([pool.gso[copy], pool.gsoSize[copy], pool.offload[copy]]).toEqual([1, 99, 1])
    expect(pool.bytes.slice(start, start + 60)).toEqual(packet(2))
  })

  test('without a free frame there is no copy, and no harm', () => {
    const f = faulty('duplicate=1', 4)
    f.faults.transmit(batchOf(f.pool, packets(4)))
    expect(f.device.sent.map(numberOf)).toEqual([0, 1, 2, 3])
    expect(f.counters.row[COLUMN.CREATED]).toBe(0)
  })

  test('an end of file gives what is held back first', () => {
    const f = received('reorder=1,delay=64', 1000)
    expect(f.sent).toHaveLength(1000)
    balanced(f)
  })

  test('what is held back goes on when the line falls silent', () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    try {
      const f = faulty('reorder=1,delay=64,seed=4')
      f.device.give(packet(1))
      const batch = new Batch()
      f.faults.transmit(batchOf(f.pool, [packet(2)]))
      expect([f.faults.receive(batch), f.faults.held]).toEqual([0, 2])
      vi.advanceTimersByTime(99)
      expect([f.faults.receive(batch), f.faults.held]).toEqual([0, 2])
      vi.advanceTimersByTime(2)
      expect([f.faults.receive(batch), f.faults.held]).toEqual([1, 0])
      expect(bytesOf(f.pool, batch).map(numberOf)).toEqual([1])
      expect(f.device.sent.map(numberOf)).toEqual([2])
      balanced(f)
    } finally {
      vi.useRealTimers()
    }
  })

  test('closing drops what was received and not given on', () => {
    const f = faulty('reorder=1,delay=64')
    f.device.give(...packets(10))
    expect(f.faults.receive(new Batch())).toBeLessThan(10)
    const held = f.faults.held
    f.faults.close()
    expect(f.counters.drops(DROP.STOPPED)).toBe(held)
  })

  test('no packet is lost or made but as counted', () => {
    const probability = fc.constantFrom('0', '0.5', '1')
    fc.assert(
      fc.property(
        fc.tuple(probability, probability, probability, probability, probability),
        fc.integer({ min: 1, max: 64 }),
        fc.nat(1000),
        (p, delay, seed) => {
          const spec = `loss=${p[0]},duplicate=${p[1]},reorder=${p[2]},corrupt=${p[3]},truncate=${p[4]},delay=${delay},seed=${seed}`
          balanced(transmitted(spec, 500, 300))
          balanced(received(spec, 500))
        },
      ),
      { numRuns: 100, seed: 1 },
    )
  })
})

describe('delay', () => {
  test('packets come in their order when it is time, and not before', () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    try {
      const f = faulty('delay=50ms')
      f.device.give(packet(1), packet(2))
      const batch = new Batch()
      f.faults.transmit(batchOf(f.pool, [packet(3), packet(4)]))
      expect([f.faults.receive(batch), f.faults.held]).toEqual([0, 4])
      vi.advanceTimersByTime(49)
      expect([f.faults.receive(batch), f.faults.held, f.device.sent]).toEqual([0, 4, []])
      vi.advanceTimersByTime(1)
      expect([f.faults.receive(batch), f.faults.held]).toEqual([2, 0])
      expect(bytesOf(f.pool, batch).map(numberOf)).toEqual([1, 2])
      expect(f.device.sent.map(numberOf)).toEqual([3, 4])
      balanced(f)
    } finally {
      vi.useRealTimers()
    }
  })

  test('what there is no room to delay is lost, and counted', () => {
    const f = faulty('delay=1h', 300)
    f.faults.transmit(batchOf(f.pool, packets(200)))
    f.faults.transmit(batchOf(f.pool, packets(100)))
    expect([f.faults.held, f.counters.drops(DROP.FAULT), f.device.sent.length]).toEqual([256, 44, 0])
    f.faults.close()
    expect(f.device.sent).toHaveLength(256)
  })
})

test('a fault of one direction leaves the other alone', () => {
  expect(transmitted('drop,direction=receive', 100).sent).toHaveLength(100)
  expect(received('drop,direction=receive', 100).sent).toHaveLength(0)
  expect(transmitted('drop,direction=transmit', 100).sent).toHaveLength(0)
})

describe('parseFaults', () => {
  test('reads percentages, fractions and numbers', () => {
    const share = { seed: 7, depth: 3 }
    expect(parseFaults('loss=1%, reorder=.5,delay=3,seed=7')).toEqual({
      seed: 7,
      faults: [
        { id: 0, kind: 'drop', share: 0.01, seed: 7 },
        { id: 1, kind: 'reorder', share: 0.5, ...share },
      ],
    })
  })

  test('reads what is for a gateway, and writes it', () => {
    const { faults } = parseFaults(
      'mtu=1400,larger=truncate,direction=receive,at=5s,for=1.5m,cidr=2001:db8::/32,port=80,protocol=tcp,seed=9',
    )
    expect(faults).toEqual([
      {
        ...{ id: 0, kind: 'mtu', share: 1, bytes: 1400, larger: 'truncate', direction: 'receive', seed: 9 },
        ...{ at: 5000, for: 90_000, port: 80, protocol: 6 },
        cidr: { bytes: [0x20, 0x01, 0x0d, 0xb8, ...Array(12).fill(0)], bits: 32 },
      },
    ])
    const written = describeFault(faults[0])
    expect(parseFaults(`${written},seed=9`).faults).toEqual(faults)
    expect(describeFault(parseFaults('delay=2s,share=0.125').faults[0])).toBe('delay=2s,share=12.5%')
  })

  test.each([
    '',
    'loss=',
    'loss=2',
    'loss=101%',
    'loss=-1',
    'jitter=1%',
    'delay=0',
    'delay=65',
    'delay=1.5',
    'delay',
    'seed',
    'seed=1%',
    'loss=1%,,',
    'seed=99999999999',
    'mtu',
    'mtu=67',
    'mtu=1400,larger=fragment',
    'drop,larger=drop',
    'drop,bytes=100',
    'drop,time=1s',
    'drop,for=soon',
    'drop,for=25h',
    'drop,port=http',
    'drop,protocol=gre',
    'drop,cidr=10.0.0.0/33',
    'drop,cidr=10.0.0',
    'drop,cidr=1.2.3.4/8/9',
    'exit,share=10%',
    'hang=10%',
    'kill,port=80',
    'drop=1%,constructor',
    'toString=1',
    'drop,drop,'.repeat(20).slice(0, -1),
  ])('refuses %j and says what is allowed', text => {
    expect(() => parseFaults(text)).toThrow(DetourError)
    expect(() => parseFaults(text)).toThrow(/^fault '.*': .+/)
  })

  test('a device knows no tunnels', () => {
    const parse = (text: string) => parseFaults(text, DEVICE_KINDS, DEVICE_SETTINGS)
    expect(parse('delay=5ms').faults).toMatchObject([{ kind: 'delay', time: 5 }])
    for (const text of ['drop-options', 'swap-ports=5%', 'mtu=1400', 'exit', 'loss,port=80', 'loss,at=5s'])
      expect(() => parse(text)).toThrow(/allowed are drop, duplicate, reorder, delay, corrupt, truncate, share/)
  })
})
