// Traffic of the laboratory: real programs in the pods' namespaces, each with a limit and a readable outcome.

import { spawnSync } from 'node:child_process'
import { DetourError } from '../errors.ts'
import { program, type Running, run, start, type Where } from './process.ts'

/** What one HTTP request came to: `status` is null and `error` says why when there was no whole answer. */
export interface Exchange {
  status: number | null
  bytes: number
  error: string | null
  ms: number
}

/** One bulk TCP transfer, measured where it arrived. */
export interface Bulk {
  tool: 'iperf3' | 'node'
  gbps: number
  /** [seconds since the start, Gbit/s of the interval that ends there]. */
  series: [number, number][]
  /** Segments the sender's TCP sent again; null when the tool does not tell. */
  retransmits: number | null
}

/** One numbered probe; `answeredMs` is null while its echo is missing. Times are ms since the epoch. */
export interface ProbeRecord {
  sentMs: number
  answeredMs: number | null
}

/** A datagram every `PROBE_INTERVAL_MS`, echoed by the server, until stopped. */
export interface Probe {
  /** By sequence number; grows while the probe runs. */
  readonly records: readonly ProbeRecord[]
  /** Resolves true once `count` probes in a row sent after `sinceMs` were answered, false when the time is over. */
  answered(count: number, sinceMs: number, timeoutMs: number): Promise<boolean>
  stop(): Promise<void>
}

export const PROBE_INTERVAL_MS = 20
const START_LIMIT_MS = 10_000

/** Starts the HTTP server and waits until it listens. */
export async function startHttpServer(where: Where, address: string, port: number): Promise<Running> {
  return ready(start(where, 'HTTP server', program('http-server', address, port)))
}

/** Sends one GET from a namespace; network failures are an outcome, only a broken client throws. */
export async function httpGet(
  where: Where,
  address: string,
  port: number,
  path: string,
  limitMs: number,
): Promise<Exchange> {
  const url = `http://${address.includes(':') ? `[${address}]` : address}:${port}${path}`
  const text = await run(where, `GET ${url}`, program('http-client', url, limitMs), limitMs + START_LIMIT_MS)
  return JSON.parse(text) as Exchange
}

export interface BulkOptions {
  from: Where
  to: Where
  /** Of the receiver. */
  address: string
  port: number
  seconds: number
  /** iperf3 where it is installed, else our own program. */
  tool?: Bulk['tool']
}

/** Moves TCP from one namespace to another for some seconds and says how fast it arrived. */
export async function bulkTransfer(options: BulkOptions): Promise<Bulk> {
  const tool = options.tool ?? (hasIperf() ? 'iperf3' : 'node')
  return tool === 'iperf3' ? byIperf(options) : byNode(options)
}

/** Starts the echo server in `to` and the probe in `from`. */
export async function startProbe(from: Where, to: Where, address: string, port: number): Promise<Probe> {
  const echo = await ready(start(to, 'UDP echo', program('udp-echo', address, port)))
  const records: ProbeRecord[] = []
  const watchers = new Set<() => void>()
  const sender = start(from, 'UDP probe', program('udp-probe', address, port, PROBE_INTERVAL_MS), {
    onLine: line => {
      const [kind, number, time] = line.split(' ')
      if (kind === 's') records[Number(number)] = { sentMs: Number(time), answeredMs: null }
      else if (records[Number(number)]) records[Number(number)].answeredMs = Number(time)
      for (const check of watchers) check()
    },
  })
  const answered = (count: number, sinceMs: number, timeoutMs: number) =>
    new Promise<boolean>(resolve => {
      const finish = (result: boolean) => {
        clearTimeout(timer)
        watchers.delete(check)
        resolve(result)
      }
      const check = () => longestRun(records, sinceMs) >= count && finish(true)
      const timer = setTimeout(() => finish(false), timeoutMs)
      watchers.add(check)
      check()
    })
  const stop = async () => {
    await sender.stop('SIGKILL')
    await echo.stop('SIGKILL')
  }
  return { records, answered, stop }
}

/** How many probes were sent in [fromMs, toMs), and how many of them were answered and lost. */
export function probeLoss(records: readonly ProbeRecord[], fromMs: number, toMs: number) {
  const sent = records.filter(record => record.sentMs >= fromMs && record.sentMs < toMs)
  const lost = sent.filter(record => record.answeredMs === null).length
  return { sent: sent.length, lost, answered: sent.length - lost }
}

/** Asks again and again until there is an answer; undefined when the time is over. */
export async function waitFor<T>(ask: () => Promise<T | undefined>, limitMs: number): Promise<T | undefined> {
  const end = Date.now() + limitMs
  for (;;) {
    const answer = await ask()
    if (answer !== undefined || Date.now() > end) return answer
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

function longestRun(records: readonly ProbeRecord[], sinceMs: number): number {
  let longest = 0
  let length = 0
  for (let at = records.length - 1; at >= 0 && records[at].sentMs >= sinceMs; at--) {
    length = records[at].answeredMs === null ? 0 : length + 1
    longest = Math.max(longest, length)
  }
  return longest
}

async function byIperf({ from, to, address, port, seconds }: BulkOptions): Promise<Bulk> {
  const server = start(to, 'iperf3 server', ['iperf3', '-s', '-1', '-B', address, '-p', String(port), '--forceflush'])
  try {
    await server.line(line => line.includes('listening'), START_LIMIT_MS)
    const length = ['-t', String(seconds), '-i', '0.25', '--connect-timeout', '5000']
    const command = ['iperf3', '-c', address, '-p', String(port), '-J', ...length]
    return readIperf(await run(from, 'iperf3 client', command, seconds * 1000 + START_LIMIT_MS))
  } finally {
    await server.stop('SIGKILL')
  }
}

/** Reads the report of `iperf3 -J`. */
export function readIperf(text: string): Bulk {
  const report = JSON.parse(text)
  if (report.error !== undefined) throw new DetourError('system', `lab: iperf3: ${report.error}`)
  const series = report.intervals.map((interval: { sum: { end: number; bits_per_second: number } }) => [
    interval.sum.end,
    interval.sum.bits_per_second / 1e9,
  ])
  return {
    tool: 'iperf3',
    gbps: report.end.sum_received.bits_per_second / 1e9,
    series,
    retransmits: report.end.sum_sent.retransmits ?? null,
  }
}

async function byNode({ from, to, address, port, seconds }: BulkOptions): Promise<Bulk> {
  const receiver = await ready(start(to, 'bulk receiver', program('bulk', 'receive', address, port)))
  try {
    await run(from, 'bulk sender', program('bulk', 'send', address, port, seconds), seconds * 1000 + START_LIMIT_MS)
    const samples = JSON.parse(await receiver.line(line => line.startsWith('['), START_LIMIT_MS)) as [number, number][]
    const series = samples.map(([end, bytes], at): [number, number] => [
      end,
      (bytes * 8) / 1e9 / Math.max(end - (samples[at - 1]?.[0] ?? 0), 1e-3),
    ])
    const bytes = samples.reduce((sum, sample) => sum + sample[1], 0)
    return { tool: 'node', gbps: (bytes * 8) / 1e9 / samples[samples.length - 1][0], series, retransmits: null }
  } finally {
    await receiver.stop('SIGKILL')
  }
}

async function ready(running: Running): Promise<Running> {
  await running.line(line => line === 'ready', START_LIMIT_MS)
  return running
}

function hasIperf(): boolean {
  return spawnSync('iperf3', ['-v'], { stdio: 'ignore' }).error === undefined
}
