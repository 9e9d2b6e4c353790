// Links, addresses, routes and neighbours of a network namespace by netlink (rtnetlink(7), linux/rtnetlink.h).

import { DetourError } from '../errors.ts'
import { AF, ERRNO, must, read } from './libc.ts'
import {
  ANY,
  attribute,
  BUFFER,
  bufferAddress,
  bytes,
  cString,
  type Message,
  Netlink,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_DUMP,
  view,
  words,
} from './netlink.ts'

const decoder = new TextDecoder()

/** Kinds of events to hear of (RTMGRP_*). */
export const GROUP = {
  LINK: 1,
  FILTER: 8,
  ADDRESS: 0x10 | 0x100,
} as const

/** Kinds of messages. */
export const RTM = {
  NEWLINK: 16,
  DELLINK: 17,
  GETLINK: 18,
  SETLINK: 19,
  NEWADDR: 20,
  DELADDR: 21,
  GETADDR: 22,
  NEWROUTE: 24,
  GETROUTE: 26,
  NEWNEIGH: 28,
  GETNEIGH: 30,
  NEWQDISC: 36,
  DELQDISC: 37,
  NEWTFILTER: 44,
  DELTFILTER: 45,
  GETTFILTER: 46,
} as const

const IFLA = { ADDRESS: 1, IFNAME: 3, MTU: 4, STATS64: 23, GSO_MAX_SIZE: 41 } as const
const IFA = { ADDRESS: 1, LOCAL: 2 } as const
const RTA = { DST: 1, SRC: 2, OIF: 4, GATEWAY: 5, PREFSRC: 7, METRICS: 8, VIA: 18 } as const
const RTAX_MTU = 2
/** Flag of a neighbour message: treat the entry as if a packet went by it. */
const NTF_USE = 1
const NDA = { DST: 1, LLADDR: 2 } as const

/** Where tx_dropped lies in struct rtnl_link_stats64. */
const TX_DROPPED = 56

/** Names of interface types as iproute2 prints them (linux/if_arp.h); the others are numbers here. */
const TYPE: Partial<Record<number, string>> = { 1: 'ether', 768: 'ipip', 772: 'loopback', 778: 'gre', 65534: 'none' }
const IFF_UP = 1
const IFF_RUNNING = 0x40
const RTN_UNICAST = 1

/** States of a neighbour entry whose address the kernel would use (NUD_VALID): reachable, stale, delay, probe, permanent, noarp. */
const NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x80 | 0x40

/** An interface. */
export interface Link {
  index: number
  name: string
  /** `ether` for Ethernet. */
  type: string
  /** Set up by its owner. */
  up: boolean
  /** Up and with a carrier. */
  running: boolean
  mtu: number
  /** Empty where there is none. */
  mac: string
  /** Packets that it dropped instead of sending: of a TAP, those that its queue had no room for. */
  txDropped: number
}

/** What may be set of an interface. */
export interface LinkSettings {
  up?: true
  mtu?: number
  /** The largest super-packet that it is given, bytes. */
  gsoMaxSize?: number
}

/** An address of an interface. */
export interface Network {
  address: Uint8Array
  /** Length of the prefix that is on the link. */
  bits: number
}

/** Where packets for an address go. */
export interface Route {
  /** Undefined when the address is on the link itself. */
  gateway: Uint8Array | undefined
  /** The interface. */
  index: number
  /** The address that packets leave with whose sender names none. */
  source: Uint8Array | undefined
  /** Set on the route; undefined when the interface's counts. */
  mtu: number | undefined
}

/** What has changed; `link` comes with its new state, of all else only the interface is told. */
export type NetEvent = { kind: 'link'; link: Link; gone: boolean } | { kind: 'address' | 'filter'; index: number }

