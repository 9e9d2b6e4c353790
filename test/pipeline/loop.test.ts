// The loop of a worker: who is received from and when, and that it sleeps when there is nothing to do. Without clocks:
// what counts is how often a device was asked.

import { afterEach, expect, test } from 'vitest'
import type { Device } from '../../src/device/device.ts'
import type { Batch } from '../../src/memory/batch.ts'
import { addressOf, close, eventfd, must, read, write } from '../../src/os/libc.ts'
import { type Leg, Loop } from '../../src/pipeline/loop.ts'

const open: number[] = []
afterEach(() => {
  for (const fd of open.splice(0)) close(fd)
})

/** A device that has what was put into it, and an event descriptor that says so. */
class Source implements Device, Leg {
  readonly name = 'source'
  readonly capabilities = 0
  readonly fd: number
  readonly device = this
  exhausted = false
  held = 0
  drained: boolean | undefined
  wanting = false
  isReady = true
  asked = 0
  got = 0
  dueAt: number | undefined
  private waiting = 0
  private readonly one = new BigUint64Array([1n])

  constructor(withDescriptor = true) {
    this.fd = withDescriptor ? must(eventfd(), 'eventfd', 'source') : -1
    if (withDescriptor) open.push(this.fd)
  }

  put(frames: number): void {
    this.waiting += frames
    if (this.fd >= 0) write(this.fd, addressOf(this.one), 8)
  }

  receive(batch: Batch): number {
    this.asked++
    const n = Math.min(this.waiting, batch.room)
    for (let i = 0; i < n; i++) batch.push(i)
    this.waiting -= n
    if (this.waiting === 0 && this.fd >= 0) read(this.fd, addressOf(new BigUint64Array(1)), 8)
    return n
  }

  run(batch: Batch): void {
    this.got += batch.length
    batch.length = 0
  }

  ready(): boolean {
    return this.isReady
  }

  due(): number {
    return this.dueAt ?? Number.POSITIVE_INFINITY
  }

  transmit(): void {}
  close(): void {}
}

/** Runs a loop for so many ticks; `each` sees the number of the tick and may end it. */
function run(legs: Leg[], ticks: number, each: (tick: number, loop: Loop) => void = () => {}, tickMs = 5): void {
  let seen = 0
  const loop = new Loop(() => {
    each(++seen, loop)
    return seen < ticks
  }, tickMs)
  for (const leg of legs) loop.add(leg)
  loop.run()
  expect(seen).toBe(ticks)
}

test('it carries what is there, all of it, before it ends', () => {
  const [one, two] = [new Source(), new Source()]
  one.put(1000)
  two.put(3)
  run([one, two], 3)
  expect([one.got, two.got]).toEqual([1000, 3])
})

test('it sleeps while nothing comes: a device is asked once, and then when its descriptor says so', () => {
  const source = new Source()
  run([source], 10, tick => tick === 5 && source.put(1))
  expect(source.got).toBe(1)
  // At the start, when the frame came, and once each to see that there is no more.
  expect(source.asked).toBeLessThanOrEqual(4)
})

test('a device without a descriptor is asked in every breath, but the loop sleeps between', () => {
  const source = new Source(false)
  run([source], 10)
  expect(source.asked).toBeGreaterThanOrEqual(10)
  expect(source.asked).toBeLessThan(40)
})

test('a leg that is not ready is left alone; it goes on when it is', () => {
  const source = new Source()
  source.put(5)
  source.isReady = false
  run([source], 6, tick => {
    if (tick === 4) {
      expect(source.asked).toBe(0)
      source.isReady = true
    }
  })
  expect(source.got).toBe(5)
})

test('one leg that is not ready does not keep the others', () => {
  const [stuck, other] = [new Source(), new Source()]
  stuck.isReady = false
  stuck.put(1)
  run([stuck, other], 6, tick => tick === 3 && other.put(7))
  expect([stuck.got, other.got]).toEqual([0, 7])
})

test('a device that holds frames is asked again although no descriptor says so', () => {
  const source = new Source()
  source.held = 1
  run([source], 5)
  expect(source.asked).toBeGreaterThan(5)
})

