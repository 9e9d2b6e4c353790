// AF_XDP sockets over the small frames of a pool, and the programs that feed them (linux/if_xdp.h, Documentation/networking/af_xdp.rst).
//
// A socket has four rings in memory shared with the kernel: fill and completion carry frames that go to the kernel to be received
// into and come back from it sent, rx and tx carry packets. The pool's small frames are the UMEM, a frame a chunk, so a packet
// received on one interface leaves by another where it lies. Sockets are opened here, by whoever may; the rings belong to the
// thread that builds device/xdp on the handle.
//
// A socket that only transmits needs no program and changes nothing of its interface.
//
// NB: XDP on one end of a veth turns off segmentation offloads at the other (veth_xdp_set), and what a local process sends
// through a veth arrives in XDP with its checksum not complete and nothing that says so, unless the sending end has
// `tx-checksumming off`. Only a veth of our own should be received from.

import { DetourError } from '../errors.ts'
import { attachXdp, createSocketMap, loadXdp, updateMap, type XdpAttach } from './bpf.ts'
import {
  AF,
  addressOf,
  bind,
  close,
  ERRNO,
  getsockopt,
  interfaceIndex,
  type Mapping,
  mmap,
  munmap,
  must,
  PROT,
  SOCK,
  setsockopt,
  socket,
  systemError,
} from './libc.ts'
import { inNamespace, ip } from './netns.ts'

const SOL_XDP = 283
const OPTION = {
  OFFSETS: 1,
  RX_RING: 2,
  TX_RING: 3,
  UMEM: 4,
  FILL_RING: 5,
  COMPLETION_RING: 6,
  STATISTICS: 7,
  OPTIONS: 8,
  TX_BUDGET: 9,
} as const
/** Page offsets by which mmap(2) tells the rings apart. */
const PAGE_OFFSET = { rx: 0, tx: 0x8000_0000, fill: 0x1_0000_0000, completion: 0x1_8000_0000 } as const
const BIND = { SHARED_UMEM: 1, COPY: 2, ZERO_COPY: 4, NEED_WAKEUP: 8 } as const
const UMEM_TX_SW_CSUM = 2
const UMEM_TX_METADATA_LEN = 4
const IS_ZERO_COPY = 1
/** What the kernel keeps free in front of a received packet, besides what the UMEM asks for. */
const PACKET_HEADROOM = 256

/** Bytes of `struct xsk_tx_metadata`, which lies right in front of a packet that has one. */
export const TX_METADATA = 24

export type XdpMode = 'copy' | 'zero-copy' | 'auto'

/** The part of shared memory that the kernel works on: what a pool of memory/live.ts offers. */
export interface UmemArea {
  memory: SharedArrayBuffer
  /** Offset of the first chunk; at a page's start. */
  base: number
  /** Chunks, and bytes a chunk. */
  chunks: number
  chunkSize: number
  /** Bytes in front of a received packet, 256 or more. */
  headroom: number
}

export interface XdpOptions {
  /** Name or path of the network namespace; '' is the current one. */
  namespace: string
  interface: string
  /** 0 by default. */
  queue?: number
  /** False: transmit only, and the socket needs no program. */
  receive: boolean
  /** Entries of each ring, a power of two; 2,048 by default. */
  ringSize?: number
  /** 'auto' takes zero-copy where the driver has it and packets are received, else copy. */
  mode?: XdpMode
  /** An open socket of this process whose UMEM is used; without it the area is registered anew. */
  share?: XdpHandle
  /** The kernel completes checksums in memory, for an interface that cannot wherever they are; else the interface does. */
  softwareChecksums?: boolean
}

/** An open AF_XDP socket: plain data that passes through workerData (a descriptor belongs to the process). */
export interface XdpHandle {
  /** Interface and queue: `eth1:0`. */
  name: string
  /** The device closes it. */
  fd: number
  queue: number
  receive: boolean
  ringSize: number
  zeroCopy: boolean
  /** True when the kernel takes metadata with a packet to transmit (6.8) and completes its checksum; then TX_METADATA bytes in front of every packet are its own. */
  metadata: boolean
}

const BUSY_TRIES = 40
const BUSY_MS = 10
const never = new Int32Array(new SharedArrayBuffer(4))

/** Opens an AF_XDP socket on a queue of an interface. Throws DetourError and leaves nothing behind. */
export function openXdp(area: UmemArea, options: XdpOptions): XdpHandle {
  const { namespace, interface: name, mode = 'auto', receive, share } = options
  if (mode === 'zero-copy' && share?.zeroCopy === false)
    throw new DetourError('bad-config', `AF_XDP ${name}: a UMEM of a copying socket cannot serve a zero-copy one`)
  const first = mode === 'zero-copy' || (mode === 'auto' && receive && share?.zeroCopy !== false)
  return inNamespace(namespace, () => {
    const index = interfaceIndex(name)
    if (index === 0)
      throw new DetourError('not-found', `interface ${name} does not exist in ${namespace || 'this namespace'}`)
    let opened = open(area, options, index, first)
    if (typeof opened === 'number' && first && mode === 'auto') opened = open(area, options, index, false)
    // The kernel lets go of a queue a moment after its socket is closed (xp_release_deferred).
    for (let tries = 0; opened === -ERRNO.EBUSY && tries < BUSY_TRIES; tries++) {
      Atomics.wait(never, 0, 0, BUSY_MS)
      opened = open(area, options, index, first && mode === 'zero-copy')
    }
    if (typeof opened === 'number') throw bindError(name, options, opened)
    return opened
  })
}

