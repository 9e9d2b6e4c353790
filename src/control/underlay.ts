// The node's end of the tunnel: a TAP whose frames go to the uplink and to which the tunnel's packets come from there, both
// by BPF, so that super-packets stay whole. The kernel's routes and neighbours find the way; nothing else on the uplink changes.
//
//   worker ─► TAP ─ toUplink ─► uplink ─► endpoint            endpoint ─► uplink ─ fromUplink ─► TAP ─► worker
//
// The rung is the best that the kernel accepts, or the one asked for:
//
//   tunnel-gso   tunnelled super-packets go out and come in whole (kernel 6.17)
//   uso          outer UDP super-packets (kernel 6.2)
//   plain        one packet a frame
//   udp-socket   no TAP: device/udp carries the tunnel over a socket
//   af-xdp       no TAP: AF_XDP sockets on the uplink itself, past the kernel (xdp-underlay); only when asked for

import { closeSync } from 'node:fs'
import ipaddr from 'ipaddr.js'
import { capabilityNames } from '../device/device.ts'
import type { DeviceSpec } from '../device/open.ts'
import { DetourError } from '../errors.ts'
import type { Steering } from '../flow/steering.ts'
import type { PoolHandle } from '../memory/pool.ts'
import { BPFFS, loadFilter } from '../os/bpf.ts'
import type { AttachRung } from '../os/classifier.ts'
import { checksumsAnywhere } from '../os/ethtool.ts'
import { AF, bind, close, must, SOCK, setsockopt, socket } from '../os/libc.ts'
import { deleteLink, type LinkInfo, linkInfo } from '../os/link.ts'
import { inNamespace, namespaceId, queueDrops } from '../os/netns.ts'
import { OFFLOADS, openTap, type Tap, type TapOptions } from '../os/tun.ts'
import type { XdpHandle } from '../os/xdp.ts'
import { steerTunnels } from './steering.ts'
import { type UplinkParts, UplinkPrograms } from './uplink.ts'
import { openXdpUnderlay } from './xdp-underlay.ts'

/** How super-packets cross the underlay, best first. */
export const OFFLOAD_RUNGS = ['tunnel-gso', 'uso', 'plain', 'udp-socket', 'af-xdp'] as const
export type OffloadRung = (typeof OFFLOAD_RUNGS)[number]

// What the TAP is asked for on each rung.
const WANTED = {
  'tunnel-gso': OFFLOADS.CHECKSUM | OFFLOADS.TSO | OFFLOADS.USO | OFFLOADS.TUNNEL | OFFLOADS.TUNNEL_CHECKSUM,
  uso: OFFLOADS.CHECKSUM | OFFLOADS.USO,
  plain: OFFLOADS.CHECKSUM,
} as const

const ETHERNET = 14
const IPV4 = 20
const IPV6 = 40
const UDP = 8

const SOL_SOCKET = 1
const SO_RCVBUF = 8
const SOL_IPV6 = 41
const IPV6_V6ONLY = 26
const SOL_UDP = 17
const UDP_GRO = 104

export interface UnderlayOptions {
  /** Name or path of the node's network namespace; '' is the current one. */
  namespace: string
  /** The uplink. */
  interface: string
  /** The tunnel's own address on the uplink, IPv4 or IPv6. */
  localAddress: string
  /** The tunnel's UDP port. */
  port: number
  /** That of a second tunnel; not on 'udp-socket'. */
  otherPort?: number
  /** Takes what comes to the tunnel's port whatever the address; not on 'udp-socket'. */
  anyAddress?: boolean
  rung?: OffloadRung | 'auto'
  attach?: AttachRung | 'auto'
  /** What the tunnel is, and how its packets are shared out among workers, a queue of the TAP each; one worker by default. */
  steering?: Steering & { kind: 'geneve' | 'vxlan' }
  /** A pool of memory/live.ts with small frames, which 'af-xdp' wants. */
  pool?: PoolHandle
}

