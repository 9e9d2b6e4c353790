// The way to the target: UDP sockets of ours, one at the tunnel's port for answers and two to send from, so that an
// answer that goes back to where it was sent from is told from one that goes where it belongs; at a second address of ours,
// if there is one, one of each. No root is needed; with it, wrong checksums and fragments can be sent too.

import { randomInt } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import ipaddr from 'ipaddr.js'
import { DetourError } from '../errors.ts'
import {
  AF,
  addressOf,
  close,
  ERRNO,
  errnoText,
  must,
  POLL,
  poll,
  recvmmsg,
  SOCK,
  sendto,
  setsockopt,
  socket,
} from '../os/libc.ts'
import { openUdp, SOCKADDR, UDP_OPTION, type UdpHandle } from '../os/udp.ts'
import { setU16, u16 } from '../wire/bytes.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import type { Ends } from './probe.ts'

/** What the suite sends through and receives from. */
export interface Channel extends Ends {
  /** The tunnel's port at our address is ours. */
  readonly ownsPort: boolean
  /** Sends an outer IP packet, by a raw socket if need be; why it could not be sent, if so. */
  send(packet: Uint8Array, raw: boolean): string | undefined
  /** The next outer IP packet for one of our ports, or undefined when there is none in time. */
  receive(timeoutMs: number): Promise<Uint8Array | undefined>
  close(): void
}

// linux/in.h, linux/in6.h, asm-generic/socket.h, linux/udp.h
const SO_NO_CHECK = 11
const UDP_NO_CHECK6_TX = 101
const IP_TTL = 2
const IP_RECVTTL = 12
const IPV6_RECVHOPLIMIT = 51
const IPV6_HOPLIMIT = 52
const IPPROTO_RAW = 255

const O = UDP_OPTION
const MESSAGE = 64
const IOVEC = 16
const NAME = 32
const CONTROL = 128
const CMSG = 16
const LARGEST = 65_535
/** Ports of VXLAN's sources (RFC 7348 section 5), which do for GENEVE's as well. */
const SOURCES = [49_152, 65_535] as const
const TRIES = 50
/** Longest stretch in ms without a look at timers and signals. */
const SLICE = 20

export interface ChannelOptions {
  remote: string
  port: number
  /** Of the other tunnel, where there are two. */
  otherPort?: number
  /** Our address; when not given the one that the kernel would send from. */
  local?: string
  /** Our second address; when not given there is none but on the loopback interface. */
  secondLocal?: string
}

/** Opens the sockets. Throws DetourError when there is no way to the target. */
export function openChannel({ remote, port, otherPort, local, secondLocal }: ChannelOptions): Channel {
  const neighbours = remote.startsWith('127.') ? LOOPBACKS.filter(each => ![remote, local].includes(each)) : []
  const address = local ?? neighbours.shift() ?? ''
  const second = secondLocal ?? neighbours.shift()
  const open = (from: string | undefined, number: number) =>
    openUdp({ address: from ?? '', port: number, remote, offload: false })
  const tunnels: UdpHandle[] = []
  const sources: UdpHandle[] = []
  const ports = otherPort === undefined ? [port] : [port, otherPort]
  const openTunnels = (from: string) => {
    const before = tunnels.length
    for (const each of ports) {
      const tunnel = openFree(() => open(from, each))
      if (tunnel !== undefined) tunnels.push(tunnel)
    }
    return tunnels.length - before === ports.length
  }
  try {
    const ownsPort = openTunnels(address)
    while (sources.length < 2) sources.push(openAny(number => open(tunnels.length === 0 ? local : address, number)))
    if (ownsPort && second !== undefined) {
      if (openTunnels(second)) sources.push(openAny(number => open(second, number)))
      else if (secondLocal !== undefined)
        throw new DetourError('usage', `second local address ${second}: the tunnel's port is taken there; give another`)
    }
    return new Sockets({ remote, port, otherPort }, ownsPort, tunnels, sources)
  } catch (error) {
    for (const { fd } of [...sources, ...tunnels]) close(fd)
    throw error
  }
}

/** Addresses of this machine beside the target's, so that both ends can have the tunnel's port. */
const LOOPBACKS = ['127.0.0.2', '127.0.0.3', '127.0.0.4', '127.0.0.5']

