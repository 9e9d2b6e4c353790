// How many new flows a second, each of one packet, get from a pod to an endpoint? Detour enters each into its flow table; Open
// vSwitch into its connection table; the kernel's VXLAN device (baseline) keeps no flows at all. Needs root, iproute2, ethtool.

import { setTimeout as sleep } from 'node:timers/promises'
import type { Bench } from './harness.ts'
import { contenders, openSwitches } from './traffic/contenders.ts'
import { newFlows } from './traffic/load.ts'
import { detourWay, kernelWay, type Path, switchWay } from './traffic/paths.ts'
import { onStage, whyNot } from './traffic/scene.ts'

const UDP = 17
/** Longer than a round, and no longer, because the next one begins with an empty table. */
const TIMEOUT_S = 5

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot()
  if (reason !== '') return bench.skip(reason)
  const flows = bench.short ? 100_000 : 200_000
  await onStage(async stage => {
    const paths = [
      await stage.open(kernelWay()),
      await stage.open(detourWay({ config: { flows: { otherTimeoutSeconds: TIMEOUT_S } } })),
      ...(await openSwitches(bench, stage, [() => switchWay('vxlan', 'system', true)])),
    ]
    await bench.ask({
      name: `new flows, ${flows.toLocaleString('en-US')} at once, delivered`,
      unit: 'flows/s',
      better: 'more',
      contenders: contenders(paths, path => (path.node === undefined ? newFlows(path, flows) : entered(path, flows))),
    })
  })
}

/** The same from an empty table, which fails when fewer flows are in it afterwards than were delivered. */
async function entered(path: Path, flows: number): Promise<number> {
  const held = async () => (await path.node!.source.flows({ limit: 1, order: 'idle', protocol: UDP })).matched
  while ((await held()) > 0) await sleep(500)
  let delivered = 0
  const rate = await newFlows(path, flows, packets => {
    delivered = packets
  })
  const entries = await held()
  if (entries < delivered) throw new Error(`${path.name}: ${delivered} flows arrived, the table holds ${entries}`)
  return rate
}
