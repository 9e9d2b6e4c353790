// Regular expressions over bytes, taken apart: a subset of JavaScript's syntax (ECMA-262 section 22.2.1) whose meaning
// is the same there.
//
//   x  .  [a-f]  [^a-f]  \d \D \w \W \s \S  \t \n \v \f \r \0 \xhh  \. and other escaped punctuation
//   (x) (?:x)  x|y  x* x+ x? x{n} x{n,} x{n,m} and their lazy forms  ^ as the first character
//
// Letters outside ASCII stand for their UTF-8 bytes; flag i folds ASCII letters only; \s is ASCII white space.

import { DetourError } from '../errors.ts'

export type Node =
  | { kind: 'set'; set: Uint8Array }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; items: Node[] }
  | { kind: 'repeat'; item: Node; min: number; max: number }

/** Steps of an expression written out, at most. */
export const LIMIT_NODES = 4096

/** Characters of an expression, at most. */
export const LIMIT_SOURCE = 512

const DIGIT = setOf([48, 57])
const WORD = setOf([48, 57], [65, 90], [95, 95], [97, 122])
const SPACE = setOf([9, 13], [32, 32])
const CLASSES: Record<string, Uint8Array> = {
  d: DIGIT,
  D: inverted(DIGIT),
  w: WORD,
  W: inverted(WORD),
  s: SPACE,
  S: inverted(SPACE),
}
const ESCAPES: Record<string, number> = { t: 9, n: 10, v: 11, f: 12, r: 13, 0: 0 }

/** Takes an expression apart; `anchored` when it begins with `^`. Throws `bad-config` saying what is not supported. */
export function parseRegex(source: string, flags: string): { node: Node; anchored: boolean } {
  for (const flag of flags)
    if (flag !== 'i' && flag !== 's') refuse(`flag '${flag}' is not supported; allowed are i and s`)
  if (source.length > LIMIT_SOURCE) refuse(`it is longer than ${LIMIT_SOURCE} characters`)
  try {
    new RegExp(source, flags)
  } catch (error) {
    refuse((error as Error).message)
  }
  return new Parser(source, flags).parse()
}

class Parser {
  private at = 0
  private readonly source: string
  private readonly fold: boolean
  private readonly dot: Uint8Array

  constructor(source: string, flags: string) {
    this.source = source
    this.fold = flags.includes('i')
    this.dot = inverted(flags.includes('s') ? setOf() : setOf([10, 10], [13, 13]))
  }

  parse(): { node: Node; anchored: boolean } {
    const anchored = this.take('^')
    const node = this.choice()
    if (anchored && node.kind === 'choice') refuse("'^' before alternatives: write ^(?:a|b)")
    return { node, anchored }
  }

  private choice(): Node {
    const items = [this.sequence()]
    while (this.take('|')) items.push(this.sequence())
    return items.length === 1 ? items[0] : { kind: 'choice', items }
  }

  private sequence(): Node {
    const items: Node[] = []
    while (this.at < this.source.length && this.peek() !== '|' && this.peek() !== ')')
      items.push(this.repeated(this.atom()))
    return { kind: 'sequence', items }
  }

  private atom(): Node {
    const c = this.character()
    switch (c) {
      case '(': {
        if (this.take('?') && !this.take(':')) refuse('look-around and named groups are not supported')
        const node = this.choice()
        this.take(')')
        return node
      }
      case '[':
        return { kind: 'set', set: this.folded(this.bracket()) }
      case '.':
        return { kind: 'set', set: this.dot }
      case '^':
        return refuse("'^' is supported as the first character only")
      case '$':
        return refuse("'$' is not supported: where a stream ends is not known")
      case '\\':
        return { kind: 'set', set: this.folded(this.escape()) }
      default:
        return {
          kind: 'sequence',
          items: [...Buffer.from(c)].map(byte => ({ kind: 'set', set: this.folded(setOf([byte, byte])) })),
        }
    }
  }

  private repeated(item: Node): Node {
    const [, text, low, comma, high] = /^(?:([*+?])|\{(\d+)(?:(,)(\d*))?\})/.exec(this.source.slice(this.at)) ?? ['']
    if (text === undefined && low === undefined) return item
    this.at = this.source.indexOf(text ?? '}', this.at) + 1
    this.take('?')
    const infinity = Number.POSITIVE_INFINITY
    const min = text === undefined ? Number(low) : text === '+' ? 1 : 0
    const max =
      text === undefined
        ? comma === undefined
          ? min
          : high === ''
            ? infinity
            : Number(high)
        : text === '?'
          ? 1
          : infinity
    return { kind: 'repeat', item, min, max }
  }

  /** What follows a backslash: a set of bytes. */
  private escape(): Uint8Array {
    const c = this.character()
    if (CLASSES[c] !== undefined) return CLASSES[c]
    if (ESCAPES[c] !== undefined && !(c === '0' && /\d/.test(this.peek()))) return setOf([ESCAPES[c], ESCAPES[c]])
    if (c === 'x') {
      const hex = this.source.slice(this.at, this.at + 2)
      if (!/^[0-9a-f]{2}$/i.test(hex)) refuse("'\\x' needs two hexadecimal digits")
      this.at += 2
      const byte = Number.parseInt(hex, 16)
      return setOf([byte, byte])
    }
    if (/[0-9A-Za-z]/.test(c) || c.charCodeAt(0) > 127) refuse(`'\\${c}' is not supported`)
    return setOf([c.charCodeAt(0), c.charCodeAt(0)])
  }

  /** A character class, behind its opening bracket. */
  private bracket(): Uint8Array {
    const negated = this.take('^')
    const set = new Uint8Array(256)
    while (!this.take(']')) {
      const low = this.member()
      const high = this.peek() === '-' && this.source[this.at + 1] !== ']' && this.take('-') ? this.member() : low
      if (high !== low && (one(low) < 0 || one(high) < 0))
        refuse('a range in brackets needs a single character at both ends')
      if (high === low) for (let byte = 0; byte < 256; byte++) set[byte] |= low[byte]
      else set.fill(1, one(low), one(high) + 1)
    }
    // Folding comes before negation: [^a] under flag i excludes both a and A.
    return negated ? inverted(this.folded(set)) : set
  }

  private member(): Uint8Array {
    const c = this.character()
    if (c === '\\') return this.take('b') ? setOf([8, 8]) : this.escape()
    if (c.charCodeAt(0) > 127) refuse(`'${c}' in brackets is more than one byte`)
    return setOf([c.charCodeAt(0), c.charCodeAt(0)])
  }

  private folded(set: Uint8Array): Uint8Array {
    if (!this.fold) return set
    const both = set.slice()
    for (let upper = 65; upper <= 90; upper++) both[upper] = both[upper + 32] = set[upper] | set[upper + 32]
    return both
  }

  private peek(): string {
    return this.source[this.at] ?? ''
  }

  private character(): string {
    const c = String.fromCodePoint(this.source.codePointAt(this.at)!)
    this.at += c.length
    return c
  }

  private take(c: string): boolean {
    if (this.peek() !== c) return false
    this.at += c.length
    return true
  }
}

function setOf(...ranges: [number, number][]): Uint8Array {
  const set = new Uint8Array(256)
  for (const [low, high] of ranges) set.fill(1, low, high + 1)
  return set
}

function inverted(set: Uint8Array): Uint8Array {
  return set.map(member => 1 - member)
}

/** The only byte of a set, or -1. */
function one(set: Uint8Array): number {
  const first = set.indexOf(1)
  return first === set.lastIndexOf(1) ? first : -1
}

function refuse(why: string): never {
  throw new DetourError('bad-config', why)
}
