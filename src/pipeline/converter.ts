// Offline conversion: a capture into the tunnel or out of it, by the stages that live traffic goes through.

import type { PcapReader, PcapWriter } from '../device/pcap.ts'
import { FragmentTable } from '../flow/fragments.ts'
import { FIXED_SEED } from '../flow/hash.ts'
import { readKey } from '../flow/key.ts'
import { Batch } from '../memory/batch.ts'
import type { Counters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { Complete } from './complete.ts'
import { Decap } from './decap.ts'
import { Encap } from './encap.ts'
import { parse } from './parse.ts'
import type { TunnelConfig } from './tunnel.ts'

/** Fragmented datagrams that are remembered at a time; few, because they are forgotten with every piece. */
const FRAGMENTED = 512

/** One conversion: that thread only. */
export class Converter {
  private readonly pool: Pool
  private readonly reader: PcapReader
  private readonly stages: (batch: Batch) => void
  private readonly batch = new Batch()
  private readonly fragments = new FragmentTable(FRAGMENTED)

  constructor(
    pool: Pool,
    counters: Counters,
    reader: PcapReader,
    writer: PcapWriter,
    direction: 'encap' | 'decap',
    tunnel: TunnelConfig,
  ) {
    this.pool = pool
    this.reader = reader
    if (direction === 'encap') {
      const encap = new Encap(pool, counters.stage('encap'), tunnel)
      const complete = new Complete(pool, counters.stage('complete'), writer)
      this.stages = batch => {
        this.label(batch)
        encap.run(batch)
        complete.run(batch)
      }
    } else {
      const options = { anyPeer: true, keep: false, anyInner: true }
      const decap = new Decap(pool, counters.stage('decap'), { ...tunnel, innerVlan: true }, options)
      this.stages = batch => {
        decap.run(batch)
        writer.transmit(batch)
      }
    }
  }

  /** Converts the next batch; false at the end of the file. */
  step(): boolean {
    const n = this.reader.receive(this.batch)
    if (n > 0) this.stages(this.batch)
    return n > 0 || !this.reader.exhausted
  }

  /**
   * Goes to the reader's next piece; false when there is none. Fragments are not remembered from one piece to the next, so
   * that the result does not depend on which thread has which: of a datagram on a border the rest gets the port of an unknown one.
   */
  nextPiece(): boolean {
    this.fragments.clear()
    return this.reader.nextPiece()
  }

  /** Finds the flow of each packet, for the entropy of its source port; what is no flow is encapsulated all the same. */
  private label(batch: Batch): void {
    const { pool, fragments } = this
    const { frames, length } = batch
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const start = pool.start[frame]
      pool.attachment[frame] = 0
      pool.direction[frame] = 0
      const reason = parse(pool, frame, start, start + pool.length[frame])
      if (reason === 0 && readKey(pool, frame, fragments, FIXED_SEED, false) === 0) continue
      pool.hash[frame] = 0
      if (reason !== 0) pool.network[frame] = 0
    }
  }
}
