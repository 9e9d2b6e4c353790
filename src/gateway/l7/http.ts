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
/** All that llhttp can be lenient in (Node's kLenientAll). */
const LENIENT = 0xff

/** The requests of one connection; one thread. */
export class HttpReader {
  state: HttpState = 'http'
  /** Why it is broken. */
  flaw = ''
  private readonly parser: Parser
  private readonly headers: string[] = []
  private target = ''

  /** `onHead` gets every request's head when that is complete. A lenient one reads on where a server might, too. */
  constructor(onHead: (head: RequestHead) => void, lenient = false) {
    const parser = new HTTPParser()
    parser.initialize(HTTPParser.REQUEST, {}, HEAD_LIMIT, lenient ? LENIENT : STRICT)
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
      const head = headOf(methods[method], this.target + (target ?? ''), this.headers.splice(0))
      onHead({ ...head, version: `${major}.${minor}` })
      this.target = ''
      return 0
    }
    // Trailers come as parts of a head, too, with the target once more.
    parser[HTTPParser.kOnMessageComplete] = () => {
      this.headers.length = 0
      this.target = ''
    }
    this.parser = parser
  }

  /** Takes the next bytes of the stream; once they are not HTTP/1 any more, says in `state` what they are. */
  feed(bytes: Uint8Array): void {
    if (this.state !== 'http') return
    const result = this.parser.execute(bytes)
    if (typeof result === 'number') {
      // The parser stops behind a request that asks for another protocol.
      if (result < bytes.length) this.state = 'upgraded'
    } else if (result.code === 'HPE_PAUSED_H2_UPGRADE') this.state = 'http2'
    else {
      this.state = 'broken'
      this.flaw = result.reason
    }
  }
}

function headOf(method: string, target: string, flat: string[]): Omit<RequestHead, 'version'> {
  const headers: [string, string][] = []
  for (let i = 0; i < flat.length; i += 2) headers.push([flat[i], flat[i + 1]])
  const absolute = /^[a-z][a-z0-9+.-]*:\/\/([^/?#]*)(.*)$/i.exec(target)
  const authority =
    absolute?.[1] ??
    (method === 'CONNECT' ? target : (headers.find(([name]) => name.toLowerCase() === 'host')?.[1] ?? ''))
  const host = authority.replace(/^.*@/, '').replace(/:\d*$/, '').toLowerCase()
  const path = absolute === null ? target : absolute[2].startsWith('/') ? absolute[2] : `/${absolute[2]}`
  return { method, target, path: normalPath(path), host, headers }
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
