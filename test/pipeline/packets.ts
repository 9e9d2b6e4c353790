// Frames for the tests of the pipeline, inner and tunnelled, written byte by byte from the RFCs' diagrams: nothing of
// src/wire has a part in them.

import ipaddr from 'ipaddr.js'
import { plainSum } from './super.ts'

export type Version = 4 | 6
export type Kind = 'geneve' | 'vxlan'

export const ICMP = 1
export const TCP = 6
export const UDP = 17
export const ICMPV6 = 58

export interface Inner {
  version?: Version
  from?: string
  to?: string
  fromMac?: string
  toMac?: string
  /** Words in front of the EtherType, two a tag: TPID and TCI. */
  tags?: number[]
  /** EtherType and what follows, instead of IP. */
  raw?: [type: number, payload: number[]]
  tos?: number
  ttl?: number
  id?: number
  /** IPv4: the word of flags and offset. IPv6: the same word of a fragment header (offset << 3 | more). */
  fragment?: number
  /** Bytes of IPv4 options, a multiple of 4. */
  options?: number
  protocol?: number
  sourcePort?: number
  port?: number
  /** TCP flags. */
  flags?: number
  data?: ArrayLike<number>
  /** What stands behind the IP header, instead of a transport header and data. */
  body?: number[]
  /** Bytes behind the packet. */
  padding?: number
}

export const POD = { mac: '02:00:00:00:0a:01', ip4: '10.1.0.5', ip6: 'fd00:1::5' } as const
export const PEER = { mac: '02:00:00:00:0b:02', ip4: '192.0.2.9', ip6: '2001:db8::9' } as const

const be16 = (v: number) => [(v >> 8) & 255, v & 255]
const be32 = (v: number) => [...be16(v >>> 16), ...be16(v)]
const macBytes = (text: string) => text.split(':').map(byte => Number.parseInt(byte, 16))

/** The bytes of an address, 4 or 16. */
export function address(text: string): number[] {
  return ipaddr.parse(text).toByteArray()
}

const pseudoSum = (addresses: number[], protocol: number, length: number) =>
  plainSum([...addresses, ...be32(length), 0, 0, 0, protocol])

/** A checksum field; of the protocols that know "none", 0 is written as 0xffff. */
const checksum = (bytes: ArrayLike<number>, seed = 0) => ~plainSum([...be16(seed), ...Array.from(bytes)]) & 0xffff

/** An inner frame; from the pod to its peer, UDP over IPv4, unless told otherwise. */
export function frame(inner: Inner = {}): Uint8Array {
  const { fromMac = POD.mac, toMac = PEER.mac, tags = [], padding = 0 } = inner
  const [type, packet] = inner.raw ?? [inner.version === 6 ? 0x86dd : 0x0800, ip(inner)]
  const head = [...macBytes(toMac), ...macBytes(fromMac), ...tags.flatMap(be16), ...be16(type)]
  return Uint8Array.from([...head, ...packet, ...new Array(padding).fill(0xdd)])
}

/** The IP packet of such a frame. */
export function ip(inner: Inner): number[] {
  const { version = 4, tos = 0, ttl = 64, id = 0x1234, fragment, protocol = UDP, options = 0 } = inner
  const from = address(inner.from ?? (version === 4 ? POD.ip4 : POD.ip6))
  const to = address(inner.to ?? (version === 4 ? PEER.ip4 : PEER.ip6))
  const body = inner.body ?? transport(inner, [...from, ...to])
  if (version === 4) {
    const header = 20 + options
    const bytes = [0x40 | (header >> 2), tos, ...be16(header + body.length), ...be16(id), ...be16(fragment ?? 0x4000)]
    bytes.push(ttl, protocol, 0, 0, ...from, ...to, ...new Array(options).fill(1))
    bytes.splice(10, 2, ...be16(checksum(bytes)))
    return [...bytes, ...body]
  }
  const extension = fragment === undefined ? [] : [protocol, 0, ...be16(fragment), ...be32(id)]
  const next = fragment === undefined ? protocol : 44
  const length = extension.length + body.length
  return [0x60 | (tos >> 4), (tos & 15) << 4, 0, 0, ...be16(length), next, ttl, ...from, ...to, ...extension, ...body]
}

