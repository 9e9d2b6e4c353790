// Ethernet II header.
//
//   0               6               12      14
//   | destination   | source        | type  | ...

import { DROP, type DropReason } from '../drop.ts'
import { DetourError } from '../errors.ts'
import { i32, setI32, setU16, u16 } from './bytes.ts'

/** Bytes of the header, without VLAN tags. */
export const HEADER = 14
/** Bytes of an address. */
export const ADDRESS = 6

export const DESTINATION = 0
export const SOURCE = 6
const TYPE = 12

/** EtherTypes (IANA, IEEE 802). */
export const ETHERTYPE = {
  IPV4: 0x0800,
  ARP: 0x0806,
  TEB: 0x6558,
  VLAN: 0x8100,
  IPV6: 0x86dd,
  QINQ: 0x88a8,
} as const

/** 0 when the header is there, or a drop reason. */
export function check(_b: Uint8Array, at: number, end: number): DropReason {
  return at + HEADER > end ? DROP.ETHERNET_TRUNCATED : 0
}

/** The type field: an EtherType, a VLAN tag's TPID, or an IEEE 802.3 length when under 0x600. */
export function type(b: Uint8Array, at: number): number {
  return u16(b, at + TYPE)
}

export function setType(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + TYPE, value)
}

/** Writes a whole header; the addresses as their high 16 and low 32 bits. */
export function write(
  b: Uint8Array,
  at: number,
  destinationHigh: number,
  destinationLow: number,
  sourceHigh: number,
  sourceLow: number,
  etherType: number,
): void {
  writeAddress(b, at + DESTINATION, destinationHigh, destinationLow)
  writeAddress(b, at + SOURCE, sourceHigh, sourceLow)
  setU16(b, at + TYPE, etherType)
}

/** Copies the address at `from` to `to`. */
export function copyAddress(b: Uint8Array, to: number, from: number): void {
  for (let i = 0; i < ADDRESS; i++) b[to + i] = b[from + i]
}

/** Exchanges destination and source of the header at `at`. */
export function swapAddresses(b: Uint8Array, at: number): void {
  for (let i = at; i < at + ADDRESS; i++) {
    const byte = b[i]
    b[i] = b[i + SOURCE]
    b[i + SOURCE] = byte
  }
}

/** True when the addresses at `x` and `y` are equal. */
export function sameAddress(b: Uint8Array, x: number, y: number): boolean {
  return addressLow(b, x) === addressLow(b, y) && addressHigh(b, x) === addressHigh(b, y)
}

/** The first 16 bits of the address at `at`. */
export function addressHigh(b: Uint8Array, at: number): number {
  return u16(b, at)
}

/** The last 32 bits of the address at `at`, signed. */
export function addressLow(b: Uint8Array, at: number): number {
  return i32(b, at + 2)
}

/** Writes an address of its first 16 and last 32 bits. */
export function writeAddress(b: Uint8Array, at: number, high: number, low: number): void {
  setU16(b, at, high)
  setI32(b, at + 2, low)
}

/** True for multicast and broadcast addresses. */
export function isGroup(b: Uint8Array, at: number): boolean {
  return (b[at] & 1) === 1
}

/** The address at `at` as `02:00:00:00:00:01`. For people, not for the path. */
export function formatAddress(b: Uint8Array, at = 0): string {
  return Array.from(b.subarray(at, at + ADDRESS), byte => byte.toString(16).padStart(2, '0')).join(':')
}

/** The six bytes of an address written with colons or dashes. Throws DetourError `bad-config`. */
export function parseAddress(text: string): Uint8Array {
  if (!/^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$/i.test(text))
    throw new DetourError('bad-config', `'${text}' is not an Ethernet address; write it as 02:00:00:00:00:01`)
  return Uint8Array.from(text.split(/[:-]/), byte => Number.parseInt(byte, 16))
}
