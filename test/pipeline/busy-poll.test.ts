// When a loop looks again and when it sleeps, by a clock that the test turns.

import { describe, expect, test } from 'vitest'
import { BusyPoll, type PollingOptions } from '../../src/pipeline/busy-poll.ts'

const US = 0.001

/** A loop's life: it lives through lulls of given lengths, looking every microsecond, and being woken `waking` late. */
class Life {
  private now = 1000
  private readonly poll: BusyPoll
  private readonly waking: number

  constructor(options: PollingOptions, waking = 15) {
    this.poll = new BusyPoll(options)
    this.waking = waking
  }

  /** One lull in µs; returns how many of them were looked through, and whether the loop slept then. */
  lull(length: number): { looked: number; slept: boolean } {
    this.poll.moved(this.now)
    const began = this.now
    for (let looked = 0; looked < length; looked++) {
      if (!this.poll.stays(this.now)) {
        this.now = began + (length + this.waking) * US
        return { looked, slept: true }
      }
      this.now += US
    }
    return { looked: length, slept: false }
  }

  /** The last of so many such lulls. */
  last(count: number, length: number): { looked: number; slept: boolean } {
    for (let i = 1; i < count; i++) this.lull(length)
    return this.lull(length)
  }
}

const adaptive: PollingOptions = { mode: 'adaptive', maxMicroseconds: 100 }

test('knowing nothing it sleeps at once', () => {
  expect(new Life(adaptive).lull(10)).toEqual({ looked: 0, slept: true })
})

test.each([3, 10, 50, 80])('lulls of %i µs are soon looked through', length => {
  expect(new Life(adaptive).last(20, length)).toEqual({ looked: length, slept: false })
})

test.each([150, 1000, 50_000])('lulls of %i µs are slept through, also after short ones', length => {
  const life = new Life(adaptive)
  life.last(100, 10)
  expect(life.last(30, length)).toEqual({ looked: 0, slept: true })
})

test('it never looks for longer than is allowed, nor for much longer than it need', () => {
  const life = new Life(adaptive)
  life.last(100, 80)
  expect(life.lull(100_000).looked).toBeLessThanOrEqual(101)
  life.last(100, 5)
  expect(life.lull(100_000).looked).toBeLessThanOrEqual(12)
})

test('after one long lull among short ones it goes on looking', () => {
  const life = new Life(adaptive)
  life.last(100, 10)
  life.lull(20_000)
  expect(life.lull(10).slept).toBe(false)
})

test('question and answer: where every other lull is short, that one is looked through, and little is lost on the others', () => {
  const life = new Life(adaptive)
  let short = { looked: 0, slept: true }
  let long = short
  for (let i = 0; i < 50; i++) {
    long = life.lull(1000)
    short = life.lull(12)
  }
  expect(short.slept).toBe(false)
  expect(long.looked).toBeLessThanOrEqual(40)
})

test('a wake-up without frames, as for a tick, does not begin a new look', () => {
  const poll = new BusyPoll({ mode: 'always', maxMicroseconds: 100 })
  expect([0, 0.05, 0.2, 50, 100].map(now => poll.stays(now))).toEqual([true, true, false, false, false])
  poll.moved(100.1)
  expect(poll.stays(100.2)).toBe(true)
})

describe('modes', () => {
  test('always looks for as long as is allowed, whatever the lulls are', () => {
    const life = new Life({ mode: 'always', maxMicroseconds: 40 })
    expect(life.last(50, 10_000)).toEqual({ looked: expect.closeTo(40, -1), slept: true })
  })

  test('never does not look, however short the lulls are', () => {
    expect(new Life({ mode: 'never', maxMicroseconds: 40 }).last(50, 2)).toEqual({ looked: 0, slept: true })
  })
})
