// What a comparison calls a fall, on made-up rounds.

import { describe, expect, it } from 'vitest'
import { compare, parseGate, show, type Verdict } from '../../bench/compare.ts'
import { pool, readResults } from '../../bench/result.ts'
import { folder, made } from './results.ts'

const file = folder()

describe('a ratio', () => {
  const cases: [what: string, then: number[], now: number[], verdict: Verdict][] = [
    ['as it was', [2, 2.1, 1.9, 2, 2], [2, 2.1, 1.9, 2, 2], 'same'],
    ['lower by less than the gate, beyond the spread', [2, 2, 2, 2, 2], [1.9, 1.9, 1.9, 1.9, 1.9], 'same'],
    ['lower by more than the gate, beyond the spread', [2, 2.1, 1.9, 2, 2], [1.7, 1.6, 1.7, 1.7, 1.8], 'fell'],
    [
      'lower by more than the gate, one good round within the spread',
      [2, 2.1, 1.9, 2, 2],
      [1.5, 1.5, 1.95, 1.5, 1.5],
      'noise',
    ],
    [
      'lower by more than the gate, within the spread of the base',
      [2, 2.1, 1.4, 2, 2],
      [1.5, 1.5, 1.5, 1.5, 1.5],
      'noise',
    ],
    ['higher by more than the gate, beyond the spread', [2, 2.1, 1.9, 2, 2], [2.5, 2.5, 2.5, 2.5, 2.5], 'rose'],
    ['higher within the spread', [2, 2.6, 1.9, 2, 2], [2.5, 2.5, 2.5, 2.5, 2.5], 'same'],
    ['lower, of two rounds', [2, 2, 2, 2, 2], [1, 1], 'rounds'],
    ['lower, of two rounds in the base', [2, 2], [1, 1, 1, 1, 1], 'rounds'],
    ['lower, of three rounds', [2, 2, 2], [1, 1, 1], 'fell'],
    ['under 1 and lower', [0.5, 0.5, 0.5], [0.4, 0.4, 0.4], 'fell'],
  ]
  it.each(cases)('%s', (_, then, now, verdict) => {
    const { rows, fallen, judged } = compare([made({ ratios: then })], [made({ ratios: now })], 0.1)
    expect(rows.map(row => row.verdict)).toEqual([verdict])
    expect(fallen).toEqual(verdict === 'fell' ? rows : [])
    expect(judged).toBe(verdict === 'rounds' ? 0 : 1)
  })

  it('is compared, not the number behind it: a machine of half the speed changes nothing', () => {
    const slow = { ...made(), median: 100, samples: [100, 100, 100, 100, 100], machine: 'a slow machine' }
    const comparison = compare([made()], [slow], 0.1)
    expect(comparison.fallen).toEqual([])
    expect(show(comparison, 0.1).join('\n')).toContain('a slow machine')
  })

  it('that is a rival’s or the baseline’s is nobody’s fall', () => {
    for (const nobody of [{ rival: true }, { contender: 'objects' }])
      expect(compare([made(nobody)], [made({ ...nobody, ratios: [1, 1, 1] })], 0.1).rows).toEqual([])
  })

  it('is of the rounds of all runs in a file', () => {
    const [both] = pool([made({ ratios: [1, 2, 3] }), made({ ratios: [4, 5, 6, 7] })])
    expect(both).toMatchObject({ rounds: 7, better: 4, betterLow: 2, betterHigh: 6, ratios: [1, 2, 3, 4, 5, 6, 7] })
    // The second run shows that the first one's narrow spread was luck.
    const base = pool([made({ ratios: [2, 2, 2] }), made({ ratios: [1.6, 1.6, 1.6] })])
    expect(compare(base, [made({ ratios: [1.7, 1.7, 1.7] })], 0.1).fallen).toEqual([])
  })
})

