// VLAN tags: IEEE 802.1Q (C-tag, 0x8100) and 802.1ad (S-tag, 0x88a8), none to two of them behind the Ethernet addresses.
//
//   12      14      16      18
//   | TPID  | TCI   | type  | ...      TCI: priority 3, DEI 1, VLAN identifier 12

import { DROP } from '../drop.ts'
import { setU16, u16 } from './bytes.ts'
import { ETHERTYPE, HEADER } from './ethernet.ts'

/** Bytes of one tag. */
export const TAG = 4
/** How many tags are understood. */
export const MAX_TAGS = 2

/** True for an EtherType that announces a tag. */
export function isTag(etherType: number): boolean {
  return etherType === ETHERTYPE.VLAN || etherType === ETHERTYPE.QINQ
}

/** The position behind the Ethernet header at `at` and its tags, or a drop reason, negated. `typeBefore` then tells what is there. */
export function payloadAt(b: Uint8Array, at: number, end: number): number {
  let payload = at + HEADER
  if (payload > end) return -DROP.ETHERNET_TRUNCATED
  for (let tags = 0; isTag(typeBefore(b, payload)); tags++) {
    if (tags === MAX_TAGS) return -DROP.VLAN_TOO_DEEP
    payload += TAG
    if (payload > end) return -DROP.VLAN_TRUNCATED
  }
  return payload
}

/** The EtherType of what starts at `payload`: the two bytes in front of it. */
export function typeBefore(b: Uint8Array, payload: number): number {
  return u16(b, payload - 2)
}

/** The VLAN identifier of the tag whose TCI is at `tci`. */
export function identifier(b: Uint8Array, tci: number): number {
  return u16(b, tci) & 0xfff
}

/** The priority code point of the tag whose TCI is at `tci`. */
export function priority(b: Uint8Array, tci: number): number {
  return b[tci] >>> 5
}

/** The drop-eligible indicator of the tag whose TCI is at `tci`. */
export function dropEligible(b: Uint8Array, tci: number): boolean {
  return (b[tci] & 0x10) !== 0
}

/** Writes a tag's TCI and the EtherType of what follows it. */
export function write(b: Uint8Array, tci: number, id: number, pcp: number, dei: boolean, etherType: number): void {
  setU16(b, tci, (pcp << 13) | (dei ? 0x1000 : 0) | (id & 0xfff))
  setU16(b, tci + 2, etherType)
}
