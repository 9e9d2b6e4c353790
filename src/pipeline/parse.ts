// Finds the headers of the Ethernet frame at a position and writes where they are into the frame's metadata. One pass,
// every length checked once; afterwards the accessors of wire/ cannot read outside the packet.

import { DROP, type DropReason } from '../drop.ts'
import type { Pool } from '../memory/pool.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'

// NB: the compiler looks constants of other modules up at each use, and inlines only short functions; parse is run for
// every packet, twice. Hence numbers of its own: type and first byte, and the least that UDP over IPv4 takes.
const PLAIN_IPV4 = 0x080045
const PLAIN_IPV6 = 0x86dd6
const IS_FRAGMENT = 0x3fff
const TCP = 6
const UDP = 17
const SHORTEST = 28

/**
 * Sets network, transport, protocol and payload for the Ethernet frame at `at`, which ends before `end`. Returns 0, or
 * the reason it cannot be forwarded; NOT_IP means that it is well formed but carries neither IPv4 nor IPv6.
 */
export function parse(pool: Pool, frame: number, at: number, end: number): DropReason {
  const { view } = pool
  const network = at + 14
  // Nearly all packets: no tag, no IPv4 options or IPv6 extension headers, no fragment, TCP or UDP, all of it there.
  if (end - network < SHORTEST) return parseAny(pool, frame, at, end)
  const head = view.getInt32(network - 2) >>> 8
  let transport = 0
  let last = end
  let protocol = 0
  if (head === PLAIN_IPV4) {
    const total = view.getInt32(network + 4)
    transport = network + 20
    last = network + view.getUint16(network + 2)
    protocol = (total & IS_FRAGMENT) === 0 ? view.getUint8(network + 9) : 0
  } else if (head >>> 4 === PLAIN_IPV6) {
    transport = network + 40
    last = transport + view.getUint16(network + 4)
    protocol = view.getUint8(network + 6)
  }
  let size = 0
  if (last <= end && transport + 8 <= last) {
    if (protocol === UDP) {
      const bytes = view.getUint16(transport + 4)
      if (bytes >= 8 && transport + bytes <= last) size = 8
    } else if (protocol === TCP && transport + 20 <= last) {
      const header = (view.getUint8(transport + 12) >>> 4) << 2
      if (header >= 20 && transport + header <= last) size = header
    }
  }
  if (size === 0) return parseAny(pool, frame, at, end)
  pool.network[frame] = network
  pool.transport[frame] = transport
  pool.protocol[frame] = protocol
  pool.payload[frame] = transport + size
  return 0
}

function parseAny(pool: Pool, frame: number, at: number, end: number): DropReason {
  const b = pool.bytes
  if (end - at < ETHERNET) return DROP.ETHERNET_TRUNCATED
  const network = vlan.payloadAt(b, at, end)
  if (network < 0) return -network
  const type = (b[network - 2] << 8) | b[network - 1]
  pool.network[frame] = network
  if (type === ETHERTYPE.IPV4) {
    const bad = ipv4.check(b, network, end)
    if (bad !== 0) return bad
    const transport = network + ipv4.headerLength(b, network)
    const protocol = ipv4.protocol(b, network)
    pool.protocol[frame] = protocol
    if (ipv4.fragmentOffset(b, network) !== 0) {
      pool.transport[frame] = 0
      pool.payload[frame] = transport
      return 0
    }
    const last = network + ipv4.totalLength(b, network)
    return parseTransport(pool, frame, transport, last, protocol, ipv4.moreFragments(b, network))
  }
  if (type === ETHERTYPE.IPV6) {
    const bad = ipv6.check(b, network, end)
    if (bad !== 0) return bad
    const last = network + ipv6.HEADER + ipv6.payloadLength(b, network)
    const next = ipv6.nextHeader(b, network)
    if (next === ipv4.PROTOCOL.TCP || next === ipv4.PROTOCOL.UDP || next === ipv4.PROTOCOL.ICMPV6) {
      pool.protocol[frame] = next
      return parseTransport(pool, frame, network + ipv6.HEADER, last, next, false)
    }
    const transport = ipv6.transportAt(b, network, last)
    if (transport < 0) return -transport
    const protocol = ipv6.transportProtocol(b, network, last)
    pool.protocol[frame] = protocol
    const fragment = ipv6.fragmentAt(b, network, last)
    if (fragment !== 0 && ipv6.fragmentOffset(b, fragment) !== 0) {
      pool.transport[frame] = 0
      pool.payload[frame] = transport
      return 0
    }
    return parseTransport(pool, frame, transport, last, protocol, fragment !== 0)
  }
  return DROP.NOT_IP
}

// NB: the UDP length of a first fragment is that of the whole datagram, so it cannot be held against this packet's end.
function parseTransport(
  pool: Pool,
  frame: number,
  at: number,
  end: number,
  protocol: number,
  fragment: boolean,
): DropReason {
  const b = pool.bytes
  let bad = 0
  let size = 0
  if (protocol === ipv4.PROTOCOL.TCP) {
    bad = tcp.check(b, at, end)
    if (bad === 0) size = tcp.headerLength(b, at)
  } else if (protocol === ipv4.PROTOCOL.UDP) {
    bad = fragment ? (end - at < udp.HEADER ? DROP.UDP_TRUNCATED : 0) : udp.check(b, at, end)
    size = udp.HEADER
  } else if (protocol === ipv4.PROTOCOL.ICMP || protocol === ipv4.PROTOCOL.ICMPV6) {
    bad = icmp.check(b, at, end)
    size = icmp.HEADER
  }
  pool.transport[frame] = at
  pool.payload[frame] = at + size
  return bad
}
