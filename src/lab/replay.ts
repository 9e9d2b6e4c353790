// A replay: a capture through the node's stages and a gateway, both in this process, or to a live endpoint over UDP.
//
//   capture ─► replay worker ─ loopback ─► gateway worker        with N workers: N such pairs, each with the flows whose
//   capture ◄─ replay worker ◄─ loopback ─ gateway worker        hash is its own, and their results merged at the end

import ipaddr from 'ipaddr.js'
import { type RunningWorker, spawnWorker } from '../control/spawn.ts'
import {
  type MergeJob,
  type MergeResult,
  REPLAY_STATUS,
  type ReplayInput,
  type ReplayResult,
} from '../control/worker-input.ts'
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
import { openUdp, type UdpHandle } from '../device/udp.ts'
import { FIXED_SEED } from '../flow/hash.ts'
import { createFlowTable } from '../flow/layout.ts'
import { compile } from '../flow/policy.ts'
import { VERDICT } from '../flow/verdict.ts'
import type { GatewayInput, GatewayResult } from '../gateway/engine.ts'
import type { Policy } from '../gateway/judge.ts'
import type { Signature } from '../gateway/suricata/model.ts'
import { type CountersHandle, readCounters, type StageCounters } from '../memory/counters.ts'
import { createPool, HEADROOM, SUPER_FRAME } from '../memory/pool.ts'
import { close } from '../os/libc.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import { type ReplayReport, report, type Tally } from './replay-report.ts'
import { append, rewound, scratch } from './scratch.ts'

