// Records of a fixed size from one thread to another: what a worker tells people without ever waiting for them.
//
//   word 0      records ever written (mod 2^32)    by the writer only
//   word 16     records ever read (mod 2^32)       by the reader only
//   word 32     records lost for want of room      by the writer only
//   word 48 ... the slots
//
// Nothing blocks: where there is no room, the record is lost and counted.

const WRITTEN = 0
const READ = 16
const LOST = 32
const SLOTS = 48

/** What either side needs; passes through workerData and messages. */
export interface RecordsHandle {
  memory: SharedArrayBuffer
  /** How many records it holds, a power of two. */
  capacity: number
  /** Words of a record, an even number. */
  words: number
}

export function createRecords(capacity: number, words: number): RecordsHandle {
  if (capacity < 2 || (capacity & (capacity - 1)) !== 0 || words % 2 !== 0)
    throw new RangeError(`${capacity} records of ${words} words: a power of two, of an even number of words`)
  return { memory: new SharedArrayBuffer((SLOTS + capacity * words) * 4), capacity, words }
}

/** The writing thread's end. A record is filled in place: `take` a slot, write at it, `submit` it. */
export class RecordWriter {
  /** All slots, as words, doubles and bytes; `take` says where in the words. */
  readonly words: Int32Array
  readonly doubles: Float64Array
  readonly bytes: Uint8Array
  private readonly size: number
  private readonly mask: number
  private written: number

  constructor({ memory, capacity, words }: RecordsHandle) {
    this.words = new Int32Array(memory)
    this.doubles = new Float64Array(memory)
    this.bytes = new Uint8Array(memory)
    this.size = words
    this.mask = capacity - 1
    this.written = this.words[WRITTEN]
  }

  /** The first word of the next slot, or -1, counted, where the reader is too far behind. */
  take(): number {
    const { words, mask } = this
    if (((this.written - Atomics.load(words, READ)) | 0) > mask) {
      Atomics.add(words, LOST, 1)
      return -1
    }
    return SLOTS + (this.written & mask) * this.size
  }

  /** Hands over the slot that was taken last. */
  submit(): void {
    this.written = (this.written + 1) | 0
    Atomics.store(this.words, WRITTEN, this.written)
  }
}

/** The reading thread's end. */
export class RecordReader {
  private readonly words: Int32Array
  private readonly size: number
  private readonly mask: number

  constructor({ memory, capacity, words }: RecordsHandle) {
    this.words = new Int32Array(memory)
    this.size = words
    this.mask = capacity - 1
  }

  /** Records that wait. */
  get waiting(): number {
    return (Atomics.load(this.words, WRITTEN) - this.words[READ]) | 0
  }

  /** Records that were lost since the start. */
  get lost(): number {
    return Atomics.load(this.words, LOST)
  }

  /** Takes the oldest record, as a copy that is the caller's; undefined when none waits. */
  next(): Int32Array | undefined {
    const { words, size, mask } = this
    if (this.waiting === 0) return undefined
    const read = words[READ]
    const at = SLOTS + (read & mask) * size
    const record = words.slice(at, at + size)
    Atomics.store(words, READ, (read + 1) | 0)
    return record
  }
}
