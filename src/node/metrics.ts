// The page for machines: metrics, liveness, readiness.

import type { Log } from '../control/log.ts'
import type { Source } from '../control/source.ts'

/** An answer to "are you?", and why not. */
export interface Condition {
  ok: boolean
  /** One line; shown either way. */
  text: string
}

export interface MetricsOptions {
  /** `HOST:PORT`; port 0 takes a free one. */
  listen: string
  /** The age at which a worker's heartbeat counts as dead, ms. */
  heartbeatLimitMs: number
  /** Whether pods can be attached now; /readyz tells. */
  ready(): Condition
  log: Log
}

export interface MetricsServer {
  /** `HOST:PORT` as it listens. */
  readonly address: string
  close(): Promise<void>
}

/** Serves /metrics, /healthz and /readyz. Throws DetourError when the address cannot be had. */
export async function startMetrics(source: Source, options: MetricsOptions): Promise<MetricsServer> {
  throw new Error(`not yet: ${source} ${options}`)
}
