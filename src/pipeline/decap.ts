// Decapsulation: checks every outer header, finds the inner ones, applies RFC 6040 and strips, or leaves the outer
// headers in front for a gateway that is going to turn the packet around.

import { DROP, type DropReason } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import * as checksum from '../wire/checksum.ts'
import { HEADER as ETHERNET, ETHERTYPE, type as etherType } from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'
import * as vxlan from '../wire/vxlan.ts'
import { parse } from './parse.ts'
import type { TunnelConfig } from './tunnel.ts'

export interface DecapOptions {
  /** Accept any outer source and destination and any VNI, as an endpoint does; otherwise only the tunnel's own. */
  anyPeer: boolean
  /** Leave the outer headers in front: start stays, network and what follows are those of the inner packet. */
  keep: boolean
  /** Let inner frames pass that are not IP or not well formed (offline work). */
  anyInner: boolean
}

/** Of the options that a tunnel here may carry none is critical, so no class of critical ones is known. */
const NO_CLASS = -1

const NOT_ECT = 0
const ECT1 = 1
const ECT0 = 2
const CE = 3

/** The stage that takes a tunnel's headers off. */
export class Decap {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly geneve: boolean
  private readonly port: number
  private readonly vni: number
  private readonly strict: boolean
  private readonly innerVlan: boolean
  private readonly zeroChecksum6: boolean
  private readonly anyPeer: boolean
  private readonly keep: boolean
  private readonly anyInner: boolean
  /** Expected outer source and destination address, in that order, in words of network order. */
  private readonly addresses: Int32Array

  constructor(pool: Pool, counters: StageCounters, tunnel: TunnelConfig, options: DecapOptions) {
    this.pool = pool
    this.counters = counters
    this.geneve = tunnel.kind === 'geneve'
    this.port = tunnel.port
    this.vni = tunnel.vni
    this.strict = tunnel.strictReserved
    this.innerVlan = tunnel.innerVlan
    this.zeroChecksum6 = tunnel.zeroChecksum6
    this.anyPeer = options.anyPeer
    this.keep = options.keep
    this.anyInner = options.anyInner
    const addresses = new DataView(Uint8Array.from([...tunnel.remote, ...tunnel.local]).buffer)
    this.addresses = Int32Array.from({ length: addresses.byteLength / 4 }, (_, i) => addresses.getInt32(4 * i))
  }

