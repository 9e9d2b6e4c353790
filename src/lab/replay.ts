// A replay: a capture through the node's stages and a gateway, both in this process, or to a live endpoint over UDP.
//
//   capture ─► replay worker ─ loopback ─► gateway worker        with N workers: N such pairs, each with the flows whose
//   capture ◄─ replay worker ◄─ loopback ─ gateway worker        hash is its own, and their results merged at the end

import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type RunningWorker, spawnWorker } from '../control/spawn.ts'
import { type MergeJob, REPLAY_STATUS, type ReplayInput, type ReplayResult } from '../control/worker-input.ts'
import { createLoopback } from '../device/loopback.ts'
import type { DeviceSpec } from '../device/open.ts'
import {
  type CaptureFile,
  type CaptureFormat,
  closeCapture,
  createCapture,
  type OutputFile,
  openCapture,
  type Rate,
} from '../device/pcap.ts'
import { openUdp } from '../device/udp.ts'
import { FIXED_SEED } from '../flow/hash.ts'
import { compile } from '../flow/policy.ts'
import { createFlowTable, type FlowTableHandle } from '../flow/table.ts'
import { VERDICT } from '../flow/verdict.ts'
import { FlowView } from '../flow/view.ts'
import type { GatewayInput } from '../gateway/engine.ts'
import type { Rules } from '../gateway/rules.ts'
import { type CountersHandle, readCounters, type StageCounters, sumCounters } from '../memory/counters.ts'
import { createPool, HEADROOM, SUPER_FRAME } from '../memory/pool.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'

export interface ReplayOptions {
  input: string
  /** Where packets that came back are written, as pods would get them. */
  output?: string
  /** As the input when not given. */
  format?: CaptureFormat
  /** Its local address may be all zero for a live endpoint: the kernel then chooses. */
  tunnel: TunnelConfig
  /** What the gateway in this process does; a live endpoint has its own. */
  rules: Rules
  /** Where the gateway's verdict lines go. */
  log?: string
  /** The tunnel's remote address and port are a live endpoint; without it the gateway runs in this process. */
  live: boolean
  rate: Rate
  workers: number
  /** Wrappers of the underlay: capture, faults, trace. */
  underlay?: Omit<DeviceSpec, 'device'>
  /** Called now and then. */
  progress?: (read: number, returned: number) => void
}

export interface ReplayReport {
  input: string
  packets: number
  sent: number
  /** Returned bit for bit. */
  unchanged: number
  /** Returned otherwise: rewritten, or made by the endpoint. */
  changed: number
  notReturned: number
  flows: number
  seconds: number
  packetsPerSecond: number
  latencyP50Us: number
  latencyP99Us: number
  /** Stages of the node's side and of the gateway, summed over workers. */
  node: StageCounters[]
  gateway: StageCounters[]
  /** What was wrong with a file; everything before it was replayed. */
  faults: string[]
}

/** Frames of a pair's pool: most for the node's side, the rest for what the gateway adds. */
const FRAMES = 2048
const GATEWAY_FRAMES = 512
const FLOWS = 1 << 20
/** A live endpoint that has been silent for so long will not return any more. */
const QUIET_MS = 500
/** Packets on their way to a live endpoint: what a socket buffer holds. */
const WINDOW = 1024
const PROGRESS_MS = 200

/** One replay worker, its gateway if that is in this process, and where both write. */
interface Pair {
  replay: RunningWorker
  result: Promise<ReplayResult>
  gateway: RunningWorker | undefined
  counters: { node: StageCounters[]; gateway: StageCounters[] }
  status: Float64Array
  flows: FlowTableHandle
  output: OutputFile | undefined
  log: number
  close(): void
}