// The socket, or -errno of its bind.
function open(area: UmemArea, options: XdpOptions, index: number, zeroCopy: boolean): XdpHandle | number {
  const { interface: interfaceName, queue = 0, receive, ringSize = 2048, share, softwareChecksums = false } = options
  const name = `${interfaceName}:${queue}`
  const set = (option: number, value: number | ArrayBufferView, label: string) =>
    must(setsockopt(fd, SOL_XDP, option, value), label, name)
  const fd = must(socket(AF.XDP, SOCK.RAW, 0), 'socket AF_XDP', name)
  try {
    const metadata = share?.metadata ?? register(fd, area, softwareChecksums, name)
    // The kernel wants both rings of the UMEM, although nothing is received into the one of a transmitting socket.
    set(OPTION.FILL_RING, receive ? ringSize : 1, 'XDP_UMEM_FILL_RING')
    set(OPTION.COMPLETION_RING, ringSize, 'XDP_UMEM_COMPLETION_RING')
    set(OPTION.TX_RING, ringSize, 'XDP_TX_RING')
    if (receive) set(OPTION.RX_RING, ringSize, 'XDP_RX_RING')
    // How much one sendto(2) sends, where that can be set; the default is 32.
    setsockopt(fd, SOL_XDP, OPTION.TX_BUDGET, ringSize)

    const flags = share === undefined ? (zeroCopy ? BIND.ZERO_COPY : BIND.COPY) | BIND.NEED_WAKEUP : BIND.SHARED_UMEM
    const address = Uint32Array.of(AF.XDP | (flags << 16), index, queue, share?.fd ?? 0)
    const bound = bind(fd, address)
    if (bound < 0) {
      close(fd)
      return bound
    }
    const got = new Uint32Array(1)
    must(getsockopt(fd, SOL_XDP, OPTION.OPTIONS, got), 'XDP_OPTIONS', name)
    return { name, fd, queue, receive, ringSize, zeroCopy: (got[0] & IS_ZERO_COPY) !== 0, metadata }
  } catch (error) {
    close(fd)
    throw error
  }
}

// Registers the area as a UMEM and says whether the kernel takes metadata with packets.
function register(fd: number, area: UmemArea, softwareChecksums: boolean, name: string): boolean {
  const { memory, base, chunks, chunkSize, headroom } = area
  const request = Buffer.alloc(32)
  request.writeBigUInt64LE(BigInt(addressOf(new Uint8Array(memory, base, chunks * chunkSize))))
  request.writeBigUInt64LE(BigInt(chunks * chunkSize), 8)
  request.writeUInt32LE(chunkSize, 16)
  request.writeUInt32LE(headroom - PACKET_HEADROOM, 20)
  request.writeUInt32LE(UMEM_TX_METADATA_LEN | (softwareChecksums ? UMEM_TX_SW_CSUM : 0), 24)
  request.writeUInt32LE(TX_METADATA, 28)
  if (setsockopt(fd, SOL_XDP, OPTION.UMEM, request) >= 0) return true
  request.writeUInt32LE(0, 24)
  request.writeUInt32LE(0, 28)
  const result = setsockopt(fd, SOL_XDP, OPTION.UMEM, request)
  if (result === -ERRNO.ENOBUFS)
    throw new DetourError(
      'permission',
      `AF_XDP ${name}: ${chunks * chunkSize} bytes of UMEM are over the limit of locked memory: grant CAP_IPC_LOCK or raise RLIMIT_MEMLOCK`,
    )
  must(result, 'XDP_UMEM_REG', name)
  return false
}

function bindError(name: string, { queue = 0, mode }: XdpOptions, result: number): DetourError {
  const what = `AF_XDP ${name} queue ${queue}`
  if (result === -ERRNO.EBUSY) return new DetourError('system', `${what}: another AF_XDP socket has this queue`)
  if (result === -ERRNO.EINVAL)
    return new DetourError('bad-config', `${what}: the interface has no such queue (ethtool -l ${name} shows them)`)
  if (result === -ERRNO.EOPNOTSUPP)
    return new DetourError('unsupported', `${what}: the driver has no ${mode === 'zero-copy' ? 'zero-copy' : 'AF_XDP'}`)
  if (result === -ERRNO.ENETDOWN) return new DetourError('system', `${what}: the interface is down`)
  return systemError('bind', what, result)
}

