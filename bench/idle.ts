// How much of a processor does a node use whose pods are silent, the endpoint's probe included? Baseline: a Node.js process that
// does nothing but wake every 50 ms, as a worker's tick does. Needs root, iproute2, ethtool.

import { setTimeout as sleep } from 'node:timers/promises'
import { start } from '../src/lab/process.ts'
import type { Bench, Contender } from './harness.ts'
import { processTime } from './traffic/machine.ts'
import { whyNoSwitch } from './traffic/ovs.ts'
import { startGateway, startNodeProcess, switchWay } from './traffic/paths.ts'
import { build, idlePod, onStage, whyNot } from './traffic/scene.ts'

const TICK = 'setInterval(() => {}, 50)'
/** Until everything is compiled, and the first probes have come back. */
const SETTLE_MS = 2000
/** Ticks of processor time are 10 ms. */
const RESOLUTION = 0.1

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot()
  if (reason !== '') return bench.skip(reason)
  const seconds = bench.short ? 2 : 10
  await onStage(async stage => {
    const contender = (name: string, rival: boolean, ...pids: number[]): Contender => {
      return { name, rival, measure: () => share(pids, seconds) }
    }
    const empty = start(null, 'empty process', [process.execPath, '-e', TICK])
    await stage.open({ close: () => empty.stop('SIGKILL') })
    const contenders = [contender('an empty Node.js process, 50 ms tick', true, empty.pid)]
    for (const pods of [1, 20]) {
      const scene = build(`idle-${pods}`, { idle: pods - 1 })
      const gateway = await stage.open(startGateway(scene, 'geneve'))
      const attached = [scene.client, ...Array.from({ length: pods - 1 }, (_, i) => idlePod(scene, i))]
      const node = await stage.open(startNodeProcess(scene, 'geneve', attached))
      contenders.push(contender(`Detour, ${pods === 1 ? '1 pod' : `${pods} pods`}`, false, node.running.pid))
      if (pods === 1) contenders.push(contender("Detour's gateway", false, gateway.running.pid))
    }
    const missing = whyNoSwitch()
    if (missing !== '') bench.skip(`Open vSwitch: ${missing}`)
    else {
      const path = await stage.open(switchWay('geneve'))
      path.resume?.()
      contenders.push(contender('Open vSwitch, node and endpoint', true, ...(path.pids ?? [])))
    }
    await sleep(SETTLE_MS)
    await bench.ask({
      name: 'processor time of an idle node',
      unit: '% of a core',
      better: 'less',
      resolution: RESOLUTION,
      contenders,
    })
  })
}

/** Percent of one processor that processes use while nothing happens. */
async function share(pids: number[], seconds: number): Promise<number> {
  const used = () => pids.reduce((sum, pid) => sum + processTime(pid), 0)
  const before = used()
  const from = performance.now()
  await sleep(seconds * 1000)
  return ((used() - before) * 100) / (performance.now() - from)
}
