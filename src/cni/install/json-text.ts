// Valid JSON as text with positions, so that one element can be put in or taken out and every other byte stays.

/** Where a value starts, and the position behind its end. */
export interface Span {
  start: number
  end: number
}

/** A member of an object. */
export interface Member {
  key: string
  value: Span
}

const SPACE = /[ \t\r\n]*/y
const ATOM = /[^\s,\]}]+/y
const OPENS = '{['
const CLOSES = '}]'

/** The position of the next character that is not white space. */
export function skipSpace(text: string, at: number): number {
  return matchEnd(SPACE, text, at)
}

/** The value that starts at the next character that is not white space; the text must be valid JSON. */
export function valueAt(text: string, at: number): Span {
  const start = skipSpace(text, at)
  if (text[start] === '"') return { start, end: stringEnd(text, start) }
  if (!OPENS.includes(text[start])) return { start, end: matchEnd(ATOM, text, start) }
  let depth = 0
  for (let end = start; ; end++) {
    const character = text[end]
    if (character === '"') end = stringEnd(text, end) - 1
    else if (OPENS.includes(character)) depth++
    else if (CLOSES.includes(character) && --depth === 0) return { start, end: end + 1 }
  }
}

/** The elements of an array. */
export function items(text: string, array: Span): Span[] {
  const found: Span[] = []
  let at = skipSpace(text, array.start + 1)
  while (text[at] !== ']') {
    const item = valueAt(text, at)
    found.push(item)
    at = skipSpace(text, item.end)
    if (text[at] === ',') at++
  }
  return found
}

/** The members of an object, in order; of keys that repeat, every one. */
export function members(text: string, object: Span): Member[] {
  const found: Member[] = []
  let at = skipSpace(text, object.start + 1)
  while (text[at] !== '}') {
    const key = valueAt(text, at)
    const value = valueAt(text, text.indexOf(':', key.end) + 1)
    found.push({ key: JSON.parse(text.slice(key.start, key.end)), value })
    at = skipSpace(text, value.end)
    if (text[at] === ',') at = skipSpace(text, at + 1)
  }
  return found
}

/** The value of a member; of keys that repeat the last, which is the one that Go and JavaScript take. */
export function member(text: string, object: Span, key: string): Span | undefined {
  return members(text, object).findLast(found => found.key === key)?.value
}

function stringEnd(text: string, start: number): number {
  for (let at = start + 1; ; at++) {
    if (text[at] === '\\') at++
    else if (text[at] === '"') return at + 1
  }
}

function matchEnd(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at
  pattern.test(text)
  return pattern.lastIndex
}
