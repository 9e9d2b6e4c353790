// What is known of each endpoint's health, in shared memory: probes and their round trips, whether it is up, and how many flows
// left it. Each word has one writer, or is added to atomically:
//
//   the worker that sends probes     UP, SENT, SINCE, the ring's times and nonces
//   whichever a probe returns to     ANSWERED, LAST_ANSWER, the ring's answers, the histogram
//   every worker                     MOVED
//   the main thread                  FAILING; all of a block before a number is given to an endpoint

import { ENDPOINT_NUMBERS } from './endpoints.ts'

/** Probes that are remembered; a later answer is none. */
export const RING = 64

const OCTAVES = 20
const PER_OCTAVE = 4

/** Buckets of the round-trip histogram: four to each doubling, from 1 µs to 2 s. */
export const BUCKETS = OCTAVES * PER_OCTAVE

/** Words of an endpoint's block; those of DOUBLES count in doubles. */
export const HEALTH = {
  UP: 0,
  /** Bits of the main thread's checks that say it is down. */
  FAILING: 1,
  SENT: 2,
  ANSWERED: 3,
  /** Flows that went to other endpoints because this one was down or gone. */
  MOVED: 4,
  /** By sequence number modulo RING: the secret that an answer must show; the sequence number that was answered. */
  NONCE: 16,
  SEEN: 16 + RING,
  HISTOGRAM: 16 + 2 * RING,
  DOUBLES: {
    /** ms of CLOCK_MONOTONIC; 0 for never. */
    LAST_ANSWER: 4,
    /** Since when it is up or down; 0 for since it is in the pool. */
    SINCE: 5,
    /** Of all round trips, µs. */
    SUM: 6,
    /** By sequence number modulo RING: when it was sent. */
    TIME: 8 + RING + BUCKETS / 2,
  },
  WORDS: 2 * (8 + RING + BUCKETS / 2 + RING),
} as const

/** Shared memory of all blocks; passes through workerData. */
export type HealthHandle = SharedArrayBuffer

/** Allocates it: every endpoint counts as up until it is found to be down. */
export function createHealth(): HealthHandle {
  const handle = new SharedArrayBuffer(ENDPOINT_NUMBERS * HEALTH.WORDS * 4)
  const words = new Int32Array(handle)
  for (let number = 0; number < ENDPOINT_NUMBERS; number++) words[number * HEALTH.WORDS + HEALTH.UP] = 1
  return handle
}

/** Makes a number's block that of an endpoint of which nothing is known. Main thread, while no endpoint has the number. */
export function resetHealth(handle: HealthHandle, number: number, up: boolean): void {
  const words = new Int32Array(handle, number * HEALTH.WORDS * 4, HEALTH.WORDS)
  words.fill(0)
  words[HEALTH.UP] = up ? 1 : 0
}

/** The bucket of a round trip of whole µs. */
export function bucketOf(us: number): number {
  const value = Math.max(us | 0, 0)
  if (value < PER_OCTAVE) return value
  const octave = 31 - Math.clz32(value)
  return Math.min(BUCKETS - 1, (octave - 1) * PER_OCTAVE + ((value >>> (octave - 2)) & 3))
}

/** The µs at which a bucket ends; the last one has no end. */
export function bucketEnd(bucket: number): number {
  if (bucket === BUCKETS - 1) return Number.POSITIVE_INFINITY
  if (bucket < PER_OCTAVE) return bucket + 1
  return (5 + (bucket & 3)) * 2 ** ((bucket >> 2) - 1)
}

/** What is known of one endpoint. */
export interface EndpointHealth {
  up: boolean
  /** Bits of the main thread's checks. */
  failing: number
  sent: number
  answered: number
  moved: number
  /** Times in ms of CLOCK_MONOTONIC; 0 for never. */
  lastAnswerMs: number
  sinceMs: number
  /** Round trips by bucket, and the sum of all of them in µs. */
  buckets: number[]
  sumUs: number
}

/** Reads a number's block: any thread. */
export function readHealth(handle: HealthHandle, number: number): EndpointHealth {
  const at = number * HEALTH.WORDS
  const words = new Int32Array(handle, at * 4, HEALTH.WORDS)
  const doubles = new Float64Array(handle, at * 4, HEALTH.WORDS / 2)
  return {
    up: words[HEALTH.UP] === 1,
    failing: words[HEALTH.FAILING],
    sent: words[HEALTH.SENT],
    answered: words[HEALTH.ANSWERED],
    moved: words[HEALTH.MOVED],
    lastAnswerMs: doubles[HEALTH.DOUBLES.LAST_ANSWER],
    sinceMs: doubles[HEALTH.DOUBLES.SINCE],
    buckets: [...words.subarray(HEALTH.HISTOGRAM, HEALTH.HISTOGRAM + BUCKETS)],
    sumUs: doubles[HEALTH.DOUBLES.SUM],
  }
}

/** The round trip in µs that a share of all stays under, from 0 to 1: the end of its bucket; undefined before the first. */
export function quantileUs(buckets: readonly number[], share: number): number | undefined {
  const total = buckets.reduce((sum, count) => sum + count, 0)
  if (total === 0) return undefined
  let rest = Math.ceil(total * share)
  for (let bucket = 0; bucket < buckets.length; bucket++) {
    rest -= buckets[bucket]
    if (rest <= 0) return bucketEnd(bucket)
  }
  return undefined
}
