// The programs that join the underlay's TAP and the uplink. They are put on anew when the uplink was made anew, or somebody took
// them off; TAP and workers stay as they are.

import { closeSync } from 'node:fs'
import { type Hook, loadClassifier, makePinDirectory } from '../os/bpf.ts'
import {
  type AttachRung,
  attachClassifier,
  countHeld,
  detachClassifiers,
  type Hold,
  isHeld,
  release,
} from '../os/classifier.ts'
import { linkInfo } from '../os/link.ts'
import { quietTap } from '../os/tun.ts'
import { fromUplink, type TunnelPlace, toUplink } from './programs.ts'

/** One on the TAP, one on the uplink. */
const PROGRAMS = 2

export interface UplinkOptions extends TunnelPlace {
  namespace: string
  uplink: string
  tapName: string
  rung: AttachRung | 'auto'
  /** Pin directory that records what outlives the process. */
  directory: string
}

/** What holds the programs; plain data and descriptors. */
export interface UplinkParts {
  index: number
  holds: { rung: AttachRung; linkFd: number }[]
}

export class UplinkPrograms {
  private readonly options: UplinkOptions
  private readonly holds: Hold[] = []
  /** Index of the interface that the programs were put on; 0 before. */
  index = 0

  constructor(options: UplinkOptions) {
    this.options = options
  }

  /** Puts the programs on the TAP and on the uplink of now, in place of what is left of others; sets the TAP up. Throws DetourError. */
  attach(): AttachRung {
    const { namespace, uplink, tapName, directory } = this.options
    const { index } = linkInfo(uplink, namespace)
    this.close()
    quietTap(tapName, namespace)
    makePinDirectory(directory)
    this.put(tapName, toUplink(index), 'dt_to_uplink')
    const tapIndex = linkInfo(tapName, namespace).index
    const rung = this.put(uplink, fromUplink(tapIndex, this.options), 'dt_from_uplink')
    this.index = index
    return rung
  }

  /** Whether they are where they were put. A process each with clsact. */
  isAttached(): boolean {
    const { namespace, directory } = this.options
    const filters = this.holds.some(hold => hold.rung === 'clsact') ? countHeld(namespace, directory) : 0
    return this.holds.filter(isHeld).length + filters === PROGRAMS
  }

  /** What holds them, for another process. */
  parts(): UplinkParts {
    const { index, holds } = this
    return { index, holds: holds.map(({ rung, link: linkFd }) => ({ rung, linkFd })) }
  }

  /** Goes on with programs that another process put there; takes the descriptors. */
  inherit({ index, holds }: UplinkParts): void {
    this.leave()
    this.index = index
    this.holds.push(...holds.map(({ rung, linkFd: link }) => ({ rung, link })))
  }

  /** Leaves them to another process that has inherited them; without one, those held by TCX end with this one. */
  leave(): void {
    for (const hold of this.holds.splice(0)) release(hold)
  }

  /** Takes them off; what is already gone is fine. */
  close(): void {
    for (const hold of this.holds.splice(0)) release(hold)
    detachClassifiers(this.options.namespace, this.options.directory)
  }

  private put(on: string, code: Uint8Array, label: string): AttachRung {
    const { namespace, directory, rung } = this.options
    const hook: Hook = 'ingress'
    const program = loadClassifier(label, code)
    try {
      // First, because another program may hand the packet elsewhere, and nobody else waits for this port.
      const classifier = { namespace, interface: on, hook, program, first: true }
      const hold = attachClassifier(classifier, directory, rung, false)
      this.holds.push(hold)
      return hold.rung
    } finally {
      closeSync(program)
    }
  }
}