/** A socket for questions about a namespace, and changes, or for its events: one thread. */
export class Rtnetlink extends Netlink {
  /** An interface by name or index; undefined when there is none. */
  link(which: string | number): Link | undefined {
    const named = typeof which === 'string'
    const request = [...words(0, named ? 0 : which, 0, 0), ...(named ? attribute(IFLA.IFNAME, cString(which)) : [])]
    for (const message of this.ask(RTM.GETLINK, 0, request, ERRNO.ENODEV))
      if (message.type === RTM.NEWLINK) return this.readLink(message)
    return undefined
  }

  /** Changes an interface. Throws DetourError. */
  setLink(name: string, { up, mtu, gsoMaxSize }: LinkSettings): void {
    const request = [
      ...words(0, 0, up ? IFF_UP : 0, up ? IFF_UP : 0),
      ...attribute(IFLA.IFNAME, cString(name)),
      ...(mtu === undefined ? [] : attribute(IFLA.MTU, words(mtu))),
      ...(gsoMaxSize === undefined ? [] : attribute(IFLA.GSO_MAX_SIZE, words(gsoMaxSize))),
    ]
    must(this.request(RTM.SETLINK, NLM_F_ACK, request), 'RTM_SETLINK', name)
  }

  /** Removes an interface; one that is not there is fine. */
  deleteLink(name: string): void {
    const result = this.request(RTM.DELLINK, NLM_F_ACK, [
      ...words(0, 0, 0, 0),
      ...attribute(IFLA.IFNAME, cString(name)),
    ])
    if (result !== -ERRNO.ENODEV) must(result, 'RTM_DELLINK', name)
  }

  /** IPv4 and IPv6 addresses of an interface, or of all, as bytes. */
  addresses(index?: number): Uint8Array[] {
    return this.networks(index).map(({ address }) => address)
  }

  /** The same with the length of the prefix that is on the link, in bits. */
  networks(index?: number): Network[] {
    const found: Network[] = []
    for (const { type, at, end } of this.ask(RTM.GETADDR, NLM_F_DUMP, words(0, 0))) {
      if (type !== RTM.NEWADDR || (index !== undefined && view.getUint32(at + 4, true) !== index)) continue
      // Of a point-to-point interface, ADDRESS is the far side's.
      const own = this.attribute(at + 8, end, IFA.LOCAL) ?? this.attribute(at + 8, end, IFA.ADDRESS)
      if (own !== undefined) found.push({ address: own, bits: bytes[at + 1] })
    }
    return found
  }

