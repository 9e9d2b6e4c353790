// The bench harness: questions, each with contenders of which the first is the baseline, all measured in one run with
// the order alternated from round to round. Each round has its own ratio to its own baseline, so that what slows the whole
// machine slows both. Prints medians and spreads; a measurement that fails is a failure, never a number.

import { cpus, loadavg, release } from 'node:os'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import benny from 'benny'
import { table } from '../src/cli/table.ts'
import { type Result, summarize } from './result.ts'

export type { Result } from './result.ts'

/** What measures, and how many processes waited for it when it began. */
export const machine = `${cpus()[0]?.model ?? 'unknown processor'}, ${cpus().length} cores, Linux ${release()}, Node ${process.version}`
export const load = loadavg()[0]

/** One way of doing what the question asks about; `measure` returns a number in the question's unit, or throws. */
export interface Contender {
  name: string
  measure: () => number | Promise<number>
  /** Somebody else's work, for comparison only: no change of it is our regression. */
  rival?: boolean
}

export interface Question {
  name: string
  /** `ns`, `Gbit/s`, `bytes`. */
  unit: string
  /** Whether a smaller or a larger number is the better one. */
  better: 'less' | 'more'
  /** The baseline first. */
  contenders: Contender[]
  /** Numbers under this count as this in ratios: where 0 is a good answer, or what cannot be told from it. */
  resolution?: number
}

export interface BenchOptions {
  /** The file that asks: `tcp`. */
  name: string
  rounds: number
  /** Only to see that everything runs: benches measure less. */
  short: boolean
  /** Takes every result as it is there. */
  record?: (result: Result) => void
}

/** What a bench file's `run` is given. */
export class Bench {
  readonly short: boolean
  private readonly options: BenchOptions

  constructor(options: BenchOptions) {
    this.options = options
    this.short = options.short
  }

  /** Measures every contender `rounds` times and prints a table. Throws what a measurement throws. */
  async ask(question: Question): Promise<Result[]> {
    const { name, contenders } = question
    const { rounds, record } = this.options
    const samples = contenders.map((): number[] => [])
    const progress = new Progress(`${name}: ${rounds} rounds of ${contenders.length} contenders`)
    for (let round = 0; round < rounds; round++) {
      for (let i = 0; i < contenders.length; i++) {
        const turn = round % 2 === 0 ? i : contenders.length - 1 - i
        progress.show(`${name}: round ${round + 1} of ${rounds}, ${contenders[turn].name}`)
        const sample = await contenders[turn].measure()
        if (!Number.isFinite(sample)) throw new Error(`${name}: ${contenders[turn].name} measured ${sample}`)
        samples[turn].push(sample)
      }
    }
    progress.clear()
    const results = contenders.map((_, i) => this.result(question, i, samples))
    print(question, results)
    if (record !== undefined) for (const result of results) record(result)
    return results
  }

  /** Says why nothing is measured here. */
  skip(reason: string): void {
    console.log(`  skipped: ${reason}`)
  }

  private result(question: Question, i: number, samples: number[][]): Result {
    const { name, unit, better, contenders, resolution = 0 } = question
    const { short, options } = this
    const ratios = samples[i].map((sample, round) => {
      const [mine, base] = [sample, samples[0][round]].map(value => Math.max(value, resolution))
      const ratio = better === 'less' ? base / mine : mine / base
      if (ratio > 0 && Number.isFinite(ratio)) return ratio
      throw new Error(`${name}: no ratio of ${contenders[i].name} (${mine}) to ${contenders[0].name} (${base})`)
    })
    return summarize({
      ...{ bench: options.name, question: name, contender: contenders[i].name, baseline: contenders[0].name },
      ...{ unit, goal: better, rival: contenders[i].rival ?? false, quick: short },
      ...{ samples: samples[i], ratios, machine, load, date: new Date().toISOString() },
    })
  }
}

/** A measurement by benny: median ns a call of `body`, which should do `calls` times what is asked about. */
export function calls(body: () => unknown, count = 1, maxTime = 0.2): () => Promise<number> {
  return async () => {
    const summary = await quietly(() =>
      benny.suite(
        '',
        benny.add('', () => void body(), { maxTime, minTime: maxTime / 4, minSamples: 5 }),
        benny.complete(() => {}),
      ),
    )
    return (summary.results[0].details.median * 1e9) / count
  }
}

/** A measurement of one run of `body`, which does something `count` times: ns each. The first run is not measured: it is compiled in. */
export function each(count: number, body: () => void): () => number {
  let compiled = false
  return () => {
    if (!compiled) body()
    compiled = true
    const from = process.hrtime.bigint()
    body()
    return Number(process.hrtime.bigint() - from) / count
  }
}

/**
 * A measurement of the heap that one run of `body`, which does something `count` times, allocates: bytes each.
 * NB: what a collection in between frees is not seen, so `count` times what is expected must stay under a megabyte.
 */
export function heap(count: number, body: () => void): () => number {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  const used = () => process.memoryUsage().heapUsed
  return () => {
    gc()
    // Looking allocates too.
    const before = used()
    const from = used()
    body()
    return Math.max(0, used() - from - (from - before)) / count
  }
}

function print(question: Question, results: Result[]): void {
  const { rounds } = results[0]
  const range = (low: number, high: number) => (rounds === 1 ? '' : `${number(low)} to ${number(high)}`)
  const rows = results.map(({ contender, unit, median, low, high, better, betterLow, betterHigh }, i) => [
    `  ${contender}`,
    `${number(median)} ${unit}`,
    range(low, high),
    i === 0 ? 'baseline' : `${number(better)}x`,
    i === 0 ? '' : range(betterLow, betterHigh),
  ])
  const [middle, apart] = rounds === 1 ? ['once', ''] : ['median', 'spread']
  const titles = ['  contender', middle, apart, 'better', apart]
  const spread = rounds === 1 ? 'one round' : `spread: 10th to 90th percentile of ${rounds} rounds`
  console.log(`\n${question.name}  (${question.better} is better; ${spread})`)
  for (const line of table(
    titles.map((title, i) => ({ title, right: i > 0 })),
    rows,
  ))
    console.log(line)
}

/** A number of about three digits, the thousands grouped. */
export function number(value: number): string {
  if (value >= 1000) return Math.round(value).toLocaleString('en-US')
  if (value >= 1) return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)
  return value === 0 ? '0' : value.toPrecision(2)
}

/** What goes on, on standard error: a line redrawn on a terminal, elsewhere one line for what takes over a second. */
class Progress {
  private readonly summary: string
  private readonly from = performance.now()
  private told = false

  constructor(summary: string) {
    this.summary = summary
  }

  show(text: string): void {
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`)
    else if (!this.told && performance.now() - this.from > 1000) {
      this.told = true
      process.stderr.write(`${this.summary} ...\n`)
    }
  }

  clear(): void {
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  }
}

// benny announces every suite on the console.
async function quietly<T>(body: () => Promise<T>): Promise<T> {
  const { log } = console
  console.log = () => {}
  try {
    return await body()
  } finally {
    console.log = log
  }
}
