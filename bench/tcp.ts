// How fast does TCP go between a pod and an endpoint: both directions, with an underlay that carries super-packets and with one
// that carries packets of its MTU, on Detour's lower rungs, and by GENEVE beside VXLAN? Baseline: the kernel's VXLAN device at
// both ends. Needs root, iproute2, iperf3, ethtool. iperf3 and what is measured share the machine's processors.

import type { Bench } from './harness.ts'
import { contenders, openWays } from './traffic/contenders.ts'
import { transfer } from './traffic/load.ts'
import { detourHairpin, detourWay, type Path } from './traffic/paths.ts'
import { onStage, type Stage, setUnderlay, traffic, UNDERLAYS, UPLINK_MTU, whyNot } from './traffic/scene.ts'

const DIRECTIONS = { 'pod to endpoint': false, 'endpoint to pod': true }
const RUNGS = ['uso', 'udp-socket', 'plain'] as const

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot('iperf3')
  if (reason !== '') return bench.skip(reason)
  await onStage(async stage => {
    const paths = await openWays(bench, stage)
    for (const underlay of UNDERLAYS) {
      for (const { scene } of paths) setUnderlay(scene, underlay)
      const measure = underlay === 'super-packets' ? transfer : segmented
      for (const streams of bench.short ? [1] : [1, 4, 16])
        for (const [direction, reverse] of Object.entries(DIRECTIONS))
          await ask(bench, `${direction}, underlay of ${underlay}`, paths, streams, reverse, measure)
    }
    await rungs(bench, stage, paths[0])
  })
  await onStage(stage => profiles(bench, stage))
}

function ask(bench: Bench, name: string, paths: Path[], streams: number, reverse: boolean, measure: typeof transfer) {
  return bench.ask({
    name: `${name}, ${streams === 1 ? '1 stream' : `${streams} streams`}`,
    unit: 'Gbit/s',
    better: 'more',
    contenders: contenders(paths, path => measure(path, bench.short ? 1 : 3, streams, reverse)),
  })
}

/** The same transfer, which fails when anything larger than the underlay's MTU crossed it. */
async function segmented(path: Path, seconds: number, streams: number, reverse: boolean): Promise<number> {
  const { far, downlink } = path.scene
  const before = traffic(far, downlink)
  const rate = await transfer(path, seconds, streams, reverse)
  const after = traffic(far, downlink)
  const bytes = reverse ? after.sentBytes - before.sentBytes : after.receivedBytes - before.receivedBytes
  const packets = reverse ? after.sentPackets - before.sentPackets : after.receivedPackets - before.receivedPackets
  if (bytes / packets > UPLINK_MTU + 14)
    throw new Error(
      `${path.name}: packets of ${Math.round(bytes / packets)} bytes crossed an underlay of ${UPLINK_MTU}`,
    )
  return rate
}

/** What a node does without tunnel GSO. */
async function rungs(bench: Bench, stage: Stage, kernel: Path): Promise<void> {
  const paths = [kernel]
  for (const rung of RUNGS) paths.push(await stage.open(detourWay({ rung })))
  setUnderlay(kernel.scene, 'super-packets')
  for (const [direction, reverse] of Object.entries(DIRECTIONS))
    await ask(bench, `${direction} on lower rungs`, paths, 1, reverse, transfer)
}

/** No kernel here speaks GENEVE, so that both are measured through Detour's gateway, from pod to pod. */
async function profiles(bench: Bench, stage: Stage): Promise<void> {
  const paths = [await stage.open(detourHairpin('vxlan')), await stage.open(detourHairpin('geneve'))]
  for (const streams of bench.short ? [1] : [1, 4, 16])
    await ask(bench, 'GENEVE beside VXLAN, pod to pod through the gateway', paths, streams, false, transfer)
}
