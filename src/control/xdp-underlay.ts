// The rung `af-xdp`: the tunnel's packets come and go by AF_XDP sockets on the uplink itself, past the kernel's queueing
// disciplines, packet filters, routes and neighbours. The kernel keeps everything else that the uplink carries, and tells where
// the next hop is. No super-packets.

import { DetourError } from '../errors.ts'
import { SMALL_FRAME, SMALL_HEADROOM } from '../memory/pool.ts'
import { receiveQueues } from '../os/ethtool.ts'
import { close } from '../os/libc.ts'
import type { LinkInfo } from '../os/link.ts'
import { xdpStatistics } from '../os/xdp.ts'
import type { Underlay, UnderlayOptions } from './underlay.ts'
import { openXdpUplink } from './xdp-uplink.ts'

const ETHERNET = 14
/** Largest IP packet that the kernel receives into a small frame. */
const LARGEST = SMALL_FRAME - SMALL_HEADROOM - ETHERNET

/** Opens a socket a worker and queue; `openGuards` opens the sockets that hold the tunnel's ports. Throws DetourError and leaves nothing behind. */
export function openXdpUnderlay(
  { namespace, interface: uplink, port, otherPort, anyAddress, steering, pool }: UnderlayOptions,
  link: LinkInfo,
  address: Uint8Array,
  openGuards: () => number[],
): Underlay {
  if (pool === undefined) throw new DetourError('bad-config', `underlay ${uplink}: rung af-xdp needs a pool`)
  if (link.mtu > LARGEST)
    throw new DetourError(
      'bad-config',
      `uplink ${uplink}: rung af-xdp carries packets of at most ${LARGEST} bytes, and its MTU is ${link.mtu}: "ip link set ${uplink} mtu ${LARGEST}", or take another rung`,
    )
  const workers = steering?.workers ?? 1
  const queues = receiveQueues(uplink, namespace)
  // A queue without a worker would leave its packets to the kernel, a worker without a queue could not send.
  if (queues !== workers)
    throw new DetourError(
      'bad-config',
      `uplink ${uplink} receives by ${queues} queues: rung af-xdp needs as many workers; ask for ${queues}, or set ${workers} queues (ethtool -L ${uplink})`,
    )
  const guards = openGuards()
  try {
    const options = { namespace, interface: uplink, pool, workers }
    const {
      sockets,
      attach,
      close: detach,
    } = openXdpUplink({ ...options, receive: { address, port, otherPort, anyAddress } })
    const fds = sockets.map(({ fd }) => fd)
    const end = () => {
      detach()
      guards.forEach(close)
    }
    return {
      offloadRung: 'af-xdp',
      device: `xdp:${uplink}`,
      features: [sockets[0].zeroCopy ? 'zero-copy' : 'copy', attach ?? ''],
      attachRung: undefined,
      tapName: '',
      fds: [],
      headerSize: 0,
      sockets,
      capabilities: 0,
      uplinkMtu: link.mtu,
      localMac: link.mac,
      uplinkIndex: () => link.index,
      isAttached: () => true,
      reattach() {
        throw new DetourError(
          'unsupported',
          `uplink ${uplink}: rung af-xdp stays with the interface it began on: restart`,
        )
      },
      missed: () => missed(fds),
      // What the kernel receives into is this process's memory.
      parts: () => undefined,
      follow() {},
      leave: end,
      close: end,
    }
  } catch (error) {
    guards.forEach(close)
    throw error
  }
}

function missed(fds: number[]): number | undefined {
  try {
    const all = fds.map(xdpStatistics)
    return all.reduce(
      (sum, { rxDropped, rxRingFull, fillRingEmpty }) => sum + rxDropped + rxRingFull + fillRingEmpty,
      0,
    )
  } catch (error) {
    // A worker that has ended has closed its socket.
    if (error instanceof DetourError) return undefined
    throw error
  }
}
