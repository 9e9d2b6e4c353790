// Coalescing: finds in a batch the packets that follow each other in one flow and can leave together as one super-packet,
// each part gathered from where it lies. What Linux does with packets that arrive (GRO: inet_gro_receive, tcp_gro_receive,
// udp_gro_receive_segment), under the same condition: whoever segments the super-packet gets the same packets back.
//
//   batch   A0   B0   A1   C0   A2   B1           super-packets   A0 A1 A2,  B0 B1,  C0
//
// Packets of a flow stay in order: a packet that cannot follow begins anew, behind what is there of its flow. IPv4
// identifications count up, or stay what they were where DF makes them mean nothing (RFC 6864 section 4.1).
//
// NB: a super-packet's checksum is computed anew, so a part is only taken when its own is right: one that is neither partial
// nor verified is summed here. Otherwise what was corrupted on the way would be sent on with a valid checksum.

import { BATCH, type Batch } from '../memory/batch.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { LARGEST_SUPER_PACKET } from '../os/tun.ts'
import { u16 } from '../wire/bytes.ts'
import { fold, pseudo } from '../wire/checksum.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import { CAPABILITY } from './device.ts'

const { TCP, UDP } = ipv4.PROTOCOL

/** Flows that grow at a time; two of one slot take turns. A power of two. */
const SLOTS = 64
/** Datagrams in a super-packet: what every kernel takes (UDP_MAX_SEGMENTS, 128 since 6.9). */
const DATAGRAMS = 64
/** Flags that end a super-packet, which has them in its last segment, and those that keep a segment out altogether. */
const LAST = tcp.FIN | tcp.PSH
const ALONE = tcp.SYN | tcp.RST | tcp.URG | tcp.CWR
/** Of the word with data offset, flags and window all but LAST. */
const SAME = ~(LAST << 16)

/** In front of a device that segments. One thread. */
export class Coalescer {
  /** By position in the batch: where the next part of the same super-packet is, -1 behind the last. */
  readonly next = new Int32Array(BATCH)
  /** By position in the batch: 1 when the packet is a part of one that began before it. */
  readonly joined = new Uint8Array(BATCH)
  /** By position in the batch, of the first part: bytes of payload that follow it, and how many parts. */
  readonly bytes = new Int32Array(BATCH)
  readonly parts = new Int32Array(BATCH)

  private readonly pool: Pool
  private readonly tcp4: boolean
  private readonly tcp6: boolean
  private readonly udp4: boolean
  private readonly udp6: boolean
  // What grows in each slot: positions in the batch of its first and last part, -1 for nothing; the next sequence number;
  // payload bytes of a part; the step of the identification, -1 until the second part tells.
  private readonly first = new Int32Array(SLOTS)
  private readonly last = new Int32Array(SLOTS)
  private readonly sequence = new Int32Array(SLOTS)
  private readonly size = new Int32Array(SLOTS)
  private readonly step = new Int32Array(SLOTS)
  // Of the packet at hand, and of the first part that it might follow.
  private slot = 0
  private ip = 0
  private transport = 0
  private payload = 0
  private end = 0
  private protocol = 0

  constructor(pool: Pool, capabilities: number) {
    this.pool = pool
    this.tcp4 = (capabilities & CAPABILITY.TSO4) !== 0
    this.tcp6 = (capabilities & CAPABILITY.TSO6) !== 0
    this.udp4 = (capabilities & CAPABILITY.USO4) !== 0
    this.udp6 = (capabilities & CAPABILITY.USO6) !== 0
  }

  /** Finds what belongs together among the first BATCH frames of a batch; returns how many frames joined another. */
  find(batch: Batch): number {
    const { next, joined, parts, bytes, first, last } = this
    const { frames } = batch
    const length = Math.min(batch.length, BATCH)
    first.fill(-1)
    let found = 0
    for (let i = 0; i < length; i++) {
      next[i] = -1
      joined[i] = 0
      parts[i] = 1
      bytes[i] = 0
      const frame = frames[i]
      if (!this.look(frame)) {
        // It may be a fragment: nothing of any flow overtakes it.
        first.fill(-1)
        continue
      }
      const { slot } = this
      const head = first[slot]
      if (head >= 0 && this.follows(frame, frames[head], head)) {
        next[last[slot]] = i
        joined[i] = 1
        last[slot] = i
        const added = this.end - this.payload
        parts[head]++
        bytes[head] += added
        found++
        if (added < this.size[slot] || this.isLast()) first[slot] = -1
        else if (this.protocol === TCP) this.sequence[slot] = (this.sequence[slot] + added) | 0
      } else first[slot] = this.begin(frame, i)
    }
    return found
  }

