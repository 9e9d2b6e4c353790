// UDP header: RFC 768; over IPv6: RFC 8200 section 8.1.
//
//   0               2               4               6               8
//   | source port   | dest. port    | length        | checksum      | ...

import { DROP, type DropReason } from '../drop.ts'
import { setU16, u16 } from './bytes.ts'
import { finish, fold, pseudo, sum } from './checksum.ts'

/** Bytes of the header. */
export const HEADER = 8
/** Offset of the length. */
export const LENGTH = 4
/** Offset of the checksum. */
export const CHECKSUM = 6

const PROTOCOL = 17

/** 0 when the header is sound and the datagram all there, or a drop reason. NB: a first fragment says UDP_LENGTH; its ports can be read if HEADER bytes are there. */
export function check(b: Uint8Array, at: number, end: number): DropReason {
  if (at + HEADER > end) return DROP.UDP_TRUNCATED
  const bytes = length(b, at)
  return bytes < HEADER || at + bytes > end ? DROP.UDP_LENGTH : 0
}

export function sourcePort(b: Uint8Array, at: number): number {
  return u16(b, at)
}

export function setSourcePort(b: Uint8Array, at: number, port: number): void {
  setU16(b, at, port)
}

export function destinationPort(b: Uint8Array, at: number): number {
  return u16(b, at + 2)
}

export function setDestinationPort(b: Uint8Array, at: number, port: number): void {
  setU16(b, at + 2, port)
}

/** Header and payload in bytes. */
export function length(b: Uint8Array, at: number): number {
  return u16(b, at + 4)
}

export function setLength(b: Uint8Array, at: number, bytes: number): void {
  setU16(b, at + 4, bytes)
}

/** The checksum; 0 means that there is none. */
export function checksum(b: Uint8Array, at: number): number {
  return u16(b, at + CHECKSUM)
}

export function setChecksum(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + CHECKSUM, value)
}

/** Writes a header; checksum 0 for none. */
export function write(b: Uint8Array, at: number, from: number, to: number, bytes: number, check16: number): void {
  setU16(b, at, from)
  setU16(b, at + 2, to)
  setU16(b, at + 4, bytes)
  setU16(b, at + CHECKSUM, check16)
}

/** Computes and writes the checksum of the datagram at `at` in the IP packet at `ipAt`; a sum of zero is written as 0xffff. */
export function updateChecksum(b: Uint8Array, ipAt: number, at: number): void {
  setU16(b, at + CHECKSUM, 0)
  const bytes = length(b, at)
  setU16(b, at + CHECKSUM, finish(sum(b, at, at + bytes, pseudo(b, ipAt, PROTOCOL, bytes))) || 0xffff)
}

/** True when the checksum of a checked datagram is right. NB: 0 means none and is for the caller to judge; here it is wrong unless it sums up. */
export function verifyChecksum(b: Uint8Array, ipAt: number, at: number): boolean {
  const bytes = length(b, at)
  return fold(sum(b, at, at + bytes, pseudo(b, ipAt, PROTOCOL, bytes))) === 0xffff
}
