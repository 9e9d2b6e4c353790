// Takes one super-packet apart: finds its headers, then writes segment by segment into other frames. What a NIC with
// TSO or USO does (Linux: tcp_gso_segment, __udp_gso_segment, __skb_udp_tunnel_segment).
//
//   | outer Ethernet, IP, UDP | tunnel | inner Ethernet, IP | TCP or UDP | payload …           |
//   start                     shared                                     payload              end
//
// Every segment repeats what stands in front of `payload`. A frame without a tunnel has only one IP header: then
// `outer` is 0.

import { DROP, type DropReason } from '../drop.ts'
import { copyBytes } from '../memory/copy.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { finish, fold, pseudo, sum } from '../wire/checksum.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'

/** Segments at most: 64 KiB at the smallest MSS that Linux sends (net.ipv4.tcp_min_snd_mss). */
export const MAX_SEGMENTS = Math.ceil(65_535 / 48)

const { TCP, UDP } = ipv4.PROTOCOL

/** Source and target of a copy within shared memory must be equally aligned, or the engine copies single bytes: 1,448 bytes in 460 ns instead of 73 (Node 20, 2 virtual cores). */
export const ALIGNMENT = 8

/** Which checksum of a segment is left to the device. */
export const LEFT = { NONE: 0, INNER: 1, OUTER: 2 } as const

/** One super-packet at a time; one instance a stage. */
export class Segmenter {
  /** Payload bytes of every segment but the last. */
  size = 0
  /** How many segments there are. */
  count = 0
  /** Position behind the outer UDP header; 0 without a tunnel. */
  shared = 0
  /** Position behind the headers. */
  payload = 0

  private readonly pool: Pool
  private start = 0
  private end = 0
  private outer = 0
  private network = 0
  private transport = 0
  private protocol = 0
  private withoutChecksum = false
  private outerChecksum = false

  constructor(pool: Pool) {
    this.pool = pool
  }

  /** Finds the headers of the super-packet; 0, or why it cannot be segmented. Its bytes must stay as they are until the last segment is written. */
  open(frame: number): DropReason {
    const { pool } = this
    const b = pool.bytes
    const start = pool.start[frame]
    const end = start + pool.length[frame]
    const ip = vlan.payloadAt(b, start, end)
    if (ip < 0) return -ip
    this.start = start
    this.end = end
    this.outer = 0
    this.shared = 0
    this.network = ip
    if ((pool.gso[frame] & GSO.TUNNEL) !== 0) {
      this.outer = ip
      this.shared = pool.outerTransport[frame] + udp.HEADER
      this.network = pool.network[frame]
      const header = b[ip] >>> 4 === 4 ? ipv4.HEADER : ipv6.HEADER
      if (this.shared < ip + header + udp.HEADER || this.network < this.shared) return DROP.OFFLOAD
    }
    const bad = this.findTransport()
    if (bad !== 0) return bad
    const kind = pool.gso[frame] & ~(GSO.TUNNEL | GSO.ECN)
    if (this.protocol !== (kind === GSO.UDP ? UDP : TCP)) return DROP.OFFLOAD
    const bytes = end - this.payload
    this.size = Math.min(bytes, pool.gsoSize[frame])
    if (this.size <= 0 || bytes > this.size * MAX_SEGMENTS) return DROP.OFFLOAD
    this.count = Math.ceil(bytes / this.size)
    const partial = (pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) !== 0
    this.withoutChecksum = this.protocol === UDP && !partial && udp.checksum(b, this.transport) === 0
    this.outerChecksum =
      this.outer !== 0 &&
      ((pool.offload[frame] & OFFLOAD.OUTER_CHECKSUM) !== 0 || udp.checksum(b, this.shared - udp.HEADER) !== 0)
    return 0
  }

  /**
   * Writes segment `i` into the frame `to`, at most ALIGNMENT bytes in front of where that starts, with its metadata. `left` is
   * the checksum that is left to the device, as NEEDS_CHECKSUM. `to` may be `from` for the last segment, when all others are
   * written: then its payload stays where it is.
   */
  write(i: number, from: number, to: number, left: number): void {
    const { pool, payload } = this
    const source = payload + i * this.size
    const end = source + this.bytesOf(i)
    let by = source - payload
    if (to === from) pool.bytes.copyWithin(this.start + by, this.start, payload)
    else {
      const start = pool.start[to]
      by = start - this.start - ((start - this.start - by) & (ALIGNMENT - 1))
      copyBytes(pool.view, this.start + by, pool.view, this.start, payload - this.start)
      pool.bytes.copyWithin(payload + by, source, end)
      pool.copyMetadata(from, to)
    }
    const limit = payload + by + end - source
    pool.start[to] = this.start + by
    pool.length[to] = limit - this.start - by
    pool.network[to] = this.network + by
    pool.transport[to] = this.transport + by
    pool.payload[to] = payload + by
    pool.outerTransport[to] = this.outer === 0 ? 0 : this.shared - udp.HEADER + by
    pool.gso[to] = GSO.NONE
    pool.offload[to] = OFFLOAD.CHECKSUM_VALID
    this.patchInner(i, by, limit, left === LEFT.INNER)
    if (left === LEFT.INNER && !this.withoutChecksum) {
      pool.offload[to] = OFFLOAD.NEEDS_CHECKSUM
      pool.checksumStart[to] = this.transport + by
      pool.checksumOffset[to] = this.protocol === TCP ? tcp.CHECKSUM : udp.CHECKSUM
    }
    if (this.outer === 0) return
    this.patchOuter(i, by, limit, left === LEFT.OUTER)
    if (left === LEFT.OUTER) partialChecksum(pool, to, this.outer + by, pool.outerTransport[to])
  }

