// A thread of bench/pipeline: one pipeline and nothing else, as in a worker that forwards. What the compiler takes for a
// constant because there is one of it (the pool, its arrays, the tables) it does not where there are two.

import { parentPort, workerData } from 'node:worker_threads'
import { Batch } from '../src/memory/batch.ts'
import { StageCounters } from '../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../src/memory/pool.ts'
import { Decap } from '../src/pipeline/decap.ts'
import { Encap } from '../src/pipeline/encap.ts'
import { inlineStages } from '../src/pipeline/inlining.ts'
import { frameTemplate, Steady, type SteadyOptions, steadyTunnel } from '../test/pipeline/steady.ts'

/** What a thread does: into the tunnel and out of it, or all the way; `idle` makes and turns the packets only. */
export type ThreadInput =
  | { what: 'tunnel'; kind: 'geneve' | 'vxlan'; outer: 4 | 6 }
  | ({ what: 'there' | 'idle' } & SteadyOptions)

inlineStages()
const run = start(workerData as ThreadInput)
/** Asked for so many packets, it answers with ns a packet. */
parentPort?.on('message', (packets: number) => {
  const from = process.hrtime.bigint()
  run(packets)
  parentPort?.postMessage(Number(process.hrtime.bigint() - from) / packets)
})

function start(input: ThreadInput): (packets: number) => void {
  if (input.what === 'tunnel') return tunnel(input.kind, input.outer)
  const steady = new Steady(input)
  // Enters all flows, as near as random order does.
  steady.run(Math.max(100_000, input.flows * 4))
  if (input.what === 'there') return packets => steady.run(packets)
  return packets => {
    for (let i = 0; i < packets; i += 256) steady.idle()
  }
}

/** Encapsulation and decapsulation alone, of a batch over and over. */
function tunnel(kind: 'geneve' | 'vxlan', outer: 4 | 6): (packets: number) => void {
  const pool = new Pool(createPool({ frames: 256, frameSize: 1024, headroom: HEADROOM }))
  const batch = filled(pool)
  const config = steadyTunnel(kind, outer, 'zero')
  const encap = new Encap(pool, new StageCounters('encap'), config)
  const decap = new Decap(pool, new StageCounters('decap'), config, { anyPeer: true, keep: false, anyInner: false })
  return packets => {
    for (let i = 0; i < packets; i += batch.length) {
      encap.run(batch)
      decap.run(batch)
    }
  }
}

/** A batch of classified frames. */
function filled(pool: Pool): Batch {
  const batch = new Batch()
  const template = frameTemplate(4)
  while (batch.room > 0) {
    const frame = pool.alloc()
    const start = pool.start[frame]
    pool.bytes.set(template, start)
    pool.length[frame] = template.length
    pool.network[frame] = start + 14
    pool.hash[frame] = Math.imul(frame, 0x9e3779b1)
    batch.push(frame)
  }
  return batch
}
