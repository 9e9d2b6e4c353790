// HTTP/1 requests of a stream, read by llhttp, the parser that Node.js itself serves with.

import { createRequire } from 'node:module'

/** A request's head as a policy sees it. */
export interface RequestHead {
  method: string
  /** As it was sent. */
  target: string
  /** The target's path and query, percent-encodings that stand for nothing special decoded and dot segments removed (RFC 3986 section 6.2.2). */
  path: string
  /** Without a port, in lower case; of the target where that names one (RFC 9112 section 3.2.2). */
  host: string
  /** `1.1`. */
  version: string
  headers: [name: string, value: string][]
}

/** What a stream of requests has turned out to be. */
export type HttpState = 'http' | 'http2' | 'upgraded' | 'broken'

/** The part of Node's parser that is used here; `execute` returns an error instead of throwing it. */
interface Parser {
  initialize(type: number, resource: object, maxHeaderSize: number, leniency: number): void
  execute(bytes: Uint8Array): number | (Error & { code: string; reason: string })
  finish(): unknown
  [callback: number]: ((...args: never[]) => unknown) | undefined
}

interface ParserClass {
  new (): Parser
  readonly REQUEST: number
  readonly kOnHeaders: number
  readonly kOnHeadersComplete: number
  readonly kOnMessageComplete: number
}

const { HTTPParser, methods } = createRequire(import.meta.url)('_http_common') as {
  HTTPParser: ParserClass
  methods: string[]
}

/** Bytes of a request's head, at most: what servers take. */
export const HEAD_LIMIT = 16_384
const STRICT = 0
/** All that llhttp can be lenient in (Node's kLenientAll), bare line feeds included. */
const LENIENT = 0x3ff

/** The number of a method that stands elsewhere in Node's list. */
const QUERY = 46
const STAND_IN = 0x5f
// biome-ignore lint/suspicious/noControlCharactersInRegex: what is looked for
const UNREADABLE = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]/
const UNREADABLES = new RegExp(UNREADABLE, 'g')
const CR = 13
const LF = 10
const HEAD_END = '\r\n\r\n'

/** Where a strict reader is: at a request's first line, in the rest of its head, or so many bytes from the end of its body. */
const PLACE = { LINE: -1, HEAD: -2, CHUNKS: -3 } as const

/** The requests of one connection; one thread. */
export class HttpReader {
  state: HttpState = 'http'
  /** Why it is broken. */
  flaw = ''
  private readonly onHead: (head: RequestHead) => void
  private readonly lenient: boolean
  /** Made with the first bytes: it takes 3.4 KB, and anybody can open connections that say nothing. */
  private parser: Parser | undefined
  private readonly headers: string[] = []
  private target = ''
  private place: number = PLACE.LINE
  /** A request's first line so far; a lenient reader keeps it to the end of the head. */
  private line = ''
  /** The last byte of a head so far. */
  private last = 0

  /**
   * `onHead` gets every request's head when that is complete. A lenient one reads on where a server might, too; a strict one is broken by what servers
   * read differently.
   */
  constructor(onHead: (head: RequestHead) => void, lenient = false) {
    this.onHead = onHead
    this.lenient = lenient
  }

  private open(): Parser {
    const parser = new HTTPParser()
    parser.initialize(HTTPParser.REQUEST, {}, HEAD_LIMIT, this.lenient ? LENIENT : STRICT)
    // A head of more than 32 lines comes in parts.
    parser[HTTPParser.kOnHeaders] = (headers: string[], target: string) => {
      this.headers.push(...headers)
      this.target += target
    }
    parser[HTTPParser.kOnHeadersComplete] = (
      major: number,
      minor: number,
      headers: string[] | undefined,
      method: number,
      target: string | undefined,
    ) => {
      if (headers !== undefined) this.headers.push(...headers)
      const name = method === QUERY ? 'QUERY' : methods[method]
      const sent = this.sent(this.target + (target ?? ''))
      const head = headOf(name, sent, this.headers.splice(0), `${major}.${minor}`)
      this.target = ''
      this.place = placeBehind(head)
      if (name === undefined) this.flaw = 'a method that HTTP does not have'
      else if (!this.lenient) this.flaw = flawOf(head)
      if (this.flaw === '') this.onHead(head)
      return 0
    }
    // Trailers come as parts of a head, too, with the target once more.
    parser[HTTPParser.kOnMessageComplete] = () => {
      this.headers.length = 0
      this.target = ''
      this.place = PLACE.LINE
    }
    return parser
  }