  /** Bytes that every segment repeats. */
  get headers(): number {
    return this.payload - this.start
  }

  /** Payload bytes of segment `i`. */
  bytesOf(i: number): number {
    return Math.min(this.size, this.end - this.payload - i * this.size)
  }

  private findTransport(): DropReason {
    const { network, end } = this
    const b = this.pool.bytes
    if (network + ipv4.HEADER > end) return DROP.IPV4_TRUNCATED
    if (b[network] >>> 4 === 4) {
      this.transport = network + ipv4.headerLength(b, network)
      this.protocol = ipv4.protocol(b, network)
      if (this.transport < network + ipv4.HEADER) return DROP.IPV4_HEADER_LENGTH
      if (ipv4.isFragment(b, network)) return DROP.OFFLOAD
    } else {
      const bad = ipv6.check(b, network, end)
      if (bad !== 0) return bad
      const transport = ipv6.transportAt(b, network, end)
      if (transport <= 0) return transport === 0 ? DROP.OFFLOAD : -transport
      this.transport = transport
      this.protocol = ipv6.transportProtocol(b, network, end)
    }
    if (this.protocol === TCP) {
      const bad = tcp.check(b, this.transport, end)
      this.payload = this.transport + tcp.headerLength(b, this.transport)
      return bad
    }
    this.payload = this.transport + udp.HEADER
    return this.payload > end ? DROP.UDP_TRUNCATED : 0
  }

  /** The headers of the copy that lies `by` bytes behind the original. */
  private patchInner(i: number, by: number, end: number, partial: boolean): void {
    const b = this.pool.bytes
    const network = this.network + by
    const transport = this.transport + by
    setLengths(b, network, this.protocol === UDP ? transport : 0, end, i, true)
    if (this.protocol === TCP) {
      tcp.setSequence(b, transport, tcp.sequence(b, transport) + i * this.size)
      let flags = tcp.flags(b, transport)
      if (i > 0) flags &= ~tcp.CWR
      if (i < this.count - 1) flags &= ~(tcp.FIN | tcp.PSH)
      tcp.setFlags(b, transport, flags)
      if (partial) tcp.setChecksum(b, transport, pseudo(b, network, TCP, end - transport))
      else tcp.updateChecksum(b, network, transport, end)
    } else if (this.withoutChecksum) {
      udp.setChecksum(b, transport, 0)
    } else if (partial) {
      udp.setChecksum(b, transport, pseudo(b, network, UDP, end - transport))
    } else udp.updateChecksum(b, network, transport)
  }

  private patchOuter(i: number, by: number, end: number, partial: boolean): void {
    const b = this.pool.bytes
    const ip = this.outer + by
    const transport = this.shared - udp.HEADER + by
    setLengths(b, ip, transport, end, i, false)
    if (partial || !this.outerChecksum) return
    if (this.withoutChecksum) udp.updateChecksum(b, ip, transport)
    else {
      const inner = this.transport + by
      localChecksum(b, ip, transport, inner, pseudo(b, this.network + by, this.protocol, end - inner))
    }
  }
}

/** Lengths of the IP header at `ip` and, when `transport` is not 0, of the UDP header there, for segment `i` that ends before `end`; the IPv4 header checksum follows. */
function setLengths(b: Uint8Array, ip: number, transport: number, end: number, i: number, inner: boolean): void {
  if (b[ip] >>> 4 === 4) {
    ipv4.setTotalLength(b, ip, end - ip)
    // An outer packet with DF is atomic, its identification means nothing (RFC 6864 section 4.1).
    if (inner || !ipv4.dontFragment(b, ip)) ipv4.setIdentification(b, ip, ipv4.identification(b, ip) + i)
    ipv4.updateChecksum(b, ip)
  } else ipv6.setPayloadLength(b, ip, end - ip - ipv6.HEADER)
  if (transport !== 0) udp.setLength(b, transport, end - transport)
}

/**
 * Local checksum offload: writes the outer UDP checksum without reading the payload. What an inner checksum covers sums
 * up to the complement of its pseudo-header sum, by construction (Linux: Documentation/networking/checksum-offloads.rst, LCO).
 * `inner` is where the inner checksum starts, an even number of bytes behind the outer UDP header.
 */
export function localChecksum(b: Uint8Array, ip: number, transport: number, inner: number, innerPseudo: number): void {
  udp.setChecksum(b, transport, 0)
  const outer = sum(b, transport, inner, pseudo(b, ip, UDP, udp.length(b, transport)))
  udp.setChecksum(b, transport, finish(outer + (~innerPseudo & 0xffff)) || 0xffff)
}

/** Leaves the UDP checksum of the datagram at `transport` in the IP packet at `ip` to the device. */
export function partialChecksum(pool: Pool, frame: number, ip: number, transport: number): void {
  const b = pool.bytes
  udp.setChecksum(b, transport, fold(pseudo(b, ip, UDP, udp.length(b, transport))))
  pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
  pool.checksumStart[frame] = transport
  pool.checksumOffset[frame] = udp.CHECKSUM
}
