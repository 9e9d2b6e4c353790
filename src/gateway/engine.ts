// The gateway's one leg, as each of its workers runs it: from the underlay and back to it.
//
//   underlay ─► split ─► decap (checks, outer headers stay) ─► inspect ─► turn ─► complete ─► underlay
//                                                                 └─► an appliance, if any ─┘

import type { PeerInput } from '../control/peers.ts'
import type { WorkerInput } from '../control/spawn.ts'
import type { Device } from '../device/device.ts'
import type { Fault } from '../device/faults.ts'
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
import { FaultStage } from './faults-stage.ts'
import { Inline } from './inline.ts'
import { Inspect } from './inspect.ts'
import type { Policy } from './judge.ts'
import { fileSink, LineLog, type LogSink, sharedSink, VerdictLog } from './log.ts'
import type { Signature } from './suricata/model.ts'
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
  /** Threat signatures, and where their alerts go: -1 for nowhere; stays open. */
  signatures?: { rules: Signature[]; eveFd: number }
  /** True where packets are stamped by CLOCK_MONOTONIC; false where they bring their time, which then is the only clock there is. */
  live: boolean
  /** Where it is one of several workers: `log` and `eve` are words that those of one log share. */
  share?: { worker: number; workers: number; log: SharedArrayBuffer; eve: SharedArrayBuffer; steering: Steering }
}

/** Input of workers/gateway. */
export interface GatewayInput extends WorkerInput {
  pool: PoolHandle
  /** Two interfaces between which an appliance has the last word; only where there is one worker. */
  appliance?: [DeviceSpec, DeviceSpec]
  /** Frames of the pool that the worker may hand out; all when not given. */
  frames?: Pick<PeerInput['frames'], 'first' | 'count'> & Partial<PeerInput['frames']>
  underlay: DeviceSpec
  /** Other workers, by number; none when not given. */
  peers?: (LoopbackHandle | undefined)[]
  engine: EngineOptions
}

/** What the main thread asks of workers/gateway: these faults from now on, and no others. */
export interface GatewayRequest {
  faults: Fault[]
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
  /** Legs for what comes out of an appliance. */
  readonly applianceLegs: Leg[]
  /** Faults on demand; its own leg is to be added to the loop once there have been any. */
  readonly faultStage: FaultStage
  private readonly inspect: Inspect
  private readonly live: boolean
  private readonly log: VerdictLog
  private readonly eve: LineLog

  /** `peers` are other workers' ends, by number, where there are any; `appliance` are the interfaces of one. */
  constructor(
    pool: Pool,
    counters: Counters,
    underlay: Device,
    options: EngineOptions,
    peers: readonly (Device | undefined)[] = [],
    appliance?: [Device, Device],
  ) {
    const { tunnel, own, policy, flows, seed, logFd, live, share } = options
    const profile = profileNamed(tunnel.profile)
    this.live = live
    const sinkOf = (fd: number, word: SharedArrayBuffer | undefined): LogSink => {
      // Packets of a capture can wait.
      const sink = fd < 0 ? (block: Uint8Array) => block.length : fileSink(fd, !live)
      return share === undefined || word === undefined ? sink : sharedSink(sink, word, share.worker)
    }
    this.log = new VerdictLog(sinkOf(logFd, share?.log))
    this.eve = new LineLog(sinkOf(options.signatures?.eveFd ?? -1, share?.eve))
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
      signatures: options.signatures && { rules: options.signatures.rules, eve: this.eve },
      timeOriginMs,
      flowIds: share && { first: share.worker + 1, step: share.workers },
      handover,
    })
    const turn = new Turn(pool, counters.stage('turn'), profile, tunnel, own)
    const completeCounters = counters.stage('complete')
    const complete = new Complete(pool, completeCounters, underlay)
    const out = new Batch(OUT)
    const leave = (batch: Batch) => {
      turn.run(batch)
      if (faults.transmitting) faults.transmit(batch)
      else complete.run(batch)
    }
    const inline =
      appliance &&
      new Inline(pool, counters, appliance, {
        ...{ profile, tunnel, leave },
        inspect: this.inspect,
        capacity: flows.capacity,
      })
    const inspect = (batch: Batch, handedOver: boolean) => {
      this.inspect.run(batch, out, handedOver)
      inline?.run(out)
      leave(out)
    }
    const next = (batch: Batch) => {
      decap.run(batch)
      inspect(batch, false)
    }
    const split = new Split(pool, splitCounters, next)
    const faults = new FaultStage(pool, counters, underlay, {
      kind: tunnel.kind,
      worker: share?.worker ?? 0,
      split: splitCounters,
      complete: completeCounters,
      next,
    })
    this.faultStage = faults
    this.applianceLegs = inline?.legs.map(leg => ({ ...leg, ready: () => !faults.hung })) ?? []
    this.strayLegs = handover?.legs(batch => inspect(batch, true)) ?? []
    this.leg = {
      device: underlay,
      run: batch => (faults.receiving ? faults.receive(batch) : split.run(batch)),
      // Between threads of one process nothing need be lost: what has no room stays with its sender.
      ready: () => !faults.hung && (!(underlay instanceof LoopbackDevice) || underlay.room >= OUT),
    }
  }

  /** What could not be done, in words. */
  get faults(): string[] {
    const faults: string[] = []
    if (this.log.lost > 0) faults.push(`verdict log: ${this.log.lost} lines could not be written`)
    if (this.eve.lost > 0) faults.push(`alerts: ${this.eve.lost} lines could not be written`)
    const { unseen } = this.inspect
    if (unseen > 0) faults.push(`signatures: ${unseen} flows were not inspected to their end, for lack of memory`)
    return faults
  }

  /** Once a tick: idle flows and the log. */
  tick(): void {
    if (this.live) this.inspect.expire(monotonicMs(), EXPIRE_BUDGET)
    this.log.flush()
    this.eve.flush()
  }

  /** Serves what has arrived already, within reason, and writes the rest of the log. */
  drain(): void {
    const batch = new Batch()
    for (let i = 0; i < DRAIN_BREATHS && !this.faultStage.hung && this.leg.device.receive(batch) > 0; i++)
      this.leg.run(batch)
    this.faultStage.close()
    this.log.end()
    this.eve.end()
  }
}
