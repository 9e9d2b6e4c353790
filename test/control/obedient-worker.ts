// A worker for the tests of spawn: does what its data says, then loops like a forwarding worker until asked to stop.

import { parentPort, workerData } from 'node:worker_threads'
import { stopRequested, type WorkerInput } from '../../src/control/spawn.ts'
import { DetourError } from '../../src/errors.ts'

const { port, behave, memory } = workerData as WorkerInput & { behave: string; memory: SharedArrayBuffer }
const words = new Int32Array(memory)
if (behave === 'refuse') throw new DetourError('unsupported', 'no tunnel GSO here; set rungs.offload: auto')
if (behave === 'exit') process.exit(3)
parentPort!.postMessage({ ready: behave })
if (behave === 'hang') for (;;) Atomics.add(words, 0, 1)
if (behave === 'break') throw new TypeError('b is undefined')
while (!stopRequested(port)) {
  // Waits as a worker waits for packets: only `wake` ends it.
  Atomics.wait(words, 1, 0)
  Atomics.add(words, 0, 1)
}
Atomics.store(words, 0, -1)
