// The BPF programs of interception and underlay: a few dozen instructions each, verified by the kernel at load.

import { Assembler, HELPER, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, SKB, VERDICT } from '../os/assembler.ts'
import { HEARTBEAT_SHIFT } from '../os/clock.ts'
import { HEARTBEAT } from '../os/heartbeat.ts'

// Ethernet types as a little-endian processor reads them, from the packet or as `skb->protocol`.
export const IPV4 = 0x0008
export const IPV6 = 0xdd86
export const ETHERNET = 14
const UDP = 17
const ICMPV6 = 58

/** Mark of a frame on its way back into the pod, only between the TAP and the pod's interface. A veth scrubs marks, so none can come from outside. */
const MARK = 0x0de70000

// The worker reads the clock a little apart from the kernel: a heartbeat from the near future is alive, too.
const SLACK = 8

const BPF_F_INGRESS = 1

/** What a gate needs to know. */
export interface Gate {
  /** The leg: packets leaving the pod, or arriving at it. */
  hook: 'egress' | 'ingress'
  tapIndex: number
  heartbeatMap: number
  /** How many workers beat. */
  workers: number
  /** Hash map of addresses that belong to protected pods: what they send was inspected where it left. */
  protectedMap: number
}

/**
 * Decides on the pod's interface which packets go to the TAP: IPv4 and IPv6, unless they come from there, are neighbour discovery, come from a
 * protected pod, or a worker is dead.
 */
export function gate({ hook, tapIndex, heartbeatMap, workers, protectedMap }: Gate): Uint8Array {
  const a = new Assembler().move(R6, R1)

  // What the worker sent is not steered again. Leaving, the TAP is the interface it came in by, which no process in the
  // pod can feign (a mark it could: SO_MARK); arriving, it is marked.
  if (hook === 'egress') a.load(4, R2, R6, SKB.INGRESS_IFINDEX).when(R2, '==', tapIndex, 'next')
  else {
    a.load(4, R2, R6, SKB.MARK).when32(R2, '!=', MARK, 'foreign')
    a.set(R2, 0).store(4, R6, SKB.MARK, R2).exit(VERDICT.NEXT)
    a.label('foreign')
  }

  // Stack: -64 the IPv6 header and one byte, -16 the address as the protected map has it, -20 a map key.
  a.load(4, R2, R6, SKB.PROTOCOL).when(R2, '==', IPV4, 'ipv4').when(R2, '!=', IPV6, 'next')
  loadBytes(a, ETHERNET, -64, 41).when(R0, '!=', 0, 'live?')
  a.load(1, R2, R10, -64 + 6).when(R2, '!=', ICMPV6, 'address6')
  a.load(1, R2, R10, -64 + 40)
    .when(R2, '<', 133, 'address6')
    .when(R2, '<=', 137, 'next') // RFC 4861 section 4
  a.label('address6')
  if (hook === 'ingress') {
    a.load(8, R2, R10, -64 + 8).store(8, R10, -16, R2)
    a.load(8, R2, R10, -64 + 16).store(8, R10, -8, R2)
    a.jump('protected?')
  } else a.jump('live?')

  a.label('ipv4')
  if (hook === 'ingress') {
    a.storeImmediate(8, R10, -16, 0).storeImmediate(4, R10, -8, 0xffff_0000 | 0)
    loadBytes(a, ETHERNET + 12, -4, 4).when(R0, '!=', 0, 'live?')
    a.label('protected?').map(R1, protectedMap).move(R2, R10).add(R2, -16).call(HELPER.MAP_LOOKUP)
    a.when(R0, '!=', 0, 'next')
  }

  a.label('live?').storeImmediate(4, R10, -20, 0)
  a.map(R1, heartbeatMap).move(R2, R10).add(R2, -20).call(HELPER.MAP_LOOKUP).when(R0, '==', 0, 'next').move(R7, R0)
  a.load(4, R1, R7, HEARTBEAT.ENABLED).when(R1, '==', 0, 'next')
  a.call(HELPER.KTIME_GET_NS).shiftRight(R0, HEARTBEAT_SHIFT).move(R8, R0)
  a.load(4, R9, R7, HEARTBEAT.LIMIT).add32(R9, SLACK)
  for (let i = 0; i < workers; i++) {
    a.load(4, R1, R7, HEARTBEAT.BEATS + 4 * i).move(R0, R8)
    a.subtract32(R0, R1).add32(R0, SLACK).whenRegister(R0, '>', R9, 'dead')
  }
  a.jump('live').label('dead')

  a.set(R1, 1).load(4, R2, R7, HEARTBEAT.FAIL).when(R2, '!=', 0, 'closed')
  a.atomicAdd(R7, HEARTBEAT.PASSED, R1)
  a.label('next').exit(VERDICT.NEXT)
  a.label('closed').atomicAdd(R7, HEARTBEAT.DROPPED, R1).exit(VERDICT.DROP)

  a.label('live').set(R1, 1).atomicAdd(R7, HEARTBEAT.REDIRECTED, R1)
  return redirect(a, tapIndex, 0).assemble()
}

