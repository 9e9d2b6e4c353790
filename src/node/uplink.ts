// The way out of a node, where the configuration does not name it: the interface that the kernel's route toward the first
// endpoint takes, and the address that packets leave with. Also what addresses a node has.

import { networkInterfaces } from 'node:os'
import ipaddr from 'ipaddr.js'
import { type Config, configuredEndpoints } from '../control/config.ts'
import { addressBytes } from '../control/tunnel.ts'
import { DetourError } from '../errors.ts'
import { inNamespace } from '../os/netns.ts'
import { Rtnetlink } from '../os/rtnetlink.ts'

/** Interface and own address toward the endpoints. */
export interface WayOut {
  uplink: string
  local: string
}

/** Finds what of it the configuration leaves out. Throws DetourError that says what to configure. */
export function findWayOut(config: Config): WayOut {
  const [endpoint] = configuredEndpoints(config)
  if (endpoint === undefined)
    throw new DetourError('bad-config', 'no endpoint: name one as tunnel.remote, or several under endpoints')
  const { node, tunnel } = config
  if (node.uplink !== undefined && tunnel.local !== undefined) return { uplink: node.uplink, local: tunnel.local }
  const remote = Uint8Array.from(addressBytes(endpoint.address, 'endpoint'))
  const questions = new Rtnetlink(node.namespace ?? '')
  try {
    const local = tunnel.local === undefined ? [] : addressBytes(tunnel.local, 'tunnel.local')
    const source = local.length === remote.length ? Uint8Array.from(local) : new Uint8Array(remote.length)
    const index = node.uplink === undefined ? 0 : (questions.link(node.uplink)?.index ?? -1)
    if (index < 0)
      throw new DetourError(
        'not-found',
        `node.uplink: interface ${node.uplink} does not exist; name another, or leave it out`,
      )
    const route = questions.route(remote, source, index)
    const link = route && questions.link(route.index)
    const own = tunnel.local ?? (route?.source && ipaddr.fromByteArray([...route.source]).toString())
    if (link !== undefined && own !== undefined) return { uplink: link.name, local: own }
  } finally {
    questions.close()
  }
  const advice = 'add a route, or set node.uplink and tunnel.local'
  throw new DetourError('not-found', `no route toward endpoint ${endpoint.address}; ${advice}`)
}

/** IPv4 and IPv6 addresses of a namespace's interfaces that are up; '' is the current one. */
export function nodeAddresses(namespace: string): string[] {
  const all = inNamespace(namespace, networkInterfaces)
  return [...new Set(Object.values(all).flatMap(list => list?.map(({ address }) => address) ?? []))].sort()
}
