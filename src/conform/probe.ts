// Probes: the packets of a case, whole outer IP packets with a token inside by which their answers are known.

import { i32, setI32, setU16 } from '../wire/bytes.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vxlan from '../wire/vxlan.ts'
import { type Family, type Flow, flowOf, udpPacket } from './inner.ts'
import { type ConformProfile, concat } from './profile.ts'

/** What is to become of a probe: it comes back, it does not, or either is right. */
export type Fate = 'back' | 'nothing' | 'either'

export interface Probe {
  flow: Flow
  token: number
  fate: Fate
  /** The outer IP packet. */
  packet: Uint8Array
  /** Where its tunnel header begins. */
  tunnelAt: number
  /** What is behind the tunnel header. */
  inner: Uint8Array
  /** Outer address that it comes from. */
  from: Uint8Array
  /** The VNI and the destination port that its answer has. */
  vni: number
  port: number
  options: Uint8Array
  /** Only a raw socket sends it: its outer UDP checksum is wrong on purpose, or it is a fragment. */
  raw: boolean
  /** Seconds of silence in front of it. */
  pauseSeconds: number
}

/** How a probe differs from what the profile sends as a rule. */
export interface ProbeFields {
  fate?: Fate
  reply?: boolean
  vni?: number
  /** GENEVE options; the profile's metadata when not given. */
  options?: Uint8Array
  /** The flow whose metadata it has; its own when not given. */
  metadataOf?: Flow
  /** GENEVE: one of the options is critical. */
  critical?: boolean
  /** Changes header or payload behind the UDP header; the outer lengths stay. */
  edit?: (tunnel: Uint8Array) => void
  /** Bytes that are left behind the UDP header. */
  cut?: number
  tos?: number
  checksum?: 'zero' | 'right' | 'wrong'
  /** Which of our two source ports. */
  source?: 0 | 1
  /** It comes from our second address. */
  second?: boolean
  /** 802.1Q and 802.1ad tags of the inner Ethernet frame. */
  tags?: Uint8Array
  pauseSeconds?: number
}

/** Two ends of the underlay, as the probes' outer headers have them. */
export interface Ends {
  local: Uint8Array
  remote: Uint8Array
  port: number
  /** Of the other tunnel, where there are two. */
  otherPort?: number
  /** Two source ports of ours. */
  sources: readonly [number, number]
  /** Another address of ours. */
  second?: Origin
}

/** Where outer packets come from: an address, and a source port there. */
interface Origin {
  local: Uint8Array
  source: number
}

interface Way {
  port: number
  vni: number
}

const MAGIC = 0x44744366
/** Bytes of a token. */
export const TOKEN = 8

/** The first token in a packet, or 0. */
export function tokenIn(b: Uint8Array): number {
  for (let at = 0; at + TOKEN <= b.length; at++) if (b[at] === 0x44 && i32(b, at) === MAGIC) return i32(b, at + 4) >>> 0
  return 0
}

const TTL = 64

/** Makes the probes of cases; numbers tokens and flows. */
export class Maker {
  readonly profile: ConformProfile
  readonly ends: Ends
  /** VNIs that the target serves. */
  readonly vnis: readonly number[]
  private flows: number
  private tokens = 0

  constructor(profile: ConformProfile, ends: Ends, vnis: readonly number[], firstFlow: number) {
    this.profile = profile
    this.ends = ends
    this.vnis = vnis
    this.flows = firstFlow
  }

  /** A flow that no probe has had. */
  flow(family: Family = 4): Flow {
    return flowOf(this.flows++, family)
  }

  /** Payload of `bytes` bytes that begins with the token of the next probe, or of one `ahead`. */
  data(bytes = 40, ahead = 0): Uint8Array {
    const b = new Uint8Array(Math.max(bytes, TOKEN))
    for (let i = TOKEN; i < b.length; i++) b[i] = i * 7
    setI32(b, 0, MAGIC)
    setI32(b, 4, this.tokens + 1 + ahead)
    return b
  }

  /** The plain probe of a flow: UDP, 40 bytes. */
  plain(flow: Flow = this.flow(), fields: ProbeFields = {}): Probe {
    return this.probe(flow, udpPacket(flow, this.data(), { reply: fields.reply }), fields)
  }

