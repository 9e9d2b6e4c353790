// MSS clamping: lowers the largest segment that a SYN announces, so that the answers fit the tunnel without a round of "too big"
// (RFC 9293 section 3.7.1, RFC 6691).

import { OFFLOAD, type Pool } from '../memory/pool.ts'
import { setU16, u16 } from '../wire/bytes.ts'
import * as checksum from '../wire/checksum.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'

/** The least that is left of a segment: what may always be sent (RFC 9293 section 3.7.1). */
const LEAST = 536

/**
 * Lowers what the SYN of a checked frame announces to `largest` bytes, and to what a datagram of `mtu` bytes carries; the checksum
 * follows. A SYN that announces nothing, and so the least, stays as it is.
 */
export function clampSegmentSize(pool: Pool, frame: number, largest: number, mtu: number): void {
  const { bytes: b } = pool
  const network = pool.network[frame]
  const at = pool.transport[frame]
  const option = tcp.findOption(b, at, tcp.OPTION.MSS)
  if (option === 0 || b[option + 1] !== 4) return
  const headers = (b[network] >>> 4 === 4 ? ipv4.HEADER : ipv6.HEADER) + tcp.HEADER
  const limit = Math.max(LEAST, Math.min(largest, mtu - headers))
  const value = option + 2
  const announced = u16(b, value)
  if (announced <= limit) return
  setU16(b, value, limit)
  // A partial checksum is the pseudo-header's, which is the same as before.
  if ((pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] === at) return
  const field = at + tcp.CHECKSUM
  // NB: at an odd distance from the header's start, the value's bytes lie in the halves of two words.
  const odd = ((value - at) & 1) === 1
  const from = odd ? swap(announced) : announced
  const to = odd ? swap(limit) : limit
  setU16(b, field, checksum.update(u16(b, field), from, to))
}

const swap = (value: number) => ((value & 0xff) << 8) | (value >>> 8)
