// The pool: one SharedArrayBuffer that holds every frame's bytes and metadata.
//
// A frame is a number. `start[frame]` is the position in `bytes` of the packet's first byte (its Ethernet header) and
// `length[frame]` its size; every other position kept in the metadata is a position in `bytes` too, so prepending a
// header moves `start` and touches nothing else.
//
//   |-- headroom --|-- packet ------------------|-- tailroom --|
//   slot           start            start+length               limit
//
// Frames have two sizes: the first `small` of them hold one packet of a usual MTU and lie together from a page's start on, so
// that they can be an AF_XDP UMEM; the rest hold super-packets.
//
// Threads: the memory is shared, a Pool object is not. Each thread builds its own from the handle and owns a range of
// frames from the start; frames travel by ring, and whoever holds a frame number owns the frame.

import type { Batch } from './batch.ts'

/** Offload flags of a frame, as in the virtio-net header (linux/virtio_net.h). */
export const OFFLOAD = {
  /** The checksum from `checksumStart` on is not complete: its field holds the pseudo-header sum. */
  NEEDS_CHECKSUM: 1,
  /** Someone trustworthy verified the packet's checksums. */
  CHECKSUM_VALID: 2,
  /** The outer UDP checksum of a tunnelled super-packet is to be computed per segment. */
  OUTER_CHECKSUM: 8,
} as const

/** Super-packet kinds of a frame (virtio-net gso_type); the tunnel bits are or-ed to the inner kind. */
export const GSO = {
  NONE: 0,
  TCP4: 1,
  TCP6: 4,
  UDP: 5,
  TUNNEL4: 0x20,
  TUNNEL6: 0x40,
  TUNNEL: 0x60,
  ECN: 0x80,
} as const

export interface PoolOptions {
  /** How many frames. */
  frames: number
  /** Bytes a frame, headroom included; rounded up to a multiple of 64. */
  frameSize: number
  /** Bytes in front of a received packet, for the headers to come. */
  headroom: number
  /** How many of the frames, the first ones, are of SMALL_FRAME bytes with SMALL_HEADROOM; none by default. */
  small?: number
}

/** What another thread needs to use the same pool; passes through workerData. */
export interface PoolHandle extends PoolOptions {
  small: number
  memory: SharedArrayBuffer
  /** Offset of the first frame in the memory. */
  base: number
}

/** Room for the largest stack of outer headers: Ethernet, two tags, IPv6, UDP, GENEVE with all options, virtio-net. */
export const HEADROOM = 448

/** A frame size that holds any super-packet: 64 KiB of IP, link headers and headroom. An odd number of cache lines, so that the first bytes of neighbouring frames fall into different cache sets. */
export const SUPER_FRAME = HEADROOM + 65_536 + 64 * 5

/** Bytes of a small frame: an AF_XDP chunk, so a power of two, two a page. */
export const SMALL_FRAME = 2048

/** What AF_XDP keeps free in front of a packet that it receives (XDP_PACKET_HEADROOM), and 128 more: with them Ethernet, IPv6, UDP and GENEVE with a full set of options. What is behind it holds an MTU of 1,650. */
export const SMALL_HEADROOM = 384

const PAGE = 4096

const align = (n: number) => (n + 63) & ~63

/** Words of a flow key; the last two are padding, so that a key never straddles more lines than it must. */
export const KEY_WORDS = 12

// Bytes of metadata a frame: one double, twelve words and the key, three halves, seven bytes; arrays, widest first.
const META = 8 + (12 + KEY_WORDS) * 4 + 3 * 2 + 7

/** Allocates the shared memory of a pool. Throws RangeError when the sizes make no sense. */
export function createPool(options: PoolOptions): PoolHandle {
  const frameSize = align(options.frameSize)
  const { frames, headroom, small = 0 } = options
  // Room to begin at a page's start.
  const slack = small > 0 ? PAGE : 0
  const size = slack + small * SMALL_FRAME + (frames - small) * frameSize
  if (!(frames > 0 && small >= 0 && small <= frames) || size > 0x7fff_0000)
    throw new RangeError(
      `a pool of ${frames} frames, ${small} of them small, the rest of ${frameSize} bytes, is empty or over 2 GiB`,
    )
  if (!(headroom >= 0 && headroom < frameSize)) throw new RangeError(`headroom ${headroom} does not fit a frame`)
  const memory = new SharedArrayBuffer(size + align(frames * META))
  return { frames, frameSize, headroom, small, memory, base: 0 }
}

