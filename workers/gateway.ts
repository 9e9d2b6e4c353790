// A gateway's worker: builds its device and its leg from plain data and runs the loop until told to stop.

import { parentPort, workerData } from 'node:worker_threads'
import { serve } from '../src/control/spawn.ts'
import { Devices } from '../src/device/open.ts'
import { Engine, type GatewayInput, type GatewayRequest, type GatewayResult } from '../src/gateway/engine.ts'
import { Counters } from '../src/memory/counters.ts'
import { Pool } from '../src/memory/pool.ts'
import { nameThread } from '../src/os/thread.ts'
import { DEFAULT_POLLING } from '../src/pipeline/busy-poll.ts'
import { inlineStages } from '../src/pipeline/inlining.ts'
import { Loop } from '../src/pipeline/loop.ts'

const TICK_MS = 20

const input = workerData as GatewayInput
inlineStages()
nameThread(`gateway-${input.engine.share?.worker ?? 0}`)
const { first, count, firstSmall, smallCount } = input.frames ?? {}
const pool = new Pool(input.pool, first, count, firstSmall, smallCount)
const counters = new Counters()
const devices = new Devices(pool, counters)
const underlay = devices.open(input.underlay)
const peers = input.peers?.map(peer => peer && devices.open({ device: { kind: 'loopback', ...peer } }))
const [inside, outside] = input.appliance?.map(spec => devices.open(spec)) ?? []
const engine = new Engine(pool, counters, underlay, input.engine, peers, inside && [inside, outside])

const loop = new Loop(
  () => {
    engine.tick()
    counters.publish()
    return !serve(input.port, answer)
  },
  TICK_MS,
  DEFAULT_POLLING,
)
loop.add(engine.leg)
for (const leg of engine.strayLegs) loop.add(leg)
for (const leg of engine.applianceLegs) loop.add(leg)

let faulty = false
function answer(request: unknown): void {
  const { faults } = request as GatewayRequest
  if (!faulty) loop.add(engine.faultStage.leg)
  faulty = true
  engine.faultStage.set(faults)
}

parentPort?.postMessage(counters.share())
try {
  loop.run()
  engine.drain()
} finally {
  devices.close()
  counters.publish()
}
parentPort?.postMessage({
  faults: [...devices.faults.map(fault => fault.message), ...engine.faults],
} satisfies GatewayResult)
