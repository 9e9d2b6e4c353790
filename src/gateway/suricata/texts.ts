// The buffers of Suricata's application layer, as its rules see them: normalised (libhtp with its personality IDS).

import type { RequestHead } from '../l7/http.ts'
import type { Text } from './match.ts'
import type { Texts } from './ruleset.ts'

/** The buffers of a request. */
export function requestTexts(head: RequestHead): Texts {
  const agent = head.headers.find(([name]) => name.toLowerCase() === 'user-agent')
  return {
    'http.method': textOf(head.method),
    'http.uri': textOf(normalUri(head.target)),
    'http.uri.raw': textOf(head.target),
    ...(head.host !== '' && { 'http.host': textOf(head.host) }),
    'http.header': textOf(headerLines(head.headers)),
    ...(agent !== undefined && { 'http.user_agent': textOf(agent[1]) }),
  }
}

/** A text of which each character is a byte. */
export function textOf(text: string): Text {
  const bytes = new Uint8Array(text.length)
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i)
  return { bytes, view: new DataView(bytes.buffer), at: 0, end: bytes.length, base: 0 }
}

/** Lines of a head but cookies, those of one name joined where the first one stands. */
function headerLines(headers: [string, string][]): string {
  const lines = new Map<string, { name: string; values: string[] }>()
  for (const [name, value] of headers) {
    const key = name.toLowerCase()
    if (key === 'cookie') continue
    const line = lines.get(key)
    if (line === undefined) lines.set(key, { name, values: [value] })
    else line.values.push(value)
  }
  return [...lines.values()].map(({ name, values }) => `${name}: ${values.join(', ')}\r\n`).join('')
}

/**
 * A target without scheme and host; escapes decoded once; of its path, backslashes made slashes, doubled ones one, dot segments
 * followed, and UTF-8 made one byte a letter where it has one.
 */
export function normalUri(target: string): string {
  const [, path, query] = /^(?:[a-z][a-z0-9+.-]*:\/\/[^/?#]*)?([^?#]*)(.*)$/is.exec(target)!
  const plain = narrowed(
    decoded(path)
      .replaceAll('\\', '/')
      .replaceAll(/\/{2,}/g, '/'),
  )
  return `${withoutDots(plain)}${decoded(query)}`
}

/** `%41`, and `%u0041` as Microsoft's servers take it. */
function decoded(text: string): string {
  return text.replaceAll(/%(?:u([0-9a-f]{4})|([0-9a-f]{2}))/gi, (_, wide, narrow) =>
    String.fromCharCode(Number.parseInt(wide ?? narrow, 16) & 0xff),
  )
}

function withoutDots(path: string): string {
  if (!path.startsWith('/')) return path
  const segments: string[] = []
  const parts = path.slice(1).split('/')
  for (const [i, part] of parts.entries()) {
    const last = i === parts.length - 1
    if (part === '..') segments.pop()
    if (part !== '.' && part !== '..') segments.push(part)
    else if (last) segments.push('')
  }
  return `/${segments.join('/')}`
}

/** UTF-8 of letters up to U+00FF as single bytes; all else as it is. */
function narrowed(text: string): string {
  return text.replaceAll(/([\xc2\xc3])([\x80-\xbf])/g, (_, lead, rest) =>
    String.fromCharCode(((lead.charCodeAt(0) & 3) << 6) | (rest.charCodeAt(0) & 0x3f)),
  )
}
