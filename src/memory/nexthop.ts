// The way to the endpoint as the main thread last found it: path MTU, and the Ethernet addresses of the next hop for devices
// that send past the kernel's neighbours. The main thread writes, workers read.
//
//   word 0  sequence, odd while the rest is being written
//        1  1 while the addresses may be used
//        2  path MTU: the largest outer IP packet in bytes
//      3–5  twelve bytes as they go on the wire: destination, source

const SEQUENCE = 0
const USABLE = 1
const MTU = 2
const ADDRESSES = 3
const WORDS = 6

/** Shared memory of one next hop; passes through workerData. */
export type NextHopHandle = SharedArrayBuffer

/** The writer: main thread only. */
export class NextHop {
  readonly handle: NextHopHandle = new SharedArrayBuffer(WORDS * 4)
  private readonly words = new Int32Array(this.handle)
  private readonly bytes = new Uint8Array(this.handle, ADDRESSES * 4, 12)

  constructor(mtu: number) {
    this.words[MTU] = mtu
  }

  /** Publishes the path MTU and the twelve bytes of destination and source address; without those the kernel must find the way. */
  publish(mtu: number, addresses: Uint8Array | undefined): void {
    const { words, bytes } = this
    const same = addresses === undefined ? words[USABLE] === 0 : words[USABLE] === 1 && equal(bytes, addresses)
    if (same && words[MTU] === mtu) return
    Atomics.add(words, SEQUENCE, 1)
    Atomics.store(words, USABLE, addresses === undefined ? 0 : 1)
    Atomics.store(words, MTU, mtu)
    if (addresses !== undefined) bytes.set(addresses)
    Atomics.add(words, SEQUENCE, 1)
  }
}

/** A reader: one a thread. */
export class NextHopView {
  /** False while the next hop is not known: send by a device whose way the kernel finds. */
  usable = false
  /** The largest outer IP packet in bytes. */
  mtu = 0
  /** Destination and source address, the first twelve bytes of an Ethernet header; to be used while `usable`. */
  readonly addresses: Uint8Array
  private readonly words: Int32Array
  private readonly copy = new Int32Array(3)
  private seen = -1

  constructor(handle: NextHopHandle) {
    this.words = new Int32Array(handle)
    this.addresses = new Uint8Array(this.copy.buffer)
    while (!this.refresh());
  }

  /** Takes over what was published since, and says whether anything was. One load when nothing was; allocates nothing. */
  refresh(): boolean {
    const { words, copy } = this
    const sequence = Atomics.load(words, SEQUENCE)
    if (sequence === this.seen) return false
    const usable = Atomics.load(words, USABLE)
    const mtu = Atomics.load(words, MTU)
    const first = Atomics.load(words, ADDRESSES)
    const second = Atomics.load(words, ADDRESSES + 1)
    const third = Atomics.load(words, ADDRESSES + 2)
    // Caught in the middle of being written: what was known holds until the next look.
    if ((sequence & 1) !== 0 || Atomics.load(words, SEQUENCE) !== sequence) return false
    this.usable = usable === 1
    this.mtu = mtu
    copy[0] = first
    copy[1] = second
    copy[2] = third
    this.seen = sequence
    return true
  }
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.every((byte, at) => byte === b[at])
}
