// Path MTU discovery for outer packets (RFC 1191, RFC 8201). The kernel learns path MTUs for its own sockets' packets only, so
// what routers say of packets that a TAP or AF_XDP sent is heard here, and holds as long as the kernel's would.

import { monotonicMs } from '../os/clock.ts'
import { IcmpErrors } from '../os/icmp.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'

/** What Linux believes at least (net.ipv4.route.min_pmtu; RFC 8200 section 5), so that a liar cannot stop all traffic. */
const LEAST = { 4: 552, 6: 1280 } as const
/** net.ipv4.route.mtu_expires, net.ipv6.route.mtu_expires: 10 minutes (RFC 1191 section 6.3). */
const EXPIRES_MS = 600_000
/** Messages looked at in one go. */
const BUDGET = 256

export class PathMtus {
  private readonly errors: IcmpErrors
  private readonly tunnel: TunnelConfig
  private readonly version: 4 | 6
  /** By address as text. */
  private readonly learnt = new Map<string, { mtu: number; until: number }>()

  constructor(namespace: string, tunnel: TunnelConfig) {
    this.tunnel = tunnel
    this.version = tunnel.local.length === 4 ? 4 : 6
    this.errors = new IcmpErrors(namespace, this.version)
  }

  /** Takes in what routers have said since. Never blocks. */
  look(): void {
    for (let i = 0; i < BUDGET; i++) {
      const size = this.errors.next()
      if (size === 0) return
      this.take(size)
    }
  }

  /** The path MTU to an address that the kernel takes for `mtu`. */
  limit(address: string, mtu: number): number {
    const found = this.learnt.get(address)
    if (found === undefined) return mtu
    if (found.until > monotonicMs()) return Math.min(mtu, found.mtu)
    this.learnt.delete(address)
    return mtu
  }

  close(): void {
    this.errors.close()
  }

  /** Takes a message that quotes one of this tunnel's packets; whatever else comes is not for us. */
  private take(size: number): void {
    const { bytes: b } = this.errors
    const four = this.version === 4
    if (four && ipv4.check(b, 0, size) !== 0) return
    const message = four ? ipv4.headerLength(b, 0) : 0
    const quoted = message + icmp.QUOTE
    if (quoted > size || (four && icmp.code(b, message) !== icmp.FRAGMENTATION_NEEDED)) return
    if ((four ? ipv4.checkQuoted(b, quoted, size) : ipv6.checkQuoted(b, quoted, size)) !== 0) return
    const transport = quoted + (four ? ipv4.headerLength(b, quoted) : ipv6.HEADER)
    const protocol = four ? ipv4.protocol(b, quoted) : ipv6.nextHeader(b, quoted)
    if (protocol !== ipv4.PROTOCOL.UDP || transport + udp.HEADER > size) return
    if (udp.destinationPort(b, transport) !== this.tunnel.port) return
    const source = quoted + (four ? ipv4.SOURCE : ipv6.SOURCE)
    if (!this.tunnel.local.every((byte, i) => byte === b[source + i])) return
    const to = quoted + (four ? ipv4.DESTINATION : ipv6.DESTINATION)
    const address = four ? ipv4.formatAddress(ipv4.destination(b, quoted)) : ipv6.formatAddress(b, to)
    const said = four ? icmp.nextHopMtu4(b, message) : icmp.nextHopMtu6(b, message)
    // A router that says 0 does not know RFC 1191: what always fits remains.
    const mtu = Math.max(LEAST[this.version], said)
    this.learnt.set(address, { mtu, until: monotonicMs() + EXPIRES_MS })
  }
}
