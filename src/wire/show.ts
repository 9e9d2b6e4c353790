// One line for any bytes, in the manner of tcpdump. For people: it allocates, but never throws and never reads outside.
//
// What a header check refuses is marked with its drop reason, `[udp-length]`, and nothing behind it is shown, except
// behind an IP header whose packet is merely cut off, as captures and ICMP errors have them.

import { DROP, type DropReason, dropName } from '../drop.ts'
import * as arp from './arp.ts'
import { i32, u16 } from './bytes.ts'
import * as ethernet from './ethernet.ts'
import * as geneve from './geneve.ts'
import * as icmp from './icmp.ts'
import * as ipv4 from './ipv4.ts'
import * as ipv6 from './ipv6.ts'
import * as tcp from './tcp.ts'
import * as udp from './udp.ts'
import * as vlan from './vlan.ts'
import * as vxlan from './vxlan.ts'

/** UDP destination ports that carry tunnels, besides the assigned ones. */
export interface ShowOptions {
  geneve?: readonly number[]
  vxlan?: readonly number[]
  /** What is there is only how the packet begins. */
  cut?: boolean
}

/** Packets inside packets that are shown; further ones are `...`. */
const MAX_DEPTH = 8

/** One line for the Ethernet frame [at, end). */
export function show(b: Uint8Array, at = 0, end = b.length, options: ShowOptions = {}): string {
  return showFrame(b, at, end, { options, depth: 0, quoted: options.cut === true })
}

/** One line for the IPv4 or IPv6 packet [at, end). */
export function showPacket(b: Uint8Array, at = 0, end = b.length, options: ShowOptions = {}): string {
  if (at >= end) return mark(DROP.IPV4_TRUNCATED)
  const context = { options, depth: 0, quoted: options.cut === true }
  return b[at] >>> 4 === 6 ? showIp6(b, at, end, context) : showIp4(b, at, end, context)
}

/** Where a packet stands: `depth` packets deep, and whether it is quoted in an ICMP error, which may cut it off. */
interface Context {
  options: ShowOptions
  depth: number
  quoted: boolean
}

/** An upper-layer packet: readable in [at, end), `length` bytes long as its IP header at `ip` says. */
interface Packet {
  b: Uint8Array
  ip: number
  at: number
  end: number
  length: number
  /** Not all of it is here: a fragment, or cut off. */
  partial: boolean
  context: Context
}

/** What is shown of an upper-layer packet; tcpdump writes the ports to the addresses. */
interface Upper {
  ports?: readonly [number, number]
  text: string
}

const mark = (reason: DropReason) => `[${dropName(reason)}]`
const hex = (value: number, digits = 1) => `0x${value.toString(16).padStart(digits, '0')}`

function showFrame(b: Uint8Array, at: number, end: number, context: Context): string {
  const payload = vlan.payloadAt(b, at, end)
  if (payload < 0) return mark(-payload)
  let tags = ''
  for (let tci = at + ethernet.HEADER; tci < payload; tci += vlan.TAG) {
    tags += `vlan ${vlan.identifier(b, tci)}, p ${vlan.priority(b, tci)}, `
  }
  const etherType = vlan.typeBefore(b, payload)
  const known = showType(b, payload, end, etherType, context)
  if (known !== undefined) return tags + known
  const addresses = `${ethernet.formatAddress(b, at + ethernet.SOURCE)} > ${ethernet.formatAddress(b, at)}`
  const kind = etherType < 0x600 ? '802.3' : `ethertype ${hex(etherType, 4)}`
  return `${tags}${addresses}, ${kind}, length ${end - at}`
}

function showType(b: Uint8Array, at: number, end: number, etherType: number, context: Context): string | undefined {
  switch (etherType) {
    case ethernet.ETHERTYPE.IPV4:
      return showIp4(b, at, end, context)
    case ethernet.ETHERTYPE.IPV6:
      return showIp6(b, at, end, context)
    case ethernet.ETHERTYPE.ARP:
      return showArp(b, at, end)
    default:
      return undefined
  }
}