test('a device that waits for frames to come back is asked once a tick although no descriptor says so', () => {
  const source = new Source()
  source.wanting = true
  run([source], 20)
  expect(source.asked).toBeGreaterThanOrEqual(19)
  expect(source.asked).toBeLessThanOrEqual(21)
})

test('a leg that is due wakes the loop', () => {
  const source = new Source(false)
  source.dueAt = performance.now() + 10
  // The first tick is at once, the second would be after an hour.
  let asked = 0
  const loop = new Loop(() => ++asked < 2, 3_600_000)
  loop.add({
    device: source,
    run: batch => source.run(batch),
    due: () => {
      if (source.asked > 2) throw new Error('woken')
      return source.dueAt as number
    },
  })
  expect(() => loop.run()).toThrow('woken')
})

test('a descriptor that is gone does not keep the loop awake', () => {
  const [gone, other] = [new Source(), new Source()]
  run([gone, other], 10, tick => {
    // POLLNVAL from now on.
    if (tick === 2) close(open.splice(open.indexOf(gone.fd), 1)[0])
    if (tick === 5) other.put(2)
  })
  expect(gone.asked).toBeLessThanOrEqual(2)
  expect(other.got).toBe(2)
})

test('devices come and go between breaths', () => {
  const [first, second] = [new Source(), new Source()]
  run([first], 8, (tick, loop) => {
    if (tick === 2) loop.add(second)
    if (tick === 3) second.put(4)
    if (tick === 5) loop.remove(first)
    if (tick === 6) first.put(1)
  })
  expect([first.got, second.got]).toEqual([0, 4])
})

test('busy devices do not starve the tick, nor a quiet one', () => {
  const [busy, quiet] = [new Source(false), new Source()]
  const refilled: Leg = {
    device: busy,
    run(batch) {
      busy.run(batch)
      busy.put(10)
    },
  }
  busy.put(10)
  let ticks = 0
  const loop = new Loop(() => {
    if (++ticks === 2) quiet.put(1)
    return quiet.got === 0
  }, 1)
  loop.add(refilled)
  loop.add(quiet)
  loop.run()
  expect(quiet.got).toBe(1)
})

test('a loop without traffic looks once a tick, busy polling or not, and however many devices it has', () => {
  const legs = Array.from({ length: 40 }, () => new Source())
  let ticks = 0
  const loop = new Loop(() => ++ticks < 10, 5, { mode: 'always', maxMicroseconds: 1 })
  for (const leg of legs) loop.add(leg)
  loop.run()
  // A timer may end a moment early, and then there is one look more; the first lull is looked through.
  expect(loop.looks).toBeLessThan(40)
  expect(legs.map(leg => leg.asked)).toEqual(legs.map(() => 1))
})

test('while it waits for what comes soon it looks without sleeping, and carries what comes', () => {
  const source = new Source()
  let ticks = 0
  const loop = new Loop(
    () => {
      if (++ticks === 20) source.put(2)
      return source.got < 2
    },
    1,
    { mode: 'always', maxMicroseconds: 1_000_000 },
  )
  loop.add(source)
  loop.run()
  expect(source.got).toBe(2)
  expect(loop.looks).toBeGreaterThan(20)
})

test('many descriptors that are ready at once are all served', () => {
  const legs = Array.from({ length: 200 }, () => new Source())
  run(legs, 8, tick => {
    if (tick === 3) for (const leg of legs) leg.put(2)
  })
  expect(legs.map(leg => leg.got)).toEqual(legs.map(() => 2))
})

test('a leg to come takes the place of one that is gone', () => {
  const [gone, stays, comes] = [new Source(), new Source(), new Source()]
  run([gone, stays], 8, (tick, loop) => {
    if (tick === 2) {
      loop.remove(gone)
      loop.add(comes)
    }
    if (tick === 4) for (const source of [gone, stays, comes]) source.put(3)
  })
  expect([gone.got, stays.got, comes.got]).toEqual([0, 3, 3])
})

test('a device that says it is drained is not asked again before its descriptor says so', () => {
  const source = new Source()
  source.drained = true
  source.put(3)
  run([source], 8, tick => tick === 4 && source.put(2))
  expect(source.got).toBe(5)
  expect(source.asked).toBe(2)
})
