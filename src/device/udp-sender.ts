// The sending half of a UDP device: takes the outer headers off and sends what is behind them to where they say, many
// datagrams a call (sendmmsg(2)), neighbours of one peer and size in one message (UDP_SEGMENT, udp(7)), without a copy.
//
// The kernel reads its orders from one piece of memory (struct mmsghdr, 64 bytes each; iovec 16; sockaddr 32; control):
//
//    0 name   8 name length   16 iov   24 iov count   32 control   40 control length   48 flags   56 sent bytes
//
//   control:  traffic class 24 | source address 32 or 40, when the socket has many | datagram size 24, when several

import { DROP, type DropReason } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, type Pool } from '../memory/pool.ts'
import { AF, addressOf, ERRNO, POLL, poll, sendmmsg } from '../os/libc.ts'
import { LARGEST_SUPER_PACKET } from '../os/tun.ts'
import { SOCKADDR, UDP_OPTION, type UdpHandle } from '../os/udp.ts'
import { u16 } from '../wire/bytes.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'
import { Base } from './address.ts'

/** Messages a call; one more is kept for sending datagrams one by one. */
const MESSAGES = 64
/** Datagrams a message: what every kernel takes (UDP_MAX_SEGMENTS, 128 since 6.9). */
const SEGMENTS = 64
const IOVECS = MESSAGES * SEGMENTS
/** Bytes of a message: with Ethernet, IPv6 and UDP headers it is still a super-packet that a TAP at the far end takes whole. */
const LARGEST = LARGEST_SUPER_PACKET - 63

const MESSAGE = 64
const IOVEC = 16
const NAME = 32
const CONTROL = 96
const TOS_SPACE = 24
const CMSG = 16
const SIZE_SPACE = 24
/** From the UDP payload back to the destination port. */
const PORT = 6
/** Longest wait for room in the socket's buffer, once a batch. */
const WAIT_MS = 10

const O = UDP_OPTION

export class UdpSender {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly fd: number
  private readonly four: boolean
  private readonly manyAddresses: boolean
  private segment: boolean
  private readonly v: DataView
  private readonly b: Uint8Array
  private readonly at: number
  private readonly own: Base
  private readonly base: Base
  /** Where the datagram size stands in a control area. */
  private readonly sizeAt: number

  // The frames of message m are [firstFrame[m], firstFrame[m + 1]) of `frames`, an iovec each.
  private readonly frames = new Int32Array(IOVECS)
  private readonly payloads = new Int32Array(IOVECS)
  private readonly firstFrame = new Int32Array(MESSAGES + 1)
  private readonly pollfd = new Int32Array(2)
  private readonly pollfdAt = addressOf(this.pollfd)
  private messages = 0
  private used = 0
  // The message that may still grow: datagram size, bytes so far, and where its first frame's IP header and payload are.
  private size = 0
  private bytes = 0
  private first = 0
  private firstPayload = 0
  // Of the frame at hand.
  private ip = 0
  private payload = 0
  private length = 0

  constructor(pool: Pool, counters: StageCounters, handle: UdpHandle) {
    this.pool = pool
    this.counters = counters
    this.fd = handle.fd
    this.four = handle.family === 4
    this.manyAddresses = handle.address.every(byte => byte === 0)
    this.segment = handle.segment
    this.b = new Uint8Array(controlAt(MESSAGES + 1))
    this.v = new DataView(this.b.buffer)
    this.at = addressOf(this.b)
    this.own = new Base(this.b)
    this.base = new Base(pool.bytes)
    this.sizeAt = TOS_SPACE + (this.manyAddresses ? (this.four ? 32 : 40) : 0)
    for (let m = 0; m <= MESSAGES; m++) this.prepare(m)
  }

  /** Takes every frame of the batch and empties it. */
  transmit(batch: Batch): void {
    const { pool, counters } = this
    for (let i = 0; i < batch.length; i++) {
      const frame = batch.frames[i]
      const reason = this.find(frame)
      if (reason === 0) this.add(frame)
      else {
        counters.dropped(reason)
        pool.free(frame)
      }
    }
    batch.length = 0
    this.flush()
  }

  /** What never changes in the orders for a message. */
  private prepare(m: number): void {
    const { v, four, own } = this
    const control = controlAt(m)
    own.write(v, m * MESSAGE, nameAt(m))
    v.setUint32(m * MESSAGE + 8, four ? SOCKADDR.IPV4 : SOCKADDR.IPV6, true)
    own.write(v, m * MESSAGE + 32, control)
    v.setUint16(nameAt(m), four ? AF.INET : AF.INET6, true)
    setControl(v, control, four ? O.SOL_IP : O.SOL_IPV6, four ? O.IP_TOS : O.IPV6_TCLASS, 4)
    if (this.manyAddresses) {
      const source = control + TOS_SPACE
      setControl(v, source, four ? O.SOL_IP : O.SOL_IPV6, four ? O.IP_PKTINFO : O.IPV6_PKTINFO, four ? 12 : 20)
    }
    setControl(v, control + this.sizeAt, O.SOL_UDP, O.UDP_SEGMENT, 2)
  }

