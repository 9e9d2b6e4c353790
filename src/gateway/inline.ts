// Inline: hands allowed packets to an appliance between two interfaces and takes what comes out of it back into the tunnel.
//
//   inspect ─► strip ─► IN  ═ appliance ═ OUT ─► find the flow ─► outer headers ─► turn      from who opened the flow
//                       OUT ═ appliance ═ IN                                                 to who opened it
//
// A packet that comes out has no tunnel header. It gets that which the last packet of its flow and direction came with, so
// it may have been changed in between, or be the appliance's own. Networks whose addresses overlap are one to an appliance:
// what may be of either of two is dropped.

import type { Device } from '../device/device.ts'
import { DROP, type DropReason } from '../drop.ts'
import { VERDICT } from '../flow/verdict.ts'
import { Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import type { Counters, StageCounters } from '../memory/counters.ts'
import { GSO, HEADROOM, OFFLOAD, type Pool } from '../memory/pool.ts'
import { Complete } from '../pipeline/complete.ts'
import type { Leg } from '../pipeline/loop.ts'
import { parse } from '../pipeline/parse.ts'
import type { Profile } from '../pipeline/profile.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import * as vlan from '../wire/vlan.ts'
import { packetEnd } from './answer.ts'
import { type Inspect, MAX_NETWORKS } from './inspect.ts'

export interface InlineOptions {
  profile: Profile
  tunnel: TunnelConfig
  inspect: Inspect
  /** How many flows the flow table holds. */
  capacity: number
  /** Takes every frame of a batch of packets with outer headers, as they came: turns them around and transmits them. */
  leave(batch: Batch): void
}

const ETHERNET = ethernet.HEADER
/** Bytes of outer headers that are kept at most: as many as find room in front of a packet. */
const SLOT = HEADROOM
/** Of UDP's checksum in its header. */
const CHECKSUM = 6
/** Largest IP datagram. */
const LARGEST = 65_535
/** Addresses of the two ends, where packets have none: of who opened the flow and of the other. */
const OPENER = { high: 0x0200, low: 1 } as const
const OTHER = { high: 0x0200, low: 2 } as const

/** Both ways of one worker, that thread only. */
export class Inline {
  /** What comes out of the appliance at either interface. */
  readonly legs: Leg[]
  private readonly pool: Pool
  private readonly toward: StageCounters
  private readonly back: StageCounters
  private readonly options: InlineOptions
  private readonly bare: boolean
  private readonly inside: Complete
  private readonly outside: Complete
  private readonly toIn = new Batch()
  private readonly toOut = new Batch()
  /** Outer headers by row and direction, bytes of each, where UDP is in them, and the flow whose they are. */
  private readonly headers: DataView
  private readonly bytes: Uint16Array
  private readonly transport: Uint16Array
  private readonly flow: Float64Array

  constructor(pool: Pool, counters: Counters, devices: readonly [Device, Device], options: InlineOptions) {
    this.pool = pool
    this.options = options
    this.bare = options.profile.inner === 'ip'
    this.toward = counters.stage('to appliance')
    this.back = counters.stage('from appliance')
    const completed = counters.stage('complete appliance')
    const [inside, outside] = devices
    this.inside = new Complete(pool, completed, inside)
    this.outside = new Complete(pool, completed, outside)
    const places = 2 * (options.capacity + 1)
    // NB: memory that was never written to is none of the machine's.
    this.headers = new DataView(new ArrayBuffer(places * SLOT))
    this.bytes = new Uint16Array(places)
    this.transport = new Uint16Array(places)
    this.flow = new Float64Array(places)
    this.legs = devices.map(device => ({ device, run: batch => this.receive(batch) }))
  }

  /** Takes the allowed frames out of what inspection left and hands them to the appliance; our own answers stay. */
  run(batch: Batch): void {
    const { pool, toward, toIn, toOut } = this
    const { frames, length } = batch
    let kept = 0
    let taken = 0
    let bytesIn = 0
    let bytesOut = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      if (pool.verdict[frame] !== VERDICT.ALLOW) {
        frames[kept++] = frame
        continue
      }
      taken++
      bytesIn += pool.length[frame]
      const reason = this.strip(frame)
      if (reason !== 0) {
        toward.dropped(reason)
        pool.free(frame)
        continue
      }
      bytesOut += pool.length[frame]
      const to = this.options.inspect.isFromOpener(frame) ? toIn : toOut
      to.push(frame)
      if (to.room === 0) this.flush(to)
    }
    batch.length = kept
    toward.received(taken, bytesIn)
    toward.sent(taken, bytesOut)
    this.flush(toIn)
    this.flush(toOut)
  }

  private flush(batch: Batch): void {
    if (batch.length > 0) (batch === this.toIn ? this.inside : this.outside).run(batch)
  }

  /** Takes the outer headers off and keeps them, or says why not. */
  private strip(frame: number): DropReason {
    const { pool, options } = this
    // What comes back could be taken for another network's.
    if (pool.attachment[frame] >= MAX_NETWORKS) return DROP.UNKNOWN_VNI
    const b = pool.bytes
    const start = pool.start[frame]
    const transport = pool.outerTransport[frame]
    const tunnel = transport + udp.HEADER
    const inner = tunnel + options.profile.headerLength(b, tunnel)
    const end = transport + udp.length(b, transport)
    const bytes = inner - start
    if (bytes > SLOT) return DROP.NO_HEADROOM
    const row = pool.flow[frame]
    const place = 2 * row + pool.reversed[frame]
    copyBytes(this.headers, place * SLOT, pool.view, start, bytes)
    this.bytes[place] = bytes
    this.transport[place] = transport - start
    this.flow[place] = options.inspect.flows.state(row)
    // One that is still to be computed may look like none.
    if (isLeft(pool, frame, transport)) this.headers.setUint16(place * SLOT + transport - start + CHECKSUM, 0xffff)

    const first = this.bare ? inner - ETHERNET : inner
    const partial = (pool.offload[frame] & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] >= inner
    if (this.bare) this.address(frame, first)
    pool.start[frame] = first
    pool.length[frame] = end - first
    pool.outerTransport[frame] = 0
    pool.gso[frame] &= ~GSO.TUNNEL
    pool.offload[frame] = partial ? OFFLOAD.NEEDS_CHECKSUM : 0
    return 0
  }

  /** Writes the Ethernet header of a packet that came without. */
  private address(frame: number, at: number): void {
    const { bytes, network } = this.pool
    const type = bytes[network[frame]] >> 4 === 4 ? ethernet.ETHERTYPE.IPV4 : ethernet.ETHERTYPE.IPV6
    const [from, to] = this.options.inspect.isFromOpener(frame) ? [OPENER, OTHER] : [OTHER, OPENER]
    ethernet.write(bytes, at, to.high, to.low, from.high, from.low, type)
  }

  /** Takes every frame that came out of the appliance. */
  private receive(batch: Batch): void {
    const { pool, back } = this
    const { frames, length } = batch
    let kept = 0
    let bytesIn = 0
    let bytesOut = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      bytesIn += pool.length[frame]
      const reason = this.wrap(frame)
      if (reason === 0) {
        bytesOut += pool.length[frame]
        frames[kept++] = frame
      } else {
        back.dropped(reason)
        pool.free(frame)
      }
    }
    batch.length = kept
    back.received(length, bytesIn)
    back.sent(kept, bytesOut)
    this.options.leave(batch)
  }

  /** Puts the outer headers of its flow and direction in front of a frame. */
  private wrap(frame: number): DropReason {
    const { pool, headers, options } = this
    const { inspect, profile, tunnel } = options
    const b = pool.bytes
    const start = pool.start[frame]
    if (pool.length[frame] < ETHERNET) return DROP.ETHERNET_TRUNCATED
    const bad = parse(pool, frame, start, start + pool.length[frame]) || inspect.recognise(frame)
    if (bad !== 0) return bad

    const row = pool.flow[frame]
    const flow = inspect.flows.state(row)
    let place = 2 * row + pool.reversed[frame]
    // Nothing came this way yet, so the appliance answers: as we do, back to where the other way's packets came from.
    const isAnswer = this.flow[place] !== flow
    if (isAnswer) place ^= 1
    if (this.flow[place] !== flow) return DROP.UNKNOWN_FLOW

    const inner = this.bare ? pool.network[frame] : start
    const end = this.bare ? packetEnd(pool, frame) : start + pool.length[frame]
    const bytes = this.bytes[place]
    const outer = inner - bytes
    if (outer < pool.slot(frame)) return DROP.NO_HEADROOM
    if (end - outer - ETHERNET > LARGEST) return DROP.OVERSIZED
    copyBytes(pool.view, outer, headers, place * SLOT, bytes)
    const transport = outer + this.transport[place]
    const ip = vlan.payloadAt(b, outer, transport)
    if (isAnswer) profile.reverse(b, transport + udp.HEADER, tunnel)
    pool.start[frame] = outer
    pool.length[frame] = end - outer
    pool.outerTransport[frame] = transport
    if (pool.gso[frame] !== GSO.NONE) pool.gso[frame] |= b[ip] >> 4 === 4 ? GSO.TUNNEL4 : GSO.TUNNEL6
    if (udp.checksum(b, transport) !== 0) pool.offload[frame] |= OFFLOAD.OUTER_CHECKSUM
    udp.setLength(b, transport, end - transport)
    if (b[ip] >> 4 === 4) {
      ipv4.setTotalLength(b, ip, end - ip)
      ipv4.updateChecksum(b, ip)
    } else ipv6.setPayloadLength(b, ip, end - ip - ipv6.HEADER)
    return 0
  }
}

/** True when the outer UDP checksum is wanted, and its field holds no more than a part of it. */
function isLeft(pool: Pool, frame: number, transport: number): boolean {
  const offload = pool.offload[frame]
  if ((offload & OFFLOAD.OUTER_CHECKSUM) !== 0) return true
  return (offload & OFFLOAD.NEEDS_CHECKSUM) !== 0 && pool.checksumStart[frame] === transport
}
