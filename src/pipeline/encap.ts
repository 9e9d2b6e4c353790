// Encapsulation: writes the outer headers into a frame's headroom. The payload is never touched.
//
//   | Ethernet | IPv4 or IPv6 | UDP | GENEVE + options or VXLAN | inner Ethernet frame, or IP packet …
//
// Each word is written once, most of them as the tunnel's configuration made them, or the endpoint that the frame goes to.

import { DROP } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { ENDPOINT, ENDPOINT_NUMBERS, ENDPOINT_STATE, type EndpointView } from '../memory/endpoints.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { LEAVING, PROBE_ATTACHMENT } from './attachments.ts'
import { type Links, trim } from './links.ts'
import { type OptionLayout, outerBytes, type TunnelConfig, tunnelWords } from './tunnel.ts'

/** The dynamic ports of RFC 6335 section 6: RFC 7348 section 5 asks for them, RFC 8926 section 3.3 allows them. */
const ENTROPY_BASE = 0xc000
const ENTROPY_MASK = 0x3fff
const FLOW_LABEL = 0xfffff

/** Largest IP datagram; an outer one that would be larger is not sent. */
const LARGEST = 65_535

const TUNNEL_GSO = GSO.TUNNEL
const UDP_PROTOCOL = ipv4.PROTOCOL.UDP
const IPV4_TYPE = ETHERTYPE.IPV4
const IPV6_TYPE = ETHERTYPE.IPV6
const IP = ETHERNET
const UDP_IN_IPV4 = IP + ipv4.HEADER
const UDP_IN_IPV6 = IP + ipv6.HEADER
const IPV4_BYTES = ipv4.HEADER
const UDP_BYTES = 8
const TUNNEL_BYTES = 8

// Where an endpoint's words are among those of all: the next hop's Ethernet addresses, destination before source; the sum of all
// of an IPv4 header that is always the same; whether frames have an address to go to; IP addresses, source before destination.
const MAC = 0
const SUM = 3
const KNOWN = 4
const ENDS = 8
const ENDS_SHIFT = 4
/** Locally administered, until a device needs real ones; the kernel's neighbour table or the peer replaces them. */
const NO_HOP = Int32Array.of(0x02000000, 0x00020200, 0x00000001)

/** The stage that puts a tunnel's headers in front of each frame. */
export class Encap {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly size: number
  private readonly isIpv4: number
  private readonly udpAt: number
  private readonly port: number
  /** The first word of the tunnel header, its second, and the option's header; 0 for no option. */
  private readonly tunnelHead: number
  private readonly tunnelNetwork: number
  private readonly option: number
  private readonly innerBits: number
  private readonly outerBits: number
  private readonly checksum: number
  private readonly gsoTunnel: number
  /** TTL and protocol of IPv4, next header and hop limit of IPv6. */
  private readonly ttlWord: number
  /** 1 where packets travel without their link header. */
  private readonly bare: number
  private readonly links: Links | undefined
  /** What the tunnel has that ours do not; undefined for none. */
  private readonly special: TunnelConfig | undefined
  /** Bytes of our own address. */
  private readonly local: readonly number[]
  /** By endpoint number; of number 0 the tunnel's remote. */
  private readonly ends = new Int32Array(ENDPOINT_NUMBERS << ENDS_SHIFT)

  /** `links` remembers the link headers of packets that travel without, where they are to be put back. */
  constructor(pool: Pool, counters: StageCounters, tunnel: TunnelConfig, links?: Links) {
    this.pool = pool
    this.counters = counters
    this.bare = tunnel.inner === 'ip' ? 1 : 0
    this.links = links
    const { inner, options, arriving, podSource } = tunnel
    this.special = (inner ?? options ?? arriving ?? podSource) === undefined ? undefined : tunnel
    const { local, remote, ttl, dscp } = tunnel
    this.local = local
    const four = local.length === 4
    this.size = outerBytes(tunnel)
    this.isIpv4 = four ? 1 : 0
    this.udpAt = four ? UDP_IN_IPV4 : UDP_IN_IPV6
    this.port = tunnel.port
    const { head, network, option } = tunnelWords(tunnel)
    this.tunnelHead = head
    this.tunnelNetwork = network
    this.option = option
    this.innerBits = (dscp === 'copy' ? 0xfc : 0) | (tunnel.ecn === 'normal' ? 3 : 0)
    this.outerBits = dscp === 'copy' ? 0 : dscp << 2
    this.checksum = sendsChecksum(tunnel) ? OFFLOAD.OUTER_CHECKSUM : 0
    this.gsoTunnel = four ? GSO.TUNNEL4 : GSO.TUNNEL6
    this.ttlWord = four ? (ttl << 8) | UDP_PROTOCOL : (UDP_PROTOCOL << 8) | ttl
    this.setEnds(0, remote)
  }

