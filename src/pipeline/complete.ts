// Complete: makes good what the next device lacks, just before it, nowhere else: checksums, and super-packets that it
// does not take. The rungs for a super-packet, best first:
//
//   the device takes it as it is         nothing to do
//   tunnelled, the device has USO        one frame a segment, which the device gathers into super-packets of the outer UDP
//   otherwise                            one frame a segment
//
// One frame may become more than a thousand, so frames go to the device in portions, which frees them for the next.

import { CAPABILITY, type Device } from '../device/device.ts'
import { DROP, type DropReason } from '../drop.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { setU16, u16 } from '../wire/bytes.ts'
import { finish, pseudo, sum } from '../wire/checksum.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'
import { Portions } from './portions.ts'
import { LEFT, localChecksum, partialChecksum, Segmenter } from './segment.ts'

const USO = CAPABILITY.USO4 | CAPABILITY.USO6

/** The stage in front of a device. */
export class Complete {
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly capabilities: number
  private readonly segmenter: Segmenter
  private readonly portions: Portions

  constructor(pool: Pool, counters: StageCounters, device: Pick<Device, 'capabilities' | 'transmit'>) {
    this.pool = pool
    this.counters = counters
    this.capabilities = device.capabilities
    this.segmenter = new Segmenter(pool)
    this.portions = new Portions(pool, counters, batch => device.transmit(batch))
  }

  /** Takes every frame of the batch and empties it: completed and transmitted in order, or dropped. */
  run(batch: Batch): void {
    const { pool, counters } = this
    const { frames, length } = batch
    let bytes = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      bytes += pool.length[frame]
      const reason = this.one(frame)
      if (reason !== 0) {
        counters.dropped(reason)
        pool.free(frame)
      }
    }
    batch.length = 0
    counters.received(length, bytes)
    this.portions.flush()
  }

  /** Takes the frame, or returns why not. */
  private one(frame: number): DropReason {
    const { pool } = this
    if (pool.gso[frame] === GSO.NONE) {
      const needs = pool.offload[frame] & (OFFLOAD.NEEDS_CHECKSUM | OFFLOAD.OUTER_CHECKSUM)
      const bad = needs === 0 ? 0 : this.checksums(frame, needs)
      if (bad !== 0) return bad
      this.portions.push(frame)
      return 0
    }
    if ((this.needed(frame) & ~this.capabilities) === 0) {
      const bad = (pool.offload[frame] & OFFLOAD.OUTER_CHECKSUM) === 0 ? 0 : this.outerPseudo(frame)
      if (bad !== 0) return bad
      this.portions.push(frame)
      return 0
    }
    const bad = this.segmenter.open(frame)
    if (bad !== 0) return bad
    // Of datagrams that it may gather into a super-packet a device with USO completes the outer checksums.
    const left =
      this.segmenter.shared !== 0 && this.hasUso(frame)
        ? LEFT.OUTER
        : (this.capabilities & CAPABILITY.CHECKSUM) !== 0
          ? LEFT.INNER
          : LEFT.NONE
    this.portions.pushSegments(this.segmenter, frame, left)
    return 0
  }

  /** CAPABILITY bits that a device must have to take the super-packet whole. */
  private needed(frame: number): number {
    const { pool } = this
    const gso = pool.gso[frame]
    const kind = gso & ~(GSO.TUNNEL | GSO.ECN)
    let needed: number = kind === GSO.TCP4 ? CAPABILITY.TSO4 : kind === GSO.TCP6 ? CAPABILITY.TSO6 : usoBit(pool, frame)
    if ((gso & GSO.ECN) !== 0) needed |= CAPABILITY.TSO_ECN
    if ((gso & GSO.TUNNEL) !== 0) needed |= CAPABILITY.TUNNEL_GSO
    if ((pool.offload[frame] & OFFLOAD.OUTER_CHECKSUM) !== 0) needed |= CAPABILITY.TUNNEL_GSO_CHECKSUM
    return needed
  }

  /** True when the device segments UDP over the frame's outermost IP version, and so computes UDP checksums too. */
  private hasUso(frame: number): boolean {
    return (this.capabilities & USO) !== 0 && (this.capabilities & usoBit(this.pool, frame)) !== 0
  }

  /** Checksums of a frame that is no super-packet. */
  private checksums(frame: number, needs: number): DropReason {
    const { pool } = this
    const b = pool.bytes
    const end = pool.start[frame] + pool.length[frame]
    const start = pool.checksumStart[frame]
    const field = start + pool.checksumOffset[frame]
    const transport = pool.outerTransport[frame]
    const partial = (needs & OFFLOAD.NEEDS_CHECKSUM) !== 0
    if (partial && (start < pool.start[frame] || field + 2 > end)) return DROP.OFFLOAD

    if ((needs & OFFLOAD.OUTER_CHECKSUM) !== 0) {
      const ip = outerIp(pool, frame)
      if (ip === 0) return DROP.OFFLOAD
      pool.offload[frame] &= ~OFFLOAD.OUTER_CHECKSUM
      if (partial && start > transport) {
        if (((start - transport) & 1) !== 0) return DROP.OFFLOAD
        localChecksum(b, ip, transport, start, u16(b, field))
      } else if ((this.capabilities & CAPABILITY.CHECKSUM) !== 0 || this.hasUso(frame)) {
        partialChecksum(pool, frame, ip, transport)
        return 0
      } else {
        udp.updateChecksum(b, ip, transport)
        return 0
      }
    }

    if (!partial || (this.capabilities & CAPABILITY.CHECKSUM) !== 0) return 0
    if (start === transport && this.hasUso(frame)) return 0
    // NB: 0 means "none" in UDP, and 0xffff is the same number to every other protocol.
    setU16(b, field, finish(sum(b, start, end)) || 0xffff)
    pool.offload[frame] = OFFLOAD.CHECKSUM_VALID
    return 0
  }

  /** Of a tunnelled super-packet the device expects the outer pseudo-header sum in the outer checksum field (udp_set_csum). */
  private outerPseudo(frame: number): DropReason {
    const { pool } = this
    const ip = outerIp(pool, frame)
    if (ip === 0) return DROP.OFFLOAD
    const b = pool.bytes
    const transport = pool.outerTransport[frame]
    udp.setChecksum(b, transport, pseudo(b, ip, ipv4.PROTOCOL.UDP, udp.length(b, transport)))
    return 0
  }
}

/** The capability to segment UDP over the frame's outermost IP version. */
function usoBit(pool: Pool, frame: number): number {
  const ip = vlan.payloadAt(pool.bytes, pool.start[frame], pool.start[frame] + pool.length[frame])
  return ip > 0 && pool.bytes[ip] >>> 4 === 6 ? CAPABILITY.USO6 : CAPABILITY.USO4
}

/** The position of a tunnelled frame's outer IP header; 0 when there is none in front of the outer UDP header. */
function outerIp(pool: Pool, frame: number): number {
  const transport = pool.outerTransport[frame]
  const end = pool.start[frame] + pool.length[frame]
  const ip = vlan.payloadAt(pool.bytes, pool.start[frame], end)
  if (ip < 0 || transport + udp.HEADER > end || transport + udp.length(pool.bytes, transport) > end) return 0
  return transport >= ip + (pool.bytes[ip] >>> 4 === 4 ? ipv4.HEADER : ipv6.HEADER) ? ip : 0
}
