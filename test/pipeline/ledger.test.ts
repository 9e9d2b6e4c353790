// The ledger of a replay: unchanged, changed, made by the endpoint, never back.

import { expect, test } from 'vitest'
import { createPool, Pool } from '../../src/memory/pool.ts'
import { Ledger } from '../../src/pipeline/ledger.ts'
import { parse } from '../../src/pipeline/parse.ts'
import { frame, type Inner, TCP } from './packets.ts'

const pool = new Pool(createPool({ frames: 4, frameSize: 2048, headroom: 64 }))
const at = pool.alloc()

/** Puts a packet into the one frame, as the stages in front leave it. */
function put(bytes: Uint8Array, flow = 1, sequence = 0): number {
  const start = pool.start[at]
  pool.bytes.set(bytes, start)
  pool.length[at] = bytes.length
  parse(pool, at, start, start + bytes.length)
  pool.flow[at] = flow
  pool.reversed[at] = 0
  pool.sequence[at] = sequence
  pool.seconds[at] = 1000 + sequence
  pool.nanoseconds[at] = 5 * sequence
  return at
}

const packet = (inner: Inner) => frame({ protocol: TCP, ...inner })
const counts = ({ sent, unchanged, changed, made, outstanding, notReturned }: Ledger) => ({
  sent,
  unchanged,
  changed,
  made,
  outstanding,
  notReturned,
})

test('what returns bit for bit is unchanged, in whatever order, and has its record again', () => {
  const ledger = new Ledger(pool)
  for (let i = 1; i <= 3; i++) ledger.send(put(packet({ id: i }), 1, i), 0)
  for (const i of [3, 1, 2]) {
    ledger.back(put(packet({ id: i }), 1, 0), 1)
    expect([pool.sequence[at], pool.seconds[at], pool.nanoseconds[at]]).toEqual([i, 1000 + i, 5 * i])
  }
  expect(counts(ledger)).toEqual({ sent: 3, unchanged: 3, changed: 0, made: 0, outstanding: 0, notReturned: 0 })
})

test('any change of a byte is seen: first, last, and beside whole words', () => {
  for (const length of [0, 1, 2, 3, 4, 5])
    for (const where of [0, 20, -1]) {
      const ledger = new Ledger(pool)
      const bytes = packet({ data: new Array(length).fill(9) })
      ledger.send(put(bytes), 0)
      const other = bytes.slice()
      other[where < 0 ? other.length - 1 : where] ^= 1
      ledger.back(put(other), 1)
      expect(ledger.unchanged).toBe(0)
      expect(ledger.changed + ledger.made).toBe(1)
    }
})

test('the same packet with another TTL is changed; another packet of the flow was made', () => {
  const ledger = new Ledger(pool)
  ledger.send(put(packet({ id: 7, ttl: 64 }), 1, 12), 0)
  ledger.back(put(packet({ id: 8, flags: 4, data: [] })), 1)
  ledger.back(put(packet({ id: 7, ttl: 63 })), 1)
  expect(pool.sequence[at]).toBe(12)
  expect(counts(ledger)).toEqual({ sent: 1, unchanged: 0, changed: 1, made: 1, outstanding: 0, notReturned: 0 })
})

test('a second copy was made by the endpoint, unless two were sent', () => {
  const ledger = new Ledger(pool)
  const bytes = packet({})
  ledger.send(put(bytes, 1, 1), 0)
  ledger.back(put(bytes), 1)
  ledger.back(put(bytes), 1)
  expect(counts(ledger)).toMatchObject({ sent: 1, unchanged: 1, made: 1 })
  ledger.send(put(bytes, 1, 2), 1)
  ledger.send(put(bytes, 1, 3), 1)
  ledger.back(put(bytes), 2)
  expect(pool.sequence[at], 'the oldest first').toBe(2)
  ledger.back(put(bytes), 2)
  expect(pool.sequence[at]).toBe(3)
  expect(counts(ledger)).toMatchObject({ sent: 3, unchanged: 3, made: 1, notReturned: 0 })
})

test('what is given up is still counted when it comes', () => {
  const ledger = new Ledger(pool)
  for (let i = 0; i < 3; i++) ledger.send(put(packet({ id: i })), 0)
  expect(ledger.outstanding).toBe(3)
  ledger.forgive()
  expect(ledger.outstanding).toBe(0)
  ledger.back(put(packet({ id: 1 })), 1)
  expect(counts(ledger)).toEqual({ sent: 3, unchanged: 1, changed: 0, made: 0, outstanding: 0, notReturned: 2 })
})

test('more packets than it remembers: the oldest never returned, the newest did', () => {
  const ledger = new Ledger(pool)
  const held = 65_536
  const first = packet({ id: 1 })
  const last = packet({ id: 2 })
  // The same bytes over and over, which share their chains.
  ledger.send(put(first), 0)
  const filler = put(packet({ id: 3 }))
  for (let i = 0; i < held - 1; i++) ledger.send(filler, 0)
  ledger.send(put(last), 0)
  expect(ledger.outstanding).toBe(held)
  ledger.back(put(first), 1)
  ledger.back(put(last), 1)
  expect(counts(ledger)).toMatchObject({ sent: held + 1, unchanged: 1, made: 1, notReturned: held })
})

test('quantiles are upper ends of classes, 19% wide', () => {
  const ledger = new Ledger(pool)
  expect(ledger.quantile(0.5)).toBe(0)
  for (let i = 1; i <= 100; i++) {
    ledger.send(put(packet({ id: i })), 0)
    ledger.back(put(packet({ id: i })), i <= 90 ? 0.1 : 10)
  }
  expect(ledger.quantile(0.5)).toBeGreaterThanOrEqual(100)
  expect(ledger.quantile(0.5)).toBeLessThanOrEqual(100 * 2 ** 0.25)
  expect(ledger.quantile(0.99)).toBeGreaterThanOrEqual(10_000)
  expect(ledger.quantile(0.99)).toBeLessThanOrEqual(10_000 * 2 ** 0.25)
  // Longer than there are classes for.
  ledger.send(put(packet({ id: 999 })), 0)
  ledger.back(put(packet({ id: 999 })), 1e12)
  expect(ledger.quantile(1)).toBe(2 ** 30)
})
