// Compares two runs by ratios: a contender's number over that of its baseline, measured beside it in the same round. A slower
// or busier machine slows both, so the ratio stays; absolute numbers are never compared.
//
// A ratio has fallen when both hold:
//   - its median is lower than it was by more than the gate;
//   - the intervals from the 10th to the 90th percentile of the rounds' ratios do not overlap, the new one being lower.
// With five rounds on both sides the intervals are whole ranges, and rounds of one and the same distribution come out so
// ordered in 1 of 252 comparisons, before the gate asks for more; with three in 1 of 20, with fewer nothing is judged.

import { type Column, type Paint, table } from '../src/cli/table.ts'
import { DetourError } from '../src/errors.ts'
import { number } from './harness.ts'
import { keyOf, type Result } from './result.ts'

/** Rounds that a comparison needs on both sides. */
export const MIN_ROUNDS = 3

/** What became of a ratio. Only `fell` is a failure. */
export type Verdict = 'fell' | 'rose' | 'same' | 'noise' | 'rounds'

/** One contender, then and now; rivals and baselines have none. */
export interface Row {
  bench: string
  question: string
  contender: string
  then: Result
  now: Result
  /** The ratio's: -0.1 is a tenth lower. */
  change: number
  verdict: Verdict
}

export interface Comparison {
  rows: Row[]
  fallen: Row[]
  /** Rows of which something can be said. */
  judged: number
  /** Questions and contenders that only one side has. */
  onlyThen: string[]
  onlyNow: string[]
  machines: string[]
}

/** Compares pooled results; `gate` is a fraction. */
export function compare(then: readonly Result[], now: readonly Result[], gate: number): Comparison {
  const byKey = new Map(now.map(result => [keyOf(result), result]))
  const rows = then.flatMap(before => {
    const after = byKey.get(keyOf(before))
    if (after === undefined || after.rival || after.contender === after.baseline) return []
    return [row(before, after, gate)]
  })
  return {
    rows,
    fallen: rows.filter(({ verdict }) => verdict === 'fell'),
    judged: rows.filter(({ verdict }) => verdict !== 'rounds').length,
    onlyThen: missing(then, now),
    onlyNow: missing(now, then),
    machines: [...new Set([...then, ...now].map(result => result.machine))],
  }
}

function row(then: Result, now: Result, gate: number): Row {
  const { bench, question, contender } = now
  const change = now.better / then.better - 1
  return { bench, question, contender, then, now, change, verdict: judge(then, now, change, gate) }
}

function judge(then: Result, now: Result, change: number, gate: number): Verdict {
  if (Math.min(then.rounds, now.rounds) < MIN_ROUNDS) return 'rounds'
  if (change < -gate) return now.betterHigh < then.betterLow ? 'fell' : 'noise'
  return change > gate && now.betterLow > then.betterHigh ? 'rose' : 'same'
}

/** What `results` have and `others` lack: a whole question by its name, else the contender. */
function missing(results: readonly Result[], others: readonly Result[]): string[] {
  const keys = new Set(others.map(keyOf))
  const name = ({ bench, question, quick }: Result) => `${bench}: ${question}${quick ? ' (quick)' : ''}`
  const questions = new Set(others.map(name))
  const gone = results.filter(result => !keys.has(keyOf(result)))
  const named = gone.map(result =>
    questions.has(name(result)) ? `${name(result)}: ${result.contender} (to ${result.baseline})` : name(result),
  )
  return [...new Set(named)]
}

const SAID: Record<Verdict, string> = {
  fell: 'FELL',
  rose: 'rose',
  same: '',
  noise: 'lower, within the spread',
  rounds: `under ${MIN_ROUNDS} rounds: not judged`,
}

/** The comparison as lines for people: a table, what only one side has, and a verdict. */
export function show(comparison: Comparison, gate: number, paint: Paint = (_, text) => text): string[] {
  const { rows, fallen, judged, onlyThen, onlyNow, machines } = comparison
  const columns: Column[] = [
    { title: 'question' },
    { title: 'contender' },
    ...['ratio then', 'spread', 'ratio now', 'spread', 'change'].map(title => ({ title, right: true })),
    { title: 'verdict' },
  ]
  const side = ({ better, betterLow, betterHigh }: Result) => [
    `${number(better)}x`,
    `${number(betterLow)} to ${number(betterHigh)}`,
  ]
  const cells = rows.map(({ bench, question, contender, then, now, change, verdict }) => [
    `${bench}: ${question}`,
    contender,
    ...[...side(then), ...side(now), percent(change), SAID[verdict]],
  ])
  const [titles, ...lines] = rows.length > 0 ? table(columns, cells) : ['']
  const coloured = lines.map((line, i) => (rows[i].verdict === 'fell' ? paint('red', line) : line))
  const limit = percent(gate).slice(1)
  const verdict =
    judged === 0
      ? 'Nothing could be compared.'
      : fallen.length === 0
        ? `No ratio of ${judged} fell by more than ${limit}.`
        : `${fallen.length} of ${judged} ratios fell by more than ${limit}:`
  return [
    ...(rows.length > 0 ? [paint('bold', titles), ...coloured, ''] : []),
    ...listed('Only in the base, so not compared:', onlyThen),
    ...listed('Not in the base, so not compared:', onlyNow),
    ...listed('Measured on more than one machine:', machines.length > 1 ? machines : []),
    verdict,
    ...fallen.map(row => `  ${row.bench}: ${row.question}: ${row.contender}: ${percent(row.change)}`),
  ]
}

function listed(title: string, names: string[]): string[] {
  return names.length === 0 ? [] : [title, ...names.map(name => `  ${name}`), '']
}

function percent(change: number): string {
  return `${change < 0 ? '-' : '+'}${Number((Math.abs(change) * 100).toFixed(1))}%`
}

/** The fraction that `10%` or `0.1` says. Throws `usage`. */
export function parseGate(text: string): number {
  const [, digits, percent] = /^(\d+(?:\.\d+)?)(%?)$/.exec(text) ?? []
  const gate = percent === '%' ? Number(digits) / 100 : Number(digits)
  if (gate > 0 && gate < 1) return gate
  throw new DetourError('usage', `--gate '${text}': allowed is a share such as 10% or 0.1, over 0% and under 100%`)
}
