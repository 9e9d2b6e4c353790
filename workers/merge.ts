// Merges the capture files of several replay workers into one, by the order in which their packets were read.

import { workerData } from 'node:worker_threads'
import type { MergeJob } from '../src/control/worker-input.ts'
import { Origins, PcapReader, PcapWriter } from '../src/device/pcap.ts'
import { Batch } from '../src/memory/batch.ts'
import { Counters } from '../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../src/memory/pool.ts'

const { parts, output, format } = workerData as MergeJob
const counters = new Counters()
const pool = new Pool(createPool({ frames: 512 * parts.length, frameSize: SUPER_FRAME, headroom: HEADROOM }))
const writer = new PcapWriter(pool, counters.stage('write'), output, { format })
const heads = parts.map(({ file, order }) => {
  const reader = new PcapReader(pool, counters.stage('read'), file, { origins: new Origins(file.format) })
  return { reader, order, batch: new Batch(), at: 0, done: 0 }
})

/** Makes sure that a head has a packet at hand; false when its file is at its end. */
function refill(head: (typeof heads)[number]): boolean {
  if (head.at < head.batch.length) return true
  head.at = head.batch.length = 0
  return head.reader.receive(head.batch) > 0
}

const out = new Batch(1)
for (;;) {
  let first: (typeof heads)[number] | undefined
  for (const head of heads) {
    if (refill(head) && (first === undefined || head.order[head.done] < first.order[first.done])) first = head
  }
  if (first === undefined) break
  out.push(first.batch.frames[first.at++])
  first.done++
  writer.transmit(out)
}
writer.close()
