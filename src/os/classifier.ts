// Puts classifiers on interfaces: by TCX links (kernel 6.6), or on older kernels by `tc` and the clsact qdisc.
//
// What must be found again by another process, after a crash too, is a name in a pin directory (':' stands for a dot in
// the interface's name, which the BPF file system refuses):
//
//   link_<interface>_<hook>       a TCX link that outlives the process
//   program_<interface>_<hook>    a program that `tc` put there
//   clsact_<interface>            an empty directory: the clsact qdisc was made for us

import { mkdirSync, readdirSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import { attachTcx, getPinned, type Hook, linkInterface, pin, unpin } from './bpf.ts'
import { close, ERRNO, interfaceIndex, must } from './libc.ts'
import { inNamespace, tc } from './netns.ts'

/** How a classifier is held on an interface. */
export type AttachRung = 'tcx' | 'clsact'

// Priority and handle of our filters; nobody else's are touched.
const FILTER = ['pref', '3559', 'handle', '1', 'bpf']

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
  const file = name.replaceAll('.', ':')
  if (rung !== 'clsact') {
    const link = inNamespace(namespace, () => attachTcx(program, interfaceIndex(name), hook, first))
    if (link >= 0) {
      if (persist) pin(link, `${directory}/link_${file}_${hook}`)
      return { rung: 'tcx', link }
    }
    if (link !== -ERRNO.EINVAL) must(link, `BPF_LINK_CREATE tcx ${hook}`, name)
    if (rung === 'tcx') throw new DetourError('unsupported', `interface ${name}: no TCX here (kernel 6.6); use clsact`)
  }
  const path = `${directory}/program_${file}_${hook}`
  pin(program, path)
  if (!tc(['qdisc', 'show', 'dev', name], namespace).includes('qdisc clsact')) {
    mkdirSync(`${directory}/clsact_${file}`)
    tc(['qdisc', 'add', 'dev', name, 'clsact'], namespace)
  }
  tc(['filter', 'add', 'dev', name, hook, ...FILTER, 'direct-action', 'object-pinned', path], namespace)
  return { rung: 'clsact', link: -1 }
}

/** Takes off every classifier that a pin directory records, and the directory; what is already gone, interface and namespace included, is fine. */
export function detachClassifiers(namespace: string, directory: string): void {
  const records = entries(directory).map(entry =>
    entry.replaceAll(':', '.').match(/^(program|clsact)_(.+?)(?:_(\w+gress))?$/),
  )
  const attempt = (kind: string, command: (name: string, hook: string) => string[]) => {
    for (const record of records) {
      if (record?.[1] !== kind) continue
      try {
        tc(command(record[2], record[3]), namespace)
      } catch (error) {
        if (!(error instanceof DetourError) || error.code === 'unsupported') throw error
      }
    }
  }
  attempt('program', (name, hook) => ['filter', 'del', 'dev', name, hook, ...FILTER])
  attempt('clsact', name => ['qdisc', 'del', 'dev', name, 'clsact'])
  unpin(directory)
}

/** How many of the classifiers that a pin directory records are in place: a few system calls each with TCX, a process each with clsact. */
export function countHeld(namespace: string, directory: string): number {
  let held = 0
  for (const entry of entries(directory)) {
    const [, kind, name, hook] = entry.replaceAll(':', '.').match(/^(link|program)_(.+)_(\w+gress)$/) ?? []
    if (kind === 'link' && holdsByPin(`${directory}/${entry}`)) held++
    else if (kind === 'program' && holdsByFilter(namespace, name, hook)) held++
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

function holdsByFilter(namespace: string, name: string, hook: string): boolean {
  try {
    return tc(['filter', 'show', 'dev', name, hook], namespace).includes(`pref ${FILTER[1]} `)
  } catch (error) {
    if (error instanceof DetourError && error.code !== 'unsupported') return false
    throw error
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