  /** Makes the packet at position `i` of the batch the head of its super-packet: headers and metadata, as if the other parts lay behind it. */
  unite(batch: Batch, i: number): void {
    const { pool, bytes, next } = this
    const b = pool.bytes
    const frame = batch.frames[i]
    this.look(frame)
    const { ip, transport, payload, protocol, end } = this
    const size = end - payload
    const total = end + bytes[i]
    if (b[ip] >>> 4 === 4) {
      ipv4.setTotalLength(b, ip, total - ip)
      ipv4.updateChecksum(b, ip)
    } else ipv6.setPayloadLength(b, ip, total - ip - ipv6.HEADER)
    const sum = fold(pseudo(b, ip, protocol, total - transport))
    if (protocol === TCP) {
      tcp.setChecksum(b, transport, sum)
      let at = i
      while (next[at] >= 0) at = next[at]
      const tail = pool.start[batch.frames[at]] + (transport - pool.start[frame])
      tcp.setFlags(b, transport, tcp.flags(b, transport) | (tcp.flags(b, tail) & LAST))
    } else {
      udp.setLength(b, transport, total - transport)
      udp.setChecksum(b, transport, sum)
    }
    pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
    pool.checksumStart[frame] = transport
    pool.checksumOffset[frame] = protocol === TCP ? tcp.CHECKSUM : udp.CHECKSUM
    pool.gso[frame] = protocol === UDP ? GSO.UDP : b[ip] >>> 4 === 4 ? GSO.TCP4 : GSO.TCP6
    pool.gsoSize[frame] = size
    pool.payload[frame] = payload
  }

  /** Finds the headers of a TCP or UDP packet and its slot; false for what has none to tell its flow by. */
  private look(frame: number): boolean {
    const { pool } = this
    const { bytes: b, view } = pool
    const start = pool.start[frame]
    const ip = start + ETHERNET
    const limit = start + pool.length[frame]
    if (limit < ip + ipv4.HEADER + udp.HEADER) return false
    const type = u16(b, start + 12)
    let transport = 0
    let mix = 0
    if (type === ETHERTYPE.IPV4) {
      transport = ip + ipv4.headerLength(b, ip)
      this.protocol = ipv4.protocol(b, ip)
      this.end = ip + ipv4.totalLength(b, ip)
      if (ipv4.isFragment(b, ip) || transport < ip + ipv4.HEADER) return false
      mix = view.getInt32(ip + ipv4.SOURCE) ^ view.getInt32(ip + ipv4.DESTINATION)
    } else if (type === ETHERTYPE.IPV6) {
      transport = ip + ipv6.HEADER
      this.protocol = ipv6.nextHeader(b, ip)
      this.end = transport + ipv6.payloadLength(b, ip)
      if (this.end < transport) return false
      mix = view.getInt32(ip + ipv6.SOURCE + 12) ^ view.getInt32(ip + ipv6.DESTINATION + 12)
    } else return false
    if (this.end > limit || transport + udp.HEADER > this.end) return false
    if (this.protocol === UDP) this.payload = transport + udp.HEADER
    else if (this.protocol === TCP && transport + tcp.HEADER <= this.end)
      this.payload = transport + tcp.headerLength(b, transport)
    else return false
    this.ip = ip
    this.transport = transport
    mix = Math.imul(mix ^ view.getInt32(transport) ^ this.protocol, 0x9e3779b1)
    this.slot = mix >>> 26
    return true
  }

  /** The packet at hand as the first part of what may come; -1 when nothing can follow it. */
  private begin(frame: number, i: number): number {
    const { pool, slot, protocol, ip, transport, payload, end } = this
    const b = pool.bytes
    const size = end - payload
    const four = b[ip] >>> 4 === 4
    if (size <= 0 || pool.gso[frame] !== GSO.NONE || end !== pool.start[frame] + pool.length[frame]) return -1
    if (four && b[ip] !== 0x45) return -1
    if (protocol === TCP) {
      if (!(four ? this.tcp4 : this.tcp6)) return -1
      if (payload < transport + tcp.HEADER || (tcp.flags(b, transport) & (ALONE | LAST)) !== 0) return -1
      this.sequence[slot] = (tcp.sequence(b, transport) + size) | 0
    } else {
      if (!(four ? this.udp4 : this.udp6)) return -1
      if (udp.checksum(b, transport) === 0 || udp.length(b, transport) !== end - transport) return -1
    }
    this.last[slot] = i
    this.size[slot] = size
    this.step[slot] = -1
    return i
  }

