// AF_XDP sockets on the uplink, a queue a worker: to transmit only, beside a TAP that carries all else, or to receive the
// tunnel's packets too.
//
// NB: what a local process sends through a veth reaches a receiving socket with checksums that are not complete (os/xdp):
// receive from a network card, or have the veth's other end complete them.

import { DetourError } from '../errors.ts'
import { umemOf } from '../memory/live.ts'
import type { PoolHandle } from '../memory/pool.ts'
import type { XdpAttach } from '../os/bpf.ts'
import { checksumsAnywhere, driverOf } from '../os/ethtool.ts'
import { close } from '../os/libc.ts'
import { openXdp, steerToSockets, type XdpHandle, type XdpMode, type XdpSteering } from '../os/xdp.ts'
import type { TunnelPlace } from './programs.ts'
import { tunnelPackets } from './xdp-programs.ts'

/** Entries of each ring. A receiving worker lends the kernel that many small frames, and as many may wait to be sent. */
export const XDP_RING = 1024

export interface XdpUplinkOptions {
  /** Name or path of the node's network namespace; '' is the current one. */
  namespace: string
  interface: string
  /** A pool of memory/live.ts. */
  pool: PoolHandle
  workers: number
  /** The tunnel, of which packets are received; without, none are. */
  receive?: TunnelPlace
  mode?: XdpMode
  attach?: XdpAttach | 'auto'
}

/** Open sockets of the uplink. */
export interface XdpUplink {
  /** One a worker, fewer where the interface has fewer queues. Each belongs to whoever builds the XdpDevice, which closes it. */
  readonly sockets: readonly XdpHandle[]
  /** How the program that receives is attached, when there is one. */
  readonly attach: XdpAttach | undefined
  /** Takes the program off. */
  close(): void
}

/** Opens the sockets, and for receiving puts the program on the uplink. Throws DetourError and leaves nothing behind. */
export function openXdpUplink(options: XdpUplinkOptions): XdpUplink {
  const { namespace, interface: uplink, pool, workers, receive, mode, attach } = options
  // NB: a veth completes none, and a program at its other end that receives the same way would see that.
  const left = receive !== undefined && driverOf(uplink, namespace) === 'veth'
  const softwareChecksums = left || !checksumsAnywhere(uplink, namespace)
  const sockets: XdpHandle[] = []
  let steering: XdpSteering | undefined
  try {
    for (let queue = 0; queue < workers; queue++) {
      try {
        const more = { queue, receive: receive !== undefined, mode, softwareChecksums, ringSize: XDP_RING }
        sockets.push(openXdp(umemOf(pool), { namespace, interface: uplink, share: sockets[0], ...more }))
      } catch (error) {
        // The interface has fewer queues than there are workers.
        if (queue > 0 && error instanceof DetourError && error.code === 'bad-config') break
        throw error
      }
    }
    if (receive !== undefined) {
      const code = (map: number) => tunnelPackets(map, receive)
      steering = steerToSockets({ namespace, interface: uplink, attach, sockets }, code)
    }
  } catch (error) {
    for (const { fd } of sockets) close(fd)
    throw error
  }
  return { sockets, attach: steering?.attach, close: () => steering?.close() }
}
