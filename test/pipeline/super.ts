// Packets for the tests of complete and split: super-packets and others, tunnelled or not, as bytes with their
// positions, and how they get into a pool and out again.

import { Batch } from '../../src/memory/batch.ts'
import { GSO, OFFLOAD, type Pool } from '../../src/memory/pool.ts'

export interface Shape {
  tunnel?: 'geneve' | 'vxlan'
  outer: 4 | 6
  outerChecksum: boolean
  outerDf: boolean
  inner: 4 | 6
  protocol: 'tcp' | 'udp'
  /** Bytes of TCP options, a multiple of 4. */
  options: number
  /** Bytes of IPv4 options, a multiple of 4. */
  ipOptions: number
  flags: number
  payload: Uint8Array
  /** 0 for a frame that is no super-packet. */
  gsoSize: number
  /** The (inner) checksum is left partial. */
  partial: boolean
}

export const PLAIN: Shape = {
  outer: 4,
  outerChecksum: false,
  outerDf: true,
  inner: 4,
  protocol: 'tcp',
  options: 12,
  ipOptions: 0,
  flags: 0x18,
  payload: new Uint8Array(0),
  gsoSize: 0,
  partial: true,
}

export interface Packet {
  bytes: Uint8Array
  gso: number
  gsoSize: number
  offload: number
  /** Offsets from the first byte; 0 when there is none. */
  outerTransport: number
  network: number
  transport: number
  payload: number
  checksumOffset: number
}

const be = (v: number) => [(v >> 8) & 255, v & 255]

/** One's complement sum of 16-bit words, the slow and obvious way. */
export function plainSum(bytes: ArrayLike<number>): number {
  let sum = 0
  for (let i = 0; i < bytes.length; i += 2) sum += bytes[i] * 256 + (i + 1 < bytes.length ? bytes[i + 1] : 0)
  while (sum > 0xffff) sum = Math.floor(sum / 65536) + (sum % 65536)
  return sum
}

