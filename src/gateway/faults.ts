// What faults do to tunnel packets: small changes of headers that are found anew in the bytes, because whoever alters a
// packet must not trust what others know of it. Lengths and checksums stay right, but for `corrupt`, whose point they are.

import { ALTERED, type Alterations } from '../device/fault-line.ts'
import type { Fault, Prefix } from '../device/faults.ts'
import { flipBit } from '../device/faulty.ts'
import type { Pool } from '../memory/pool.ts'
import { ETHERTYPE } from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'
import * as vxlan from '../wire/vxlan.ts'

/** Bytes of GENEVE's flags and of the C bit in them. */
const FLAGS = 1
const CRITICAL = 0x40
const OPTION_TYPE = 2
const LARGEST_PORT = 0xffff

/** Tunnel packets of one kind, each a wire packet with complete checksums. */
export class TunnelAlterations implements Alterations {
  private readonly pool: Pool
  private readonly kind: 'geneve' | 'vxlan'
  /** Of the other end of a `reorder-options`: an option. */
  private readonly scratch = new Uint8Array(geneve.OPTION + geneve.OPTION_DATA_MAX)
  // Of the packet at hand: outer IP and UDP, the tunnel header and what is in it, and the end of the datagram.
  private ip = 0
  private transport = 0
  private tunnel = 0
  private payload = 0
  private end = 0

  constructor(pool: Pool, kind: 'geneve' | 'vxlan') {
    this.pool = pool
    this.kind = kind
  }

  matches(frame: number, { cidr, port, protocol }: Fault): boolean {
    if (cidr === undefined && port === undefined && protocol === undefined) return true
    return this.find(frame) && this.isOf(cidr, port, protocol)
  }

  alter(frame: number, fault: Fault, die: number) {
    const { pool } = this
    if (!this.find(frame)) return fault.kind === 'corrupt' ? flipBit(pool, frame, pool.start[frame], die) : ALTERED.NO
    const { transport, tunnel, payload, end } = this
    switch (fault.kind) {
      case 'corrupt':
        return flipBit(pool, frame, tunnel, die)
      case 'truncate':
        return end === payload ? ALTERED.NO : this.cut(frame, payload + (die % (end - payload)))
      case 'mtu':
        return this.fit(frame, fault)
      case 'wrong-port':
        return this.nextPort(transport)
      case 'swap-ports':
        return this.swapPorts(transport)
      default:
        return this.kind === 'geneve' && geneve.optionsLength(pool.bytes, tunnel) > 0
          ? this.options(frame, fault, die)
          : ALTERED.NO
    }
  }

  private options(frame: number, { kind }: Fault, die: number) {
    switch (kind) {
      case 'drop-options':
        return this.dropOptions(frame)
      case 'flip-option':
        return this.flipOption(die)
      case 'reorder-options':
        return this.reorderOptions()
      case 'critical-option':
        return this.criticalOption()
      default:
        return ALTERED.NO
    }
  }

  /** Finds the outer headers; false for what is no tunnel packet of this kind. */
  private find(frame: number): boolean {
    const { bytes: b, start, length } = this.pool
    const frameEnd = start[frame] + length[frame]
    const ip = vlan.payloadAt(b, start[frame], frameEnd)
    if (ip < 0) return false
    let transport = 0
    let packetEnd = 0
    if (vlan.typeBefore(b, ip) === ETHERTYPE.IPV4) {
      if (ipv4.check(b, ip, frameEnd) !== 0 || ipv4.isFragment(b, ip)) return false
      if (ipv4.protocol(b, ip) !== ipv4.PROTOCOL.UDP) return false
      transport = ip + ipv4.headerLength(b, ip)
      packetEnd = ip + ipv4.totalLength(b, ip)
    } else {
      if (vlan.typeBefore(b, ip) !== ETHERTYPE.IPV6 || ipv6.check(b, ip, frameEnd) !== 0) return false
      packetEnd = ip + ipv6.HEADER + ipv6.payloadLength(b, ip)
      transport = ipv6.transportAt(b, ip, packetEnd)
      if (transport <= 0 || ipv6.transportProtocol(b, ip, packetEnd) !== ipv4.PROTOCOL.UDP) return false
    }
    if (udp.check(b, transport, packetEnd) !== 0) return false
    const tunnel = transport + udp.HEADER
    const end = transport + udp.length(b, transport)
    if (tunnel + vxlan.HEADER > end) return false
    const payload = tunnel + (this.kind === 'geneve' ? geneve.headerLength(b, tunnel) : vxlan.HEADER)
    if (payload > end) return false
    this.ip = ip
    this.transport = transport
    this.tunnel = tunnel
    this.payload = payload
    this.end = end
    return true
  }

