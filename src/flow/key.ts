// The flow key of a packet: canonical, so that both directions of a flow, and what belongs to it, have the same one.
//
//   word 0      version << 24 | protocol << 16 | attachment
//   word 1      port A << 16 | port B
//   words 2-5   address A (IPv4: the first word)
//   words 6-9   address B

import type { DropReason } from '../drop.ts'
import type { Pool } from '../memory/pool.ts'
import type { FragmentTable } from './fragments.ts'
import type { Seed } from './hash.ts'

/** Offsets of a key's words. */
export const KEY = { KIND: 0, PORTS: 1, A: 2, B: 6, WORDS: 10 } as const

/**
 * Writes key, hash and `reversed` of a frame whose headers pipeline/parse has checked. Returns 0 or a drop reason. The
 * key holds the frame's attachment number only `withAttachment`: a gateway has none.
 */
export function readKey(
  pool: Pool,
  frame: number,
  fragments: FragmentTable,
  seed: Seed,
  withAttachment: boolean,
): DropReason {
  return 0
}