export interface ReplayOptions {
  input: string
  /** Where packets that came back are written, as pods would get them. */
  output?: string
  /** As the input when not given. */
  format?: CaptureFormat
  /** Its local address may be all zero for a live endpoint: the kernel then chooses. */
  tunnel: TunnelConfig
  /** What the gateway in this process does; a live endpoint has its own. */
  policy: Policy
  /** Where the gateway's verdict lines go, `-` for standard output; those of several workers one after the other. */
  log?: string
  /** Threat signatures of the gateway in this process, and where their alerts go, as the verdicts. */
  signatures?: Signature[]
  eve?: string
  /** The tunnel's remote address and port are a live endpoint; without it the gateway runs in this process. */
  live: boolean
  rate: Rate
  workers: number
  /** Wrappers of the underlay; the capture is a path. */
  underlay?: Pick<DeviceSpec, 'faults' | 'trace'> & { capture?: string }
  /** Called now and then. */
  progress?: (read: number, returned: number) => void
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

/** What one pair of workers writes. */
interface Outputs {
  returned: OutputFile | undefined
  log: OutputFile | undefined
  eve: OutputFile | undefined
  /** Of the underlay; shared by all. */
  capture: OutputFile | undefined
}

/** One replay worker, and its gateway if that is in this process. */
interface Pair extends Tally {
  replay: RunningWorker
  gateway: RunningWorker | undefined
  results: Promise<[ReplayResult, GatewayResult]>
  close(): void
}

/** Runs a replay to its end. Throws DetourError for what cannot be opened; faults inside the capture are in the report. */
export async function runReplay(options: ReplayOptions): Promise<ReplayReport> {
  const input = await openCapture(options.input)
  const create = (path: string | undefined) => (path === undefined ? undefined : createCapture(path, input))
  const whole: Outputs = {
    returned: create(options.output),
    log: create(options.log),
    eve: create(options.eve),
    capture: create(options.underlay?.capture),
  }
  // Several workers write a part each, to be merged.
  const outputs = options.workers === 1 ? [whole] : Array.from({ length: options.workers }, () => partOf(whole))
  const pairs: Pair[] = []
  const timer = setInterval(() => tell(options, pairs), PROGRESS_MS)
  try {
    for (const [index, output] of outputs.entries()) pairs.push(await startPair(options, input, output, index))
    const began = performance.now()
    const results = await Promise.all(pairs.map(finish))
    const seconds = (performance.now() - began) / 1000
    const faults = results.flatMap(each => each.flatMap(result => result.faults))
    if (outputs[0] !== whole) faults.push(...(await merge(options, input, whole, outputs, results)))
    return report(input.name, pairs, [...new Set(faults)], seconds)
  } finally {
    clearInterval(timer)
    await Promise.allSettled(pairs.flatMap(({ replay, gateway }) => [replay.stop(0), gateway?.stop(0)]))
    for (const pair of pairs) pair.close()
    for (const file of new Set([whole, ...outputs].flatMap(each => Object.values(each)))) if (file) closeCapture(file)
    closeCapture(input)
  }
}

function partOf({ returned, log, eve, capture }: Outputs): Outputs {
  return {
    returned: returned && scratch('a part of what returned'),
    log: log && scratch('a part of the log'),
    eve: eve && scratch('a part of the alerts'),
    capture,
  }
}

async function startPair(options: ReplayOptions, input: CaptureFile, output: Outputs, index: number): Promise<Pair> {
  const { live, workers } = options
  const socket = live ? openLive(options.tunnel) : undefined
  const tunnel = socket === undefined ? options.tunnel : { ...options.tunnel, local: socket.address }
  const pool = createPool({ frames: FRAMES, frameSize: SUPER_FRAME, headroom: HEADROOM })
  const status = new SharedArrayBuffer(REPLAY_STATUS.WORDS * 8)
  const loop = live ? undefined : createLoopback({ name: 'tunnel', frames: FRAMES, lossless: true })
  let gateway: RunningWorker | undefined
  let gatewayCounters: StageCounters[] = []
  let gatewayResult: Promise<GatewayResult> = Promise.resolve({ faults: [] })
  if (loop !== undefined) {
    const gatewayInput: Omit<GatewayInput, 'port'> = {
      pool,
      frames: { first: FRAMES - GATEWAY_FRAMES, count: GATEWAY_FRAMES },
      underlay: { device: { kind: 'loopback', ...loop.right } },
      engine: {
        tunnel,
        own: [tunnel.remote],
        policy: options.policy,
        flows: createFlowTable({ capacity: FLOWS }),
        seed: FIXED_SEED,
        logFd: output.log?.fd ?? -1,
        signatures: options.signatures && { rules: options.signatures, eveFd: output.eve?.fd ?? -1 },
        live: false,
      },
    }
    gateway = spawnWorker('gateway', gatewayInput)
    gatewayCounters = readCounters((await gateway.ready) as CountersHandle)
    gatewayResult = nextMessage(gateway)
  }
  const replayInput: Omit<ReplayInput, 'port'> = {
    pool,
    frames: { first: 0, count: live ? FRAMES : FRAMES - GATEWAY_FRAMES },
    input,
    rate: options.rate,
    output: output.returned,
    format: workers === 1 ? (options.format ?? input.format) : 'pcap-ns',
    underlay: {
      device: loop === undefined ? { kind: 'udp', ...(socket as UdpHandle) } : { kind: 'loopback', ...loop.left },
      ...options.underlay,
      ...(options.underlay?.trace && {
        trace: { ...options.underlay.trace, [tunnel.kind]: [tunnel.port, socket?.port ?? tunnel.port] },
      }),
      capture: output.capture,
    },
    replayer: {
      tunnel,
      flows: createFlowTable({ capacity: FLOWS }),
      seed: FIXED_SEED,
      policy: compile([], VERDICT.STEER),
      share: { index, count: workers },
      live: socket && { window: WINDOW, returnPort: socket.port },
    },
    quietMs: live ? QUIET_MS : undefined,
    status,
  }
  const replay = spawnWorker('replay', replayInput)
  const nodeCounters = readCounters((await replay.ready) as CountersHandle)
  return {
    replay,
    gateway,
    results: Promise.all([nextMessage<ReplayResult>(replay), gatewayResult]),
    counters: { node: nodeCounters, gateway: gatewayCounters },
    status: new Float64Array(status),
    close: () => loop?.close(),
  }
}

function nextMessage<T>({ worker }: RunningWorker): Promise<T> {
  return new Promise(resolve => worker.once('message', resolve))
}

/**
 * A socket toward a live endpoint, which returns packets to the tunnel's port, so that is where it is bound. An endpoint at
 * our own address has that port itself, and answers to the port that packets come from: then the kernel chooses one.
 */
function openLive({ local, remote, port }: TunnelConfig): UdpHandle {
  const text = (address: number[]) => ipaddr.fromByteArray(address).toString()
  const options = { address: text(local), remote: text(remote) }
  const anyPort = openUdp({ ...options, port: 0 })
  const isOwn = anyPort.address.every((byte, i) => byte === remote[i])
  if (isOwn || ipaddr.fromByteArray(remote).range() === 'loopback') return anyPort
  close(anyPort.fd)
  return openUdp({ ...options, port })
}

/** In this process: once everything is sent, the gateway drains and ends, and then nothing more can come back. */
async function finish({ replay, gateway, status, results }: Pair): Promise<[ReplayResult, GatewayResult]> {
  if (gateway !== undefined) {
    while (status[REPLAY_STATUS.ALL_SENT] !== 1) {
      const pause = new Promise<void>(resolve => setTimeout(resolve, 5))
      await Promise.race([pause, replay.done, gateway.done])
    }
    await gateway.stop(60_000)
    await replay.stop(60_000)
  }
  await replay.done
  return results
}

/** Makes one log and one capture file of the parts; resolves to what went wrong with that. */
async function merge(
  { format }: ReplayOptions,
  input: CaptureFile,
  whole: Outputs,
  outputs: Outputs[],
  results: [ReplayResult, GatewayResult][],
): Promise<string[]> {
  const faults: string[] = []
  for (const kind of ['log', 'eve'] as const) {
    const file = whole[kind]
    if (file !== undefined) for (const output of outputs) faults.push(...append(file, output[kind] as OutputFile))
  }
  if (whole.returned === undefined) return faults
  const parts = outputs.map(({ returned }, i) => ({
    file: rewound(returned as OutputFile),
    order: results[i][0].order,
  }))
  const job: Omit<MergeJob, 'port'> = { input, parts, output: whole.returned, format: format ?? input.format }
  const worker = spawnWorker('merge', job)
  const result = (await worker.ready) as MergeResult
  await worker.done
  return [...faults, ...result.faults]
}

function tell({ progress }: ReplayOptions, pairs: Pair[]): void {
  const sum = (word: number) => pairs.reduce((total, { status }) => total + status[word], 0)
  const read = Math.max(0, ...pairs.map(({ status }) => status[REPLAY_STATUS.READ]))
  progress?.(read, sum(REPLAY_STATUS.UNCHANGED) + sum(REPLAY_STATUS.CHANGED))
}
