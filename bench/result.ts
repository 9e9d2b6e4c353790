// What a bench run leaves: one result a contender, one JSON line a result; and the arithmetic of its rounds.

import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { DetourError } from '../src/errors.ts'

const numbers = z.array(z.number()).min(1)

const resultSchema = z.object({
  /** The file that asked: `tcp`. */
  bench: z.string(),
  question: z.string(),
  contender: z.string(),
  /** The contender that the ratios refer to, measured in the same rounds. */
  baseline: z.string(),
  unit: z.string(),
  /** Whether a smaller or a larger number is the better one. */
  goal: z.enum(['less', 'more']),
  /** Somebody else's work: shown beside ours, gates nothing. */
  rival: z.boolean(),
  /** Measured by `--quick`, whose questions are smaller. */
  quick: z.boolean(),
  rounds: z.int().min(1),
  /** In the unit: median, 10th and 90th percentile of the rounds. */
  median: z.number(),
  low: z.number(),
  high: z.number(),
  /** How many times better than the baseline; under 1 is worse. Median, 10th and 90th percentile of the rounds' own ratios. */
  better: z.number().positive(),
  betterLow: z.number().positive(),
  betterHigh: z.number().positive(),
  /** One number a round, in the order of measurement. */
  samples: numbers,
  ratios: z.array(z.number().positive()).min(1),
  machine: z.string(),
  /** The machine's load average of the last minute when the bench began. */
  load: z.number(),
  /** When it was measured: ISO 8601. */
  date: z.string(),
})

/** One contender's answer to one question. */
export type Result = z.infer<typeof resultSchema>

/** What is derived from the rounds. */
type Derived = 'rounds' | 'median' | 'low' | 'high' | 'better' | 'betterLow' | 'betterHigh'

/** Completes a result from its rounds. */
export function summarize(rounds: Omit<Result, Derived>): Result {
  const { samples, ratios } = rounds
  return {
    ...rounds,
    rounds: samples.length,
    ...{ median: quantile(samples, 0.5), low: quantile(samples, 0.1), high: quantile(samples, 0.9) },
    ...{ better: quantile(ratios, 0.5), betterLow: quantile(ratios, 0.1), betterHigh: quantile(ratios, 0.9) },
  }
}

/** One result for each contender of each question: rounds of several runs count as rounds of one, the newest run names the rest. */
export function pool(results: readonly Result[]): Result[] {
  const byKey = new Map<string, Result>()
  for (const result of results) {
    const key = keyOf(result)
    const before = byKey.get(key)
    const both = (name: 'samples' | 'ratios') => [...(before?.[name] ?? []), ...result[name]]
    byKey.set(key, summarize({ ...result, samples: both('samples'), ratios: both('ratios') }))
  }
  return [...byKey.values()]
}

/** Equal for results that answer the same question by the same means against the same baseline. */
export function keyOf({ bench, question, contender, baseline, quick }: Result): string {
  return JSON.stringify([bench, question, contender, baseline, quick])
}

/** Reads a file of JSON lines. Throws `not-found` or `bad-file`, which names the line. */
export function readResults(path: string): Result[] {
  const lines = read(path).split('\n')
  const results = lines.flatMap((line, i) => (line.trim() === '' ? [] : [parse(line, `${path}:${i + 1}`)]))
  if (results.length === 0) throw new DetourError('bad-file', `${path}: no results; write it by "--json ${path}"`)
  return results
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const why = code === 'ENOENT' ? 'no such file' : message
    throw new DetourError('not-found', `${path}: ${why}; write one by "npm run bench -- --json ${path}"`)
  }
}

function parse(line: string, where: string): Result {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (error) {
    throw new DetourError('bad-file', `${where}: not a line of JSON (${(error as Error).message})`)
  }
  const parsed = resultSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const [{ path, message }] = parsed.error.issues
  throw new DetourError('bad-file', `${where}: not a bench result: ${path.join('.') || 'the line'}: ${message}`)
}

/** The sample at a quantile of 0 to 1, none invented between two. */
export function quantile(samples: readonly number[], q: number): number {
  const sorted = samples.toSorted((x, y) => x - y)
  return sorted[Math.round(q * (sorted.length - 1))]
}
