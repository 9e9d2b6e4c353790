// Signature automata against JavaScript's own regular expressions, and what is refused.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Automaton, compilePattern, LIMIT_STATES, STATE } from '../../src/gateway/automaton.ts'

const latin1 = (text: string) => Uint8Array.from(Buffer.from(text, 'latin1'))

/** The position behind the earliest-ending match, or -1, by the automaton fed in pieces of `size`. */
function search(automaton: Automaton, text: string, size = text.length || 1): number {
  const bytes = latin1(text)
  let state: number = STATE.START
  for (let at = 0; at < bytes.length; at += size) {
    state = automaton.run(bytes, at, Math.min(at + size, bytes.length), state)
    if (state === STATE.MATCH) return automaton.stopped
  }
  return -1
}

/** The automaton, unless it would be too large. */
function compilable(regex: string, flags: string): Automaton | undefined {
  try {
    return compilePattern({ regex, flags })
  } catch (error) {
    if (/states|steps/.test(String(error))) return undefined
    throw error
  }
}

/** The same by RegExp: the shortest prefix that has a match. */
function oracle(regex: string, flags: string, text: string): number {
  for (let end = 1; end <= text.length; end++) if (new RegExp(regex, flags).test(text.slice(0, end))) return end
  return -1
}

const atom = fc.constantFrom(
  'a',
  'b',
  'c',
  'B',
  '.',
  '[ab]',
  '[^a]',
  '[a-c]',
  '\\d',
  '\\w',
  '\\s',
  '\\W',
  '\\n',
  '\\.',
  '\\x61',
  '1',
)
const regex = fc.letrec<{ any: string; choice: string; one: string }>(tie => ({
  one: fc.oneof(
    { maxDepth: 2, withCrossShrink: true },
    atom,
    atom,
    tie('choice').map(s => `(?:${s})`),
    tie('choice').map(s => `(${s})`),
  ),
  any: fc
    .array(fc.tuple(tie('one'), fc.constantFrom('', '', '', '*', '+', '?', '{2}', '{1,3}', '{2,}', '*?', '+?')), {
      minLength: 1,
      maxLength: 3,
    })
    .map(parts => parts.map(([s, q]) => s + q).join('')),
  choice: fc.array(tie('any'), { minLength: 1, maxLength: 2 }).map(parts => parts.join('|')),
}))
const text = fc
  .array(fc.constantFrom('a', 'b', 'c', 'A', 'B', '1', ' ', '\n', '\r', '.', '\xff'), { maxLength: 8 })
  .map(s => s.join(''))

describe('automaton', () => {
  test('finds what RegExp finds, and where, whole or in pieces', () => {
    let compared = 0
    fc.assert(
      fc.property(
        regex.choice,
        fc.boolean(),
        fc.constantFrom('', 'i', 's', 'is'),
        text,
        fc.integer({ min: 1, max: 5 }),
        (source, anchored, flags, input, size) => {
          const whole = anchored ? `^(?:${source})` : source
          fc.pre(!new RegExp(whole, flags).test(''))
          const automaton = compilable(whole, flags)
          fc.pre(automaton !== undefined)
          expect(search(automaton!, input), whole).toBe(oracle(whole, flags, input))
          expect(search(automaton!, input, size), `${whole} in pieces of ${size}`).toBe(oracle(whole, flags, input))
          compared++
        },
      ),
      { numRuns: 600 },
    )
    expect(compared).toBeGreaterThan(200)
  })

  test.each([
    ['GET /secret', '', 'POST / GET /secret HTTP', 18],
    ['get /secret', 'i', 'xGeT /SeCrEt', 12],
    ['^HTTP/1\\.[01] 5\\d\\d', '', 'HTTP/1.1 503 Busy', 12],
    ['^abc', '', 'xabc', -1],
    ['a.c', '', 'a\nc', -1],
    ['a.c', 's', 'a\nc', 3],
    ['é', '', Buffer.from('café').toString('latin1'), 5],
    ['[\\x80-\\xff]{3}', '', 'ab\x80\x90\xff', 5],
    ['\\/\\-\\[', '', '/-[', 3],
    ['a{,2}', '', 'a{,2}', 5],
    ['[]x]|[^]', '', 'q', 1],
  ])('/%s/%s in %j ends at %i', (source, flags, input, end) => {
    expect(search(compilePattern({ regex: source, flags }), input)).toBe(end)
  })

  test('literal bytes', () => {
    const automaton = compilePattern({ bytes: Uint8Array.of(0xde, 0xad, 0xde, 0xad, 0xbe) })
    const bytes = Uint8Array.of(0xde, 0xad, 0xde, 0xad, 0xde, 0xad, 0xbe, 0)
    expect(automaton.run(bytes, 0, bytes.length, STATE.START)).toBe(STATE.MATCH)
    expect(automaton.stopped).toBe(7)
  })

  test('a regular expression on which backtracking explodes takes one step a byte', () => {
    const automaton = compilePattern({ regex: '(a+)+b', flags: '' })
    expect(automaton.states).toBeLessThan(6)
    expect(automaton.run(latin1('a'.repeat(100_000)), 0, 100_000, STATE.START)).not.toBe(STATE.MATCH)
  })

  test.each([
    ['(', '', /Invalid regular expression/],
    ['a*', '', /empty string/],
    ['a$', '', /'\$'/],
    ['a^b', '', /'\^'/],
    ['^a|b', '', /\^\(\?:a\|b\)/],
    ['a\\b', '', /'\\b'/],
    ['(a)\\1', '', /'\\1'/],
    ['(?=a)a', '', /look-around/],
    ['(?<n>a)', '', /look-around/],
    ['(?<!a)b', '', /look-around/],
    ['\\u0041', '', /'\\u'/],
    ['\\cA', '', /'\\c'/],
    ['[é]', '', /more than one byte/],
    ['[\\d-z]', '', /range/],
    ['a', 'g', /flag 'g'/],
    [`(?:${'a{100}'.repeat(10)}){100}`, '', /steps/],
    ['a.{12}b', '', new RegExp(`${LIMIT_STATES} states`)],
    ['(?:){99999999999}a', '', /too complex/],
    ['(?:(?:(?:){4000}){4000}){4000}a', '', /too complex/],
    ['x'.repeat(513), '', /512 characters/],
    [`${'('.repeat(200)}a${')'.repeat(200)}{9}{9}`, '', /Invalid/],
  ])('refuses /%s/%s', (source, flags, message) => {
    expect(() => compilePattern({ regex: source, flags })).toThrow(message)
  })
})
