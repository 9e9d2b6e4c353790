// ARP for IPv4 over Ethernet: RFC 826.
//
//   0       2       4 5 6       8       14      18      24      28
//   | hrd=1 | 0x800 |6|4| op    | sha   | spa   | tha   | tpa   |

import { DROP, type DropReason } from '../drop.ts'
import { i32, setI32, setU16, u16 } from './bytes.ts'

/** Bytes of an ARP packet for IPv4 over Ethernet. */
export const HEADER = 28

export const OPERATION = { REQUEST: 1, REPLY: 2 } as const

/** Offsets of the hardware addresses; read them with wire/ethernet. */
export const SENDER_HARDWARE = 8
export const TARGET_HARDWARE = 18
const SENDER = 14
const TARGET = 24
const ETHERNET_IPV4_SIZES = 0x0604

/** 0 when the packet is ARP for IPv4 over Ethernet and all there, or a drop reason. */
export function check(b: Uint8Array, at: number, end: number): DropReason {
  if (at + HEADER > end) return DROP.ARP_TRUNCATED
  return u16(b, at) === 1 && u16(b, at + 2) === 0x0800 && u16(b, at + 4) === ETHERNET_IPV4_SIZES
    ? 0
    : DROP.ARP_MALFORMED
}

export function operation(b: Uint8Array, at: number): number {
  return u16(b, at + 6)
}

export function setOperation(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + 6, value)
}

/** The sender's IPv4 address, signed. */
export function sender(b: Uint8Array, at: number): number {
  return i32(b, at + SENDER)
}

export function setSender(b: Uint8Array, at: number, address: number): void {
  setI32(b, at + SENDER, address)
}

/** The target's IPv4 address, signed. */
export function target(b: Uint8Array, at: number): number {
  return i32(b, at + TARGET)
}

export function setTarget(b: Uint8Array, at: number, address: number): void {
  setI32(b, at + TARGET, address)
}

/** Writes all but the hardware addresses, which are copied in at SENDER_HARDWARE and TARGET_HARDWARE. */
export function write(b: Uint8Array, at: number, op: number, senderAddress: number, targetAddress: number): void {
  setU16(b, at, 1)
  setU16(b, at + 2, 0x0800)
  setU16(b, at + 4, ETHERNET_IPV4_SIZES)
  setU16(b, at + 6, op)
  setI32(b, at + SENDER, senderAddress)
  setI32(b, at + TARGET, targetAddress)
}
