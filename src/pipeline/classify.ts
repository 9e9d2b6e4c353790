// Classification: finds each frame's headers and its flow key, and sets aside what never leaves the node.

import type { DropReason } from '../drop.ts'
import { DROP } from '../drop.ts'
import type { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import { readKey } from '../flow/key.ts'
import type { FlowTable } from '../flow/table.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { isGroup } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import { ARRIVING } from './attachments.ts'
import { parse } from './parse.ts'

export interface ClassifyOptions {
  fragments: FragmentTable
  seed: Seed
  /** False where there are no attachments (offline work): a flow key has none, and no gate has kept neighbour discovery on its link. */
  withAttachment: boolean
  /** Where ARP, multicast group reports, DHCP and whatever else is not IP goes; undefined treats them like any packet. */
  local: Batch | undefined
  /** Where the flows that were seen lately can be recalled, which saves hashing their keys. */
  table?: FlowTable
}

/** The stage in front of every decision; attachment must be set. */
export class Classify {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly fragments: FragmentTable
  private readonly seed: Seed
  private readonly withAttachment: boolean
  private readonly local: Batch | undefined
  private readonly table: FlowTable | undefined

  constructor(pool: Pool, counters: StageCounters, options: ClassifyOptions) {
    this.pool = pool
    this.counters = counters
    this.fragments = options.fragments
    this.seed = options.seed
    this.withAttachment = options.withAttachment
    this.local = options.local
    this.table = options.table
  }

  /** Frames with a flow key stay; local ones leave by the side outlet, malformed ones are dropped. */
  readonly run = (batch: Batch): void => {
    const { pool, counters, local, withAttachment } = this
    const { frames, length } = batch
    let kept = 0
    let dropped = 0
    let bytes = 0
    let droppedBytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      bytes += pool.length[frame]
      const reason = this.classify(frame, kept === 0 ? -1 : frames[kept - 1])
      if (reason === 0) {
        if (local === undefined || !(isLocal(pool, frame) || (!withAttachment && isDiscovery(pool, frame))))
          frames[kept++] = frame
        else local.push(frame)
      } else if (reason === DROP.NOT_IP && local !== undefined) {
        local.push(frame)
      } else {
        dropped++
        droppedBytes += pool.length[frame]
        counters.dropped(reason)
        pool.free(frame)
      }
    }
    counters.received(length, bytes)
    counters.sent(length - dropped, bytes - droppedBytes)
    counters.passed(length - dropped - kept)
    batch.length = kept
  }

  private readonly classify = (frame: number, before: number): DropReason => {
    const { pool } = this
    const start = pool.start[frame]
    const reason = parse(pool, frame, start, start + pool.length[frame])
    if (reason !== 0) return reason
    return readKey(pool, frame, this.fragments, this.seed, this.withAttachment, this.table, before)
  }
}

const IGMP = 2
/** Hop limit of what has not left its link. */
const ON_LINK = 255
const DHCP_SERVER = 67
const DHCP_CLIENT = 68
const DHCP6_CLIENT = 546
const DHCP6_SERVER = 547

/**
 * MLD (RFC 3810), IGMP (RFC 3376), DHCP (RFC 2131) and DHCPv6 (RFC 8415) belong to the link; so does a group-addressed frame that arrives, because
 * its addresses do not say which pod it was for. Neighbour discovery of the link never comes here from a pod: the gate lets it pass.
 */
function isLocal(pool: Pool, frame: number): boolean {
  const at = pool.transport[frame]
  const b = pool.bytes
  const group = isGroup(b, pool.start[frame])
  if (pool.direction[frame] === ARRIVING && group) return true
  if (at === 0) return false
  const protocol = pool.protocol[frame]
  const version = b[pool.network[frame]] >> 4
  if (protocol === ipv4.PROTOCOL.UDP) return isDhcp(pool, frame, version)
  if (!group) return false
  if (version === 4) return protocol === IGMP
  if (protocol !== ipv4.PROTOCOL.ICMPV6) return false
  const type = icmp.type(b, at)
  const { MLD_QUERY, MLD_DONE, MLDV2_REPORT } = icmp.TYPE6
  return (type >= MLD_QUERY && type <= MLD_DONE) || type === MLDV2_REPORT
}

/** Neighbour discovery that no router has forwarded (RFC 4861 sections 6.1 and 7.1). */
function isDiscovery(pool: Pool, frame: number): boolean {
  const at = pool.transport[frame]
  const b = pool.bytes
  if (at === 0 || pool.protocol[frame] !== ipv4.PROTOCOL.ICMPV6) return false
  const type = icmp.type(b, at)
  const { ROUTER_SOLICITATION, REDIRECT } = icmp.TYPE6
  return type >= ROUTER_SOLICITATION && type <= REDIRECT && ipv6.hopLimit(b, pool.network[frame]) === ON_LINK
}

/**
 * A client asks by broadcast or multicast and is answered from the server's port. NB: the port alone does not make DHCP: a pod that
 * sends to port 67 of some host elsewhere is inspected like any other.
 */
function isDhcp(pool: Pool, frame: number, version: number): boolean {
  const b = pool.bytes
  const at = pool.transport[frame]
  const client = version === 4 ? DHCP_CLIENT : DHCP6_CLIENT
  const server = version === 4 ? DHCP_SERVER : DHCP6_SERVER
  const from = udp.sourcePort(b, at)
  const to = udp.destinationPort(b, at)
  if (pool.direction[frame] === ARRIVING) return from === server && to === client
  return from === client && to === server && isGroup(b, pool.start[frame])
}

/** True where ICMP may not answer: group and unspecified addresses (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e). */
export function isUnanswerable(b: Uint8Array, network: number): boolean {
  if (b[network] >> 4 === 4) {
    const source = b[network + ipv4.SOURCE]
    const destination = b[network + ipv4.DESTINATION]
    return source === 0 || source >= 224 || source === 127 || destination >= 224
  }
  if (b[network + ipv6.DESTINATION] === 0xff || b[network + ipv6.SOURCE] === 0xff) return true
  for (let i = 0; i < 16; i++) if (b[network + ipv6.SOURCE + i] !== 0) return false
  return true
}
