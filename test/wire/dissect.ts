// Takes a frame apart with the header modules and gives the values the names and the form that tshark gives them.

import { DROP } from '../../src/drop.ts'
import * as arp from '../../src/wire/arp.ts'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as geneve from '../../src/wire/geneve.ts'
import * as icmp from '../../src/wire/icmp.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import * as ipv6 from '../../src/wire/ipv6.ts'
import * as tcp from '../../src/wire/tcp.ts'
import * as udp from '../../src/wire/udp.ts'
import * as vlan from '../../src/wire/vlan.ts'
import * as vxlan from '../../src/wire/vxlan.ts'

export type Fields = Record<string, string[]>

const hex = (value: number, digits: number) => `0x${(value >>> 0).toString(16).padStart(digits, '0')}`
const bit = (value: boolean) => (value ? '1' : '0')

/** tshark's words for a checksum: bad, good, and not there to be judged. */
const STATUS = { BAD: '0', GOOD: '1', UNVERIFIED: '2', ABSENT: '3', ILLEGAL: '4' }
const status = (good: boolean) => (good ? STATUS.GOOD : STATUS.BAD)

export function dissect(b: Uint8Array, at = 0, end = b.length): Fields {
  const fields: Fields = {}
  frame(b, at, end, fields)
  return fields
}

function add(fields: Fields, values: Record<string, string | number>): void {
  for (const [name, value] of Object.entries(values)) (fields[name] ??= []).push(String(value))
}

function frame(b: Uint8Array, at: number, end: number, fields: Fields): void {
  const payload = vlan.payloadAt(b, at, end)
  if (payload < 0) return
  add(fields, {
    'eth.dst': ethernet.formatAddress(b, at + ethernet.DESTINATION),
    'eth.src': ethernet.formatAddress(b, at + ethernet.SOURCE),
    'eth.type': hex(ethernet.type(b, at), 4),
  })
  for (let tci = at + ethernet.HEADER; tci < payload; tci += vlan.TAG) {
    const name = vlan.typeBefore(b, tci) === ethernet.ETHERTYPE.QINQ ? 'ieee8021ad' : 'vlan'
    add(fields, {
      [`${name}.id`]: vlan.identifier(b, tci),
      [`${name}.priority`]: vlan.priority(b, tci),
      [`${name}.dei`]: bit(vlan.dropEligible(b, tci)),
    })
  }
  byType(b, payload, end, vlan.typeBefore(b, payload), fields)
}

function byType(b: Uint8Array, at: number, end: number, etherType: number, fields: Fields): void {
  if (etherType === ethernet.ETHERTYPE.IPV4 && ipv4.check(b, at, end) === 0) packet4(b, at, end, fields)
  if (etherType === ethernet.ETHERTYPE.IPV6 && ipv6.check(b, at, end) === 0) packet6(b, at, end, fields)
  if (etherType === ethernet.ETHERTYPE.ARP && arp.check(b, at, end) === 0) {
    add(fields, {
      'arp.opcode': arp.operation(b, at),
      'arp.src.hw_mac': ethernet.formatAddress(b, at + arp.SENDER_HARDWARE),
      'arp.src.proto_ipv4': ipv4.formatAddress(arp.sender(b, at)),
      'arp.dst.hw_mac': ethernet.formatAddress(b, at + arp.TARGET_HARDWARE),
      'arp.dst.proto_ipv4': ipv4.formatAddress(arp.target(b, at)),
    })
  }
}

function packet4(b: Uint8Array, ip: number, end: number, fields: Fields): void {
  add(fields, {
    'ip.version': 4,
    'ip.hdr_len': ipv4.headerLength(b, ip),
    'ip.dsfield.dscp': ipv4.dscp(b, ip),
    'ip.dsfield.ecn': ipv4.ecn(b, ip),
    'ip.len': ipv4.totalLength(b, ip),
    'ip.id': hex(ipv4.identification(b, ip), 4),
    'ip.flags.df': bit(ipv4.dontFragment(b, ip)),
    'ip.flags.mf': bit(ipv4.moreFragments(b, ip)),
    'ip.frag_offset': ipv4.fragmentOffset(b, ip) / 8,
    'ip.ttl': ipv4.ttl(b, ip),
    'ip.proto': ipv4.protocol(b, ip),
    'ip.checksum': hex(ipv4.headerChecksum(b, ip), 4),
    'ip.checksum.status': status(ipv4.verifyChecksum(b, ip)),
    'ip.src': ipv4.formatAddress(ipv4.source(b, ip)),
    'ip.dst': ipv4.formatAddress(ipv4.destination(b, ip)),
  })
  if (ipv4.fragmentOffset(b, ip) > 0) return
  const packetEnd = Math.min(end, ip + ipv4.totalLength(b, ip))
  const whole = !ipv4.isFragment(b, ip) && ip + ipv4.totalLength(b, ip) <= end
  upper(b, ip, ip + ipv4.headerLength(b, ip), packetEnd, ipv4.protocol(b, ip), whole, fields)
}

