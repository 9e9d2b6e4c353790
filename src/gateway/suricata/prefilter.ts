// Which of many needles occur in a text: one pass over the text, whatever their number.
//
// As in Wu and Manber (1994) and Hyperscan's FDR (2019), not every byte is looked at: four bytes at a time, folded to one case,
// are hashed into a bitmap of what needles have there; what is found in it is compared with the needles of that hash. A
// needle of seven bytes or more is entered with four of its places, so that every fourth place of the text is enough. Needles
// of four to six bytes need a pass over every place, those of one to three another one over pairs of bytes.

/** Bytes of a content that are looked for; the rest is compared by who verifies. */
export const NEEDLE = 16
const WORD = 4
const STRIDE = 4
const LONG = WORD + STRIDE - 1
const FOLD = 0x20202020
/** Bits of the bitmap a needle's place, so that few places of random text are looked at twice. */
const SPARSE = 32
const MIN_BITS = 12
const MAX_BITS = 21
const MULTIPLIER = 0x9e3779b1

export interface Needle {
  /** Up to NEEDLE bytes; in lower case where `nocase`. */
  bytes: Uint8Array
  nocase: boolean
}

/** Numbers from 0 on, each at most once between two clears. */
export class Found {
  readonly list: Int32Array
  count = 0
  private readonly stamps: Uint32Array
  private stamp = 1

  constructor(size: number) {
    this.list = new Int32Array(size)
    this.stamps = new Uint32Array(size)
  }

  clear(): void {
    this.count = 0
    if (++this.stamp > 0xffff_ffff) {
      this.stamps.fill(0)
      this.stamp = 1
    }
  }

  has(number: number): boolean {
    return this.stamps[number] === this.stamp
  }

  add(number: number): void {
    if (this.stamps[number] === this.stamp) return
    this.stamps[number] = this.stamp
    this.list[this.count++] = number
  }
}

/** The needles of one buffer; immutable. */
export class Prefilter {
  private readonly needles: Needle[]
  private readonly long: Words | undefined
  private readonly medium: Words | undefined
  private readonly short: Pairs | undefined

  constructor(needles: Needle[]) {
    this.needles = needles
    const of = (low: number, high: number) =>
      needles.flatMap(({ bytes }, i) => (bytes.length >= low && bytes.length <= high ? [i] : []))
    const [long, medium, short] = [of(LONG, NEEDLE), of(WORD, LONG - 1), of(1, WORD - 1)]
    this.long = long.length === 0 ? undefined : new Words(needles, long, STRIDE)
    this.medium = medium.length === 0 ? undefined : new Words(needles, medium, 1)
    this.short = short.length === 0 ? undefined : new Pairs(needles, short)
  }

  /** Adds to `found` the needles in [at, end) of `bytes`; `view` is of the same bytes. */
  scan(bytes: Uint8Array, view: DataView, at: number, end: number, found: Found): void {
    const { needles } = this
    this.long?.scan(bytes, view, at, end, needles, found)
    this.medium?.scan(bytes, view, at, end, needles, found)
    this.short?.scan(bytes, at, end, needles, found)
  }
}

/** Whether a needle lies at `at`. */
function lies({ bytes: needle, nocase }: Needle, bytes: Uint8Array, at: number, start: number, end: number): boolean {
  if (at < start || at + needle.length > end) return false
  for (let i = 0; i < needle.length; i++) {
    const byte = bytes[at + i]
    if (byte !== needle[i] && !(nocase && byte >= 65 && byte <= 90 && (byte | 32) === needle[i])) return false
  }
  return true
}

/** Needles by four of their bytes, at `stride` neighbouring places each. */
class Words {
  private readonly stride: number
  private readonly shift: number
  private readonly bitmap: Uint32Array
  /** First entry of each hash, less one; the entries: folded bytes, needle and place in it, the next entry less one. */
  private readonly first: Int32Array
  private readonly words: Int32Array
  private readonly owner: Int32Array
  private readonly place: Uint8Array
  private readonly next: Int32Array

