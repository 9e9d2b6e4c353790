// ICMP (RFC 792) and ICMPv6 (RFC 4443) header; path MTU fields: RFC 1191, RFC 8201.
//
//   0       1       2               4                               8
//   | type  | code  | checksum      | by type                       | quoted packet of an error, or data

import { DROP, type DropReason } from '../drop.ts'
import { i32, setI32, setU16, u16 } from './bytes.ts'
import { finish, fold, pseudo6, sum } from './checksum.ts'

/** Bytes of the header. */
export const HEADER = 8
/** Offset of the packet that an error quotes. */
export const QUOTE = 8
/** Offset of the checksum. */
export const CHECKSUM = 2

/** ICMP types. */
export const TYPE4 = {
  ECHO_REPLY: 0,
  UNREACHABLE: 3,
  SOURCE_QUENCH: 4,
  REDIRECT: 5,
  ECHO_REQUEST: 8,
  TIME_EXCEEDED: 11,
  PARAMETER_PROBLEM: 12,
} as const

/** Code of TYPE4.UNREACHABLE that carries a next-hop MTU. */
export const FRAGMENTATION_NEEDED = 4

/** ICMPv6 types; those under 128 are errors. */
export const TYPE6 = {
  UNREACHABLE: 1,
  PACKET_TOO_BIG: 2,
  TIME_EXCEEDED: 3,
  PARAMETER_PROBLEM: 4,
  ECHO_REQUEST: 128,
  ECHO_REPLY: 129,
  MLD_QUERY: 130,
  MLD_REPORT: 131,
  MLD_DONE: 132,
  ROUTER_SOLICITATION: 133,
  ROUTER_ADVERTISEMENT: 134,
  NEIGHBOR_SOLICITATION: 135,
  NEIGHBOR_ADVERTISEMENT: 136,
  REDIRECT: 137,
  MLDV2_REPORT: 143,
} as const

const PROTOCOL6 = 58

/** 0 when the header is there, or a drop reason. */
export function check(_b: Uint8Array, at: number, end: number): DropReason {
  return at + HEADER > end ? DROP.ICMP_TRUNCATED : 0
}

export function type(b: Uint8Array, at: number): number {
  return b[at]
}

export function code(b: Uint8Array, at: number): number {
  return b[at + 1]
}

export function checksum(b: Uint8Array, at: number): number {
  return u16(b, at + CHECKSUM)
}

/** The identifier of an echo. */
export function identifier(b: Uint8Array, at: number): number {
  return u16(b, at + 4)
}

/** The sequence number of an echo. */
export function sequence(b: Uint8Array, at: number): number {
  return u16(b, at + 6)
}

/** The 32-bit word behind the checksum, signed: the MTU of ICMPv6 "packet too big". */
export function rest(b: Uint8Array, at: number): number {
  return i32(b, at + 4)
}

/** The next-hop MTU of ICMP "fragmentation needed" (RFC 1191 section 4). */
export function nextHopMtu4(b: Uint8Array, at: number): number {
  return u16(b, at + 6)
}

/** The MTU of ICMPv6 "packet too big" (RFC 4443 section 3.2), capped to 65,535 so that a lying one stays a small number. */
export function nextHopMtu6(b: Uint8Array, at: number): number {
  return u16(b, at + 4) !== 0 ? 0xffff : u16(b, at + 6)
}

/** True for the ICMP types that quote the packet they are about (RFC 1122 section 3.2.2). */
export function isError4(icmpType: number): boolean {
  switch (icmpType) {
    case TYPE4.UNREACHABLE:
    case TYPE4.SOURCE_QUENCH:
    case TYPE4.REDIRECT:
    case TYPE4.TIME_EXCEEDED:
    case TYPE4.PARAMETER_PROBLEM:
      return true
    default:
      return false
  }
}

/** True for ICMPv6 errors, which quote the packet they are about (RFC 4443 section 2.1). */
export function isError6(icmpType: number): boolean {
  return icmpType < 128
}

/** Writes a header with checksum 0. */
export function write(b: Uint8Array, at: number, icmpType: number, icmpCode: number, word: number): void {
  b[at] = icmpType
  b[at + 1] = icmpCode
  setU16(b, at + CHECKSUM, 0)
  setI32(b, at + 4, word)
}

/** Computes and writes the checksum of the ICMP message [at, end). */
export function updateChecksum4(b: Uint8Array, at: number, end: number): void {
  setU16(b, at + CHECKSUM, 0)
  setU16(b, at + CHECKSUM, finish(sum(b, at, end)))
}

/** Computes and writes the checksum of the ICMPv6 message [at, end) in the packet at `ipAt`. */
export function updateChecksum6(b: Uint8Array, ipAt: number, at: number, end: number): void {
  setU16(b, at + CHECKSUM, 0)
  setU16(b, at + CHECKSUM, finish(sum(b, at, end, pseudo6(b, ipAt, PROTOCOL6, end - at))))
}

/** True when the checksum of the ICMP message [at, end) is right. */
export function verifyChecksum4(b: Uint8Array, at: number, end: number): boolean {
  return fold(sum(b, at, end)) === 0xffff
}

/** True when the checksum of the ICMPv6 message [at, end) is right. */
export function verifyChecksum6(b: Uint8Array, ipAt: number, at: number, end: number): boolean {
  return fold(sum(b, at, end, pseudo6(b, ipAt, PROTOCOL6, end - at))) === 0xffff
}