/** Opens a socket, but not where the port is taken: the target has our address then, or every one. */
function openFree(open: () => UdpHandle): UdpHandle | undefined {
  try {
    return open()
  } catch (error) {
    if (error instanceof DetourError && error.message.includes('EADDRINUSE')) return undefined
    throw error
  }
}

function openAny(open: (port: number) => UdpHandle): UdpHandle {
  for (let i = 1; ; i++)
    try {
      return open(randomInt(SOURCES[0], SOURCES[1] + 1))
    } catch (error) {
      if (i === TRIES) throw error
    }
}

class Sockets implements Channel {
  readonly local: Uint8Array
  readonly remote: Uint8Array
  readonly port: number
  readonly otherPort?: number
  readonly sources: readonly [number, number]
  readonly second?: { local: Uint8Array; source: number }
  readonly ownsPort: boolean
  private readonly handles: UdpHandle[]
  private readonly to: Uint8Array
  private readonly pollfds: Int32Array
  private readonly order = new Uint8Array(MESSAGE + IOVEC + NAME + CONTROL + LARGEST)
  private raw = 0

  constructor(
    { remote, port, otherPort }: ChannelOptions,
    ownsPort: boolean,
    tunnels: UdpHandle[],
    sources: UdpHandle[],
  ) {
    const [first, other, second] = sources
    const four = first.family === 4
    this.handles = [...sources, ...tunnels]
    this.ownsPort = ownsPort
    this.local = Uint8Array.from(first.address)
    this.remote = Uint8Array.from(ipaddr.process(remote).toByteArray())
    this.port = port
    this.otherPort = otherPort
    this.sources = [first.port, other.port]
    this.second = second && { local: Uint8Array.from(second.address), source: second.port }
    this.to = new Uint8Array(four ? SOCKADDR.IPV4 : SOCKADDR.IPV6)
    this.to[0] = four ? AF.INET : AF.INET6
    this.to.set(this.remote, four ? 4 : 8)
    this.pollfds = Int32Array.from(this.handles.flatMap(({ fd }) => [fd, POLL.IN]))
    for (const { fd } of this.handles) {
      const [level, option] = four ? [O.SOL_IP, IP_RECVTTL] : [O.SOL_IPV6, IPV6_RECVHOPLIMIT]
      must(setsockopt(fd, level, option, 1), 'setsockopt', 'TTL of what is received')
    }
  }

  send(packet: Uint8Array, raw: boolean): string | undefined {
    if (raw) return this.sendRaw(packet)
    const four = packet[0] >> 4 === 4
    const at = four ? ipv4.HEADER : ipv6.HEADER
    const port = udp.sourcePort(packet, at)
    const from = four ? packet.subarray(ipv4.SOURCE) : packet.subarray(ipv6.SOURCE)
    const isFrom = (handle: UdpHandle) => handle.port === port && handle.address.every((byte, i) => byte === from[i])
    const { fd } = this.handles.find(isFrom) as UdpHandle
    const tos = four ? ipv4.tos(packet, 0) : ipv6.trafficClass(packet, 0)
    const none = udp.checksum(packet, at) === 0 ? 1 : 0
    if (four) setsockopt(fd, O.SOL_IP, O.IP_TOS, tos)
    else setsockopt(fd, O.SOL_IPV6, O.IPV6_TCLASS, tos)
    if (four) setsockopt(fd, O.SOL_SOCKET, SO_NO_CHECK, none)
    else setsockopt(fd, O.SOL_UDP, UDP_NO_CHECK6_TX, none)
    setU16(this.to, 2, udp.destinationPort(packet, at))
    return this.sendTo(fd, packet.subarray(at + udp.HEADER))
  }

  private sendRaw(packet: Uint8Array): string | undefined {
    if (this.raw === 0) this.raw = socket(this.local.length === 4 ? AF.INET : AF.INET6, SOCK.RAW, IPPROTO_RAW)
    if (this.raw < 0) return 'a raw socket is needed: root or CAP_NET_RAW'
    // NB: what is a port to UDP is a protocol number to a raw socket.
    setU16(this.to, 2, 0)
    return this.sendTo(this.raw, packet)
  }

