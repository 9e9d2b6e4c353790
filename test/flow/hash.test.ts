// The flow hash against Linux's answers, and how well it spreads what networks look like.

import { describe, expect, it } from 'vitest'
import { FIXED_SEED, halfSipHash, hashKey, randomSeed } from '../../src/flow/hash.ts'
import { KEY } from '../../src/flow/key.ts'

/** A TCP flow between `client` and 192.0.2.1:443. */
function key4(client: number, port: number): Int32Array {
  const key = new Int32Array(KEY.WORDS)
  key[KEY.KIND] = (4 << 24) | (6 << 16)
  key[KEY.PORTS] = (port << 16) | 443
  key[KEY.A] = client
  key[KEY.B] = 0xc0000201 | 0
  return key
}

function key6(client: number, port: number): Int32Array {
  return Int32Array.of((6 << 24) | (6 << 16), (port << 16) | 443, 0xfd000000 | 0, 0, 0, client, 0x20010db8, 0, 0, 1)
}

describe('halfSipHash', () => {
  // Known answers of HalfSipHash-1-3: Linux, lib/tests/siphash_kunit.c, 32-bit, inputs of 12, 16, 32 and 40 bytes 0, 1, 2 ...
  it.each([
    [3, 0x6b28096c],
    [4, 0x8b31d501],
    [8, 0xbc6dda8d],
    [10, 0x05327eb2],
  ])('of %i words gives what Linux gives', (count, answer) => {
    const words = new Int32Array(Uint8Array.from({ length: 40 }, (_, i) => i).buffer)
    expect(halfSipHash(words, 0, count, 0, FIXED_SEED) >>> 0).toBe(answer)
  })

  it('leaves out the gap and nothing else', () => {
    const with9 = Int32Array.of(1, 2, 3, 9, 9, 9, 4)
    expect(halfSipHash(with9, 0, 4, 3, FIXED_SEED)).toBe(halfSipHash(Int32Array.of(1, 2, 3, 4), 0, 4, 0, FIXED_SEED))
  })
})

describe('hashKey', () => {
  it('makes every bit of the key flip about half of the bits of the hash', () => {
    for (const [make, used] of [
      [key4, [0, 1, 2, 6]],
      [key6, [1, 2, 3, 4, 5, 6, 7, 8, 9]],
    ] as const) {
      for (const word of used) {
        for (let bit = 0; bit < (word === 0 ? 24 : 32); bit++) {
          let flipped = 0
          for (let i = 0; i < 64; i++) {
            const key = make(0x0a000000 + i * 7, 1024 + i)
            const before = hashKey(key, 0, FIXED_SEED)
            key[word] ^= 1 << bit
            let difference = before ^ hashKey(key, 0, FIXED_SEED)
            for (; difference !== 0; difference &= difference - 1) flipped++
          }
          // 2048 coin tosses: 1024, standard deviation 23; six of them are allowed
          expect(Math.abs(flipped - 1024), `word ${word} bit ${bit}`).toBeLessThan(6 * 23)
        }
      }
    }
  })

  it.each([
    ['addresses', (i: number) => key4(0x0a000000 + i, 40000)],
    ['ports', (i: number) => key4(0x0a000001, i)],
    ['networks', (i: number) => key4(0x0a000001 + (i << 8), 40000)],
    ['IPv6 addresses', (i: number) => key6(i, 40000)],
  ])('spreads sequential %s as evenly as chance', (_name, make) => {
    const BUCKETS = 1024
    const flows = 65_536
    for (const shift of [0, 11, 22]) {
      const counts = new Int32Array(BUCKETS)
      for (let i = 0; i < flows; i++) counts[(hashKey(make(i), 0, FIXED_SEED) >>> shift) & (BUCKETS - 1)]++
      let chi = 0
      for (const count of counts) chi += (count - flows / BUCKETS) ** 2 / (flows / BUCKETS)
      // 1023 degrees of freedom: standard deviation 45
      expect(Math.abs(chi - 1023), `bits from ${shift}`).toBeLessThan(5 * 45)
    }
  })

  it('has few collisions among 100,000 flows', () => {
    const seen = new Set<number>()
    for (let i = 0; i < 100_000; i++) seen.add(hashKey(key4(0x0a000000 + (i >> 4), 1024 + (i & 15)), 0, FIXED_SEED))
    expect(100_000 - seen.size).toBeLessThan(10) // 1.2 expected of chance
  })

  it('is another function under another seed', () => {
    const seeds = [randomSeed(), randomSeed()]
    let same = 0
    for (let i = 0; i < 1000; i++) if (hashKey(key4(i, 1), 0, seeds[0]) === hashKey(key4(i, 1), 0, seeds[1])) same++
    expect(same).toBeLessThan(3)
  })
})
