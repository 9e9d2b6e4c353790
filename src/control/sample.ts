// A configuration file with every key, its default and what it means, made from the schema.

import { z } from 'zod'

/** Of the words of a comment, before it is indented. */
const WIDTH = 96

/** YAML text that the schema reads as its defaults; a key without one, and an optional section, is a comment. */
export function sampleYaml(schema: z.ZodType, title: string): string {
  const sections = Object.entries(shape(schema)).map(([key, value]) => entry(key, value).join('\n'))
  return `${comment(title).join('\n')}\n\n${sections.join('\n\n')}\n`
}

// The lines of a key and of what is said about it, not indented.
function entry(key: string, schema: z.ZodType): string[] {
  const said = comment([schema.description, allowed(schema)].filter(Boolean).join(' '))
  const value: unknown = schema.safeParse(undefined).data
  const lines = valueLines(key, inside(schema), value)
  return [...said, ...(value === undefined ? lines.map(line => `# ${line}`) : lines)]
}

function valueLines(key: string, schema: z.ZodType, value: unknown): string[] {
  if (schema instanceof z.ZodObject) return [`${key}:`, ...indented(mapping(schema))]
  if (!(schema instanceof z.ZodArray)) return [value === undefined ? `${key}:` : `${key}: ${inline(value)}`]
  const element = inside(schema.element as z.ZodType)
  if (!(element instanceof z.ZodObject)) return [`${key}: ${inline(value)}`]
  const keys = indented(mapping(element)).map(line => `# ${line}`)
  const items = (value as object[]).flatMap(item)
  return ['# Keys of each:', ...keys, items.length === 0 ? `${key}: []` : `${key}:`, ...items]
}

// On one line where it is short.
function item(value: object): string[] {
  const short = `  - ${inline(value)}`
  if (short.length <= WIDTH) return [short]
  return Object.entries(value).map(([key, part], i) => `  ${i === 0 ? '-' : ' '} ${key}: ${inline(part)}`)
}

const mapping = (schema: z.ZodObject) => Object.entries(shape(schema)).flatMap(([key, value]) => entry(key, value))

const indented = (lines: string[]) => lines.map(line => `  ${line}`)

function inline(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(inline).join(', ')}]`
  if (value === '') return '""'
  if (typeof value !== 'object' || value === null) return String(value)
  return `{ ${Object.entries(value)
    .map(([key, item]) => `${key}: ${inline(item)}`)
    .join(', ')} }`
}

/** What a leaf allows, as its own error says it. */
function allowed(schema: z.ZodType): string {
  const inner = inside(schema)
  if (inner instanceof z.ZodObject || inner instanceof z.ZodArray || inner instanceof z.ZodBoolean) return ''
  const message = inner.safeParse(Symbol()).error?.issues[0].message ?? ''
  return `${message.replace(/^allowed/, 'Allowed')}.`
}

/** A schema without what gives it defaults, makes it optional or changes its output. */
function inside(schema: z.ZodType): z.ZodType {
  const { innerType, in: input } = schema.def as { innerType?: z.ZodType; in?: z.ZodType }
  const next = innerType ?? input
  return next === undefined ? schema : inside(next)
}

const shape = (schema: z.ZodType) => (inside(schema) as z.ZodObject).shape as Record<string, z.ZodType>

function comment(text: string): string[] {
  const lines: string[] = []
  for (const word of text.split(' ').filter(Boolean)) {
    const last = lines.at(-1)
    if (last === undefined || last.length + 1 + word.length > WIDTH) lines.push(`# ${word}`)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return lines
}