  /** True when the packet at hand is the next part behind those that `first` began, at position `head` of the batch. */
  private follows(frame: number, first: number, head: number): boolean {
    const { pool, slot, protocol, ip, transport, payload, end } = this
    const { bytes: b, view } = pool
    const start = pool.start[frame]
    const by = pool.start[first] - start
    const size = end - payload
    if (size <= 0 || size > this.size[slot] || pool.gso[frame] !== GSO.NONE || end !== start + pool.length[frame])
      return false
    if (end - start + this.size[slot] + this.bytes[head] >= LARGEST_SUPER_PACKET) return false
    if (view.getInt32(transport) !== view.getInt32(transport + by) || !this.sameNetwork(start, by, ip)) return false
    if (protocol === TCP) {
      const word = view.getInt32(transport + 12)
      if (view.getInt32(transport + 4) !== this.sequence[slot]) return false
      if (view.getInt32(transport + 8) !== view.getInt32(transport + 8 + by)) return false
      if (tcp.urgentPointer(b, transport) !== tcp.urgentPointer(b, transport + by)) return false
      if (((word ^ view.getInt32(transport + 12 + by)) & SAME) !== 0 || (tcp.flags(b, transport) & ALONE) !== 0)
        return false
      for (let at = transport + tcp.HEADER; at < payload; at += 4)
        if (view.getInt32(at) !== view.getInt32(at + by)) return false
    } else {
      if (udp.checksum(b, transport) === 0 || udp.length(b, transport) !== end - transport) return false
      if (this.parts[head] === DATAGRAMS) return false
    }
    if (b[ip] >>> 4 === 4 && !this.countsUp(ip, ip + by, this.parts[head])) return false
    if (!this.isSound(frame, ip, transport, end)) return false
    if (this.parts[head] > 1) return true
    const headEnd = pool.start[first] + pool.length[first]
    return this.isSound(first, ip + by, transport + by, headEnd)
  }

  /** True when Ethernet and IP headers agree, but for lengths, identification and checksum. */
  private sameNetwork(start: number, by: number, ip: number): boolean {
    const { view } = this.pool
    if (view.getInt32(start) !== view.getInt32(start + by)) return false
    if (view.getInt32(start + 4) !== view.getInt32(start + 4 + by)) return false
    if (view.getInt32(start + 8) !== view.getInt32(start + 8 + by)) return false
    // EtherType and the first two bytes of the IP header: version, header length, DSCP, ECN.
    if (view.getInt32(start + 12) !== view.getInt32(start + 12 + by)) return false
    if (view.getUint8(ip) >>> 4 === 4) {
      if (view.getInt32(ip + 12) !== view.getInt32(ip + 12 + by)) return false
      if (view.getInt32(ip + 16) !== view.getInt32(ip + 16 + by)) return false
      return view.getInt32(ip + 6) === view.getInt32(ip + 6 + by)
    }
    if (view.getUint16(ip + 2) !== view.getUint16(ip + 2 + by)) return false
    if (view.getUint16(ip + 6) !== view.getUint16(ip + 6 + by)) return false
    for (let at = ip + 8; at < ip + ipv6.HEADER; at += 4) if (view.getInt32(at) !== view.getInt32(at + by)) return false
    return true
  }

  /** True when the identification is what segmentation gives the part number `n`. */
  private countsUp(ip: number, head: number, n: number): boolean {
    const { step, slot } = this
    const b = this.pool.bytes
    const difference = (ipv4.identification(b, ip) - ipv4.identification(b, head)) & 0xffff
    if (n === 1) step[slot] = difference === 0 && ipv4.dontFragment(b, ip) ? 0 : 1
    return difference === ((n * step[slot]) & 0xffff)
  }

  /** True when the packet's checksums are right, or the transport's is yet to be computed. */
  private isSound(frame: number, ip: number, transport: number, end: number): boolean {
    const { pool, protocol } = this
    const b = pool.bytes
    if (b[ip] >>> 4 === 4 && !ipv4.verifyChecksum(b, ip)) return false
    const offload = pool.offload[frame]
    if ((offload & OFFLOAD.NEEDS_CHECKSUM) !== 0) return pool.checksumStart[frame] === transport
    if ((offload & OFFLOAD.CHECKSUM_VALID) !== 0) return true
    return protocol === TCP ? tcp.verifyChecksum(b, ip, transport, end) : udp.verifyChecksum(b, ip, transport)
  }

  private isLast(): boolean {
    return this.protocol === TCP && (tcp.flags(this.pool.bytes, this.transport) & LAST) !== 0
  }
}