  /** A probe around an inner IP packet of the flow, whose payload came from `data`. */
  probe(flow: Flow, packet: Uint8Array, fields: ProbeFields = {}): Probe {
    const { profile } = this
    const { fate = 'back', reply = false, pauseSeconds = 0 } = fields
    const [there, back] = this.ways(reply, fields.vni)
    const options = fields.options ?? profile.metadata(fields.metadataOf ?? flow, reply)
    const inner = profile.inner === 'ip' ? packet : inEthernet(packet, reply, fields.tags)
    const header =
      profile.kind === 'vxlan'
        ? vxlanHeader(there.vni)
        : geneveHeader(there.vni, options, fields.critical ?? false, profile, inner)
    const whole = concat(header, inner)
    fields.edit?.(whole)
    const tunnel = whole.subarray(0, fields.cut ?? whole.length)
    const checksum = fields.checksum ?? (profile.kind === 'vxlan' && this.isIpv4 ? 'zero' : 'right')
    const { local, sources, second } = this.ends
    const first = { local, source: sources[fields.source ?? 0] }
    const origin = fields.second ? (second ?? first) : first
    const outer = this.outer(tunnel, fields.tos ?? 0, checksum, origin, there.port)
    const tunnelAt = outer.length - tunnel.length
    this.tokens++
    return {
      flow,
      token: this.tokens,
      fate,
      packet: outer,
      tunnelAt,
      inner,
      from: origin.local,
      ...back,
      options,
      raw: checksum === 'wrong',
      pauseSeconds,
    }
  }

  /** Port and VNI by which a packet goes there, and those by which it comes back. */
  private ways(reply: boolean, vni = this.vnis[0]): [Way, Way] {
    const { profile, ends, vnis } = this
    const one = { port: ends.port, vni }
    if (profile.other === undefined) return [one, one]
    const inside = { port: ends.port, vni: vnis[0] }
    const outside = { port: ends.otherPort ?? profile.other.port, vni: vnis[1] ?? profile.other.vni }
    return reply ? [inside, outside] : [outside, inside]
  }

  private get isIpv4(): boolean {
    return this.ends.local.length === 4
  }

  private outer(
    tunnel: Uint8Array,
    tos: number,
    checksum: string,
    { local, source }: Origin,
    port: number,
  ): Uint8Array {
    const { remote } = this.ends
    const header = this.isIpv4 ? ipv4.HEADER : ipv6.HEADER
    const at = header + udp.HEADER
    const b = new Uint8Array(at + tunnel.length)
    b.set(tunnel, at)
    if (this.isIpv4) {
      ipv4.write(b, 0, header, tos, b.length, 0, ipv4.DONT_FRAGMENT, TTL, ipv4.PROTOCOL.UDP, 0, 0)
      b.set(local, ipv4.SOURCE)
      b.set(remote, ipv4.DESTINATION)
      ipv4.updateChecksum(b, 0)
    } else {
      ipv6.write(b, 0, tos, 0, b.length - header, ipv4.PROTOCOL.UDP, TTL)
      b.set(local, ipv6.SOURCE)
      b.set(remote, ipv6.DESTINATION)
    }
    udp.write(b, header, source, port, b.length - header, 0)
    if (checksum !== 'zero') udp.updateChecksum(b, 0, header)
    if (checksum === 'wrong') udp.setChecksum(b, header, udp.checksum(b, header) ^ 0x5555 || 0x5555)
    return b
  }
}

/** The probe with an outer IPv4 packet that is a fragment: of a datagram, `payload` from `offset` on, a multiple of 8. */
export function fragmentOf(probe: Probe, payload: Uint8Array, offset: number, more: boolean): Probe {
  const packet = concat(probe.packet.subarray(0, ipv4.HEADER), payload)
  setU16(packet, ipv4.FRAGMENT, (offset >> 3) | (more ? ipv4.MORE_FRAGMENTS : 0))
  ipv4.setIdentification(packet, 0, probe.flow.number & 0xffff)
  ipv4.setTotalLength(packet, 0, packet.length)
  ipv4.updateChecksum(packet, 0)
  return { ...probe, packet, raw: true }
}

function inEthernet(packet: Uint8Array, reply: boolean, tags: Uint8Array = new Uint8Array(0)): Uint8Array {
  const b = new Uint8Array(ethernet.HEADER)
  const [to, from] = reply ? [1, 2] : [2, 1]
  const type = packet[0] >> 4 === 6 ? ethernet.ETHERTYPE.IPV6 : ethernet.ETHERTYPE.IPV4
  ethernet.write(b, 0, 0x0200, to, 0x0200, from, type)
  const addresses = 2 * ethernet.ADDRESS
  return concat(b.subarray(0, addresses), tags, b.subarray(addresses), packet)
}

function vxlanHeader(vni: number): Uint8Array {
  const b = new Uint8Array(vxlan.HEADER)
  vxlan.write(b, 0, vni)
  return b
}

function geneveHeader(
  vni: number,
  options: Uint8Array,
  critical: boolean,
  profile: ConformProfile,
  inner: Uint8Array,
): Uint8Array {
  const b = new Uint8Array(geneve.HEADER + options.length)
  const ip = inner[0] >> 4 === 6 ? ethernet.ETHERTYPE.IPV6 : ethernet.ETHERTYPE.IPV4
  const type = profile.inner === 'ip' ? ip : ethernet.ETHERTYPE.TEB
  geneve.write(b, 0, options.length, false, critical, type, vni)
  b.set(options, geneve.HEADER)
  return b
}