  /** Whether the inner packet of the one at hand has such an address, port and protocol. */
  private isOf(cidr: Prefix | undefined, port: number | undefined, protocol: number | undefined): boolean {
    const b = this.pool.bytes
    const { end, payload } = this
    const bare = this.kind === 'geneve' && geneve.protocol(b, this.tunnel) !== ETHERTYPE.TEB
    const network = bare ? payload : vlan.payloadAt(b, payload, end)
    if (network < 0 || network >= end) return false
    const four = b[network] >> 4 === 4
    if ((four ? ipv4.check(b, network, end) : ipv6.check(b, network, end)) !== 0) return false
    if (cidr !== undefined) {
      const size = four ? 4 : 16
      const source = network + (four ? ipv4.SOURCE : ipv6.SOURCE)
      if (cidr.bytes.length !== size || !(within(b, source, cidr) || within(b, source + size, cidr))) return false
    }
    const found = four ? ipv4.protocol(b, network) : ipv6.transportProtocol(b, network, end)
    if (protocol !== undefined && found !== protocol) return false
    if (port === undefined) return true
    if (found !== ipv4.PROTOCOL.TCP && found !== ipv4.PROTOCOL.UDP) return false
    const transport = !four
      ? ipv6.transportAt(b, network, end)
      : ipv4.fragmentOffset(b, network) > 0
        ? 0
        : network + ipv4.headerLength(b, network)
    if (transport <= 0 || transport + 4 > end) return false
    return udp.sourcePort(b, transport) === port || udp.destinationPort(b, transport) === port
  }

  private fit(frame: number, { bytes = 0, larger }: Fault) {
    const limit = this.ip + bytes
    if (this.end <= limit) return ALTERED.NO
    return larger === 'truncate' ? this.cut(frame, Math.max(limit, this.payload)) : ALTERED.LOST
  }

  private nextPort(transport: number) {
    const b = this.pool.bytes
    const port = udp.destinationPort(b, transport)
    udp.setDestinationPort(b, transport, port === LARGEST_PORT ? 1 : port + 1)
    return this.seal()
  }

  private swapPorts(transport: number) {
    const b = this.pool.bytes
    const source = udp.sourcePort(b, transport)
    udp.setSourcePort(b, transport, udp.destinationPort(b, transport))
    udp.setDestinationPort(b, transport, source)
    return ALTERED.YES
  }

  /** Takes the options out: what is in front of them moves up. */
  private dropOptions(frame: number) {
    const { pool } = this
    const b = pool.bytes
    const bytes = geneve.optionsLength(b, this.tunnel)
    const start = pool.start[frame]
    b.copyWithin(start + bytes, start, this.tunnel + geneve.HEADER)
    pool.start[frame] += bytes
    pool.length[frame] -= bytes
    pool.outerTransport[frame] = this.transport + bytes
    this.ip += bytes
    this.transport += bytes
    this.tunnel += bytes
    b[this.tunnel] &= 0xc0
    b[this.tunnel + FLAGS] &= ~CRITICAL
    return this.cut(frame, this.end)
  }

  /** Inverts one byte of the options' data, so that they can still be taken apart. */
  private flipOption(die: number) {
    const b = this.pool.bytes
    const { tunnel, payload } = this
    const first = tunnel + geneve.HEADER
    let data = 0
    for (let at = first; at < payload; at = geneve.nextOption(b, at)) data += geneve.optionLength(b, at)
    if (data === 0) return ALTERED.NO
    let left = die % data
    for (let at = first; at < payload; at = geneve.nextOption(b, at)) {
      const length = geneve.optionLength(b, at)
      if (left < length && at + geneve.OPTION + left < payload) {
        b[at + geneve.OPTION + left] ^= 0xff
        return this.seal()
      }
      left -= length
    }
    return ALTERED.NO
  }

  private reorderOptions() {
    const b = this.pool.bytes
    const { scratch, tunnel, payload } = this
    const first = tunnel + geneve.HEADER
    const second = geneve.nextOption(b, first)
    if (second >= payload) return ALTERED.NO
    const bytes = second - first
    for (let i = 0; i < bytes; i++) scratch[i] = b[first + i]
    b.copyWithin(first, second, payload)
    for (let i = 0; i < bytes; i++) b[payload - bytes + i] = scratch[i]
    return this.seal()
  }

  private criticalOption() {
    const b = this.pool.bytes
    b[this.tunnel + FLAGS] |= CRITICAL
    b[this.tunnel + geneve.HEADER + OPTION_TYPE] |= geneve.OPTION_CRITICAL
    return this.seal()
  }

  /** The datagram ends at `end`. */
  private cut(frame: number, end: number) {
    const { pool, ip, transport } = this
    const b = pool.bytes
    pool.length[frame] = end - pool.start[frame]
    if (b[ip] >> 4 === 4) {
      ipv4.setTotalLength(b, ip, end - ip)
      ipv4.updateChecksum(b, ip)
    } else ipv6.setPayloadLength(b, ip, end - ip - ipv6.HEADER)
    udp.setLength(b, transport, end - transport)
    return this.seal()
  }

  /** Makes the outer checksum right again, where there is one. */
  private seal() {
    const b = this.pool.bytes
    if (udp.checksum(b, this.transport) !== 0) udp.updateChecksum(b, this.ip, this.transport)
    return ALTERED.YES
  }
}

function within(b: Uint8Array, at: number, { bytes, bits }: Prefix): boolean {
  const whole = bits >> 3
  for (let i = 0; i < whole; i++) if (b[at + i] !== bytes[i]) return false
  const rest = bits & 7
  return rest === 0 || (b[at + whole] ^ bytes[whole]) >> (8 - rest) === 0
}
