// The loop of a forwarding worker. One breath: every device that has something is received from and its frames run to
// completion; then, when it is time, the tick; then a look at what has become readable, asleep only when nothing moved.

import type { Device } from '../device/device.ts'
import { Batch } from '../memory/batch.ts'
import { Epoll } from '../os/epoll.ts'
import { addressOf, read } from '../os/libc.ts'
import { BusyPoll, type PollingOptions } from './busy-poll.ts'

/** A device and what is done with its frames. */
export interface Leg {
  readonly device: Device
  /** Takes every frame of the batch and empties it. */
  run(batch: Batch): void
  /** False while the frames would have nowhere to go; then the device is left alone. */
  ready?(): boolean
  /** When the device next has something although no descriptor says so, ms of performance.now(). */
  due?(): number
}

/** Breaths with traffic between two looks at the devices that had none. */
const GLANCE = 16

/** Key of the descriptor that wakes the loop; those of legs are their places. */
const WAKE = -1

const NEVER: PollingOptions = { mode: 'never', maxMicroseconds: 0 }

export class Loop {
  /** A leg keeps its place, and a leg to come takes that of one that is gone. */
  private readonly legs: (Leg | undefined)[] = []
  /** By place: whether the device may have something. */
  private readonly hot: boolean[] = []
  private readonly tick: (now: number) => boolean
  private tickMs: number
  private busyPoll: BusyPoll
  private readonly epoll = new Epoll()
  private wakeFd = -1
  private readonly wakes = new BigInt64Array(1)
  private woken = false
  /** Looks at the descriptors, asleep or not; a system call each. */
  looks = 0

  /** `tick` runs every `tickMs` at the latest, gets performance.now() and ends the loop by returning false. Sleeps at once unless told otherwise. */
  constructor(tick: (now: number) => boolean, tickMs: number, polling: PollingOptions = NEVER) {
    this.tick = tick
    this.tickMs = tickMs
    this.busyPoll = new BusyPoll(polling)
  }

  /** Ticks and sleeps so from the next tick on. */
  pace(tickMs: number, polling: PollingOptions): void {
    this.tickMs = tickMs
    this.busyPoll = new BusyPoll(polling)
  }

  /** Has the tick run at once whenever this eventfd was written to; the caller closes it. */
  wakeBy(fd: number): void {
    this.wakeFd = fd
    this.epoll.add(fd, WAKE)
  }

  add(leg: Leg): void {
    const { legs, epoll } = this
    let place = legs.indexOf(undefined)
    if (place < 0) place = legs.length
    if (leg.device.fd >= 0) epoll.add(leg.device.fd, place)
    legs[place] = leg
    this.hot[place] = true
  }

  /** Leaves the device alone from now on, in the middle of a breath too; to be called before it is closed. */
  remove(device: Device): void {
    const place = this.legs.findIndex(leg => leg?.device === device)
    if (place < 0) return
    if (device.fd >= 0) this.epoll.delete(device.fd)
    this.legs[place] = undefined
    this.hot[place] = false
  }

  /** Takes what a leg's device has until there is nothing more: for what others left before the loop ended. */
  drain(leg: Leg): void {
    const batch = new Batch()
    while (leg.device.receive(batch) > 0) leg.run(batch)
  }

  /** Runs until the tick says no; once. */
  run(): void {
    try {
      this.breathe()
    } finally {
      this.epoll.close()
    }
  }

  private breathe(): void {
    const { legs, hot } = this
    const batch = new Batch()
    let nextTick = 0
    let breaths = 0
    for (;;) {
      let moved = 0
      let blocked = false
      for (let i = 0; i < legs.length; i++) {
        const leg = legs[i]
        if (!hot[i] || leg === undefined) continue
        if (leg.ready !== undefined && !leg.ready()) {
          blocked = true
          continue
        }
        const n = leg.device.receive(batch)
        if (n > 0) {
          moved += n
          leg.run(batch)
          if (leg.device.drained === true) hot[i] = false
        } else if (leg.device.held !== undefined && leg.device.held > 0) blocked = true
        else if (leg.device.fd >= 0) hot[i] = false
      }
      const now = performance.now()
      if (now >= nextTick || this.woken) {
        this.woken = false
        if (!this.tick(now)) return
        nextTick = now + this.tickMs
        for (let i = 0; i < legs.length; i++) if (legs[i]?.device.wanting === true) hot[i] = true
      }
      if (moved > 0) {
        this.busyPoll.moved(now)
        if (++breaths % GLANCE === 0) this.look(0)
      } else if (blocked) {
        this.look(this.patience(now, Math.min(nextTick, now + 1)))
        // What blocks may be freed by frames that come home, which no descriptor announces.
        hot.fill(true)
      } else this.look(this.busyPoll.stays(now) ? 0 : this.patience(now, nextTick))
    }
  }

  /** How long to sleep, in whole ms, with `latest` at the end of it. */
  private patience(now: number, latest: number): number {
    let until = latest
    for (const leg of this.legs) {
      if (leg?.due !== undefined && leg.ready?.() !== false) until = Math.min(until, leg.due())
    }
    return until <= now ? 0 : Math.ceil(until - now)
  }

  /** Looks at every device and notes those that have something. */
  private look(timeoutMs: number): void {
    const { epoll, hot, legs } = this
    this.looks++
    const ready = epoll.wait(timeoutMs)
    for (let i = 0; i < ready; i++) {
      const place = epoll.key(i)
      if (place === WAKE) {
        read(this.wakeFd, addressOf(this.wakes), 8)
        this.woken = true
      } else if (epoll.readable(i)) hot[place] = true
      // NB: an error without data lasts (the interface is gone) and would keep the loop awake.
      else epoll.delete(legs[place]?.device.fd ?? -1)
    }
  }
}
