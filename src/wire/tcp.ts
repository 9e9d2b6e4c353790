// TCP header: RFC 9293 section 3.1.
//
//   0               2               4               8               12      13      14      16      18      20
//   | source port   | dest. port    | sequence      | acknowledgment|off|- | flags | window| csum  |urgent | options

import { DROP, type DropReason } from '../drop.ts'
import { i32, setI32, setU16, u16 } from './bytes.ts'
import { finish, fold, pseudo, sum } from './checksum.ts'

/** Bytes of a header without options. */
export const HEADER = 20
/** Bytes of the longest header. */
export const MAX = 60
/** Offset of the checksum. */
export const CHECKSUM = 16

export const FIN = 0x01
export const SYN = 0x02
export const RST = 0x04
export const PSH = 0x08
export const ACK = 0x10
export const URG = 0x20
export const ECE = 0x40
export const CWR = 0x80

const PROTOCOL = 6
const SEQUENCE = 4
const ACKNOWLEDGMENT = 8
export const DATA_OFFSET = 12
const FLAGS = 13
const WINDOW = 14
const URGENT = 18

/** Option kinds (IANA). */
export const OPTION = { END: 0, NOP: 1, MSS: 2, WINDOW_SCALE: 3, SACK_PERMITTED: 4, SACK: 5, TIMESTAMPS: 8 } as const

/** 0 when the header and its options are all there, or a drop reason. */
export function check(b: Uint8Array, at: number, end: number): DropReason {
  if (at + HEADER > end) return DROP.TCP_TRUNCATED
  const header = headerLength(b, at)
  return header < HEADER || at + header > end ? DROP.TCP_HEADER_LENGTH : 0
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

/** The sequence number, signed. */
export function sequence(b: Uint8Array, at: number): number {
  return i32(b, at + SEQUENCE)
}

export function setSequence(b: Uint8Array, at: number, value: number): void {
  setI32(b, at + SEQUENCE, value)
}

/** The acknowledgment number, signed. */
export function acknowledgment(b: Uint8Array, at: number): number {
  return i32(b, at + ACKNOWLEDGMENT)
}

export function setAcknowledgment(b: Uint8Array, at: number, value: number): void {
  setI32(b, at + ACKNOWLEDGMENT, value)
}

/** Header length in bytes, options included. */
export function headerLength(b: Uint8Array, at: number): number {
  return (b[at + DATA_OFFSET] >>> 4) << 2
}

export function flags(b: Uint8Array, at: number): number {
  return b[at + FLAGS]
}

export function setFlags(b: Uint8Array, at: number, value: number): void {
  b[at + FLAGS] = value
}

export function window(b: Uint8Array, at: number): number {
  return u16(b, at + WINDOW)
}

export function setWindow(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + WINDOW, value)
}

export function checksum(b: Uint8Array, at: number): number {
  return u16(b, at + CHECKSUM)
}

export function setChecksum(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + CHECKSUM, value)
}

export function urgentPointer(b: Uint8Array, at: number): number {
  return u16(b, at + URGENT)
}

/** Writes a header of `header` bytes, checksum and urgent pointer 0; options, if any, are the caller's to write. */
export function write(
  b: Uint8Array,
  at: number,
  header: number,
  from: number,
  to: number,
  seq: number,
  ack: number,
  flagBits: number,
  windowSize: number,
): void {
  setU16(b, at, from)
  setU16(b, at + 2, to)
  setI32(b, at + SEQUENCE, seq)
  setI32(b, at + ACKNOWLEDGMENT, ack)
  b[at + DATA_OFFSET] = (header >>> 2) << 4
  b[at + FLAGS] = flagBits
  setU16(b, at + WINDOW, windowSize)
  setU16(b, at + CHECKSUM, 0)
  setU16(b, at + URGENT, 0)
}

/** Computes and writes the checksum of the segment [at, end) in the IP packet at `ipAt`. */
export function updateChecksum(b: Uint8Array, ipAt: number, at: number, end: number): void {
  setU16(b, at + CHECKSUM, 0)
  setU16(b, at + CHECKSUM, finish(sum(b, at, end, pseudo(b, ipAt, PROTOCOL, end - at))))
}

/** True when the checksum of the segment [at, end) is right. */
export function verifyChecksum(b: Uint8Array, ipAt: number, at: number, end: number): boolean {
  return fold(sum(b, at, end, pseudo(b, ipAt, PROTOCOL, end - at))) === 0xffff
}

/** Bytes of the option at `option` in a header that ends at `end`, or 0 when its length is bad. */
export function optionLength(b: Uint8Array, option: number, end: number): number {
  if (b[option] <= OPTION.NOP) return 1
  const length = option + 1 < end ? b[option + 1] : 0
  return length >= 2 && option + length <= end ? length : 0
}

/** The position of the first option of a kind in a checked header, all of it inside the header, or 0. */
export function findOption(b: Uint8Array, at: number, kind: number): number {
  const end = at + headerLength(b, at)
  for (let option = at + HEADER; option < end && b[option] !== OPTION.END; ) {
    const length = optionLength(b, option, end)
    if (length === 0) return 0
    if (b[option] === kind) return option
    option += length
  }
  return 0
}

/** The maximum segment size that a checked SYN announces, or 0 when it announces none. */
export function maximumSegmentSize(b: Uint8Array, at: number): number {
  const option = findOption(b, at, OPTION.MSS)
  return option !== 0 && b[option + 1] === 4 ? u16(b, option + 2) : 0
}