/** Runs a replay to its end. Throws DetourError for what cannot be opened; faults inside the capture are in the report. */
export async function runReplay(options: ReplayOptions): Promise<ReplayReport> {
  const input = await openCapture(options.input)
  const output = options.output === undefined ? undefined : createCapture(options.output, input)
  const log = options.log === undefined ? -1 : openSync(options.log, 'w')
  const folder = options.workers > 1 ? mkdtempSync(join(tmpdir(), 'detour-replay-')) : ''
  const pairs: Pair[] = []
  const timer = setInterval(() => tell(options, pairs), PROGRESS_MS)
  try {
    for (let index = 0; index < options.workers; index++) {
      const own = folder === '' ? { output, log } : ownFiles(folder, index, output, log)
      pairs.push(await startPair(options, input, own, index))
    }
    const began = performance.now()
    const results = await Promise.all(pairs.map(finish))
    const seconds = (performance.now() - began) / 1000
    if (folder !== '') await merge(pairs, results, output, log, options.format ?? input.format)
    return report(input, pairs, results, seconds)
  } finally {
    clearInterval(timer)
    await Promise.allSettled(pairs.flatMap(({ replay, gateway }) => [replay.stop(0), gateway?.stop(0)]))
    for (const pair of pairs) pair.close()
    if (folder !== '') rmSync(folder, { recursive: true })
    if (log >= 0) closeSync(log)
    if (output !== undefined) closeCapture(output)
    closeCapture(input)
  }
}

function ownFiles(folder: string, index: number, output: OutputFile | undefined, log: number) {
  return {
    output: output && createCapture(join(folder, `returned-${index}`)),
    log: log < 0 ? -1 : openSync(join(folder, `verdicts-${index}`), 'w+'),
  }
}

async function startPair(
  options: ReplayOptions,
  input: CaptureFile,
  own: { output: OutputFile | undefined; log: number },
  index: number,
): Promise<Pair> {
  const { tunnel, live } = options
  const pool = createPool({ frames: FRAMES, frameSize: SUPER_FRAME, headroom: HEADROOM })
  const flows = createFlowTable({ capacity: FLOWS })
  const status = new SharedArrayBuffer(REPLAY_STATUS.WORDS * 8)
  const loop = live ? undefined : createLoopback({ frames: FRAMES, lossless: true })
  let gateway: RunningWorker | undefined
  let gatewayCounters: StageCounters[] = []
  if (loop !== undefined) {
    const gatewayInput: Omit<GatewayInput, 'port'> = {
      pool,
      frames: { first: FRAMES - GATEWAY_FRAMES, count: GATEWAY_FRAMES },
      underlay: { device: { kind: 'loopback', ...loop.right } },
      engine: {
        tunnel,
        own: [tunnel.remote],
        rules: options.rules,
        flows: createFlowTable({ capacity: FLOWS }),
        seed: FIXED_SEED,
        logFd: own.log,
        live: false,
      },
    }
    gateway = spawnWorker('gateway', gatewayInput)
    gatewayCounters = readCounters((await gateway.ready) as CountersHandle)
  }
  const replayInput: Omit<ReplayInput, 'port'> = {
    pool,
    frames: { first: 0, count: live ? FRAMES : FRAMES - GATEWAY_FRAMES },
    input,
    rate: options.rate,
    output: own.output,
    format: options.format ?? input.format,
    underlay: { device: loop ? { kind: 'loopback', ...loop.left } : liveDevice(tunnel), ...options.underlay },
    replayer: {
      tunnel,
      flows,
      seed: FIXED_SEED,
      policy: compile([], VERDICT.STEER),
      share: { index, count: options.workers },
      window: live ? WINDOW : undefined,
    },
    quietMs: live ? QUIET_MS : undefined,
    status,
  }
  const replay = spawnWorker('replay', replayInput)
  const nodeCounters = readCounters((await replay.ready) as CountersHandle)
  const result = new Promise<ReplayResult>(resolve => replay.worker.once('message', resolve))
  return {
    replay,
    result,
    gateway,
    counters: { node: nodeCounters, gateway: gatewayCounters },
    status: new Float64Array(status),
    flows,
    ...own,
    close: () => loop?.close(),
  }
}

