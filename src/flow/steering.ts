// Which worker a packet belongs to: a symmetric hash, so that both directions of a flow, and the errors about it, meet at
// one worker whatever an endpoint does with source ports. control/steering builds the same function for the kernel.
//
//   TCP, UDP, SCTP, DCCP, UDP-Lite   addresses, protocol, ports
//   ICMP errors                      those of the packet they quote
//   fragments                        addresses: the first one, too, because the others have no ports
//   whatever else is IP              addresses, protocol
//   not IP, or cut short             worker 0
//
// A VLAN tag is looked behind.
//
// NB: a flow with packets that are fragmented and packets that are not is two flows, at two workers.

import * as icmp from '../wire/icmp.ts'
import { PROTOCOL } from '../wire/ipv4.ts'
import type { Seed } from './hash.ts'
import { hasPorts } from './key.ts'

/** How packets are shared out; plain data, passes through workerData. */
export interface Steering {
  workers: number
  seed: Seed
}

/** Constants of the hash: odd, with bits all over (the first is 2^32 / golden ratio). */
export const MIX = { A: 0x9e3779b1 | 0, B: 0x85ebca77 | 0, C: 0xc2b2ae3d | 0 } as const

/** IPv6 extension headers that are looked behind: hop-by-hop options, routing, destination options (RFC 8200 section 4). */
export const EXTENSIONS = [0, 43, 60] as const
/** How many of them in a row. */
export const EXTENSION_LIMIT = 3
const FRAGMENT6 = 44

const ETHERNET = 14
const TAG = 4
const VLAN = 0x8100
const SERVICE_VLAN = 0x88a8
const UDP = 8
const IPV4 = 0x0800
const IPV6 = 0x86dd
const TRANSPARENT_ETHERNET = 0x6558

/** The worker of an Ethernet frame [at, end). */
export function workerOfFrame(b: Uint8Array, at: number, end: number, steering: Steering): number {
  if (at + ETHERNET > end) return 0
  const type = (b[at + 12] << 8) | b[at + 13]
  if (type !== VLAN && type !== SERVICE_VLAN) return workerOfType(b, at + ETHERNET, end, type, steering)
  const inner = at + ETHERNET + TAG
  return inner > end ? 0 : workerOfType(b, inner, end, (b[inner - 2] << 8) | b[inner - 1], steering)
}

/** The worker of a tunnel packet by its inner packet; `udp` is where its UDP header is. */
export function workerOfTunnel(b: Uint8Array, udp: number, end: number, geneve: boolean, steering: Steering): number {
  const at = udp + UDP
  if (at + 8 > end) return 0
  if (!geneve) return workerOfFrame(b, at + 8, end, steering)
  const inner = at + 8 + (b[at] & 0x3f) * 4
  const type = (b[at + 2] << 8) | b[at + 3]
  if (type === TRANSPARENT_ETHERNET) return workerOfFrame(b, inner, end, steering)
  return workerOfType(b, inner, end, type, steering)
}

/** The worker of the IP packet [at, end), whose version is the one that its Ethernet type said. */
export function workerOfPacket(b: Uint8Array, at: number, end: number, steering: Steering): number {
  return workerOfType(b, at, end, b[at] >> 4 === 6 ? IPV6 : IPV4, steering)
}

// What `read` found: addresses in one word, and protocol and ports in another.
let addresses = 0
let rest = 0

function workerOfType(b: Uint8Array, at: number, end: number, type: number, { workers, seed }: Steering): number {
  if (!(type === IPV4 ? read4(b, at, end, true) : type === IPV6 && read6(b, at, end, true))) return 0
  let x = Math.imul(addresses ^ seed[0], MIX.A)
  x = Math.imul(x ^ (x >>> 15) ^ rest ^ seed[1], MIX.B)
  x = Math.imul(x ^ (x >>> 13), MIX.C)
  return ((x ^ (x >>> 16)) >>> 0) % workers
}

function read4(b: Uint8Array, at: number, end: number, quotes: boolean): boolean {
  if (at + 20 > end) return false
  addresses = word(b, at + 12) ^ word(b, at + 16)
  const fragment = (b[at + 6] & 0x3f) !== 0 || b[at + 7] !== 0
  rest = fragment ? 0 : b[at + 9]
  if (!fragment) readTransport(b, at + (b[at] & 0xf) * 4, end, quotes, 4)
  return true
}

function read6(b: Uint8Array, at: number, end: number, quotes: boolean): boolean {
  if (at + 40 > end) return false
  addresses = 0
  for (let i = 8; i < 40; i += 4) addresses ^= word(b, at + i)
  let next = b[at + 6]
  let transport = at + 40
  for (let i = 0; i < EXTENSION_LIMIT && isExtension(next); i++) {
    if (transport + 2 > end) {
      rest = next
      return true
    }
    next = b[transport]
    transport += (b[transport + 1] + 1) * 8
  }
  rest = next === FRAGMENT6 ? 0 : next
  if (rest !== 0) readTransport(b, transport, end, quotes, 6)
  return true
}

function readTransport(b: Uint8Array, at: number, end: number, quotes: boolean, version: number): void {
  const protocol = rest
  if (hasPorts(protocol)) {
    if (at + 4 <= end) rest |= (half(b, at) ^ half(b, at + 2)) << 8
    return
  }
  if (!quotes || at + 1 > end) return
  if (version === 4 && protocol === PROTOCOL.ICMP && icmp.isError4(b[at])) read4(b, at + icmp.QUOTE, end, false)
  else if (version === 6 && protocol === PROTOCOL.ICMPV6 && icmp.isError6(b[at])) read6(b, at + icmp.QUOTE, end, false)
}

function isExtension(next: number): boolean {
  return next === EXTENSIONS[0] || next === EXTENSIONS[1] || next === EXTENSIONS[2]
}

// As the processor reads them: the kernel's program does not turn bytes around.
function word(b: Uint8Array, at: number): number {
  return b[at] | (b[at + 1] << 8) | (b[at + 2] << 16) | (b[at + 3] << 24)
}

function half(b: Uint8Array, at: number): number {
  return b[at] | (b[at + 1] << 8)
}
