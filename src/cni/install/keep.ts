// Keeps Detour chained: looks when something in the directory changes, and now and then anyway, and makes good what the
// primary plugin or anybody else undid.

import { type FSWatcher, statSync, watch } from 'node:fs'
import { BACKOFF, type BackoffOptions, createBackoff } from './backoff.ts'
import { readDirectory } from './directory.ts'
import { type EntryOptions, entryOf } from './entry.ts'
import { fingerprint, placeExecutable } from './executable.ts'
import { type Change, type Plan, planInstall } from './plan.ts'
import { make, Overtaken } from './replace.ts'

/** What is kept, and how. */
export interface KeepOptions {
  /** The directory of network configurations. */
  confDir: string
  /** The options of the entry. */
  entry: EntryOptions
  /** The executable is kept too, if both are given. */
  executable?: { source: string; binDir: string }
  /** How often to look when nothing is heard, ms (5,000). */
  lookMs?: number
  backoff?: BackoffOptions
}

/** What happened. */
export type KeepEvent =
  /** Detour is chained, in this file, after these plugins. */
  | { event: 'ready'; file: string; network: string; after: string[] }
  /** Detour was missing and is chained again; pods that were made since `missingSince` (ISO 8601) may have slipped by. */
  | { event: 'repaired'; file: string; cause: string; missingSince: string; row: number }
  /** Nothing can be done yet. */
  | { event: 'waiting'; reason: string }
  /** Somebody undoes every repair; the next one is made after `nextMs`. */
  | { event: 'conflict'; file: string; row: number; nextMs: number; advice: string }

/** A keeper that is at work. */
export interface Keeper {
  /** Whether the next pod will get Detour; the reason says what is in the way, or where the entry is. */
  ready(): { ok: boolean; reason: string }
  close(): void
}

const LOOK_MS = 5_000
/** Bursts of events are one look: a file is opened, truncated, written and closed. */
const BURST_MS = 10
const ATTEMPTS = 5
const CILIUM = /^\d*-?cilium/

/** Starts keeping the entry where it belongs, with a first look before it returns. Throws nothing: what is in the way is told. */
export function keepInstalled(options: KeepOptions, onEvent: (event: KeepEvent) => void): Keeper {
  const { confDir, executable, lookMs = LOOK_MS } = options
  const entry = entryOf(options.entry)
  const backoff = createBackoff(options.backoff ?? BACKOFF)
  let state = { ok: false, reason: 'not looked yet' }
  let told = ''
  let placed: string | undefined
  let watcher: { inode: bigint; events: FSWatcher } | undefined
  let soon: NodeJS.Timeout | undefined
  let later: NodeJS.Timeout | undefined
  const every = setInterval(look, lookMs)

  /** What a listener throws is no fault of the directory, and nobody hears of a keeper before it is returned. */
  const tell = (event: KeepEvent) => queueMicrotask(() => onEvent(event))

  /** Tells what is new; the same state twice is told once. */
  function become(ok: boolean, reason: string, event: KeepEvent): void {
    state = { ok, reason }
    if (told === event.event + reason) return
    told = event.event + reason
    tell(event)
  }

  function look(): void {
    try {
      listen()
      if (executable !== undefined && (placed === undefined || fingerprint(executable.binDir) !== placed)) {
        placeExecutable(executable.source, executable.binDir)
        placed = fingerprint(executable.binDir)
      }
      for (let attempt = 0; !settled(attempt); attempt++);
    } catch (error) {
      const reason = (error as Error).message
      become(false, reason, { event: 'waiting', reason })
    }
  }

  /** One look and what follows from it; false when somebody else wrote meanwhile and it has to be done again. */
  function settled(attempt: number): boolean {
    const plan = planInstall(readDirectory(confDir), entry)
    if ('waiting' in plan) {
      become(false, plan.waiting, { event: 'waiting', reason: plan.waiting })
    } else if (plan.changes.length === 0) {
      inPlace(plan)
    } else {
      return repair(plan, attempt)
    }
    return true
  }

  function inPlace({ target, file, pending }: Plan): void {
    if (pending !== undefined) {
      become(false, pending, { event: 'waiting', reason: pending })
    } else {
      const { name: network, types: after } = target.conf
      become(true, `chained in ${file}`, { event: 'ready', file, network, after: after.filter(t => t !== entry.type) })
    }
  }

  function repair({ target, file, changes }: Plan, attempt: number): boolean {
    const now = performance.now()
    const wait = backoff.due(now) - now
    if (wait > 0) {
      clearTimeout(later)
      later = setTimeout(look, wait)
      const advice = adviceFor(target.fileName)
      const reason = `${file}: the entry was taken out again after ${backoff.row} repairs in a row; ${advice}`
      become(false, reason, { event: 'conflict', file, row: backoff.row, nextMs: Math.ceil(wait), advice })
      return true
    }
    try {
      for (const change of changes) make(change)
    } catch (error) {
      if (error instanceof Overtaken && attempt < ATTEMPTS) return false
      throw error
    }
    backoff.repaired(now)
    if (changes.some(change => change.fileName === file)) {
      const missingSince = new Date(Number(target.stats.ctimeMs)).toISOString()
      tell({ event: 'repaired', file, cause: causeOf(changes, file), missingSince, row: backoff.row })
      told = ''
    }
    return false
  }

  /** Watches the directory, and again when it is another one under the same name. */
  function listen(): void {
    const inode = statSync(confDir, { bigint: true, throwIfNoEntry: false })?.ino
    if (inode === watcher?.inode) return
    watcher?.events.close()
    watcher = undefined
    if (inode === undefined) return
    try {
      const events = watch(confDir, hear)
      events.on('error', hear)
      watcher = { inode, events }
    } catch {
      // The system's inotify watches are used up: looking now and then has to do.
    }
  }

  function hear(): void {
    soon ??= setTimeout(() => {
      soon = undefined
      look()
    }, BURST_MS)
  }

  look()
  return {
    ready: () => state,
    close: () => {
      clearInterval(every)
      clearTimeout(soon)
      clearTimeout(later)
      watcher?.events.close()
    },
  }
}

function causeOf(changes: Change[], file: string): string {
  const { from } = changes.find(change => change.fileName === file)!
  if (from === null) return `${file} is new`
  return from.includes(entryOf({}).type) ? 'the entry was changed or moved' : 'the file was written without the entry'
}

function adviceFor(fileName: string): string {
  return CILIUM.test(fileName)
    ? 'set cni.exclusive=false, so that Cilium leaves its file to others'
    : `find out what writes ${fileName}`
}
