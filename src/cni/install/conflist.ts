// One file of a CNI configuration directory: what a runtime sees in it, and the edits that put Detour's entry into it and
// take it out again. Edits are to the text: order of keys, numbers, white space and keys that nobody knows stay as they were.

import { isDeepStrictEqual } from 'node:util'
import { type Entry, PLUGIN } from './entry.ts'
import { items, member, members, type Span, valueAt } from './json-text.ts'

/** A list of plugins, or the configuration of a single one, as libcni reads it. */
export interface Conf {
  /** `.conflist` is a list; `.conf` and `.json` are single. */
  kind: 'list' | 'single'
  /** The network's name. */
  name: string
  cniVersion: string | undefined
  /** Each plugin's type, in the order of the chain. */
  types: string[]
  /** The file that this list was made from, if Detour made it. */
  convertedFrom: string | undefined
}

/** What is wrong with a file: a runtime cannot use it. */
export interface Problem {
  problem: string
}

/** The key of a list that Detour made from the configuration of a single plugin. */
const CONVERTED = 'detour.dev/converted-from'

/** How deep lists of plugins are looked for: those of a Multus delegate are in `plugins[].delegates[].plugins`. */
const DEEPEST = 6

/** Reads a file's text as libcni does, and for the same reasons finds it unusable. */
export function readConf(fileName: string, text: string): Conf | Problem {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (error) {
    return { problem: `is not valid JSON (${(error as Error).message})` }
  }
  if (!isObject(json)) return { problem: 'is not a JSON object' }
  const { name, cniVersion } = json
  if (cniVersion !== undefined && typeof cniVersion !== 'string') return { problem: "'cniVersion' is not a string" }
  if (typeof name !== 'string' || name === '') return { problem: "has no 'name'" }
  const kind = fileName.endsWith('.conflist') ? 'list' : 'single'
  if (kind === 'list' && !Array.isArray(json.plugins)) return { problem: "has no list 'plugins'" }
  const plugins = kind === 'list' ? (json.plugins as unknown[]) : [json]
  if (plugins.length === 0) return { problem: "has an empty list 'plugins'" }
  const types = plugins.map(plugin => (isObject(plugin) ? plugin.type : undefined))
  if (!types.every(type => typeof type === 'string' && type !== '')) return { problem: "has a plugin without 'type'" }
  const from = json[CONVERTED]
  return {
    kind,
    name,
    cniVersion,
    types: types as string[],
    convertedFrom: typeof from === 'string' ? from : undefined,
  }
}

/** The list with the entry as its last plugin, exactly once; the same text when it is there already. */
export function withEntry(text: string, entry: Entry): string {
  const plugins = items(text, pluginsOf(text))
  const last = plugins[plugins.length - 1]
  if (plugins.filter(item => isOurs(text, item)).length === 1 && isOurs(text, last)) {
    if (isDeepStrictEqual(JSON.parse(text.slice(last.start, last.end)), entry)) return text
  }
  const cleaned = remove(text, text => [pluginsOf(text)])
  return append(cleaned, pluginsOf(cleaned), entry)
}

/** The text without Detour's entries, also those in the delegates of Multus; the inverse of `withEntry`, byte for byte. */
export function withoutEntry(text: string): string {
  return remove(text, text => listsIn(text, valueAt(text, 0), 0))
}

/** Whether Multus has a network among its delegates without Detour's entry, so that it has yet to read its file again. */
export function lags(multus: string, network: string): boolean {
  const json: unknown = JSON.parse(multus)
  if (!isObject(json)) return false
  const delegates = [json, ...objects(json.plugins)].flatMap(plugin => objects(plugin.delegates))
  return delegates.some(
    ({ name, plugins }) => name === network && !objects(plugins).some(({ type }) => type === PLUGIN),
  )
}

/** The list that takes the place of a single plugin's configuration: the same network, its text word for word, then the entry. */
export function converted(fileName: string, text: string, { name, cniVersion }: Conf, entry: Entry): string {
  const head = JSON.stringify({ [CONVERTED]: fileName, cniVersion, name, plugins: [] }, null, 2)
  const list = `${head.slice(0, -'[]\n}'.length)}[\n    ${text.trim()}\n  ]\n}\n`
  return append(list, pluginsOf(list), entry)
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function objects(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value.filter(isObject) : []
}

function pluginsOf(text: string): Span {
  return member(text, valueAt(text, 0), 'plugins')!
}

function isOurs(text: string, { start, end }: Span): boolean {
  return text[start] === '{' && JSON.parse(text.slice(start, end)).type === PLUGIN
}

/** Every list under a key `plugins`, at whatever place. */
function listsIn(text: string, value: Span, depth: number): Span[] {
  if (depth > DEEPEST) return []
  if (text[value.start] === '[') return items(text, value).flatMap(item => listsIn(text, item, depth + 1))
  if (text[value.start] !== '{') return []
  return members(text, value).flatMap(({ key, value }) => [
    ...(key === 'plugins' && text[value.start] === '[' ? [value] : []),
    ...listsIn(text, value, depth + 1),
  ])
}

/** Takes Detour's entries out of lists, each with the comma and the white space before it (the first, those behind it). */
function remove(text: string, lists: (text: string) => Span[]): string {
  for (const list of lists(text)) {
    const plugins = items(text, list)
    const at = plugins.findIndex(item => isOurs(text, item))
    if (at === -1) continue
    const start = at > 0 ? plugins[at - 1].end : plugins[at].start
    const end = at > 0 || plugins.length === 1 ? plugins[at].end : plugins[1].start
    return remove(text.slice(0, start) + text.slice(end), lists)
  }
  return text
}

/** Puts the entry behind the last of a list's plugins, in the list's own layout. */
function append(text: string, list: Span, entry: Entry): string {
  const plugins = items(text, list)
  if (plugins.length === 0)
    return `${text.slice(0, list.start + 1)}${JSON.stringify(entry)}${text.slice(list.start + 1)}`
  const last = plugins[plugins.length - 1]
  const between =
    plugins.length > 1
      ? text.slice(plugins[plugins.length - 2].end, last.start)
      : `,${text.slice(list.start + 1, last.start)}`
  const body = text.slice(last.start, last.end)
  if (!body.includes('\n')) return text.slice(0, last.end) + between + JSON.stringify(entry) + text.slice(last.end)
  const indent = /[ \t]*$/.exec(body.slice(0, body.lastIndexOf('}')))![0]
  const inner = /\n([ \t]*)\S/.exec(body)![1]
  const unit = inner.startsWith(indent) && inner !== indent ? inner.slice(indent.length) : '  '
  const laidOut = JSON.stringify(entry, null, unit).replaceAll('\n', `\n${indent}`)
  return text.slice(0, last.end) + between + laidOut + text.slice(last.end)
}
