// Which endpoint a flow goes to: shares by weight, no more moves than there must be, and alike from both ends and on every node.

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { KEY } from '../../src/flow/key.ts'
import { choose, hashForChoice, identityOf } from '../../src/flow/rendezvous.ts'

const FLOWS = 40_000

/** Keys as a client makes them: port after port, to one server. */
const keys = new Int32Array(FLOWS * KEY.WORDS)
for (let i = 0; i < FLOWS; i++) {
  const at = i * KEY.WORDS
  keys[at + KEY.KIND] = (4 << 24) | (6 << 16) | 3
  keys[at + KEY.PORTS] = ((1024 + (i % 60_000)) << 16) | 443
  keys[at + KEY.A] = 0x0a000001 + Math.floor(i / 1000)
  keys[at + KEY.B] = 0x0a1e0002
}

interface Candidate {
  address: number
  weight: number
}

const identity = (address: number, seed = FIXED_SEED) => identityOf(Int32Array.of(address, 0, 0, 0), 0, seed)

/** The address that each flow goes to. */
function assign(candidates: Candidate[], seed = FIXED_SEED): number[] {
  const identities = Int32Array.from(candidates, ({ address }) => identity(address, seed))
  const weights = Float64Array.from(candidates, ({ weight }) => weight)
  return Array.from({ length: FLOWS }, (_, i) => {
    const hash = hashForChoice(keys, i * KEY.WORDS, seed)
    return candidates[choose(hash, candidates.length, identities, weights)].address
  })
}

const equal = (addresses: number[]) => addresses.map(address => ({ address, weight: 1 }))
const FIVE = equal([0x0a630001, 0x0a630002, 0x0a630003, 0x0a630004, 0x0a630005])

describe('rendezvous hashing', () => {
  it.each([
    ['equal weights', FIVE],
    ['unequal weights', FIVE.map((one, i) => ({ ...one, weight: [1, 2, 3, 10, 100][i] }))],
    ['sixty-four', equal(Array.from({ length: 64 }, (_, i) => 0x0a630001 + i))],
  ])('gives each its share: %s', (_, candidates) => {
    const assigned = assign(candidates)
    const all = candidates.reduce((sum, { weight }) => sum + weight, 0)
    let chiSquare = 0
    for (const { address, weight } of candidates) {
      const expected = (FLOWS * weight) / all
      const got = assigned.filter(one => one === address).length
      chiSquare += (got - expected) ** 2 / expected
    }
    // Chi-square's 99.99% point lies below its mean, the degrees of freedom, by less than this many standard deviations.
    const freedom = candidates.length - 1
    expect(chiSquare).toBeLessThan(freedom + 6 * Math.sqrt(2 * freedom))
  })

  it('moves the flows of one that goes, and no others; when it is back, all is as before', () => {
    const before = assign(FIVE)
    const gone = FIVE[2].address
    const after = assign(FIVE.filter(({ address }) => address !== gone))
    const taken = new Map<number, number>()
    for (let i = 0; i < FLOWS; i++) {
      if (before[i] !== gone) expect(after[i]).toBe(before[i])
      else taken.set(after[i], (taken.get(after[i]) ?? 0) + 1)
    }
    // All the others take their part of them.
    const orphans = before.filter(one => one === gone).length
    expect(taken.size).toBe(4)
    for (const count of taken.values()) expect(Math.abs(count - orphans / 4)).toBeLessThan(5 * Math.sqrt(orphans / 4))
    expect(assign(FIVE)).toEqual(before)
  })

  it('gives one whose weight grows flows of the others, and takes it none', () => {
    const before = assign(FIVE)
    const after = assign(FIVE.map((one, i) => (i === 1 ? { ...one, weight: 3 } : one)))
    for (let i = 0; i < FLOWS; i++) if (after[i] !== before[i]) expect(after[i]).toBe(FIVE[1].address)
    expect(after.filter(one => one === FIVE[1].address).length).toBeGreaterThan(FLOWS / 3)
  })

  it('chooses alike in whatever order they are listed, and otherwise with another seed', () => {
    const before = assign(FIVE)
    fc.assert(
      fc.property(fc.shuffledSubarray(FIVE, { minLength: 5 }), shuffled => {
        expect(assign(shuffled)).toEqual(before)
      }),
      { numRuns: 5 },
    )
    expect(assign(FIVE, Int32Array.of(1, 2))).not.toEqual(before)
  })

  it('leaves the attachment out, so that the nodes of both ends agree', () => {
    const elsewhere = keys.slice(0, KEY.WORDS)
    elsewhere[KEY.KIND] = (elsewhere[KEY.KIND] & ~0xffff) | 77
    expect(hashForChoice(elsewhere, 0, FIXED_SEED)).toBe(hashForChoice(keys, 0, FIXED_SEED))
    elsewhere[KEY.PORTS]++
    expect(hashForChoice(elsewhere, 0, FIXED_SEED)).not.toBe(hashForChoice(keys, 0, FIXED_SEED))
  })

  it('has nobody to choose where there is nobody', () => {
    expect(choose(1, 0, new Int32Array(1), new Float64Array(1))).toBe(-1)
  })
})