/** A thread's view of the frames, and the list of those it may hand out. */
export class Pool {
  readonly frames: number
  /** Bytes of a large frame. */
  readonly frameSize: number
  readonly headroom: number
  /** How many frames are small: [0, small). */
  readonly small: number
  /** Every frame's bytes; positions in the metadata index into it. */
  readonly bytes: Uint8Array
  /** The same bytes, for unaligned 16- and 32-bit access. */
  readonly view: DataView

  /** Capture time, ms since the epoch (pcap) or since the process started (live). */
  readonly time: Float64Array
  /** Position of the packet's first byte. */
  readonly start: Int32Array
  /** Packet size in bytes. */
  readonly length: Int32Array
  /** Position of the (inner) network header; 0 until classified. */
  readonly network: Int32Array
  /** Position of the (inner) transport header; 0 when there is none to read (a non-first fragment). */
  readonly transport: Int32Array
  /** Position from which a NEEDS_CHECKSUM checksum is summed. */
  readonly checksumStart: Int32Array
  /** Position of the outer UDP header of a tunnelled frame; 0 when not tunnelled. */
  readonly outerTransport: Int32Array
  /** Position behind the headers that every segment of a super-packet repeats. */
  readonly payload: Int32Array
  /** Symmetric hash of the flow key. */
  readonly hash: Int32Array
  /** Row in the flow table; -1 until looked up. */
  readonly flow: Int32Array
  /** A number that whoever feeds the pipeline may use to recognise the packet when it comes back. */
  readonly sequence: Int32Array
  /** Whole seconds of a capture file's timestamp, unsigned as in the file, and the nanoseconds that go with them: exact, where `time` is rounded. */
  readonly seconds: Uint32Array
  readonly nanoseconds: Int32Array
  /** The flow key (flow/key.ts), KEY_WORDS words a frame. */
  readonly key: Int32Array
  /** Offset of the checksum field from `checksumStart`. */
  readonly checksumOffset: Uint16Array
  /** Payload bytes a segment of a super-packet. */
  readonly gsoSize: Uint16Array
  /** Number of the attachment (toward) or tunnel (return) that the frame belongs to. */
  readonly attachment: Uint16Array
  /** OFFLOAD bits. */
  readonly offload: Uint8Array
  /** GSO kind. */
  readonly gso: Uint8Array
  /** Protocol number of the transport header. */
  readonly protocol: Uint8Array
  /** 0 leaving the pod, 1 arriving at it. */
  readonly direction: Uint8Array
  /** 1 when the packet's source is end B of its flow key, so that it travels from B to A. */
  readonly reversed: Uint8Array
  /** Verdict of the decide stage. */
  readonly verdict: Uint8Array
  /** Number of the endpoint that the frame goes to (memory/endpoints.ts); 0 where there is only one. */
  readonly endpoint: Uint8Array

  private readonly base: number
  /** Where frame 0 would begin if all were large. */
  private readonly origin: number
  private readonly stack: Int32Array
  private top = 0
  private readonly smallStack: Int32Array
  private smallTop = 0

