// The express way: AF_XDP sockets on the uplink for small packets to the endpoint, a queue a worker, beside the TAP that carries the
// rest. Sending by them takes half as long; nothing is received by them, so that the uplink's own offloads stay.

import type { Config } from '../control/config.ts'
import type { OffloadRung } from '../control/underlay.ts'
import { openXdpUplink } from '../control/xdp-uplink.ts'
import type { DeviceSpec } from '../device/open.ts'
import { DetourError } from '../errors.ts'
import type { PoolHandle } from '../memory/pool.ts'

export interface ExpressOptions {
  config: Config
  namespace: string
  uplink: string
  /** How the rest crosses the underlay. */
  rung: OffloadRung
  pool: PoolHandle
  workers: number
  log: (line: string) => void
}

/** The device of each worker that has one: none where AF_XDP cannot be had, unless it was asked for. Throws DetourError. */
export function openExpress(options: ExpressOptions): DeviceSpec['device'][] {
  const { namespace, uplink, pool, workers, log } = options
  const wanted = options.config.rungs.express
  // A socket's tunnel is chosen where nothing but a socket may be had.
  if (wanted === 'none' || (wanted === 'auto' && options.rung === 'udp-socket')) return []
  try {
    const { sockets } = openXdpUplink({ namespace, interface: uplink, pool, workers })
    log(
      `small packets leave ${uplink} by AF_XDP${sockets.length < workers ? `, of ${sockets.length} of ${workers} workers` : ''}`,
    )
    return sockets.map(socket => ({ kind: 'xdp', ...socket }))
  } catch (error) {
    if (wanted !== 'auto' || !(error instanceof DetourError)) throw error
    log(`small packets leave ${uplink} with the others: ${error.message}`)
    return []
  }
}
