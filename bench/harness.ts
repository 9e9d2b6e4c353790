// The bench harness: questions, each with contenders of which the first is the baseline, all measured in one run with
// the order alternated from round to round. Prints medians and spreads; a measurement that fails is a failure, never a number.

import { appendFileSync } from 'node:fs'
import { cpus, loadavg, release } from 'node:os'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import benny from 'benny'

/** One way of doing what the question asks about; `measure` returns a number in the question's unit, or throws. */
export interface Contender {
  name: string
  measure: () => number | Promise<number>
}

export interface Question {
  name: string
  /** `ns`, `Gbit/s`, `bytes`. */
  unit: string
  /** Whether a smaller or a larger number is the better one. */
  better: 'less' | 'more'
  /** The baseline first. */
  contenders: Contender[]
}

/** One contender's answer. */
export interface Result {
  question: string
  contender: string
  unit: string
  median: number
  /** 10th and 90th percentile of the rounds. */
  low: number
  high: number
  rounds: number
  /** How many times better than the baseline; under 1 is worse. */
  better: number
}

export interface BenchOptions {
  rounds: number
  /** Only to see that everything runs: benches measure less. */
  short: boolean
  /** A file that gets one JSON line a result. */
  json?: string
}

/** What a bench file's `run` is given. */
export class Bench {
  readonly short: boolean
  readonly machine = machine()
  private readonly rounds: number
  private readonly json: string | undefined

  constructor(options: BenchOptions) {
    this.rounds = options.rounds
    this.short = options.short
    this.json = options.json
  }

  /** Measures every contender `rounds` times and prints a table. Throws what a measurement throws. */
  async ask(question: Question): Promise<Result[]> {
    const { name, contenders } = question
    const samples = contenders.map((): number[] => [])
    for (let round = 0; round < this.rounds; round++) {
      for (let i = 0; i < contenders.length; i++) {
        const turn = round % 2 === 0 ? i : contenders.length - 1 - i
        progress(`${name}: round ${round + 1} of ${this.rounds}, ${contenders[turn].name}`)
        const sample = await contenders[turn].measure()
        if (!Number.isFinite(sample)) throw new Error(`${name}: ${contenders[turn].name} measured ${sample}`)
        samples[turn].push(sample)
      }
    }
    progress('')
    const results = contenders.map((contender, i) => summarize(question, contender.name, samples[i], samples[0]))
    print(question, results)
    for (const result of results) this.record(result)
    return results
  }

  /** Says why nothing is measured here. */
  skip(reason: string): void {
    console.log(`  skipped: ${reason}`)
  }

  private record(result: Result): void {
    if (this.json !== undefined) appendFileSync(this.json, `${JSON.stringify({ ...result, machine: this.machine })}\n`)
  }
}

/** A measurement by benny: median ns a call of `body`, which should do `calls` times what is asked about. */
export function calls(body: () => unknown, count = 1, maxTime = 0.2): () => Promise<number> {
  return async () => {
    const summary = await quietly(() =>
      benny.suite(
        '',
        benny.add('', () => void body(), { maxTime, minSamples: 5 }),
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
  return () => {
    gc()
    const from = process.memoryUsage().heapUsed
    body()
    return Math.max(0, process.memoryUsage().heapUsed - from) / count
  }
}

function summarize(question: Question, contender: string, samples: number[], baseline: number[]): Result {
  const median = quantile(samples, 0.5)
  const ratio = quantile(baseline, 0.5) / median
  return {
    question: question.name,
    contender,
    unit: question.unit,
    median,
    low: quantile(samples, 0.1),
    high: quantile(samples, 0.9),
    rounds: samples.length,
    better: question.better === 'less' ? ratio : 1 / ratio,
  }
}

function quantile(samples: number[], q: number): number {
  const sorted = samples.toSorted((x, y) => x - y)
  return sorted[Math.round(q * (sorted.length - 1))]
}

function print(question: Question, results: Result[]): void {
  const rows = results.map((result, i) => [
    result.contender,
    `${format(result.median)} ${result.unit}`,
    `${format(result.low)} to ${format(result.high)}`,
    i === 0 ? 'baseline' : `${format(result.better)}x`,
  ])
  const widths = [0, 1, 2, 3].map(column => Math.max(...rows.map(row => row[column].length)))
  console.log(
    `\n${question.name}  (${question.better} is better; median, 10th to 90th percentile of ${results[0].rounds})`,
  )
  for (const row of rows)
    console.log(`  ${row[0].padEnd(widths[0])}  ${[1, 2, 3].map(i => row[i].padStart(widths[i])).join('  ')}`)
}

function format(value: number): string {
  if (value >= 1000) return Math.round(value).toLocaleString('en-US')
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`)
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

function machine(): string {
  const model = cpus()[0]?.model ?? 'unknown processor'
  const date = new Date().toISOString().slice(0, 10)
  const load = `load ${loadavg()[0].toFixed(1)} at the start`
  return `${model}, ${cpus().length} cores, Linux ${release()}, Node ${process.version}, ${date}, ${load}`
}
