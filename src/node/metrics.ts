// The pages for machines: metrics in Prometheus' text format, liveness, readiness.
//
// Nothing is counted here: each scrape reads once what the node tells about itself anyway.

import { type Metric as AnyMetric, Counter, Gauge, Registry } from 'prom-client'
import type { Log } from '../control/log.ts'
import type { Source } from '../control/source.ts'
import { type Page, servePages, text } from './health-page.ts'
import { METRICS, type Metric, type Snapshot, takeSnapshot } from './metrics-list.ts'

/** An answer to "are you?". */
export interface Condition {
  ok: boolean
  /** One line, for people. */
  text: string
}

export interface MetricsOptions {
  /** `HOST:PORT`; port 0 takes a free one. */
  listen: string
  /** The age at which a worker's heartbeat counts as dead, ms. */
  heartbeatLimitMs: number
  /** Whether pods can be attached now; /readyz tells. */
  ready(): Condition | Promise<Condition>
  log: Log
}

export interface MetricsServer {
  /** `HOST:PORT` as it listens. */
  readonly address: string
  close(): Promise<void>
}

/** Serves /metrics, /healthz and /readyz. Throws DetourError when the address cannot be had. */
export async function startMetrics(source: Source, options: MetricsOptions): Promise<MetricsServer> {
  const { listen, heartbeatLimitMs, ready, log } = options
  const exporter = new Exporter(source)
  const server = await servePages(listen, {
    '/metrics': async () => ({ status: 200, type: exporter.contentType, body: await exporter.page() }),
    '/healthz': () => conditionPage(workersLive(source, heartbeatLimitMs)),
    '/readyz': async () => conditionPage(await ready()),
  }).catch(error => {
    exporter.close()
    throw error
  })
  const { address } = server
  log(`metrics at http://${address}/metrics`, { component: 'metrics' })
  if (!server.loopback) {
    const warning = `metrics.listen ${address} is no loopback address: pods and other machines may be able to read it`
    log(warning, { component: 'metrics', level: 'warn' })
  }
  return {
    address,
    close() {
      exporter.close()
      return server.close()
    },
  }
}

const conditionPage = ({ ok, text: line }: Condition): Page => text(ok ? 200 : 503, line)

function workersLive(source: Source, limitMs: number): Condition {
  const workers = source.workers?.() ?? []
  const dead = workers.filter(({ ageMs }) => ageMs > limitMs)
  if (dead.length === 0) return { ok: true, text: `ok, ${workers.length} live workers` }
  const list = dead.map(({ worker, ageMs }) => `${worker} for ${Math.round(ageMs)} ms`)
  return { ok: false, text: `silent for more than ${limitMs} ms: ${list.join(', ')}` }
}

const LAG_MS = 500

/** Makes the page; scrapes that come together share one. */
class Exporter {
  private readonly source: Source
  private readonly registry = new Registry()
  private readonly timer: NodeJS.Timeout
  private making: Promise<string> | undefined
  private snapshot!: Snapshot
  private lagMs = 0

  constructor(source: Source) {
    this.source = source
    for (const metric of METRICS) this.define(metric)
    this.defineLatency()
    let due = performance.now() + LAG_MS
    this.timer = setInterval(() => {
      const now = performance.now()
      this.lagMs = Math.max(this.lagMs, now - due)
      due = now + LAG_MS
    }, LAG_MS)
    this.timer.unref()
  }

  get contentType(): string {
    return this.registry.contentType
  }

  page(): Promise<string> {
    this.making ??= this.make().finally(() => {
      this.making = undefined
    })
    return this.making
  }

  close(): void {
    clearInterval(this.timer)
  }

  private async make(): Promise<string> {
    this.snapshot = await takeSnapshot(this.source, this.lagMs)
    this.lagMs = 0
    return this.registry.metrics()
  }

  private define({ kind, name, help, labels, samples }: Metric): void {
    const options = { name, help, labelNames: labels, registers: [this.registry] }
    if (kind === 'counter') {
      const collect = () => {
        metric.reset()
        for (const [own, value] of samples(this.snapshot)) metric.inc(own, value)
      }
      const metric = new Counter({ ...options, collect })
    } else {
      const collect = () => {
        metric.reset()
        for (const [own, value] of samples(this.snapshot)) metric.set(own, value)
      }
      const metric = new Gauge({ ...options, collect })
    }
  }

  // NB: a Histogram of prom-client counts only what it observes itself; the registry takes whatever it can `get`.
  private defineLatency(): void {
    const name = 'detour_endpoint_latency_seconds'
    const help = 'How long probes took through the tunnel and back.'
    const values = () =>
      this.snapshot.endpoints.flatMap(({ name: endpoint, address, latency }) => {
        if (!latency) return []
        const labels = { endpoint, address }
        let count = 0
        const buckets = latency.counts.map((n, i) => {
          count += n
          const le = i < latency.bounds.length ? latency.bounds[i] / 1000 : '+Inf'
          return { labels: { ...labels, le }, value: count, metricName: `${name}_bucket` }
        })
        const total = { labels, value: latency.sumMs / 1000, metricName: `${name}_sum` }
        return [...buckets, total, { labels, value: count, metricName: `${name}_count` }]
      })
    const get = async () => ({ name, help, type: 'histogram', values: values(), aggregator: 'sum' })
    this.registry.registerMetric({ name, get } as unknown as AnyMetric)
  }
}
