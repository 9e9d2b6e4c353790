// How fast repairs may follow on one another, on a clock of the test's own.

import { describe, expect, it } from 'vitest'
import { createBackoff } from '../../../src/cni/install/backoff.ts'

const options = { free: 3, firstMs: 1_000, longestMs: 8_000, calmMs: 60_000 }

/** Repairs whenever it is due, undone at once each time; returns the waits. */
function waits(backoff: ReturnType<typeof createBackoff>, from: number, count: number): number[] {
  let now = from
  return Array.from({ length: count }, () => {
    const wait = Math.max(0, backoff.due(now) - now)
    now += wait
    backoff.repaired(now)
    return wait
  })
}

describe('backoff', () => {
  it('the first repairs are at once, the others wait twice as long each time, up to the longest', () => {
    expect(waits(createBackoff(options), 0, 9)).toEqual([0, 0, 0, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000])
  })

  it('a repair that lasts ends the row', () => {
    const backoff = createBackoff(options)
    waits(backoff, 0, 5)
    expect(backoff.row).toBe(5)
    expect(backoff.due(100_000)).toBeLessThanOrEqual(100_000)
    expect(backoff.row).toBe(0)
    expect(waits(backoff, 100_000, 4)).toEqual([0, 0, 0, 1_000])
  })

  it('one undone an hour is repaired at once each time', () => {
    const backoff = createBackoff(options)
    for (let hour = 1; hour < 20; hour++) {
      expect(backoff.due(hour * 3_600_000)).toBeLessThanOrEqual(hour * 3_600_000)
      backoff.repaired(hour * 3_600_000)
    }
    expect(backoff.row).toBe(1)
  })

  it('a long wait is not mistaken for calm', () => {
    const slow = createBackoff({ ...options, longestMs: 100_000, calmMs: 1_000 })
    expect(waits(slow, 0, 10).at(-1)).toBe(64_000)
  })
})