  private sendTo(fd: number, bytes: Uint8Array): string | undefined {
    const copy = Uint8Array.from(bytes)
    const { to } = this
    const sent = sendto(fd, addressOf(copy), copy.length, 0, addressOf(to), to.length)
    if (sent >= 0) return undefined
    if (sent === -ERRNO.EMSGSIZE) return `the way to the target carries no packet of ${copy.length} bytes`
    return `cannot be sent: ${errnoText(-sent)}`
  }

  async receive(timeoutMs: number): Promise<Uint8Array | undefined> {
    const { pollfds, handles } = this
    const end = performance.now() + timeoutMs
    for (;;) {
      const left = end - performance.now()
      const ready = poll(addressOf(pollfds), handles.length, Math.max(0, Math.min(SLICE, Math.ceil(left))))
      for (let i = 0; ready > 0 && i < handles.length; i++) {
        const packet = pollfds[2 * i + 1] >>> 16 === 0 ? undefined : this.take(handles[i])
        if (packet !== undefined) return packet
      }
      if (left <= 0) return undefined
      await setImmediate()
    }
  }

  /** Takes a datagram and gives it back the headers that the kernel took off. */
  private take({ fd, port, address }: UdpHandle): Uint8Array | undefined {
    const { order: b, remote } = this
    const v = new DataView(b.buffer)
    const pointer = (at: number, to: number) => v.setBigUint64(at, BigInt(addressOf(b) + to), true)
    const [iovec, name, control, data] = [MESSAGE, MESSAGE + IOVEC, MESSAGE + IOVEC + NAME, b.length - LARGEST]
    b.fill(0, 0, data)
    pointer(0, name)
    v.setUint32(8, NAME, true)
    pointer(16, iovec)
    v.setUint32(24, 1, true)
    pointer(32, control)
    v.setUint32(40, CONTROL, true)
    pointer(iovec, data)
    v.setUint32(iovec + 8, LARGEST, true)
    if (recvmmsg(fd, addressOf(b), 1, 0) <= 0) return undefined
    const { ttl, tos } = fields(v, control, control + v.getUint32(40, true))
    const bytes = v.getUint32(56, true)
    const four = address.length === 4
    const header = four ? ipv4.HEADER : ipv6.HEADER
    const packet = new Uint8Array(header + udp.HEADER + bytes)
    packet.set(b.subarray(data, data + bytes), header + udp.HEADER)
    udp.write(packet, header, u16(b, name + 2), port, udp.HEADER + bytes, 0)
    const from = name + (four ? 4 : 8)
    if (four) ipv4.write(packet, 0, header, tos, packet.length, 0, 0, ttl, ipv4.PROTOCOL.UDP, 0, 0)
    else ipv6.write(packet, 0, tos, 0, packet.length - header, ipv4.PROTOCOL.UDP, ttl)
    packet.set(b.subarray(from, from + remote.length), four ? ipv4.SOURCE : ipv6.SOURCE)
    packet.set(address, four ? ipv4.DESTINATION : ipv6.DESTINATION)
    if (four) ipv4.updateChecksum(packet, 0)
    udp.updateChecksum(packet, 0, header)
    return packet
  }

  close(): void {
    for (const { fd } of this.handles) close(fd)
    if (this.raw > 0) close(this.raw)
  }
}

/** TTL and traffic class from control messages. */
function fields(v: DataView, from: number, end: number): { ttl: number; tos: number } {
  let [ttl, tos] = [0, 0]
  for (let at = from; at + CMSG < end; ) {
    const size = v.getUint32(at, true)
    if (size < CMSG || at + size > end) break
    const level = v.getInt32(at + 8, true)
    const type = v.getInt32(at + 12, true)
    const data = at + CMSG
    if (level === O.SOL_IP && type === O.IP_TOS) tos = v.getUint8(data)
    else if (level === O.SOL_IPV6 && type === O.IPV6_TCLASS) tos = v.getUint8(data)
    else if ((level === O.SOL_IP && type === IP_TTL) || (level === O.SOL_IPV6 && type === IPV6_HOPLIMIT))
      ttl = v.getUint8(data)
    at += (size + 7) & ~7
  }
  return { ttl, tos }
}