  /** Takes the next bytes of the stream; once they are not HTTP/1 any more, says in `state` what they are. */
  feed(bytes: Uint8Array): void {
    const b = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    for (let at = 0; at < b.length && this.state === 'http'; ) {
      const end = this.pieceEnd(b, at)
      const isLine = this.place === PLACE.LINE
      if (isLine) this.line += b.toString('latin1', at, end)
      this.last = b[end - 1]
      const piece = b.subarray(at, end)
      if (!this.lenient) this.execute(piece)
      else this.execute(isLine ? readable(piece) : withoutNulls(piece))
      if (isLine && this.last === LF) this.checkLine()
      at = end
    }
  }

  private execute(bytes: Uint8Array): void {
    if (this.state !== 'http') return
    if (this.place > 0) this.place -= bytes.length
    this.parser ??= this.open()
    const result = this.parser.execute(bytes)
    if (typeof result === 'number') {
      // The parser stops behind a request that asks for another protocol.
      if (result < bytes.length) this.state = 'upgraded'
    } else if (result.code === 'HPE_PAUSED_H2_UPGRADE') this.state = 'http2'
    else this.flaw ||= result.reason
    if (this.flaw !== '') this.state = 'broken'
  }

  /** Where what is at hand ends, so that the next request begins a piece. */
  private pieceEnd(b: Buffer, at: number): number {
    const { place, last } = this
    if (place > 0) return Math.min(at + place, b.length)
    // A lenient reader takes other ends of a head, too.
    if (place === PLACE.HEAD && !this.lenient) {
      // The end of the head may have begun before.
      if ((last === CR || last === LF) && (b[at] === CR || b[at] === LF)) return at + 1
      const end = b.indexOf(HEAD_END, at, 'latin1')
      return end < 0 ? b.length : end + HEAD_END.length
    }
    return b.indexOf(LF, at) + 1 || b.length
  }

  /** A target as it was sent, where the parser was given something that stands for it. */
  private sent(target: string): string {
    if (!this.lenient) return target
    const at = asReadable(this.line).indexOf(target)
    const sent = at < 0 ? target : this.line.slice(at, at + target.length)
    this.line = ''
    return sent
  }

  // NB: the parser takes a line without version for the beginning of a head, servers of HTTP/0.9 for a whole request.
  private checkLine(): void {
    const { line } = this
    const isEmpty = line.trim() === ''
    if (this.lenient && !isEmpty) {
      if (this.place === PLACE.LINE) this.place = PLACE.HEAD
      return
    }
    this.line = ''
    if (this.state !== 'http' || isEmpty) return
    if (/ HTTP\/\d\.\d\r\n$/.test(line)) this.place = PLACE.HEAD
    else {
      this.state = 'broken'
      this.flaw = 'a request line without HTTP version'
    }
  }
}

/** NB: the parser gives up at a null byte and some servers do not, so something that it takes anywhere stands for it. */
function withoutNulls(bytes: Uint8Array): Uint8Array {
  return bytes.includes(0) ? bytes.map(byte => byte || STAND_IN) : bytes
}

/** NB: in a request's first line it gives up at everything but ASCII, and few servers do. */
function readable(line: Buffer): Uint8Array {
  const text = line.toString('latin1')
  return UNREADABLE.test(text) ? Buffer.from(asReadable(text), 'latin1') : line
}

