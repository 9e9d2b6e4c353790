// Finds the next hop toward the endpoint and its path MTU by the kernel's routes and neighbours, for workers that send past
// them. The kernel resolves and confirms neighbours only for what it sends itself: probes, and everything while the next
// hop is not known, go by the TAP; where there is none, the kernel is asked at every look. Main thread only.

import { setTimeout } from 'node:timers/promises'
import { NextHop, type NextHopHandle } from '../memory/nexthop.ts'
import { type Link, Rtnetlink } from '../os/rtnetlink.ts'

/** Time between two looks for a next hop that is waited for, ms. */
const FIND_MS = 10

export interface WayOptions {
  /** Of the uplink. */
  namespace: string
  uplink: string
  /** Addresses of the tunnel's two ends, in network order. */
  local: ArrayLike<number>
  remote: ArrayLike<number>
  /** True where the kernel sends none of the tunnel's packets. */
  direct?: boolean
}

/** The way to one endpoint. */
export class Way {
  private readonly hop: NextHop
  private readonly socket: Rtnetlink
  private readonly uplink: string
  private readonly local: Uint8Array
  private readonly remote: Uint8Array
  private readonly direct: boolean
  private readonly largest: number
  /** The uplink as it was at the last look; undefined when there was none. */
  link: Link | undefined
  /** The largest outer IP packet: the uplink's MTU, or less where the route says so. */
  mtu: number
  /** Destination and source address of frames to the next hop; undefined while the kernel must find the way. */
  addresses: Uint8Array | undefined

  /** Opens a socket in the namespace; `mtu` counts until a way is found, and is the most where all is sent past the kernel. Throws DetourError. */
  constructor({ namespace, uplink, local, remote, direct = false }: WayOptions, mtu: number) {
    this.uplink = uplink
    this.local = Uint8Array.from(local)
    this.remote = Uint8Array.from(remote)
    this.direct = direct
    this.largest = direct ? mtu : Number.POSITIVE_INFINITY
    this.mtu = mtu
    this.hop = new NextHop(mtu)
    this.socket = new Rtnetlink(namespace)
    this.refresh()
  }

  /** What workers build a NextHopView from. */
  get handle(): NextHopHandle {
    return this.hop.handle
  }

  /** Looks until the next hop is known, but for `ms` at most; says whether it is. */
  async find(ms: number): Promise<boolean> {
    for (const until = performance.now() + ms; this.addresses === undefined && performance.now() < until; ) {
      await setTimeout(FIND_MS)
      this.refresh()
    }
    return this.addresses !== undefined
  }

  /** Looks again: short questions to the kernel. */
  refresh(): void {
    const { socket, local, remote } = this
    const link = socket.link(this.uplink)
    this.link = link
    const route = link === undefined ? undefined : socket.route(remote, local, link.index)
    if (link !== undefined) this.mtu = Math.min(link.mtu, route?.mtu ?? link.mtu, this.largest)
    this.addresses = undefined
    if (link?.type === 'ether' && link.running && route?.index === link.index) {
      const hop = route.gateway ?? remote
      if (this.direct) socket.useNeighbour(hop, link.index)
      const mac = socket.neighbour(hop, link.index)
      if (mac !== undefined) this.addresses = Uint8Array.from([...mac, ...macOf(link)])
    }
    this.hop.publish(this.mtu, this.addresses)
  }

  close(): void {
    this.socket.close()
  }
}

const macOf = (link: Link) => link.mac.split(':').map(byte => Number.parseInt(byte, 16))
