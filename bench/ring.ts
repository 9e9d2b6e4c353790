// How many frames a second go from one thread to another, by batch size: the ring against a message
// port and a queue on Atomics.wait. Every frame number is counted and summed on the other side. Where both threads do not have a
// processor each, whoever must wait sleeps, or it would spend the other's time.

import { extname } from 'node:path'
import { Worker } from 'node:worker_threads'
import { Batch } from '../src/memory/batch.ts'
import { createRing, Ring } from '../src/memory/ring.ts'
import type { Bench, Contender } from './harness.ts'
import { CAPACITY, CONTROL, type ConsumerData, WaitingQueue, type Way } from './ring-queue.ts'

const LIMIT_MS = 60_000

export async function run(bench: Bench): Promise<void> {
  for (const size of [1, 16, 256]) {
    const batches = bench.short ? 4000 : 40_000
    const ways: [name: string, way: Way][] = [
      ['message port', 'port'],
      ['queue on Atomics.wait', 'queue'],
      ['Ring, sleeping when empty', 'sleeping'],
      ['Ring, polling a little before', 'polling'],
    ]
    await bench.ask({
      name: `frames between two threads, batches of ${size}`,
      unit: 'million/s',
      better: 'more',
      contenders: ways.map(([name, way]): Contender => {
        return { name, rival: way === 'queue', measure: () => transfer(way, size, batches) }
      }),
    })
  }
}

/** Million frames a second to a thread of its own; the first tenth of them is not measured. */
async function transfer(way: Way, size: number, batches: number): Promise<number> {
  const memory = way === 'queue' ? WaitingQueue.memory() : createRing(CAPACITY)
  const shared = new SharedArrayBuffer(CONTROL.WORDS * 4)
  const worker = new Worker(new URL(`./ring-consumer${extname(import.meta.url)}`, import.meta.url), {
    workerData: { way, memory, shared } satisfies ConsumerData,
  })
  const failed = new Promise<never>((_, reject) => worker.once('error', reject))
  const online = new Promise(resolve => worker.once('online', resolve))
  try {
    await Promise.race([online, failed])
    const producer = new Producer(way, memory, shared, worker, size)
    producer.send(Math.ceil(batches / 10))
    const from = process.hrtime.bigint()
    producer.send(batches)
    return (batches * size) / (Number(process.hrtime.bigint() - from) / 1e3)
  } finally {
    await worker.terminate()
  }
}

class Producer {
  private readonly control: Int32Array
  private readonly push: (batch: Batch) => void
  private readonly batch: Batch
  private sent = 0
  private sum = 0
  private readonly ownSum: number

  constructor(way: Way, memory: SharedArrayBuffer, shared: SharedArrayBuffer, worker: Worker, size: number) {
    this.control = new Int32Array(shared)
    this.batch = new Batch(size)
    while (this.batch.room > 0) this.batch.push(this.batch.length * 7)
    this.ownSum = this.batch.frames.reduce((sum, frame) => sum + frame, 0)
    this.push = this.by(way, memory, worker)
  }

  private by(way: Way, memory: SharedArrayBuffer, worker: Worker): (batch: Batch) => void {
    const { control } = this
    if (way === 'queue') {
      const queue = new WaitingQueue(memory)
      return batch => queue.push(batch)
    }
    if (way === 'port')
      return batch => {
        // A port takes everything; unbounded, what it holds would be measured.
        while (((this.sent - Atomics.load(control, CONTROL.RECEIVED)) | 0) >= CAPACITY) nap()
        worker.postMessage(batch.frames)
      }
    const ring = new Ring(memory, 'producer')
    return batch => {
      let from = 0
      while ((from += ring.push(batch, from)) < batch.length) nap()
      if (ring.wake()) {
        Atomics.add(control, CONTROL.WAKE, 1)
        Atomics.notify(control, CONTROL.WAKE)
      }
    }
  }

  /** Sends batches and waits until the other side has them all. */
  send(batches: number): void {
    const { control, batch, push } = this
    for (let i = 0; i < batches; i++) {
      push(batch)
      this.sent = (this.sent + batch.length) | 0
      this.sum = (this.sum + this.ownSum) | 0
    }
    const limit = performance.now() + LIMIT_MS
    while (Atomics.load(control, CONTROL.RECEIVED) !== this.sent) {
      nap()
      if (performance.now() > limit)
        throw new Error(`${Atomics.load(control, CONTROL.RECEIVED)} of ${this.sent} frames arrived`)
    }
    if (Atomics.load(control, CONTROL.SUM) !== this.sum) throw new Error('other frames arrived than were sent')
  }
}

const nothing = new Int32Array(new SharedArrayBuffer(4))

function nap(): void {
  Atomics.wait(nothing, 0, 0, 0.02)
}
