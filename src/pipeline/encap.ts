// Encapsulation: writes the outer headers into a frame's headroom. The payload is never touched.
//
//   | Ethernet | IPv4 or IPv6 | UDP | GENEVE + options or VXLAN | inner Ethernet frame …
//
// Everything that is the same for all packets of a tunnel stands in a template; a packet costs the copy of 50 to 86
// bytes and the few fields that differ: lengths, traffic class, source port, flow label, IPv4 checksum, flow cookie.

import { DROP } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { HEADER as ETHERNET, ETHERTYPE, setType } from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vxlan from '../wire/vxlan.ts'
import { METADATA, optionBytes, outerBytes, type TunnelConfig } from './tunnel.ts'

/** The dynamic ports of RFC 6335 section 6: RFC 7348 section 5 asks for them, RFC 8926 section 3.3 allows them. */
const ENTROPY_BASE = 0xc000
const ENTROPY_MASK = 0x3fff

/** Largest IP datagram; an outer one that would be larger is not sent. */
const LARGEST = 65_535

/** The stage that puts a tunnel's headers in front of each frame. */
export class Encap {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly template: DataView
  private readonly size: number
  private readonly four: boolean
  private readonly udpAt: number
  private readonly dataAt: number
  private readonly innerBits: number
  private readonly outerBits: number
  private readonly checksum: boolean
  private readonly gsoTunnel: number
  private readonly headerSum: number

  constructor(pool: Pool, counters: StageCounters, tunnel: TunnelConfig) {
    this.pool = pool
    this.counters = counters
    const template = outerTemplate(tunnel)
    this.template = new DataView(template.buffer)
    this.size = template.length
    this.four = tunnel.local.length === 4
    this.udpAt = ETHERNET + (this.four ? ipv4.HEADER : ipv6.HEADER)
    this.dataAt = optionBytes(tunnel) === 0 ? 0 : this.size - METADATA.DATA
    this.innerBits = (tunnel.dscp === 'copy' ? 0xfc : 0) | (tunnel.ecn === 'normal' ? 3 : 0)
    this.outerBits = tunnel.dscp === 'copy' ? 0 : tunnel.dscp << 2
    this.checksum = sendsChecksum(tunnel)
    this.gsoTunnel = this.four ? GSO.TUNNEL4 : GSO.TUNNEL6
    let sum = 0
    if (this.four) for (let i = ETHERNET; i < this.udpAt; i += 2) sum += (template[i] << 8) | template[i + 1]
    this.headerSum = sum
  }

  /** Gives outer frames the Ethernet addresses of the next hop, destination before source, for a device that asks no kernel for them. */
  set addresses(addresses: Uint8Array) {
    for (let i = 0; i < addresses.length; i++) this.template.setUint8(i, addresses[i])
  }

