// A TAP or a packet socket as a device: one read(2) or write(2) a frame, each behind a virtio-net header, straight into and out of the pool.
//
// The header (linux/virtio_net.h, little-endian here) lies in the headroom right in front of the frame:
//
//    0 flags   1 gso_type   2 hdr_len   4 gso_size   6 csum_start   8 csum_offset   10 num_buffers
//   12 hash value and report            20 outer_th_offset          22 inner_nh_offset
//
// All offsets count from the frame's Ethernet header. hdr_len is only a hint of how much lies in one piece (skb_headlen in
// virtio_net_hdr_from_skb), so where the payload begins is worked out from the transport header.

import { DROP } from '../drop.ts'
import { BATCH, type Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { GSO, OFFLOAD, type Pool } from '../memory/pool.ts'
import { monotonicMs } from '../os/clock.ts'
import { addressOf, close, ERRNO, read, write, writev } from '../os/libc.ts'
import { Base } from './address.ts'
import { Coalescer } from './coalesce.ts'
import type { Device } from './device.ts'

const ETHERNET = 14
const UDP_HEADER = 8
const TCP_HEADER = 20
const TUNNEL_HEADER = 24
const IOVEC = 16

/** Bytes one breath should carry, so that a batch is still in the second-level cache when it is transmitted: of 64 KiB to 4 MiB, 64 and 128 KiB moved the most (11 Gbit/s; 512 KiB 8, 4 MiB 6). */
const BREATH_BYTES = 128 * 1024

/** An open TAP, or a packet socket, which reads and writes the same: plain data that passes through workerData (a descriptor belongs to the process). */
export interface TapSpec {
  name: string
  /** Non-blocking file descriptor; the device closes it. */
  fd: number
  /** Bytes of the virtio-net header: of a TAP as set by TUNSETVNETHDRSZ. */
  headerSize: number
  /** CAPABILITY bits: the offloads that the TAP, and what lies behind it, do. */
  capabilities: number
}

/** A TAP that frames are received from and transmitted to. */
export class TapDevice implements Device {
  readonly name: string
  readonly fd: number
  readonly capabilities: number
  exhausted = false
  drained = false
  /** An interface that goes down makes its socket's descriptor one with an error, for which nobody waits any more, and may come up again. */
  readonly wanting: boolean

  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly headerSize: number
  private readonly base: number
  private readonly coalescer: Coalescer
  private readonly memory: Base
  private readonly iovecs = new DataView(new ArrayBuffer(BATCH * IOVEC))
  private readonly iovecsAt = addressOf(this.iovecs)

  constructor(
    pool: Pool,
    counters: StageCounters,
    { name, fd, headerSize, capabilities, kind = 'tap' }: TapSpec & { kind?: 'tap' | 'packet' },
  ) {
    this.name = `${kind}:${name}`
    this.wanting = kind === 'packet'
    this.fd = fd
    this.capabilities = capabilities
    this.headerSize = headerSize
    this.pool = pool
    this.counters = counters
    this.base = addressOf(pool.bytes)
    this.memory = new Base(pool.bytes)
    this.coalescer = new Coalescer(pool, capabilities)
  }

  receive(batch: Batch): number {
    const { pool, counters, headerSize, base, fd } = this
    if (this.exhausted) return 0
    const now = monotonicMs()
    this.drained = false
    const room = Math.min(batch.room, BATCH)
    let bytes = 0
    let packets = 0
    let given = 0
    while (packets < room && bytes < BREATH_BYTES) {
      const frame = pool.alloc()
      if (frame < 0) break
      const start = pool.start[frame]
      const at = start - headerSize
      const size = pool.limit(frame) - at
      // NB: the engine boxes so large a Number: 16 bytes of garbage a call, and 27 ns cheaper than an iovec without any.
      const n = read(fd, base + at, size)
      counters.called()
      if (n < headerSize + ETHERNET) {
        pool.free(frame)
        if (n < 0) {
          this.drained = true
          this.refused(-n)
          break
        }
        packets++
        counters.received(1, n)
        counters.dropped(DROP.ETHERNET_TRUNCATED)
        continue
      }
      packets++
      bytes += n
      const length = n - headerSize
      counters.received(1, length)
      pool.length[frame] = length
      pool.time[frame] = now
      // A read that fills the frame was cut off: the kernel does not say how long the packet was.
      const reason = n === size ? DROP.OVERSIZED : this.parse(frame, at)
      if (reason !== 0) {
        counters.dropped(reason)
        pool.free(frame)
        continue
      }
      batch.push(frame)
      given++
    }
    return given
  }

  // Reads the virtio-net header at `at` into the metadata; every position it sets lies inside the frame.
  private parse(frame: number, at: number): number {
    const { pool } = this
    const { bytes, view } = pool
    const start = pool.start[frame]
    const end = start + pool.length[frame]
    const flags = bytes[at]
    const gso = bytes[at + 1]
    pool.offload[frame] = flags & (OFFLOAD.NEEDS_CHECKSUM | OFFLOAD.CHECKSUM_VALID | OFFLOAD.OUTER_CHECKSUM)
    pool.gso[frame] = gso
    if ((flags & OFFLOAD.NEEDS_CHECKSUM) === 0) return gso === GSO.NONE ? 0 : DROP.OFFLOAD

    const from = start + view.getUint16(at + 6, true)
    const offset = view.getUint16(at + 8, true)
    if (from < start + ETHERNET || from + offset + 2 > end) return DROP.OFFLOAD
    pool.checksumStart[frame] = from
    pool.checksumOffset[frame] = offset
    if (gso === GSO.NONE) return 0

    const kind = gso & ~(GSO.TUNNEL | GSO.ECN)
    let payload = from + UDP_HEADER
    if (kind === GSO.TCP4 || kind === GSO.TCP6) {
      if (from + TCP_HEADER > end) return DROP.OFFLOAD
      payload = from + (bytes[from + 12] >> 4) * 4
      if (payload < from + TCP_HEADER) return DROP.OFFLOAD
    } else if (kind !== GSO.UDP) return DROP.OFFLOAD
    const size = view.getUint16(at + 4, true)
    if (payload > end || size === 0) return DROP.OFFLOAD
    pool.payload[frame] = payload
    pool.gsoSize[frame] = size
    if ((gso & GSO.TUNNEL) === 0) return 0

    const outer = start + view.getUint16(at + 20, true)
    const inner = start + view.getUint16(at + 22, true)
    const one = (gso & GSO.TUNNEL) === GSO.TUNNEL4 || (gso & GSO.TUNNEL) === GSO.TUNNEL6
    if (!one || this.headerSize < TUNNEL_HEADER) return DROP.OFFLOAD
    if (outer < start + ETHERNET || inner < outer + UDP_HEADER || from < inner + 20) return DROP.OFFLOAD
    pool.outerTransport[frame] = outer
    pool.network[frame] = inner
    return 0
  }

  transmit(batch: Batch): void {
    const { pool, counters, headerSize, base, fd, coalescer } = this
    const { frames, length } = batch
    const some = length > 1 && coalescer.find(batch) > 0
    let packets = 0
    let bytes = 0
    for (let i = 0; i < length; i++) {
      if (some && coalescer.joined[i] === 1) continue
      const frame = frames[i]
      const parts = some && i < BATCH ? coalescer.parts[i] : 1
      if (parts > 1) coalescer.unite(batch, i)
      const at = pool.start[frame] - headerSize
      if (at < pool.slot(frame)) {
        counters.dropped(DROP.NO_HEADROOM, parts)
        continue
      }
      if (!this.fill(frame, at)) {
        counters.dropped(DROP.OFFLOAD, parts)
        continue
      }
      const size = headerSize + pool.length[frame]
      const n = parts === 1 ? write(fd, base + at, size) : this.gather(batch, i, at, size)
      counters.called()
      if (n >= 0) {
        packets += parts
        bytes += pool.length[frame]
        for (let j = some ? coalescer.next[i] : -1; j >= 0; j = coalescer.next[j]) bytes += pool.length[frames[j]]
      } else counters.dropped(this.refused(-n), parts)
    }
    counters.sent(packets, bytes)
    pool.freeAll(batch)
  }

  // Writes the super-packet that begins with the `size` bytes at `at` and goes on in the payload of other frames: 44 segments
  // in 7.3 µs; copied together first, 9.2; one by one, 18.5, and then the stack behind has them one by one, too. (A TAP with
  // IFF_NAPI merges what is written one by one only when it may hold it back for a timer.)
  private gather(batch: Batch, i: number, at: number, size: number): number {
    const { pool, coalescer, iovecs, memory } = this
    const { next } = coalescer
    const head = batch.frames[i]
    const headers = pool.payload[head] - pool.start[head]
    memory.write(iovecs, 0, at)
    iovecs.setInt32(8, size, true)
    let count = 1
    for (let j = next[i]; j >= 0; j = next[j], count++) {
      const frame = batch.frames[j]
      memory.write(iovecs, count * IOVEC, pool.start[frame] + headers)
      iovecs.setInt32(count * IOVEC + 8, pool.length[frame] - headers, true)
    }
    return writev(this.fd, this.iovecsAt, count)
  }

  // Writes the virtio-net header of a frame at `at`; false for a super-packet that its checksum fields do not cover.
  private fill(frame: number, at: number): boolean {
    const { pool } = this
    const { bytes, view } = pool
    // Backwards, as a header of 10 bytes ends in the middle of a word, and the frame begins there.
    for (let i = this.headerSize - 4; i > -4; i -= 4) view.setInt32(at + (i < 0 ? 0 : i), 0)
    const offload = pool.offload[frame]
    const gso = pool.gso[frame]
    if ((offload & OFFLOAD.NEEDS_CHECKSUM) === 0) return gso === GSO.NONE
    const start = pool.start[frame]
    bytes[at] = offload & (OFFLOAD.NEEDS_CHECKSUM | OFFLOAD.OUTER_CHECKSUM)
    view.setUint16(at + 6, pool.checksumStart[frame] - start, true)
    view.setUint16(at + 8, pool.checksumOffset[frame], true)
    if (gso === GSO.NONE) return true
    bytes[at + 1] = gso
    view.setUint16(at + 2, pool.payload[frame] - start, true)
    view.setUint16(at + 4, pool.gsoSize[frame], true)
    if ((gso & GSO.TUNNEL) === 0) return true
    view.setUint16(at + 20, pool.outerTransport[frame] - start, true)
    view.setUint16(at + 22, pool.network[frame] - start, true)
    return true
  }

  // Judges a failed call: what becomes of the packet that it was for, if any.
  private refused(errno: number): number {
    if (errno === ERRNO.EAGAIN || errno === ERRNO.ENOBUFS || errno === ERRNO.ENOMEM) return DROP.DEVICE_FULL
    if (errno === EBADFD && !this.exhausted) {
      this.exhausted = true
      this.counters.failed()
    }
    return DROP.DEVICE_ERROR
  }

  close(): void {
    close(this.fd)
  }
}

// "File descriptor in bad state": what a TAP's descriptor answers once its interface is gone. Node has no name for it.
const EBADFD = 77
