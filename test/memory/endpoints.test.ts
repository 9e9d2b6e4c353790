// What workers see of the pool of endpoints, also in the middle of its being written, and how long round trips were.

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ENDPOINT, ENDPOINT_STATE, EndpointTable, EndpointView, SEGMENT_SIZE } from '../../src/memory/endpoints.ts'
import {
  BUCKETS,
  bucketEnd,
  bucketOf,
  createHealth,
  quantileUs,
  readHealth,
  resetHealth,
} from '../../src/memory/health.ts'

const HOP = Uint8Array.of(2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
const rules = { moves: true, segmentSize: SEGMENT_SIZE.ANY }
const entry = { address: Uint8Array.of(10, 0, 0, 2), weight: 3, draining: true, mtu: 1500, hop: HOP }
const { PRESENT, DRAINING, HOP: KNOWN } = ENDPOINT_STATE

const wordsOf = (view: EndpointView, number: number) => [
  ...view.words.subarray(number * ENDPOINT.WORDS, number * ENDPOINT.WORDS + 3),
]
const bytesOf = (view: EndpointView, word: number, length: number) =>
  Array.from({ length }, (_, i) => view.bytes.getUint8(word * 4 + i))

describe('the table of endpoints', () => {
  it('tells each change once', () => {
    const table = new EndpointTable(rules)
    const view = new EndpointView(table.handle)
    expect([view.refresh(), view.moves, view.segmentSize, view.isPresent(64)]).toEqual([false, true, 0, false])
    table.set(64, entry)
    expect(view.refresh()).toBe(true)
    expect(wordsOf(view, 64)).toEqual([PRESENT | DRAINING | KNOWN, 3, 1500])
    expect(bytesOf(view, 64 * ENDPOINT.WORDS + ENDPOINT.HOP, 12)).toEqual([...HOP])
    expect(bytesOf(view, 64 * ENDPOINT.WORDS + ENDPOINT.ADDRESS, 5)).toEqual([10, 0, 0, 2, 0])
    table.set(64, entry)
    expect(view.refresh()).toBe(false)
    table.set(64, { ...entry, draining: false, hop: undefined, mtu: 1400 })
    expect(view.refresh()).toBe(true)
    expect(wordsOf(view, 64)).toEqual([PRESENT, 3, 1400])
    table.set(64, undefined)
    table.setRules({ moves: false, segmentSize: 1200 })
    expect(view.refresh()).toBe(true)
    expect([view.isPresent(64), view.moves, view.segmentSize]).toEqual([false, false, 1200])
  })

  it('never shows half of a change', () => {
    const table = new EndpointTable(rules)
    table.set(1, entry)
    const view = new EndpointView(table.handle)
    const before = [...view.words]
    const words = new Int32Array(table.handle)
    // A writer that was interrupted between its first word and its last.
    words[0]++
    words[16 + ENDPOINT.WORDS + ENDPOINT.MTU] = 9000
    words[16 + ENDPOINT.WORDS + ENDPOINT.ADDRESS] = 0x7777
    expect(view.refresh()).toBe(false)
    expect([...view.words]).toEqual(before)
    words[0]++
    expect(view.refresh()).toBe(true)
    expect(wordsOf(view, 1)[2]).toBe(9000)
  })
})

describe('round trips', () => {
  it('every whole number of µs lies in the bucket that ends behind it', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 31 - 1 }), us => {
        const bucket = bucketOf(us)
        expect(bucket).toBeGreaterThanOrEqual(0)
        expect(bucket).toBeLessThan(BUCKETS)
        expect(us).toBeLessThan(bucketEnd(bucket))
        if (bucket > 0) expect(us).toBeGreaterThanOrEqual(bucketEnd(bucket - 1))
      }),
    )
  })

  it('quantiles are ends of buckets, a quarter of an octave wide', () => {
    const buckets = new Array<number>(BUCKETS).fill(0)
    expect(quantileUs(buckets, 0.5)).toBeUndefined()
    for (let us = 1; us <= 1000; us++) buckets[bucketOf(us)]++
    expect(quantileUs(buckets, 0.5)).toBe(512)
    expect(quantileUs(buckets, 0.99)).toBe(1024)
  })

  it('an endpoint of which nothing is known has had none', () => {
    const health = createHealth()
    expect(readHealth(health, 3)).toMatchObject({ up: true, sent: 0, answered: 0, moved: 0, sumUs: 0 })
    resetHealth(health, 3, false)
    expect(readHealth(health, 3).up).toBe(false)
    expect(readHealth(health, 4).up).toBe(true)
  })
})
