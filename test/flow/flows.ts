// Flows for the tests of the flow table.

import { FIXED_SEED, hashKey } from '../../src/flow/hash.ts'
import { KEY } from '../../src/flow/key.ts'
import { KEY_WORDS } from '../../src/memory/pool.ts'

const TCP = 6

/** Keys of different flows, KEY_WORDS apart, and their hashes. */
export function makeFlows(count: number, protocol = TCP): { keys: Int32Array; hash: Int32Array } {
  const keys = new Int32Array(count * KEY_WORDS)
  for (let i = 0; i < count; i++) {
    const at = i * KEY_WORDS
    keys[at + KEY.KIND] = (4 << 24) | (protocol << 16) | 3
    keys[at + KEY.PORTS] = ((1024 + (i & 0xff)) << 16) | 443
    keys[at + KEY.A] = 0x0a000000 + (i >> 8)
    keys[at + KEY.B] = 0xc0000201 | 0
  }
  return { keys, hash: Int32Array.from({ length: count }, (_, i) => hashKey(keys, i * KEY_WORDS, FIXED_SEED)) }
}