const asReadable = (text: string) => text.replace(UNREADABLES, '_')

/** Where a reader is behind a head; the parser has checked what it says of its body. */
function placeBehind({ headers }: RequestHead): number {
  const value = (wanted: string) => headers.find(([name]) => name.toLowerCase() === wanted)?.[1]
  if (value('transfer-encoding') !== undefined) return PLACE.CHUNKS
  return Number(value('content-length') ?? 0) || PLACE.LINE
}

/** Why servers read a request differently; empty when they do not. */
function flawOf({ target, version, headers }: RequestHead): string {
  const count = (wanted: string) => headers.filter(([name]) => name.toLowerCase() === wanted).length
  if (count('host') > 1) return 'more than one Host'
  if (version === '1.0' && count('transfer-encoding') > 0) return 'Transfer-Encoding in HTTP/1.0'
  return isAmbiguous(target) ? 'a path that servers read differently' : ''
}

function headOf(method: string, target: string, flat: string[], version: string): RequestHead {
  const headers: [string, string][] = []
  for (let i = 0; i < flat.length; i += 2) headers.push([flat[i], flat[i + 1]])
  const absolute = /^[a-z][a-z0-9+.-]*:\/\/([^/?#]*)(.*)$/i.exec(target)
  const authority =
    absolute?.[1] ??
    (method === 'CONNECT' ? target : (headers.find(([name]) => name.toLowerCase() === 'host')?.[1] ?? ''))
  const host = authority.replace(/^.*@/, '').replace(/:\d*$/, '').toLowerCase()
  const path = absolute === null ? target : absolute[2].startsWith('/') ? absolute[2] : `/${absolute[2]}`
  return { method, target, path: normalPath(path), host, version, headers }
}

/** A path as servers take it: unreserved characters decoded, dot segments and doubled slashes away. */
export function normalPath(target: string): string {
  if (!target.startsWith('/')) return target
  const [, raw, query] = /^([^?#]*)(.*)$/s.exec(target)!
  const decoded = raw.replace(/%([0-9a-f]{2})/gi, (encoded, hex) => {
    const letter = String.fromCharCode(Number.parseInt(hex, 16))
    return /[A-Za-z0-9._~-]/.test(letter) ? letter : encoded.toUpperCase()
  })
  const segments: string[] = []
  const parts = decoded.split('/').slice(1)
  for (const [i, part] of parts.entries()) {
    const last = i === parts.length - 1
    if (part === '..') segments.pop()
    if (part === '.' || part === '..' || (part === '' && !last)) {
      if (last) segments.push('')
    } else segments.push(part)
  }
  return `/${segments.join('/')}${query}`
}

const ORIGIN = /^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i
/** Decodings after which a path that still changes is nobody's. */
const DECODINGS = 4
const NULL = '\0'

/**
 * Whether servers may find dot segments or an end in a path where others find none: behind slashes that are encoded, doubled or turned around, escapes in
 * escapes, overlong UTF-8 (RFC 3629 section 10), parameters of a segment or an encoded null byte.
 */
export function isAmbiguous(target: string): boolean {
  const [raw] = target.replace(ORIGIN, '').split(/[?#]/, 1)
  if (!/[%\\;]|\/\//.test(raw)) return false
  let text = normalPath(raw)
  for (let i = 0; ; i++) {
    const decoded = text
      .replaceAll(/%(?:u00)?([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)))
      .replaceAll('\xc0\xae', '.')
      .replaceAll('\xc0\xaf', '/')
    if (decoded === text) break
    if (i === DECODINGS) return true
    text = decoded
  }
  if (text.includes(NULL)) return true
  if (text.split(/[/\\]/).some(segment => /^\.\.?(?:;|$)/.test(segment))) return true
  // Two slashes are one for some, and an empty segment for others, which `..` takes away.
  return /\/\//.test(raw) && /(?:^|\/)(?:\.|%2e){2}(?:\/|$)/i.test(raw)
}
