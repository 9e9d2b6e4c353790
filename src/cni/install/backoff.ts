// How fast a repair may follow on the last: at once, until somebody undoes one after the other; then slower and slower.

/** How patient the repair is. */
export interface BackoffOptions {
  /** So many repairs in a row are made at once; the installation itself is the first. */
  free: number
  /** What the first one after those waits, ms; each further one waits twice as long. */
  firstMs: number
  /** The longest wait, ms. */
  longestMs: number
  /** A repair that lasted so long ends the row, ms. */
  calmMs: number
}

export const BACKOFF: BackoffOptions = { free: 4, firstMs: 1_000, longestMs: 60_000, calmMs: 300_000 }

/** Counts repairs in a row. */
export interface Backoff {
  /** Repairs in a row. */
  readonly row: number
  /** When the next repair may be made, on the clock of `now`. */
  due(now: number): number
  /** A repair was made. */
  repaired(now: number): void
}

export function createBackoff({ free, firstMs, longestMs, calmMs }: BackoffOptions): Backoff {
  let row = 0
  let last = Number.NEGATIVE_INFINITY
  const settle = (now: number) => {
    if (now - last > Math.max(calmMs, 2 * wait())) row = 0
  }
  const wait = () => (row < free ? 0 : Math.min(longestMs, firstMs * 2 ** (row - free)))
  return {
    get row() {
      return row
    },
    due: now => {
      settle(now)
      return last + wait()
    },
    repaired: now => {
      settle(now)
      row++
      last = now
    },
  }
}
