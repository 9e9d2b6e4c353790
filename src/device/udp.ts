// UDP: the underlay over a plain UDP socket. No root and no interface of its own; the pipeline still sees whole frames,
// outer Ethernet, IP and UDP headers in front.
//
// What the socket does not carry: the outer TTL and flow label, and the outer source port. One socket has one port, so
// there is no entropy in it: ECMP and receive-side scaling on the way see one flow a peer.

import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { close } from '../os/libc.ts'
import type { UdpHandle } from '../os/udp.ts'
import { CAPABILITY, type Device } from './device.ts'
import { UdpReceiver } from './udp-receiver.ts'
import { UdpSender } from './udp-sender.ts'

export { openUdp, type UdpHandle, type UdpOptions } from '../os/udp.ts'

/**
 * The device over an open socket; `close` closes the socket. With `gro` it gives super-packets (pipeline/split takes them
 * apart), with `segment` it takes them: outer UDP only, whose checksum the kernel computes in any case.
 */
export class UdpDevice implements Device {
  readonly name: string
  readonly capabilities: number
  readonly fd: number
  readonly exhausted = false
  private readonly receiver: UdpReceiver
  private readonly sender: UdpSender

  constructor(pool: Pool, counters: StageCounters, handle: UdpHandle) {
    this.name = `udp:${handle.port}`
    this.fd = handle.fd
    this.capabilities = handle.segment ? CAPABILITY.USO4 | CAPABILITY.USO6 : 0
    this.receiver = new UdpReceiver(pool, counters, handle)
    this.sender = new UdpSender(pool, counters, handle)
  }

  receive(batch: Batch): number {
    return this.receiver.receive(batch)
  }

  transmit(batch: Batch): void {
    this.sender.transmit(batch)
  }

  close(): void {
    this.receiver.close()
    close(this.fd)
  }
}