function showArp(b: Uint8Array, at: number, end: number): string {
  const reason = arp.check(b, at, end)
  if (reason !== 0) return `ARP ${mark(reason)}`
  const sender = ipv4.formatAddress(arp.sender(b, at))
  switch (arp.operation(b, at)) {
    case arp.OPERATION.REQUEST:
      return `ARP, Request who-has ${ipv4.formatAddress(arp.target(b, at))} tell ${sender}, length ${end - at}`
    case arp.OPERATION.REPLY:
      return `ARP, Reply ${sender} is-at ${ethernet.formatAddress(b, at + arp.SENDER_HARDWARE)}, length ${end - at}`
    default:
      return `ARP, operation ${arp.operation(b, at)}, length ${end - at}`
  }
}

function showIp4(b: Uint8Array, ip: number, end: number, context: Context): string {
  const reason = ipv4.checkQuoted(b, ip, end)
  if (reason !== 0) return `IP ${mark(reason)}`
  const source = ipv4.formatAddress(ipv4.source(b, ip))
  const destination = ipv4.formatAddress(ipv4.destination(b, ip))
  const at = ip + ipv4.headerLength(b, ip)
  const packetEnd = ip + ipv4.totalLength(b, ip)
  const length = packetEnd - at
  const offset = ipv4.fragmentOffset(b, ip)
  const isFragment = ipv4.isFragment(b, ip)
  const fragment = isFragment ? showFragment(ipv4.identification(b, ip), length, offset, ipv4.moreFragments(b, ip)) : ''
  const partial = isFragment || packetEnd > end
  const packet = { b, ip, at, end: Math.min(end, packetEnd), length, partial, context }
  const upper = showUpper(packet, ipv4.protocol(b, ip), offset !== 0)
  const cut = packetEnd > end && !context.quoted ? ` ${mark(DROP.IPV4_TOTAL_LENGTH)}` : ''
  return `IP ${flow(source, destination, upper)}: ${fragment}${upper.text}${cut}`
}

function showIp6(b: Uint8Array, ip: number, end: number, context: Context): string {
  const reason = ipv6.checkQuoted(b, ip, end)
  if (reason !== 0) return `IP6 ${mark(reason)}`
  const source = ipv6.formatAddress(b, ip + ipv6.SOURCE)
  const destination = ipv6.formatAddress(b, ip + ipv6.DESTINATION)
  const packetEnd = ip + ipv6.HEADER + ipv6.payloadLength(b, ip)
  const cut = packetEnd > end && !context.quoted ? ` ${mark(DROP.IPV6_PAYLOAD_LENGTH)}` : ''
  const transport = ipv6.transportAt(b, ip, end)
  if (transport < 0) return `IP6 ${source} > ${destination}: ${mark(-transport)}${cut}`
  const fragment = ipv6.fragmentAt(b, ip, end)
  const following = transport === 0
  const at = following ? fragment + ipv6.FRAGMENT_HEADER : transport
  const partial = fragment !== 0 || packetEnd > end
  const packet = { b, ip, at, end: Math.min(end, packetEnd), length: packetEnd - at, partial, context }
  const upper = showUpper(packet, ipv6.transportProtocol(b, ip, end), following)
  return `IP6 ${flow(source, destination, upper)}: ${showExtensions(b, ip, at, packetEnd)}${upper.text}${cut}`
}

const EXTENSION_NAMES: Record<number, string> = {
  [ipv6.EXTENSION.HOP_BY_HOP]: 'HBH ',
  [ipv6.EXTENSION.ROUTING]: 'RT ',
  [ipv6.EXTENSION.AUTHENTICATION]: 'AH ',
  [ipv6.EXTENSION.DESTINATION_OPTIONS]: 'DSTOPT ',
  [ipv6.EXTENSION.MOBILITY]: 'MOBILITY ',
  [ipv6.EXTENSION.HIP]: 'HIP ',
  [ipv6.EXTENSION.SHIM6]: 'SHIM6 ',
}