/** A socket toward the endpoint; the tunnel's own address becomes the one that the kernel sends from. */
function liveDevice(tunnel: TunnelConfig): DeviceSpec['device'] {
  const six = tunnel.local.length === 16
  const text = (bytes: number[]) =>
    six
      ? Array.from({ length: 8 }, (_, i) => ((bytes[2 * i] << 8) | bytes[2 * i + 1]).toString(16)).join(':')
      : bytes.join('.')
  const any = tunnel.local.every(byte => byte === 0)
  const handle = openUdp({ address: text(tunnel.local), port: any ? 0 : tunnel.port, remote: text(tunnel.remote) })
  tunnel.local = handle.address
  return { kind: 'udp', ...handle }
}

/** In this process: once everything is sent, the gateway drains and ends, and then nothing more can come back. */
async function finish({ replay, gateway, status, result }: Pair): Promise<ReplayResult> {
  if (gateway !== undefined) {
    while (status[REPLAY_STATUS.ALL_SENT] !== 1) {
      const pause = new Promise<void>(resolve => setTimeout(resolve, 5))
      await Promise.race([pause, replay.done, gateway.done])
    }
    await gateway.stop(60_000)
    void replay.stop(60_000)
  }
  await replay.done
  return result
}

async function merge(
  pairs: Pair[],
  results: ReplayResult[],
  output: OutputFile | undefined,
  log: number,
  format: CaptureFormat,
): Promise<void> {
  if (log >= 0) for (const pair of pairs) writeSync(log, readFileSync(`/proc/self/fd/${pair.log}`))
  if (output === undefined) return
  const parts = await Promise.all(
    pairs.map(async ({ output: part }, i) => ({ file: await openCapture(part?.name ?? ''), order: results[i].order })),
  )
  const job: MergeJob = { parts, output, format }
  const worker = spawnWorker('merge', job)
  await worker.done.finally(() => {
    for (const part of parts) closeCapture(part.file)
  })
}

function tell({ progress }: ReplayOptions, pairs: Pair[]): void {
  const sum = (word: number) => pairs.reduce((total, { status }) => total + status[word], 0)
  const read = Math.max(0, ...pairs.map(({ status }) => status[REPLAY_STATUS.READ]))
  progress?.(read, sum(REPLAY_STATUS.UNCHANGED) + sum(REPLAY_STATUS.CHANGED))
}

function report(input: CaptureFile, pairs: Pair[], results: ReplayResult[], seconds: number): ReplayReport {
  const sum = (word: number) => pairs.reduce((total, { status }) => total + status[word], 0)
  const worst = (word: number) => Math.max(...pairs.map(({ status }) => status[word]))
  const packets = worst(REPLAY_STATUS.READ)
  return {
    input: input.name,
    packets,
    sent: sum(REPLAY_STATUS.SENT),
    unchanged: sum(REPLAY_STATUS.UNCHANGED),
    changed: sum(REPLAY_STATUS.CHANGED),
    notReturned: sum(REPLAY_STATUS.SENT) - sum(REPLAY_STATUS.UNCHANGED),
    flows: pairs.reduce((total, { flows }) => total + new FlowView(flows).count, 0),
    seconds,
    packetsPerSecond: packets / seconds,
    latencyP50Us: worst(REPLAY_STATUS.P50_US),
    latencyP99Us: worst(REPLAY_STATUS.P99_US),
    node: nodeCounters(pairs),
    gateway: sumCounters(pairs.map(({ counters }) => counters.gateway)),
    faults: [...new Set(results.flatMap(({ faults }) => faults))],
  }
}

/** Every worker reads and classifies the whole file, so those stages count once; from there on each has its share. */
function nodeCounters(pairs: Pair[]): StageCounters[] {
  const [first] = pairs
  const own = ({ counters }: Pair) => counters.node.filter(({ name }) => !WHOLE.has(name))
  return [...first.counters.node.filter(({ name }) => WHOLE.has(name)), ...sumCounters(pairs.map(own))]
}

const WHOLE = new Set(['read', 'classify'])
