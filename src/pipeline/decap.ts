// Decapsulation: checks every outer header, finds the inner ones, applies RFC 6040 and strips, or leaves the outer
// headers in front for a gateway that is going to turn the packet around.

import { DROP, type DropReason } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { ENDPOINT, ENDPOINT_NUMBERS, type EndpointView } from '../memory/endpoints.ts'
import { GSO, KEY_WORDS, OFFLOAD, type Pool } from '../memory/pool.ts'
import * as checksum from '../wire/checksum.ts'
import * as ethernet from '../wire/ethernet.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'
import { isTag } from '../wire/vlan.ts'
import * as vxlan from '../wire/vxlan.ts'
import { AddressSet } from './address-set.ts'
import { COOKIE_WORD } from './links.ts'
import { parse } from './parse.ts'
import { optionBytes, type TunnelConfig, tunnelWords } from './tunnel.ts'

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

/** The address of whatever a packet comes from or goes to, where nobody knows it. */
const NOBODY = { high: 0x0200, low: 0 } as const

const NOT_ECT = 0
const ECT1 = 1
const ECT0 = 2
const CE = 3

// NB: the compiler looks constants of other modules up at each use.
const ETHER = ETHERNET
const PLAIN_IPV4 = 0x080045
const PLAIN_IPV6 = 0x86dd6
const IPV4 = ETHERTYPE.IPV4
const IPV6 = ETHERTYPE.IPV6
const IPV4_BYTES = ipv4.HEADER
const IPV6_BYTES = ipv6.HEADER
const IS_FRAGMENT = ipv4.IS_FRAGMENT
const UDP = ipv4.PROTOCOL.UDP
const UDP_BYTES = udp.HEADER
const VXLAN_BYTES = vxlan.HEADER
const VXLAN_I = vxlan.FLAG_I << 24
const TUNNEL_GSO = GSO.TUNNEL
/** Behind Ethernet, the least that either tunnel takes. */
const SHORTEST = ipv4.HEADER + udp.HEADER + vxlan.HEADER

/** The stage that takes a tunnel's headers off. */
export class Decap {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly geneve: boolean
  private readonly port: number
  private readonly vni: number
  private readonly strict: boolean
  /** What our own GENEVE headers begin with, the head of the option in them, 0 for none, and their bytes: they need no walk. */
  private readonly ownHead: number
  private readonly ownOption: number
  private readonly ownBytes: number
  /** Class, type and length of the option with the flow cookie; 0 for none. */
  private readonly cookieHead: number
  /** 1 where IP packets come without a link header, and how large they may be; 0 for any. */
  private readonly bare: number
  private readonly largest: number
  /** The second tunnel, of packets that are on the other way; undefined where there is but one. */
  private readonly arriving: TunnelConfig['arriving']
  /** Where our own address is not the only one that packets come back to. */
  private readonly anyDestination: boolean
  private readonly innerVlan: boolean
  private readonly zeroChecksum6: boolean
  private readonly anyPeer: boolean
  private readonly keep: boolean
  private readonly anyInner: boolean
  /** Expected outer destination address, in words of network order, and the sources: every endpoint of the tunnel. */
  private readonly local: Int32Array
  private readonly peers: AddressSet

  constructor(pool: Pool, counters: StageCounters, tunnel: TunnelConfig, options: DecapOptions) {
    this.pool = pool
    this.counters = counters
    this.geneve = tunnel.kind === 'geneve'
    this.port = tunnel.port
    this.vni = tunnel.vni
    this.strict = tunnel.strictReserved
    const { head, option } = tunnelWords(tunnel)
    this.ownHead = head
    this.ownOption = option
    this.ownBytes = geneve.HEADER + optionBytes(tunnel)
    const { cookieAt, words = [] } = tunnel.options ?? {}
    this.cookieHead = cookieAt === undefined ? 0 : words[cookieAt - 1]
    this.bare = tunnel.inner === 'ip' ? 1 : 0
    this.largest = options.anyPeer ? 0 : (tunnel.largest ?? 0)
    this.arriving = tunnel.arriving
    this.anyDestination = tunnel.podSource === true
    this.innerVlan = tunnel.innerVlan
    this.zeroChecksum6 = tunnel.zeroChecksum6
    this.anyPeer = options.anyPeer
    this.keep = options.keep
    this.anyInner = options.anyInner
    const local = new DataView(Uint8Array.from(tunnel.local).buffer)
    this.local = Int32Array.from({ length: local.byteLength / 4 }, (_, i) => local.getInt32(4 * i))
    this.peers = new AddressSet(this.local.length)
    this.peers.add(new DataView(Uint8Array.from(tunnel.remote).buffer), 0)
  }

