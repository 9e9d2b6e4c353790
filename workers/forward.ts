// A node's forwarding worker: serves its queue of the underlay, and of every pod that the main thread attaches, until told to stop.
// A paused one has everything open but receives nothing and beats no heart: its flow table is still another process's.

import { parentPort, workerData } from 'node:worker_threads'
import { serve } from '../src/control/spawn.ts'
import type { AttachmentInput, ForwardInput, ForwardRequest, LiveSettings } from '../src/control/worker-input.ts'
import type { Device } from '../src/device/device.ts'
import { type DeviceSpec, Devices } from '../src/device/open.ts'
import { openFlowTable } from '../src/flow/live.ts'
import { recoverFlowTable } from '../src/flow/recover.ts'
import { Counters, type StageCounters } from '../src/memory/counters.ts'
import { Pool } from '../src/memory/pool.ts'
import { Heartbeat } from '../src/os/heartbeat.ts'
import { unmapSharedMemory } from '../src/os/memfd.ts'
import { nameThread, preferThread } from '../src/os/thread.ts'
import { Forwarder } from '../src/pipeline/forwarder.ts'
import { Handover } from '../src/pipeline/handover.ts'
import { inlineStages } from '../src/pipeline/inlining.ts'
import { type Leg, Loop } from '../src/pipeline/loop.ts'

const PUBLISH_MS = 100

/** With ticks from this on, other threads may go first. */
const PATIENT_TICK_MS = 25

/** Ticks of a paused worker only look for requests, which wake it. */
const PAUSED_MS = 1000

/** A pod's interface that is open. */
interface Opened {
  device: Device
  heartbeat: Heartbeat
  mac: Uint8Array
  closed: boolean
}

const input = workerData as ForwardInput
inlineStages()
nameThread(`forward-${input.worker}`)
// On a busy machine a worker waits longer for its turn than such a heartbeat may be silent.
if (input.tickMs < PATIENT_TICK_MS) preferThread()
const { first, count, firstSmall, smallCount } = input.frames
const pool = new Pool(input.pool, first, count, firstSmall, smallCount)
const counters = new Counters()
const devices = new Devices(pool, counters)
const underlay = devices.open(input.underlay)
const peers = input.peers.map(peer => peer && devices.open({ device: { kind: 'loopback', ...peer } }))
const handover = new Handover(pool, input.worker, input.steering, peers)
const flows = openFlowTable(input.flows)
const attachments = new Map<number, Opened>()
let express = input.express && devices.open(input.express)
/** Undefined while paused, when it has neither legs of its own nor counters. */
let forwarder: Forwarder | undefined
let strays: Leg[] = []
let stages: StageCounters[] = []
let nextPublish = 0

let pace = { tickMs: input.tickMs, polling: input.polling }
const loop = new Loop(tick, PAUSED_MS)
loop.wakeBy(input.wakeFd)

function tick(now: number): boolean {
  if (forwarder !== undefined) {
    for (const { heartbeat } of attachments.values()) heartbeat.beat(input.worker)
    forwarder.tick(now)
  }
  if (now >= nextPublish) {
    nextPublish = now + PUBLISH_MS
    counters.publish()
  }
  return !serve(input.port, answer)
}

function answer(request: unknown): unknown {
  const asked = request as ForwardRequest
  if ('attach' in asked) attach(asked.attach)
  else if ('detach' in asked) detach(asked.detach)
  else if ('settings' in asked) apply(asked.settings)
  else if ('express' in asked) useExpress(asked.express)
  else if ('trace' in asked) forwarder?.trace(asked.trace)
  else if ('rest' in asked) rest()
  else if (asked.receive) receive()
  else receiveNoMore()
  return counters.share()
}

/** Takes the flow table over, wherever its last writer left it, and begins. */
function receive(): void {
  recoverFlowTable(flows.handle)
  const before = counters.stages.length
  forwarder = new Forwarder(
    pool,
    counters,
    underlay,
    { ...input.forwarder, flows: flows.handle },
    {
      handover: input.workers > 1 ? handover : undefined,
      express,
      direct: input.underlay.device.kind === 'xdp',
    },
  )
  loop.pace(pace.tickMs, pace.polling)
  loop.add(forwarder.underlayLeg)
  stages = counters.stages.slice(before)
  strays = forwarder.strayLegs
  for (const leg of strays) loop.add(leg)
  for (const [number, opened] of attachments) serveAttachment(forwarder, number, opened)
}

/** What comes from now on is another process's; what other workers hand over is still taken. */
function receiveNoMore(): void {
  loop.remove(underlay)
  for (const { device } of attachments.values()) loop.remove(device)
}

/** Finishes with what other workers have handed over, and is paused. */
function rest(): void {
  for (const leg of strays) {
    loop.remove(leg.device)
    loop.drain(leg)
  }
  for (const stage of stages) counters.remove(stage)
  forwarder = undefined
  strays = []
  stages = []
  loop.pace(PAUSED_MS, { mode: 'never', maxMicroseconds: 0 })
}

function attach({ attachment, device: spec, mac, failMode, heartbeatFd }: AttachmentInput): void {
  const device = devices.open(spec)
  try {
    const heartbeat = new Heartbeat(heartbeatFd, input.workers)
    const opened = { device, heartbeat, mac: Uint8Array.from(mac), closed: failMode === 'closed' }
    attachments.set(attachment, opened)
    if (forwarder !== undefined) serveAttachment(forwarder, attachment, opened)
  } catch (error) {
    devices.release(device)
    throw error
  }
}

function serveAttachment(forwarder: Forwarder, number: number, { device, mac, closed }: Opened): void {
  loop.add(forwarder.attach(number, device, mac, closed))
}

function detach(number: number): void {
  const opened = attachments.get(number)
  if (opened === undefined) return
  attachments.delete(number)
  forwarder?.detach(number)
  loop.remove(opened.device)
  devices.release(opened.device)
  opened.heartbeat.close()
}

function apply(settings: LiveSettings): void {
  const { policy, probe, failModes = [] } = settings
  if (policy !== undefined) {
    input.forwarder.policy = policy
    forwarder?.usePolicy(policy)
  }
  if (probe !== undefined) {
    input.forwarder.probe = probe
    forwarder?.useProbe(probe)
  }
  for (const [number, mode] of failModes) {
    const opened = attachments.get(number)
    if (opened === undefined) continue
    opened.closed = mode === 'closed'
    forwarder?.useFailMode(number, opened.closed)
  }
  if (settings.pace === undefined) return
  pace = settings.pace
  if (forwarder !== undefined) loop.pace(pace.tickMs, pace.polling)
}

/** Takes another express device, or none, in place of the one that there is. */
function useExpress(spec: DeviceSpec | undefined): void {
  forwarder?.useExpress(undefined)
  if (express !== undefined) devices.release(express)
  express = undefined
  express = spec && devices.open(spec)
  forwarder?.useExpress(express)
}

if (!input.paused) receive()
parentPort?.postMessage(counters.share())
try {
  loop.run()
  // All others have ended receiving: what they handed over is the last.
  for (const leg of strays) loop.drain(leg)
} finally {
  devices.close()
  counters.publish()
  for (const { heartbeat } of attachments.values()) heartbeat.close()
  unmapSharedMemory(flows.mapping)
}
