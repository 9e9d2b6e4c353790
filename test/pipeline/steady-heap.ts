// A child program that runs the steady path and says what it did to the heap. To be run with --expose-gc and --trace-gc.
//
// argv: tunnel, outer and inner IP version, packets, heap bytes that are little enough to stop. Prints `begin` and `end`
// around the packets, and then JSON.

import { writeSync } from 'node:fs'
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

// The compilers allocate too, until they are done; what a packet allocates, it does each time.
let allocated = Number.POSITIVE_INFINITY
writeSync(1, '\nbegin\n')
for (let round = 0; round < 4 && allocated > Number(enough); round++) {
  const before = process.memoryUsage().heapUsed
  steady.run(Number(packets))
  allocated = Math.min(allocated, process.memoryUsage().heapUsed - before)
  await new Promise(resolve => setTimeout(resolve, 20))
}
writeSync(1, '\nend\n')
const copied = steady.counters.stages.reduce((sum, { row }) => sum + row[COLUMN.COPIED_BYTES], 0)
writeSync(1, `\n${JSON.stringify({ allocated, copied, lost: free - steady.pool.available })}\n`)