  /** Finds the outer headers and the datagram behind them. */
  private find(frame: number): DropReason {
    const { pool, four } = this
    const b = pool.bytes
    const end = pool.start[frame] + pool.length[frame]
    const ip = vlan.payloadAt(b, pool.start[frame], end)
    if (ip < 0) return -ip
    const bad = four ? ipv4.checkQuoted(b, ip, end) : ipv6.checkQuoted(b, ip, end)
    if (bad !== 0) return DROP.NOT_TUNNEL
    const transport = ip + (four ? ipv4.headerLength(b, ip) : ipv6.HEADER)
    const protocol = four ? ipv4.protocol(b, ip) : ipv6.nextHeader(b, ip)
    if (protocol !== ipv4.PROTOCOL.UDP || transport + udp.HEADER > end) return DROP.NOT_TUNNEL
    const gso = pool.gso[frame]
    if (gso !== GSO.NONE && (gso !== GSO.UDP || pool.gsoSize[frame] === 0)) return DROP.OFFLOAD
    this.ip = ip
    this.payload = transport + udp.HEADER
    this.length = end - this.payload
    return 0
  }

  /** Takes the frame: into the message that is growing, or into a new one. */
  private add(frame: number): void {
    const { pool, length } = this
    const several = pool.gso[frame] !== GSO.NONE
    const apart = several && !this.segment
    if (apart) this.flush()
    if (several || !this.fits(length)) this.begin(several ? pool.gsoSize[frame] : length)
    const { v, used } = this
    const m = this.messages - 1
    this.base.write(v, iovecAt(used), this.payload)
    v.setUint32(iovecAt(used) + 8, length, true)
    this.frames[used] = frame
    this.payloads[used] = this.payload
    this.used = used + 1
    this.bytes += length
    v.setUint32(m * MESSAGE + 24, this.used - this.firstFrame[m], true)
    if (this.bytes > this.size) v.setUint32(m * MESSAGE + 40, this.sizeAt + SIZE_SPACE, true)
    if (apart) this.flush()
  }

  /** True when the frame at hand may follow in the same message: same headers, and no datagram before it is shorter. */
  private fits(length: number): boolean {
    const { bytes, size, used, messages } = this
    if (!this.segment || messages === 0 || length > size || length === 0 || bytes + length > LARGEST) return false
    const count = used - this.firstFrame[messages - 1]
    return bytes === count * size && count < SEGMENTS && this.sameHeaders()
  }

  /** Same peer, port, traffic class and, where the socket has many addresses, source. */
  private sameHeaders(): boolean {
    const { first, ip, four } = this
    const b = this.pool.bytes
    if (u16(b, this.payload - PORT) !== u16(b, this.firstPayload - PORT)) return false
    if (four) {
      if (b[ip + 1] !== b[first + 1] || ipv4.destination(b, ip) !== ipv4.destination(b, first)) return false
      return !this.manyAddresses || ipv4.source(b, ip) === ipv4.source(b, first)
    }
    if (ipv6.trafficClass(b, ip) !== ipv6.trafficClass(b, first)) return false
    for (let i = this.manyAddresses ? 0 : 4; i < 8; i++)
      if (ipv6.word(b, ip, i) !== ipv6.word(b, first, i)) return false
    return true
  }

  /** Starts a message of datagrams of `size` bytes to where the frame at hand goes. */
  private begin(size: number): void {
    if (this.messages === MESSAGES) this.flush()
    const { v, b, ip, four, pool } = this
    const m = this.messages++
    const name = nameAt(m)
    const control = controlAt(m)
    const address = four ? 4 : 16
    const from = ip + (four ? ipv4.SOURCE : ipv6.SOURCE)
    v.setUint16(name + 2, u16(pool.bytes, this.payload - PORT))
    for (let i = 0; i < address; i++) b[name + (four ? 4 : 8) + i] = pool.bytes[from + address + i]
    v.setInt32(control + CMSG, four ? ipv4.tos(pool.bytes, ip) : ipv6.trafficClass(pool.bytes, ip), true)
    if (this.manyAddresses) {
      const source = control + TOS_SPACE + CMSG + (four ? 4 : 0)
      for (let i = 0; i < address; i++) b[source + i] = pool.bytes[from + i]
    }
    v.setUint16(control + this.sizeAt + CMSG, size, true)
    this.own.write(v, m * MESSAGE + 16, iovecAt(this.used))
    v.setUint32(m * MESSAGE + 40, this.sizeAt, true)
    this.firstFrame[m] = this.used
    this.size = size
    this.bytes = 0
    this.first = ip
    this.firstPayload = this.payload
  }

