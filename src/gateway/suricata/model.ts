// Threat signatures as Suricata's rule language writes them, understood: plain data, passes through workerData.

import type { PortRange, Range } from './sets.ts'

export const ACTIONS = ['pass', 'drop', 'reject', 'alert'] as const
/** In the order in which Suricata judges by them (action-order). */
export type Action = (typeof ACTIONS)[number]

export const PROTOCOLS = ['ip', 'tcp', 'tcp-pkt', 'tcp-stream', 'udp', 'icmp', 'http', 'tls', 'dns'] as const
export type Protocol = (typeof PROTOCOLS)[number]

/** What contents are looked for in; `payload` is the stream of a TCP flow, and a packet's payload. */
export const BUFFERS = [
  'payload',
  'http.method',
  'http.uri',
  'http.uri.raw',
  'http.host',
  'http.header',
  'http.user_agent',
  'tls.sni',
  'dns.query',
] as const
export type BufferName = (typeof BUFFERS)[number]

/** A `content`. Positions count bytes. */
export interface Content {
  kind: 'content'
  /** In lower case where `nocase`. */
  bytes: Uint8Array
  nocase: boolean
  negated: boolean
  /** Undefined where the rule does not say so. */
  offset?: number
  depth?: number
  distance?: number
  within?: number
  atEnd: boolean
}

/** A `pcre`, as pcre.ts translates it. */
export interface Expression {
  kind: 'pcre'
  source: string
  flags: string
  negated: boolean
  /** Begins where what stands in front of it ended. */
  relative: boolean
  /** A line feed is put in front of what is searched, or behind it, for `^` and `$` to be one. */
  feedFront: boolean
  feedBack: boolean
}

export type Part = Content | Expression

/** Whether a part begins where the one in front of it ended. */
export function isRelative(part: Part): boolean {
  return part.kind === 'pcre' ? part.relative : part.distance !== undefined || part.within !== undefined
}

/** Whose bytes: of who opened the flow, of the other side, or either. */
export type Direction = 'to_server' | 'to_client' | 'both'

export interface Header {
  protocol: Protocol
  from: Range[]
  fromPorts: PortRange[]
  to: Range[]
  toPorts: PortRange[]
  /** `<>`. */
  bothWays: boolean
}

/** A rule. */
export interface Signature {
  action: Action
  header: Header
  flow: { direction: Direction; established?: boolean; only?: 'stream' | 'packet' }
  /** What must be found, by where. */
  parts: { buffer: BufferName; parts: Part[] }[]
  /** The content that is looked for first; undefined where there is none but negated ones and expressions. */
  fast?: { buffer: BufferName; part: number }
  msg: string
  sid: number
  rev: number
  gid: number
  severity: number
  category: string
  metadata: Record<string, string[]>
}