describe('what only one side has', () => {
  it('is listed: a question by its name, a contender of a common question by both', () => {
    const then = [
      made(),
      made({ contender: 'gone' }),
      made({ question: 'write' }),
      made({ question: 'write', contender: 'x' }),
    ]
    const now = [made(), made({ contender: 'new' }), made({ bench: 'ring', question: 'frames' })]
    const comparison = compare(then, now, 0.1)
    expect(comparison.onlyThen).toEqual(['wire: read: gone (to objects)', 'wire: write'])
    expect(comparison.onlyNow).toEqual(['wire: read: new (to objects)', 'ring: frames'])
    const said = show(comparison, 0.1).join('\n')
    for (const name of [...comparison.onlyThen, ...comparison.onlyNow]) expect(said).toContain(name)
  })

  it('includes a ratio to another baseline and a quick run’s smaller question', () => {
    expect(compare([made()], [made({ baseline: 'maps' })], 0.1)).toMatchObject({
      rows: [],
      onlyThen: ['wire: read: functions (to objects)'],
      onlyNow: ['wire: read: functions (to maps)'],
    })
    expect(compare([made()], [made({ quick: true })], 0.1)).toMatchObject({
      rows: [],
      onlyThen: ['wire: read'],
      onlyNow: ['wire: read (quick)'],
    })
  })
})

describe('what people read', () => {
  it('is an aligned table and a verdict that names what fell', () => {
    const question = 'encapsulate: a rather long question'
    const then = [made(), made({ question, ratios: [10, 10, 10] })]
    const now = [made({ ratios: [1, 1, 1] }), made({ question, ratios: [10, 10, 10] })]
    const lines = show(compare(then, now, 0.1), 0.1)
    const [titles, first, second] = lines
    for (const line of [first, second]) expect(line.indexOf('functions')).toBe(titles.indexOf('contender'))
    expect(first).toMatch(/wire: read +functions +2\.00x +2\.00 to 2\.00 +1\.00x +1\.00 to 1\.00 +-50% +FELL$/)
    expect(second).toContain('+0%')
    expect(lines.slice(-2)).toEqual(['1 of 2 ratios fell by more than 10%:', '  wire: read: functions: -50%'])
  })

  it('says when nothing could be compared', () => {
    expect(show(compare([made()], [made({ question: 'other' })], 0.1), 0.1)).toContain('Nothing could be compared.')
  })
})

describe('a gate', () => {
  it.each([
    ['10%', 0.1],
    ['0.1', 0.1],
    ['2.5%', 0.025],
  ])('%s', (text, gate) => expect(parseGate(text)).toBeCloseTo(gate))

  it.each(['10', '0', '0%', '100%', '-5%', '10 %', 'x', ''])('is not %j', text => {
    expect(() => parseGate(text)).toThrow(`--gate '${text}'`)
  })
})

describe('a file of results', () => {
  const good = JSON.stringify(made())
  it.each([
    ['cut.jsonl', `${good}\n${good.slice(0, 50)}\n`, /cut\.jsonl:2: not a line of JSON/],
    ['other.jsonl', `${good}\n\n{"a":1}\n`, /other\.jsonl:3: not a bench result: bench/],
    ['array.jsonl', '[]\n', /array\.jsonl:1: not a bench result: the line/],
    ['zero.jsonl', JSON.stringify({ ...made(), ratios: [2, 0] }), /zero\.jsonl:1: not a bench result: ratios\.1/],
    ['empty.jsonl', '\n', /empty\.jsonl: no results/],
  ])('%s is refused with its place', (name, text, message) => {
    expect(() => readResults(file(name, text))).toThrow(message)
  })

  it('that is not there is named', () => {
    expect(() => readResults('/nowhere/base.jsonl')).toThrow('/nowhere/base.jsonl: no such file')
  })

  it('comes back as it was written', () => {
    expect(readResults(file('good.jsonl', [made(), made({ bench: 'tcp' })]))).toEqual([made(), made({ bench: 'tcp' })])
  })
})
