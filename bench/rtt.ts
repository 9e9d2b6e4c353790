// How long does one byte take to an endpoint and back, over a path on which nothing else goes? Median and 99th percentile of the
// same trips. Baseline: the kernel's VXLAN device. Needs root, iproute2, ethtool.

import type { Bench } from './harness.ts'
import { contenders, openWays } from './traffic/contenders.ts'
import { roundTrips } from './traffic/load.ts'
import type { Path } from './traffic/paths.ts'
import { onStage, whyNot } from './traffic/scene.ts'

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot()
  if (reason !== '') return bench.skip(reason)
  await onStage(async stage => {
    const paths = await openWays(bench, stage)
    const trips = bench.short ? 500 : 10_000
    const slow = new Map<Path, number[]>(paths.map(path => [path, []]))
    await bench.ask({
      name: 'round trip of one byte of UDP, median',
      unit: 'µs',
      better: 'less',
      contenders: contenders(paths, async path => {
        const { p50, p99 } = await roundTrips(path, trips)
        slow.get(path)?.push(p99)
        return p50
      }),
    })
    await bench.ask({
      name: 'round trip of one byte of UDP, 99th percentile',
      unit: 'µs',
      better: 'less',
      contenders: contenders(paths, async path => slow.get(path)?.shift() ?? Number.NaN),
    })
  })
}