function packet6(b: Uint8Array, ip: number, end: number, fields: Fields): void {
  add(fields, {
    'ip.version': 6,
    'ipv6.tclass.dscp': ipv6.dscp(b, ip),
    'ipv6.tclass.ecn': ipv6.ecn(b, ip),
    'ipv6.flow': hex(ipv6.flowLabel(b, ip), 6),
    'ipv6.plen': ipv6.payloadLength(b, ip),
    'ipv6.nxt': ipv6.nextHeader(b, ip),
    'ipv6.hlim': ipv6.hopLimit(b, ip),
    'ipv6.src': ipv6.formatAddress(b, ip + ipv6.SOURCE),
    'ipv6.dst': ipv6.formatAddress(b, ip + ipv6.DESTINATION),
  })
  const fragment = ipv6.fragmentAt(b, ip, end)
  if (fragment !== 0) {
    add(fields, {
      'ipv6.fraghdr.offset': ipv6.fragmentOffset(b, fragment) / 8,
      'ipv6.fraghdr.more': bit(ipv6.moreFragments(b, fragment)),
      'ipv6.fraghdr.ident': hex(ipv6.fragmentIdentification(b, fragment), 8),
    })
  }
  const at = ipv6.transportAt(b, ip, end)
  if (at <= 0) return
  const packetEnd = ip + ipv6.HEADER + ipv6.payloadLength(b, ip)
  const whole = packetEnd <= end && (fragment === 0 || !ipv6.moreFragments(b, fragment))
  upper(b, ip, at, Math.min(end, packetEnd), ipv6.transportProtocol(b, ip, end), whole, fields)
}

function upper(
  b: Uint8Array,
  ip: number,
  at: number,
  end: number,
  protocol: number,
  whole: boolean,
  fields: Fields,
): void {
  switch (protocol) {
    case ipv4.PROTOCOL.UDP:
      datagram(b, ip, at, end, whole, fields)
      break
    case ipv4.PROTOCOL.TCP:
      segment(b, ip, at, end, whole, fields)
      break
    case ipv4.PROTOCOL.ICMP:
      message4(b, at, end, fields)
      break
    case ipv4.PROTOCOL.ICMPV6:
      message6(b, ip, at, end, fields)
  }
}

function datagram(b: Uint8Array, ip: number, at: number, end: number, whole: boolean, fields: Fields): void {
  if (at + udp.HEADER > end) return
  const checksum = udp.checksum(b, at)
  const absent = ipv4.check(b, ip, end) === 0 ? STATUS.ABSENT : STATUS.ILLEGAL
  const complete = whole && udp.check(b, at, end) === 0
  add(fields, {
    'udp.srcport': udp.sourcePort(b, at),
    'udp.dstport': udp.destinationPort(b, at),
    'udp.length': udp.length(b, at),
    'udp.checksum': hex(checksum, 4),
    'udp.checksum.status':
      checksum === 0 ? absent : complete ? status(udp.verifyChecksum(b, ip, at)) : STATUS.UNVERIFIED,
  })
  if (!complete) return
  const payload = at + udp.HEADER
  const payloadEnd = at + udp.length(b, at)
  if (udp.destinationPort(b, at) === geneve.PORT) tunnelGeneve(b, payload, payloadEnd, fields)
  if (udp.destinationPort(b, at) === vxlan.PORT) tunnelVxlan(b, payload, payloadEnd, fields)
}

/** What tshark reads all the same: it knows no critical option, and delivers control packets. */
const READABLE: readonly number[] = [0, DROP.GENEVE_CRITICAL, DROP.GENEVE_CONTROL]