  /** The way from `source` to `destination` by an interface, as the kernel would send; undefined when there is none. Zeros are any. */
  route(destination: Uint8Array, source: Uint8Array, index: number): Route | undefined {
    const bits = destination.length * 8
    const message = [
      ...[familyOf(destination), bits, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      ...attribute(RTA.DST, destination),
      ...attribute(RTA.SRC, source),
      ...attribute(RTA.OIF, words(index)),
    ]
    for (const { type, at, end } of this.ask(RTM.GETROUTE, 0, message, ANY)) {
      if (type !== RTM.NEWROUTE || bytes[at + 7] !== RTN_UNICAST) continue
      const gateway = this.attribute(at + 12, end, RTA.GATEWAY) ?? this.attribute(at + 12, end, RTA.VIA)?.subarray(2)
      const oif = this.find(at + 12, end, RTA.OIF)
      const metrics = this.find(at + 12, end, RTA.METRICS)
      const mtu = metrics < 0 ? -1 : this.find(metrics + 4, metrics + view.getUint16(metrics, true), RTAX_MTU)
      return {
        gateway,
        index: oif < 0 ? 0 : view.getUint32(oif + 4, true),
        source: this.attribute(at + 12, end, RTA.PREFSRC),
        mtu: mtu < 0 ? undefined : view.getUint32(mtu + 4, true),
      }
    }
    return undefined
  }

  /** The Ethernet address of a neighbour; undefined while the kernel would not use one. */
  neighbour(address: Uint8Array, index: number): Uint8Array | undefined {
    const message = [...words(familyOf(address), index, 0), ...attribute(NDA.DST, address)]
    for (const { type, at, end } of this.ask(RTM.GETNEIGH, 0, message, ANY)) {
      if (type !== RTM.NEWNEIGH || (view.getUint16(at + 8, true) & NUD_VALID) === 0) continue
      const mac = this.attribute(at + 12, end, NDA.LLADDR)
      return mac?.length === 6 ? mac : undefined
    }
    return undefined
  }

  /**
   * Has the kernel resolve or confirm a neighbour as if it sent it a packet (neigh_event_send): for whoever sends past the kernel. One
   * that it cannot have is fine.
   */
  useNeighbour(address: Uint8Array, index: number): void {
    const flags = NTF_USE << 16
    const message = [...words(familyOf(address), index, flags), ...attribute(NDA.DST, address)]
    for (const _ of this.ask(RTM.NEWNEIGH, NLM_F_ACK | NLM_F_CREATE, message, ANY));
  }

  /** What has happened since the last call, in order; undefined when the kernel had to leave some out: look at everything. Never blocks. */
  events(): NetEvent[] | undefined {
    const events: NetEvent[] = []
    for (;;) {
      const n = read(this.fd, bufferAddress, BUFFER)
      if (n === -ERRNO.EAGAIN) return events
      if (n === -ERRNO.ENOBUFS) {
        while (read(this.fd, bufferAddress, BUFFER) > 0);
        return undefined
      }
      must(n, 'read', 'netlink')
      for (const message of this.messages(n)) {
        const event = this.readEvent(message)
        if (event !== undefined) events.push(event)
      }
    }
  }

  private readEvent(message: Message): NetEvent | undefined {
    const { type, at } = message
    switch (type) {
      case RTM.NEWLINK:
      case RTM.DELLINK:
        // Bridges and IPv6 tell of their side of an interface by the same messages.
        if (bytes[at] !== 0) return undefined
        return { kind: 'link', link: this.readLink(message), gone: type === RTM.DELLINK }
      case RTM.NEWADDR:
      case RTM.DELADDR:
        return { kind: 'address', index: view.getUint32(at + 4, true) }
      case RTM.NEWQDISC:
      case RTM.DELQDISC:
      case RTM.NEWTFILTER:
      case RTM.DELTFILTER:
        return { kind: 'filter', index: view.getInt32(at + 4, true) }
    }
    return undefined
  }

  // struct ifinfomsg: family u8, type u16 at 2, index at 4, flags at 8.
  private readLink({ at, end }: Message): Link {
    const flags = view.getUint32(at + 8, true)
    const type = view.getUint16(at + 2, true)
    const name = this.attribute(at + 16, end, IFLA.IFNAME) ?? new Uint8Array()
    const mac = this.attribute(at + 16, end, IFLA.ADDRESS) ?? new Uint8Array()
    const mtu = this.find(at + 16, end, IFLA.MTU)
    const stats = this.find(at + 16, end, IFLA.STATS64)
    return {
      index: view.getInt32(at + 4, true),
      name: decoder.decode(name).replace(/\0.*$/, ''),
      type: TYPE[type] ?? `${type}`,
      up: (flags & IFF_UP) !== 0,
      running: (flags & IFF_RUNNING) !== 0,
      mtu: mtu < 0 ? 0 : view.getUint32(mtu + 4, true),
      mac: Array.from(mac, byte => byte.toString(16).padStart(2, '0')).join(':'),
      txDropped: stats < 0 ? 0 : Number(view.getBigUint64(stats + 4 + TX_DROPPED, true)),
    }
  }
}

/** Opens a socket in a namespace that may go, or be about to come, at any moment; undefined while there is none. */
export function rtnetlinkIn(namespace: string, groups = 0): Rtnetlink | undefined {
  try {
    return new Rtnetlink(namespace, groups)
  } catch (error) {
    // A name may be there before or after what it names.
    if (error instanceof DetourError && namespace !== '') return undefined
    throw error
  }
}

const familyOf = (address: Uint8Array) => (address.length === 4 ? AF.INET : AF.INET6)
