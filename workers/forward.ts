// A node's forwarding worker: serves its queue of the underlay, and of every pod that the main thread attaches, until told to stop.

import { parentPort, workerData } from 'node:worker_threads'
import { serve } from '../src/control/spawn.ts'
import type { AttachmentInput, ForwardInput, ForwardRequest, LiveSettings } from '../src/control/worker-input.ts'
import { type DeviceSpec, Devices } from '../src/device/open.ts'
import { Counters } from '../src/memory/counters.ts'
import { NextHopView } from '../src/memory/nexthop.ts'
import { Pool } from '../src/memory/pool.ts'
import { Heartbeat } from '../src/os/heartbeat.ts'
import { nameThread } from '../src/os/thread.ts'
import { Forwarder } from '../src/pipeline/forwarder.ts'
import { Handover } from '../src/pipeline/handover.ts'
import { inlineStages } from '../src/pipeline/inlining.ts'
import { Loop } from '../src/pipeline/loop.ts'

const PUBLISH_MS = 100

const input = workerData as ForwardInput
inlineStages()
nameThread(`forward-${input.worker}`)
const { first, count, firstSmall, smallCount } = input.frames
const pool = new Pool(input.pool, first, count, firstSmall, smallCount)
const counters = new Counters()
const devices = new Devices(pool, counters)
const underlay = devices.open(input.underlay)
const peers = input.peers.map(peer => peer && devices.open({ device: { kind: 'loopback', ...peer } }))
const handover = new Handover(pool, input.worker, input.steering, peers)
let express = input.express && devices.open(input.express)
const forwarder = new Forwarder(pool, counters, underlay, input.forwarder, {
  handover: input.workers > 1 ? handover : undefined,
  express,
  direct: input.underlay.device.kind === 'xdp',
})
const nextHop = new NextHopView(input.nextHop)
forwarder.follow(nextHop)
const heartbeats = new Map<number, Heartbeat>()
let nextPublish = 0

const loop = new Loop(
  now => {
    for (const heartbeat of heartbeats.values()) heartbeat.beat(input.worker)
    if (nextHop.refresh()) forwarder.follow(nextHop)
    forwarder.tick(now)
    if (now >= nextPublish) {
      nextPublish = now + PUBLISH_MS
      counters.publish()
    }
    return !serve(input.port, answer)
  },
  input.tickMs,
  input.polling,
)
loop.add(forwarder.underlayLeg)
for (const leg of forwarder.strayLegs) loop.add(leg)

function answer(request: unknown): unknown {
  const asked = request as ForwardRequest
  if ('attach' in asked) attach(asked.attach)
  else if ('detach' in asked) detach(asked.detach)
  else if ('settings' in asked) apply(asked.settings)
  else useExpress(asked.express)
  return counters.share()
}

function attach({ attachment, device, mac, failMode, heartbeatFd }: AttachmentInput): void {
  const opened = devices.open(device)
  try {
    heartbeats.set(attachment, new Heartbeat(heartbeatFd, input.workers))
  } catch (error) {
    devices.release(opened)
    throw error
  }
  loop.add(forwarder.attach(attachment, opened, Uint8Array.from(mac), failMode === 'closed'))
}

function detach(attachment: number): void {
  const device = forwarder.detach(attachment)
  if (device === undefined) return
  loop.remove(device)
  devices.release(device)
  heartbeats.get(attachment)?.close()
  heartbeats.delete(attachment)
}

function apply({ policy, polling, tickMs, failModes }: LiveSettings): void {
  forwarder.usePolicy(policy)
  for (const [attachment, mode] of failModes) forwarder.useFailMode(attachment, mode === 'closed')
  loop.pace(tickMs, polling)
}

/** Takes another express device, or none, in place of the one that there is. */
function useExpress(spec: DeviceSpec | undefined): void {
  forwarder.useExpress(undefined)
  if (express !== undefined) devices.release(express)
  express = undefined
  express = spec && devices.open(spec)
  forwarder.useExpress(express)
}

parentPort?.postMessage(counters.share())
try {
  loop.run()
} finally {
  devices.close()
  counters.publish()
  for (const heartbeat of heartbeats.values()) heartbeat.close()
}
