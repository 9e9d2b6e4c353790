// TAP interfaces: Ethernet frames by read(2) and write(2), each behind a virtio-net header (linux/if_tun.h).

import { closeSync, constants, openSync, writeFileSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import { ERRNO, ioctl, must, systemError } from './libc.ts'
import { setLink } from './link.ts'
import { inNamespace } from './netns.ts'

const TUNSETIFF = 0x400454ca
const TUNSETPERSIST = 0x400454cb
const TUNSETOFFLOAD = 0x400454d0
const TUNSETVNETHDRSZ = 0x400454d8
const TUNSETSTEERINGEBPF = 0x800454e0
const IFF_TAP = 2
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
const IFF_MULTI_QUEUE = 0x0100
const IFNAMSIZ = 16

// The largest MTU a TAP takes: a frame of 64 KiB less 14 bytes of Ethernet.
const TAP_MTU = 65_521

/** Bytes of a virtio-net header: up to num_buffers, or with the tunnel fields too. */
export const VNET_HEADER = { PLAIN: 12, TUNNEL: 24 } as const

/** Offload bits of TUNSETOFFLOAD. */
export const OFFLOADS = {
  CHECKSUM: 1,
  /** TSO4, TSO6 and TSO_ECN. */
  TSO: 0xe,
  /** USO4 and USO6, kernel 6.2; either both or none. */
  USO: 0x60,
  /** Kernel 6.17. */
  TUNNEL: 0x80,
  TUNNEL_CHECKSUM: 0x100,
} as const

/** Every offload a TAP may have. */
export const ALL_OFFLOADS = 0x1ef

// What to try, best first; the kernel refuses the whole word when it does not know one bit.
const LADDER = [0x1ef, 0x0ef, 0x06f, 0x00f, 0x001, 0]

export interface TapOptions {
  /** Interface name, at most 15 characters. */
  name: string
  /** Where the interface is made; the current namespace by default. */
  namespace?: string
  /** One by default; with more the interface is a multi-queue one, even where a queue is closed again. */
  queues?: number
  /** File descriptor of a socket filter that chooses the queue of each packet, counted from 0; the interface keeps it. */
  steering?: number
  /** The interface outlives its file descriptor; `ip link del` ends it. */
  persist?: boolean
  headerSize?: (typeof VNET_HEADER)[keyof typeof VNET_HEADER]
  /** Upper bound of the offloads asked for; all by default. */
  offloads?: number
}

export interface Tap {
  name: string
  /** Of the first queue: non-blocking, close-on-exec. */
  fd: number
  /** Of all queues, in order. */
  fds: number[]
  headerSize: number
  /** What the kernel accepted. */
  offloads: number
}

/** Makes a TAP (or opens an existing one) with the best offloads the kernel accepts. Throws DetourError. */
export function openTap(options: TapOptions): Tap {
  const { name, namespace = '', queues = 1, persist = false, headerSize = VNET_HEADER.TUNNEL, steering } = options
  if (!/^[^\s/:]{1,15}$/.test(name)) throw new DetourError('bad-config', `interface name '${name}': 1 to 15 characters`)
  const fds: number[] = []
  try {
    inNamespace(namespace, () => {
      for (let i = 0; i < queues; i++) fds.push(openTunFile(name, queues > 1))
    })
    const [fd] = fds
    must(ioctl(fd, TUNSETVNETHDRSZ, Int32Array.of(headerSize)), 'TUNSETVNETHDRSZ', name)
    const wanted = (options.offloads ?? ALL_OFFLOADS) & (headerSize === VNET_HEADER.TUNNEL ? ALL_OFFLOADS : 0x6f)
    const offloads = LADDER.map(rung => rung & wanted).find(rung => ioctl(fd, TUNSETOFFLOAD, rung) >= 0)
    if (offloads === undefined) throw systemError('TUNSETOFFLOAD', name, -ERRNO.EINVAL)
    if (steering !== undefined) must(ioctl(fd, TUNSETSTEERINGEBPF, Int32Array.of(steering)), 'TUNSETSTEERINGEBPF', name)
    if (persist) must(ioctl(fd, TUNSETPERSIST, 1), 'TUNSETPERSIST', name)
    return { name, fd, fds, headerSize, offloads }
  } catch (error) {
    for (const fd of fds) closeSync(fd)
    throw error
  }
}

function openTunFile(name: string, multiQueue: boolean): number {
  let fd: number
  try {
    fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK)
  } catch (cause) {
    const denied = (cause as { code?: string }).code === 'EACCES'
    throw new DetourError(
      denied ? 'permission' : 'unsupported',
      '/dev/net/tun cannot be opened: load the tun module, run as root',
      {
        cause,
      },
    )
  }
  const request = Buffer.alloc(40)
  request.write(name)
  request.writeUInt16LE(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multiQueue ? IFF_MULTI_QUEUE : 0), IFNAMSIZ)
  const result = ioctl(fd, TUNSETIFF, request)
  if (result < 0) {
    closeSync(fd)
    throw systemError('TUNSETIFF', name, result)
  }
  return fd
}

/**
 * Bytes of a super-packet, Ethernet header included, from which on the kernel cuts it in software before a TAP that is a
 * tunnel's end: a NIC's receive offload may make 64 KiB, and with a tunnel's headers in front that would not fit an IP
 * packet. 65,535 less GENEVE over IPv6 and the inner Ethernet header, rounded down.
 */
export const LARGEST_SUPER_PACKET = 65_400

/** Makes a TAP that nobody but Detour talks through: no addresses, no neighbour discovery, any size of frame. */
export function quietTap(name: string, namespace: string): void {
  inNamespace(namespace, () => {
    try {
      writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, '1')
    } catch {
      // A kernel without IPv6 has nothing to keep quiet, and a read-only /proc/sys costs only some noise.
    }
  })
  setLink(name, namespace, { mtu: TAP_MTU, gsoMaxSize: LARGEST_SUPER_PACKET, up: true })
}
