// Inner packets of the conformance suite: whole IP packets of numbered flows, made anew for each probe.

import { setI32, setU16 } from '../wire/bytes.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'

export type Family = 4 | 6

/** A flow of the suite: the client has a port of its own, so flows of different numbers never share a five-tuple. */
export interface Flow {
  family: Family
  number: number
  client: Uint8Array
  server: Uint8Array
  clientPort: number
  serverPort: number
}

/** Ports that clients have: registered ones, because some filters judge others. */
const FIRST_PORT = 20_000
const PORTS = 28_000
const SERVER_PORT = 9000

/** The flow of a number; private addresses (RFC 1918, RFC 4193), because documentation ones are filtered here and there. */
export function flowOf(number: number, family: Family = 4): Flow {
  const host = 1 + (Math.floor(number / PORTS) % 200)
  const address = (last: number, net: number) =>
    family === 4 ? Uint8Array.of(10, 64, net, last) : Uint8Array.of(0xfd, 0, 0x64, net, ...Array(11).fill(0), last)
  return {
    family,
    number,
    client: address(host, 1),
    server: address(1, 2),
    clientPort: FIRST_PORT + (number % PORTS),
    serverPort: SERVER_PORT,
  }
}

export interface IpFields {
  /** From the server to the client. */
  reply?: boolean
  tos?: number
  ttl?: number
  /** IPv4 options, or IPv6 extension headers whose first is of kind `extension`. */
  options?: Uint8Array
  extension?: number
  identification?: number
  /** The 16-bit word of flags and offset of IPv4. */
  fragment?: number
}

const TTL = 61

/** An IP packet of any protocol. */
export function packet(flow: Flow, protocol: number, payload: Uint8Array, fields: IpFields = {}): Uint8Array {
  const { reply = false, tos = 0, ttl = TTL, options = new Uint8Array(0), identification = 0 } = fields
  const { family } = flow
  const header = (family === 4 ? ipv4.HEADER : ipv6.HEADER) + options.length
  const b = new Uint8Array(header + payload.length)
  const [from, to] = reply ? [flow.server, flow.client] : [flow.client, flow.server]
  b.set(options, header - options.length)
  b.set(payload, header)
  if (family === 4) {
    ipv4.write(b, 0, header, tos, b.length, identification, fields.fragment ?? 0x4000, ttl, protocol, 0, 0)
    b.set(from, ipv4.SOURCE)
    b.set(to, ipv4.DESTINATION)
    ipv4.updateChecksum(b, 0)
  } else {
    ipv6.write(b, 0, tos, 0, b.length - ipv6.HEADER, fields.extension ?? protocol, ttl)
    b.set(from, ipv6.SOURCE)
    b.set(to, ipv6.DESTINATION)
  }
  return b
}

/** Where the payload of a packet made here begins: behind options and extension headers. */
const payloadOf = (b: Uint8Array, payload: Uint8Array) => b.length - payload.length

/** A UDP datagram. */
export function udpPacket(flow: Flow, data: Uint8Array, fields: IpFields & { checksum?: boolean } = {}): Uint8Array {
  const payload = new Uint8Array(udp.HEADER + data.length)
  const [from, to] = fields.reply ? [flow.serverPort, flow.clientPort] : [flow.clientPort, flow.serverPort]
  udp.write(payload, 0, from, to, payload.length, 0)
  payload.set(data, udp.HEADER)
  const b = packet(flow, ipv4.PROTOCOL.UDP, payload, fields)
  if (fields.checksum !== false) udp.updateChecksum(b, 0, payloadOf(b, payload))
  return b
}

export interface Segment {
  flags: number
  sequence: number
  acknowledgment: number
  options?: Uint8Array
  data?: Uint8Array
}

/** A TCP segment. */
export function tcpPacket(flow: Flow, segment: Segment, fields: IpFields = {}): Uint8Array {
  const { options = new Uint8Array(0), data = new Uint8Array(0) } = segment
  const header = tcp.HEADER + options.length
  const payload = new Uint8Array(header + data.length)
  const [from, to] = fields.reply ? [flow.serverPort, flow.clientPort] : [flow.clientPort, flow.serverPort]
  tcp.write(payload, 0, header, from, to, segment.sequence, segment.acknowledgment, segment.flags, 0xffff)
  payload.set(options, tcp.HEADER)
  payload.set(data, header)
  const b = packet(flow, ipv4.PROTOCOL.TCP, payload, fields)
  tcp.updateChecksum(b, 0, payloadOf(b, payload), b.length)
  return b
}

/** An ICMP or ICMPv6 message of a type and code, with the word behind its checksum and what follows. */
export function icmpPacket(
  flow: Flow,
  [type, code, word]: readonly [number, number, number],
  data: Uint8Array,
  fields: IpFields = {},
): Uint8Array {
  const payload = new Uint8Array(icmp.HEADER + data.length)
  icmp.write(payload, 0, type, code, word)
  payload.set(data, icmp.HEADER)
  const four = flow.family === 4
  const b = packet(flow, four ? ipv4.PROTOCOL.ICMP : ipv4.PROTOCOL.ICMPV6, payload, fields)
  const at = payloadOf(b, payload)
  if (four) icmp.updateChecksum4(b, at, b.length)
  else icmp.updateChecksum6(b, 0, at, b.length)
  return b
}

/** The fragments of a datagram whose payload is `pieces`, each but the last a multiple of 8 bytes. */
export function fragments(flow: Flow, protocol: number, pieces: readonly Uint8Array[], id: number): Uint8Array[] {
  let offset = 0
  return pieces.map((piece, i) => {
    const more = i < pieces.length - 1
    const at = offset
    offset += piece.length
    if (flow.family === 4)
      return packet(flow, protocol, piece, {
        identification: id & 0xffff,
        fragment: (at >> 3) | (more ? ipv4.MORE_FRAGMENTS : 0),
      })
    const header = new Uint8Array(ipv6.FRAGMENT_HEADER)
    header[0] = protocol
    setU16(header, 2, at | (more ? 1 : 0))
    setI32(header, 4, id)
    return packet(flow, protocol, piece, { options: header, extension: ipv6.EXTENSION.FRAGMENT })
  })
}
