// Loopback: order, loss, wake-up and where the frames end up, in one thread and between two.

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { afterEach, describe, expect, test } from 'vitest'
import { createLoopback, type Loopback, LoopbackDevice, type LoopbackOptions } from '../../src/device/loopback.ts'
import { DROP } from '../../src/drop.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, Pool } from '../../src/memory/pool.ts'
import { addressOf, POLL, poll } from '../../src/os/libc.ts'

const open: Loopback[] = []
afterEach(() => {
  for (const loopback of open.splice(0)) loopback.close()
})

function pair(options: Partial<LoopbackOptions> = {}, frames = 64) {
  const handle = createPool({ frames, frameSize: 256, headroom: 64 })
  const loopback = createLoopback({ frames, ...options })
  open.push(loopback)
  const end = (side: 'left' | 'right', first: number) => {
    const pool = new Pool(handle, first, frames / 2)
    const counters = new StageCounters(side)
    return { pool, counters, device: new LoopbackDevice(pool, counters, loopback[side]), batch: new Batch() }
  }
  return { left: end('left', 0), right: end('right', frames / 2), loopback }
}

type End = ReturnType<typeof pair>['left']

function send({ pool, device }: End, count: number, from = 0): void {
  const batch = new Batch()
  for (let i = 0; i < count; i++) {
    const frame = pool.alloc()
    pool.length[frame] = 100
    pool.sequence[frame] = from + i
    batch.push(frame)
  }
  device.transmit(batch)
  expect(batch.length).toBe(0)
}

function receive({ pool, device, batch }: End): number[] {
  device.receive(batch)
  const sequences = Array.from(batch.frames.subarray(0, batch.length), frame => pool.sequence[frame])
  pool.freeAll(batch)
  return sequences
}

function readable(fd: number): boolean {
  const pollfd = Int32Array.of(fd, POLL.IN)
  return poll(addressOf(pollfd), 1, 0) === 1
}

const count = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i)

