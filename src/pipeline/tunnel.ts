// What both ends of a tunnel agree on: plain data that passes through workerData, and the size of its headers.

import { i32 } from '../wire/bytes.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import { HEADER as IPV4 } from '../wire/ipv4.ts'
import { HEADER as IPV6 } from '../wire/ipv6.ts'
import { HEADER as UDP } from '../wire/udp.ts'
import * as vxlan from '../wire/vxlan.ts'

/** How the outer UDP checksum is sent: as the RFCs advise, never, or always. */
export type OuterChecksum = 'auto' | 'zero' | 'always'

export interface TunnelConfig {
  /** Name that people configured; the wire format follows from `kind`. */
  profile: string
  kind: 'geneve' | 'vxlan'
  /** UDP destination port, in both directions. */
  port: number
  /** 24 bits. */
  vni: number
  /** Our underlay address, 4 or 16 bytes in network order. */
  local: number[]
  /** The endpoint's underlay address, of the same family. */
  remote: number[]
  /** Outer TTL or hop limit. */
  ttl: number
  /** `copy` the inner DSCP to the outer header (RFC 2983 uniform model), or send this value. */
  dscp: 'copy' | number
  /** RFC 6040 section 4.1: `normal` copies the inner ECN field outward, `compatibility` sends Not-ECT. */
  ecn: 'normal' | 'compatibility'
  outerChecksum: OuterChecksum
  /** Accept zero UDP checksums over IPv6 from this peer (RFC 6935, RFC 6936). */
  zeroChecksum6: boolean
  /** Drop VXLAN packets whose reserved bits are set, as Linux's device does; RFC 7348 says to ignore them. */
  strictReserved: boolean
  /** Carry inner VLAN tags instead of dropping such packets (RFC 7348 section 6.1). */
  innerVlan: boolean
  /** GENEVE: send our own option with attachment, direction and flow cookie, unless there are `options`. */
  metadata: boolean
  /** IP packets travel without an Ethernet header; Ethernet frames do when not given. */
  inner?: 'ip'
  /** GENEVE: the options in the place of our own. */
  options?: OptionLayout
  /** Whether an endpoint returns options; it does when not given. */
  returnsOptions?: boolean
  /** Bytes of the largest inner IP packet, either way. */
  largest?: number
  /** The tunnel of what arrives at pods, where it is not that of what leaves them; each returns by the other one. */
  arriving?: { port: number; vni: number }
  /** The outer source is the pod's own address where it has one of the underlay's IP version. */
  podSource?: boolean
}

/** GENEVE options as they are sent, in words of network order, and which of the words differ from packet to packet, by index. */
export interface OptionLayout {
  words: number[]
  /** The attachment number is added to it. */
  attachmentAt?: number
  /** Bit 0 is 1 of what leaves the pod. */
  leavingAt?: number
  /** The flow cookie, all the data of its option. */
  cookieAt?: number
  /** What comes back without its flow's cookie is dropped. */
  mustReturn: boolean
}

/** UDP ports that IANA assigned. */
export const TUNNEL_PORT = { geneve: 6081, vxlan: 4789 } as const

/** Our GENEVE option: experimental class (RFC 8926 section 7), not critical. Data: attachment 16 bits, direction 8, zero 8, flow cookie 32. */
export const METADATA = { CLASS: 0xfff0, TYPE: 1, DATA: 8 } as const

/** The header of a GENEVE option as a word: class, type, and bytes of data. */
export function optionHead(classNumber: number, type: number, bytes: number): number {
  return (classNumber << 16) | (type << 8) | (bytes >> 2)
}

/** Bytes of GENEVE options that the tunnel sends. */
export function optionBytes(tunnel: TunnelConfig): number {
  if (tunnel.options !== undefined) return tunnel.options.words.length * 4
  return tunnel.kind === 'geneve' && tunnel.metadata ? geneve.OPTION + METADATA.DATA : 0
}

/** Bytes in front of what is in the tunnel: outer Ethernet, IP, UDP, tunnel header and options. */
export function outerBytes(tunnel: TunnelConfig): number {
  const ip = tunnel.local.length === 4 ? IPV4 : IPV6
  const header = tunnel.kind === 'geneve' ? geneve.HEADER : vxlan.HEADER
  return ETHERNET + ip + UDP + header + optionBytes(tunnel)
}

/** What a tunnel's own headers begin with, in words: the header's first and second, and the head of our own option, 0 for none. Of inner IP packets, as for IPv4. */
export function tunnelWords(tunnel: TunnelConfig): { head: number; network: number; option: number } {
  const b = new Uint8Array(geneve.HEADER + geneve.OPTION)
  const options = optionBytes(tunnel)
  if (tunnel.kind === 'vxlan') vxlan.write(b, 0, tunnel.vni)
  else geneve.write(b, 0, options, false, false, tunnel.inner === 'ip' ? ETHERTYPE.IPV4 : ETHERTYPE.TEB, tunnel.vni)
  if (options !== 0 && tunnel.options === undefined)
    geneve.writeOption(b, geneve.HEADER, METADATA.CLASS, METADATA.TYPE, METADATA.DATA)
  return { head: i32(b, 0), network: i32(b, 4), option: i32(b, geneve.HEADER) }
}

/** The largest inner IP datagram that an underlay of this MTU carries unfragmented. */
export function innerMtu(tunnel: TunnelConfig, underlayMtu: number): number {
  const headers = outerBytes(tunnel) - ETHERNET + (tunnel.inner === 'ip' ? 0 : ETHERNET)
  return Math.min(underlayMtu - headers, tunnel.largest ?? underlayMtu)
}
