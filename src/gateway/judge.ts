// What decides flows: by their first packet, and by what they carry where that matters. A rule is a number; -1 is the default.

import type { StreamLimits } from './l7/streams.ts'
import type { Rules } from './rules.ts'

/** No rule has decided. */
export const UNDECIDED = -2

/** The judge of one worker's flows, by row; one thread. */
export interface Judge {
  /** Offset in the stream or datagram behind what decided last; -1 where nothing in it did. */
  readonly matchedAt: number
  /** What decided last, for the log, where the rule's name does not say it: `GET /secret`. */
  readonly detail: string | undefined
  /** The rule that decides a new flow by its first packet; `opener` is 1 where end B opened it. */
  begin(frame: number, row: number, opener: number): number
  /** Whether what the flow carries still matters. */
  watches(row: number): boolean
  /** The rule that now decides by what a packet carries, or UNDECIDED; its contents have been told. */
  judge(frame: number, row: number): number
  /** Nothing that the flow carries matters any more. */
  release(row: number): void
  /** One of VERDICT. */
  verdict(rule: number): number
  name(rule: number): string
}

/** What a gateway is told to decide by: plain data, passes through workerData. */
export type Policy = Rules | Manifests

/** What is done with a flow that policies deny. */
export const DENIALS = ['reset', 'drop', '403'] as const
export type Denial = (typeof DENIALS)[number]

/** Policies as people wrote them, and who is who. */
export interface Manifests {
  policies: { value: unknown; where: string }[]
  inventory: { value: unknown; where: string }[]
  /** Where it is `403`, flows are reset that are denied for another reason than a request. */
  denial: Denial
  streams?: StreamLimits
}
