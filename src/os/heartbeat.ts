// The heartbeat of one attachment: a BPF map entry that the workers map into memory and the interception program reads.
//
//   0  u32 limit       units after which a worker counts as dead
//   4  u32 enabled     0: every packet passes as if nothing were attached
//   8  u32 fail mode   what happens to packets while a worker is dead: 0 they pass (open), 1 they are dropped (closed)
//  16  u64 redirected  packets given to the workers
//  24  u64 passed      packets that passed because a worker was dead
//  32  u64 dropped     packets dropped because a worker was dead
//  40  u32 beats       one word a worker: when it last ran, in units of 2^20 ns of CLOCK_MONOTONIC, modulo 2^32
// 104  u64 spoofed     packets dropped because the pod sent them from a MAC address that is not its own
// 112  u64 spoofed     packets dropped because the pod sent them from an IP address that is not its own
// 120  u64 link        packets that passed because they belong to the link or are not IP
// 128  u64 inspected   packets that passed because they come from a protected pod
//
// A 32-bit store cannot tear, so the program never reads half a heartbeat. Each worker has a word of its own and the program
// believes the oldest: flows of a worker that hangs are stuck, whatever the others do.

import { HEARTBEAT_SHIFT, monotonicUnits, msToUnits } from './clock.ts'
import { type Mapping, mmap, munmap, PROT } from './libc.ts'
import { MAX_WORKERS } from './limits.ts'

/** Offsets of the fields in the map's value. */
export const HEARTBEAT = {
  LIMIT: 0,
  ENABLED: 4,
  FAIL: 8,
  REDIRECTED: 16,
  PASSED: 24,
  DROPPED: 32,
  BEATS: 40,
  SPOOFED_MAC: 40 + 4 * MAX_WORKERS,
  SPOOFED_ADDRESS: 48 + 4 * MAX_WORKERS,
  LINK: 56 + 4 * MAX_WORKERS,
  INSPECTED: 64 + 4 * MAX_WORKERS,
} as const

/** Bytes of the map's value. */
export const HEARTBEAT_SIZE = HEARTBEAT.INSPECTED + 8

/** What to do with packets while a worker is dead or hangs. */
export type FailMode = 'open' | 'closed'

/** Packets as the interception program counted them; a super-packet is one. */
export interface FailCounters {
  redirected: number
  passed: number
  dropped: number
  spoofedMac: number
  spoofedAddress: number
  link: number
  inspected: number
}

/** A mapped heartbeat; `close` before the thread ends. */
export class Heartbeat {
  private readonly words: Int32Array
  private readonly beats: Int32Array
  private readonly counters: BigUint64Array
  private readonly mapping: Mapping

  /** Maps the heartbeat map of so many workers by its file descriptor, which may be closed afterwards. Throws DetourError. */
  constructor(mapFd: number, workers = 1) {
    this.mapping = mmap(mapFd, 4096, PROT.READ | PROT.WRITE, 0, `heartbeat map ${mapFd}`)
    this.words = new Int32Array(this.mapping.memory, 0, 4)
    this.beats = new Int32Array(this.mapping.memory, HEARTBEAT.BEATS, workers)
    this.counters = new BigUint64Array(this.mapping.memory, 0, HEARTBEAT_SIZE / 8)
  }

  /** Says that a worker is alive; allocates nothing. */
  beat(worker = 0): void {
    this.beats[worker] = monotonicUnits()
  }

  /** Sets limit and fail mode, beats for all workers, and turns interception on. */
  enable(failMode: FailMode, limitMs: number): void {
    this.govern(failMode, limitMs)
    this.beats.fill(monotonicUnits())
    this.words[HEARTBEAT.ENABLED / 4] = 1
  }

  /** Sets limit and fail mode. */
  govern(failMode: FailMode, limitMs: number): void {
    this.words[HEARTBEAT.LIMIT / 4] = msToUnits(limitMs)
    this.words[HEARTBEAT.FAIL / 4] = failMode === 'closed' ? 1 : 0
  }

  /** Lets every packet pass from now on, as if nothing were attached. */
  disable(): void {
    this.words[HEARTBEAT.ENABLED / 4] = 0
  }

  /** How long ago the worker that is silent for longest beat, ms; exact to 2. */
  ageMs(): number {
    const now = monotonicUnits()
    return Math.max(...Array.from(this.beats, beat => (now - beat) | 0)) * (2 ** HEARTBEAT_SHIFT / 1e6)
  }

  /** Reads the program's counters. */
  read(): FailCounters {
    const count = (at: number) => Number(this.counters[at / 8])
    return {
      redirected: count(HEARTBEAT.REDIRECTED),
      passed: count(HEARTBEAT.PASSED),
      dropped: count(HEARTBEAT.DROPPED),
      spoofedMac: count(HEARTBEAT.SPOOFED_MAC),
      spoofedAddress: count(HEARTBEAT.SPOOFED_ADDRESS),
      link: count(HEARTBEAT.LINK),
      inspected: count(HEARTBEAT.INSPECTED),
    }
  }

  /** Unmaps. NB: nothing of this object may be used afterwards. */
  close(): void {
    munmap(this.mapping)
  }
}
