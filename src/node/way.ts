// Finds the way to each endpoint by the kernel's routes and neighbours: next hop and path MTU, for workers that send past
// them. The kernel resolves and confirms neighbours only for what it sends itself: probes, and everything while the next
// hop is not known, go by the TAP; where there is none, the kernel is asked at every look. Main thread only.

import { type Link, Rtnetlink } from '../os/rtnetlink.ts'

export interface WayOptions {
  /** Of the uplink. */
  namespace: string
  uplink: string
  /** The tunnel's own address, in network order. */
  local: ArrayLike<number>
  /** True where the kernel sends none of the tunnel's packets. */
  direct?: boolean
}

/** The way to an endpoint. */
export interface Hop {
  /** The largest outer IP packet that it takes, as far as the kernel knows. */
  mtu: number
  /** Destination and source address of frames to the next hop; undefined while the kernel must find the way. */
  addresses: Uint8Array | undefined
}

/** The ways that begin at an uplink. */
export class Way {
  private readonly socket: Rtnetlink
  private readonly uplink: string
  private readonly local: Uint8Array
  private readonly direct: boolean
  private readonly largest: number
  /** The uplink as it was at the last look; undefined when there was none. */
  link: Link | undefined
  /** The uplink's MTU, also when it is gone; where all is sent past the kernel, never more than at the start. */
  mtu: number

  /** Opens a socket in the namespace; `mtu` is the uplink's. Throws DetourError. */
  constructor({ namespace, uplink, local, direct = false }: WayOptions, mtu: number) {
    this.uplink = uplink
    this.local = Uint8Array.from(local)
    this.direct = direct
    this.largest = direct ? mtu : Number.POSITIVE_INFINITY
    this.mtu = mtu
    this.socket = new Rtnetlink(namespace)
    this.look()
  }

  /** Looks at the uplink again. */
  look(): void {
    this.link = this.socket.link(this.uplink)
    if (this.link !== undefined) this.mtu = Math.min(this.link.mtu, this.largest)
  }

  /** The way to an address from the uplink as it was at the last look: short questions to the kernel. */
  to(remote: Uint8Array): Hop {
    const { socket, local, link, direct } = this
    const route = link === undefined ? undefined : socket.route(remote, local, link.index)
    const hop: Hop = { mtu: Math.min(this.mtu, route?.mtu ?? this.mtu), addresses: undefined }
    if (link?.type !== 'ether' || !link.running || route?.index !== link.index) return hop
    const next = route.gateway ?? remote
    if (direct) socket.useNeighbour(next, link.index)
    const mac = socket.neighbour(next, link.index)
    if (mac !== undefined) hop.addresses = Uint8Array.from([...mac, ...macOf(link)])
    return hop
  }

  close(): void {
    this.socket.close()
  }
}

const macOf = (link: Link) => link.mac.split(':').map(byte => Number.parseInt(byte, 16))