  /** Takes over where each endpoint is. `direct` where the device asks no kernel for a next hop: until it is known, frames to it are dropped. */
  follow({ words, bytes }: EndpointView, direct: boolean): void {
    const { ends, isIpv4 } = this
    const address = new Uint8Array(isIpv4 !== 0 ? 4 : 16)
    for (let number = 1; number < ENDPOINT_NUMBERS; number++) {
      const from = number * ENDPOINT.WORDS
      const state = words[from + ENDPOINT.STATE]
      if (state === 0) continue
      for (let i = 0; i < address.length; i++) address[i] = bytes.getUint8((from + ENDPOINT.ADDRESS) * 4 + i)
      this.setEnds(number, address)
      const to = number << ENDS_SHIFT
      const known = (state & ENDPOINT_STATE.HOP) !== 0
      if (known) for (let i = 0; i < 3; i++) ends[to + MAC + i] = bytes.getInt32((from + ENDPOINT.HOP + i) * 4)
      ends[to + KNOWN] = known || !direct ? 1 : 0
    }
  }

  /** What is always the same of frames to that address. */
  private setEnds(number: number, remote: ArrayLike<number>): void {
    const { ends, local } = this
    const to = number << ENDS_SHIFT
    const both = new DataView(Uint8Array.from([...local, ...Array.from(remote)]).buffer)
    let sum = (ipv4.PLAIN << 8) + ipv4.DONT_FRAGMENT + this.ttlWord
    for (let i = 0; i < both.byteLength; i += 2) sum += both.getUint16(i)
    for (let i = 0; i < both.byteLength; i += 4) ends[to + ENDS + (i >> 2)] = both.getInt32(i)
    ends[to + SUM] = sum
    ends[to + KNOWN] = 1
    if (ends[to + MAC] === 0) ends.set(NO_HOP, to + MAC)
  }

