// The gateway's one leg, as each of its workers runs it: from the underlay and back to it.
//
//   underlay ─► split ─► decap (checks, outer headers stay) ─► inspect ─► turn ─► complete ─► underlay

import type { PeerInput } from '../control/peers.ts'
import type { WorkerInput } from '../control/spawn.ts'
import type { Device } from '../device/device.ts'
import { LoopbackDevice, type LoopbackHandle } from '../device/loopback.ts'
import type { DeviceSpec } from '../device/open.ts'
import { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import type { FlowTableHandle } from '../flow/layout.ts'
import type { Steering } from '../flow/steering.ts'
import { BATCH, Batch } from '../memory/batch.ts'
import type { Counters } from '../memory/counters.ts'
import type { Pool, PoolHandle } from '../memory/pool.ts'
import { monotonicMs } from '../os/clock.ts'
import { Complete } from '../pipeline/complete.ts'
import { Decap } from '../pipeline/decap.ts'
import { Handover } from '../pipeline/handover.ts'
import type { Leg } from '../pipeline/loop.ts'
import { profileNamed } from '../pipeline/profile.ts'
import { Split } from '../pipeline/split.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import { Inspect } from './inspect.ts'
import type { Policy } from './judge.ts'
import { fileSink, sharedSink, VerdictLog } from './log.ts'
import { Turn } from './turn.ts'

/** What a gateway does with packets: plain data. Of the tunnel, addresses and VNI do not matter: anybody may send. */
export interface EngineOptions {
  tunnel: TunnelConfig
  /** Addresses, or their first bytes, at which the tunnel's port is the gateway's. */
  own: number[][]
  policy: Policy
  flows: FlowTableHandle
  seed: Seed
  /** Where verdict lines go; -1 for nowhere. Stays open. */
  logFd: number
  /** True where packets are stamped by CLOCK_MONOTONIC; false where they bring their time, which then is the only clock there is. */
  live: boolean
  /** Where it is one of several workers: `log` is a word that those of one log share. */
  share?: { worker: number; workers: number; log: SharedArrayBuffer; steering: Steering }
}

/** Input of workers/gateway. */
export interface GatewayInput extends WorkerInput {
  pool: PoolHandle
  /** Frames of the pool that the worker may hand out; all when not given. */
  frames?: Pick<PeerInput['frames'], 'first' | 'count'> & Partial<PeerInput['frames']>
  underlay: DeviceSpec
  /** Other workers, by number; none when not given. */
  peers?: (LoopbackHandle | undefined)[]
  engine: EngineOptions
}

/** What workers/gateway posts when it is done, after its counters. */
export interface GatewayResult {
  /** What could not be written. */
  faults: string[]
}

/** Room for the answers beside the packets: two for each. */
const OUT = 2 * BATCH
const EXPIRE_BUDGET = 4096
const DRAIN_BREATHS = 64

/** The leg of one worker: that thread only. */
export class Engine {
  readonly leg: Leg
  /** Legs for what other workers hand over. */
  readonly strayLegs: Leg[]
  private readonly inspect: Inspect
  private readonly live: boolean
  private readonly log: VerdictLog

  /** `peers` are other workers' ends, by number, where there are any. */
  constructor(
    pool: Pool,
    counters: Counters,
    underlay: Device,
    options: EngineOptions,
    peers: readonly (Device | undefined)[] = [],
  ) {
    const { tunnel, own, policy, flows, seed, logFd, live, share } = options
    const profile = profileNamed(tunnel.profile)
    this.live = live
    const sink = logFd < 0 ? (block: Uint8Array) => block.length : fileSink(logFd)
    this.log = new VerdictLog(share === undefined ? sink : sharedSink(sink, share.log, share.worker))
    const timeOriginMs = live ? Date.now() - monotonicMs() : 0
    const splitCounters = counters.stage('split')
    const decap = new Decap(pool, counters.stage('decap'), tunnel, { anyPeer: true, keep: true, anyInner: false })
    const handover = share && new Handover(pool, share.worker, share.steering, peers)
    this.inspect = new Inspect(pool, counters.stage('inspect'), {
      profile,
      tunnel,
      policy,
      flows,
      fragments: new FragmentTable(),
      seed,
      log: this.log,
      timeOriginMs,
      flowIds: share && { first: share.worker + 1, step: share.workers },
      handover,
    })
    const turn = new Turn(pool, counters.stage('turn'), profile, tunnel, own)
    const complete = new Complete(pool, counters.stage('complete'), underlay)
    const out = new Batch(OUT)
    const inspect = (batch: Batch, handedOver: boolean) => {
      this.inspect.run(batch, out, handedOver)
      turn.run(out)
      complete.run(out)
    }
    const split = new Split(pool, splitCounters, batch => {
      decap.run(batch)
      inspect(batch, false)
    })
    this.strayLegs = handover?.legs(batch => inspect(batch, true)) ?? []
    this.leg = {
      device: underlay,
      run: batch => split.run(batch),
      // Between threads of one process nothing need be lost: what has no room stays with its sender.
      ...(underlay instanceof LoopbackDevice && { ready: () => underlay.room >= OUT }),
    }
  }

  /** Verdict lines that could not be written. */
  get lostLines(): number {
    return this.log.lost
  }

  /** Once a tick: idle flows and the log. */
  tick(): void {
    if (this.live) this.inspect.expire(monotonicMs(), EXPIRE_BUDGET)
    this.log.flush()
  }

  /** Serves what has arrived already, within reason, and writes the rest of the log. */
  drain(): void {
    const batch = new Batch()
    for (let i = 0; i < DRAIN_BREATHS && this.leg.device.receive(batch) > 0; i++) this.leg.run(batch)
    this.log.end()
  }
}
