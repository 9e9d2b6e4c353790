// Conflists of primary plugins from Debian's containernetworking-plugins, as their manuals show them.

import { writeFileSync } from 'node:fs'

export type Primary = 'bridge' | 'ptp'
export type CniVersion = '0.4.0' | '1.0.0' | '1.1.0'

/** One entry of a conflist. */
export type Plugin = { type: string } & Record<string, unknown>

export interface Network {
  name: string
  primary: Primary
  /** In 10.244.0.0/16. */
  subnet: string
  /** Of IPv6 beside it, in fd00:244::/32. */
  subnet6?: string
  cniVersion: CniVersion
  /** Where host-local keeps what it has given out. */
  dataDir: string
  /** Behind the primary: portmap, and what these tests are about. */
  chained: Plugin[]
}

/** Writes a conflist to a file. */
export function writeConflist(
  path: string,
  { name, primary, subnet, subnet6, cniVersion, dataDir, chained }: Network,
): void {
  const subnets = subnet6 === undefined ? [subnet] : [subnet, subnet6]
  const ranges = subnets.map(each => [{ subnet: each }])
  const routes = subnets.map(each => ({ dst: each.includes(':') ? '::/0' : '0.0.0.0/0' }))
  const ipam = { type: 'host-local', ranges, routes, dataDir }
  const first =
    primary === 'ptp' ? { type: 'ptp', ipam } : { type: 'bridge', bridge: `br-${name}`, isGateway: true, ipam }
  writeFileSync(path, JSON.stringify({ cniVersion, name, plugins: [first, ...chained] }, null, 2))
}