  /** Encapsulates every frame; hash must be set, and network, 0 for what is not IP. Those without headroom are dropped. */
  readonly run = (batch: Batch): void => {
    const { pool, counters, size, ends } = this
    if (this.bare !== 0) this.peel(batch)
    const { frames, length } = batch
    let kept = 0
    let bytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const inner = pool.length[frame]
      const to = pool.endpoint[frame] << ENDS_SHIFT
      if (ends[to + KNOWN] === 0) {
        counters.dropped(DROP.NEXT_HOP)
        pool.free(frame)
      } else if (pool.headroomOf(frame) < size) {
        counters.dropped(DROP.NO_HEADROOM)
        pool.free(frame)
      } else if (inner + size - IP > LARGEST) {
        counters.dropped(DROP.OVERSIZED)
        pool.free(frame)
      } else if ((pool.gso[frame] & TUNNEL_GSO) !== 0) {
        // A super-packet has the fields of one tunnel only.
        counters.dropped(DROP.OFFLOAD)
        pool.free(frame)
      } else {
        bytes += inner
        this.prepend(frame, to, pool.start[frame] - size, inner + size)
        frames[kept++] = frame
      }
    }
    counters.received(length, bytes)
    counters.sent(kept, bytes + kept * size)
    batch.length = kept
  }

  /** Writes the outer headers of one frame, which has the headroom; `to` is where its endpoint's words are, `at` and `length` are those of the outer frame. */
  private readonly prepend = (frame: number, to: number, at: number, length: number): void => {
    const { pool, ends } = this
    const { view } = pool
    const network = pool.network[frame]
    const first = network === 0 ? 0 : view.getUint16(network)
    const version = first >>> 12
    const hash = pool.hash[frame]
    const gso = pool.gso[frame]
    const tos = (((version === 4 ? first : version === 6 ? first >>> 4 : 0) & this.innerBits) | this.outerBits) & 0xff
    const transport = at + this.udpAt
    const bytes = length - this.udpAt

    view.setInt32(at, ends[to + MAC])
    view.setInt32(at + 4, ends[to + MAC + 1])
    view.setInt32(at + 8, ends[to + MAC + 2])
    if (this.isIpv4 !== 0) {
      const total = bytes + IPV4_BYTES
      let sum = ends[to + SUM] + tos + total
      sum = (sum & 0xffff) + (sum >>> 16)
      sum = ~((sum & 0xffff) + (sum >>> 16)) & 0xffff
      view.setInt16(at + 12, IPV4_TYPE)
      view.setInt32(at + 14, 0x45000000 | (tos << 16) | total)
      // RFC 4459 section 3.2: DF always set, so the outer packet is atomic and its identification is free (RFC 6864 section 4.1).
      view.setInt32(at + 18, 0x00004000)
      view.setInt32(at + 22, (this.ttlWord << 16) | sum)
      view.setInt32(at + 26, ends[to + ENDS])
      view.setInt32(at + 30, ends[to + ENDS + 1])
    } else {
      view.setInt16(at + 12, IPV6_TYPE)
      view.setInt32(at + 14, 0x60000000 | (tos << 20) | (hash & FLOW_LABEL))
      view.setInt32(at + 18, (bytes << 16) | this.ttlWord)
      for (let i = 0; i < 8; i++) view.setInt32(at + 22 + (i << 2), ends[to + ENDS + i])
    }

    const entropy = ENTROPY_BASE | ((hash ^ (hash >>> 14)) & ENTROPY_MASK)
    view.setInt32(transport, (entropy << 16) | this.port)
    view.setInt32(transport + 4, bytes << 16)
    view.setInt32(transport + 8, this.tunnelHead)
    view.setInt32(transport + 12, this.tunnelNetwork)
    if (this.option !== 0) {
      view.setInt32(transport + 16, this.option)
      view.setInt32(transport + 20, (pool.attachment[frame] << 16) | (pool.direction[frame] << 8))
      view.setInt32(transport + 24, hash)
    }

    if (this.special !== undefined) this.adapt(frame, at, version, this.special)

    if (this.checksum !== 0) pool.offload[frame] |= this.checksum
    if (gso !== 0) pool.gso[frame] = gso | this.gsoTunnel
    pool.outerTransport[frame] = transport
    pool.start[frame] = at
    pool.length[frame] = length
  }

  /** Takes the link headers off; what is not IP has none of the ways that this tunnel carries. */
  private peel(batch: Batch): void {
    const { pool, counters } = this
    const { frames, length } = batch
    this.links?.remember(batch)
    let kept = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const network = pool.network[frame]
      if (network === 0) {
        counters.received(1, 0)
        counters.dropped(DROP.NOT_IP)
        pool.free(frame)
        continue
      }
      trim(pool, frame)
      pool.length[frame] -= network - pool.start[frame]
      pool.start[frame] = network
      frames[kept++] = frame
    }
    batch.length = kept
  }

  /** What this kind of tunnel has otherwise than those of the RFCs. */
  private adapt(frame: number, at: number, version: number, tunnel: TunnelConfig): void {
    const { pool, udpAt } = this
    const { view } = pool
    const header = at + udpAt + UDP_BYTES
    const { inner, options, arriving, podSource } = tunnel
    if (inner === 'ip') view.setInt16(header + 2, version === 6 ? IPV6_TYPE : IPV4_TYPE)
    if (options !== undefined) this.writeOptions(frame, header + TUNNEL_BYTES, options)
    if (arriving !== undefined && pool.direction[frame] !== LEAVING) {
      view.setInt16(at + udpAt + 2, arriving.port)
      view.setInt32(header + 4, arriving.vni << 8)
    }
    if (podSource === true && version === (this.isIpv4 !== 0 ? 4 : 6)) this.usePodSource(frame, at)
  }

  private writeOptions(frame: number, at: number, options: OptionLayout): void {
    const { pool } = this
    const { view } = pool
    const { words, attachmentAt, leavingAt, cookieAt } = options
    for (let i = 0; i < words.length; i++) view.setInt32(at + i * 4, words[i])
    if (attachmentAt !== undefined) view.setInt32(at + attachmentAt * 4, words[attachmentAt] + pool.attachment[frame])
    if (leavingAt !== undefined && pool.direction[frame] === LEAVING)
      view.setInt32(at + leavingAt * 4, words[leavingAt] | 1)
    if (cookieAt !== undefined) view.setInt32(at + cookieAt * 4, pool.hash[frame])
  }

  /** The source of the outer packet becomes the address of the inner one that is the pod's. */
  private usePodSource(frame: number, at: number): void {
    const { pool } = this
    if (pool.attachment[frame] === PROBE_ATTACHMENT) return
    const { view, bytes } = pool
    const leaves = pool.direction[frame] === LEAVING
    const network = pool.network[frame]
    const ip = at + IP
    if (this.isIpv4 !== 0) {
      view.setInt32(ip + ipv4.SOURCE, view.getInt32(network + (leaves ? ipv4.SOURCE : ipv4.DESTINATION)))
      ipv4.updateChecksum(bytes, ip)
    } else {
      const from = network + (leaves ? ipv6.SOURCE : ipv6.DESTINATION)
      for (let i = 0; i < 16; i += 4) view.setInt32(ip + ipv6.SOURCE + i, view.getInt32(from + i))
    }
  }
}

/** True where the outer UDP checksum is computed: RFC 8926 section 4.3 (SHOULD over IPv4, MUST over IPv6), RFC 7348 section 5 (SHOULD be zero), RFC 8200 section 8.1. */
export function sendsChecksum(tunnel: TunnelConfig): boolean {
  if (tunnel.outerChecksum !== 'auto') return tunnel.outerChecksum === 'always'
  return tunnel.kind === 'geneve' || tunnel.local.length === 16
}
