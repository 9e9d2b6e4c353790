// What a TAP is given to write, behind its virtio-net headers, without a TAP.

import { expect } from 'vitest'
import { TapDevice } from '../../src/device/tap.ts'
import { BATCH, Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { addressOf, read } from '../../src/os/libc.ts'
import { load, type Packet } from '../pipeline/super.ts'
import { pair } from './pair.ts'

const HEADER = 24
const ALL = 0x1ef

const [fd, other] = pair()
const memory = createPool({ frames: BATCH, frameSize: SUPER_FRAME, headroom: HEADROOM })
const into = new Uint8Array(HEADER + 65_536)

/** What a TAP with these capabilities gets when the packets are transmitted in one batch. */
export function written(packets: Packet[], capabilities = ALL): Packet[] {
  const pool = new Pool(memory)
  const counters = new StageCounters('tap')
  const device = new TapDevice(pool, counters, { name: 'test', fd, headerSize: HEADER, capabilities })
  const batch = new Batch()
  for (const packet of packets) batch.push(load(pool, packet))
  device.transmit(batch)
  expect(pool.available).toBe(BATCH)
  const found: Packet[] = []
  for (let n = next(); n >= 0; n = next()) found.push(parse(into.slice(0, n)))
  expect(counters.row[COLUMN.OUT_PACKETS]).toBe(packets.length)
  expect(counters.row[COLUMN.OUT_BYTES]).toBe(packets.reduce((sum, { bytes }) => sum + bytes.length, 0))
  expect(counters.row[COLUMN.CALLS]).toBe(found.length)
  return found
}

const next = () => read(other, addressOf(into), into.length)

/** A virtio-net header and the frame behind it (linux/virtio_net.h). */
function parse(message: Uint8Array): Packet {
  const v = new DataView(message.buffer)
  const at = (offset: number) => v.getUint16(offset, true)
  return {
    bytes: message.subarray(HEADER),
    gso: message[1],
    gsoSize: at(4),
    offload: message[0],
    outerTransport: at(20),
    network: at(20) === 0 ? 14 : at(22),
    transport: at(6),
    payload: at(2),
    checksumOffset: at(8),
  }
}