  constructor(needles: Needle[], chosen: number[], stride: number) {
    const size = chosen.length * stride
    const bits = Math.min(MAX_BITS, Math.max(MIN_BITS, Math.ceil(Math.log2(size * SPARSE))))
    this.stride = stride
    this.shift = 32 - bits
    this.bitmap = new Uint32Array(1 << (bits - 5))
    this.first = new Int32Array(1 << bits)
    this.words = new Int32Array(size)
    this.owner = new Int32Array(size)
    this.place = new Uint8Array(size)
    this.next = new Int32Array(size)
    let entry = 0
    for (const needle of chosen)
      for (let place = 0; place < stride; place++, entry++) {
        const { bytes } = needles[needle]
        const word = new DataView(bytes.buffer, bytes.byteOffset).getInt32(place, true) | FOLD
        const hash = Math.imul(word, MULTIPLIER) >>> this.shift
        this.bitmap[hash >>> 5] |= 1 << (hash & 31)
        this.words[entry] = word
        this.owner[entry] = needle
        this.place[entry] = place
        this.next[entry] = this.first[hash]
        this.first[hash] = entry + 1
      }
  }

  scan(bytes: Uint8Array, view: DataView, at: number, end: number, needles: Needle[], found: Found): void {
    const { bitmap, shift, stride } = this
    for (let place = at, last = end - WORD; place <= last; place += stride) {
      const word = view.getInt32(place, true) | FOLD
      const hash = Math.imul(word, MULTIPLIER) >>> shift
      if (((bitmap[hash >>> 5] >>> (hash & 31)) & 1) === 1)
        this.compare(bytes, place, at, end, word, hash, needles, found)
    }
  }

  private compare(
    bytes: Uint8Array,
    place: number,
    at: number,
    end: number,
    word: number,
    hash: number,
    needles: Needle[],
    found: Found,
  ): void {
    for (let entry = this.first[hash] - 1; entry >= 0; entry = this.next[entry] - 1) {
      const needle = this.owner[entry]
      if (this.words[entry] !== word || found.has(needle)) continue
      if (lies(needles[needle], bytes, place - this.place[entry], at, end)) found.add(needle)
    }
  }
}

/** Needles of one to three bytes by their first two, where they have so many. */
class Pairs {
  /** 1 for pairs that a needle may begin with. */
  private readonly pairs = new Uint8Array(1 << 16)
  /** Needles by first byte, folded. */
  private readonly byFirst: number[][] = Array.from({ length: 256 }, () => [])

  constructor(needles: Needle[], chosen: number[]) {
    for (const needle of chosen) {
      const [first, second] = needles[needle].bytes
      this.byFirst[first | 0x20].push(needle)
      const seconds = second === undefined ? Array.from({ length: 256 }, (_, i) => i) : [second | 0x20]
      for (const one of seconds) this.pairs[((first | 0x20) << 8) | one | 0x20] = 1
    }
  }

  scan(bytes: Uint8Array, at: number, end: number, needles: Needle[], found: Found): void {
    const { pairs } = this
    if (at >= end) return
    let first = bytes[at] | 0x20
    for (let place = at; place < end - 1; place++) {
      const second = bytes[place + 1] | 0x20
      if (pairs[(first << 8) | second] === 1) this.compare(bytes, place, at, end, needles, found)
      first = second
    }
    this.compare(bytes, end - 1, at, end, needles, found)
  }

  private compare(bytes: Uint8Array, place: number, at: number, end: number, needles: Needle[], found: Found): void {
    const those = this.byFirst[bytes[place] | 0x20]
    for (let i = 0; i < those.length; i++)
      if (!found.has(those[i]) && lies(needles[those[i]], bytes, place, at, end)) found.add(those[i])
  }
}
