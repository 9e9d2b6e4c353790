// The kernel's half of flow/steering: socket filters that choose a TAP's queue (TUNSETSTEERINGEBPF) or a socket of a group
// (SO_ATTACH_REUSEPORT_EBPF), and so the worker, by the same hash.

import { EXTENSION_LIMIT, EXTENSIONS, MIX, type Steering } from '../flow/steering.ts'
import { Assembler, HELPER, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10 } from '../os/assembler.ts'
import { TYPE4 } from '../wire/icmp.ts'
import { PROTOCOL } from '../wire/ipv4.ts'

// Ethernet types in network byte order as a little-endian processor reads them.
const IPV4 = 0x0008
const IPV6 = 0xdd86
const VLAN = 0x0081
const SERVICE_VLAN = 0xa888
const TRANSPARENT_ETHERNET = 0x5865
const FRAGMENT6 = 44
const DCCP = 33
const UDP_LITE = 136
const WITH_PORTS = [PROTOCOL.TCP, PROTOCOL.UDP, PROTOCOL.SCTP, DCCP, UDP_LITE]
const { UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM } = TYPE4
const ERRORS4 = [UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM]
const FIRST_QUERY6 = 128

/** Steers Ethernet frames. */
export function steerFrames(steering: Steering): Uint8Array {
  return finish(new Assembler().move(R6, R1).set(R7, 0), steering)
}

/** Steers tunnel packets by what is in them; the tunnel header begins at offset `at` of what the program is given. */
export function steerTunnels(kind: 'geneve' | 'vxlan', at: number, steering: Steering): Uint8Array {
  const a = new Assembler().move(R6, R1).set(R7, at)
  if (kind === 'geneve') {
    load(a, 0, 8, 'other')
    a.load(1, R1, R10, STACK)
      .and(R1, 0x3f)
      .shiftLeft(R1, 2)
      .addRegister(R7, R1)
      .load(2, R2, R10, STACK + 2)
    a.add(R7, 8).when(R2, '!=', TRANSPARENT_ETHERNET, 'inner')
  } else a.add(R7, 8)
  return finish(a, steering)
}

// R6 is the context, R7 where the header at hand begins, R8 the addresses, R9 protocol and ports; headers are read to here:
const STACK = -48

function finish(a: Assembler, { workers, seed }: Steering): Uint8Array {
  load(a, 12, 2, 'other')
  a.load(2, R2, R10, STACK).add(R7, 14).when(R2, '==', VLAN, 'vlan').when(R2, '!=', SERVICE_VLAN, 'inner')
  a.label('vlan')
  load(a, 2, 2, 'other')
  a.load(2, R2, R10, STACK).add(R7, 4)
  a.label('inner').when(R2, '==', IPV4, 'ipv4').when(R2, '==', IPV6, 'ipv6')
  a.label('other').exit(0)

  packet4(a, 'ipv4', 'other', 'quote4')
  packet6(a, 'ipv6', 'other', 'quote6')
  packet4(a, 'quote4', 'mix')
  packet6(a, 'quote6', 'mix')
  a.label('ports')
  load(a, 0, 4, 'mix')
  a.load(2, R1, R10, STACK).load(2, R2, R10, STACK + 2)
  a.xor32(R1, R2).shiftLeft(R1, 8).or(R9, R1)

  a.label('mix').move(R0, R8).xorImmediate32(R0, seed[0]).multiply32(R0, MIX.A)
  xorShifted(a, 15)
  a.xor32(R0, R9).xorImmediate32(R0, seed[1]).multiply32(R0, MIX.B)
  xorShifted(a, 13)
  a.multiply32(R0, MIX.C)
  xorShifted(a, 16)
  return a.modulo32(R0, workers).exit().assemble()
}

// Reads an IPv4 header; goes to `quote` behind an ICMP error, and to `short` when it is not all there.
function packet4(a: Assembler, name: string, short: string, quote?: string): void {
  a.label(name)
  load(a, 0, 20, short)
  a.load(4, R8, R10, STACK + 12)
    .load(4, R1, R10, STACK + 16)
    .xor32(R8, R1)
    .set(R9, 0)
  // MF and offset, network byte order.
  a.load(2, R1, R10, STACK + 6)
    .and(R1, 0xff3f)
    .when(R1, '!=', 0, 'mix')
  a.load(1, R1, R10, STACK)
    .and(R1, 0xf)
    .shiftLeft(R1, 2)
    .addRegister(R7, R1)
    .load(1, R9, R10, STACK + 9)
  for (const protocol of WITH_PORTS) a.when(R9, '==', protocol, 'ports')
  if (quote !== undefined) {
    a.when(R9, '!=', PROTOCOL.ICMP, 'mix')
    load(a, 0, 1, 'mix')
    a.load(1, R1, R10, STACK).add(R7, 8)
    for (const type of ERRORS4) a.when(R1, '==', type, quote)
  }
  a.jump('mix')
}

function packet6(a: Assembler, name: string, short: string, quote?: string): void {
  a.label(name)
  load(a, 0, 40, short)
  a.load(4, R8, R10, STACK + 8)
  for (let i = 12; i < 40; i += 4) a.load(4, R1, R10, STACK + i).xor32(R8, R1)
  a.load(1, R9, R10, STACK + 6).add(R7, 40)
  for (let i = 0; i < EXTENSION_LIMIT; i++) {
    for (const extension of EXTENSIONS) a.when(R9, '==', extension, `${name} extension ${i}`)
    a.jump(`${name} transport`)
    a.label(`${name} extension ${i}`)
    load(a, 0, 2, 'mix')
    a.load(1, R9, R10, STACK)
      .load(1, R1, R10, STACK + 1)
      .add(R1, 1)
      .shiftLeft(R1, 3)
      .addRegister(R7, R1)
  }
  a.label(`${name} transport`).when(R9, '!=', FRAGMENT6, `${name} whole`).set(R9, 0).jump('mix').label(`${name} whole`)
  for (const protocol of WITH_PORTS) a.when(R9, '==', protocol, 'ports')
  if (quote !== undefined) {
    a.when(R9, '!=', PROTOCOL.ICMPV6, 'mix')
    load(a, 0, 1, 'mix')
    a.load(1, R1, R10, STACK).add(R7, 8).when(R1, '<', FIRST_QUERY6, quote)
  }
  a.jump('mix')
}

// R0 ^= R0 >>> bits, 32 bits.
function xorShifted(a: Assembler, bits: number): void {
  a.move(R1, R0).shiftRight(R1, bits).xor32(R0, R1)
}

// The `size` bytes at R7 + `offset` to the stack, or off to a label; R0 to R5 are lost.
function load(a: Assembler, offset: number, size: number, otherwise: string): void {
  a.move(R1, R6).move(R2, R7)
  if (offset !== 0) a.add(R2, offset)
  a.move(R3, R10).add(R3, STACK).set(R4, size).call(HELPER.SKB_LOAD_BYTES).when(R0, '!=', 0, otherwise)
}
