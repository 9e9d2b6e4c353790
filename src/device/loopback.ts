// Loopback: two connected devices over one shared pool, in two threads or in one. A frame's number travels, its bytes
// stay where they are.
//
//   left ── packets ──► right        left ◄── packets ── right
//   left ◄── empties ── right        left ── empties ──► right
//
// A thread that drops more than it sends would end up with the other's frames. So each end counts what it owes: frames
// received, less those transmitted and those given back, large and small ones; what it owes goes home empty by a ring of its own.
//
// Waking: an end that receives nothing has announced that it may sleep, and the next packet writes to its eventfd.

import { DROP } from '../drop.ts'
import { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { createRing, Ring } from '../memory/ring.ts'
import { addressOf, close, eventfd, must, read, write } from '../os/libc.ts'
import type { Device } from './device.ts'

/** One end, for the thread that uses it; passes through workerData. */
export interface LoopbackHandle {
  name: string
  lossless: boolean
  receive: SharedArrayBuffer
  transmit: SharedArrayBuffer
  /** Frames that come home empty. */
  home: SharedArrayBuffer
  /** Frames to give back to the other end, empty. */
  back: SharedArrayBuffer
  /** Event file descriptors: the one that wakes this end, and the other's. */
  fd: number
  peerFd: number
}

export interface LoopbackOptions {
  name?: string
  /** Frames of the pool, all threads together. */
  frames: number
  /** Packets on their way in each direction, a power of two; 1024 when not given. */
  capacity?: number
  /** Hold what does not fit instead of dropping it; see `room`. */
  lossless?: boolean
}

export interface Loopback {
  left: LoopbackHandle
  right: LoopbackHandle
  /** Closes the event descriptors, when neither thread uses them any more. */
  close(): void
}

/** Creates both ends. Throws DetourError. */
export function createLoopback(options: LoopbackOptions): Loopback {
  const { name = 'loopback', frames, capacity = 1024, lossless = false } = options
  let empties = 2
  while (empties < frames) empties *= 2
  const there = createRing(capacity)
  const here = createRing(capacity)
  const thereEmpty = createRing(empties)
  const hereEmpty = createRing(empties)
  const leftFd = must(eventfd(), 'eventfd', name)
  const rightFd = must(eventfd(), 'eventfd', name)
  const common = { name: `loopback:${name}`, lossless }
  return {
    left: { ...common, receive: here, transmit: there, home: hereEmpty, back: thereEmpty, fd: leftFd, peerFd: rightFd },
    right: {
      ...common,
      receive: there,
      transmit: here,
      home: thereEmpty,
      back: hereEmpty,
      fd: rightFd,
      peerFd: leftFd,
    },
    close() {
      close(leftFd)
      close(rightFd)
    },
  }
}

/** Empty frames are given back when so many are owed, or when no packet came. */
const GIVE_BACK = 64

/** One end of a loopback. */
export class LoopbackDevice implements Device {
  readonly name: string
  readonly capabilities = 0
  readonly fd: number
  readonly exhausted = false
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly lossless: boolean
  private readonly peerFd: number
  private readonly receiving: Ring
  private readonly sending: Ring
  private readonly home: Ring
  private readonly back: Ring
  /** Packets that found no room, oldest first, from `sent` on. */
  private readonly waiting: Batch
  private sent = 0
  private readonly empties = new Batch()
  private owed = 0
  private owedSmall = 0
  private mayBeAwoken = false
  /** What an eventfd is written from, then what it is read into. */
  private readonly event = new BigUint64Array([1n, 0n])
  private readonly eventAt = addressOf(this.event)

  constructor(pool: Pool, counters: StageCounters, handle: LoopbackHandle) {
    this.pool = pool
    this.counters = counters
    this.name = handle.name
    this.lossless = handle.lossless
    this.fd = handle.fd
    this.peerFd = handle.peerFd
    this.receiving = new Ring(handle.receive, 'consumer')
    this.sending = new Ring(handle.transmit, 'producer')
    this.home = new Ring(handle.home, 'consumer')
    this.back = new Ring(handle.back, 'producer')
    this.waiting = new Batch(handle.lossless ? pool.frames : 0)
  }

  /** Packets that transmit would pass on at once. A loop that may lose nothing receives elsewhere only as much as there is room for. */
  get room(): number {
    return Math.max(0, this.sending.capacity - this.sending.used - this.held)
  }

  /** Packets that a lossless end holds until there is room; it owns them. NB: nothing wakes it when there is room again. */
  get held(): number {
    return this.waiting.length - this.sent
  }

  /** Frames of this end are at the other. */
  get wanting(): boolean {
    return this.owed < 0 || this.owedSmall < 0
  }

  /** As of any device. Also sends what waited, and empty frames change hands; so a loop calls it now and then even if nothing came. */
  receive(batch: Batch): number {
    const { receiving } = this
    if (this.mayBeAwoken) this.settle()
    if (this.held > 0) this.sendWaiting()
    let n = receiving.pop(batch)
    if (n === 0 && !receiving.sleep()) n = receiving.pop(batch)
    this.mayBeAwoken ||= n === 0
    if (n > 0) this.counters.received(n, this.bytes(batch, batch.length - n))
    this.owe(batch, batch.length - n, batch.length, 1)
    this.balance(n === 0 ? 1 : GIVE_BACK)
    return n
  }

  transmit(batch: Batch): void {
    const { waiting, pool } = this
    if (this.held > 0) this.sendWaiting()
    const from = this.held > 0 ? 0 : this.send(batch, 0)
    const rest = batch.length - from
    // NB: packets may go one way only; then nothing comes that `receive` would be called for.
    this.takeHome()
    if (this.lossless) {
      if (waiting.room < rest) this.compact()
      for (let i = from; i < batch.length; i++) waiting.push(batch.frames[i])
    } else if (rest > 0) {
      for (let i = from; i < batch.length; i++) pool.free(batch.frames[i])
      this.counters.dropped(DROP.RING_FULL, rest)
    }
    batch.length = 0
  }

  /** Drops what waits. NB: packets in the rings belong to neither end; close when both are idle. */
  close(): void {
    this.counters.dropped(DROP.STOPPED, this.held)
    this.compact()
    this.pool.freeAll(this.waiting)
  }

  /** Sends the batch from a position on, as far as there is room, and returns how many went. */
  private send(batch: Batch, from: number): number {
    const { sending } = this
    // NB: lengths are read before the frames go; afterwards they are the other thread's.
    const bytes = this.bytes(batch, from)
    const n = sending.push(batch, from)
    if (n === 0) return 0
    this.counters.sent(n, bytes - this.bytes(batch, from + n))
    this.owe(batch, from, from + n, -1)
    if (sending.wake()) {
      this.counters.called()
      write(this.peerFd, this.eventAt, 8)
    }
    return n
  }

  private sendWaiting(): void {
    this.sent += this.send(this.waiting, this.sent)
    if (this.held === 0) this.waiting.length = this.sent = 0
  }

  /** Moves what waits to the front of its list. */
  private compact(): void {
    const { waiting, sent } = this
    waiting.frames.copyWithin(0, sent, waiting.length)
    waiting.length -= sent
    this.sent = 0
  }

  /** Takes the event that the other end wrote, or is about to write, for the sleep that was announced. */
  private settle(): void {
    this.counters.called()
    this.mayBeAwoken = read(this.fd, this.eventAt + 8, 8) < 0
  }

  /** Takes home what came back empty, and gives back what is owed when it is `enough`. */
  private balance(enough: number): void {
    const { pool, empties, back } = this
    this.takeHome()
    if (Math.max(this.owed, this.owedSmall) < enough) return
    const large = Math.min(this.owed, pool.available, empties.room)
    for (let i = 0; i < large; i++) empties.push(pool.alloc())
    const small = Math.min(this.owedSmall, pool.availableSmall, empties.room)
    for (let i = 0; i < small; i++) empties.push(pool.allocSmall())
    const given = back.push(empties)
    this.owe(empties, 0, given, -1)
    for (let i = given; i < empties.length; i++) pool.free(empties.frames[i])
    empties.length = 0
  }

  private takeHome(): void {
    const { pool, empties } = this
    this.home.pop(empties)
    this.owe(empties, 0, empties.length, 1)
    pool.freeAll(empties)
  }

  /** Notes that the frames [from, to) of a batch came from the other end (`sign` 1) or went there (-1). */
  private owe(batch: Batch, from: number, to: number, sign: number): void {
    const { small } = this.pool
    let smalls = 0
    for (let i = from; i < to; i++) if (batch.frames[i] < small) smalls++
    this.owedSmall += sign * smalls
    this.owed += sign * (to - from - smalls)
  }

  private bytes(batch: Batch, from: number): number {
    const { length } = this.pool
    let bytes = 0
    for (let i = from; i < batch.length; i++) bytes += length[batch.frames[i]]
    return bytes
  }
}
