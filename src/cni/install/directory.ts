// A CNI configuration directory as a runtime sees it: files in sorted order, the first usable one counts.

import { isUtf8 } from 'node:buffer'
import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
} from 'node:fs'
import { join } from 'node:path'
import { DetourError } from '../../errors.ts'
import { type Conf, type Problem, readConf } from './conflist.ts'

/** A file of the directory. */
export interface Found {
  fileName: string
  /** Where it really is, when the directory holds a symbolic link. */
  path: string
  text: string
  stats: BigIntStats
  /** Whether a runtime would read it, by its extension. */
  loadable: boolean
  conf: Conf | Problem
}

/** A file that cannot be read, or is no file. */
export interface Unreadable {
  fileName: string
  problem: string
  /** Whether a runtime cannot use it either. */
  certain: boolean
}

/** What a directory holds, in the order in which a runtime goes through it. */
export interface Directory {
  path: string
  files: Found[]
  unreadable: Unreadable[]
}

/** Extensions that container runtimes load. */
const LOADABLE = /\.(conf|conflist|json)$/
/** A configuration is some kilobytes; what is larger is none. */
const LARGEST = 1 << 20
/** Files of ours that are not yet in place; runtimes do not read them. */
export const TEMPORARY = /^\.detour-.*\.tmp$/

/** Reads the directory; throws DetourError when it is not there or may not be read. */
export function readDirectory(path: string): Directory {
  const found: Directory = { path, files: [], unreadable: [] }
  for (const fileName of names(path)) {
    if (TEMPORARY.test(fileName)) continue
    const file = readOne(join(path, fileName), fileName)
    if (!('problem' in file)) found.files.push(file)
    else if (LOADABLE.test(fileName)) found.unreadable.push(file)
  }
  return found
}

function names(path: string): string[] {
  try {
    const entries = readdirSync(path, { withFileTypes: true })
    return entries.flatMap(entry => (entry.isDirectory() ? [] : [entry.name])).sort()
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new DetourError('not-found', `${path}: no such directory; --conf-dir names another`)
    const kind = code === 'EACCES' ? 'permission' : 'system'
    throw new DetourError(kind, `${path}: cannot be listed (${message})`, { cause: error })
  }
}

function readOne(path: string, fileName: string): Found | Unreadable {
  let fd: number | undefined
  try {
    const real = realpathSync(path)
    // NB: a FIFO would be waited for without O_NONBLOCK.
    fd = openSync(real, constants.O_RDONLY | constants.O_NONBLOCK)
    const stats = fstatSync(fd, { bigint: true })
    if (!stats.isFile()) return { fileName, problem: 'is not a regular file', certain: true }
    const unsure = (problem: string) => ({ fileName, problem, certain: false })
    if (stats.size > LARGEST) return unsure(`has ${stats.size} bytes; at most ${LARGEST} are read`)
    const bytes = readFileSync(fd)
    if (!isUtf8(bytes)) return unsure('is not UTF-8')
    const text = bytes.toString('utf8')
    return { fileName, path: real, text, stats, loadable: LOADABLE.test(fileName), conf: readConf(fileName, text) }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return { fileName, problem: 'is a link to nothing, or just went away', certain: true }
    return { fileName, problem: `cannot be read (${message})`, certain: false }
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}
