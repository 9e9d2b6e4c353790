// The prefilter finds exactly the needles that are there, as a search for each of them would.

import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Found, type Needle, Prefilter } from '../../../src/gateway/suricata/prefilter.ts'

/** Few letters, so that needles are there by chance. */
const letters = (max: number, min = 1) =>
  fc
    .array(fc.constantFrom(...Buffer.from('aAbB\x00@`\xff')), { minLength: min, maxLength: max })
    .map(bytes => Uint8Array.from(bytes))
const lower = (bytes: Uint8Array) => bytes.map(byte => (byte >= 65 && byte <= 90 ? byte | 32 : byte))
const needles = fc.array(
  fc
    .record({ bytes: letters(16), nocase: fc.boolean() })
    .map(({ bytes, nocase }): Needle => ({ bytes: nocase ? lower(bytes) : bytes, nocase })),
  { minLength: 1, maxLength: 40 },
)

it('finds what is there', () => {
  fc.assert(
    fc.property(needles, letters(120, 0), fc.nat(7), fc.nat(7), (all, text, front, back) => {
      const memory = new Uint8Array(front + text.length + back).fill(97)
      memory.set(text, front)
      const found = new Found(all.length)
      new Prefilter(all).scan(memory, new DataView(memory.buffer), front, front + text.length, found)
      const expected = all.flatMap(({ bytes, nocase }, i) =>
        Buffer.from(nocase ? lower(text) : text).includes(Buffer.from(bytes)) ? [i] : [],
      )
      expect([...found.list.subarray(0, found.count)].sort((a, b) => a - b)).toEqual(expected)
    }),
    { numRuns: 2000 },
  )
})
