// Texts that are made for rules to search them again and again: an answer within bounds.

import { expect, it } from 'vitest'
import { Budget } from '../../../src/gateway/suricata/expressions.ts'
import { Matcher } from '../../../src/gateway/suricata/match.ts'
import { parseRules } from '../../../src/gateway/suricata/parse.ts'
import { textOf } from '../../../src/gateway/suricata/texts.ts'

function matcher(options: string): Matcher {
  const { signatures } = parseRules(
    [{ file: 'x', text: `alert tcp any any -> any any (${options} sid:1;)` }],
    {},
    'refuse',
  )
  const budget = new Budget()
  return new Matcher(signatures[0].parts[0].parts, ({ source, flags }) => budget.compile(source, flags))
}

/** Counts the bytes of a text that are read. */
function counting(text: string) {
  const plain = textOf(text)
  let reads = 0
  const bytes = new Proxy(plain.bytes, {
    get(target, key) {
      if (typeof key === 'string' && /^\d+$/.test(key)) reads++
      return Reflect.get(target, key)
    },
  })
  return { text: { ...plain, bytes }, reads: () => reads }
}

it.each([
  'content:"a"; content:"a"; distance:0; content:"a"; distance:0; content:"a"; distance:0; content:"b"; distance:0;',
  'content:"a"; content:"a"; within:5; content:"a"; within:5; content:"a"; within:5; content:"b"; within:5;',
  'content:"a"; pcre:"/[a-z]+9/R";',
])('%s', options => {
  const { text, reads } = counting('a'.repeat(8192))
  expect(matcher(options).matches(text)).toBe(false)
  expect(reads()).toBeLessThan(1 << 20)
  expect(reads()).toBeGreaterThan(8000)
})

it('goes back for what only a later place leads to', () => {
  const rule = matcher('content:"a"; content:"b"; distance:1; within:1; content:"c"; distance:0; within:1;')
  expect(rule.matches(textOf('a-b- a-b- axbc'))).toBe(true)
  expect(rule.matches(textOf('a-b- a-b- axb-c'))).toBe(false)
})