/** An open underlay; numbers and strings pass to a worker, `close` stays here. */
export interface Underlay {
  /** On 'udp-socket' there is no TAP: open device/udp on the address and port instead. */
  readonly offloadRung: OffloadRung
  /** What people see: `tap:dt-4-4789`, `udp:4789`, `xdp:eth1`. */
  readonly device: string
  /** What it does for packets, for people. */
  readonly features: string[]
  /** Undefined without a TAP. */
  readonly attachRung: AttachRung | undefined
  /** Empty without one. */
  readonly tapName: string
  /** One a worker; each belongs to whoever builds the TapDevice, which closes it. None without a TAP. */
  readonly fds: readonly number[]
  readonly headerSize: number
  /** On 'af-xdp', one a worker; each belongs to whoever builds the XdpDevice, which closes it. */
  readonly sockets: readonly XdpHandle[]
  /** CAPABILITY bits of TAP and uplink together. */
  readonly capabilities: number
  /** Largest outer IP packet; on 'af-xdp' also when the uplink's MTU grows. */
  readonly uplinkMtu: number
  /** The uplink's MAC address. */
  readonly localMac: string
  /** Index of the interface that programs or sockets are on: the uplink's, unless that was made anew since. 0 on 'udp-socket'. */
  uplinkIndex(): number
  /** Whether the programs are where they were put; always without a TAP. A process each with clsact. */
  isAttached(): boolean
  /** Puts the programs on the uplink of now, in place of those that are left; what workers have stays as it is. Throws DetourError. */
  reattach(): void
  /** Packets that the workers' queues had no room for; undefined where nobody counts them. */
  missed(): number | undefined
  /** All that another process needs to go on with it; undefined where no other can. */
  parts(): UnderlayParts | undefined
  /** Goes on with programs that the process put on the uplink that has it open; takes the descriptors. */
  follow(programs: UplinkParts): void
  /** Leaves it to another process that has its parts; without one it ends, though not as clean as by `close`. */
  leave(): void
  /** Takes the underlay away and leaves the uplink as it was found. */
  close(): void
}

/** What an underlay consists of; plain data and descriptors. */
export interface UnderlayParts {
  offloadRung: OffloadRung
  uplinkMtu: number
  localMac: string
  /** On 'udp-socket' there is none. */
  tap?: TapParts
}

interface TapParts {
  tapName: string
  tapFds: number[]
  headerSize: number
  capabilities: number
  /** Of the uplink, as they were. */
  checksums: number
  attachRung: AttachRung
  /** Of the sockets that hold the ports. */
  guardFds: number[]
  programs: UplinkParts
}

/** Opens the underlay, replacing what a dead process left on this uplink and port. Throws DetourError and leaves nothing behind. */
export function openUnderlay(options: UnderlayOptions): Underlay {
  const { namespace, interface: uplink, port, otherPort, rung = 'auto' } = options
  const link = linkInfo(uplink, namespace)
  const address = localBytes(options, link)
  if (rung === 'udp-socket') return withoutTap(link, options)
  if (link.type !== 'ether') {
    if (rung === 'auto') return withoutTap(link, options)
    throw new DetourError(
      'unsupported',
      `uplink ${uplink} is of type ${link.type}: only rung udp-socket does without Ethernet`,
    )
  }

  const guardPorts = () => inNamespace(namespace, () => guards(address, [port, otherPort], options.localAddress))
  if (rung === 'af-xdp') {
    return openXdpUnderlay(options, link, address, guardPorts)
  }
  const tapName = `dt-${address.length === 4 ? 4 : 6}-${port}`
  const programs = programsOf(options, address, tapName)
  let tap: Tap | undefined
  let guardFds: number[] = []
  const undo = () => {
    programs.close()
    deleteLink(tapName, namespace)
    guardFds.forEach(close)
  }
  programs.close()
  try {
    guardFds = guardPorts()
    deleteLink(tapName, namespace)
    const wanted = { name: tapName, namespace, offloads: WANTED[rung === 'auto' ? 'tunnel-gso' : rung] }
    tap = openUnderlayTap(wanted, ETHERNET + (address.length === 4 ? IPV4 : IPV6) + UDP, options.steering)
    const offloadRung = rungOf(tap.offloads)
    if (rung !== 'auto' && offloadRung !== rung)
      throw new DetourError(
        'unsupported',
        `underlay rung ${rung}: this kernel's TAP does no better than ${offloadRung}`,
      )

    const attachRung = programs.attach()
    const checksums = checksumsOf(options)
    return ofTap(
      options,
      {
        offloadRung,
        uplinkMtu: link.mtu,
        localMac: link.mac,
        tap: {
          ...{ tapName, tapFds: tap.fds, headerSize: tap.headerSize, attachRung, guardFds, checksums },
          capabilities: (tap.offloads & ~OFFLOADS.CHECKSUM) | checksums,
          programs: programs.parts(),
        },
      },
      programs,
    )
  } catch (error) {
    undo()
    for (const fd of tap?.fds ?? []) closeSync(fd)
    if (rung === 'auto' && error instanceof DetourError && error.code === 'unsupported')
      return withoutTap(link, options)
    throw error
  }
}

