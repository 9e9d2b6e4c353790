// From the tunnel that people configure to the one that the pipeline builds headers from.

import ipaddr from 'ipaddr.js'
import { DetourError } from '../errors.ts'
import { profileNamed } from '../pipeline/profile.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import type { Config } from './config.ts'

/** An address as bytes in network order, 4 or 16; throws DetourError naming `key`. */
export function addressBytes(text: string, key: string): number[] {
  if (!ipaddr.isValid(text)) {
    throw new DetourError('bad-config', `${key}: '${text}' is not allowed; give an IPv4 or IPv6 address`)
  }
  return ipaddr.parse(text).toByteArray()
}

/** Completes a configured tunnel; throws DetourError when an address is missing or the two are of different families. */
export function tunnelConfig(tunnel: Config['tunnel']): TunnelConfig {
  const address = (key: 'local' | 'remote') => {
    const text = tunnel[key]
    if (text === undefined)
      throw new DetourError('bad-config', `tunnel.${key} is missing; give an IPv4 or IPv6 address`)
    return addressBytes(text, `tunnel.${key}`)
  }
  const [local, remote] = [address('local'), address('remote')]
  if (local.length !== remote.length)
    throw new DetourError(
      'bad-config',
      `tunnel.local ${tunnel.local} and tunnel.remote ${tunnel.remote} differ in IP version`,
    )
  const profile = profileNamed(tunnel.profile)
  if (!profile.outer.includes(local.length === 4 ? 4 : 6))
    throw new DetourError(
      'bad-config',
      `tunnel.local ${tunnel.local}: profile ${profile.name} knows IPv${profile.outer.join(' and IPv')} underlays only`,
    )
  return {
    profile: tunnel.profile,
    kind: profile.kind,
    port: tunnel.port,
    vni: tunnel.vni,
    local,
    remote,
    ttl: tunnel.ttl,
    dscp: tunnel.dscp,
    ecn: tunnel.ecn,
    outerChecksum: tunnel.udpChecksum,
    zeroChecksum6: tunnel.udpChecksum === 'zero',
    strictReserved: tunnel.strictReserved,
    innerVlan: false,
    metadata: true,
    ...profile.tunnel(tunnel.settings),
  }
}
