// The consumer's thread of bench/ring: takes frames by one of the ways and counts them, until it is terminated.

import { parentPort, workerData } from 'node:worker_threads'
import { Batch } from '../src/memory/batch.ts'
import { Ring } from '../src/memory/ring.ts'
import { CONTROL, type ConsumerData, WaitingQueue } from './ring-queue.ts'

const { way, memory, shared } = workerData as ConsumerData
/** About as long as a wake-up takes. */
const POLLS = 2000

const control = new Int32Array(shared)
let received = 0
let sum = 0

function count(frames: Int32Array, length: number): void {
  for (let i = 0; i < length; i++) sum = (sum + frames[i]) | 0
  received = (received + length) | 0
  Atomics.store(control, CONTROL.SUM, sum)
  Atomics.store(control, CONTROL.RECEIVED, received)
}

const batch = new Batch()
if (way === 'port') parentPort?.on('message', (frames: Int32Array) => count(frames, frames.length))
else if (way === 'queue') {
  const queue = new WaitingQueue(memory)
  for (;;) {
    batch.length = 0
    queue.pop(batch)
    count(batch.frames, batch.length)
  }
} else {
  const ring = new Ring(memory, 'consumer')
  const polls = way === 'polling' ? POLLS : 1
  for (;;) {
    batch.length = 0
    const waked = Atomics.load(control, CONTROL.WAKE)
    for (let i = 0; i < polls && ring.pop(batch) === 0; i++);
    if (batch.length > 0) count(batch.frames, batch.length)
    else if (ring.sleep()) Atomics.wait(control, CONTROL.WAKE, waked)
  }
}