  /** Uses the memory of `handle`; hands out the large frames [first, first + count) and the small ones [firstSmall, firstSmall + smallCount), all of them unless told otherwise. */
  constructor(
    handle: PoolHandle,
    first = handle.small,
    count = handle.frames - first,
    firstSmall = 0,
    smallCount = handle.small - firstSmall,
  ) {
    const { frames, frameSize, headroom, small, memory, base } = handle
    this.frames = frames
    this.frameSize = frameSize
    this.headroom = headroom
    this.small = small
    this.base = base
    // NB: 0 × a negative number is -0, and one -0 makes a double of every position that is computed from it.
    this.origin = (base + small * (SMALL_FRAME - frameSize)) | 0
    const size = base + small * SMALL_FRAME + (frames - small) * frameSize
    this.bytes = new Uint8Array(memory, 0, size)
    this.view = new DataView(memory, 0, size)
    let at = size
    const take = (width: number) => {
      const from = at
      at += frames * width
      return from
    }
    this.time = new Float64Array(memory, take(8), frames)
    this.start = new Int32Array(memory, take(4), frames)
    this.length = new Int32Array(memory, take(4), frames)
    this.network = new Int32Array(memory, take(4), frames)
    this.transport = new Int32Array(memory, take(4), frames)
    this.checksumStart = new Int32Array(memory, take(4), frames)
    this.outerTransport = new Int32Array(memory, take(4), frames)
    this.payload = new Int32Array(memory, take(4), frames)
    this.hash = new Int32Array(memory, take(4), frames)
    this.flow = new Int32Array(memory, take(4), frames)
    this.sequence = new Int32Array(memory, take(4), frames)
    this.seconds = new Uint32Array(memory, take(4), frames)
    this.nanoseconds = new Int32Array(memory, take(4), frames)
    this.key = new Int32Array(memory, take(4 * KEY_WORDS), frames * KEY_WORDS)
    this.checksumOffset = new Uint16Array(memory, take(2), frames)
    this.gsoSize = new Uint16Array(memory, take(2), frames)
    this.attachment = new Uint16Array(memory, take(2), frames)
    this.offload = new Uint8Array(memory, take(1), frames)
    this.gso = new Uint8Array(memory, take(1), frames)
    this.protocol = new Uint8Array(memory, take(1), frames)
    this.direction = new Uint8Array(memory, take(1), frames)
    this.reversed = new Uint8Array(memory, take(1), frames)
    this.verdict = new Uint8Array(memory, take(1), frames)
    this.endpoint = new Uint8Array(memory, take(1), frames)
    this.stack = new Int32Array(frames)
    for (let frame = first + count - 1; frame >= first; frame--) this.stack[this.top++] = frame
    this.smallStack = new Int32Array(small)
    for (let frame = firstSmall + smallCount - 1; frame >= firstSmall; frame--) this.smallStack[this.smallTop++] = frame
  }

  /** How many large frames this thread can still hand out. */
  get available(): number {
    return this.top
  }

  /** How many small frames this thread can still hand out. */
  get availableSmall(): number {
    return this.smallTop
  }

  /** Takes a free large frame, empty and with full headroom, or -1 when there is none. The last freed comes first: its lines are still in the cache. */
  alloc(): number {
    if (this.top === 0) return -1
    const frame = this.stack[--this.top]
    this.start[frame] = this.origin + frame * this.frameSize + this.headroom
    this.reset(frame)
    return frame
  }

  /** Takes a free small frame, empty and with SMALL_HEADROOM, or -1 when there is none. */
  allocSmall(): number {
    if (this.smallTop === 0) return -1
    const frame = this.smallStack[--this.smallTop]
    this.start[frame] = this.base + frame * SMALL_FRAME + SMALL_HEADROOM
    this.reset(frame)
    return frame
  }

  /** Makes a frame that came back from elsewhere like one of alloc, but for start and headroom. */
  reset(frame: number): void {
    this.length[frame] = 0
    this.outerTransport[frame] = 0
    this.flow[frame] = -1
    this.offload[frame] = 0
    this.gso[frame] = 0
  }

  /** Gives a frame back; takes the frame. */
  free(frame: number): void {
    if (frame < this.small) this.smallStack[this.smallTop++] = frame
    else this.stack[this.top++] = frame
  }

  /** Gives every frame of a batch back and empties it. */
  freeAll(batch: Batch): void {
    const { frames, length } = batch
    for (let i = 0; i < length; i++) this.free(frames[i])
    batch.length = 0
  }

  /** Position of the slot's first byte. */
  slot(frame: number): number {
    return frame < this.small ? this.base + frame * SMALL_FRAME : this.origin + frame * this.frameSize
  }

  /** Bytes between the slot's first byte and the packet. */
  headroomOf(frame: number): number {
    return this.start[frame] - this.slot(frame)
  }

  /** Position behind the slot's last byte. */
  limit(frame: number): number {
    return this.slot(frame) + (frame < this.small ? SMALL_FRAME : this.frameSize)
  }

  /** Copies `from`'s metadata to `to`, but for start and length. */
  copyMetadata(from: number, to: number): void {
    this.time[to] = this.time[from]
    this.hash[to] = this.hash[from]
    this.flow[to] = this.flow[from]
    this.sequence[to] = this.sequence[from]
    this.seconds[to] = this.seconds[from]
    this.nanoseconds[to] = this.nanoseconds[from]
    this.attachment[to] = this.attachment[from]
    this.protocol[to] = this.protocol[from]
    this.direction[to] = this.direction[from]
    this.reversed[to] = this.reversed[from]
    this.verdict[to] = this.verdict[from]
    this.endpoint[to] = this.endpoint[from]
  }
}