  /** Encapsulates every frame; hash must be set, and network, 0 for what is not IP. Those without headroom are dropped. */
  run(batch: Batch): void {
    const { pool, counters, size } = this
    const { frames, length } = batch
    let kept = 0
    let bytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      if (pool.headroomOf(frame) < size) {
        counters.dropped(DROP.NO_HEADROOM)
        pool.free(frame)
      } else if (pool.length[frame] + size - ETHERNET > LARGEST) {
        counters.dropped(DROP.OVERSIZED)
        pool.free(frame)
      } else if ((pool.gso[frame] & GSO.TUNNEL) !== 0) {
        // A super-packet has the fields of one tunnel only.
        counters.dropped(DROP.OFFLOAD)
        pool.free(frame)
      } else {
        bytes += pool.length[frame]
        this.prepend(frame)
        frames[kept++] = frame
      }
    }
    counters.received(length, bytes)
    counters.sent(kept, bytes + kept * size)
    batch.length = kept
  }

  /** Writes the outer headers of one frame, which has the headroom. */
  private prepend(frame: number): void {
    const { pool, template, size, udpAt } = this
    const b = pool.bytes
    const inner = pool.start[frame]
    const at = inner - size
    copyBytes(pool.view, at, template, 0, size)

    const network = pool.network[frame]
    const version = network === 0 ? 0 : b[network] >> 4
    const innerTos = version === 4 ? b[network + 1] : version === 6 ? ipv6.trafficClass(b, network) : 0
    const tos = (innerTos & this.innerBits) | this.outerBits
    const udpLength = pool.length[frame] + size - udpAt
    const hash = pool.hash[frame]
    const ip = at + ETHERNET
    if (this.four) {
      const total = udpLength + ipv4.HEADER
      b[ip + 1] = tos
      b[ip + 2] = total >> 8
      b[ip + 3] = total
      let sum = this.headerSum + tos + total
      sum = (sum & 0xffff) + (sum >>> 16)
      sum = ~((sum & 0xffff) + (sum >>> 16))
      b[ip + 10] = sum >> 8
      b[ip + 11] = sum
    } else {
      b[ip] = 0x60 | (tos >> 4)
      b[ip + 1] = ((tos & 15) << 4) | ((hash >>> 16) & 15)
      b[ip + 2] = hash >> 8
      b[ip + 3] = hash
      b[ip + 4] = udpLength >> 8
      b[ip + 5] = udpLength
    }

    const port = ENTROPY_BASE | ((hash ^ (hash >>> 14)) & ENTROPY_MASK)
    const transport = at + udpAt
    b[transport] = port >> 8
    b[transport + 1] = port
    b[transport + 4] = udpLength >> 8
    b[transport + 5] = udpLength
    if (this.checksum) pool.offload[frame] |= OFFLOAD.OUTER_CHECKSUM

    const data = this.dataAt
    if (data !== 0) {
      const d = at + data
      b[d] = pool.attachment[frame] >> 8
      b[d + 1] = pool.attachment[frame]
      b[d + 2] = pool.direction[frame]
      b[d + 4] = hash >> 24
      b[d + 5] = hash >> 16
      b[d + 6] = hash >> 8
      b[d + 7] = hash
    }

    if (pool.gso[frame] !== GSO.NONE) pool.gso[frame] |= this.gsoTunnel
    pool.outerTransport[frame] = transport
    pool.start[frame] = at
    pool.length[frame] += size
  }
}

/** True where the outer UDP checksum is computed: RFC 8926 section 4.3 (SHOULD over IPv4, MUST over IPv6), RFC 7348 section 5 (SHOULD be zero), RFC 8200 section 8.1. */
export function sendsChecksum(tunnel: TunnelConfig): boolean {
  if (tunnel.outerChecksum !== 'auto') return tunnel.outerChecksum === 'always'
  return tunnel.kind === 'geneve' || tunnel.local.length === 16
}

/** The outer headers of a tunnel with all per-packet fields zero and the IPv4 checksum left out. */
export function outerTemplate(tunnel: TunnelConfig): Uint8Array {
  const b = new Uint8Array(outerBytes(tunnel))
  const { local, remote } = tunnel
  // NB: locally administered; the kernel's neighbour table or the peer replaces them on a real link.
  b.set([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], 0)
  let at = ETHERNET
  if (local.length === 4) {
    setType(b, 0, ETHERTYPE.IPV4)
    // RFC 4459 section 3.2: DF always set, so the outer packet is atomic and its identification is free (RFC 6864 section 4.1).
    b[at] = 0x45
    b[at + 6] = 0x40
    b[at + 8] = tunnel.ttl
    b[at + 9] = ipv4.PROTOCOL.UDP
    b.set(local, at + 12)
    b.set(remote, at + 16)
    at += ipv4.HEADER
  } else {
    setType(b, 0, ETHERTYPE.IPV6)
    b[at] = 0x60
    b[at + 6] = ipv4.PROTOCOL.UDP
    b[at + 7] = tunnel.ttl
    b.set(local, at + ipv6.SOURCE)
    b.set(remote, at + ipv6.DESTINATION)
    at += ipv6.HEADER
  }
  udp.setDestinationPort(b, at, tunnel.port)
  at += udp.HEADER
  if (tunnel.kind === 'vxlan') vxlan.write(b, at, tunnel.vni)
  else {
    const options = optionBytes(tunnel)
    geneve.write(b, at, options, false, false, ETHERTYPE.TEB, tunnel.vni)
    if (options !== 0) geneve.writeOption(b, at + geneve.HEADER, METADATA.CLASS, METADATA.TYPE, METADATA.DATA)
  }
  return b
}
