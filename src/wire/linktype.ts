// Link types of capture files, and the Ethernet header that a packet gets where its file has none.
//
// Numbers and layouts: https://www.tcpdump.org/linktypes.html. In memory every packet is Ethernet: a packet of another
// link type loses its own link header and gets one with locally administered addresses.
//
//   NULL, LOOP  | address family 4 |  NULL in the byte order of the machine that captured, LOOP big-endian
//   LINUX_SLL   | packet type 2 | ARPHRD 2 | address length 2 | address 8 | protocol 2 |
//   LINUX_SLL2  | protocol 2 | 0 2 | interface 4 | ARPHRD 2 | packet type 1 | address length 1 | address 8 |

import { i32, u16 } from './bytes.ts'
import { ETHERTYPE, write } from './ethernet.ts'

/** Link types that can be read. */
export const LINKTYPE = {
  NULL: 0,
  ETHERNET: 1,
  RAW_BSD: 12,
  RAW_OPENBSD: 14,
  RAW: 101,
  LOOP: 108,
  LINUX_SLL: 113,
  IPV4: 228,
  IPV6: 229,
  LINUX_SLL2: 276,
} as const

/** The EtherType of a packet whose link header names no protocol: reserved by IANA, so it is nobody's. */
const UNKNOWN = 0xffff

/** Bytes of a packet's own link header that an Ethernet header replaces; -1 for a link type that cannot be read. Ethernet itself is 0: nothing is replaced. */
export function linkHeader(linktype: number): number {
  switch (linktype) {
    case LINKTYPE.ETHERNET:
    case LINKTYPE.RAW_BSD:
    case LINKTYPE.RAW_OPENBSD:
    case LINKTYPE.RAW:
    case LINKTYPE.IPV4:
    case LINKTYPE.IPV6:
      return 0
    case LINKTYPE.NULL:
    case LINKTYPE.LOOP:
      return 4
    case LINKTYPE.LINUX_SLL:
      return 16
    case LINKTYPE.LINUX_SLL2:
      return 20
    default:
      return -1
  }
}

/** The link types that can be read, for messages. */
export const READABLE = 'Ethernet 1, raw IP 12 14 101 228 229, loopback 0 108, Linux cooked 113 276'

/** The EtherType of the packet at `at`, whose own link header is inside [at, end). */
export function linkProtocol(b: Uint8Array, at: number, end: number, linktype: number): number {
  switch (linktype) {
    case LINKTYPE.NULL:
    case LINKTYPE.LOOP:
      return family(i32(b, at) >>> 0)
    case LINKTYPE.LINUX_SLL:
      return u16(b, at + 14)
    case LINKTYPE.LINUX_SLL2:
      return u16(b, at)
    default:
      if (at >= end) return UNKNOWN
      return b[at] >> 4 === 4 ? ETHERTYPE.IPV4 : b[at] >> 4 === 6 ? ETHERTYPE.IPV6 : UNKNOWN
  }
}

/** Writes the Ethernet header that stands for a link header: from 02:00:00:00:00:01 to 02:00:00:00:00:02. */
export function writeLink(b: Uint8Array, at: number, protocol: number): void {
  write(b, at, 0x0200, 2, 0x0200, 1, protocol)
}

// Address families: 2 is IPv4 everywhere; IPv6 is 10 on Linux, 24 on NetBSD and OpenBSD, 28 on FreeBSD, 30 on Darwin.
function family(word: number): number {
  const value = word > 0xffff ? (word >>> 24) | ((word >>> 8) & 0xff00) : word
  if (value === 2) return ETHERTYPE.IPV4
  return value === 10 || value === 24 || value === 28 || value === 30 ? ETHERTYPE.IPV6 : UNKNOWN
}
