// Link headers of packets that travel a tunnel without one. What stood in front of a packet when it went to the endpoint is
// remembered by its flow and direction, and put back when it returns; whose the packet is is known by its addresses.
//
// NB: this is a worker's own, unlike the flow table. A process that takes flows over learns it again from the next packet toward the endpoint.

import type { Batch } from '../memory/batch.ts'
import { KEY_WORDS, type Pool } from '../memory/pool.ts'
import * as ethernet from '../wire/ethernet.ts'
import { HEADER as ETHERNET } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { ARRIVING, type Finder, LEAVING, PROBE_ATTACHMENT } from './attachments.ts'

/** Words of a link header: its length, then Ethernet and at most two tags. */
const WORDS = 7
const LONGEST = 22
/** Words of a flow: its hash, and a header each way. */
const ROW = 1 + WORDS * 2

/** Pod addresses: sets of so many places. One that is pushed out of its set is known again by its next packet. */
const SETS = 4096
const WAYS = 4
/** Version and attachment, then the address. */
const OWNER = 5

/** Of one worker. */
export class Links implements Finder {
  private readonly pool: Pool
  private readonly probe: number
  private readonly headers: Int32Array
  private readonly owners = new Int32Array(SETS * WAYS * OWNER)
  private next = 0

  /** Room for the rows of a flow table of so many; `probe` is the IPv4 address that probes come from. */
  constructor(pool: Pool, capacity: number, probe: number) {
    this.pool = pool
    this.probe = probe
    this.headers = new Int32Array((capacity + 1) * ROW)
  }

  /** Remembers what stands in front of each packet that has a flow, and the pod that it is of. */
  remember(batch: Batch): void {
    const { pool } = this
    const { frames, length } = batch
    for (let i = 0; i < length; i++) if (pool.flow[frames[i]] >= 0) this.learn(frames[i])
  }

  private learn(frame: number): void {
    const { pool, headers } = this
    const { view } = pool
    const start = pool.start[frame]
    const bytes = pool.network[frame] - start
    if (bytes < ETHERNET || bytes > LONGEST) return
    const row = pool.flow[frame] * ROW
    if (headers[row] !== pool.hash[frame]) {
      // The row was another flow's.
      headers.fill(0, row, row + ROW)
      headers[row] = pool.hash[frame]
    }
    const at = row + 1 + pool.reversed[frame] * WORDS
    headers[at] = bytes
    // A packet is longer than what is read behind the header.
    for (let i = 0; i < WORDS - 1; i++) headers[at + 1 + i] = view.getInt32(start + i * 4)
    const leaves = pool.direction[frame] === LEAVING
    this.own(addressAt(pool, frame, leaves), versionAt(pool, frame), pool.attachment[frame])
  }

  /** Makes the attachment of the address at a position this one. */
  private own(at: number, version: number, attachment: number): void {
    const { owners } = this
    const known = this.placeOf(at, version)
    if (known >= 0) {
      owners[known] = (version << 16) | attachment
      return
    }
    const place = (this.setOf(at, version) * WAYS + (this.next++ & (WAYS - 1))) * OWNER
    owners[place] = (version << 16) | attachment
    for (let i = 0; i < OWNER - 1; i++) owners[place + 1 + i] = this.word(at, version, i)
  }

  /** The attachment that a packet left (by its source) or arrives at (by its destination), written to the frame; false when it is of neither. */
  readonly assign = (frame: number): boolean => {
    const { pool } = this
    const version = versionAt(pool, frame)
    const from = addressAt(pool, frame, true)
    pool.direction[frame] = LEAVING
    if (version === 4 && pool.view.getInt32(from) === this.probe) {
      pool.attachment[frame] = PROBE_ATTACHMENT
      return true
    }
    let place = this.placeOf(from, version)
    if (place < 0) {
      place = this.placeOf(addressAt(pool, frame, false), version)
      if (place < 0) return false
      pool.direction[frame] = ARRIVING
    }
    pool.attachment[frame] = this.owners[place] & 0xffff
    return true
  }

