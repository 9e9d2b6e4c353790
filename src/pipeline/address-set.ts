// A set of IP addresses for comparing with what stands in packets: open addressing, one thread.

const SLOTS = 256
const MASK = SLOTS - 1

/** At most 128 addresses of one IP version. */
export class AddressSet {
  private readonly words: number
  private readonly table = new Int32Array(SLOTS * 4)
  private readonly used = new Uint8Array(SLOTS)

  /** Of addresses of so many words, 1 or 4. */
  constructor(words: number) {
    this.words = words
  }

  clear(): void {
    this.used.fill(0)
  }

  /** Adds the address at a position. */
  add(view: DataView, at: number): void {
    const { table, used, words } = this
    let slot = this.home(view, at)
    while (used[slot] !== 0 && !this.isAt(slot, view, at)) slot = (slot + 1) & MASK
    used[slot] = 1
    for (let i = 0; i < words; i++) table[(slot << 2) + i] = view.getInt32(at + (i << 2))
  }

  /** Whether the address at a position is one of them. */
  readonly has = (view: DataView, at: number): boolean => {
    const { used } = this
    let slot = this.home(view, at)
    while (used[slot] !== 0) {
      if (this.isAt(slot, view, at)) return true
      slot = (slot + 1) & MASK
    }
    return false
  }

  private readonly home = (view: DataView, at: number): number => {
    const word = view.getInt32(at + ((this.words - 1) << 2))
    return Math.imul(word, 0x9e3779b1) >>> 24
  }

  private readonly isAt = (slot: number, view: DataView, at: number): boolean => {
    const { table, words } = this
    for (let i = 0; i < words; i++) if (table[(slot << 2) + i] !== view.getInt32(at + (i << 2))) return false
    return true
  }
}
