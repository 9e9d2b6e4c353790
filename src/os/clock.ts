// Time as the kernel counts it (CLOCK_MONOTONIC), as plain numbers. Any thread; each measures its own offset once.

// performance.now() reads CLOCK_MONOTONIC too, but counts from the start of its thread. The smallest of a few
// differences is the one least disturbed between the two readings.
function measureOffset(): number {
  let offset = Number.POSITIVE_INFINITY
  for (let i = 0; i < 16; i++) {
    const now = performance.now()
    offset = Math.min(offset, Number(process.hrtime.bigint()) / 1e6 - now)
  }
  return offset
}

const OFFSET = measureOffset()

/** Milliseconds of CLOCK_MONOTONIC, the clock of bpf_ktime_get_ns; allocates nothing. */
export function monotonicMs(): number {
  return performance.now() + OFFSET
}

/** Nanoseconds in a heartbeat unit: 2^20, so that BPF divides by shifting. */
export const HEARTBEAT_SHIFT = 20

const UNITS_PER_MS = 1e6 / 2 ** HEARTBEAT_SHIFT

/** Heartbeat units of CLOCK_MONOTONIC (about 1.05 ms each), modulo 2^32, as a signed 32-bit number. */
export function monotonicUnits(): number {
  return (monotonicMs() * UNITS_PER_MS) | 0
}

/** Milliseconds as heartbeat units, at least one. */
export function msToUnits(ms: number): number {
  return Math.max(1, Math.round(ms * UNITS_PER_MS))
}
