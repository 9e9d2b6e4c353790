// Classifiers that somebody else takes off, or that go with their interface.

import { rmSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Assembler } from '../../src/os/assembler.ts'
import { getPinned, loadClassifier, makePinDirectory } from '../../src/os/bpf.ts'
import { attachClassifier, countHeld, detachClassifiers, type Hold, isHeld, release } from '../../src/os/classifier.ts'
import { bpf, close, must } from '../../src/os/libc.ts'
import { deleteLink } from '../../src/os/link.ts'
import { tc } from '../../src/os/netns.ts'
import { missing, title, wire } from './support.ts'

describe.skipIf(missing !== '')(title('classifiers'), () => {
  const directory = '/sys/fs/bpf/detour/dth-classifier'
  let wired: ReturnType<typeof wire>
  const holds: Hold[] = []

  const put = (hook: 'ingress' | 'egress', rung: 'tcx' | 'clsact', persist = true) => {
    const program = loadClassifier('dth_next', new Assembler().exit(-1).assemble())
    const hold = attachClassifier({ namespace: wired.pod, interface: 'eth0', hook, program }, directory, rung, persist)
    close(program)
    holds.push(hold)
    return hold
  }
  const held = () => countHeld(wired.pod, directory)
  // What `bpftool link detach` does (BPF_LINK_DETACH), which Debian 12's does not know for TCX.
  const detach = (link: number) =>
    must(bpf(34, Uint32Array.of(link, ...Array(31).fill(0))), 'BPF_LINK_DETACH', `${link}`)

  beforeEach(() => {
    wired = wire('dth-cls')
    makePinDirectory(directory)
  })
  afterEach(() => {
    for (const hold of holds.splice(0)) release(hold)
    detachClassifiers(wired.pod, directory)
    wired.remove()
  })

  it('are counted while they are in place (tcx)', () => {
    put('ingress', 'tcx')
    put('egress', 'tcx')
    for (const hold of holds.splice(0)) release(hold)
    expect(held()).toBe(2)
    const link = getPinned(`${directory}/link_eth0_egress`)
    detach(link)
    close(link)
    expect(held()).toBe(1)
    rmSync(`${directory}/link_eth0_ingress`)
    expect(held()).toBe(0)
  })

  it('are counted while they are in place (clsact)', () => {
    put('ingress', 'clsact')
    put('egress', 'clsact')
    expect(held()).toBe(2)
    tc(['filter', 'del', 'dev', 'eth0', 'egress'], wired.pod)
    expect(held()).toBe(1)
    tc(['qdisc', 'del', 'dev', 'eth0', 'clsact'], wired.pod)
    expect(held()).toBe(0)
  })

  it('go with their interface', () => {
    put('ingress', 'clsact')
    put('ingress', 'tcx')
    const hold = put('egress', 'tcx', false)
    expect([held(), isHeld(hold)]).toEqual([2, true])
    deleteLink('eth0', wired.pod)
    expect([held(), isHeld(hold)]).toEqual([0, false])
    wired.remove()
    expect(held()).toBe(0)
  })
})
