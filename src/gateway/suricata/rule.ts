// One rule as text: its header's words, and its options as names and values.

import { DetourError } from '../../errors.ts'

export interface RuleText {
  action: string
  protocol: string
  from: string
  fromPorts: string
  arrow: string
  to: string
  toPorts: string
  options: { name: string; value: string }[]
}

/** Characters of a rule, at most. */
export const LIMIT_RULE = 65_536

/** Rules of a file with the line each begins at; comments and empty lines are left out, lines that end in a backslash go on. */
export function* rulesIn(text: string): Generator<{ line: number; rule: string }> {
  let line = 0
  let begun = 0
  let rule = ''
  for (let at = 0; at < text.length; ) {
    const feed = text.indexOf('\n', at)
    const end = feed < 0 ? text.length : feed
    const one = text.slice(at, end).replace(/\r$/, '')
    at = end + 1
    line++
    if (rule === '' && /^\s*(#|$)/.test(one)) continue
    if (rule === '') begun = line
    if (rule.length + one.length > LIMIT_RULE) {
      yield { line: begun, rule: `${rule}${one}`.slice(0, LIMIT_RULE + 1) }
      rule = ''
      continue
    }
    const goesOn = one.endsWith('\\')
    rule += goesOn ? one.slice(0, -1) : one
    if (goesOn && at < text.length) continue
    yield { line: begun, rule: rule.trim() }
    rule = ''
  }
}

/** Takes a rule apart; throws DetourError (`bad-config`) where it is none. */
export function splitRule(rule: string): RuleText {
  if (rule.length > LIMIT_RULE) malformed(`longer than ${LIMIT_RULE} characters`)
  const open = rule.indexOf('(')
  if (open < 0 || !rule.endsWith(')')) malformed('write: action protocol from ports -> to ports (options)')
  const words = headerWords(rule.slice(0, open))
  if (words.length !== 7) malformed(`a header has seven words, this has ${words.length}`)
  const [action, protocol, from, fromPorts, arrow, to, toPorts] = words
  return { action, protocol, from, fromPorts, arrow, to, toPorts, options: [...optionsIn(rule.slice(open + 1, -1))] }
}

/** Words apart by blanks, lists in brackets whole. */
function headerWords(text: string): string[] {
  const words: string[] = []
  let depth = 0
  let word = ''
  for (const c of `${text} `) {
    if (c === '[') depth++
    if (c === ']') depth--
    if (!/\s/.test(c)) word += c
    else if (depth <= 0 && word !== '') {
      words.push(word)
      word = ''
    }
  }
  if (word !== '') malformed(`'${word.slice(0, 40)}' lacks a closing bracket`)
  return words
}

function* optionsIn(text: string): Generator<{ name: string; value: string }> {
  let from = 0
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '\\') at++
    else if (text[at] === ';') {
      const [, name, value = ''] = /^\s*([^:\s]+)\s*(?::(.*))?$/s.exec(text.slice(from, at)) ?? []
      if (name === undefined) malformed(`';' with no option in front of it`)
      yield { name, value: value.trim() }
      from = at + 1
    }
  }
  if (text.slice(from).trim() !== '')
    malformed(`the option '${text.slice(from).trim().slice(0, 40)}' has no ';' behind it`)
}

/** The text between quotes, and whether a `!` stands in front of them. */
export function quoted(value: string): { text: string; negated: boolean } {
  const [, not, text] = /^(!?)\s*"(.*)"$/s.exec(value) ?? []
  if (text === undefined) malformed(`'${value.slice(0, 40)}' is not in quotes`)
  return { text, negated: not === '!' }
}

/** The bytes of a content: text with escapes, and hexadecimal between bars. */
export function contentBytes(text: string): Uint8Array {
  const bytes: number[] = []
  for (let at = 0; at < text.length; at++) {
    const c = text[at]
    if (c === '|') {
      const end = text.indexOf('|', at + 1)
      const hex = text.slice(at + 1, end).replaceAll(/\s/g, '')
      if (end < 0 || hex === '' || !/^([0-9a-f]{2})+$/i.test(hex))
        malformed('bars enclose hexadecimal bytes such as |0d 0a|')
      bytes.push(...Buffer.from(hex, 'hex'))
      at = end
    } else if (c === '\\') {
      const escaped = text[++at] ?? ''
      if (!['\\', '"', ';', ':'].includes(escaped))
        malformed(`'\\${escaped}': only \\\\ \\" \\; and \\: are escaped in a content`)
      bytes.push(escaped.charCodeAt(0))
    } else if (c === '"') malformed('a quote in a content is written \\"')
    else bytes.push(c.charCodeAt(0))
  }
  if (bytes.length === 0 || bytes.length > 255) malformed(`a content has 1 to 255 bytes, this has ${bytes.length}`)
  return Uint8Array.from(bytes)
}

export function malformed(why: string): never {
  throw new DetourError('bad-config', why)
}
