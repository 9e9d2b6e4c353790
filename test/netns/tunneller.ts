// A process that carries frames between a TAP and an underlay TAP in VXLAN, by hand: the least that shows what the
// underlay does to a tunnelled packet, super-packet or not, without any of the pipeline.
//
// argv: local and remote outer address in hex, VNI, capabilities of TAP and underlay. File descriptors: 0 tells to stop by
// closing, 3 the TAP, 4 the underlay TAP. Prints `ready` and, when told to stop, what it saw as JSON.

import { TapDevice } from '../../src/device/tap.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, GSO, HEADROOM, OFFLOAD, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { addressOf, POLL, poll } from '../../src/os/libc.ts'

const [local, remote] = process.argv.slice(2, 4).map(hex => Buffer.from(hex, 'hex'))
const [vni, tapCapabilities, underlayCapabilities] = process.argv.slice(4).map(Number)
const ipv4 = local.length === 4
const OUTER_IP = 14
const OUTER_UDP = OUTER_IP + (ipv4 ? 20 : 40)
const OUTER = OUTER_UDP + 16

const pool = new Pool(createPool({ frames: 512, frameSize: SUPER_FRAME, headroom: HEADROOM }))
const tapCounters = new StageCounters('tap')
const underlayCounters = new StageCounters('underlay')
const tap = new TapDevice(pool, tapCounters, { name: 'tap', fd: 3, headerSize: 24, capabilities: tapCapabilities })
const underlay = new TapDevice(pool, underlayCounters, {
  name: 'underlay',
  fd: 4,
  headerSize: 24,
  capabilities: underlayCapabilities,
})

const header = Buffer.alloc(OUTER)
header.writeUInt16BE(ipv4 ? 0x0800 : 0x86dd, 12)
if (ipv4) {
  header.writeUInt16BE(0x4500, OUTER_IP)
  header.writeUInt16BE(0x4011, OUTER_IP + 8)
  header.set(local, OUTER_IP + 12)
  header.set(remote, OUTER_IP + 16)
} else {
  header.writeUInt32BE(0x6000_0000, OUTER_IP)
  header.writeUInt16BE(0x1140, OUTER_IP + 6)
  header.set(local, OUTER_IP + 8)
  header.set(remote, OUTER_IP + 24)
}
header.writeUInt16BE(50_000, OUTER_UDP)
header.writeUInt16BE(4789, OUTER_UDP + 2)
header[OUTER_UDP + 8] = 8
header.writeUInt32BE(vni << 8, OUTER_UDP + 12)

function fold(sum: number): number {
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000)
  return sum
}

function sumOf(at: number, length: number): number {
  let sum = 0
  for (let i = 0; i < length; i += 2) sum += pool.view.getUint16(at + i)
  return sum
}

function encap(frame: number): void {
  const { view } = pool
  const inner = pool.start[frame]
  const start = inner - OUTER
  pool.bytes.set(header, start)
  pool.start[frame] = start
  pool.length[frame] += OUTER
  const ip = start + OUTER_IP
  const datagram = pool.length[frame] - OUTER_UDP
  view.setUint16(start + OUTER_UDP + 4, datagram)
  if (ipv4) {
    view.setUint16(ip + 2, datagram + 20)
    view.setUint16(ip + 10, ~fold(sumOf(ip, 20)))
  } else view.setUint16(ip + 4, datagram)
  if (pool.gso[frame] === GSO.NONE) return
  pool.gso[frame] |= ipv4 ? GSO.TUNNEL4 : GSO.TUNNEL6
  pool.outerTransport[frame] = start + OUTER_UDP
  pool.network[frame] = inner + 14
  if (ipv4) return
  pool.offload[frame] |= OFFLOAD.OUTER_CHECKSUM
  view.setUint16(start + OUTER_UDP + 6, fold(sumOf(ip + 8, 32) + datagram + 17))
}

function decap(frame: number): void {
  pool.start[frame] += OUTER
  pool.length[frame] -= OUTER
  pool.gso[frame] &= ~GSO.TUNNEL
  pool.offload[frame] &= OFFLOAD.NEEDS_CHECKSUM
  if (pool.checksumStart[frame] < pool.start[frame]) pool.offload[frame] = 0
}

const batch = new Batch()
const waiting = Int32Array.of(0, POLL.IN, 3, POLL.IN, 4, POLL.IN)
const supers = [0, 0]
let largest = 0
let rounds = 0
console.log('ready')
for (;;) {
  let moved = tap.receive(batch)
  for (let i = 0; i < batch.length; i++) {
    if (pool.gso[batch.frames[i]] !== 0) supers[0]++
    encap(batch.frames[i])
  }
  underlay.transmit(batch)
  moved += underlay.receive(batch)
  for (let i = 0; i < batch.length; i++) {
    const frame = batch.frames[i]
    if ((pool.gso[frame] & GSO.TUNNEL) !== 0) supers[1]++
    largest = Math.max(largest, pool.length[frame])
    decap(frame)
  }
  tap.transmit(batch)
  if (moved === 0 || ++rounds % 1024 === 0) {
    poll(addressOf(waiting), 3, moved === 0 ? 20 : 0)
    if (waiting[1] >>> 16 !== 0) break
  }
}
console.log(
  JSON.stringify({
    out: underlayCounters.row[COLUMN.OUT_PACKETS],
    in: underlayCounters.row[COLUMN.IN_PACKETS],
    drops: underlayCounters.drops() + tapCounters.drops(),
    supersOut: supers[0],
    supersIn: supers[1],
    largest,
    free: pool.available,
    user: process.cpuUsage().user / 1e6,
  }),
)
