// The XDP programs that give packets to AF_XDP sockets, found in a map by receive queue. A queue without a socket passes.

import { Assembler, HELPER, R1, R2, R3, R6, R7, XDP, XDP_PASS } from '../os/assembler.ts'
import { ETHERNET, IPV4, IPV6, type TunnelPlace, unlessTunnel } from './programs.ts'

/** Gives every packet to the socket of its queue: for an interface that is Detour's own. */
export function everything(socketMap: number): Uint8Array {
  return toSocket(new Assembler(), socketMap).assemble()
}

/**
 * Gives UDP to this place to the socket of its queue. The kernel keeps all else, and what it must put in order
 * first: fragments, IPv4 options, IPv6 extension headers, VLAN tags.
 */
export function tunnelPackets(socketMap: number, place: TunnelPlace): Uint8Array {
  const ipv4 = place.address.length === 4
  const udp = ETHERNET + (ipv4 ? 20 : 40)
  const a = new Assembler().load(4, R6, R1, XDP.DATA).load(4, R7, R1, XDP.DATA_END)
  a.move(R2, R6)
    .add(R2, udp + 8)
    .whenRegister(R2, '>', R7, 'pass')
  a.load(2, R2, R6, 12).when(R2, '!=', ipv4 ? IPV4 : IPV6, 'pass')
  unlessTunnel(a, R6, ETHERNET, place, 'pass')
  toSocket(a, socketMap)
  return a.label('pass').exit(XDP_PASS).assemble()
}

// The context is in R1; without a socket the helper answers what its flags say.
function toSocket(a: Assembler, socketMap: number): Assembler {
  return a.load(4, R2, R1, XDP.RX_QUEUE).map(R1, socketMap).set(R3, XDP_PASS).call(HELPER.REDIRECT_MAP).exit()
}
