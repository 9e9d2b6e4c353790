// Busy polling: whether a loop that has nothing to do looks again at once, or sleeps until it is woken.
//
// Being woken costs: an interrupt that the sender sends (from a virtual machine's processor at the price of an exit), two
// switches, and delay for the packet. Looking costs a processor that might have nothing better to do. So the lulls are
// observed, the times from a breath that moved nothing to the next that does: how many are short, and how long those are.

export const POLLING_MODES = ['adaptive', 'always', 'never'] as const

export interface PollingOptions {
  /** `adaptive`: looks where lulls are short; `always` and `never`: whatever they are. */
  mode: (typeof POLLING_MODES)[number]
  /** The longest look without sleep, which is also what being woken is taken to cost. */
  maxMicroseconds: number
}

/** 100 µs: what TCP through a tunnel pauses for between two bursts, and less than interrupt moderation waits. */
export const DEFAULT_POLLING: PollingOptions = { mode: 'adaptive', maxMicroseconds: 100 }

/** Weight of the latest lull in what is expected. */
const WEIGHT = 1 / 8

/** Of one loop. Times are ms of any clock that does not go back. */
export class BusyPoll {
  private readonly mode: PollingOptions['mode']
  private readonly max: number
  /** Expected share of short lulls, and their expected length. */
  private share = 0
  private short = 0
  /** When the present lull began; NaN while frames move. */
  private since = Number.NaN
  /** How long it is looked through. */
  private window = 0

  constructor({ mode, maxMicroseconds }: PollingOptions) {
    this.mode = mode
    this.max = maxMicroseconds / 1000
  }

  /** Frames moved. */
  moved(now: number): void {
    const lull = now - this.since
    if (Number.isNaN(lull)) return
    this.since = Number.NaN
    const isShort = lull <= this.max
    this.share += ((isShort ? 1 : 0) - this.share) * WEIGHT
    // NB: one that was slept through seems longer by the waking, so it takes a few short ones to be looked through again.
    if (isShort) this.short += (lull - this.short) * WEIGHT
  }

  /** Nothing moved: true to look again, false to sleep. */
  stays(now: number): boolean {
    if (Number.isNaN(this.since)) {
      this.since = now
      this.window = this.choose()
    }
    return now - this.since < this.window
  }

  private choose(): number {
    const { mode, max, share, short } = this
    if (mode !== 'adaptive') return mode === 'always' ? max : 0
    const window = Math.min(max, 2 * short)
    const looking = share * short + (1 - share) * window
    return looking < share * max ? window : 0
  }
}