/** The extension headers in front of `upper`, which have been walked already. */
function showExtensions(b: Uint8Array, ip: number, upper: number, packetEnd: number): string {
  let text = ''
  let next = ipv6.nextHeader(b, ip)
  for (let at = ip + ipv6.HEADER; at < upper; ) {
    const behind = at + ipv6.extensionLength(b, at, next)
    if (next === ipv6.EXTENSION.FRAGMENT) {
      const id = ipv6.fragmentIdentification(b, at) >>> 0
      text += showFragment(id, packetEnd - behind, ipv6.fragmentOffset(b, at), ipv6.moreFragments(b, at))
    } else text += EXTENSION_NAMES[next]
    next = b[at]
    at = behind
  }
  return text
}

function showFragment(id: number, length: number, offset: number, more: boolean): string {
  return `frag ${id}:${length}@${offset}${more ? '+' : ''}, `
}

function flow(source: string, destination: string, { ports }: Upper): string {
  return ports === undefined ? `${source} > ${destination}` : `${source}.${ports[0]} > ${destination}.${ports[1]}`
}

const PROTOCOL_NAMES: Record<number, string> = Object.fromEntries(
  Object.entries({ ...ipv4.PROTOCOL, ICMP6: 58, 'no next header': ipv6.EXTENSION.NONE }).map(([name, number]) => [
    number,
    name,
  ]),
)

function showUpper(packet: Packet, protocol: number, following: boolean): Upper {
  if (!following) {
    if (protocol === ipv4.PROTOCOL.UDP) return showUdp(packet)
    if (protocol === ipv4.PROTOCOL.TCP) return showTcp(packet)
    const version = packet.b[packet.ip] >>> 4
    if (protocol === ipv4.PROTOCOL.ICMP && version === 4) return { text: showIcmp(packet, showIcmp4) }
    if (protocol === ipv4.PROTOCOL.ICMPV6 && version === 6) return { text: showIcmp(packet, showIcmp6) }
  }
  return { text: `${PROTOCOL_NAMES[protocol] ?? `protocol ${protocol}`}, length ${packet.length}` }
}

function showUdp({ b, at, end, partial, context }: Packet): Upper {
  const reason = udp.check(b, at, end)
  if (reason === DROP.UDP_TRUNCATED) return { text: `UDP ${mark(reason)}` }
  const port = udp.destinationPort(b, at)
  const ports = [udp.sourcePort(b, at), port] as const
  const length = udp.length(b, at)
  const text = `UDP, length ${length - udp.HEADER}`
  if (reason !== 0) return { ports, text: partial && length >= udp.HEADER ? text : `UDP ${mark(reason)}` }
  const { options, depth } = context
  const tunnel =
    port === geneve.PORT || options.geneve?.includes(port)
      ? showGeneve
      : port === vxlan.PORT || options.vxlan?.includes(port)
        ? showVxlan
        : undefined
  if (tunnel === undefined) return { ports, text }
  if (depth === MAX_DEPTH) return { ports, text: '...' }
  return { ports, text: tunnel(b, at + udp.HEADER, at + length, { options, depth: depth + 1, quoted: context.quoted }) }
}

function showGeneve(b: Uint8Array, at: number, end: number, context: Context): string {
  const reason = geneve.check(b, at, end)
  if (reason === DROP.GENEVE_TRUNCATED || reason === DROP.GENEVE_VERSION) return `Geneve ${mark(reason)}`
  const flags = (geneve.control(b, at) ? 'O' : '') + (geneve.critical(b, at) ? 'C' : '')
  const payload = at + geneve.headerLength(b, at)
  const text = [
    'Geneve',
    flags === '' ? '' : `, Flags [${flags}]`,
    `, vni ${geneve.vni(b, at)}`,
    showGeneveOptions(b, at + geneve.HEADER, payload),
    reason === 0 ? '' : ` ${mark(reason)}`,
  ].join('')
  if (reason === DROP.GENEVE_OPTIONS || reason === DROP.GENEVE_CONTROL) return text
  const protocol = geneve.protocol(b, at)
  if (protocol === ethernet.ETHERTYPE.TEB) return `${text}: ${showFrame(b, payload, end, context)}`
  const known = showType(b, payload, end, protocol, context)
  return known === undefined ? `${text}, protocol ${hex(protocol, 4)}, length ${end - payload}` : `${text}: ${known}`
}

