// Answers: what came back, taken apart. Bytes of strangers: everything is checked before it is read.

import { DROP, dropText } from '../drop.ts'
import { ETHERTYPE } from '../wire/ethernet.ts'
import * as geneve from '../wire/geneve.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vxlan from '../wire/vxlan.ts'
import type { ConformProfile } from './profile.ts'

export interface Answer {
  /** The outer IP packet; of what a socket does not tell, made up. */
  packet: Uint8Array
  token: number
  /** Since its probe was sent, in ms. */
  ms: number
}

/** The fields of an answer. */
export interface Parts {
  source: Uint8Array
  destination: Uint8Array
  sourcePort: number
  destinationPort: number
  ttl: number
  tos: number
  /** From the tunnel header on. */
  tunnel: Uint8Array
  vni: number
  options: Uint8Array
  /** What is behind the tunnel header. */
  inner: Uint8Array
  /** EtherType that the tunnel header names; of VXLAN, of Ethernet. */
  protocol: number
}

const REASSURED: readonly number[] = [0, DROP.GENEVE_CRITICAL, DROP.GENEVE_CONTROL]

/** Takes an outer packet apart, or says what is wrong with it. */
export function parts(profile: ConformProfile, b: Uint8Array): Parts | string {
  const four = b.length > 0 && b[0] >> 4 === 4
  const bad = four ? ipv4.check(b, 0, b.length) : ipv6.check(b, 0, b.length)
  if (bad !== 0) return dropText(bad)
  const at = four ? ipv4.headerLength(b, 0) : ipv6.HEADER
  const badUdp = udp.check(b, at, b.length)
  if (badUdp !== 0) return dropText(badUdp)
  const header = at + udp.HEADER
  const end = at + udp.length(b, at)
  const reason = profile.kind === 'geneve' ? geneve.check(b, header, end) : vxlan.check(b, header, end, false)
  if (!REASSURED.includes(reason)) return dropText(reason)
  const isGeneve = profile.kind === 'geneve'
  const inner = header + (isGeneve ? geneve.headerLength(b, header) : vxlan.HEADER)
  return {
    source: four ? b.subarray(ipv4.SOURCE, ipv4.DESTINATION) : b.subarray(ipv6.SOURCE, ipv6.DESTINATION),
    destination: four ? b.subarray(ipv4.DESTINATION, ipv4.HEADER) : b.subarray(ipv6.DESTINATION, ipv6.HEADER),
    sourcePort: udp.sourcePort(b, at),
    destinationPort: udp.destinationPort(b, at),
    ttl: four ? ipv4.ttl(b, 0) : ipv6.hopLimit(b, 0),
    tos: four ? ipv4.tos(b, 0) : ipv6.trafficClass(b, 0),
    tunnel: b.subarray(header, end),
    vni: isGeneve ? geneve.vni(b, header) : vxlan.vni(b, header),
    options: isGeneve ? b.subarray(header + geneve.HEADER, inner) : b.subarray(0, 0),
    inner: b.subarray(inner, end),
    protocol: isGeneve ? geneve.protocol(b, header) : ETHERTYPE.TEB,
  }
}
