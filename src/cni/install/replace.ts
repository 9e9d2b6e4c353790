// Files put in place whole: written beside, flushed, renamed. A reader sees the old one or the new one, a crash leaves one of them.

import {
  chmodSync,
  closeSync,
  copyFileSync,
  fchmodSync,
  fchownSync,
  fsyncSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { DetourError } from '../../errors.ts'
import { TEMPORARY } from './directory.ts'
import type { Change } from './plan.ts'

/** Permissions and owner of a new file. */
export interface Rights {
  mode: number
  uid: number
  gid: number
}

/** A file that somebody else changed since it was read. */
export class Overtaken extends Error {
  constructor(path: string) {
    super(`${path}: somebody else writes it all the time`)
  }
}

/** After how long a file beside that nobody put in place is taken for a crashed writer's. */
const ABANDONED_MS = 60_000

/** Makes one change; throws Overtaken when the file is no longer what it was read as, DetourError when it cannot be written. */
export function make({ path, text, like, from }: Change): void {
  const guard = () => {
    if (contents(path) !== from) throw new Overtaken(path)
  }
  if (text === null) {
    guard()
    attempt(path, 'removed', () => rmSync(path))
  } else {
    const { uid, gid } = like?.stats ?? statSync(dirname(path))
    const mode = like === undefined ? 0o644 : Number(like.stats.mode) & 0o7777
    replaceFile(path, text, { mode, uid: Number(uid), gid: Number(gid) }, guard)
  }
}

/** Puts a file in place; `guard` is asked at the last moment and may throw. Throws DetourError when it cannot be written. */
export function replaceFile(path: string, data: string | { copyOf: string }, rights: Rights, guard?: () => void): void {
  const folder = dirname(path)
  const beside = join(folder, `.detour-${basename(path)}.${process.pid}.tmp`)
  attempt(path, 'written', () => {
    removeAbandoned(folder)
    try {
      if (typeof data !== 'string') {
        copyFileSync(data.copyOf, beside)
        chmodSync(beside, 0o600)
      }
      const fd = openSync(beside, typeof data === 'string' ? 'w' : 'r+', 0o600)
      try {
        if (typeof data === 'string') writeFileSync(fd, data)
        fchownSync(fd, rights.uid, rights.gid)
        fchmodSync(fd, rights.mode)
        fsyncSync(fd)
      } finally {
        closeSync(fd)
      }
      guard?.()
      renameSync(beside, path)
    } catch (error) {
      rmSync(beside, { force: true })
      throw error
    }
    flush(folder)
  })
}

/** Makes a directory's entries last through a power cut. */
export function flush(folder: string): void {
  const fd = openSync(folder, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

function contents(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
}

function removeAbandoned(folder: string): void {
  for (const name of readdirSync(folder)) {
    if (!TEMPORARY.test(name)) continue
    const path = join(folder, name)
    const stats = lstatSync(path, { throwIfNoEntry: false })
    if (stats !== undefined && stats.mtimeMs < Date.now() - ABANDONED_MS) rmSync(path, { force: true })
  }
}

function attempt(path: string, done: string, act: () => void): void {
  try {
    act()
  } catch (error) {
    if (error instanceof Overtaken) throw error
    const { code, message } = error as NodeJS.ErrnoException
    const kind = code === 'EACCES' || code === 'EPERM' ? 'permission' : code === 'ENOENT' ? 'not-found' : 'system'
    const advice = kind === 'permission' ? '; run it as root' : ''
    throw new DetourError(kind, `${path}: cannot be ${done} (${message})${advice}`, { cause: error })
  }
}
