// Answers: what the gateway sends of its own accord for a packet that a rule resets. Made in front of the turn, as if
// they had come through the tunnel beside that packet, so they go back the same way.

import type { Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, type Pool } from '../memory/pool.ts'
import { isUnanswerable } from '../pipeline/classify.ts'
import type { Profile } from '../pipeline/profile.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'

/** Codes of "destination unreachable, communication administratively prohibited" (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1). */
const PROHIBITED4 = 13
const PROHIBITED6 = 1

/** Bytes of an ICMP error at most (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c). */
const LARGEST4 = 576
const LARGEST6 = 1280

/** Traffic class of ICMP errors: internetwork control (RFC 1812 section 4.3.2.5). */
const ERROR_TOS = 0xc0
const TTL = 64

/** ICMP errors a second, and in one burst, at most (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f). */
const RATE = 1000
const BURST = 100

const NOTHING = new Uint8Array(0)
const WINDOW = 0xffff

/** RFC 9110 section 15.5.4. */
const FORBIDDEN = new TextEncoder().encode(
  'HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 23\r\nConnection: close\r\n\r\nforbidden by a policy\r\n',
)

export class Answers {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly profile: Profile
  private readonly tunnel: TunnelConfig
  private allowance = BURST
  private lastMs = 0

  constructor(pool: Pool, counters: StageCounters, profile: Profile, tunnel: TunnelConfig) {
    this.pool = pool
    this.counters = counters
    this.profile = profile
    this.tunnel = tunnel
  }

  /** Appends up to two answers to `frame`, which stays the caller's and needs its inner headers found: resets, or an ICMP error to the sender. */
  make(frame: number, out: Batch): void {
    const { pool } = this
    if (pool.transport[frame] === 0) return
    if (pool.protocol[frame] === ipv4.PROTOCOL.TCP) this.reset(frame, out)
    else if (this.mayAnswer(frame)) this.prohibited(frame, out)
  }

  /** Appends the server's answer to a request that a policy forbids, and a reset for the server, which has not seen it. */
  forbid(frame: number, out: Batch): void {
    const { pool } = this
    const b = pool.bytes
    const at = pool.transport[frame]
    const sequence = tcp.sequence(b, at)
    const acknowledgment = tcp.acknowledgment(b, at)
    const next = sequence + packetEnd(pool, frame) - pool.payload[frame]
    this.segment(frame, out, true, acknowledgment, next, tcp.ACK | tcp.PSH | tcp.FIN, FORBIDDEN)
    this.segment(frame, out, false, sequence, acknowledgment, tcp.RST | tcp.ACK)
  }

  /** RFC 9293 section 3.10.7.1 (CLOSED) for the sender; for the receiver, a segment at the very number it waits for, as RFC 5961 section 3.2 demands. */
  private reset(frame: number, out: Batch): void {
    const { pool } = this
    const b = pool.bytes
    const at = pool.transport[frame]
    const flags = tcp.flags(b, at)
    if ((flags & tcp.RST) !== 0) return
    const sequence = tcp.sequence(b, at)
    const acknowledgment = tcp.acknowledgment(b, at)
    const acknowledges = (flags & tcp.ACK) !== 0
    const bytes = packetEnd(pool, frame) - pool.payload[frame]
    const next = sequence + bytes + ((flags & tcp.SYN) !== 0 ? 1 : 0) + ((flags & tcp.FIN) !== 0 ? 1 : 0)
    if (acknowledges) this.segment(frame, out, true, acknowledgment, 0, tcp.RST)
    else this.segment(frame, out, true, 0, next, tcp.RST | tcp.ACK)
    // Nobody has heard of a connection whose first SYN is stopped.
    if (acknowledges) this.segment(frame, out, false, sequence, acknowledgment, tcp.RST | tcp.ACK)
  }

  /** Makes a TCP segment, with or against the direction of `frame`. */
  private segment(
    frame: number,
    out: Batch,
    back: boolean,
    sequence: number,
    acknowledgment: number,
    flags: number,
    data: Uint8Array = NOTHING,
  ): void {
    const made = this.begin(frame, back, ipv4.PROTOCOL.TCP, tcp.HEADER + data.length, 0)
    if (made < 0) return
    const { pool } = this
    const b = pool.bytes
    const from = pool.transport[frame]
    const at = pool.transport[made]
    const source = tcp.sourcePort(b, from)
    const destination = tcp.destinationPort(b, from)
    tcp.write(
      b,
      at,
      tcp.HEADER,
      back ? destination : source,
      back ? source : destination,
      sequence,
      acknowledgment,
      flags,
      data.length === 0 ? 0 : WINDOW,
    )
    b.set(data, at + tcp.HEADER)
    pool.payload[made] = at + tcp.HEADER
    tcp.updateChecksum(b, pool.network[made], at, at + tcp.HEADER + data.length)
    this.finish(made, out)
  }

