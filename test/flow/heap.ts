// Counts what code that should not allocate does allocate.

import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/** What one reading of the heap itself allocates, and some. */
export const PER_READING = 1024

const ROUNDS = 5

/** Heap bytes that `steps` calls allocate, after as many to warm up; `steps * PER_READING` or less is nothing. */
export function allocatedBy(steps: number, step: (i: number) => void): number {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  for (let i = 0; i < steps; i++) step(i)
  // Code that is not compiled yet allocates, and a compiler may have to wait for a processor; what a call allocates, it does each time.
  let least = Number.POSITIVE_INFINITY
  for (let round = 0; round < ROUNDS && least > steps * PER_READING; round++) {
    gc()
    least = Math.min(least, allocatedOnce(steps, step))
  }
  return least
}

function allocatedOnce(steps: number, step: (i: number) => void): number {
  let allocated = 0
  // Read after each step, so that no collection comes between two readings and hides much.
  for (let i = 0; i < steps; i++) {
    const before = process.memoryUsage().heapUsed
    step(i)
    allocated += Math.max(0, process.memoryUsage().heapUsed - before)
  }
  return allocated
}
