// Packets of packets.json in a pool, as the pipeline would hand them to readKey.

import { FragmentTable } from '../../src/flow/fragments.ts'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { KEY, readKey } from '../../src/flow/key.ts'
import { createPool, KEY_WORDS, Pool } from '../../src/memory/pool.ts'
import { parse } from '../../src/pipeline/parse.ts'
import made from './packets.json' with { type: 'json' }

export interface Flow {
  protocol: number
  client: string
  clientPort: number
  server: string
  serverPort: number
}

export interface Packet {
  name: string
  flow: string
  sender: 'client' | 'server'
  hex: string
}

export const flows = made.flows as Record<string, Flow>
export const packets = made.packets as Packet[]

/** What readKey said of a packet. */
export interface Read {
  reason: number
  key: number[]
  hash: number
  reversed: number
}

/** Reads keys of packets that follow one another. The pool's bytes around a packet are `noise`. */
export class Reader {
  private readonly noise: number
  readonly pool = new Pool(createPool({ frames: 2, frameSize: 4096, headroom: 256 }))
  readonly fragments = new FragmentTable(64)
  withAttachment = true
  seed = FIXED_SEED

  constructor(noise = 0xa5) {
    this.noise = noise
  }

  read(bytes: Uint8Array, timeMs = 1000, attachment = 7): Read {
    const { pool } = this
    const frame = pool.alloc()
    const start = pool.start[frame]
    pool.bytes.fill(this.noise, frame * pool.frameSize, pool.limit(frame))
    pool.bytes.set(bytes, start)
    pool.length[frame] = bytes.length
    pool.time[frame] = timeMs
    pool.attachment[frame] = attachment
    const at = frame * KEY_WORDS
    pool.key.fill(-1, at, at + KEY_WORDS)
    let reason = parse(pool, frame, start, start + bytes.length)
    if (reason === 0) reason = readKey(pool, frame, this.fragments, this.seed, this.withAttachment)
    const key = [...pool.key.subarray(at, at + KEY.WORDS)]
    pool.free(frame)
    return { reason, key, hash: pool.hash[frame], reversed: pool.reversed[frame] }
  }
}

export const bytesOf = (packet: Packet): Uint8Array => Uint8Array.from(Buffer.from(packet.hex, 'hex'))
