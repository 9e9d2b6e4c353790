// What has to change in a configuration directory so that Detour is chained, exactly once, after the primary plugin; or so
// that it is nowhere.

import { type Conf, converted, lags, withEntry, withoutEntry } from './conflist.ts'
import type { Directory, Found } from './directory.ts'
import { type Entry, PLUGIN } from './entry.ts'

/** One file to be written, replaced (`from` says what it holds now) or removed (`text` is null). */
export interface Change {
  fileName: string
  path: string
  text: string | null
  /** The file whose mode and owner the new one has; else everybody may read it, and it belongs to the directory's owner. */
  like: Found | undefined
  /** What is replaced; null for a new file. */
  from: string | null
}

/** A file of the primary's. */
type Usable = Found & { conf: Conf }

/** The network that pods get, and what is to be done in the directory. */
export interface Plan {
  /** The primary's file. */
  target: Usable
  /** The file that a runtime will use: the target, or the list that takes its place. */
  file: string
  /** In the order in which they are to be made. */
  changes: Change[]
  /** Why a runtime does not call Detour yet although all is in place. */
  pending: string | undefined
}

/** Why there is nothing to chain after. */
export interface Waiting {
  waiting: string
}

const MULTUS = /^multus(-shim)?$/
const OLDEST = [0, 3, 0]

/**
 * What it takes to chain the entry after the primary plugin. The primary's file is the first usable one; Multus in front of
 * another is passed over, because it delegates to that other file and calls what is chained there.
 */
export function planInstall(directory: Directory, entry: Entry): Plan | Waiting {
  const usable = directory.files.filter(isUsable)
  const first: Usable | undefined = usable[0]
  const target = usable.find(file => !isMultus(file)) ?? first
  if (target === undefined) return { waiting: nothingUsable(directory) }
  const unsure = directory.unreadable.find(({ fileName, certain }) => !certain && fileName < target.fileName)
  if (unsure !== undefined) return { waiting: `${unsure.fileName} comes first but ${unsure.problem}` }
  const older = tooOld(target.conf.cniVersion)
  if (older !== undefined) return { waiting: `${target.fileName} ${older}: a chain of plugins needs 0.3.0 or later` }
  const mine = target.conf.kind === 'list' ? rewritten(target, entry) : conversion(directory, target, entry)
  const file = target.conf.kind === 'list' ? target.fileName : convertedName(target.fileName)
  const pending =
    first !== target && lags(first.text, target.conf.name)
      ? `Multus has yet to read ${file} again: ${first.fileName} delegates to it without ${PLUGIN} (restart Multus if that stays)`
      : undefined
  const delegating = usable.filter(isMultus).map(({ fileName }) => fileName)
  const others = planUninstall(directory, [target.fileName, file, ...delegating])
  return { target, file, changes: [...mine, ...others], pending }
}

/** What it takes to have no entry of Detour's in any file, whatever its name, except in those named. */
export function planUninstall(directory: Directory, except: string[] = []): Change[] {
  return directory.files
    .filter(({ fileName }) => !except.includes(fileName))
    .flatMap((found): Change[] => {
      const { fileName, path, conf, text } = found
      if (isConverted(conf)) return [{ fileName, path, text: null, like: found, from: text }]
      const without = withoutEntryIfJson(text)
      return without === text ? [] : [{ fileName, path, text: without, like: found, from: text }]
    })
}

/** The name that sorts just before a file: `-` comes before the point of its extension. */
export function convertedName(fileName: string): string {
  return fileName.replace(/\.[^.]+$/, '-detour.conflist')
}

/** Whether a runtime can use the file, and it is not all Detour's own making. */
function isUsable(file: Found): file is Usable {
  const { conf, loadable } = file
  return loadable && !('problem' in conf) && !isConverted(conf) && conf.types.some(type => type !== PLUGIN)
}

function isMultus({ conf }: Usable): boolean {
  return conf.types.some(type => MULTUS.test(type))
}

function isConverted(conf: Found['conf']): boolean {
  return 'convertedFrom' in conf && conf.convertedFrom !== undefined
}

function mentions(text: string): boolean {
  return text.includes(PLUGIN)
}

function withoutEntryIfJson(text: string): string {
  if (!mentions(text)) return text
  try {
    JSON.parse(text)
  } catch {
    return text
  }
  return withoutEntry(text)
}

function rewritten(target: Found, entry: Entry): Change[] {
  const { fileName, path, text } = target
  const after = withEntry(text, entry)
  return after === text ? [] : [{ fileName, path, text: after, like: target, from: text }]
}

function conversion(directory: Directory, target: Usable, entry: Entry): Change[] {
  const fileName = convertedName(target.fileName)
  const present = directory.files.find(file => file.fileName === fileName)
  const text = converted(target.fileName, target.text, target.conf, entry)
  if (present?.text === text) return []
  const path = present?.path ?? `${directory.path}/${fileName}`
  return [{ fileName, path, text, like: target, from: present?.text ?? null }]
}

function nothingUsable({ path, files, unreadable }: Directory): string {
  const problems = [
    ...unreadable,
    ...files.flatMap(({ fileName, loadable, conf }) =>
      loadable && 'problem' in conf ? [{ fileName, problem: conf.problem }] : [],
    ),
  ].map(({ fileName, problem }) => `${fileName} ${problem}`)
  return `no usable network configuration in ${path}${problems.length === 0 ? '' : `: ${problems.join('; ')}`}`
}

/** What is wrong with a version that is too old for a result to be passed on, as the plugin needs it. */
function tooOld(version: string | undefined): string | undefined {
  if (version === undefined) return "has no 'cniVersion'"
  const numbers = version.split('.').map(Number)
  for (const [index, least] of OLDEST.entries()) {
    if (numbers[index] > least) return undefined
    if (!(numbers[index] === least)) return `is of cniVersion '${version}'`
  }
  return undefined
}
