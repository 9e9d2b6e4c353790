// A replay worker: plays a capture through the node's stages and collects what comes back.

import { parentPort, workerData } from 'node:worker_threads'
import { stopRequested } from '../src/control/spawn.ts'
import { REPLAY_STATUS, type ReplayInput, type ReplayResult } from '../src/control/worker-input.ts'
import { Devices } from '../src/device/open.ts'
import { Origins, PcapReader, PcapWriter } from '../src/device/pcap.ts'
import { Batch } from '../src/memory/batch.ts'
import { Counters } from '../src/memory/counters.ts'
import { Pool } from '../src/memory/pool.ts'
import { inlineStages } from '../src/pipeline/inlining.ts'
import { Loop } from '../src/pipeline/loop.ts'
import { Replayer } from '../src/pipeline/replayer.ts'

const TICK_MS = 5
const PUBLISH_MS = 100

const input = workerData as ReplayInput
inlineStages()
const pool = new Pool(input.pool, input.frames.first, input.frames.count)
const counters = new Counters()
const origins = new Origins(input.input.format)
const reader = new PcapReader(pool, counters.stage('read'), input.input, { rate: input.rate, origins })
const { output, format } = input
const writer = output && new PcapWriter(pool, counters.stage('write'), output, { format, origins })
const devices = new Devices(pool, counters)
const underlay = devices.open(input.underlay)
const replayer = new Replayer(pool, counters, reader, underlay, writer, input.replayer)
const status = new Float64Array(input.status)
let nextPublish = 0

function publish(): void {
  const { ledger } = replayer
  status[REPLAY_STATUS.READ] = reader.packets
  status[REPLAY_STATUS.SENT] = ledger.sent
  status[REPLAY_STATUS.UNCHANGED] = ledger.unchanged
  status[REPLAY_STATUS.CHANGED] = ledger.changed
  status[REPLAY_STATUS.MADE] = ledger.made
  status[REPLAY_STATUS.FLOWS] = replayer.flows
  status[REPLAY_STATUS.P50_US] = ledger.quantile(0.5)
  status[REPLAY_STATUS.P99_US] = ledger.quantile(0.99)
  counters.publish()
}

/** True when a live endpoint has returned everything, or has been silent for long enough. */
function settled(now: number): boolean {
  const { quietMs } = input
  return quietMs !== undefined && (replayer.ledger.outstanding === 0 || now - replayer.lastMoved > quietMs)
}

const loop = new Loop(now => {
  const allSent = reader.exhausted && (underlay.held ?? 0) === 0
  if (allSent) status[REPLAY_STATUS.ALL_SENT] = 1
  if (now >= nextPublish) {
    nextPublish = now + PUBLISH_MS
    publish()
  }
  return !(allSent && settled(now)) && !stopRequested(input.port)
}, TICK_MS)
loop.add(replayer.readerLeg)
loop.add(replayer.underlayLeg)

parentPort?.postMessage(counters.share())
loop.run()

// A gateway in this process has ended by now, so what is in the ring, or held back by a fault, is the last of it.
const rest = new Batch()
for (let more = true; more; ) {
  more = underlay.receive(rest) > 0 && input.quietMs === undefined
  replayer.underlayLeg.run(rest)
  more ||= (underlay.held ?? 0) > 0
}
devices.close()
writer?.close()
publish()
const faults = [reader.fault, writer?.fault, ...devices.faults].flatMap(fault => fault?.message ?? [])
parentPort?.postMessage({ order: replayer.order.slice(0, replayer.written), faults } satisfies ReplayResult)
