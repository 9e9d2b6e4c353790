// UDP sockets for carrying tunnels: bound, non-blocking, never fragmenting, with everything on that tells a packet's
// outer header (linux/in.h, linux/in6.h, linux/udp.h).

import { isIP } from 'node:net'
import ipaddr from 'ipaddr.js'
import koffi from 'koffi'
import { DetourError } from '../errors.ts'
import { AF, bind, close, connect, must, SOCK, setsockopt, socket } from './libc.ts'

/** Levels and options of setsockopt(2) and of control messages. */
export const UDP_OPTION = {
  SOL_SOCKET: 1,
  SO_SNDBUF: 7,
  SO_RCVBUF: 8,
  SO_REUSEPORT: 15,
  SO_SNDBUFFORCE: 32,
  SO_RCVBUFFORCE: 33,
  SO_ATTACH_REUSEPORT_EBPF: 52,
  SOL_IP: 0,
  IP_TOS: 1,
  IP_PKTINFO: 8,
  IP_MTU_DISCOVER: 10,
  IP_RECVTOS: 13,
  SOL_IPV6: 41,
  IPV6_MTU_DISCOVER: 23,
  IPV6_V6ONLY: 26,
  IPV6_RECVPKTINFO: 49,
  IPV6_PKTINFO: 50,
  IPV6_RECVTCLASS: 66,
  IPV6_TCLASS: 67,
  SOL_UDP: 17,
  UDP_SEGMENT: 103,
  UDP_GRO: 104,
} as const

const O = UDP_OPTION
/** IP_PMTUDISC_DO: DF set, what is too big comes back as EMSGSIZE. */
const DO_NOT_FRAGMENT = 2
/** Bytes of socket buffer asked for: a batch of super-packets each way. */
const BUFFER = 8 << 20

/** Bytes of sockaddr_in and sockaddr_in6. */
export const SOCKADDR = { IPV4: 16, IPV6: 28 } as const

const getsockname = koffi.load(null).func('int getsockname(int, void *, void *)')

export interface UdpOptions {
  /** Local address, as text; empty, `0.0.0.0` or `::` for all. */
  address: string
  /** 0 lets the kernel choose. */
  port: number
  /** Where packets will go: for all addresses it becomes the one that the kernel would send from. */
  remote?: string
  /** UDP_SEGMENT and UDP_GRO; true when not given, off where the kernel lacks them. */
  offload?: boolean
  /** UDP_GRO; as `offload` when not given. */
  gro?: boolean
  /** Other sockets of this user may have the same address and port. */
  shared?: boolean
}

/** An open socket: plain data that passes through workerData (a descriptor belongs to the process). */
export interface UdpHandle {
  fd: number
  family: 4 | 6
  /** Bound address, 4 or 16 bytes, all zero for all. */
  address: number[]
  port: number
  segment: boolean
  gro: boolean
}