describe('loopback', () => {
  test('an end that only sends has its frames back, and says so while it has not', () => {
    const { left, right } = pair({}, 16)
    for (let round = 0; round < 10; round++) {
      expect(left.device.wanting).toBe(round > 0)
      send(left, 0)
      expect(left.pool.available).toBe(8)
      send(left, 8)
      expect(left.device.wanting).toBe(true)
      expect(receive(right)).toHaveLength(8)
      receive(right)
    }
  })

  test('packets arrive in order and without a copy, both ways', () => {
    const { left, right } = pair()
    const frame = left.pool.alloc()
    left.pool.length[frame] = 60
    left.batch.push(frame)
    left.device.transmit(left.batch)
    expect(right.device.receive(right.batch)).toBe(1)
    expect(right.batch.frames[0]).toBe(frame)
    right.device.transmit(right.batch)
    expect(left.device.receive(left.batch)).toBe(1)
    expect(left.batch.frames[0]).toBe(frame)
    left.pool.freeAll(left.batch)
    expect(left.counters.row[COLUMN.OUT_BYTES]).toBe(60)
    expect(left.counters.row[COLUMN.IN_BYTES]).toBe(60)
    send(left, 20)
    expect(receive(right)).toEqual(count(20))
  })

  test('what a full ring does not take is dropped and counted', () => {
    const { left, right } = pair({ capacity: 8 })
    send(left, 20)
    expect(left.counters.drops(DROP.RING_FULL)).toBe(12)
    expect(left.counters.row[COLUMN.OUT_PACKETS]).toBe(8)
    expect(left.counters.row[COLUMN.OUT_BYTES]).toBe(800)
    expect(left.pool.available).toBe(24)
    expect(receive(right)).toEqual(count(8))
  })

  test('a lossless end holds it instead, tells its room, and keeps the order', () => {
    const { left, right } = pair({ capacity: 8, lossless: true })
    expect(left.device.room).toBe(8)
    send(left, 5)
    expect([left.device.room, left.device.held]).toEqual([3, 0])
    send(left, 5, 5)
    expect([left.device.room, left.device.held]).toEqual([0, 2])
    send(left, 5, 10)
    expect(left.device.held).toBe(7)
    expect(receive(right)).toEqual(count(8))
    expect(receive(left)).toEqual([])
    expect([left.device.room, left.device.held]).toEqual([1, 0])
    expect(receive(right)).toEqual(count(7, 8))
    expect(left.counters.drops()).toBe(0)
    expect(left.counters.row[COLUMN.OUT_PACKETS]).toBe(15)
  })

  test('a lossless end may hold for ever without running out of places', () => {
    const { left, right } = pair({ capacity: 2, lossless: true })
    const seen: number[] = []
    send(left, 10)
    for (let i = 0; i < 500; i++) {
      send(left, 1, 10 + i)
      seen.push(...receive(right).slice(0, 2))
      receive(right)
      receive(left)
      if (left.pool.available === 0) break
    }
    expect(left.device.held).toBeLessThanOrEqual(32)
    expect(seen).toEqual(count(seen.length))
    expect(seen.length).toBeGreaterThan(100)
  })

  test('closing drops what is held', () => {
    const { left } = pair({ capacity: 2, lossless: true })
    send(left, 10)
    left.device.close()
    expect(left.counters.drops(DROP.STOPPED)).toBe(8)
    expect(left.device.held).toBe(0)
    expect(left.pool.available).toBe(30)
  })

  test('frames that one end drops come home', () => {
    const { left, right } = pair({}, 512)
    for (let i = 0; i < 50; i++) {
      send(left, 100)
      expect(receive(right)).toHaveLength(100)
      receive(left)
      expect(right.pool.available).toBeGreaterThanOrEqual(256)
      expect(right.pool.available).toBeLessThan(256 + 64 + 100)
    }
    receive(right)
    receive(left)
    expect([left.pool.available, right.pool.available]).toEqual([256, 256])
  })

  test('small frames are given back as small ones, large ones as large ones', () => {
    const handle = createPool({ frames: 64, small: 32, frameSize: 4096, headroom: 64 })
    const loopback = createLoopback({ frames: 64 })
    open.push(loopback)
    const [left, right] = (['left', 'right'] as const).map((side, i) => {
      const pool = new Pool(handle, 32 + 16 * i, 16, 16 * i, 16)
      return { pool, device: new LoopbackDevice(pool, new StageCounters(side), loopback[side]), batch: new Batch() }
    })
    for (let round = 0; round < 100; round++) {
      for (let i = 0; i < 10; i++) left.batch.push(i % 5 === 0 ? left.pool.alloc() : left.pool.allocSmall())
      left.device.transmit(left.batch)
      expect(right.device.receive(right.batch)).toBe(10)
      right.pool.freeAll(right.batch)
      right.device.receive(right.batch)
      left.device.receive(left.batch)
      for (const { pool } of [left, right]) expect([pool.available, pool.availableSmall]).toEqual([16, 16])
    }
  })

  test('the event descriptor is written for an end that may sleep, once, and not for one that does not', () => {
    const { left, right } = pair()
    const { fd } = right.device
    send(left, 1)
    expect(readable(fd)).toBe(false)
    expect(receive(right)).toEqual([0])
    expect(receive(right)).toEqual([])
    expect(readable(fd)).toBe(false)
    send(left, 1)
    send(left, 1)
    expect(readable(fd)).toBe(true)
    expect(left.counters.row[COLUMN.CALLS]).toBe(1)
    expect(receive(right)).toEqual([0, 0])
    expect(readable(fd)).toBe(false)
  })

  // The far end, from dist/: reflects, drops every third packet, sleeps when there is nothing, ends after the last packet.
  const far = (base: string) => `
    const { workerData, parentPort } = require('node:worker_threads')
    const load = path => import(new URL(path, '${base}').href)
    Promise.all(['device/loopback', 'memory/pool', 'memory/batch', 'memory/counters', 'os/libc'].map(name => load(name + '.js')))
      .then(([{ LoopbackDevice }, { Pool }, { Batch }, { StageCounters }, { addressOf, poll }]) => {
        const { handle, end, first, count, packets } = workerData
        const pool = new Pool(handle, first, count)
        const device = new LoopbackDevice(pool, new StageCounters('far'), end)
        const [batch, out, pollfd] = [new Batch(), new Batch(), Int32Array.of(device.fd, 1)]
        let seen = 0, wrong = 0, least = pool.available
        parentPort.postMessage('ready')
        while (seen < packets || device.held > 0) {
          const n = device.receive(batch)
          if (n === 0) { poll(addressOf(pollfd), 1, device.held > 0 ? 1 : 5000); continue }
          for (let i = 0; i < n; i++) {
            const frame = batch.frames[i]
            if (pool.sequence[frame] !== seen++) wrong++
            if (seen % 3 === 0) pool.free(frame)
            else out.push(frame)
          }
          batch.length = 0
          device.transmit(out)
          least = Math.min(least, pool.available)
        }
        for (let idle = 0; idle < 100; idle++) { device.receive(batch); poll(addressOf(pollfd), 1, 1) }
        parentPort.postMessage({ seen, wrong, least, available: pool.available })
      })`

  test('a million packets between two threads: none lost, none out of order, no end short of frames', {
    timeout: 60_000,
  }, async () => {
    const packets = 1_000_000
    const handle = createPool({ frames: 4096, frameSize: 256, headroom: 64 })
    const loopback = createLoopback({ frames: 4096, lossless: true, capacity: 256 })
    open.push(loopback)
    const pool = new Pool(handle, 0, 2048)
    const counters = new StageCounters('near')
    const device = new LoopbackDevice(pool, counters, loopback.left)
    const base = new URL('../../dist/src/', import.meta.url).href
    const worker = new Worker(far(base), {
      eval: true,
      workerData: { handle, end: loopback.right, first: 2048, count: 2048, packets },
    })
    await once(worker, 'message')
    const report = once(worker, 'message')
    const ended = once(worker, 'exit')
    const batch = new Batch()
    const pollfd = Int32Array.of(device.fd, POLL.IN)
    let sent = 0
    let back = 0
    let wrong = 0
    const expected = packets - Math.floor(packets / 3)
    while (back < expected) {
      const room = Math.min(device.room, 128, packets - sent)
      for (let i = 0; i < room; i++) {
        const frame = pool.alloc()
        if (frame < 0) break
        pool.length[frame] = 64
        pool.sequence[frame] = sent++
        batch.push(frame)
      }
      if (batch.length > 0) device.transmit(batch)
      const n = device.receive(batch)
      for (let i = 0; i < n; i++) {
        const sequence = pool.sequence[batch.frames[i]]
        if (sequence !== back + Math.floor(back / 2)) wrong++
        back++
      }
      pool.freeAll(batch)
      if (n === 0 && device.room === 0) poll(addressOf(pollfd), 1, 1)
      else if (n === 0 && sent === packets) poll(addressOf(pollfd), 1, 1000)
    }
    for (let idle = 0; idle < 20; idle++) {
      device.receive(batch)
      poll(addressOf(pollfd), 1, 5)
    }
    const [told] = await report
    await ended
    device.receive(batch)
    expect(wrong).toBe(0)
    expect(told).toMatchObject({ seen: packets, wrong: 0 })
    expect(told.least).toBeGreaterThan(0)
    expect(counters.drops()).toBe(0)
    expect(counters.row[COLUMN.OUT_PACKETS]).toBe(packets)
    expect([pool.available, told.available]).toEqual([2048, 2048])
  })
})
