// Pieces: several threads convert one pcap file, piece by piece, and write what one thread would.
//
// Thread i of n takes the pieces i, i + n, i + 2n and so on. Reading and writing go round in the order of the pieces: a
// thread waits for its turn to read and passes it on as soon as it knows where its piece ends; it works; then it waits for
// its turn to write. So the file is read once, written in order, and nothing but turns is shared.
//
//   word 0     number of the piece that is read next
//   word 1     number of the piece that is written next
//   double 1   position in the file at which the next piece begins
//   double 2   packets before it
//   double 3   1 when there is no piece any more
//
// NB: all threads must run at the same time, and one that dies leaves the others waiting: then end them all.

import { FILE_HEADER } from '../wire/pcap.ts'

const READ = 0
const WRITE = 1

/** Passes through workerData. */
export interface PiecesHandle {
  memory: SharedArrayBuffer
  /** Number of the thread, from 0, and how many there are. */
  thread: number
  threads: number
}

/** What each of the threads that share a pcap file is given. */
export function createPieces(threads: number): PiecesHandle[] {
  const memory = new SharedArrayBuffer(32)
  new Float64Array(memory)[1] = FILE_HEADER
  return Array.from({ length: threads }, (_, thread) => ({ memory, thread, threads }))
}

/** One thread's view; give the same object to its PcapReader and its PcapWriter. */
export class Pieces {
  /** Number of the piece that this thread works on or waits for. */
  private piece: number
  private readonly threads: number
  private readonly turns: Int32Array
  private readonly state: Float64Array

  constructor({ memory, thread, threads }: PiecesHandle) {
    this.piece = thread
    this.threads = threads
    this.turns = new Int32Array(memory, 0, 2)
    this.state = new Float64Array(memory)
  }

  /** True for the thread that writes the beginning of the file. */
  get first(): boolean {
    return this.piece === 0
  }

  /** Where the piece begins, and packets before it: between `awaitRead` and `passRead`. */
  get position(): number {
    return this.state[1]
  }

  get packets(): number {
    return this.state[2]
  }

  /** Waits for the turn to read; false when no piece is left, and then there is nothing to pass on. */
  awaitRead(): boolean {
    this.wait(READ)
    if (this.state[3] === 0) return true
    this.pass(READ)
    return false
  }

  /** Lets the next thread read from `position` on; `last` when there is nothing behind. */
  passRead(position: number, packets: number, last: boolean): void {
    this.state[1] = position
    this.state[2] = packets
    this.state[3] = last ? 1 : 0
    this.pass(READ)
  }

  /** Waits until all pieces before this one are written; may be called often. */
  awaitWrite(): void {
    this.wait(WRITE)
  }

  /** The piece is written: lets the next thread write, and goes to this thread's next piece. */
  passWrite(): void {
    this.wait(WRITE)
    this.pass(WRITE)
    this.piece += this.threads
  }

  private wait(which: number): void {
    const { turns, piece } = this
    for (let turn = Atomics.load(turns, which); turn !== piece; turn = Atomics.load(turns, which))
      Atomics.wait(turns, which, turn)
  }

  private pass(which: number): void {
    Atomics.store(this.turns, which, this.piece + 1)
    Atomics.notify(this.turns, which)
  }
}
