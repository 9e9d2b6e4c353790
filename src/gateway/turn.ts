// Turning around: makes of a packet that came through the tunnel one that goes back through it, in place.
//
// Addresses change places, ports do not: the destination port is the tunnel's in both directions and the source port
// carries the flow's entropy (RFC 8926 section 3.3, RFC 7348 section 5). One exception: a peer that shares our own address
// cannot have the tunnel's port as well, and what went there would come straight back here, for ever. To it, ports are exchanged.

import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import type { Profile } from '../pipeline/profile.ts'
import { partialChecksum } from '../pipeline/segment.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import * as checksum from '../wire/checksum.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'

/** Bytes of the UDP ports and of a tunnel header, which `Profile.echo` may change. */
const PORTS = 4
const TUNNEL = 8

/** The stage behind inspection; needs the metadata that decap leaves when it keeps the outer headers. */
export class Turn {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly profile: Profile
  private readonly tunnel: TunnelConfig
  private readonly own: number[][]

  /** `own` are the addresses, or their first bytes, at which the tunnel's port is ours. */
  constructor(pool: Pool, counters: StageCounters, profile: Profile, tunnel: TunnelConfig, own: number[][]) {
    this.pool = pool
    this.counters = counters
    this.profile = profile
    this.tunnel = tunnel
    this.own = own
  }

  run(batch: Batch): void {
    const { pool } = this
    const { frames, length } = batch
    let bytes = 0
    let sent = 0
    for (let i = 0; i < length; i++) {
      bytes += pool.length[frames[i]]
      this.turn(frames[i])
      sent += pool.length[frames[i]]
    }
    this.counters.received(length, bytes)
    this.counters.sent(length, sent)
  }

  private turn(frame: number): void {
    const { pool } = this
    const { ttl, returnsOptions } = this.tunnel
    if (returnsOptions === false) this.dropOptions(frame)
    const b = pool.bytes
    const start = pool.start[frame]
    const transport = pool.outerTransport[frame]
    const ip = vlan.payloadAt(b, start, transport)
    this.echo(frame, transport)
    ethernet.swapAddresses(b, start)
    const ecn = innerEcn(b, pool.network[frame])
    if (b[ip] >> 4 === 4) {
      if (this.isOwn(b, ip + ipv4.SOURCE, 4)) swap(b, transport, 2)
      swap(b, ip + ipv4.SOURCE, 4)
      ipv4.rewriteTos(b, ip, (ipv4.tos(b, ip) & ~3) | ecn)
      ipv4.rewriteTtl(b, ip, ttl)
    } else {
      if (this.isOwn(b, ip + ipv6.SOURCE, 16)) swap(b, transport, 2)
      swap(b, ip + ipv6.SOURCE, 16)
      ipv6.setTrafficClass(b, ip, (ipv6.trafficClass(b, ip) & ~3) | ecn)
      ipv6.setHopLimit(b, ip, ttl)
    }
  }

  /** Makes the outer headers those of a packet without options: they move up to where the base header's end was. */
  private dropOptions(frame: number): void {
    const { pool } = this
    const b = pool.bytes
    const tunnel = pool.outerTransport[frame] + udp.HEADER
    const bytes = geneve.optionsLength(b, tunnel)
    if (bytes === 0) return
    const start = pool.start[frame]
    const partial = isPartial(pool, frame, tunnel - udp.HEADER)
    b.copyWithin(start + bytes, start, tunnel + geneve.HEADER)
    const transport = tunnel - udp.HEADER + bytes
    const ip = vlan.payloadAt(b, start + bytes, transport)
    pool.start[frame] += bytes
    pool.length[frame] -= bytes
    pool.outerTransport[frame] = transport
    b[transport + udp.HEADER] = 0
    b[transport + udp.HEADER + 1] = 0
    udp.setLength(b, transport, udp.length(b, transport) - bytes)
    if (b[ip] >> 4 === 4) {
      ipv4.setTotalLength(b, ip, ipv4.totalLength(b, ip) - bytes)
      ipv4.updateChecksum(b, ip)
    } else ipv6.setPayloadLength(b, ip, ipv6.payloadLength(b, ip) - bytes)
    if (!partial) {
      if (udp.checksum(b, transport) !== 0) udp.updateChecksum(b, ip, transport)
    } else if ((pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] === transport - bytes)
      partialChecksum(pool, frame, ip, transport)
  }

  private isOwn(b: Uint8Array, at: number, size: number): boolean {
    const { own } = this
    for (let i = 0; i < own.length; i++) {
      const prefix = own[i]
      if (prefix.length > size) continue
      let j = 0
      while (j < prefix.length && b[at + j] === prefix[j]) j++
      if (j === prefix.length) return true
    }
    return false
  }

  /** Cleans the tunnel header; an outer checksum over it keeps being right. */
  private echo(frame: number, transport: number): void {
    const { pool } = this
    const b = pool.bytes
    const tunnel = transport + udp.HEADER
    const before = headersSum(b, transport, tunnel)
    this.profile.echo(b, tunnel, this.tunnel)
    const after = headersSum(b, transport, tunnel)
    const old = udp.checksum(b, transport)
    if (after === before || old === 0 || isPartial(pool, frame, transport)) return
    udp.setChecksum(b, transport, checksum.update(old, before, after) || 0xffff)
  }
}

/** Sum of what `Profile.echo` may change. */
function headersSum(b: Uint8Array, transport: number, tunnel: number): number {
  return checksum.sum(b, tunnel, tunnel + TUNNEL, checksum.sum(b, transport, transport + PORTS))
}

/** True when the outer UDP checksum is still to be computed, so that its field holds only the pseudo-header's sum. */
export function isPartial(pool: Pool, frame: number, transport: number): boolean {
  if (pool.gso[frame] !== GSO.NONE || (pool.offload[frame] & OFFLOAD.OUTER_CHECKSUM) !== 0) return true
  return (pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] === transport
}

/** RFC 6040 section 4.1, normal mode: what is encapsulated again shows the inner field outside. */
function innerEcn(b: Uint8Array, network: number): number {
  return b[network] >> 4 === 4 ? ipv4.ecn(b, network) : ipv6.ecn(b, network)
}

/** Exchanges two neighbouring fields of `size` bytes. */
function swap(b: Uint8Array, at: number, size: number): void {
  for (let i = at; i < at + size; i++) {
    const byte = b[i]
    b[i] = b[i + size]
    b[i + size] = byte
  }
}
