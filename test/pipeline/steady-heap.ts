// A child program that runs the steady path and says what it did to the heap. To be run with --expose-gc.
//
// argv: tunnel, outer and inner IP version, packets, heap bytes that are little enough to stop. Prints JSON.

import { writeSync } from 'node:fs'
import { PerformanceObserver } from 'node:perf_hooks'
import { COLUMN } from '../../src/memory/counters.ts'
import { Steady } from './steady.ts'

const [kind, outer, inner, packets, enough] = process.argv.slice(2)
const steady = new Steady({
  kind: kind as 'geneve' | 'vxlan',
  outer: Number(outer) as 4 | 6,
  inner: Number(inner) as 4 | 6,
  flows: 1000,
  outerChecksum: 'auto',
})
const free = steady.pool.available
steady.run(400_000)
const gc = (globalThis as { gc?: () => void }).gc
gc?.()
process.memoryUsage()

let collections = 0
new PerformanceObserver(list => (collections += list.getEntries().length)).observe({ entryTypes: ['gc'] })
const told = async () => {
  await new Promise(resolve => setTimeout(resolve, 20))
  for (let turn = 0; turn < 3; turn++) await new Promise(resolve => setImmediate(resolve))
}
await told()

// The compilers allocate too, until they are done, which takes long where they have to wait for a processor; and once in a
// while V8 tidies up for no other reason than the time. What a packet allocates, it does each time.
let allocated = Number.POSITIVE_INFINITY
for (let round = 0; round < 20 && allocated > Number(enough); round++) {
  collections = 0
  const before = process.memoryUsage().heapUsed
  steady.run(Number(packets))
  const grown = process.memoryUsage().heapUsed - before
  await told()
  if (collections === 0) allocated = Math.min(allocated, grown)
}
const copied = steady.counters.stages.reduce((sum, { row }) => sum + row[COLUMN.COPIED_BYTES], 0)
writeSync(1, JSON.stringify({ allocated, copied, lost: free - steady.pool.available }))
process.exit()
