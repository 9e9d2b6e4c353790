// Builds random whole frames with the header modules' writers, from a seed, and says what was written.

import * as arp from '../../src/wire/arp.ts'
import { setI32 } from '../../src/wire/bytes.ts'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as geneve from '../../src/wire/geneve.ts'
import * as icmp from '../../src/wire/icmp.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import * as ipv6 from '../../src/wire/ipv6.ts'
import * as tcp from '../../src/wire/tcp.ts'
import * as udp from '../../src/wire/udp.ts'
import * as vlan from '../../src/wire/vlan.ts'
import * as vxlan from '../../src/wire/vxlan.ts'
import type { Fields } from './dissect.ts'

export interface Built {
  bytes: Uint8Array
  /** Values that tshark must see, by its names. */
  fields: Fields
}

type Random = (below: number) => number

/** A small generator of numbers (mulberry32), so that a failure can be had again. */
export function random(seed: number): Random {
  let state = seed
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below)
  }
}

export function buildFrames(count: number, seed: number): Built[] {
  const r = random(seed)
  return Array.from({ length: count }, (_, i) => buildFrame(r, i))
}

const { ETHERTYPE } = ethernet
const word = (r: Random) => r(0x1_0000_0000) | 0

// A frame is built from the inside out, each header in front of what is there already, as encapsulation does.
class Frame {
  readonly b = new Uint8Array(new SharedArrayBuffer(4096)).fill(0xa5)
  readonly end = 4096 - 5
  start = this.end

  prepend(bytes: number): number {
    this.start -= bytes
    return this.start
  }
}

function buildFrame(r: Random, i: number): Built {
  const frame = new Frame()
  const fields: Fields = {}
  const payload = frame.prepend(r(300))
  for (let at = payload; at < frame.end; at++) frame.b[at] = r(256)
  if (i % 20 === 0) return { bytes: finished(address(frame, r, arpPacket(frame, r))), fields }
  let etherType = packet(frame, r, upperLayer(r))
  if (i % 2 === 1) {
    if (r(2) === 0) {
      address(frame, r, etherType)
      etherType = ETHERTYPE.TEB
    }
    const network = r(1 << 24)
    if (etherType === ETHERTYPE.TEB && r(2) === 0) {
      vxlan.write(frame.b, frame.prepend(vxlan.HEADER), network)
      fields['vxlan.vni'] = [String(network)]
      etherType = packet(frame, r, { protocol: ipv4.PROTOCOL.UDP, port: vxlan.PORT })
    } else {
      Object.assign(fields, geneveHeader(frame, r, etherType, network))
      etherType = packet(frame, r, { protocol: ipv4.PROTOCOL.UDP, port: geneve.PORT })
    }
  }
  return { bytes: finished(address(frame, r, etherType)), fields }
}

const finished = ({ b, start, end }: Frame) => b.slice(start, end)

function geneveHeader(frame: Frame, r: Random, etherType: number, network: number): Fields {
  const lengths = Array.from({ length: r(5) }, () => r(12) * 4)
  const total = lengths.reduce((sum, length) => sum + geneve.OPTION + length, 0)
  const at = frame.prepend(geneve.HEADER + total)
  const critical = r(2) === 0 && lengths.length > 0
  geneve.write(frame.b, at, total, false, critical, etherType, network)
  let option = at + geneve.HEADER
  for (const length of lengths) {
    const data = geneve.writeOption(frame.b, option, geneve.DETOUR_CLASS, r(128) | (critical ? 0x80 : 0), length)
    for (option = data; option < data + length; option++) frame.b[option] = r(256)
  }
  return {
    'geneve.vni': [`0x${network.toString(16).padStart(6, '0')}`],
    'geneve.flags.critical': [critical ? '1' : '0'],
    'geneve.option.length': [total, ...lengths.map(length => geneve.OPTION + length)].map(String),
  }
}

interface Upper {
  protocol: number
  port?: number
}

