// Runs one bench in a process of its own, as bench/run starts it, so that no other bench's types are in its optimized code.

import { extname } from 'node:path'
import { Bench } from './harness.ts'

const [name, rounds, quick] = process.argv.slice(2)
const bench = new Bench({
  name,
  rounds: Number(rounds),
  short: quick === 'quick',
  record: result => void process.send?.(result),
})
const file: { run: (bench: Bench) => Promise<void> } = await import(`./${name}${extname(import.meta.url)}`)
await file.run(bench)
process.disconnect?.()