function ip(version: 4 | 6, protocol: number, length: number, options: number, df: boolean, net: number): number[] {
  if (version === 6) {
    const address = (host: number) => [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
    return [0x60, 0x02, 0x34, 0x56, ...be(length), protocol, 61, ...address(1), ...address(2)]
  }
  const size = 20 + options
  const header = [0x40 | (size >> 2), 2, ...be(size + length), 0xff, 0xfe, df ? 0x40 : 0, 0, 63, protocol, 0, 0]
  header.push(10, net, 0, 1, 10, net, 0, 2, ...new Array(options).fill(1))
  header.splice(10, 2, ...be(~plainSum(header) & 0xffff))
  return header
}

function pseudo(header: number[], protocol: number, length: number): number {
  const addresses = header[0] >> 4 === 4 ? header.slice(12, 20) : header.slice(8, 40)
  return plainSum([...addresses, 0, protocol, ...be(length >> 16), ...be(length & 0xffff)])
}

const mac = (type: number, tag: number) => [2, 0, 0, 0, tag, 2, 2, 0, 0, 0, tag, 1, ...be(type)]
const etherType = (version: 4 | 6) => (version === 4 ? 0x0800 : 0x86dd)

/** Builds the packet of a shape. Outer UDP checksum fields are 0. */
export function build(shape: Shape): Packet {
  const { payload, inner, outer, protocol, tunnel } = shape
  const number = protocol === 'tcp' ? 6 : 17
  const l4 =
    protocol === 'tcp'
      ? [...be(40000), ...be(40001), 0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4, ((20 + shape.options) >> 2) << 4, shape.flags]
      : [...be(40000), ...be(40001), ...be((8 + payload.length) & 0xffff), 0, 0]
  if (protocol === 'tcp') l4.push(...be(500), 0, 0, 0, 0, ...new Array(shape.options).fill(1))
  const length = l4.length + payload.length
  const innerIp = ip(inner, number, length, inner === 4 ? shape.ipOptions : 0, true, 7)
  const at = protocol === 'tcp' ? 16 : 6
  const sum = pseudo(innerIp, number, length)
  const whole = shape.partial ? sum : ~plainSum(be(sum).concat(l4, Array.from(payload))) & 0xffff || 0xffff
  l4.splice(at, 2, ...be(whole))
  const frame = [...mac(etherType(inner), 0x77), ...innerIp, ...l4]
  const head: number[] = []
  if (tunnel !== undefined) {
    const shim =
      tunnel === 'vxlan' ? [8, 0, 0, 0, 0, 0, 77, 0] : [2, 0, 0x65, 0x58, 0, 0, 77, 0, 0xff, 0xf0, 1, 1, 1, 2, 3, 4]
    const udpLength = 8 + shim.length + frame.length + payload.length
    head.push(...mac(etherType(outer), 0x66), ...ip(outer, 17, udpLength, 0, shape.outerDf, 8))
    head.push(...be(50000), ...be(tunnel === 'vxlan' ? 4789 : 6081), ...be(udpLength), 0, 0, ...shim)
  }
  const bytes = new Uint8Array(head.length + frame.length + payload.length)
  bytes.set(head)
  bytes.set(frame, head.length)
  bytes.set(payload, head.length + frame.length)
  const kind = protocol === 'udp' ? GSO.UDP : inner === 4 ? GSO.TCP4 : GSO.TCP6
  const network = head.length + 14
  return {
    bytes,
    gso: shape.gsoSize === 0 ? 0 : kind | (tunnel === undefined ? 0 : outer === 4 ? GSO.TUNNEL4 : GSO.TUNNEL6),
    gsoSize: shape.gsoSize,
    offload:
      (shape.partial ? OFFLOAD.NEEDS_CHECKSUM : 0) | (shape.outerChecksum && tunnel ? OFFLOAD.OUTER_CHECKSUM : 0),
    outerTransport: tunnel === undefined ? 0 : 14 + (outer === 4 ? 20 : 40),
    network,
    transport: network + innerIp.length,
    payload: network + innerIp.length + l4.length,
    checksumOffset: at,
  }
}

/** Puts a packet into a frame of the pool, with its metadata. */
export function load(pool: Pool, packet: Packet): number {
  const frame = pool.alloc()
  // Outer headers stand in the headroom, as after encap.
  const start = pool.start[frame] - (packet.outerTransport === 0 ? 0 : 100)
  pool.start[frame] = start
  pool.length[frame] = packet.bytes.length
  pool.bytes.set(packet.bytes, start)
  pool.gso[frame] = packet.gso
  pool.gsoSize[frame] = packet.gsoSize
  pool.offload[frame] = packet.offload
  pool.outerTransport[frame] = packet.outerTransport === 0 ? 0 : start + packet.outerTransport
  pool.network[frame] = start + packet.network
  pool.transport[frame] = start + packet.transport
  pool.payload[frame] = start + packet.payload
  pool.checksumStart[frame] = start + packet.transport
  pool.checksumOffset[frame] = packet.checksumOffset
  return frame
}

/** A packet as it lies in a frame. */
export function unload(pool: Pool, frame: number): Packet {
  const start = pool.start[frame]
  const at = (position: number) => (position === 0 ? 0 : position - start)
  return {
    bytes: pool.bytes.slice(start, start + pool.length[frame]),
    gso: pool.gso[frame],
    gsoSize: pool.gsoSize[frame],
    offload: pool.offload[frame],
    outerTransport: at(pool.outerTransport[frame]),
    network: at(pool.network[frame]),
    transport: at(pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM ? pool.checksumStart[frame] : pool.transport[frame]),
    payload: at(pool.payload[frame]),
    checksumOffset: pool.checksumOffset[frame],
  }
}

/** A device that keeps what it is given, and how large the batches were. */
export class Sink {
  readonly packets: Packet[] = []
  readonly batches: number[] = []
  readonly capabilities: number
  private readonly pool: Pool

  constructor(pool: Pool, capabilities: number) {
    this.pool = pool
    this.capabilities = capabilities
  }

  transmit(batch: Batch): void {
    this.batches.push(batch.length)
    for (let i = 0; i < batch.length; i++) this.packets.push(unload(this.pool, batch.frames[i]))
    this.pool.freeAll(batch)
  }
}

/** A batch of one frame. */
export function batchOf(...frames: number[]): Batch {
  const batch = new Batch(Math.max(1, frames.length))
  for (const frame of frames) batch.push(frame)
  return batch
}

/** Bytes that tell one position from another. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length)
  let state = seed * 2654435761
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) | 0
    bytes[i] = state >>> 16
  }
  return bytes
}
