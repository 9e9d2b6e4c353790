// The hash of a flow key: HalfSipHash-1-3, keyed, as Linux hashes what strangers choose (include/linux/siphash.h), so
// that nobody without the seed can make flows collide. All workers of a process use one seed, or a flow's two
// directions end up at different ones.

/** Two secret words. Plain data, passes through workerData. */
export type Seed = Int32Array

/** The seed of replays: same input, same result. */
export const FIXED_SEED: Seed = Int32Array.of(0x03020100, 0x07060504)

/** A seed that nobody can guess, for whatever faces a network. */
export function randomSeed(): Seed {
  return crypto.getRandomValues(new Int32Array(2))
}

/** The hash, a signed 32-bit number, of the flow key at `keys[at]`; of an IPv4 key only the four words in use are hashed. */
export function hashKey(keys: Int32Array, at: number, seed: Seed): number {
  return keys[at] >>> 24 === 6 ? halfSipHash(keys, at, 10, 0, seed) : halfSipHash(keys, at, 4, 3, seed)
}

/** HalfSipHash-1-3 of `count` words, at least three, from `words[at]` on, leaving out `gap` words behind the third. */
export function halfSipHash(words: Int32Array, at: number, count: number, gap: number, seed: Seed): number {
  let v0 = seed[0]
  let v1 = seed[1]
  let v2 = seed[0] ^ 0x6c796765
  let v3 = seed[1] ^ 0x74656462
  // One compression round a word and one for the length; then three to finish, which are rounds with a zero word.
  for (let i = 0; i < count + 4; i++) {
    const word = i < 3 ? words[at + i] : i < count ? words[at + i + gap] : i === count ? count << 26 : 0
    if (i === count + 1) v2 ^= 0xff
    v3 ^= word
    v0 = (v0 + v1) | 0
    v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0
    v0 = (v0 << 16) | (v0 >>> 16)
    v2 = (v2 + v3) | 0
    v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2
    v0 = (v0 + v3) | 0
    v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0
    v2 = (v2 + v1) | 0
    v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2
    v2 = (v2 << 16) | (v2 >>> 16)
    v0 ^= word
  }
  return v1 ^ v3
}
