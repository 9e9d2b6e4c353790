// Path MTU: a SYN announces no larger segments than the tunnel carries; a packet that it cannot carry all the same is answered as
// a router would (RFC 1191, RFC 4443 section 3.2), so that its sender learns, and is never lost in silence.

import { DROP, type DropReason } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { ENDPOINT, ENDPOINT_NUMBERS, type EndpointView, SEGMENT_SIZE } from '../memory/endpoints.ts'
import type { Pool } from '../memory/pool.ts'
import * as ethernet from '../wire/ethernet.ts'
import { HEADER as ETHERNET } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import { clampSegmentSize } from './clamp.ts'
import { isUnanswerable } from './classify.ts'
import { innerMtu, type TunnelConfig } from './tunnel.ts'

/** How much of a packet an ICMPv4 error quotes: up to 576 bytes in all (RFC 1812 section 4.3.2.3). */
const QUOTE4 = 576 - ipv4.HEADER - icmp.HEADER
/** The same for ICMPv6: up to the minimum MTU (RFC 4443 section 2.4 c). */
const QUOTE6 = 1280 - ipv6.HEADER - icmp.HEADER
const TTL = 64

/** The stage that lets through what fits and answers what does not. */
export class Fit {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly reply: Batch
  /** Largest inner IP datagram in bytes, by endpoint number. */
  private readonly mtus = new Int32Array(ENDPOINT_NUMBERS)
  /** As in EndpointRules. */
  private segmentSize: number = SEGMENT_SIZE.ANY

  /** `mtu` holds until endpoints are followed; `reply` takes the ICMP answers: frames for the device that the packet came from. */
  constructor(pool: Pool, counters: StageCounters, mtu: number, reply: Batch) {
    this.pool = pool
    this.counters = counters
    this.mtus.fill(mtu)
    this.reply = reply
  }

  /** Takes over what the way to each endpoint carries. */
  follow({ words, segmentSize }: EndpointView, tunnel: TunnelConfig): void {
    this.segmentSize = segmentSize
    for (let number = 1; number < ENDPOINT_NUMBERS; number++)
      this.mtus[number] = innerMtu(tunnel, words[number * ENDPOINT.WORDS + ENDPOINT.MTU])
  }

  readonly run = (batch: Batch): void => {
    const { pool, counters, mtus, segmentSize } = this
    const { frames, length } = batch
    let kept = 0
    let bytes = 0
    let keptBytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const mtu = mtus[pool.endpoint[frame]]
      bytes += pool.length[frame]
      if (segmentSize !== 0 && isSyn(pool, frame))
        clampSegmentSize(pool, frame, segmentSize, mtu - tagBytes(pool, frame))
      if (carriedBytes(pool, frame) <= mtu) {
        keptBytes += pool.length[frame]
        frames[kept++] = frame
      } else {
        this.refuse(frame)
      }
    }
    counters.received(length, bytes)
    counters.sent(kept, keptBytes)
    batch.length = kept
  }

  /** Answers and drops one frame. */
  private refuse(frame: number): void {
    const { pool, counters } = this
    let reason: DropReason = DROP.TOO_BIG_SILENT
    if (mayAnswer(pool, frame)) {
      const answer = pool.alloc()
      reason = answer < 0 ? DROP.NO_FRAME : DROP.TOO_BIG
      if (answer >= 0) {
        this.answer(frame, answer)
        counters.created(1)
        counters.sent(1, pool.length[answer])
        this.reply.push(answer)
      }
    }
    counters.dropped(reason)
    pool.free(frame)
  }

  private answer(frame: number, answer: number): void {
    const { pool } = this
    const mtu = this.mtus[pool.endpoint[frame]] - tagBytes(pool, frame)
    const b = pool.bytes
    const from = pool.start[frame]
    const to = pool.start[answer]
    const network = pool.network[frame]
    const four = b[network] >> 4 === 4
    const room = four ? QUOTE4 : QUOTE6
    const bytes = from + pool.length[frame] - network
    const quoted = Math.min(bytes, room)
    pool.copyMetadata(frame, answer)
    b.copyWithin(to, from, network)
    ethernet.swapAddresses(b, to)
    const ip = to + network - from
    const message = ip + (four ? ipv4.HEADER : ipv6.HEADER)
    const end = message + icmp.HEADER + quoted
    b.copyWithin(message + icmp.HEADER, network, network + quoted)
    if (four) {
      const source = ipv4.destination(b, network)
      const destination = ipv4.source(b, network)
      ipv4.write(b, ip, ipv4.HEADER, 0, end - ip, 0, ipv4.DONT_FRAGMENT, TTL, ipv4.PROTOCOL.ICMP, source, destination)
      icmp.write(b, message, icmp.TYPE4.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, mtu)
      icmp.updateChecksum4(b, message, end)
    } else {
      ipv6.write(b, ip, 0, 0, end - message, ipv4.PROTOCOL.ICMPV6, TTL)
      b.copyWithin(ip + ipv6.SOURCE, network + ipv6.DESTINATION, network + ipv6.DESTINATION + 16)
      b.copyWithin(ip + ipv6.DESTINATION, network + ipv6.SOURCE, network + ipv6.SOURCE + 16)
      icmp.write(b, message, icmp.TYPE6.PACKET_TOO_BIG, 0, mtu)
      icmp.updateChecksum6(b, ip, message, end)
    }
    pool.length[answer] = end - to
    pool.network[answer] = ip
    pool.transport[answer] = message
  }
}

/** Bytes behind the Ethernet header of the largest packet that a frame becomes in the tunnel: tags, datagram and padding. */
function carriedBytes(pool: Pool, frame: number): number {
  const bytes = pool.length[frame] - ETHERNET
  if (pool.gso[frame] === 0) return bytes
  const headers = pool.payload[frame] - pool.start[frame] - ETHERNET
  return Math.min(bytes, headers + pool.gsoSize[frame])
}

const TCP = ipv4.PROTOCOL.TCP
const { SYN } = tcp

function isSyn(pool: Pool, frame: number): boolean {
  const at = pool.transport[frame]
  return pool.protocol[frame] === TCP && at !== 0 && (tcp.flags(pool.bytes, at) & SYN) !== 0
}

/** Bytes of VLAN tags, which take their part of what the tunnel carries. */
function tagBytes(pool: Pool, frame: number): number {
  return pool.network[frame] - pool.start[frame] - ETHERNET
}

/** RFC 1122 section 3.2.2 and RFC 4443 section 2.4: no error about an error, a fragment but the first, or a group address. */
function mayAnswer(pool: Pool, frame: number): boolean {
  const b = pool.bytes
  const network = pool.network[frame]
  const at = pool.transport[frame]
  if (at === 0 || ethernet.isGroup(b, pool.start[frame]) || isUnanswerable(b, network)) return false
  const protocol = pool.protocol[frame]
  if (protocol === ipv4.PROTOCOL.ICMP) return !icmp.isError4(icmp.type(b, at))
  if (protocol === ipv4.PROTOCOL.ICMPV6) return !icmp.isError6(icmp.type(b, at))
  return true
}
