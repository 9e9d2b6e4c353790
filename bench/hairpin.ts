// How fast does TCP go from a pod through the node, the gateway and the node again to another pod? And is GENEVE as fast as
// VXLAN, both through Detour's own gateway? Baseline: a VXLAN of the kernel's for each pod, bridged. Needs root, iperf3, ethtool.

import type { Bench } from './harness.ts'
import { contenders, openHairpins } from './traffic/contenders.ts'
import { CONTROLS, transfer } from './traffic/load.ts'
import { onStage, whyNot } from './traffic/scene.ts'

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot('iperf3')
  if (reason !== '') return bench.skip(reason)
  await onStage(async stage => {
    const paths = await openHairpins(bench, stage)
    const [control] = CONTROLS
    const seconds = bench.short ? 1 : 2
    for (const streams of bench.short ? [1] : [1, 4])
      await bench.ask({
        name: `TCP from pod to gateway and back to another pod, ${streams === 1 ? '1 stream' : `${streams} streams`}, ${control}`,
        unit: 'Gbit/s',
        better: 'more',
        contenders: contenders(paths, path => transfer(path, { seconds, streams, reverse: false, control })),
      })
  })
}