function upperLayer(r: Random): Upper {
  return { protocol: [ipv4.PROTOCOL.UDP, ipv4.PROTOCOL.TCP, ipv4.PROTOCOL.ICMP][r(3)] }
}

/** Puts a transport and an IP header in front of what is there; ports from 40,000 on, where no dissector of tshark's waits. */
function packet(frame: Frame, r: Random, { protocol, port = 40_000 + r(1000) }: Upper): number {
  const { b, end } = frame
  const version4 = r(2) === 0
  const from = 40_000 + r(1000)
  if (protocol === ipv4.PROTOCOL.UDP) {
    const at = frame.prepend(udp.HEADER)
    udp.write(b, at, from, port, end - at, 0)
    const ip = ipHeader(frame, r, version4, protocol)
    if (!version4 || r(2) === 0) udp.updateChecksum(b, ip, at)
  } else if (protocol === ipv4.PROTOCOL.TCP) {
    const at = frame.prepend(tcp.HEADER + 4)
    tcp.write(b, at, tcp.HEADER + 4, from, port, word(r), word(r), r(256), r(65536))
    setI32(b, at + tcp.HEADER, (tcp.OPTION.MSS << 24) | (4 << 16) | r(65536))
    tcp.updateChecksum(b, ipHeader(frame, r, version4, protocol), at, end)
  } else {
    const at = frame.prepend(icmp.HEADER)
    icmp.write(b, at, version4 ? icmp.TYPE4.ECHO_REQUEST : icmp.TYPE6.ECHO_REPLY, 0, word(r))
    const ip = ipHeader(frame, r, version4, version4 ? protocol : ipv4.PROTOCOL.ICMPV6)
    if (version4) icmp.updateChecksum4(b, at, end)
    else icmp.updateChecksum6(b, ip, at, end)
  }
  return version4 ? ETHERTYPE.IPV4 : ETHERTYPE.IPV6
}

function ipHeader(frame: Frame, r: Random, version4: boolean, protocol: number): number {
  const { b, end } = frame
  const bytes = end - frame.start
  if (version4) {
    const header = ipv4.HEADER + 4 * r(11)
    const at = frame.prepend(header)
    b.fill(1, at + ipv4.HEADER, at + header)
    const dontFragment = r(2) === 0 ? ipv4.DONT_FRAGMENT : 0
    // First octet 10: tshark does not judge transport checksums of some special addresses.
    ipv4.write(
      b,
      at,
      header,
      r(256),
      header + bytes,
      r(65536),
      dontFragment,
      1 + r(254),
      protocol,
      special(r),
      special(r),
    )
    if (r(2) === 0) ipv4.rewriteTos(b, at, r(256))
    if (r(2) === 0) ipv4.decrementTtl(b, at)
    return at
  }
  const at = frame.prepend(ipv6.HEADER)
  ipv6.write(b, at, r(256), r(1 << 20), bytes, protocol, r(256))
  for (let i = 0; i < 8; i++) ipv6.setWord(b, at, i, i % 4 === 0 ? 0x20010db8 : word(r))
  return at
}

const special = (r: Random) => (10 << 24) | r(1 << 24)

function arpPacket(frame: Frame, r: Random): number {
  frame.start = frame.end
  const at = frame.prepend(arp.HEADER)
  arp.write(frame.b, at, 1 + r(2), word(r), word(r))
  ethernet.writeAddress(frame.b, at + arp.SENDER_HARDWARE, r(65536), word(r))
  ethernet.writeAddress(frame.b, at + arp.TARGET_HARDWARE, r(65536), word(r))
  return ETHERTYPE.ARP
}

/** Puts the Ethernet header in front, and one time in three a VLAN tag between. */
function address(frame: Frame, r: Random, etherType: number): Frame {
  const { b } = frame
  let type = etherType
  if (r(3) === 0) {
    vlan.write(b, frame.prepend(vlan.TAG), r(4096), r(8), r(2) === 0, type)
    type = ETHERTYPE.VLAN
  }
  ethernet.write(b, frame.prepend(ethernet.HEADER), r(65536), word(r), r(65536), word(r), type)
  return frame
}
