// Ports of fragmented datagrams: what the first fragment said, for the fragments that follow it (RFC 791 section 2.3,
// RFC 8200 section 4.5: source, destination, protocol and identification name a datagram).
//
// A cache that forgets: sets of four entries, 16 words each; a full set gives up its oldest. A flood of first fragments so costs
// other datagrams their ports, never memory. One thread.

import { halfSipHash, type Seed } from './hash.ts'

const WAYS = 4
const WORDS = 16
const PORTS = 10
const TIME = 11
const NAME = 10

/** How long the fragments of a datagram may be apart: RFC 791's reassembly time is 15 s, Linux waits 30. */
export const FRAGMENT_MS = 30_000

/** Source port << 16 | destination port of the datagrams whose first fragment was seen. */
export class FragmentTable {
  /** The datagram that store and find are about: a flow key's words, but source first, and identification for ports. */
  readonly name = new Int32Array(NAME)
  private readonly entries: Int32Array
  private readonly mask: number

  /** Remembers `capacity` datagrams, a power of two. */
  constructor(capacity = 4096) {
    if (capacity < WAYS || (capacity & (capacity - 1)) !== 0)
      throw new RangeError(`${capacity} fragmented datagrams: a power of two, at least ${WAYS}`)
    this.entries = new Int32Array(capacity * WORDS)
    this.mask = capacity / WAYS - 1
  }

  /** Forgets all datagrams. */
  clear(): void {
    this.entries.fill(0)
  }

  /** Remembers the ports of the datagram in `name`; the clock is an int32 of milliseconds that may wrap. */
  store(ports: number, nowMs: number, seed: Seed): void {
    const { entries, name } = this
    const set = this.set(seed)
    let at = set
    let oldest = -1
    for (let way = 0; way < WAYS; way++) {
      const entry = set + way * WORDS
      if (this.holds(entry)) {
        at = entry
        break
      }
      const age = entries[entry] === 0 ? FRAGMENT_MS + 1 : ageOf(entries[entry + TIME], nowMs)
      if (age > oldest) {
        oldest = age
        at = entry
      }
    }
    for (let i = 0; i < NAME; i++) entries[at + i] = name[i]
    entries[at + PORTS] = ports
    entries[at + TIME] = nowMs
  }

  /** The ports of the datagram in `name`, or 0 when its first fragment was not seen in time. */
  find(nowMs: number, seed: Seed): number {
    const { entries } = this
    const set = this.set(seed)
    for (let entry = set; entry < set + WAYS * WORDS; entry += WORDS)
      if (this.holds(entry)) return ageOf(entries[entry + TIME], nowMs) <= FRAGMENT_MS ? entries[entry + PORTS] : 0
    return 0
  }

  private set(seed: Seed): number {
    return (halfSipHash(this.name, 0, NAME, 0, seed) & this.mask) * WAYS * WORDS
  }

  private holds(entry: number): boolean {
    const { entries, name } = this
    for (let i = 0; i < NAME; i++) if (entries[entry + i] !== name[i]) return false
    return true
  }
}

// A capture's clock may step back: what lies in the future is as old as what lies equally far in the past.
function ageOf(time: number, nowMs: number): number {
  return Math.min(FRAGMENT_MS + 1, Math.abs((nowMs - time) | 0))
}
