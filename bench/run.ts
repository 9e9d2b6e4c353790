// Runs benches by name: `npm run bench -- flow tcp --rounds 7 --json results.jsonl`; all of them when none is
// named. A bench is a file here that exports `run(bench: Bench): Promise<void>`. `--quick` only sees that everything runs.

import { readdirSync } from 'node:fs'
import { basename, extname } from 'node:path'
import { parseArgs } from 'node:util'
import { Bench } from './harness.ts'

const extension = extname(import.meta.url)
const others = ['run', 'harness']
const known = readdirSync(new URL('.', import.meta.url))
  .filter(file => extname(file) === extension && !file.endsWith('.d.ts'))
  .map(file => basename(file, extension))
  .filter(name => !others.includes(name))

function usage(problem: string): never {
  console.error(
    `${problem}\nusage: npm run bench -- [NAME...] [--quick] [--rounds N] [--json FILE]\nnames: ${known.join(', ')}`,
  )
  process.exit(2)
}

function options() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: { rounds: { type: 'string' }, quick: { type: 'boolean', default: false }, json: { type: 'string' } },
    })
  } catch (error) {
    return usage((error as Error).message)
  }
}

const { values, positionals } = options()
const { quick: short, json } = values
const rounds = Number(values.rounds ?? (short ? 1 : 5))
if (!Number.isInteger(rounds) || rounds < 1) usage(`--rounds ${values.rounds}: a number from 1`)
for (const name of positionals) if (!known.includes(name)) usage(`no bench is called '${name}'`)

const bench = new Bench({ rounds, short, json })
console.log(bench.machine)
for (const name of positionals.length > 0 ? positionals : known) {
  console.log(`\n== ${name}`)
  const file: { run: (bench: Bench) => Promise<void> } = await import(`./${name}${extension}`)
  try {
    await file.run(bench)
  } catch (error) {
    console.error(`${name} failed:`, error)
    process.exitCode = 1
  }
}