/** Opens and binds in the calling thread's network namespace. Throws DetourError. */
export function openUdp(options: UdpOptions): UdpHandle {
  const { port, remote, offload = true, gro: wantsGro = offload, shared = false } = options
  const there = remote === undefined ? undefined : parse(remote)
  let address = options.address === '' ? new Array<number>(there?.length ?? 4).fill(0) : parse(options.address)
  const family = address.length === 4 ? 4 : 6
  if (there !== undefined && there.length !== address.length)
    throw new DetourError('bad-config', `${options.address} and ${remote} are of different IP versions`)
  if (there !== undefined && address.every(byte => byte === 0)) address = sourceFor(there, remote as string)
  const name = `UDP socket ${text(address)} port ${port}`
  const fd = must(socket(family === 4 ? AF.INET : AF.INET6, SOCK.DGRAM | SOCK.NONBLOCK, 0), 'socket', name)
  const all = address.every(byte => byte === 0)
  try {
    const set = (level: number, option: number, value: number) => setsockopt(fd, level, option, value)
    if (family === 4) {
      must(set(O.SOL_IP, O.IP_MTU_DISCOVER, DO_NOT_FRAGMENT), 'IP_MTU_DISCOVER', name)
      must(set(O.SOL_IP, O.IP_RECVTOS, 1), 'IP_RECVTOS', name)
      if (all) must(set(O.SOL_IP, O.IP_PKTINFO, 1), 'IP_PKTINFO', name)
    } else {
      must(set(O.SOL_IPV6, O.IPV6_V6ONLY, 1), 'IPV6_V6ONLY', name)
      must(set(O.SOL_IPV6, O.IPV6_MTU_DISCOVER, DO_NOT_FRAGMENT), 'IPV6_MTU_DISCOVER', name)
      must(set(O.SOL_IPV6, O.IPV6_RECVTCLASS, 1), 'IPV6_RECVTCLASS', name)
      if (all) must(set(O.SOL_IPV6, O.IPV6_RECVPKTINFO, 1), 'IPV6_RECVPKTINFO', name)
    }
    // Without CAP_NET_ADMIN the kernel's own limits (net.core.rmem_max, wmem_max) hold.
    if (set(O.SOL_SOCKET, O.SO_RCVBUFFORCE, BUFFER) < 0) set(O.SOL_SOCKET, O.SO_RCVBUF, BUFFER)
    if (set(O.SOL_SOCKET, O.SO_SNDBUFFORCE, BUFFER) < 0) set(O.SOL_SOCKET, O.SO_SNDBUF, BUFFER)
    const segment = offload && set(O.SOL_UDP, O.UDP_SEGMENT, 0) >= 0
    const gro = wantsGro && set(O.SOL_UDP, O.UDP_GRO, 1) >= 0
    if (shared) must(set(O.SOL_SOCKET, O.SO_REUSEPORT, 1), 'SO_REUSEPORT', name)
    must(bind(fd, sockaddr(address, port)), 'bind', name)
    return { fd, family, address, port: localName(fd, address.length, name).port, segment, gro }
  } catch (error) {
    close(fd)
    throw error
  }
}

/**
 * Opens `count` sockets of one address and port; `steering`, a socket filter that sees UDP payloads, chooses among them for each datagram. Without
 * UDP_GRO, which would put datagrams together that belong to different sockets. Throws DetourError.
 */
export function openUdpGroup(options: UdpOptions, count: number, steering: number): UdpHandle[] {
  const handles: UdpHandle[] = []
  try {
    for (let i = 0; i < count; i++) {
      const port = handles[0]?.port ?? options.port
      handles.push(openUdp({ ...options, port, gro: false, shared: true }))
    }
    const [{ fd, port }] = handles
    must(setsockopt(fd, O.SOL_SOCKET, O.SO_ATTACH_REUSEPORT_EBPF, steering), 'SO_ATTACH_REUSEPORT_EBPF', `port ${port}`)
    return handles
  } catch (error) {
    for (const { fd } of handles) close(fd)
    throw error
  }
}

/** The local address that the kernel would send from. */
function sourceFor(remote: number[], shown: string): number[] {
  const fd = must(socket(remote.length === 4 ? AF.INET : AF.INET6, SOCK.DGRAM, 0), 'socket', shown)
  try {
    must(connect(fd, sockaddr(remote, 9)), 'connect', `UDP to ${shown}`)
    return localName(fd, remote.length, shown).address
  } finally {
    close(fd)
  }
}

function localName(fd: number, addressLength: number, name: string): { address: number[]; port: number } {
  const bytes = new Uint8Array(SOCKADDR.IPV6)
  const length = Uint32Array.of(bytes.length)
  must(getsockname(fd, bytes, length) < 0 ? -koffi.errno() : 0, 'getsockname', name)
  const at = addressLength === 4 ? 4 : 8
  return { address: [...bytes.subarray(at, at + addressLength)], port: (bytes[2] << 8) | bytes[3] }
}

/** A sockaddr_in or sockaddr_in6. */
function sockaddr(address: number[], port: number): Uint8Array {
  const four = address.length === 4
  const bytes = new Uint8Array(four ? SOCKADDR.IPV4 : SOCKADDR.IPV6)
  bytes[0] = four ? AF.INET : AF.INET6
  bytes[2] = port >> 8
  bytes[3] = port
  bytes.set(address, four ? 4 : 8)
  return bytes
}

function parse(address: string): number[] {
  if (isIP(address) !== 0) return ipaddr.process(address).toByteArray()
  throw new DetourError('bad-config', `'${address}' is no IPv4 or IPv6 address`)
}

function text(address: number[]): string {
  return ipaddr.fromByteArray(address).toString()
}
