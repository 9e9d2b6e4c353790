// Whether a text has all that a rule looks for in it, one behind the other (as Suricata's detect-engine-content-inspection does it).

import { type Automaton, STATE } from '../automaton.ts'
import { type Content, type Expression, isRelative, type Part } from './model.ts'

/** Bytes [at, end), the first of which is number `base` of its stream. */
export interface Text {
  bytes: Uint8Array
  view: DataView
  at: number
  end: number
  base: number
}

/** Searches for one rule in one text, at most: what is not found by then is not found (Suricata's inspection-recursion-limit). */
const LIMIT_SEARCHES = 3000
/** Bytes looked at by those, at most: a window more than a dozen times over. */
const LIMIT_BYTES = 1 << 17

const FEED = Uint8Array.of(10)

/** One buffer's parts of a rule, ready to be looked for; one thread. */
export class Matcher {
  private readonly parts: Part[]
  /** By part: its automaton where it is an expression, and whether the part behind it begins where it ends. */
  private readonly automata: (Automaton | undefined)[]
  private readonly leads: boolean[]
  private searches = 0
  private looked = 0

  constructor(parts: Part[], automatonOf: (expression: Expression) => Automaton) {
    this.parts = parts
    this.automata = parts.map(part => (part.kind === 'pcre' ? automatonOf(part) : undefined))
    this.leads = parts.map((_, i) => i + 1 < parts.length && isRelative(parts[i + 1]))
  }

  /** Whether all parts are there. */
  matches(text: Text): boolean {
    this.searches = 0
    this.looked = 0
    // What is relative without anything in front of it counts from the text's start.
    return this.from(0, text, text.at)
  }

  private from(number: number, text: Text, before: number): boolean {
    if (number === this.parts.length) return true
    const part = this.parts[number]
    return part.kind === 'content'
      ? this.content(part, number, text, before)
      : this.expression(part, number, text, before)
  }

  private content(part: Content, number: number, text: Text, before: number): boolean {
    const { bytes: needle, negated, distance, within, offset = 0, depth, atEnd } = part
    const origin = text.at - text.base
    let low: number
    let high = text.end
    if (isRelative(part)) {
      low = before + (distance ?? 0)
      if (within !== undefined) high = Math.min(high, before + (distance ?? 0) + within)
    } else {
      low = origin + offset
      if (depth !== undefined) high = Math.min(high, origin + offset + depth)
    }
    low = Math.max(low, text.at)
    for (;;) {
      if (++this.searches > LIMIT_SEARCHES || this.looked > LIMIT_BYTES) return false
      const found = atEnd ? endsWith(text.bytes, low, high, text.end, part) : find(text.bytes, low, high, part)
      this.looked += Math.max(0, (found < 0 ? high : found) - low)
      if (negated) return found < 0 && this.from(number + 1, text, before)
      if (found < 0) return false
      if (this.from(number + 1, text, found + needle.length)) return true
      // Only what counts from here can fare better elsewhere.
      if (!this.leads[number]) return false
      low = found + 1
    }
  }

  private expression(part: Expression, number: number, text: Text, before: number): boolean {
    if (this.looked > LIMIT_BYTES) return false
    const automaton = this.automata[number] as Automaton
    const start = part.relative ? before : text.at
    let state: number = STATE.START
    if (automaton.anchored && !part.relative && text.base > 0) state = STATE.DEAD
    else if (part.feedFront && text.base === 0) state = automaton.run(FEED, 0, 1, state)
    state = automaton.run(text.bytes, start, text.end, state)
    const after = automaton.stopped
    this.looked += after - start
    if (part.feedBack) state = automaton.run(FEED, 0, 1, state)
    return (state === STATE.MATCH) !== part.negated && this.from(number + 1, text, part.negated ? before : after)
  }
}

/** The place of a content's end, if that is the text's. */
function endsWith(
  bytes: Uint8Array,
  low: number,
  high: number,
  end: number,
  { bytes: needle, nocase }: Content,
): number {
  const at = end - needle.length
  return at >= low && end <= high && equals(bytes, at, needle, nocase) ? at : -1
}

/** The first place of a content within [low, high), or -1. */
function find(bytes: Uint8Array, low: number, high: number, { bytes: needle, nocase }: Content): number {
  const last = high - needle.length
  const first = needle[0]
  const upper = nocase && first >= 97 && first <= 122 ? first - 32 : first
  for (let at = low; at <= last; at++) {
    const byte = bytes[at]
    if ((byte === first || byte === upper) && equals(bytes, at, needle, nocase)) return at
  }
  return -1
}

function equals(bytes: Uint8Array, at: number, needle: Uint8Array, nocase: boolean): boolean {
  for (let i = 0; i < needle.length; i++) {
    const byte = bytes[at + i]
    if (byte !== needle[i] && !(nocase && byte >= 65 && byte <= 90 && (byte | 32) === needle[i])) return false
  }
  return true
}