function showGeneveOptions(b: Uint8Array, from: number, to: number): string {
  const shown: string[] = []
  for (let option = from; option < to && geneve.nextOption(b, option) <= to; option = geneve.nextOption(b, option)) {
    const data = Array.from(b.subarray(option + geneve.OPTION, geneve.nextOption(b, option)), byte =>
      byte.toString(16).padStart(2, '0'),
    )
    shown.push(`${hex(geneve.optionClass(b, option), 4)}/${hex(geneve.optionType(b, option))}:${data.join('')}`)
  }
  return shown.length === 0 ? '' : `, options [${shown.join(' ')}]`
}

function showVxlan(b: Uint8Array, at: number, end: number, context: Context): string {
  const reason = vxlan.check(b, at, end, false)
  if (reason !== 0) return `VXLAN ${mark(reason)}`
  return `VXLAN, vni ${vxlan.vni(b, at)}: ${showFrame(b, at + vxlan.HEADER, end, context)}`
}

const FLAG_LETTERS = [
  [tcp.FIN, 'F'],
  [tcp.SYN, 'S'],
  [tcp.RST, 'R'],
  [tcp.PSH, 'P'],
  [tcp.ACK, '.'],
  [tcp.URG, 'U'],
  [tcp.ECE, 'E'],
  [tcp.CWR, 'W'],
] as const

function showTcp({ b, at, end, length, context }: Packet): Upper {
  const reason = tcp.check(b, at, end)
  // An ICMP error need not quote more than the ports and the sequence number (RFC 792).
  const ports = at + 4 <= end ? ([tcp.sourcePort(b, at), tcp.destinationPort(b, at)] as const) : undefined
  if (reason !== 0) return { ports, text: context.quoted ? 'TCP' : `TCP ${mark(reason)}` }
  const flags = tcp.flags(b, at)
  const payload = length - tcp.headerLength(b, at)
  const sequence = tcp.sequence(b, at) >>> 0
  const parts = [`Flags [${FLAG_LETTERS.map(([bit, letter]) => (flags & bit ? letter : '')).join('') || 'none'}]`]
  if (payload > 0) parts.push(`seq ${sequence}:${(sequence + payload) >>> 0}`)
  else if (flags & (tcp.SYN | tcp.FIN | tcp.RST)) parts.push(`seq ${sequence}`)
  if (flags & tcp.ACK) parts.push(`ack ${tcp.acknowledgment(b, at) >>> 0}`)
  parts.push(`win ${tcp.window(b, at)}`)
  if (flags & tcp.URG) parts.push(`urg ${tcp.urgentPointer(b, at)}`)
  const options = showTcpOptions(b, at)
  if (options !== '') parts.push(`options [${options}]`)
  return { ports, text: `${parts.join(', ')}, length ${payload}` }
}

function showTcpOptions(b: Uint8Array, at: number): string {
  const end = at + tcp.headerLength(b, at)
  const shown: string[] = []
  for (let option = at + tcp.HEADER; option < end; ) {
    const length = tcp.optionLength(b, option, end)
    shown.push(length === 0 ? 'bad' : showTcpOption(b, option, length))
    if (length === 0 || b[option] === tcp.OPTION.END) break
    option += length
  }
  return shown.join(',')
}