function transport(inner: Inner, addresses: number[]): number[] {
  const { version = 4, protocol = UDP, sourcePort = 40_000, port = 40_001, flags = 0x18 } = inner
  const data = Array.from(inner.data ?? [1, 2, 3, 4, 5])
  const ports = [...be16(sourcePort), ...be16(port)]
  const pseudo = (length: number) => pseudoSum(addresses, protocol, length)
  if (protocol === UDP) {
    const bytes = [...ports, ...be16(8 + data.length), 0, 0, ...data]
    bytes.splice(6, 2, ...be16(checksum(bytes, pseudo(bytes.length)) || 0xffff))
    return bytes
  }
  if (protocol === TCP) {
    const bytes = [...ports, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags, 2, 0, 0, 0, 0, 0, ...data]
    bytes.splice(16, 2, ...be16(checksum(bytes, pseudo(bytes.length))))
    return bytes
  }
  // ICMP: type and code in place of the source port, identifier in place of the destination port.
  const echo = [...(inner.sourcePort === undefined ? [version === 4 ? 8 : 128, 0] : be16(sourcePort)), 0, 0]
  const bytes = [...echo, ...be16(port), 0, 1, ...data]
  const seed = version === 6 ? pseudo(bytes.length) : 0
  bytes.splice(2, 2, ...be16(checksum(bytes, seed)))
  return bytes
}

/** An ICMP error (type << 8 | code) from `from` to the sender of `about`, quoting its first bytes. */
export function icmpError(about: Inner, typeCode: number, quoted: number, from: string): Inner {
  const { version = 4 } = about
  return {
    version,
    protocol: version === 4 ? ICMP : ICMPV6,
    from,
    to: about.from ?? (version === 4 ? POD.ip4 : POD.ip6),
    sourcePort: typeCode,
    port: 0,
    data: ip(about).slice(0, quoted),
  }
}

export interface Outer {
  kind?: Kind
  from?: string
  to?: string
  tags?: number[]
  tos?: number
  ttl?: number
  /** IPv4: the word of flags and offset. IPv6: as in Inner. */
  fragment?: number
  options?: number
  protocol?: number
  sourcePort?: number
  port?: number
  checksum?: 'right' | 'zero' | 'wrong'
  /** Added to the UDP length field. */
  lengthError?: number
  vni?: number
  /** GENEVE: version and flags, the first two bytes with the options length left out. VXLAN: the first byte. */
  flags?: number
  /** GENEVE options; the options length says how long they are unless `optionWords` says otherwise. */
  geneveOptions?: number[]
  optionWords?: number
  type?: number
  /** VXLAN: bytes 1 to 3 and 7. GENEVE: byte 7. */
  reserved?: number
}

export const TUNNEL_ENDS = {
  4: { local: '10.8.0.1', remote: '10.8.0.2' },
  6: { local: 'fd00:8::1', remote: 'fd00:8::2' },
} as const

export const VNI = 0x123456

/** An underlay frame from the endpoint to us with `inner` in it. */
export function tunnelled(inner: Uint8Array, outer: Outer = {}): Uint8Array {
  const { kind = 'geneve', to = TUNNEL_ENDS[4].local, vni = VNI, reserved = 0 } = outer
  const version = to.includes(':') ? 6 : 4
  const from = outer.from ?? TUNNEL_ENDS[version].remote
  const { geneveOptions = [], type = 0x6558, flags = kind === 'geneve' ? 0 : 8 } = outer
  const words = outer.optionWords ?? geneveOptions.length >> 2
  const header =
    kind === 'geneve'
      ? [...be16(flags | (words << 8)), ...be16(type), vni >> 16, ...be16(vni), reserved, ...geneveOptions]
      : [flags, reserved, reserved, reserved, vni >> 16, ...be16(vni), reserved]
  const data = [...header, ...inner]
  const ports = [outer.sourcePort ?? 50_000, outer.port ?? (kind === 'geneve' ? 6081 : 4789)].flatMap(be16)
  const udp = [...ports, ...be16(8 + data.length + (outer.lengthError ?? 0)), 0, 0, ...data]
  const sum = checksum(udp, pseudoSum([...address(from), ...address(to)], UDP, udp.length)) || 0xffff
  const mode = outer.checksum ?? 'right'
  udp.splice(6, 2, ...be16(mode === 'zero' ? 0 : mode === 'wrong' ? sum ^ 0x0100 : sum))
  return frame({ ...outer, version, from, to, protocol: outer.protocol ?? UDP, options: outer.options, body: udp })
}

/** A GENEVE option. */
export function option(optionClass: number, type: number, data: number[] = []): number[] {
  return [...be16(optionClass), type, data.length >> 2, ...data]
}

/** What an endpoint does: outer addresses exchanged, ports, tunnel header and inner frame as they came. */
export function turned(packet: Uint8Array): Uint8Array {
  const bytes = packet.slice()
  const exchange = (x: number, y: number, size: number) => {
    const first = bytes.slice(x, x + size)
    bytes.copyWithin(x, y, y + size)
    bytes.set(first, y)
  }
  exchange(0, 6, 6)
  if (bytes[14] >> 4 === 4) exchange(26, 30, 4)
  else exchange(22, 38, 16)
  return bytes
}
