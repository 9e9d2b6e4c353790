// The receiving half of a UDP device: recvmmsg(2) straight into frames, and in front of each datagram the headers that
// the kernel took off, as far as the socket tells them: addresses, ports, DSCP and ECN.
//
// The kernel reads its orders from one piece of memory (struct mmsghdr, 64 bytes each; iovec 16; sockaddr 32; control):
//
//    0 name   8 name length   16 iov   24 iov count   32 control   40 control length   48 flags   56 received bytes

import { DROP } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { monotonicMs } from '../os/clock.ts'
import { addressOf, ERRNO, recvmmsg, setsockopt } from '../os/libc.ts'
import { SOCKADDR, UDP_OPTION, type UdpHandle } from '../os/udp.ts'
import { pseudo } from '../wire/checksum.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import { Base } from './address.ts'

/** Datagrams, or coalesced runs of them, a call. */
const MOST = 64
const FEWEST = 4
/** Bytes that one call should bring, so that a batch stays in the second-level cache. */
const BREATH_BYTES = 128 * 1024

/** Headers and payload of the largest packet. */
const LARGEST = ethernet.HEADER + 65_535

const MESSAGE = 64
const IOVEC = 16
const NAME = 32
const CONTROL = 128
const CMSG = 16
const TRUNCATED = 0x20

const O = UDP_OPTION

export class UdpReceiver {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly fd: number
  private readonly four: boolean
  /** Bytes of the headers in front of a datagram. */
  private readonly headers: number
  private readonly template: Uint8Array
  private readonly frames = new Int32Array(MOST)
  private ready = 0
  private wanted = MOST
  private readonly v: DataView
  private readonly b: Uint8Array
  private readonly at: number
  private readonly base: Base
  private tos = 0
  private segment = 0
  private local = 0

  constructor(pool: Pool, counters: StageCounters, handle: UdpHandle) {
    this.pool = pool
    this.counters = counters
    this.fd = handle.fd
    this.four = handle.family === 4
    this.template = template(handle)
    this.headers = this.template.length
    this.b = new Uint8Array(MOST * (MESSAGE + IOVEC + NAME + CONTROL))
    this.v = new DataView(this.b.buffer)
    this.at = addressOf(this.b)
    this.base = new Base(pool.bytes)
    const own = new Base(this.b)
    // A coalesced run that does not fit a frame would be lost as a whole.
    if (handle.gro && pool.frameSize - pool.headroom < LARGEST) setsockopt(handle.fd, O.SOL_UDP, O.UDP_GRO, 0)
    for (let i = 0; i < MOST; i++) {
      const message = i * MESSAGE
      own.write(this.v, message, nameAt(i))
      own.write(this.v, message + 16, iovecAt(i))
      this.v.setUint32(message + 24, 1, true)
      own.write(this.v, message + 32, controlAt(i))
      this.arm(i)
    }
  }

  receive(batch: Batch): number {
    const { pool, counters, v } = this
    const room = Math.min(batch.room, this.wanted)
    while (this.ready < room && this.post()) {}
    const count = Math.min(room, this.ready)
    if (count === 0) return 0
    const got = recvmmsg(this.fd, this.at, count, 0)
    counters.called()
    if (got <= 0) {
      // An ICMP error that the kernel kept for this socket (ECONNREFUSED and the like) costs no packet.
      if (got !== -ERRNO.EAGAIN) counters.failed()
      return 0
    }
    const now = monotonicMs()
    const before = batch.length
    let bytes = 0
    for (let i = 0; i < got; i++) {
      const frame = this.frames[i]
      const size = v.getUint32(i * MESSAGE + 56, true)
      bytes += size + this.headers
      if ((v.getUint32(i * MESSAGE + 48, true) & TRUNCATED) !== 0) {
        counters.dropped(DROP.OVERSIZED)
        pool.free(frame)
      } else {
        this.control(i)
        this.dress(i, frame, size)
        pool.time[frame] = now
        batch.push(frame)
      }
      this.arm(i)
    }
    counters.received(got, bytes)
    this.keep(got)
    if (bytes > BREATH_BYTES) this.wanted = Math.max(FEWEST, this.wanted >> 1)
    else if (got === this.wanted) this.wanted = Math.min(MOST, this.wanted << 1)
    return batch.length - before
  }

  /** Gives the empty frames back. */
  close(): void {
    while (this.ready > 0) this.pool.free(this.frames[--this.ready])
  }

  /** Lays one more empty frame out for a datagram. */
  private post(): boolean {
    const frame = this.pool.alloc()
    if (frame < 0) return false
    this.lay(this.ready++, frame)
    return true
  }

  /** The first frames went; the last ones take their places. */
  private keep(used: number): void {
    const left = this.ready - used
    for (let i = 0; i < used && i < left; i++) this.lay(i, this.frames[this.ready - 1 - i])
    this.ready = left
  }