  private prohibited(frame: number, out: Batch): void {
    const { pool, counters } = this
    const b = pool.bytes
    const network = pool.network[frame]
    const four = b[network] >> 4 === 4
    const room = four ? LARGEST4 - ipv4.HEADER - icmp.HEADER : LARGEST6 - ipv6.HEADER - icmp.HEADER
    const bytes = packetEnd(pool, frame) - network
    const quoted = Math.min(bytes, room)
    const protocol = four ? ipv4.PROTOCOL.ICMP : ipv4.PROTOCOL.ICMPV6
    const made = this.begin(frame, true, protocol, icmp.HEADER + quoted, ERROR_TOS)
    if (made < 0) return
    const at = pool.transport[made]
    const end = at + icmp.HEADER + quoted
    copyBytes(pool.view, at + icmp.QUOTE, pool.view, network, quoted)
    counters.copied(quoted)
    if (four) {
      icmp.write(b, at, icmp.TYPE4.UNREACHABLE, PROHIBITED4, 0)
      icmp.updateChecksum4(b, at, end)
    } else {
      icmp.write(b, at, icmp.TYPE6.UNREACHABLE, PROHIBITED6, 0)
      icmp.updateChecksum6(b, pool.network[made], at, end)
    }
    this.finish(made, out)
  }

  /** Takes a frame and gives it the outer headers of `frame`, its inner Ethernet header and a fresh IP header in front of `bytes`. -1 when there is none. */
  private begin(frame: number, back: boolean, protocol: number, bytes: number, tos: number): number {
    const { pool, profile } = this
    const made = pool.alloc()
    if (made < 0) {
      this.counters.failed()
      return made
    }
    const b = pool.bytes
    const network = pool.network[frame]
    const shift = pool.start[made] - pool.start[frame]
    pool.copyMetadata(frame, made)
    copyBytes(pool.view, pool.start[made], pool.view, pool.start[frame], network - pool.start[frame])
    const ip = network + shift
    const four = b[network] >> 4 === 4
    const transport = ip + (four ? ipv4.HEADER : ipv6.HEADER)
    if (four) {
      const source = ipv4.source(b, network)
      const destination = ipv4.destination(b, network)
      const total = ipv4.HEADER + bytes
      ipv4.write(
        b,
        ip,
        ipv4.HEADER,
        tos,
        total,
        0,
        ipv4.DONT_FRAGMENT,
        TTL,
        protocol,
        back ? destination : source,
        back ? source : destination,
      )
    } else {
      ipv6.write(b, ip, tos, 0, bytes, protocol, TTL)
      for (let i = 0; i < 8; i++) ipv6.setWord(b, ip, back ? i ^ 4 : i, ipv6.word(b, network, i))
    }
    if (back) {
      const tunnel = pool.outerTransport[frame] + udp.HEADER
      profile.reverse(b, tunnel + shift, this.tunnel)
      if (profile.inner === 'ethernet') ethernet.swapAddresses(b, tunnel + shift + profile.headerLength(b, tunnel))
      pool.reversed[made] = 1 - pool.reversed[frame]
    }
    pool.outerTransport[made] = pool.outerTransport[frame] + shift
    pool.network[made] = ip
    pool.transport[made] = transport
    pool.payload[made] = transport + bytes
    pool.protocol[made] = protocol
    pool.gso[made] = GSO.NONE
    pool.length[made] = transport + bytes - pool.start[made]
    return made
  }

  /** Brings the outer lengths and checksums of a made frame in order and appends it; no outer UDP checksum stays none. */
  private finish(made: number, out: Batch): void {
    const { pool } = this
    const b = pool.bytes
    const end = pool.start[made] + pool.length[made]
    const at = pool.outerTransport[made]
    const ip = vlan.payloadAt(b, pool.start[made], at)
    udp.setLength(b, at, end - at)
    if (b[ip] >> 4 === 4) {
      ipv4.setTotalLength(b, ip, end - ip)
      ipv4.updateChecksum(b, ip)
    } else {
      ipv6.setPayloadLength(b, ip, end - ip - ipv6.HEADER)
    }
    if (udp.checksum(b, at) !== 0) udp.updateChecksum(b, ip, at)
    this.counters.created(1)
    out.push(made)
  }

  /** RFC 1122 section 3.2.2, RFC 4443 section 2.4 e and f: no error about an error or a group address, and not too many. */
  private mayAnswer(frame: number): boolean {
    const { pool } = this
    const b = pool.bytes
    const at = pool.transport[frame]
    const protocol = pool.protocol[frame]
    if (protocol === ipv4.PROTOCOL.ICMP && icmp.isError4(icmp.type(b, at))) return false
    if (protocol === ipv4.PROTOCOL.ICMPV6 && icmp.isError6(icmp.type(b, at))) return false
    const tunnel = pool.outerTransport[frame] + udp.HEADER
    const isFrame = this.profile.inner === 'ethernet'
    if (isFrame && ethernet.isGroup(b, tunnel + this.profile.headerLength(b, tunnel))) return false
    if (isUnanswerable(b, pool.network[frame])) return false
    const now = pool.time[frame]
    const earned = ((now - this.lastMs) * RATE) / 1000
    if (earned > 0) this.allowance = Math.min(BURST, this.allowance + earned)
    this.lastMs = now
    if (this.allowance < 1) return false
    this.allowance -= 1
    return true
  }
}

/** Position behind the inner IP packet; a trailer may follow it in the frame. */
export function packetEnd(pool: Pool, frame: number): number {
  const b = pool.bytes
  const network = pool.network[frame]
  if (pool.gso[frame] !== GSO.NONE) return pool.start[frame] + pool.length[frame]
  if (b[network] >> 4 === 4) return network + ipv4.totalLength(b, network)
  return network + ipv6.HEADER + ipv6.payloadLength(b, network)
}
