// Made-up results for the bench suite's tests.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'
import { type Result, summarize } from '../../bench/result.ts'

type Given = Partial<Omit<Result, 'ratios'>> & { ratios?: number[] }

/** A result with these rounds' ratios to a baseline that takes 100 ns. */
export function made({ ratios = [2, 2, 2, 2, 2], ...more }: Given = {}): Result {
  return summarize({
    ...{ bench: 'wire', question: 'read', contender: 'functions', baseline: 'objects' },
    ...{ unit: 'ns', goal: 'less', rival: false, quick: false },
    samples: ratios.map(ratio => 100 / ratio),
    ratios,
    ...{ machine: 'a machine', load: 0.5, date: '2026-11-22T03:00:00.000Z' },
    ...more,
  })
}

/** A folder for files of one test file, removed after its tests. */
export function folder(): (name: string, results: readonly Result[] | string) => string {
  const path = mkdtempSync(join(tmpdir(), 'detour-bench-test-'))
  afterAll(() => rmSync(path, { recursive: true }))
  return (name, results) => {
    const text = typeof results === 'string' ? results : results.map(result => `${JSON.stringify(result)}\n`).join('')
    writeFileSync(join(path, name), text)
    return join(path, name)
  }
}
