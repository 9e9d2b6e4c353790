// What a configuration says of endpoints, as workers take it.

import { createHash } from 'node:crypto'
import type { Config } from '../control/config.ts'
import type { Seed } from '../flow/hash.ts'
import { type EndpointRules, SEGMENT_SIZE } from '../memory/endpoints.ts'
import type { ProbeOptions } from '../pipeline/probe.ts'

/** How endpoints are probed and judged. */
export function probeOf({ health }: Config): ProbeOptions {
  const { probe, rise, fall, holdDownSeconds } = health
  return { ...probe, rise, fall, holdDownMs: holdDownSeconds * 1000 }
}

/** What holds for all of them. */
export function rulesOf({ rebalance, mssClamp }: Config): EndpointRules {
  const segmentSize = mssClamp === 'auto' ? SEGMENT_SIZE.FITTING : mssClamp === 'none' ? SEGMENT_SIZE.ANY : mssClamp
  return { moves: rebalance === 'onFailure', segmentSize }
}

/** Nodes with the same text choose alike; it need not be secret, unless senders must not know where their flows go. */
export function seedOf({ endpointSeed }: Config): Seed {
  const digest = createHash('sha256').update(endpointSeed).digest()
  return Int32Array.of(digest.readInt32LE(0), digest.readInt32LE(4))
}
