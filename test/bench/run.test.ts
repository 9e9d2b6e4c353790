// `npm run bench --` as people run it: what it prints and its exit status.

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { keyOf, readResults, summarize } from '../../bench/result.ts'
import { folder, made } from './results.ts'

const program = new URL('../../dist/bench/run.js', import.meta.url).pathname
const file = folder()

function bench(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

describe('compare', () => {
  const base = file('base.jsonl', [made(), made({ bench: 'ring', question: 'frames' })])
  const slower = file('slower.jsonl', [made({ ratios: [1.5, 1.5, 1.5] }), made({ bench: 'ring', question: 'frames' })])

  it('is 0 when nothing fell', () => {
    const { status, stdout } = bench('--compare', base, '--with', base)
    expect(status).toBe(0)
    expect(stdout).toContain('No ratio of 2 fell by more than 10%.')
  })

  it('is 1 when something fell, which the gate decides', () => {
    expect(bench('--compare', base, '--with', slower)).toMatchObject({ status: 1, stderr: '' })
    expect(bench('--compare', base, '--with', slower, '--gate', '30%')).toMatchObject({ status: 0 })
  })

  it('looks at the named benches only', () => {
    const { status, stdout } = bench('ring', '--compare', base, '--with', slower)
    expect(status).toBe(0)
    expect(stdout).not.toContain('wire')
  })

  it('is 2 when there is nothing to compare', () => {
    const other = file('other.jsonl', [made({ question: 'another' })])
    expect(bench('wire', '--compare', base, '--with', other)).toMatchObject({ status: 2 })
  })

  it('is 2 for a file that is not there, before anything is measured', () => {
    const { status, stdout, stderr } = bench('wire', '--compare', '/nowhere.jsonl')
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toContain('/nowhere.jsonl: no such file')
  })

  it('is 2 for a malformed one, with its line', () => {
    const bad = file('bad.jsonl', `${JSON.stringify(made())}\n{\n`)
    const { status, stderr } = bench('--compare', base, '--with', bad)
    expect(status).toBe(2)
    expect(stderr).toContain('bad.jsonl:2: not a line of JSON')
  })
})

describe('usage', () => {
  it('helps with examples', () => {
    const { status, stdout } = bench('--help')
    expect(status).toBe(0)
    expect(stdout).toContain('npm run bench -- --compare base.jsonl --gate 10%')
  })

  it('lists every bench, each a file that is there', () => {
    const { status, stdout } = bench('--list')
    expect(status).toBe(0)
    const names = stdout
      .trimEnd()
      .split('\n')
      .map(line => /^(\w+) {2,}\S/.exec(line)?.[1])
    expect(names).toContain('checksum')
    for (const name of names) expect(existsSync(new URL(`../../bench/${name}.ts`, import.meta.url)), name).toBe(true)
  })

  it.each([
    [['nonsense'], "no bench is called 'nonsense'"],
    [['--rounds', '0'], '--rounds'],
    [['--gate', '10'], "--gate '10'"],
    [['--with', 'x.jsonl'], '--with FILE needs'],
    [['--quick', '--compare', 'x.jsonl'], '--compare needs --rounds 3'],
    [['--unknown'], '--unknown'],
  ])('refuses %j', (args, message) => {
    const { status, stderr } = bench(...args)
    expect(status).toBe(2)
    expect(stderr).toContain(message)
  })
})

describe('a run', () => {
  it('writes results and page; what fell is measured once more and then is 1', () => {
    const first = file('first.jsonl', '')
    const page = file('page.html', '')
    const measure = ['wire', '--quick', '--rounds', '3', '--html', page]
    expect(bench(...measure, '--json', first)).toMatchObject({ status: 0 })
    const results = readResults(first)
    expect(new Set(results.map(keyOf)).size).toBe(results.length)
    for (const result of results) {
      expect(result).toMatchObject({ bench: 'wire', quick: true, rounds: 3, baseline: 'an object a header' })
      if (result.contender === result.baseline) expect(result.ratios).toEqual([1, 1, 1])
    }
    expect(readFileSync(page, 'utf8')).toContain(results[0].question)
    const unreachable = results.map(result => {
      return summarize({ ...result, ratios: result.ratios.map(ratio => (result.rival ? ratio : ratio * 1e6)) })
    })
    const second = file('second.jsonl', '')
    const { status, stdout } = bench(...measure, '--compare', file('unreachable.jsonl', unreachable), '--json', second)
    expect(status).toBe(1)
    expect(stdout).toContain('measured once more, because something fell: wire')
    expect(stdout).toMatch(/3 of 3 ratios fell by more than 10%:/)
    expect(readResults(second)).toHaveLength(2 * results.length)
  })
})
