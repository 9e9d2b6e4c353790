// A process that gives every frame of a TAP back to it, as a worker with nothing to decide would.
//
// argv: virtio-net header size, capabilities. File descriptors: 0 tells to stop by closing, 3 the TAP, 4 the heartbeat map.
// Prints `ready` and, when told to stop, what it saw as JSON.

import { TapDevice } from '../../src/device/tap.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { Heartbeat } from '../../src/os/heartbeat.ts'
import { addressOf, POLL, poll } from '../../src/os/libc.ts'

const [headerSize, capabilities] = process.argv.slice(2).map(Number)
const pool = new Pool(createPool({ frames: 512, frameSize: SUPER_FRAME, headroom: HEADROOM }))
const counters = new StageCounters('tap')
const device = new TapDevice(pool, counters, { name: 'tap', fd: 3, headerSize, capabilities })
const heartbeat = new Heartbeat(4)
const batch = new Batch()
const waiting = Int32Array.of(0, POLL.IN, 3, POLL.IN)
let superPackets = 0
let rounds = 0

heartbeat.beat()
console.log('ready')
for (;;) {
  heartbeat.beat()
  const given = device.receive(batch)
  for (let i = 0; i < given; i++) if (pool.gso[batch.frames[i]] !== 0) superPackets++
  device.transmit(batch)
  if (given === 0 || ++rounds % 1024 === 0) {
    poll(addressOf(waiting), 2, given === 0 ? 20 : 0)
    if (waiting[1] >>> 16 !== 0) break
  }
}
const { row } = counters
console.log(
  JSON.stringify({
    received: row[COLUMN.IN_PACKETS],
    sent: row[COLUMN.OUT_PACKETS],
    bytes: row[COLUMN.OUT_BYTES],
    drops: counters.drops(),
    calls: row[COLUMN.CALLS],
    superPackets,
    free: pool.available,
    user: process.cpuUsage().user / 1e6,
    system: process.cpuUsage().system / 1e6,
  }),
)
