// Who takes part in a question, the kernel's VXLAN device first as its baseline. Who is not installed is left out, with a word on what to install.

import type { Bench, Contender } from '../harness.ts'
import { whyNoSwitch } from './ovs.ts'
import {
  detourHairpin,
  detourWay,
  kernelHairpin,
  kernelWay,
  type Path,
  plainHairpin,
  plainWay,
  switchHairpin,
  switchWay,
} from './paths.ts'
import type { Stage } from './scene.ts'

/** The ways from a pod to an endpoint; `afxdp` adds Open vSwitch over AF_XDP. */
export async function openWays(bench: Bench, stage: Stage): Promise<Path[]> {
  const paths = [await stage.open(kernelWay()), await stage.open(plainWay()), await stage.open(detourWay())]
  const others = [() => switchWay('vxlan'), () => switchWay('geneve'), () => switchWay('vxlan', 'afxdp')]
  return [...paths, ...(await openSwitches(bench, stage, others))]
}

/** From pod to pod through a gateway and back. */
export async function openHairpins(bench: Bench, stage: Stage): Promise<Path[]> {
  const paths = [await stage.open(kernelHairpin()), await stage.open(plainHairpin())]
  for (const profile of ['vxlan', 'geneve'] as const) paths.push(await stage.open(detourHairpin(profile)))
  const others = [() => switchHairpin('vxlan'), () => switchHairpin('geneve')]
  return [...paths, ...(await openSwitches(bench, stage, others))]
}

/** Paths of Open vSwitch, where it is installed. */
export async function openSwitches(bench: Bench, stage: Stage, openings: (() => Promise<Path>)[]): Promise<Path[]> {
  const reason = whyNoSwitch()
  const paths: Path[] = []
  if (reason !== '') bench.skip(`Open vSwitch: ${reason}`)
  else
    for (const open of openings) {
      try {
        paths.push(await stage.open(open()))
      } catch (error) {
        bench.skip(`Open vSwitch: ${(error as Error).message}`)
      }
    }
  return paths
}

/** Paths as contenders of one question. */
export function contenders(paths: readonly Path[], measure: (path: Path) => Promise<number>): Contender[] {
  return paths.map(path => ({ name: path.name, rival: path.rival, measure: () => measure(path) }))
}
