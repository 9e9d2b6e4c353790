// Merges what several replay workers wrote into one capture file, in the order of the file that was replayed.

import { parentPort, workerData } from 'node:worker_threads'
import type { MergeJob, MergeResult } from '../src/control/worker-input.ts'
import { Origins, PcapReader, PcapWriter } from '../src/device/pcap.ts'
import { Batch } from '../src/memory/batch.ts'
import { Counters } from '../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../src/memory/pool.ts'

const { input, parts, output, format } = workerData as MergeJob
const counters = new Counters()
const frames = 512 * (parts.length + 1)
const pool = new Pool(createPool({ frames, frameSize: SUPER_FRAME, headroom: HEADROOM }))
const origins = new Origins(input.format)
const source = new PcapReader(pool, counters.stage('read'), input, { origins })
const writer = new PcapWriter(pool, counters.stage('write'), output, { format, origins })
const heads = parts.map(({ file, order }) => {
  const reader = new PcapReader(pool, counters.stage('read part'), file)
  return { reader, order, batch: new Batch(), at: 0, done: 0 }
})

type Head = (typeof heads)[number]

/** Makes sure that a head has a packet at hand; false when its file is at its end. */
function refill(head: Head): boolean {
  if (head.at < head.batch.length) return true
  head.at = head.batch.length = 0
  return head.reader.receive(head.batch) > 0
}

const out = new Batch(1)

/** Writes the packets that go back to the first `limit` of the source. */
function emit(limit: number): void {
  for (;;) {
    let first: Head | undefined
    let lowest = limit
    for (const head of heads) {
      if (!refill(head) || head.order[head.done] >= lowest) continue
      first = head
      lowest = head.order[head.done]
    }
    if (first === undefined) return
    const frame = first.batch.frames[first.at++]
    first.done++
    pool.sequence[frame] = lowest
    out.push(frame)
    writer.transmit(out)
  }
}

// NB: origins remembers only the last packets, so reading and writing take turns.
const read = new Batch()
while (source.receive(read) > 0) {
  pool.freeAll(read)
  emit(source.packets)
}
writer.close()
const faults = [writer, ...heads.map(({ reader }) => reader)].flatMap(({ fault }) => fault?.message ?? [])
parentPort?.postMessage({ faults } satisfies MergeResult)