function tunnelGeneve(b: Uint8Array, at: number, end: number, fields: Fields): void {
  if (!READABLE.includes(geneve.check(b, at, end))) return
  add(fields, {
    'geneve.version': geneve.version(b, at),
    'geneve.option.length': geneve.optionsLength(b, at),
    'geneve.flags.oam': bit(geneve.control(b, at)),
    'geneve.flags.critical': bit(geneve.critical(b, at)),
    'geneve.proto_type': hex(geneve.protocol(b, at), 4),
    'geneve.vni': hex(geneve.vni(b, at), 6),
  })
  const payload = at + geneve.headerLength(b, at)
  for (let option = at + geneve.HEADER; option < payload; option = geneve.nextOption(b, option)) {
    add(fields, {
      'geneve.option.class': hex(geneve.optionClass(b, option), 4),
      'geneve.option.type': hex(geneve.optionType(b, option), 2),
      'geneve.option.length': geneve.OPTION + geneve.optionLength(b, option),
    })
  }
  const protocol = geneve.protocol(b, at)
  if (protocol === ethernet.ETHERTYPE.TEB) frame(b, payload, end, fields)
  else byType(b, payload, end, protocol, fields)
}

function tunnelVxlan(b: Uint8Array, at: number, end: number, fields: Fields): void {
  if (vxlan.check(b, at, end, false) !== 0) return
  add(fields, {
    'vxlan.flags': hex((vxlan.flags(b, at) << 8) | b[at + 1], 4),
    'vxlan.vni': vxlan.vni(b, at),
    'vxlan.reserved8': b[at + 7],
  })
  frame(b, at + vxlan.HEADER, end, fields)
}

function segment(b: Uint8Array, ip: number, at: number, end: number, whole: boolean, fields: Fields): void {
  if (at + 8 > end) return
  add(fields, {
    'tcp.srcport': tcp.sourcePort(b, at),
    'tcp.dstport': tcp.destinationPort(b, at),
  })
  if (tcp.check(b, at, end) !== 0) return
  add(fields, {
    'tcp.seq_raw': tcp.sequence(b, at) >>> 0,
    'tcp.ack_raw': tcp.acknowledgment(b, at) >>> 0,
    'tcp.hdr_len': tcp.headerLength(b, at),
    'tcp.flags': hex(tcp.flags(b, at), 4),
    'tcp.window_size_value': tcp.window(b, at),
    'tcp.checksum': hex(tcp.checksum(b, at), 4),
    'tcp.checksum.status': whole ? status(tcp.verifyChecksum(b, ip, at, end)) : STATUS.UNVERIFIED,
    'tcp.urgent_pointer': tcp.urgentPointer(b, at),
  })
  if (tcp.findOption(b, at, tcp.OPTION.MSS) !== 0) {
    add(fields, { 'tcp.options.mss_val': tcp.maximumSegmentSize(b, at) })
  }
}

function message4(b: Uint8Array, at: number, end: number, fields: Fields): void {
  if (icmp.check(b, at, end) !== 0) return
  const type = icmp.type(b, at)
  add(fields, {
    'icmp.type': type,
    'icmp.code': icmp.code(b, at),
    'icmp.checksum': hex(icmp.checksum(b, at), 4),
    'icmp.checksum.status': status(icmp.verifyChecksum4(b, at, end)),
  })
  if (type === icmp.TYPE4.ECHO_REQUEST || type === icmp.TYPE4.ECHO_REPLY) {
    add(fields, { 'icmp.ident': icmp.identifier(b, at), 'icmp.seq': icmp.sequence(b, at) })
  }
  if (!icmp.isError4(type)) return
  if (type === icmp.TYPE4.UNREACHABLE && icmp.code(b, at) === icmp.FRAGMENTATION_NEEDED) {
    add(fields, { 'icmp.mtu': icmp.nextHopMtu4(b, at) })
  }
  if (ipv4.checkQuoted(b, at + icmp.QUOTE, end) === 0) packet4(b, at + icmp.QUOTE, end, fields)
}

function message6(b: Uint8Array, ip: number, at: number, end: number, fields: Fields): void {
  if (icmp.check(b, at, end) !== 0) return
  const type = icmp.type(b, at)
  add(fields, {
    'icmpv6.type': type,
    'icmpv6.code': icmp.code(b, at),
    'icmpv6.checksum': hex(icmp.checksum(b, at), 4),
    'icmpv6.checksum.status': status(icmp.verifyChecksum6(b, ip, at, end)),
  })
  if (type === icmp.TYPE6.ECHO_REQUEST || type === icmp.TYPE6.ECHO_REPLY) {
    add(fields, {
      'icmpv6.echo.identifier': hex(icmp.identifier(b, at), 4),
      'icmpv6.echo.sequence_number': icmp.sequence(b, at),
    })
  }
  if (!icmp.isError6(type)) return
  if (type === icmp.TYPE6.PACKET_TOO_BIG) add(fields, { 'icmpv6.mtu': icmp.nextHopMtu6(b, at) })
  if (ipv6.checkQuoted(b, at + icmp.QUOTE, end) === 0) packet6(b, at + icmp.QUOTE, end, fields)
}
