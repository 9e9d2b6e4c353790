// The BPF programs of the underlay, and what they have in common with those of interception: a few dozen instructions each, verified by
// the kernel at load.

import { Assembler, HELPER, R0, R1, R2, R3, R4, R6, R10, SKB, VERDICT } from '../os/assembler.ts'

// Ethernet types as a little-endian processor reads them, from the packet or as `skb->protocol`.
export const IPV4 = 0x0008
export const IPV6 = 0xdd86
export const ETHERNET = 14
const UDP = 17

/** Takes what the worker writes to the underlay TAP to the uplink; the kernel's routes and neighbours give it its Ethernet header. */
export function toUplink(uplinkIndex: number): Uint8Array {
  const a = new Assembler().load(4, R2, R1, SKB.PROTOCOL).when(R2, '==', IPV4, 'ip').when(R2, '!=', IPV6, 'drop')
  a.label('ip').set(R1, uplinkIndex).set(R2, 0).set(R3, 0).set(R4, 0).call(HELPER.REDIRECT_NEIGH).exit()
  return a.label('drop').exit(VERDICT.DROP).assemble()
}

/** What the tunnel's packets are known by. */
export interface TunnelPlace {
  /** 4 or 16 bytes. */
  address: Uint8Array
  port: number
  /** The UDP port of a second tunnel. */
  otherPort?: number
  /** Packets come back to other addresses too: all of this port are the tunnel's. */
  anyAddress?: boolean
}

/**
 * Takes UDP to this place from the uplink to the underlay TAP. The kernel keeps all else, and what it must put in order first:
 * fragments, IPv4 options, IPv6 extension headers, VLAN tags.
 */
export function fromUplink(tapIndex: number, place: TunnelPlace): Uint8Array {
  const ipv4 = place.address.length === 4
  const at = -48 // the IP header and four bytes of UDP
  const a = new Assembler().move(R6, R1)
  a.load(4, R2, R6, SKB.PROTOCOL).when(R2, '!=', ipv4 ? IPV4 : IPV6, 'next')
  a.load(4, R2, R6, SKB.VLAN_PRESENT).when(R2, '!=', 0, 'next')
  loadBytes(a, ETHERNET, at, (ipv4 ? 20 : 40) + 4).when(R0, '!=', 0, 'next')
  unlessTunnel(a, R10, at, place, 'next')
  redirect(a, tapIndex, 0)
  return a.label('next').exit(VERDICT.NEXT).assemble()
}

/** Goes to the label unless the IP header that lies `at` bytes from where the register points begins a whole UDP packet to this place. Uses R2. */
export function unlessTunnel(a: Assembler, register: number, at: number, place: TunnelPlace, label: string): void {
  const { address, port, otherPort = port, anyAddress = false } = place
  const ipv4 = address.length === 4
  const view = new DataView(address.buffer, address.byteOffset, address.length)
  if (ipv4) {
    a.load(1, R2, register, at).when(R2, '!=', 0x45, label)
    a.load(2, R2, register, at + 6)
      .and(R2, 0xff3f)
      .when(R2, '!=', 0, label) // MF and offset, network byte order
  }
  a.load(1, R2, register, at + (ipv4 ? 9 : 6)).when(R2, '!=', UDP, label)
  for (let i = 0; i < address.length && !anyAddress; i += 4)
    a.load(4, R2, register, at + (ipv4 ? 16 : 24) + i).when32(R2, '!=', view.getInt32(i, true), label)
  a.load(2, R2, register, at + (ipv4 ? 20 : 40) + 2)
  if (otherPort !== port) a.when(R2, '==', swapped(otherPort), 'tunnel')
  a.when(R2, '!=', swapped(port), label).label('tunnel')
}

const swapped = (port: number) => ((port & 0xff) << 8) | (port >> 8)

/** R0 = 0 and the `size` bytes from `offset` of the packet at `to` of the stack, or R0 < 0. The context is in R6. */
export function loadBytes(a: Assembler, offset: number, to: number, size: number): Assembler {
  return a.move(R1, R6).set(R2, offset).move(R3, R10).add(R3, to).set(R4, size).call(HELPER.SKB_LOAD_BYTES)
}

/** Ends the program by giving the packet to an interface, to leave by it or, flagged BPF_F_INGRESS, to arrive at it. */
export function redirect(a: Assembler, index: number, flags: number): Assembler {
  return a.set(R1, index).set(R2, flags).call(HELPER.REDIRECT).exit()
}