  private lay(i: number, frame: number): void {
    const at = this.pool.start[frame] + this.headers
    this.frames[i] = frame
    this.base.write(this.v, iovecAt(i), at)
    this.v.setUint32(iovecAt(i) + 8, this.pool.limit(frame) - at, true)
  }

  /** The kernel overwrites what it was told about the room for name and control. */
  private arm(i: number): void {
    this.v.setUint32(i * MESSAGE + 8, SOCKADDR.IPV6, true)
    this.v.setUint32(i * MESSAGE + 40, CONTROL, true)
  }

  /** Reads the control messages: traffic class, own address, size of coalesced datagrams. */
  private control(i: number): void {
    const { v } = this
    const start = controlAt(i)
    const end = start + Math.min(CONTROL, v.getUint32(i * MESSAGE + 40, true))
    this.tos = 0
    this.segment = 0
    this.local = 0
    for (let at = start; at + CMSG <= end; ) {
      const size = v.getUint32(at, true)
      if (size < CMSG || at + size > end) return
      const level = v.getInt32(at + 8, true)
      const type = v.getInt32(at + 12, true)
      const data = at + CMSG
      if (level === O.SOL_IP && type === O.IP_TOS) this.tos = v.getUint8(data)
      else if (level === O.SOL_IPV6 && type === O.IPV6_TCLASS) this.tos = v.getUint8(data)
      else if (level === O.SOL_IP && type === O.IP_PKTINFO) this.local = data + 8
      else if (level === O.SOL_IPV6 && type === O.IPV6_PKTINFO) this.local = data
      else if (level === O.SOL_UDP && type === O.UDP_GRO) this.segment = v.getUint16(data, true)
      at += (size + 7) & ~7
    }
  }

  /** Writes the outer headers of a datagram of `size` bytes. */
  private dress(i: number, frame: number, size: number): void {
    const { pool, b, headers, four, segment, local, template } = this
    const { bytes } = pool
    const start = pool.start[frame]
    const ip = start + ethernet.HEADER
    const transport = start + headers - udp.HEADER
    const name = nameAt(i)
    bytes.set(template, start)
    udp.setLength(bytes, transport, udp.HEADER + size)
    udp.setSourcePort(bytes, transport, (b[name + 2] << 8) | b[name + 3])
    if (four) {
      ipv4.setTos(bytes, ip, this.tos)
      ipv4.setTotalLength(bytes, ip, ipv4.HEADER + udp.HEADER + size)
      for (let j = 0; j < 4; j++) bytes[ip + ipv4.SOURCE + j] = b[name + 4 + j]
      if (local !== 0) for (let j = 0; j < 4; j++) bytes[ip + ipv4.DESTINATION + j] = b[local + j]
      ipv4.updateChecksum(bytes, ip)
    } else {
      ipv6.setTrafficClass(bytes, ip, this.tos)
      ipv6.setPayloadLength(bytes, ip, udp.HEADER + size)
      for (let j = 0; j < 16; j++) bytes[ip + ipv6.SOURCE + j] = b[name + 8 + j]
      if (local !== 0) for (let j = 0; j < 16; j++) bytes[ip + ipv6.DESTINATION + j] = b[local + j]
    }
    udp.setChecksum(bytes, transport, pseudo(bytes, ip, ipv4.PROTOCOL.UDP, udp.HEADER + size))
    pool.length[frame] = headers + size
    // The kernel verified the checksum and did not keep it: what is there is a partial one, as of a packet never sent.
    pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
    pool.checksumStart[frame] = transport
    pool.checksumOffset[frame] = udp.CHECKSUM
    if (segment !== 0 && size > segment) {
      pool.gso[frame] = GSO.UDP
      pool.gsoSize[frame] = segment
      pool.payload[frame] = transport + udp.HEADER
    }
  }
}

const nameAt = (i: number) => MOST * (MESSAGE + IOVEC) + i * NAME
const iovecAt = (i: number) => MOST * MESSAGE + i * IOVEC
const controlAt = (i: number) => MOST * (MESSAGE + IOVEC + NAME) + i * CONTROL

/** The headers with everything that is the same for all datagrams. The Ethernet addresses are made up. */
function template({ family, address, port }: UdpHandle): Uint8Array {
  const four = family === 4
  const ip = ethernet.HEADER
  const transport = ip + (four ? ipv4.HEADER : ipv6.HEADER)
  const b = new Uint8Array(transport + udp.HEADER)
  ethernet.write(b, 0, 0x0200, 1, 0x0200, 2, four ? ethernet.ETHERTYPE.IPV4 : ethernet.ETHERTYPE.IPV6)
  if (four) {
    ipv4.write(b, ip, ipv4.HEADER, 0, 0, 0, ipv4.DONT_FRAGMENT, 64, ipv4.PROTOCOL.UDP, 0, 0)
    b.set(address, ip + ipv4.DESTINATION)
  } else {
    ipv6.write(b, ip, 0, 0, 0, ipv4.PROTOCOL.UDP, 64)
    b.set(address, ip + ipv6.DESTINATION)
  }
  udp.setDestinationPort(b, transport, port)
  return b
}
