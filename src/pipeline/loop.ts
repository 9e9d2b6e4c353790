// The loop of a forwarding worker. One breath: every device that has something is received from and its frames run to
// completion; then, when it is time, the tick; then a look at what has become readable, asleep only when nothing moved.

import type { Device } from '../device/device.ts'
import { Batch } from '../memory/batch.ts'
import { addressOf, POLL, poll } from '../os/libc.ts'

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

/** Bytes of a struct pollfd: fd, events, revents (poll(2)). */
const POLLFD = 8

export class Loop {
  private readonly legs: Leg[] = []
  private readonly tick: (now: number) => boolean
  private readonly tickMs: number
  private hot = new Uint8Array(0)
  private poll = new DataView(new ArrayBuffer(0))
  private pollAddress = 0

  /** `tick` runs every `tickMs` at the latest, gets performance.now() and ends the loop by returning false. */
  constructor(tick: (now: number) => boolean, tickMs: number) {
    this.tick = tick
    this.tickMs = tickMs
  }

  add(leg: Leg): void {
    this.legs.push(leg)
    this.rebuild()
  }

  remove(device: Device): void {
    const at = this.legs.findIndex(leg => leg.device === device)
    if (at >= 0) this.legs.splice(at, 1)
    this.rebuild()
  }

  /** Runs until the tick says no. */
  run(): void {
    const batch = new Batch()
    let nextTick = 0
    let breaths = 0
    for (;;) {
      let moved = 0
      let blocked = false
      const { legs } = this
      for (let i = 0; i < legs.length; i++) {
        if (this.hot[i] === 0) continue
        const leg = legs[i]
        if (leg.ready !== undefined && !leg.ready()) {
          blocked = true
          continue
        }
        const n = leg.device.receive(batch)
        if (n > 0) {
          moved += n
          leg.run(batch)
        } else if (leg.device.held !== undefined && leg.device.held > 0) blocked = true
        else if (leg.device.fd >= 0) this.hot[i] = 0
      }
      const now = performance.now()
      if (now >= nextTick) {
        if (!this.tick(now)) return
        nextTick = now + this.tickMs
      }
      if (moved === 0) {
        this.look(this.patience(now, nextTick, blocked))
        // What blocks may be freed by frames that come home, which no descriptor announces.
        if (blocked) this.hot.fill(1)
      } else if (++breaths % GLANCE === 0) this.look(0)
    }
  }

  /** How long to sleep, in whole ms. */
  private patience(now: number, nextTick: number, blocked: boolean): number {
    let until = blocked ? Math.min(nextTick, now + 1) : nextTick
    for (const leg of this.legs) {
      if (leg.due !== undefined && leg.ready?.() !== false) until = Math.min(until, leg.due())
    }
    return until <= now ? 0 : Math.ceil(until - now)
  }

  /** Polls every device and marks those that have something. */
  private look(timeoutMs: number): void {
    const { legs } = this
    const ready = poll(this.pollAddress, legs.length, timeoutMs)
    if (ready <= 0) return
    for (let i = 0; i < legs.length; i++) {
      const events = this.poll.getInt16(i * POLLFD + 6, true)
      if (events === 0) continue
      if ((events & POLL.IN) !== 0) this.hot[i] = 1
      // NB: an error without data lasts (the interface is gone) and would keep the loop awake.
      else this.poll.setInt32(i * POLLFD, -1, true)
    }
  }

  private rebuild(): void {
    const { legs } = this
    this.hot = new Uint8Array(legs.length).fill(1)
    this.poll = new DataView(new ArrayBuffer(Math.max(1, legs.length) * POLLFD))
    legs.forEach((leg, i) => {
      this.poll.setInt32(i * POLLFD, leg.device.fd, true)
      this.poll.setInt16(i * POLLFD + 4, POLL.IN, true)
    })
    this.pollAddress = addressOf(this.poll)
  }
}
