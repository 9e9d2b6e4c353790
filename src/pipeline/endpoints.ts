// The pool of endpoints as a worker uses it: which of them may get a flow's packets, and which one a new flow goes to.

import type { Seed } from '../flow/hash.ts'
import { choose, hashForChoice, identityOf } from '../flow/rendezvous.ts'
import {
  ENDPOINT,
  ENDPOINT_NUMBERS,
  ENDPOINT_STATE,
  type EndpointTableHandle,
  EndpointView,
} from '../memory/endpoints.ts'
import { HEALTH, type HealthHandle } from '../memory/health.ts'

/** What a worker builds its pool from; passes through workerData. */
export interface EndpointsHandle {
  table: EndpointTableHandle
  health: HealthHandle
  /** From which, and the addresses, the choice follows; nodes that have the same choose alike. */
  seed: Seed
}

/** The pool: one thread. */
export class Endpoints {
  readonly view: EndpointView
  /** By number: 1 where the flows that an endpoint has may be sent to it. */
  readonly usable = new Uint8Array(ENDPOINT_NUMBERS)
  /** How many endpoints are usable. */
  usableCount = 0
  private readonly health: Int32Array
  private readonly seed: Seed
  /** Those that get new flows. */
  private readonly candidates = new Uint8Array(ENDPOINT_NUMBERS)
  private readonly identities = new Int32Array(ENDPOINT_NUMBERS)
  private readonly weights = new Float64Array(ENDPOINT_NUMBERS)
  private count = 0

  constructor({ table, health, seed }: EndpointsHandle) {
    this.view = new EndpointView(table)
    this.health = new Int32Array(health)
    this.seed = seed
    this.refresh()
  }

  /** Looks at what was published and who is up; says whether endpoints, or the ways to them, are others than before. */
  refresh(): boolean {
    const { view, health, usable, candidates, identities, weights } = this
    const { words } = view
    const changed = view.refresh()
    let usableCount = 0
    let count = 0
    for (let number = 1; number < ENDPOINT_NUMBERS; number++) {
      const at = number * ENDPOINT.WORDS
      const state = words[at + ENDPOINT.STATE]
      if (state === 0) {
        usable[number] = 0
        continue
      }
      const up = Atomics.load(health, number * HEALTH.WORDS + HEALTH.UP)
      usable[number] = up
      usableCount += up
      if (up === 0 || (state & ENDPOINT_STATE.DRAINING) !== 0) continue
      candidates[count] = number
      identities[count] = identityOf(words, at + ENDPOINT.ADDRESS, this.seed)
      weights[count] = words[at + ENDPOINT.WEIGHT]
      count++
    }
    this.usableCount = usableCount
    this.count = count
    return changed
  }

  /** The number of the endpoint for a new flow, by its key; 0 when none takes new flows. */
  choose(keys: Int32Array, at: number): number {
    const { candidates, count } = this
    if (count < 2) return count === 0 ? 0 : candidates[0]
    return candidates[choose(hashForChoice(keys, at, this.seed), count, this.identities, this.weights)]
  }

  /**
   * Where a flow goes whose endpoint, 0 for none yet, may not be used: to another one, or to none, 0, because it stays where
   * it is or there is no other. Who left the pool keeps no flows.
   */
  replace(endpoint: number, keys: Int32Array, at: number): number {
    const { view } = this
    if (endpoint !== 0 && !view.moves && view.isPresent(endpoint)) return 0
    const next = this.choose(keys, at)
    if (endpoint !== 0 && next !== 0) Atomics.add(this.health, endpoint * HEALTH.WORDS + HEALTH.MOVED, 1)
    return next
  }
}