/** One ring as mapped: indices of its words in `words`. */
export interface XdpRing {
  words: Int32Array
  mask: number
  producer: number
  consumer: number
  flags: number
  /** First descriptor; four words each (address, 0, length, options), two (address, 0) of fill and completion. */
  slots: number
  mapping: Mapping
}

/** Bit of a ring's flags: the kernel waits for a system call. */
export const NEED_WAKEUP = 1

/** Maps one ring of a socket into the calling thread; `unmapRing` before the thread ends. Throws DetourError. */
export function mapRing({ fd, name, ringSize }: XdpHandle, which: keyof typeof PAGE_OFFSET): XdpRing {
  const offsets = new BigUint64Array(16)
  must(getsockopt(fd, SOL_XDP, OPTION.OFFSETS, offsets), 'XDP_MMAP_OFFSETS', name)
  const at = ['rx', 'tx', 'fill', 'completion'].indexOf(which) * 4
  const [producer, consumer, slots, flags] = Array.from(offsets.subarray(at, at + 4), Number)
  const size = slots + ringSize * (which === 'rx' || which === 'tx' ? 16 : 8)
  const mapping = mmap(fd, size, PROT.READ | PROT.WRITE, PAGE_OFFSET[which], `AF_XDP ${which} ring of ${name}`)
  return {
    words: new Int32Array(mapping.memory),
    mask: ringSize - 1,
    producer: producer / 4,
    consumer: consumer / 4,
    flags: flags / 4,
    slots: slots / 4,
    mapping,
  }
}

/** Unmaps a ring. NB: nothing of it may be touched afterwards. */
export function unmapRing({ mapping }: XdpRing): void {
  munmap(mapping)
}

/** What the kernel counted of a socket. */
export interface XdpStatistics {
  /** Packets that were larger than a chunk, or of a queue without frames to fill. */
  rxDropped: number
  rxInvalid: number
  txInvalid: number
  rxRingFull: number
  fillRingEmpty: number
  txRingEmpty: number
}

/** Reads what the kernel counted of a socket. */
export function xdpStatistics(fd: number): XdpStatistics {
  const values = new BigUint64Array(6)
  must(getsockopt(fd, SOL_XDP, OPTION.STATISTICS, values), 'XDP_STATISTICS', `socket ${fd}`)
  const [rxDropped, rxInvalid, txInvalid, rxRingFull, fillRingEmpty, txRingEmpty] = Array.from(values, Number)
  return { rxDropped, rxInvalid, txInvalid, rxRingFull, fillRingEmpty, txRingEmpty }
}

export interface XdpProgramOptions {
  namespace: string
  interface: string
  /** 'auto' runs the program in the driver where that is possible, else behind it. */
  attach?: XdpAttach | 'auto'
  /** Sockets by their queues. */
  sockets: readonly XdpHandle[]
}

/** A program on an interface that gives packets to sockets. */
export interface XdpSteering {
  readonly attach: XdpAttach
  /** Takes the program off; so does the end of the process. */
  close(): void
}

/** Puts an XDP program, made of the map of sockets, on an interface that has none. Throws DetourError and leaves nothing behind. */
export function steerToSockets(options: XdpProgramOptions, code: (socketMap: number) => Uint8Array): XdpSteering {
  const { namespace, interface: name, attach = 'auto', sockets } = options
  const opened: number[] = []
  const closeAll = () => {
    for (const fd of opened.splice(0).reverse()) close(fd)
  }
  try {
    const map = createSocketMap('dt_sockets', Math.max(...sockets.map(({ queue }) => queue)) + 1)
    opened.push(map)
    for (const { queue, fd } of sockets)
      updateMap(map, new Uint8Array(Uint32Array.of(queue).buffer), new Uint8Array(Uint32Array.of(fd).buffer))
    const program = loadXdp('dt_to_sockets', code(map))
    opened.push(program)
    return inNamespace(namespace, () => {
      refuseOthers(name)
      const index = interfaceIndex(name)
      let taken: XdpAttach = attach === 'generic' ? 'generic' : 'native'
      let link = attachXdp(program, index, taken)
      if (link < 0 && link !== -ERRNO.EBUSY && attach === 'auto') {
        taken = 'generic'
        link = attachXdp(program, index, taken)
      }
      opened.push(must(link, `BPF_LINK_CREATE xdp ${taken}`, name))
      return { attach: taken, close: closeAll }
    })
  } catch (error) {
    closeAll()
    throw error
  }
}

function refuseOthers(name: string): void {
  const [link] = JSON.parse(ip(['-j', 'link', 'show', 'dev', name])) as {
    xdp?: { prog?: { id: number; name?: string } }
  }[]
  if (link.xdp?.prog === undefined) return
  const { id, name: label = 'without a name' } = link.xdp.prog
  throw new DetourError(
    'unsupported',
    `interface ${name} has an XDP program already (id ${id}, ${label}): it stays; take it off, or use an underlay without XDP`,
  )
}