function showTcpOption(b: Uint8Array, option: number, length: number): string {
  const kind = b[option]
  if (kind === tcp.OPTION.END) return 'eol'
  if (kind === tcp.OPTION.NOP) return 'nop'
  if (kind === tcp.OPTION.MSS && length === 4) return `mss ${u16(b, option + 2)}`
  if (kind === tcp.OPTION.WINDOW_SCALE && length === 3) return `wscale ${b[option + 2]}`
  if (kind === tcp.OPTION.SACK_PERMITTED && length === 2) return 'sackOK'
  if (kind === tcp.OPTION.SACK && length % 8 === 2) return `sack ${length >> 3}`
  if (kind === tcp.OPTION.TIMESTAMPS && length === 10) {
    return `TS val ${i32(b, option + 2) >>> 0} ecr ${i32(b, option + 6) >>> 0}`
  }
  return `kind ${kind} length ${length}`
}

function showIcmp(packet: Packet, kind: (packet: Packet) => string): string {
  const reason = icmp.check(packet.b, packet.at, packet.end)
  const name = packet.b[packet.ip] >>> 4 === 4 ? 'ICMP' : 'ICMP6,'
  return reason === 0 ? `${name} ${kind(packet)}` : `${name} ${mark(reason)}`
}

const TYPE4_NAMES: Record<number, string> = names(icmp.TYPE4)
const TYPE6_NAMES: Record<number, string> = names(icmp.TYPE6)

function names(types: Record<string, number>): Record<number, string> {
  return Object.fromEntries(
    Object.entries(types).map(([name, type]) => [type, name.toLowerCase().replaceAll('_', ' ')]),
  )
}

function showIcmp4(packet: Packet): string {
  const { b, at, length } = packet
  const type = icmp.type(b, at)
  const code = icmp.code(b, at)
  const name = TYPE4_NAMES[type] ?? `type ${type} code ${code}`
  if (type === icmp.TYPE4.ECHO_REQUEST || type === icmp.TYPE4.ECHO_REPLY) {
    return `${name}, id ${icmp.identifier(b, at)}, seq ${icmp.sequence(b, at)}, length ${length}`
  }
  if (!icmp.isError4(type)) return `${name}, length ${length}`
  const needFrag = type === icmp.TYPE4.UNREACHABLE && code === icmp.FRAGMENTATION_NEEDED
  const about = needFrag ? `need to frag (mtu ${icmp.nextHopMtu4(b, at)})` : `code ${code}`
  return `${name} - ${about}, length ${length}${showQuote(packet, showIp4)}`
}

function showIcmp6(packet: Packet): string {
  const { b, at, end, length } = packet
  const type = icmp.type(b, at)
  const code = icmp.code(b, at)
  const name = TYPE6_NAMES[type] ?? `type ${type} code ${code}`
  switch (type) {
    case icmp.TYPE6.ECHO_REQUEST:
    case icmp.TYPE6.ECHO_REPLY:
      return `${name}, id ${icmp.identifier(b, at)}, seq ${icmp.sequence(b, at)}, length ${length}`
    case icmp.TYPE6.NEIGHBOR_SOLICITATION:
    case icmp.TYPE6.NEIGHBOR_ADVERTISEMENT: {
      if (at + icmp.HEADER + 16 > end) return `${name} ${mark(DROP.ICMP_TRUNCATED)}`
      const verb = type === icmp.TYPE6.NEIGHBOR_SOLICITATION ? 'who has' : 'tgt is'
      return `${name}, ${verb} ${ipv6.formatAddress(b, at + icmp.HEADER)}, length ${length}`
    }
  }
  if (!icmp.isError6(type)) return `${name}, length ${length}`
  const about = type === icmp.TYPE6.PACKET_TOO_BIG ? `mtu ${icmp.rest(b, at) >>> 0}` : `code ${code}`
  return `${name}, ${about}, length ${length}${showQuote(packet, showIp6)}`
}

function showQuote({ b, at, end, context }: Packet, showIpX: typeof showIp4): string {
  const quote = at + icmp.QUOTE
  if (quote === end) return ''
  if (context.depth === MAX_DEPTH) return ' (...)'
  return ` (${showIpX(b, quote, end, { ...context, depth: context.depth + 1, quoted: true })})`
}
