// The kernel as an oracle of segmentation: a bridge between two TAPs in a namespace. What is written to one with a
// virtio-net header comes out of the other, which has no offloads, as the kernel would put it on a wire.

import { closeSync } from 'node:fs'
import { GSO, OFFLOAD } from '../../src/memory/pool.ts'
import { addressOf, must, POLL, poll, read, write } from '../../src/os/libc.ts'
import { createNamespace, deleteNamespace, ipBatch } from '../../src/os/netns.ts'
import { openTap } from '../../src/os/tun.ts'
import type { Packet } from './super.ts'

const HEADER = 24

export class KernelBridge {
  /** What the kernel takes from us. */
  readonly offloads: number
  private readonly name: string
  private readonly left: number
  private readonly right: number
  private readonly buffer = new Uint8Array(HEADER + 70_000)
  private readonly pollfd = new Int32Array(2)

  constructor(name: string) {
    this.name = name
    deleteNamespace(name)
    createNamespace(name)
    const left = openTap({ name: 'left', namespace: name })
    const right = openTap({ name: 'right', namespace: name, offloads: 0 })
    this.offloads = left.offloads
    this.left = left.fd
    this.right = right.fd
    ipBatch(
      [
        'link add bridge type bridge mcast_snooping 0',
        // NB: in commands of their own: an interface that comes up first reports itself to multicast listeners.
        ...['left', 'right'].map(tap => `link set ${tap} mtu 9000 addrgenmode none master bridge`),
        'link set bridge addrgenmode none',
        ...['left', 'right', 'bridge'].map(name => `link set ${name} up`),
      ],
      name,
    )
  }

  /** Sends the packet through and returns the `count` frames that come out. */
  pass(packet: Packet, count: number): Uint8Array[] {
    const { buffer } = this
    const v = new DataView(buffer.buffer)
    buffer.fill(0, 0, HEADER)
    buffer[0] = packet.offload & (OFFLOAD.NEEDS_CHECKSUM | OFFLOAD.OUTER_CHECKSUM)
    buffer[1] = packet.gso
    v.setUint16(2, packet.payload, true)
    v.setUint16(4, packet.gso === 0 ? 0 : packet.gsoSize, true)
    if (packet.offload & OFFLOAD.NEEDS_CHECKSUM) {
      v.setUint16(6, packet.transport, true)
      v.setUint16(8, packet.checksumOffset, true)
    }
    if (packet.gso & GSO.TUNNEL) {
      v.setUint16(20, packet.outerTransport, true)
      v.setUint16(22, packet.network, true)
    }
    buffer.set(packet.bytes, HEADER)
    must(write(this.left, addressOf(buffer), HEADER + packet.bytes.length), 'write', 'left')
    const frames: Uint8Array[] = []
    while (frames.length < count) {
      this.pollfd[0] = this.right
      this.pollfd[1] = POLL.IN
      if (poll(addressOf(this.pollfd), 1, 20_000) !== 1) throw new Error(`${frames.length} of ${count} frames came out`)
      const n = must(read(this.right, addressOf(buffer), buffer.length), 'read', 'right')
      frames.push(buffer.slice(HEADER, n))
    }
    return frames
  }

  close(): void {
    closeSync(this.left)
    closeSync(this.right)
    deleteNamespace(this.name)
  }
}
