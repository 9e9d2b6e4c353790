// Round trips of probes as people and Prometheus read them.

import type { Histogram } from '../control/source.ts'
import { BUCKETS, bucketEnd, type EndpointHealth } from '../memory/health.ts'

/** From 16 µs to 1 s, two to each doubling: every second bucket's end. */
const FIRST = 11
const STEP = 2

const ends: number[] = []
for (let bucket = FIRST; bucket < BUCKETS - 1; bucket += STEP) ends.push(bucket)

/** Bounds in ms. */
const bounds = ends.map(bucket => bucketEnd(bucket) / 1000)

/** An endpoint's round trips. */
export function latencyOf({ buckets, sumUs }: EndpointHealth): Histogram {
  const counts = new Array<number>(ends.length + 1).fill(0)
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    const place = ends.findIndex(end => bucket <= end)
    counts[place < 0 ? ends.length : place] += buckets[bucket]
  }
  return { bounds, counts, sumMs: sumUs / 1000 }
}
