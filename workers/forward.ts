// A node's forwarding worker: builds its devices and both legs from plain data and runs the loop until told to stop.

import { parentPort, workerData } from 'node:worker_threads'
import { stopRequested } from '../src/control/spawn.ts'
import type { ForwardInput } from '../src/control/worker-input.ts'
import { Devices } from '../src/device/open.ts'
import { Counters } from '../src/memory/counters.ts'
import { Pool } from '../src/memory/pool.ts'
import { Heartbeat } from '../src/os/heartbeat.ts'
import { Forwarder } from '../src/pipeline/forwarder.ts'
import { Loop } from '../src/pipeline/loop.ts'

const PUBLISH_MS = 100

const input = workerData as ForwardInput
const pool = new Pool(input.pool)
const counters = new Counters()
const devices = new Devices(pool, counters)
const underlay = devices.open(input.underlay)
const forwarder = new Forwarder(pool, counters, underlay, input.forwarder)
const status = new Int32Array(input.status)
const heartbeats: Heartbeat[] = []
let nextPublish = 0

const loop = new Loop(now => {
  for (let i = 0; i < heartbeats.length; i++) heartbeats[i].beat()
  forwarder.tick(now)
  if (now < nextPublish) return true
  nextPublish = now + PUBLISH_MS
  status[0] = forwarder.endpointUp ? 1 : 0
  status[1] = forwarder.probes.sent
  status[2] = forwarder.probes.answered
  counters.publish()
  return !stopRequested(input.port)
}, input.tickMs)

loop.add(forwarder.underlayLeg)
for (const { attachment, device, mac, failMode, heartbeatFd } of input.attachments) {
  const opened = devices.open(device)
  loop.add(forwarder.attach(attachment, opened, Uint8Array.from(mac), failMode === 'closed'))
  const heartbeat = new Heartbeat(heartbeatFd)
  heartbeat.enable(failMode, input.heartbeatLimitMs)
  heartbeats.push(heartbeat)
}

parentPort?.postMessage(counters.share())
try {
  loop.run()
} finally {
  devices.close()
  counters.publish()
  for (const heartbeat of heartbeats) heartbeat.close()
}
