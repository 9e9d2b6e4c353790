// DNS queries (RFC 1035 section 4): the names that are asked for, over UDP and, with a length in front, over TCP.

import { Gathering } from './gathering.ts'

/** A question of a query; names are without a dot at their end. */
export interface DnsQuestion {
  /** In lower case. */
  name: string
  /** As it was sent, a character a byte. */
  raw: string
  type: number
}

const HEADER = 12
const LENGTH = 2
const NAME_LIMIT = 255

/** The questions of a message; undefined when it is none, or not a query. */
export function parseQuery(b: Uint8Array, at: number, end: number): DnsQuestion[] | undefined {
  if (end - at < HEADER || (b[at + 2] & 0xf8) !== 0) return undefined
  const count = (b[at + 4] << 8) | b[at + 5]
  const questions: DnsQuestion[] = []
  let place = at + HEADER
  for (let i = 0; i < count; i++) {
    const start = place
    let name = ''
    let raw = ''
    for (;;) {
      if (place >= end) return undefined
      const length = b[place++]
      if (length === 0) break
      // NB: a pointer in a question would be to an earlier question; nobody sends that (RFC 1035 section 4.1.4 lets them).
      if (length > 63 || place + length > end || place + length - start > NAME_LIMIT) return undefined
      name += `${name && '.'}${escaped(b, place, place + length)}`
      raw += `${raw && '.'}${String.fromCharCode(...b.subarray(place, place + length))}`
      place += length
    }
    if (place + 4 > end) return undefined
    questions.push({ name, raw, type: (b[place] << 8) | b[place + 1] })
    place += 4
  }
  return questions.length === 0 ? undefined : questions
}

/** Letters of a label; others, dots within it included, as RFC 4343 section 2.1 writes them. */
function escaped(b: Uint8Array, at: number, end: number): string {
  let text = ''
  for (let i = at; i < end; i++) {
    const letter = String.fromCharCode(b[i]).toLowerCase()
    text += /[a-z0-9_-]/.test(letter) ? letter : `\\${String(b[i]).padStart(3, '0')}`
  }
  return text
}

/** The queries of a TCP stream, each with its length in front (RFC 1035 section 4.2.2). */
export class DnsReader {
  broken = false
  private readonly bytes = new Gathering()
  private readonly onQuestion: (question: DnsQuestion) => void

  constructor(onQuestion: (question: DnsQuestion) => void) {
    this.onQuestion = onQuestion
  }

  /** Takes the next bytes of the stream. */
  feed(bytes: Uint8Array): void {
    if (this.broken) return
    this.bytes.push(bytes)
    let at = 0
    for (const b = this.bytes.view; !this.broken && b.length >= at + LENGTH; ) {
      const end = at + LENGTH + b.readUInt16BE(at)
      if (b.length < end) break
      const questions = parseQuery(b, at + LENGTH, end)
      if (questions === undefined) this.broken = true
      for (const question of questions ?? []) this.onQuestion(question)
      at = end
    }
    this.bytes.shift(at)
  }
}