  /** As that of AttachmentIndex. */
  arriveInstead(frame: number): boolean {
    const { pool } = this
    if (pool.direction[frame] !== LEAVING) return false
    const place = this.placeOf(addressAt(pool, frame, false), versionAt(pool, frame))
    const attachment = place < 0 ? -1 : this.owners[place] & 0xffff
    if (attachment < 0 || attachment === pool.attachment[frame]) return false
    pool.attachment[frame] = attachment
    pool.direction[frame] = ARRIVING
    return true
  }

  /** Writes the link header in front of a returned packet whose flow is known; that of the other direction, turned around, where the flow had none in this one. False where it had none at all. */
  putBack(frame: number): boolean {
    const { pool, headers } = this
    const { view } = pool
    const network = pool.network[frame]
    const row = pool.flow[frame] * ROW
    let at = row + 1 + pool.reversed[frame] * WORDS
    const turned = headers[at] === 0
    if (turned) at = row + 1 + (1 - pool.reversed[frame]) * WORDS
    const bytes = headers[at]
    if (bytes === 0 || headers[row] !== pool.hash[frame]) return false
    const start = network - bytes
    for (let i = 0; i + 1 < bytes; i += 2)
      view.setUint16(start + i, headers[at + 1 + (i >> 2)] >>> ((i & 2) === 0 ? 16 : 0))
    if (turned) ethernet.swapAddresses(pool.bytes, start)
    pool.length[frame] += pool.start[frame] - start
    pool.start[frame] = start
    return true
  }

  /** Knows no address as this attachment's any more. */
  delete(attachment: number): void {
    const { owners } = this
    for (let place = 0; place < owners.length; place += OWNER)
      if ((owners[place] & 0xffff) === attachment) owners[place] = 0
  }

  /** Where the address at a position is, or -1. */
  private placeOf(at: number, version: number): number {
    const { owners } = this
    const first = this.setOf(at, version) * WAYS * OWNER
    for (let place = first; place < first + WAYS * OWNER; place += OWNER)
      if (owners[place] >>> 16 === version && this.isAt(place, at, version)) return place
    return -1
  }

  private isAt(place: number, at: number, version: number): boolean {
    for (let i = 0; i < OWNER - 1; i++) if (this.owners[place + 1 + i] !== this.word(at, version, i)) return false
    return true
  }

  private word(at: number, version: number, i: number): number {
    return version === 4 && i > 0 ? 0 : this.pool.view.getInt32(at + i * 4)
  }

  private setOf(at: number, version: number): number {
    let hash = 0
    for (let i = 0; i < OWNER - 1; i++) hash = Math.imul(hash ^ this.word(at, version, i), 0x9e3779b1) ^ (hash >>> 15)
    return hash >>> 20
  }
}

const versionAt = (pool: Pool, frame: number) => pool.bytes[pool.network[frame]] >>> 4

/** The position of a packet's source or destination. */
function addressAt(pool: Pool, frame: number, source: boolean): number {
  const network = pool.network[frame]
  if (versionAt(pool, frame) === 4) return network + (source ? ipv4.SOURCE : ipv4.DESTINATION)
  return network + (source ? ipv6.SOURCE : ipv6.DESTINATION)
}

/** Cuts off what a frame has behind its IP packet: padding of Ethernet. The packet must have been parsed. */
export function trim(pool: Pool, frame: number): void {
  if (pool.gso[frame] !== 0) return
  const b = pool.bytes
  const network = pool.network[frame]
  const bytes =
    versionAt(pool, frame) === 4 ? ipv4.totalLength(b, network) : ipv6.HEADER + ipv6.payloadLength(b, network)
  pool.length[frame] = Math.min(pool.length[frame], network - pool.start[frame] + bytes)
}

/** The word of a frame's key that holds the cookie with which a packet came back. */
export const COOKIE_WORD = KEY_WORDS - 1
