// VXLAN header: RFC 7348 section 5.
//
//   0               1                               4                       7       8
//   |----I---       | reserved                      | VNI                   | resv  | Ethernet frame

import { DROP, type DropReason } from '../drop.ts'
import { setI32, setU24, u24 } from './bytes.ts'

/** The UDP destination port assigned to VXLAN. */
export const PORT = 4789
/** Bytes of the header. */
export const HEADER = 8

const VNI = 4
/** The flag that must be set: the VNI is valid. */
export const FLAG_I = 0x08

/** 0 when the header is sound, or a drop reason; reserved bits are ignored unless `strict`, as Linux is. */
export function check(b: Uint8Array, at: number, end: number, strict: boolean): DropReason {
  if (at + HEADER > end) return DROP.VXLAN_TRUNCATED
  if ((b[at] & FLAG_I) === 0) return DROP.VXLAN_FLAGS
  if (strict && ((b[at] & ~FLAG_I) | u24(b, at + 1) | b[at + 7]) !== 0) return DROP.VXLAN_RESERVED
  return 0
}

/** The byte of flags, of which only I (0x08) has a meaning. */
export function flags(b: Uint8Array, at: number): number {
  return b[at]
}

/** The 24-bit VXLAN network identifier. */
export function vni(b: Uint8Array, at: number): number {
  return u24(b, at + VNI)
}

export function setVni(b: Uint8Array, at: number, value: number): void {
  setU24(b, at + VNI, value)
}

/** Writes a header. */
export function write(b: Uint8Array, at: number, network: number): void {
  setI32(b, at, FLAG_I << 24)
  setU24(b, at + VNI, network)
  b[at + HEADER - 1] = 0
}