/** Takes what the worker writes to the TAP to the pod's interface: out of it when the source MAC is the interface's own, else into it. */
export function back(interfaceIndex: number, mac: Uint8Array): Uint8Array {
  const view = new DataView(mac.buffer, mac.byteOffset, 6)
  const a = new Assembler().move(R6, R1)
  loadBytes(a, 6, -8, 6).when(R0, '!=', 0, 'drop')
  a.load(4, R2, R10, -8).when32(R2, '!=', view.getInt32(0, true), 'arriving')
  a.load(2, R2, R10, -4).when(R2, '!=', view.getUint16(4, true), 'arriving')
  redirect(a, interfaceIndex, 0)
  a.label('arriving').set(R2, MARK).store(4, R6, SKB.MARK, R2)
  redirect(a, interfaceIndex, BPF_F_INGRESS)
  return a.label('drop').exit(VERDICT.DROP).assemble()
}

/** Takes what the worker writes to the underlay TAP to the uplink; the kernel's routes and neighbours give it its Ethernet header. */
export function toUplink(uplinkIndex: number): Uint8Array {
  const a = new Assembler().load(4, R2, R1, SKB.PROTOCOL).when(R2, '==', IPV4, 'ip').when(R2, '!=', IPV6, 'drop')
  a.label('ip').set(R1, uplinkIndex).set(R2, 0).set(R3, 0).set(R4, 0).call(HELPER.REDIRECT_NEIGH).exit()
  return a.label('drop').exit(VERDICT.DROP).assemble()
}

/**
 * Takes UDP to `address` and `port` from the uplink to the underlay TAP. The kernel keeps all else, and what it must put in order first:
 * fragments, IPv4 options, IPv6 extension headers, VLAN tags.
 */
export function fromUplink(tapIndex: number, address: Uint8Array, port: number): Uint8Array {
  const ipv4 = address.length === 4
  const at = -48 // the IP header and four bytes of UDP
  const a = new Assembler().move(R6, R1)
  a.load(4, R2, R6, SKB.PROTOCOL).when(R2, '!=', ipv4 ? IPV4 : IPV6, 'next')
  a.load(4, R2, R6, SKB.VLAN_PRESENT).when(R2, '!=', 0, 'next')
  loadBytes(a, ETHERNET, at, (ipv4 ? 20 : 40) + 4).when(R0, '!=', 0, 'next')
  unlessTunnel(a, R10, at, address, port, 'next')
  redirect(a, tapIndex, 0)
  return a.label('next').exit(VERDICT.NEXT).assemble()
}

/** Goes to the label unless the IP header that lies `at` bytes from where the register points begins a whole UDP packet to this address and port. Uses R2. */
export function unlessTunnel(
  a: Assembler,
  register: number,
  at: number,
  address: Uint8Array,
  port: number,
  label: string,
): void {
  const ipv4 = address.length === 4
  const view = new DataView(address.buffer, address.byteOffset, address.length)
  if (ipv4) {
    a.load(1, R2, register, at).when(R2, '!=', 0x45, label)
    a.load(2, R2, register, at + 6)
      .and(R2, 0xff3f)
      .when(R2, '!=', 0, label) // MF and offset, network byte order
  }
  a.load(1, R2, register, at + (ipv4 ? 9 : 6)).when(R2, '!=', UDP, label)
  for (let i = 0; i < address.length; i += 4)
    a.load(4, R2, register, at + (ipv4 ? 16 : 24) + i).when32(R2, '!=', view.getInt32(i, true), label)
  a.load(2, R2, register, at + (ipv4 ? 20 : 40) + 2).when(R2, '!=', ((port & 0xff) << 8) | (port >> 8), label)
}

// R0 = 0 and the `size` bytes from `offset` of the packet at `to` of the stack, or R0 < 0. The context is in R6.
function loadBytes(a: Assembler, offset: number, to: number, size: number): Assembler {
  return a.move(R1, R6).set(R2, offset).move(R3, R10).add(R3, to).set(R4, size).call(HELPER.SKB_LOAD_BYTES)
}

function redirect(a: Assembler, index: number, flags: number): Assembler {
  return a.set(R1, index).set(R2, flags).call(HELPER.REDIRECT).exit()
}
