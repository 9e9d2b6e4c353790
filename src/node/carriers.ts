// The node's end of the tunnel as its workers open it: the underlay, and where that is sockets, those; opened, or inherited.

import { configuredEndpoints } from '../control/config.ts'
import { openTunnelSockets } from '../control/sockets.ts'
import { inheritUnderlay, openUnderlay, type Underlay, underlayDevices } from '../control/underlay.ts'
import type { DeviceSpec } from '../device/open.ts'
import type { Steering } from '../flow/steering.ts'
import type { PoolHandle } from '../memory/pool.ts'
import type { UdpHandle } from '../os/udp.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import type { Inheritance } from './handover.ts'
import type { NodeOptions } from './node.ts'

export interface Carriers {
  underlay: Underlay
  /** Where the underlay is sockets, one a worker; each belongs to its worker. */
  sockets: UdpHandle[]
  /** One a worker. */
  devices: DeviceSpec['device'][]
}

/** Opens the underlay or goes on with that of a predecessor; `pool` is the workers'. Throws DetourError and leaves nothing behind. */
export function openCarriers(
  options: NodeOptions,
  tunnel: TunnelConfig,
  steering: Steering,
  pool: PoolHandle,
  inherit: Inheritance | undefined,
): Carriers {
  const { config, namespace, uplink } = options
  const { local = '', port } = config.tunnel
  const place = {
    ...{ namespace, interface: uplink, localAddress: local, port: tunnel.port, pool },
    ...{ otherPort: tunnel.arriving?.port, anyAddress: tunnel.podSource },
    ...{ rung: config.rungs.offload, attach: config.rungs.attach, steering: { ...steering, kind: tunnel.kind } },
  }
  const underlay = inherit === undefined ? openUnderlay(place) : inheritUnderlay(place, inherit.underlay)
  if (underlay.offloadRung !== 'udp-socket') return { underlay, sockets: [], devices: underlayDevices(underlay) }
  const [{ address: remote }] = configuredEndpoints(config)
  const sockets =
    inherit?.sockets ?? openTunnelSockets({ namespace, address: local, port, remote, kind: tunnel.kind, steering })
  return { underlay, sockets, devices: sockets.map(handle => ({ kind: 'udp', ...handle })) }
}
