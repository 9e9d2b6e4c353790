// Puts classifiers on interfaces: by TCX links (kernel 6.6), or on older kernels by filters of the clsact qdisc.
//
// What must be found again by another process, after a crash too, is a name in a pin directory (':' stands for a dot in
// the interface's name, which the BPF file system refuses):
//
//   link_<interface>_<hook>       a TCX link that outlives the process
//   program_<interface>_<hook>    a program that a filter runs
//   clsact_<interface>            an empty directory: the clsact qdisc was made for us

import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import { attachTcx, getPinned, type Hook, linkInterface, pin, unpin, updateLink } from './bpf.ts'
import { addClsact, deleteClsact, deleteFilter, hasFilter, putFilter } from './clsact.ts'
import { close, ERRNO, interfaceIndex, must } from './libc.ts'
import { inNamespace } from './netns.ts'

/** How a classifier is held on an interface. */
export type AttachRung = 'tcx' | 'clsact'

export interface Classifier {
  namespace: string
  interface: string
  hook: Hook
  /** File descriptor of the program; the caller closes it. */
  program: number
  /** TCX only: run before the classifiers that are there. */
  first?: boolean
}

/** What holds a classifier in place. */
export interface Hold {
  rung: AttachRung
  /** TCX: file descriptor of the link; the classifier goes when it is closed, unless the link is pinned. -1 for clsact. */
  link: number
}

/**
 * Attaches a classifier; 'auto' takes TCX where the kernel has it. What outlives the process is recorded in `directory` (a pin directory):
 * always with clsact, with TCX when `persist`. Throws DetourError, 'unsupported' when TCX is asked for and missing.
 */
export function attachClassifier(
  classifier: Classifier,
  directory: string,
  rung: AttachRung | 'auto',
  persist: boolean,
): Hold {
  const { namespace, interface: name, hook, program, first = false } = classifier
  if (rung !== 'clsact') {
    const link = inNamespace(namespace, () => attachTcx(program, interfaceIndex(name), hook, first))
    if (link >= 0) {
      if (persist) {
        const path = pathOf(directory, 'link', name, hook)
        // One that holds nothing any more.
        unpin(path)
        pin(link, path)
      }
      return { rung: 'tcx', link }
    }
    if (link !== -ERRNO.EINVAL) must(link, `BPF_LINK_CREATE tcx ${hook}`, name)
    if (rung === 'tcx') throw new DetourError('unsupported', `interface ${name}: no TCX here (kernel 6.6); use clsact`)
  }
  putRecorded(classifier, directory)
  return { rung: 'clsact', link: -1 }
}

/** How a classifier that a pin directory records is held on the interface of this name and index; undefined where it is not. */
export function heldBy(
  { namespace, interface: name, hook }: Omit<Classifier, 'program'>,
  index: number,
  directory: string,
): AttachRung | undefined {
  const link = getPinned(pathOf(directory, 'link', name, hook))
  if (link < 0)
    return existsSync(pathOf(directory, 'program', name, hook)) && hasFilter(namespace, name, hook)
      ? 'clsact'
      : undefined
  try {
    return linkInterface(link) === index ? 'tcx' : undefined
  } finally {
    close(link)
  }
}

/** Has the classifier that `heldBy` finds run another program from now on, without a packet in between. Throws DetourError. */
export function replaceClassifier(classifier: Classifier, rung: AttachRung, directory: string): void {
  const { interface: name, hook, program } = classifier
  if (rung === 'clsact') {
    putRecorded(classifier, directory)
    return
  }
  const path = pathOf(directory, 'link', name, hook)
  const link = must(getPinned(path), 'BPF_OBJ_GET', path)
  try {
    updateLink(link, program)
  } finally {
    close(link)
  }
}

function putRecorded({ namespace, interface: name, hook, program }: Classifier, directory: string): void {
  const path = pathOf(directory, 'program', name, hook)
  unpin(path)
  pin(program, path)
  if (addClsact(namespace, name)) mkdirSync(`${directory}/clsact_${fileOf(name)}`, { recursive: true })
  putFilter(namespace, name, hook, program)
}

const fileOf = (name: string) => name.replaceAll('.', ':')

const pathOf = (directory: string, kind: 'link' | 'program', name: string, hook: Hook) =>
  `${directory}/${kind}_${fileOf(name)}_${hook}`

/** Takes off every classifier that a pin directory records, and the directory; what is already gone, interface and namespace included, is fine. */
export function detachClassifiers(namespace: string, directory: string): void {
  const records = entries(directory).map(entry => entry.replaceAll(':', '.'))
  for (const record of records) {
    const [, name, hook] = record.match(/^program_(.+)_(ingress|egress)$/) ?? []
    if (name !== undefined) deleteFilter(namespace, name, hook as Hook)
  }
  for (const record of records)
    if (record.startsWith('clsact_')) deleteClsact(namespace, record.slice('clsact_'.length))
  unpin(directory)
}

/** How many of the classifiers that a pin directory records are in place. */
export function countHeld(namespace: string, directory: string): number {
  let held = 0
  for (const entry of entries(directory)) {
    const [, kind, name, hook] = entry.replaceAll(':', '.').match(/^(link|program)_(.+)_(ingress|egress)$/) ?? []
    if (kind === 'link' && holdsByPin(`${directory}/${entry}`)) held++
    else if (kind === 'program' && hasFilter(namespace, name, hook as Hook)) held++
  }
  return held
}

/** Whether a TCX classifier that is not pinned is in place. */
export function isHeld(hold: Hold): boolean {
  return hold.link >= 0 && linkInterface(hold.link) !== 0
}

function holdsByPin(path: string): boolean {
  const link = getPinned(path)
  if (link < 0) return false
  try {
    return linkInterface(link) !== 0
  } finally {
    close(link)
  }
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

/** Closes a hold's file descriptor; a TCX classifier that is not pinned goes with it. */
export function release(hold: Hold): void {
  if (hold.link >= 0) close(hold.link)
}