  /** Sends what was added; every frame is free afterwards. */
  private flush(): void {
    const { messages, counters } = this
    this.firstFrame[messages] = this.used
    let waited = false
    let refused = -1
    for (let m = 0; m < messages; ) {
      if (!this.segment && this.isSeveral(m)) {
        this.sendApart(m++)
        continue
      }
      const sent = sendmmsg(this.fd, this.at + m * MESSAGE, messages - m, 0)
      counters.called()
      if (sent > 0) {
        for (const end = m + sent; m < end; m++) this.account(m, 0)
      } else if (sent === -ERRNO.EAGAIN && !waited) {
        waited = true
        this.waitForRoom()
      } else if (sent === -ERRNO.ECONNREFUSED && refused !== m) {
        // Of an earlier packet, kept for a connected socket; this one was not tried.
        refused = m
        counters.failed()
      } else if (this.isSeveral(m) && (sent === -ERRNO.EIO || sent === -ERRNO.EINVAL || sent === -ERRNO.EMSGSIZE)) {
        if (sent === -ERRNO.EIO) this.segment = false
        this.sendApart(m++)
      } else this.account(m++, reasonOf(-sent))
    }
    this.messages = 0
    this.used = 0
  }

  /** True for a message of several datagrams. */
  private isSeveral(m: number): boolean {
    return this.v.getUint32(m * MESSAGE + 40, true) > this.sizeAt
  }

  /** Sends the datagrams of a message one by one: the route or the kernel does not take them together. */
  private sendApart(m: number): void {
    const { v, b, counters } = this
    const size = v.getUint16(controlAt(m) + this.sizeAt + CMSG, true)
    const one = MESSAGES * MESSAGE
    b.copyWithin(one, m * MESSAGE, (m + 1) * MESSAGE)
    this.own.write(v, one + 16, iovecAt(IOVECS))
    v.setUint32(one + 24, 1, true)
    v.setUint32(one + 40, this.sizeAt, true)
    for (let i = this.firstFrame[m]; i < this.firstFrame[m + 1]; i++) {
      const length = v.getUint32(iovecAt(i) + 8, true)
      let reason = 0
      for (let at = 0; at < length; at += size) {
        this.base.write(v, iovecAt(IOVECS), this.payloads[i] + at)
        v.setUint32(iovecAt(IOVECS) + 8, Math.min(size, length - at), true)
        const sent = sendmmsg(this.fd, this.at + one, 1, 0)
        counters.called()
        if (sent < 0) reason = reasonOf(-sent)
      }
      this.accountFrame(this.frames[i], reason)
    }
  }

  private waitForRoom(): void {
    this.pollfd[0] = this.fd
    this.pollfd[1] = POLL.OUT
    poll(this.pollfdAt, 1, WAIT_MS)
    this.counters.called()
  }

  private account(m: number, reason: DropReason): void {
    for (let i = this.firstFrame[m]; i < this.firstFrame[m + 1]; i++) this.accountFrame(this.frames[i], reason)
  }

  private accountFrame(frame: number, reason: DropReason): void {
    const { pool, counters } = this
    if (reason === 0) counters.sent(1, pool.length[frame])
    else counters.dropped(reason)
    pool.free(frame)
  }
}

/** NB: also without room for one datagram the kernel says EAGAIN; after waiting once it is a loss, as on a full device queue. */
function reasonOf(errno: number): DropReason {
  if (errno === ERRNO.EMSGSIZE) return DROP.OVERSIZED
  return errno === ERRNO.EAGAIN || errno === ERRNO.ENOBUFS ? DROP.DEVICE_FULL : DROP.DEVICE_ERROR
}

const iovecAt = (i: number) => (MESSAGES + 1) * MESSAGE + i * IOVEC
const nameAt = (m: number) => iovecAt(IOVECS + 1) + m * NAME
const controlAt = (m: number) => nameAt(MESSAGES + 1) + m * CONTROL

/** Header of a control message with `bytes` of data. */
function setControl(v: DataView, at: number, level: number, type: number, bytes: number): void {
  v.setUint32(at, CMSG + bytes, true)
  v.setInt32(at + 8, level, true)
  v.setInt32(at + 12, type, true)
}
