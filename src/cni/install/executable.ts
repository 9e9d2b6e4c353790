// The plugin's executable in the directory where runtimes look for plugins, and beside it the checksum by which it is known again.

import { createHash } from 'node:crypto'
import { closeSync, existsSync, openSync, readFileSync, readSync, realpathSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { DetourError } from '../../errors.ts'
import { PLUGIN } from './entry.ts'
import { flush, replaceFile } from './replace.ts'

/** What an installation or removal of the executable came to. */
export type Outcome = 'placed' | 'would be placed' | 'unchanged' | 'would be removed' | 'removed' | 'absent' | 'foreign'

/** What `npm run build:cni` makes in `dist`: the executable that needs no Node.js, and the bundle. */
const BUILT = ['detour-cni', 'detour-cni.cjs']
const MODE = 0o755
const CHUNK = 1 << 20

/** The executable that is installed when none is named: the one that runs, else what is built beside `detour`. Throws DetourError. */
export function defaultSource(execPath = process.execPath, script = process.argv[1]): string {
  if (BUILT.includes(basename(execPath))) return execPath
  const running = realpathSync(script)
  if (BUILT.includes(basename(running))) return running
  const dist = join(dirname(running), '..', '..')
  const found = BUILT.map(name => join(dist, name)).find(path => existsSync(path))
  if (found !== undefined) return found
  const advice = 'run "npm run build:cni", or name one with --source'
  throw new DetourError('not-found', `no executable to install in ${dist}: ${advice}`)
}

/** Puts the executable in place, unless that is what is there. It may be running: its file is replaced, not written to. */
export function placeExecutable(source: string, folder: string, dryRun = false): Outcome {
  const path = join(folder, PLUGIN)
  const sum = sumOf(source)
  if (existsSync(path) && sumOf(path) === sum && recorded(folder) === sum && statSync(path).mode % 0o1000 === MODE) {
    return 'unchanged'
  }
  if (dryRun) return 'would be placed'
  if (!existsSync(folder)) throw new DetourError('not-found', `${folder}: no such directory; --bin-dir names another`)
  const [uid, gid] = [process.getuid!(), process.getgid!()]
  // The record comes first: a crash between the two leaves a record of a file that is not there, not a file nobody knows.
  replaceFile(record(folder), `${sum}  ${PLUGIN}\n`, { mode: 0o644, uid, gid })
  replaceFile(path, { copyOf: source }, { mode: MODE, uid, gid })
  return 'placed'
}

/** What tells cheaply that the executable is still the same file; undefined when it is not there. */
export function fingerprint(folder: string): string | undefined {
  const stats = statSync(join(folder, PLUGIN), { bigint: true, throwIfNoEntry: false })
  return stats && [stats.ino, stats.size, stats.mtimeNs, stats.mode].join()
}

/** Removes the executable if it is the one that was placed; another of that name stays. */
export function removeExecutable(folder: string, dryRun = false): Outcome {
  const path = join(folder, PLUGIN)
  const exists = existsSync(path)
  if (exists && sumOf(path) !== recorded(folder)) return 'foreign'
  if (dryRun) return exists ? 'would be removed' : 'absent'
  if (existsSync(folder)) {
    rmSync(path, { force: true })
    rmSync(record(folder), { force: true })
    flush(folder)
  }
  return exists ? 'removed' : 'absent'
}

/** The file with the checksum, in the format of `sha256sum -c`. */
function record(folder: string): string {
  return join(folder, `.${PLUGIN}.sha256`)
}

function recorded(folder: string): string | undefined {
  const path = record(folder)
  return existsSync(path) ? readFileSync(path, 'utf8').split(' ')[0] : undefined
}

/** SHA-256 of a file, read in pieces: an executable with Node.js inside has a hundred megabytes. */
function sumOf(path: string): string {
  const hash = createHash('sha256')
  const chunk = Buffer.allocUnsafe(CHUNK)
  let fd: number
  try {
    fd = openSync(path, 'r')
  } catch (error) {
    throw new DetourError('not-found', `${path}: cannot be read (${(error as Error).message})`, { cause: error })
  }
  try {
    for (let length: number; (length = readSync(fd, chunk)) > 0; ) hash.update(chunk.subarray(0, length))
  } finally {
    closeSync(fd)
  }
  return hash.digest('hex')
}