  /** Takes over who the endpoints are: what comes from one of them is let in, also of a flow that has another by now. */
  follow({ words, bytes }: EndpointView): void {
    const { peers } = this
    peers.clear()
    for (let number = 1; number < ENDPOINT_NUMBERS; number++) {
      const at = number * ENDPOINT.WORDS
      if (words[at + ENDPOINT.STATE] !== 0) peers.add(bytes, (at + ENDPOINT.ADDRESS) * 4)
    }
  }

  /** Decapsulates every frame; those refused are dropped with their reason. */
  readonly run = (batch: Batch): void => {
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

  /** Nearly all packets have no tags, no IPv4 options and no IPv6 extension headers; `openAny` takes the rest, and all that is wrong. */
  private readonly open = (frame: number): DropReason => {
    const { pool } = this
    const { view } = pool
    const start = pool.start[frame]
    const frameEnd = start + pool.length[frame]
    const ip = start + ETHER
    if (frameEnd - ip < SHORTEST) return this.openAny(frame)
    const head = view.getInt32(ip - 2) >>> 8
    const w0 = view.getInt32(ip)
    const w1 = view.getInt32(ip + 4)
    if (head === PLAIN_IPV4) {
      const w2 = view.getInt32(ip + 8)
      const w3 = view.getInt32(ip + 12)
      const w4 = view.getInt32(ip + 16)
      let sum = (w0 >>> 16) + (w1 >>> 16) + (w2 >>> 16) + (w3 >>> 16) + (w4 >>> 16)
      sum += (w0 & 0xffff) + (w1 & 0xffff) + (w2 & 0xffff) + (w3 & 0xffff) + (w4 & 0xffff)
      sum = (sum & 0xffff) + (sum >>> 16)
      const end = ip + (w0 & 0xffff)
      // Ten words carry at most nine times, so folding once is enough.
      if (sum !== 0xffff || (w1 & IS_FRAGMENT) !== 0 || ((w2 >>> 16) & 0xff) !== UDP || end > frameEnd)
        return this.openAny(frame)
      return this.datagram(frame, ip, IPV4, ip + IPV4_BYTES, end, (w0 >>> 16) & 3)
    }
    const end = ip + IPV6_BYTES + (w1 >>> 16)
    if (head >>> 4 !== PLAIN_IPV6 || ((w1 >>> 8) & 0xff) !== UDP || end > frameEnd) return this.openAny(frame)
    return this.datagram(frame, ip, IPV6, ip + IPV6_BYTES, end, (w0 >>> 20) & 3)
  }

  private openAny(frame: number): DropReason {
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

    return this.datagram(frame, ip, type, transport, end, outerEcn)
  }

  /** What is in a sound outer IP packet of UDP: header at `transport`, end at `packetEnd`. */
  private readonly datagram = (
    frame: number,
    ip: number,
    type: number,
    transport: number,
    packetEnd: number,
    outerEcn: number,
  ): DropReason => {
    const { pool } = this
    const { view } = pool
    const tunnel = transport + UDP_BYTES
    if (tunnel > packetEnd) return DROP.UDP_TRUNCATED
    const bytes = view.getUint16(transport + 4)
    const end = transport + bytes
    if (bytes < UDP_BYTES || end > packetEnd) return DROP.UDP_LENGTH
    const port = view.getUint16(transport + 2)
    if (port !== this.port && (this.arriving === undefined || port !== this.arriving.port)) return DROP.NOT_TUNNEL
    if (!this.anyPeer && !this.fromPeer(ip, type)) return DROP.UNKNOWN_PEER
    if (view.getUint16(transport + 6) !== 0 || type !== IPV4) {
      const bad = this.outerChecksum(frame, ip, transport, end, type)
      if (bad !== 0) return bad
    }
    const inner = this.geneve ? this.behindGeneve(tunnel, end) : this.behindVxlan(tunnel, end)
    if (inner < 0) return -inner
    if (this.bare !== 0) return this.packet(frame, transport, inner, end, outerEcn)
    if (!this.innerVlan && inner + ETHER <= end && isTag(view.getUint16(inner + 12))) return DROP.INNER_VLAN
    const bad = parse(pool, frame, inner, end)
    if (bad !== 0) {
      if (!this.anyInner) return bad
    } else if (outerEcn !== NOT_ECT) {
      const ecn = this.combineEcn(frame, outerEcn, transport)
      if (ecn !== 0) return ecn
    }

    const gso = pool.gso[frame]
    if (gso !== 0 && (gso & TUNNEL_GSO) === 0) return DROP.OFFLOAD
    pool.outerTransport[frame] = transport
    if (!this.keep) this.strip(frame, inner, end)
    return 0
  }

  /** The same for an IP packet without a link header: gets one that says what it is, unless the outer headers stay. */
  private packet(frame: number, transport: number, inner: number, end: number, outerEcn: number): DropReason {
    const { pool } = this
    const { view, bytes } = pool
    const tunnel = transport + UDP_BYTES
    const type = geneve.protocol(bytes, tunnel)
    const start = inner - ETHER
    const option =
      this.cookieHead === 0
        ? 0
        : geneve.findOption(bytes, tunnel, this.cookieHead >>> 16, (this.cookieHead >> 8) & 0xff)
    const cookie = option !== 0 && option + 8 <= inner ? view.getInt32(option + 4) : 0
    // NB: parse reads the type in front of the packet, where headers that stay have something else.
    const before = view.getUint16(inner - 2)
    view.setUint16(inner - 2, type)
    let bad = parse(pool, frame, start, end)
    if (this.keep) view.setUint16(inner - 2, before)
    if (bad !== 0 && this.anyInner) bad = 0
    else if (bad === 0 && outerEcn !== NOT_ECT) bad = this.combineEcn(frame, outerEcn, transport)
    if (bad !== 0) return bad
    const gso = pool.gso[frame]
    if (gso !== 0 && (gso & TUNNEL_GSO) === 0) return DROP.OFFLOAD
    const size = gso === 0 ? end - inner : pool.payload[frame] - inner + pool.gsoSize[frame]
    if (this.largest !== 0 && size > this.largest) return DROP.RETURNED_TOO_BIG
    pool.key[frame * KEY_WORDS + COOKIE_WORD] = cookie
    pool.outerTransport[frame] = transport
    if (this.keep) return 0
    ethernet.write(bytes, start, NOBODY.high, NOBODY.low, NOBODY.high, NOBODY.low, type)
    this.strip(frame, start, end)
    return 0
  }

  /** The position behind the GENEVE header and its options, or a drop reason, negated. Headers like our own need no walk. */
  private readonly behindGeneve = (at: number, end: number): number => {
    const { view } = this.pool
    if (this.bare !== 0) return this.behindOptions(at, end)
    const { ownHead, ownOption } = this
    const inner = at + this.ownBytes
    if (inner <= end && view.getInt32(at) === ownHead && (ownOption === 0 || view.getInt32(at + 8) === ownOption))
      return this.anyPeer || view.getInt32(at + 4) >>> 8 === this.vni ? inner : -DROP.UNKNOWN_VNI
    return this.behindOptions(at, end)
  }

  private readonly behindOptions = (at: number, end: number): number => {
    const { bytes } = this.pool
    const bad = geneve.check(bytes, at, end, NO_CLASS)
    if (bad !== 0) return -bad
    const type = geneve.protocol(bytes, at)
    const carried = this.bare === 0 ? type === ETHERTYPE.TEB : type === IPV4 || type === IPV6
    if (!carried) return -DROP.GENEVE_PROTOCOL
    if (!this.anyPeer && geneve.vni(bytes, at) !== this.vni) return -DROP.UNKNOWN_VNI
    return at + geneve.headerLength(bytes, at)
  }

  /** The same for VXLAN. */
  private readonly behindVxlan = (at: number, end: number): number => {
    const { view } = this.pool
    if (at + VXLAN_BYTES > end) return -DROP.VXLAN_TRUNCATED
    const flags = view.getInt32(at)
    const network = view.getInt32(at + 4)
    if ((flags & VXLAN_I) === 0) return -DROP.VXLAN_FLAGS
    if (this.strict && ((flags & ~VXLAN_I) | (network & 0xff)) !== 0) return -DROP.VXLAN_RESERVED
    if (this.arriving !== undefined && !this.anyInner) {
      // Each port has a VNI of its own, also where anybody may send.
      const isOther = view.getUint16(at - UDP_BYTES + 2) === this.arriving.port
      return network >>> 8 === (isOther ? this.arriving.vni : this.vni) ? at + VXLAN_BYTES : -DROP.UNKNOWN_VNI
    }
    return this.anyPeer || network >>> 8 === this.vni ? at + VXLAN_BYTES : -DROP.UNKNOWN_VNI
  }

  private fromPeer(ip: number, type: number): boolean {
    const { view } = this.pool
    const { local } = this
    const words = local.length
    if (words !== (type === ETHERTYPE.IPV4 ? 1 : 4)) return false
    const source = ip + (words === 1 ? ipv4.SOURCE : ipv6.SOURCE)
    const destination = source + (words << 2)
    if (!this.anyDestination)
      for (let i = 0; i < words; i++) if (view.getInt32(destination + (i << 2)) !== local[i]) return false
    return this.peers.has(view, source)
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
