// A ring: single-producer single-consumer queue of frame numbers between two threads.
//
//   word 0          producer: frames ever submitted (mod 2^32)    written by the producer only
//   word 16         consumer: frames ever released (mod 2^32)     written by the consumer only
//   word 32         sleeping: 1 while the consumer waits          written by both
//   word 48 ...     the slots
//
// Control words are a cache line apart. Each side keeps the other's index cached and writes its own once a batch.
// The producer thread may call push and wake, the consumer thread pop and sleep; nobody else anything.

import type { Batch } from './batch.ts'

const PRODUCER = 0
const CONSUMER = 16
const SLEEPING = 32
const SLOTS = 48

/** Allocates a ring for `capacity` frames, a power of two. */
export function createRing(capacity: number): SharedArrayBuffer {
  if (capacity < 2 || (capacity & (capacity - 1)) !== 0)
    throw new RangeError(`ring capacity ${capacity}: a power of two`)
  return new SharedArrayBuffer((SLOTS + capacity) * 4)
}

/** One thread's end of a ring. */
export class Ring {
  private readonly words: Int32Array
  private readonly mask: number
  private mine: number
  private theirs: number

  constructor(memory: SharedArrayBuffer, side: 'producer' | 'consumer') {
    this.words = new Int32Array(memory)
    this.mask = this.words.length - SLOTS - 1
    const producer = Atomics.load(this.words, PRODUCER)
    const consumer = Atomics.load(this.words, CONSUMER)
    this.mine = side === 'producer' ? producer : consumer
    this.theirs = side === 'producer' ? consumer : producer
  }

  get capacity(): number {
    return this.mask + 1
  }

  /** Frames in the ring, as seen from either thread. */
  get used(): number {
    return (Atomics.load(this.words, PRODUCER) - Atomics.load(this.words, CONSUMER)) | 0
  }

  /** Producer: appends frames from `batch[from]` on and returns how many went in; a full ring is 0, not an error. Takes those frames. */
  push(batch: Batch, from = 0): number {
    const { words, mask } = this
    let room = mask + 1 - ((this.mine - this.theirs) | 0)
    const wanted = batch.length - from
    if (room < wanted) {
      this.theirs = Atomics.load(words, CONSUMER)
      room = mask + 1 - ((this.mine - this.theirs) | 0)
    }
    const n = room < wanted ? room : wanted
    if (n <= 0) return 0
    const { frames } = batch
    let at = this.mine
    for (let i = 0; i < n; i++) words[SLOTS + (at++ & mask)] = frames[from + i]
    this.mine = at | 0
    Atomics.store(words, PRODUCER, this.mine)
    return n
  }

  /** Consumer: appends up to `max` frames to the batch, as many as it has room for, and returns how many. Gives those frames. */
  pop(batch: Batch, max = batch.room): number {
    const { words, mask } = this
    const room = batch.room
    const wanted = max < room ? max : room
    let ready = (this.theirs - this.mine) | 0
    if (ready < wanted) {
      this.theirs = Atomics.load(words, PRODUCER)
      ready = (this.theirs - this.mine) | 0
    }
    const n = ready < wanted ? ready : wanted
    if (n <= 0) return 0
    let at = this.mine
    for (let i = 0; i < n; i++) batch.push(words[SLOTS + (at++ & mask)])
    this.mine = at | 0
    Atomics.store(words, CONSUMER, this.mine)
    return n
  }

  /** Consumer: announces sleep; false when frames are there already and sleeping would lose the wake-up. */
  sleep(): boolean {
    Atomics.store(this.words, SLEEPING, 1)
    if (this.used === 0) return true
    Atomics.store(this.words, SLEEPING, 0)
    return false
  }

  /** Producer: true once for each announced sleep; the caller then wakes the consumer. */
  wake(): boolean {
    return Atomics.load(this.words, SLEEPING) === 1 && Atomics.exchange(this.words, SLEEPING, 0) === 1
  }
}
