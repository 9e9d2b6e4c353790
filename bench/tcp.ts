// How fast does TCP go between a pod and an endpoint: both directions, with an underlay that carries super-packets and with one
// that carries packets of its MTU, on Detour's lower rungs, and by GENEVE beside VXLAN? Baseline: the kernel's VXLAN device at
// both ends. Needs root, iproute2, iperf3, ethtool. iperf3 and what is measured share the machine's processors.

import type { Bench } from './harness.ts'
import { contenders, openWays } from './traffic/contenders.ts'
import { CONTROLS, type TransferOptions, transfer } from './traffic/load.ts'
import { detourHairpin, detourWay, type Path } from './traffic/paths.ts'
import { onStage, setUnderlay, traffic, UNDERLAYS, UPLINK_MTU, whyNot } from './traffic/scene.ts'

const DIRECTIONS = ['pod to endpoint', 'endpoint to pod'] as const
type Direction = (typeof DIRECTIONS)[number]
const ETHERNET = 14
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
        for (const direction of DIRECTIONS)
          await ask(bench, `${direction}, underlay of ${underlay}`, paths, direction, { streams, measure })
    }
    for (const { scene } of paths) setUnderlay(scene, 'super-packets')
    for (const control of CONTROLS.slice(1))
      for (const direction of DIRECTIONS)
        await ask(bench, `${direction}, underlay of super-packets`, paths, direction, { control })
    const rungs = [paths[0]]
    for (const rung of RUNGS) rungs.push(await stage.open(detourWay({ rung })))
    for (const direction of DIRECTIONS) await ask(bench, `${direction} on lower rungs`, rungs, direction)
  })
  // No kernel here speaks GENEVE, so that both are measured through Detour's gateway.
  await onStage(async stage => {
    const paths = [await stage.open(detourHairpin('vxlan')), await stage.open(detourHairpin('geneve'))]
    for (const streams of bench.short ? [1] : [1, 4, 16])
      await ask(bench, 'GENEVE beside VXLAN, pod to pod through the gateway', paths, 'pod to endpoint', { streams })
  })
}

interface Asking {
  streams?: number
  control?: string
  measure?: typeof transfer
}

function ask(bench: Bench, name: string, paths: Path[], direction: Direction, asking: Asking = {}) {
  const { streams = 1, control = CONTROLS[0], measure = transfer } = asking
  const options = { seconds: bench.short ? 1 : 2, streams, reverse: direction === 'endpoint to pod', control }
  return bench.ask({
    name: `${name}, ${streams === 1 ? '1 stream' : `${streams} streams`}, ${control}`,
    unit: 'Gbit/s',
    better: 'more',
    contenders: contenders(paths, path => measure(path, options)),
  })
}

/** The same transfer, which fails when anything larger than the underlay's MTU crossed it. */
async function segmented(path: Path, options: TransferOptions): Promise<number> {
  const { far, downlink } = path.scene
  const before = traffic(far, downlink)
  const rate = await transfer(path, options)
  const after = traffic(far, downlink)
  const way = options.reverse
    ? (['sentBytes', 'sentPackets'] as const)
    : (['receivedBytes', 'receivedPackets'] as const)
  const [bytes, packets] = way.map(counter => after[counter] - before[counter])
  if (bytes / packets > UPLINK_MTU + ETHERNET)
    throw new Error(
      `${path.name}: packets of ${Math.round(bytes / packets)} bytes crossed an underlay of ${UPLINK_MTU}`,
    )
  return rate
}
