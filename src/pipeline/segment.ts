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
   * Writes segment `i` into the frame `to`, where that starts, with its metadata. With `partial` the checksum is left to the device, as
   * NEEDS_CHECKSUM. `to` may be `from` for the last segment, when all others are written: then its payload stays where it is.
   */
  write(i: number, from: number, to: number, partial: boolean): void {
    const { pool, payload } = this
    const source = payload + i * this.size
    const bytes = this.bytesOf(i)
    const by = to === from ? source - payload : pool.start[to] - this.start
    if (to === from) pool.bytes.copyWithin(this.start + by, this.start, payload)
    else {
      copyBytes(pool.view, this.start + by, pool.view, this.start, payload - this.start)
      copyBytes(pool.view, payload + by, pool.view, source, bytes)
      pool.copyMetadata(from, to)
    }
    const end = payload + by + bytes
    pool.start[to] = this.start + by
    pool.length[to] = end - this.start - by
    pool.network[to] = this.network + by
    pool.transport[to] = this.transport + by
    pool.payload[to] = payload + by
    pool.outerTransport[to] = this.outer === 0 ? 0 : this.shared - udp.HEADER + by
    pool.gso[to] = GSO.NONE
    pool.offload[to] = OFFLOAD.CHECKSUM_VALID
    this.patchInner(i, by, end, partial)
    if (partial && !this.withoutChecksum) {
      pool.offload[to] = OFFLOAD.NEEDS_CHECKSUM
      pool.checksumStart[to] = this.transport + by
      pool.checksumOffset[to] = this.protocol === TCP ? tcp.CHECKSUM : udp.CHECKSUM
    }
    if (this.outer !== 0) this.patchOuter(i, by, end)
  }

  /** Writes what stands between outer UDP header and end of segment `i` at `at`, checksums complete, and returns its size. */
  writeInner(i: number, at: number): number {
    const { pool, payload, shared } = this
    const source = payload + i * this.size
    const bytes = this.bytesOf(i)
    const by = at - shared
    copyBytes(pool.view, at, pool.view, shared, payload - shared)
    copyBytes(pool.view, payload + by, pool.view, source, bytes)
    this.patchInner(i, by, payload + by + bytes, false)
    return payload + bytes - shared
  }

  /**
   * Makes `to`, which got segments one after the other behind its outer headers up to `end`, a UDP super-packet of the
   * underlay whose datagrams carry `size` bytes. Linux asks for a partial checksum there (udp_gso: CHECKSUM_PARTIAL).
   */
  writeOuter(i: number, from: number, to: number, end: number, size: number): void {
    const { pool } = this
    const by = pool.start[to] - this.start
    const transport = this.shared - udp.HEADER + by
    copyBytes(pool.view, this.start + by, pool.view, this.start, this.shared - this.start)
    pool.copyMetadata(from, to)
    pool.start[to] = this.start + by
    pool.length[to] = end - this.start - by
    setLengths(pool.bytes, this.outer + by, transport, end, i, false)
    partialChecksum(pool, to, this.outer + by, transport)
    pool.network[to] = this.outer + by
    pool.transport[to] = transport
    pool.payload[to] = this.shared + by
    pool.outerTransport[to] = 0
    const several = end - this.shared - by > size
    pool.gso[to] = several ? GSO.UDP : GSO.NONE
    pool.gsoSize[to] = several ? size : 0
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

  private patchOuter(i: number, by: number, end: number): void {
    const b = this.pool.bytes
    const ip = this.outer + by
    const transport = this.shared - udp.HEADER + by
    setLengths(b, ip, transport, end, i, false)
    if (!this.outerChecksum) return
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
