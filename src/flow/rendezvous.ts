// Which endpoint a flow goes to: weighted rendezvous hashing (highest random weight; Thaler and Ravishankar 1998, weights as in
// draft-ietf-bess-weighted-hrw). Each endpoint gets a score from the flow and its own address, the highest wins; so one that
// comes or goes moves only the flows that it wins or had won, and nodes with the same endpoints and seed choose alike.

import { hashKey, type Seed } from './hash.ts'
import { KEY } from './key.ts'

const scratch = new Int32Array(KEY.WORDS)

/** A flow's hash for choosing: both directions, and the nodes of both ends, agree on it, because it leaves out the attachment. */
export function hashForChoice(keys: Int32Array, at: number, seed: Seed): number {
  for (let i = 0; i < KEY.WORDS; i++) scratch[i] = keys[at + i]
  scratch[KEY.KIND] &= ~0xffff
  return hashKey(scratch, 0, seed)
}

/** An endpoint's part in every choice, from the four words of its address; those of IPv4 begin with it and end in zeros. */
export function identityOf(address: Int32Array, at: number, seed: Seed): number {
  scratch.fill(0)
  scratch[KEY.KIND] = 6 << 24
  for (let i = 0; i < 4; i++) scratch[KEY.A + i] = address[at + i]
  return hashKey(scratch, 0, seed)
}

/**
 * Which of the first `count` candidates wins the flow of that hash, by `identities` and `weights`, or -1 when there is none. A
 * candidate wins a share of the flows in proportion to its weight.
 */
export function choose(hash: number, count: number, identities: Int32Array, weights: Float64Array): number {
  let best = -1
  let highest = 0
  for (let i = 0; i < count; i++) {
    const score = weights[i] / -Math.log(unit(mix(hash ^ identities[i])))
    // Whatever the order of the candidates.
    if (score > highest || (score === highest && identities[i] > identities[best])) {
      highest = score
      best = i
    }
  }
  return best
}

/** Between 0 and 1, neither of them. */
const unit = (hash: number) => ((hash >>> 0) + 0.5) / 2 ** 32

/** MurmurHash3's finalizer: every bit of the sum of flow and endpoint reaches every bit of the score. */
function mix(value: number): number {
  let h = value
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return h ^ (h >>> 16)
}