/** Goes on with an underlay of another process; takes the descriptors. Throws DetourError. */
export function inheritUnderlay(options: UnderlayOptions, parts: UnderlayParts): Underlay {
  const { interface: uplink, namespace } = options
  const link = linkInfo(uplink, namespace)
  if (parts.tap === undefined) return withoutTap(link, options)
  const programs = programsOf(options, localBytes(options, link), parts.tap.tapName)
  programs.inherit(parts.tap.programs)
  return ofTap(options, { ...parts, tap: parts.tap }, programs)
}

function programsOf(options: UnderlayOptions, address: Uint8Array, tapName: string): UplinkPrograms {
  const { namespace, interface: uplink, port, otherPort, anyAddress, attach: rung = 'auto' } = options
  const place = `${uplink.replaceAll('.', ':')}_${port}_${namespaceId(namespace)}`
  const directory = `${BPFFS}/detour/underlay${address.length === 4 ? 4 : 6}_${place}`
  return new UplinkPrograms({ namespace, uplink, tapName, address, port, otherPort, anyAddress, rung, directory })
}

// NB: an uplink that knows only TCP and UDP over IP would put an inner checksum in the wrong place.
const checksumsOf = ({ interface: uplink, namespace }: UnderlayOptions) =>
  checksumsAnywhere(uplink, namespace) ? OFFLOADS.CHECKSUM : 0

function ofTap(options: UnderlayOptions, parts: UnderlayParts & { tap: TapParts }, programs: UplinkPrograms): Underlay {
  const { interface: uplink, namespace } = options
  const { tap, offloadRung, uplinkMtu, localMac } = parts
  const { tapName, capabilities, checksums, guardFds, attachRung, headerSize } = tap
  return {
    offloadRung,
    device: `tap:${tapName}`,
    features: capabilityNames(capabilities),
    attachRung,
    tapName,
    fds: tap.tapFds,
    headerSize,
    sockets: [],
    capabilities,
    uplinkMtu,
    localMac,
    uplinkIndex: () => programs.index,
    isAttached: () => programs.isAttached(),
    reattach() {
      if (checksumsOf(options) < checksums)
        throw new DetourError('unsupported', `uplink ${uplink} does less than the last of its name: restart the node`)
      programs.attach()
    },
    missed: () => queueDrops(tapName, namespace),
    parts: () => ({ ...parts, tap: { ...tap, programs: programs.parts() } }),
    follow: uplink => programs.inherit(uplink),
    leave() {
      programs.leave()
      guardFds.forEach(close)
    },
    close() {
      programs.close()
      deleteLink(tapName, namespace)
      guardFds.forEach(close)
    },
  }
}

/** An underlay that is not of sockets of UDP, as each worker opens it. */
export function underlayDevices(underlay: Underlay): DeviceSpec['device'][] {
  const { tapName: name, fds, headerSize, capabilities, sockets } = underlay
  if (underlay.offloadRung === 'af-xdp') return sockets.map(socket => ({ kind: 'xdp', ...socket }))
  return fds.map(fd => ({ kind: 'tap', name, fd, headerSize, capabilities }))
}

