// What both threads of bench/ring know: the words they share, and a queue as one writes it first.

import type { Batch } from '../src/memory/batch.ts'

export type Way = 'port' | 'queue' | 'polling' | 'sleeping'

export interface ConsumerData {
  way: Way
  /** The ring's or the queue's. */
  memory: SharedArrayBuffer
  /** The words named in CONTROL. */
  shared: SharedArrayBuffer
}

/** A cache line each: what the consumer has received so far, its sum, and what wakes it. */
export const CONTROL = { RECEIVED: 0, SUM: 16, WAKE: 32, WORDS: 48 } as const

export const CAPACITY = 1 << 15

const HEAD = 0
const TAIL = 1
const SLOTS = 2

/** A bounded queue that waits by Atomics.wait on either side: both indices beside each other, one shared write a frame, a notification a batch. */
export class WaitingQueue {
  private readonly words: Int32Array

  constructor(memory: SharedArrayBuffer) {
    this.words = new Int32Array(memory)
  }

  static memory(): SharedArrayBuffer {
    return new SharedArrayBuffer((SLOTS + CAPACITY) * 4)
  }

  /** Producer: appends the whole batch, waits while there is no room. */
  push(batch: Batch): void {
    const { words } = this
    for (let i = 0; i < batch.length; i++) {
      const tail = Atomics.load(words, TAIL)
      let head = Atomics.load(words, HEAD)
      while (tail - head >= CAPACITY) {
        Atomics.notify(words, TAIL)
        Atomics.wait(words, HEAD, head)
        head = Atomics.load(words, HEAD)
      }
      words[SLOTS + (tail % CAPACITY)] = batch.frames[i]
      Atomics.store(words, TAIL, tail + 1)
    }
    Atomics.notify(words, TAIL)
  }

  /** Consumer: fills the batch with what is there, waits while that is nothing. */
  pop(batch: Batch): void {
    const { words } = this
    let head = Atomics.load(words, HEAD)
    while (Atomics.load(words, TAIL) === head) Atomics.wait(words, TAIL, head)
    while (batch.room > 0 && Atomics.load(words, TAIL) !== head) {
      batch.push(words[SLOTS + (head % CAPACITY)])
      Atomics.store(words, HEAD, ++head)
    }
    Atomics.notify(words, HEAD)
  }
}