  /** Decapsulates every frame; those refused are dropped with their reason. */
  run(batch: Batch): void {
    const { pool, counters } = this
    const { frames, length } = batch
    let kept = 0
    let bytesIn = 0
    let bytesOut = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      bytesIn += pool.length[frame]
      const reason = this.open(frame)
      if (reason === 0) {
        bytesOut += pool.length[frame]
        frames[kept++] = frame
      } else {
        counters.dropped(reason)
        pool.free(frame)
      }
    }
    counters.received(length, bytesIn)
    counters.sent(kept, bytesOut)
    batch.length = kept
  }

  private open(frame: number): DropReason {
    const { pool } = this
    const b = pool.bytes
    const start = pool.start[frame]
    const frameEnd = start + pool.length[frame]
    if (frameEnd - start < ETHERNET) return DROP.ETHERNET_TRUNCATED
    const ip = vlan.payloadAt(b, start, frameEnd)
    if (ip < 0) return -ip
    const type = (b[ip - 2] << 8) | b[ip - 1]
    let transport = 0
    let end = 0
    let outerEcn = 0
    if (type === ETHERTYPE.IPV4) {
      const bad = ipv4.check(b, ip, frameEnd)
      if (bad !== 0) return bad
      if (!ipv4.verifyChecksum(b, ip)) return DROP.IPV4_CHECKSUM
      if (ipv4.isFragment(b, ip)) return DROP.OUTER_FRAGMENT
      if (ipv4.protocol(b, ip) !== ipv4.PROTOCOL.UDP) return DROP.NOT_TUNNEL
      transport = ip + ipv4.headerLength(b, ip)
      end = ip + ipv4.totalLength(b, ip)
      outerEcn = b[ip + 1] & 3
    } else if (type === ETHERTYPE.IPV6) {
      const bad = ipv6.check(b, ip, frameEnd)
      if (bad !== 0) return bad
      end = ip + ipv6.HEADER + ipv6.payloadLength(b, ip)
      if (ipv6.fragmentAt(b, ip, end) !== 0) return DROP.OUTER_FRAGMENT
      transport = ipv6.transportAt(b, ip, end)
      if (transport < 0) return -transport
      if (ipv6.transportProtocol(b, ip, end) !== ipv4.PROTOCOL.UDP) return DROP.NOT_TUNNEL
      outerEcn = ipv6.trafficClass(b, ip) & 3
    } else return DROP.NOT_TUNNEL

    const badUdp = udp.check(b, transport, end)
    if (badUdp !== 0) return badUdp
    if (udp.destinationPort(b, transport) !== this.port) return DROP.NOT_TUNNEL
    if (!this.anyPeer && !this.fromPeer(ip, type)) return DROP.UNKNOWN_PEER
    end = transport + udp.length(b, transport)
    const badChecksum = this.outerChecksum(frame, ip, transport, end, type)
    if (badChecksum !== 0) return badChecksum

    const tunnel = transport + udp.HEADER
    let inner = 0
    if (this.geneve) {
      const bad = geneve.check(b, tunnel, end, NO_CLASS)
      if (bad !== 0) return bad
      if (geneve.protocol(b, tunnel) !== ETHERTYPE.TEB) return DROP.GENEVE_PROTOCOL
      if (!this.anyPeer && geneve.vni(b, tunnel) !== this.vni) return DROP.UNKNOWN_VNI
      inner = tunnel + geneve.headerLength(b, tunnel)
    } else {
      const bad = vxlan.check(b, tunnel, end, this.strict)
      if (bad !== 0) return bad
      if (!this.anyPeer && vxlan.vni(b, tunnel) !== this.vni) return DROP.UNKNOWN_VNI
      inner = tunnel + vxlan.HEADER
    }

    if (!this.innerVlan && inner + ETHERNET <= end && vlan.isTag(etherType(b, inner))) return DROP.INNER_VLAN
    const bad = parse(pool, frame, inner, end)
    if (bad === 0) {
      const ecn = this.combineEcn(frame, outerEcn, transport)
      if (ecn !== 0) return ecn
    } else if (!this.anyInner) return bad

    const gso = pool.gso[frame]
    if (gso !== GSO.NONE && (gso & GSO.TUNNEL) === 0) return DROP.OFFLOAD
    pool.outerTransport[frame] = transport
    if (!this.keep) this.strip(frame, inner, end)
    return 0
  }

  private fromPeer(ip: number, type: number): boolean {
    const { view } = this.pool
    const { addresses } = this
    const four = type === ETHERTYPE.IPV4
    if (addresses.length !== (four ? 2 : 8)) return false
    const at = ip + (four ? ipv4.SOURCE : ipv6.SOURCE)
    for (let i = 0; i < addresses.length; i++) if (view.getInt32(at + (i << 2)) !== addresses[i]) return false
    return true
  }

  /** Zero is accepted over IPv4 (RFC 7348 section 5, RFC 8926 section 4.3), over IPv6 where the peer may; a wrong one never is. */
  private outerChecksum(frame: number, ip: number, transport: number, end: number, type: number): DropReason {
    const { pool } = this
    const b = pool.bytes
    if (udp.checksum(b, transport) === 0) {
      return type === ETHERTYPE.IPV6 && !this.zeroChecksum6 ? DROP.UDP_ZERO_CHECKSUM : 0
    }
    // A partial checksum has not been on a wire yet, and one of a super-packet was verified when it was put together.
    if (pool.offload[frame] !== 0 || pool.gso[frame] !== GSO.NONE) return 0
    const length = end - transport
    const pseudo =
      type === ETHERTYPE.IPV4
        ? checksum.pseudo4(b, ip, ipv4.PROTOCOL.UDP, length)
        : checksum.pseudo6(b, ip, ipv4.PROTOCOL.UDP, length)
    return checksum.fold(checksum.sum(b, transport, end, pseudo)) === 0xffff ? 0 : DROP.UDP_CHECKSUM
  }

  /** RFC 6040 section 4.2, figure 4. */
  private combineEcn(frame: number, outer: number, outerTransport: number): DropReason {
    if (outer === NOT_ECT) return 0
    const { pool } = this
    const b = pool.bytes
    const network = pool.network[frame]
    const four = b[network] >> 4 === 4
    const inner = (four ? b[network + 1] : ipv6.trafficClass(b, network)) & 3
    if (inner === NOT_ECT) {
      if (outer === CE) return DROP.ECN_CE_NOT_ECT
      this.counters.failed()
      return 0
    }
    const ecn = outer === CE ? CE : outer === ECT1 && inner === ECT0 ? ECT1 : inner
    if (inner === CE && outer === ECT1) this.counters.failed()
    if (ecn === inner) return 0
    if (four) {
      // NB: the header's own checksum absorbs the change, so an outer UDP checksum over it stays right.
      ipv4.rewriteTos(b, network, (b[network + 1] & ~3) | ecn)
      return 0
    }
    const before = (b[network] << 8) | b[network + 1]
    ipv6.setTrafficClass(b, network, (ipv6.trafficClass(b, network) & ~3) | ecn)
    const old = udp.checksum(b, outerTransport)
    if (this.keep && old !== 0 && !this.isPartial(frame, outerTransport)) {
      const after = (b[network] << 8) | b[network + 1]
      udp.setChecksum(b, outerTransport, checksum.update(old, before, after) || 0xffff)
    }
    return 0
  }

  /** True when the outer UDP checksum is still to be computed, over whatever stands there then. */
  private isPartial(frame: number, outerTransport: number): boolean {
    const { pool } = this
    const offload = pool.offload[frame]
    if ((offload & OFFLOAD.OUTER_CHECKSUM) !== 0) return true
    return (offload & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] === outerTransport
  }

  /** NB: an outer checksum that was verified, or was none, says nothing of the inner one. */
  private strip(frame: number, inner: number, end: number): void {
    const { pool } = this
    const partial = (pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] >= inner
    pool.start[frame] = inner
    pool.length[frame] = end - inner
    pool.outerTransport[frame] = 0
    pool.gso[frame] &= ~GSO.TUNNEL
    pool.offload[frame] = partial ? OFFLOAD.NEEDS_CHECKSUM : 0
  }
}
