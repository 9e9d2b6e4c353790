// A worker for the tests of spawn: does what its data says, then loops like a forwarding worker until asked to stop.

import { parentPort, workerData } from 'node:worker_threads'
import { serve, stopRequested, type WorkerInput } from '../../src/control/spawn.ts'
import { DetourError } from '../../src/errors.ts'

const { port, behave, memory } = workerData as WorkerInput & { behave: string; memory: SharedArrayBuffer }
const words = new Int32Array(memory)
if (behave === 'refuse') throw new DetourError('unsupported', 'no tunnel GSO here; set rungs.offload: auto')
if (behave === 'exit') process.exit(3)
parentPort!.postMessage({ ready: behave })
if (behave === 'hang') for (;;) Atomics.add(words, 0, 1)
if (behave === 'break') throw new TypeError('b is undefined')
const answer = (request: unknown) => {
  if (request === 'fail') throw new DetourError('not-found', 'there is no such pod')
  if (request === 'break') throw new TypeError('c is undefined')
  if (request === 'exit') process.exit(4)
  return [request, 'answered']
}
while (behave === 'answer' && !serve(port, answer)) Atomics.add(words, 0, 1)
while (behave !== 'answer' && !stopRequested(port)) {
  // Waits as a worker waits for packets: only `wake` ends it.
  Atomics.wait(words, 1, 0)
  Atomics.add(words, 0, 1)
}
Atomics.store(words, 0, -1)