// `tunnel` is where the tunnel's header begins in a frame.
function openUnderlayTap(options: TapOptions, tunnel: number, steering: UnderlayOptions['steering']): Tap {
  if (steering === undefined || steering.workers === 1) return openTap(options)
  const program = loadFilter('dt_steer_tunnel', steerTunnels(steering.kind, tunnel, steering))
  try {
    return openTap({ ...options, queues: steering.workers, steering: program })
  } finally {
    closeSync(program)
  }
}

function withoutTap(link: LinkInfo, { port, otherPort, anyAddress = false }: UnderlayOptions): Underlay {
  if (otherPort !== undefined || anyAddress)
    throw new DetourError(
      'unsupported',
      `uplink ${link.name}: a tunnel with two ports, or from pods' own addresses, needs another rung than udp-socket`,
    )
  return {
    offloadRung: 'udp-socket',
    device: `udp:${port}`,
    features: [],
    attachRung: undefined,
    tapName: '',
    fds: [],
    headerSize: 0,
    sockets: [],
    capabilities: 0,
    uplinkMtu: link.mtu,
    localMac: link.mac,
    uplinkIndex: () => 0,
    isAttached: () => true,
    reattach() {},
    missed: () => undefined,
    parts: () => ({ offloadRung: 'udp-socket', uplinkMtu: link.mtu, localMac: link.mac }),
    follow() {},
    leave() {},
    close() {},
  }
}

function rungOf(offloads: number): OffloadRung {
  if ((offloads & OFFLOADS.TUNNEL) !== 0) return 'tunnel-gso'
  return (offloads & OFFLOADS.USO) !== 0 ? 'uso' : 'plain'
}

function localBytes({ localAddress, interface: uplink }: UnderlayOptions, link: LinkInfo): Uint8Array {
  if (!ipaddr.isValid(localAddress))
    throw new DetourError('bad-config', `local address '${localAddress}': an IPv4 or IPv6 address`)
  const parsed = ipaddr.parse(localAddress)
  if (!link.addresses.some(address => ipaddr.parse(address).toNormalizedString() === parsed.toNormalizedString()))
    throw new DetourError(
      'bad-config',
      `local address ${localAddress} is not on uplink ${uplink}, which has ${link.addresses.join(', ') || 'none'}`,
    )
  return Uint8Array.from(parsed.toByteArray())
}

function guards(address: Uint8Array, ports: (number | undefined)[], text: string): number[] {
  const fds: number[] = []
  try {
    for (const port of ports) if (port !== undefined) fds.push(guardPort(address, port, text))
  } catch (error) {
    fds.forEach(close)
    throw error
  }
  return fds
}

// Holds the tunnel's port: nobody else takes it, and the kernel does not answer "port unreachable" for what the program
// leaves to it. Nobody reads the socket, so its queue is as short as can be. With UDP_GRO the kernel merges a run of
// datagrams that a NIC delivers into one super-packet before the program sees it.
function guardPort(address: Uint8Array, port: number, text: string): number {
  const ipv4 = address.length === 4
  const fd = must(socket(ipv4 ? AF.INET : AF.INET6, SOCK.DGRAM, 0), 'socket', 'udp')
  const sockaddr = Buffer.alloc(ipv4 ? 16 : 28)
  sockaddr.writeUInt16LE(ipv4 ? AF.INET : AF.INET6)
  sockaddr.writeUInt16BE(port, 2)
  sockaddr.set(address, ipv4 ? 4 : 8)
  try {
    if (!ipv4) setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, 1)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 0)
    setsockopt(fd, SOL_UDP, UDP_GRO, 1)
    must(bind(fd, sockaddr), 'bind', `UDP ${text} port ${port}`)
  } catch (error) {
    close(fd)
    throw error
  }
  return fd
}
