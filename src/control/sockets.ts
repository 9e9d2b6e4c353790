// The tunnel's UDP sockets, one a worker, among which the kernel chooses by what is in the tunnel.

import { closeSync } from 'node:fs'
import type { Steering } from '../flow/steering.ts'
import { loadFilter } from '../os/bpf.ts'
import { inNamespace } from '../os/netns.ts'
import { openUdp, openUdpGroup, type UdpHandle, type UdpOptions } from '../os/udp.ts'
import { steerTunnels } from './steering.ts'

export interface SocketsOptions extends Pick<UdpOptions, 'address' | 'port' | 'remote'> {
  namespace: string
  kind: 'geneve' | 'vxlan'
  steering: Steering
}

/** Opens the sockets. NB: several do without UDP_GRO, which would put datagrams of different workers together. Throws DetourError. */
export function openTunnelSockets({ namespace, kind, steering, ...options }: SocketsOptions): UdpHandle[] {
  if (steering.workers === 1) return [inNamespace(namespace, () => openUdp(options))]
  const program = loadFilter('dt_steer_socket', steerTunnels(kind, 0, steering))
  try {
    return inNamespace(namespace, () => openUdpGroup(options, steering.workers, program))
  } finally {
    closeSync(program)
  }
}
