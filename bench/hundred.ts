// What do a hundred attached pods cost: the next pod that is attached, the memory of each, and the TCP of one that is busy among
// them? Baseline: the same node with that pod alone. Needs root, iproute2, iperf3, ethtool.

import type { Bench, Contender } from './harness.ts'
import { CONTROLS, transfer } from './traffic/load.ts'
import { detourWay, type Path } from './traffic/paths.ts'
import { idlePod, onStage, whyNot } from './traffic/scene.ts'

const PODS = 100
/** What an attachment may take, KiB. */
const LIMIT = 2048

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot('iperf3')
  if (reason !== '') return bench.skip(reason)
  await onStage(async stage => {
    const alone = await stage.open(detourWay({ idle: 1 }))
    const among = await stage.open(detourWay({ idle: PODS + 1 }))
    const before = process.memoryUsage.rss()
    for (let i = 0; i < PODS; i++) await attach(among, i)
    const each = (process.memoryUsage.rss() - before) / PODS / 1024
    await bench.ask({
      name: 'resident memory of an attachment',
      unit: 'KiB',
      better: 'less',
      contenders: [
        { name: 'the limit', rival: true, measure: () => LIMIT },
        { name: `each of ${PODS} pods`, measure: () => each },
      ],
      resolution: 1,
    })
    await bench.ask({
      name: 'attaching one more pod',
      unit: 'ms',
      better: 'less',
      contenders: [attaching('the second pod', alone, 0), attaching(`pod ${PODS + 2}`, among, PODS)],
    })
    for (const reverse of [false, true]) {
      const options = { seconds: bench.short ? 1 : 2, streams: 1, reverse, control: CONTROLS[0] }
      const contender = (name: string, path: Path): Contender => ({ name, measure: () => transfer(path, options) })
      await bench.ask({
        name: `TCP of one busy pod, ${reverse ? 'endpoint to pod' : 'pod to endpoint'}`,
        unit: 'Gbit/s',
        better: 'more',
        contenders: [contender('alone', alone), contender(`among ${PODS} that are silent`, among)],
      })
    }
  })
}

const attach = ({ node, scene }: Path, i: number) =>
  node?.attach({ id: idlePod(scene, i), namespace: idlePod(scene, i) })

/** Time until packets flow; the pod is detached again, unmeasured. */
function attaching(name: string, path: Path, i: number): Contender {
  return {
    name,
    async measure() {
      const from = performance.now()
      await attach(path, i)
      const ms = performance.now() - from
      await path.node?.detach(idlePod(path.scene, i))
      return ms
    },
  }
}
