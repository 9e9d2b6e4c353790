// YAML files checked against a zod schema: every error names file, line, key, value and what is allowed.

import { readFileSync } from 'node:fs'
import { inspect } from 'node:util'
import { isCollection, isMap, isNode, isScalar, LineCounter, parseAllDocuments, parseDocument } from 'yaml'
import { z } from 'zod'
import { DetourError } from '../errors.ts'
import { didYouMean } from './suggest.ts'

/** A mapping that knows all its keys. */
export function section<Shape extends z.ZodRawShape>(shape: Shape) {
  const known = Object.keys(shape)
  return z.strictObject(shape, {
    error: issue => {
      if (issue.code !== 'unrecognized_keys') return `allowed: a mapping with the keys ${known.join(', ')}`
      const [key] = issue.keys as string[]
      return `unknown key "${key}"; allowed: ${known.join(', ')}${didYouMean(key, known)}`
    },
  })
}

/** An integer within bounds; `unit` is for the error. */
export function integer(min: number, max: number, unit = '') {
  const error = `allowed: an integer from ${min} to ${max}${unit && ` (${unit})`}`
  return z.int({ error }).min(min, { error }).max(max, { error })
}

/** One of some words. */
export function oneOf<const Words extends readonly [string, ...string[]]>(words: Words) {
  return z.enum(words, { error: issue => `allowed: ${words.join(', ')}${didYouMean(issue.input, words)}` })
}

/** True or false. */
export function yesNo() {
  return z.boolean({ error: 'allowed: true, false' })
}

/** Any value that `valid` accepts; `allowed` says what that is. */
export function such<T>(allowed: string, valid: (value: unknown) => boolean) {
  return z.custom<T>(valid, { error: `allowed: ${allowed}` })
}

/** Text that `valid` accepts; `allowed` says what that is. */
export function text(allowed: string, valid: (value: string) => boolean) {
  return such<string>(allowed, value => typeof value === 'string' && valid(value))
}

/** Checks a value that came from no file; `where` names its origin. Throws DetourError. */
export function checkValue<Schema extends z.ZodType>(schema: Schema, value: unknown, where: string): z.output<Schema> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  throw complain(where, result.error.issues, value, () => '')
}

/** Reads a YAML (or JSON) file; throws DetourError with all that is wrong in it. */
export function readYaml<Schema extends z.ZodType>(schema: Schema, file: string): z.output<Schema> {
  return parseYaml(schema, readText(file), file)
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    throw new DetourError('not-found', `${file}: cannot be read (${(error as Error).message})`, { cause: error })
  }
}

/** Reads every document of a YAML (or JSON) file that holds something; `where` names file and document, for `checkValue`. Throws DetourError. */
export function readYamlDocuments(file: string): { value: unknown; where: string }[] {
  const source = readText(file)
  const json = source.startsWith('{') ? parseJson(source) : undefined
  if (json !== undefined) return [{ value: json, where: file }]
  const lines = new LineCounter()
  const documents = guard(file, () =>
    parseAllDocuments(source, { lineCounter: lines, prettyErrors: false, logLevel: 'error' }),
  )
  return [...documents].flatMap((document, i) => {
    const [flaw] = document.errors
    if (flaw !== undefined) {
      const { line, col } = lines.linePos(flaw.pos[0])
      throw new DetourError('bad-config', `${file}:${line}:${col}: ${flaw.message}`)
    }
    const value: unknown = guard(file, () => document.toJS())
    return value === null ? [] : [{ value, where: documents.length === 1 ? file : `${file}, document ${i + 1}` }]
  })
}

/** Like readYaml, of text; an empty text is an empty mapping. */
export function parseYaml<Schema extends z.ZodType>(schema: Schema, source: string, file: string): z.output<Schema> {
  const lines = new LineCounter()
  const document = guard(file, () =>
    parseDocument(source, { lineCounter: lines, prettyErrors: false, logLevel: 'error' }),
  )
  const [flaw] = document.errors
  if (flaw !== undefined) {
    const { line, col } = lines.linePos(flaw.pos[0])
    throw new DetourError('bad-config', `${file}:${line}:${col}: ${flaw.message}`)
  }
  const value = guard(file, () => document.toJS() ?? {})
  const result = schema.safeParse(value)
  if (result.success) return result.data

  /** The line of the deepest part of `path` that is in the file. */
  function line(path: PropertyKey[]): string {
    let node: unknown = document.contents
    let at = isNode(node) ? node.range?.[0] : undefined
    for (const key of path) {
      if (!isCollection(node)) break
      const pair = isMap(node) ? node.items.find(item => isScalar(item.key) && item.key.value === key) : undefined
      const next = node.get(key, true)
      const place = pair?.key ?? next
      if (!isNode(place)) break
      at = place.range?.[0]
      node = next
    }
    return at === undefined ? '' : `:${lines.linePos(at).line}`
  }
  throw complain(file, result.error.issues, value, line)
}

/** What machines have written is read in a fraction of the time that YAML takes; undefined when it is none. */
function parseJson(source: string): unknown {
  try {
    return JSON.parse(source)
  } catch {
    return undefined
  }
}

function guard<T>(file: string, parse: () => T): T {
  try {
    return parse()
  } catch (error) {
    throw new DetourError('bad-config', `${file}: ${(error as Error).message}`, { cause: error })
  }
}

function complain(
  where: string,
  issues: z.core.$ZodIssue[],
  root: unknown,
  line: (path: PropertyKey[]) => string,
): DetourError {
  const sentences = issues.slice(0, 10).map(issue => {
    if (issue.code === 'unrecognized_keys') {
      const path = [...issue.path, issue.keys[0]]
      return `${where}${line(path)}: ${printPath(issue.path)}${issue.message}`
    }
    const value = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], root)
    const what = value === undefined ? 'is missing' : `${printValue(value)} is not allowed`
    return `${where}${line(issue.path)}: ${printPath(issue.path)}${what}; ${issue.message}`
  })
  return new DetourError('bad-config', sentences.join('\n'))
}

function printPath(path: PropertyKey[]): string {
  let printed = ''
  for (const key of path) printed += typeof key === 'number' ? `[${key}]` : `${printed && '.'}${String(key)}`
  return printed && `${printed}: `
}

function printValue(value: unknown): string {
  const printed =
    typeof value === 'object' ? inspect(value, { depth: 1, breakLength: Infinity }) : JSON.stringify(value)
  return printed.length > 80 ? `${printed.slice(0, 77)}...` : printed
}
