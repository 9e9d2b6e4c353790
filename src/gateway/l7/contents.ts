// What flows carry: puts a flow's streams in order once, finds out which protocol is spoken, and tells whoever listens.

import { DROP, type DropReason } from '../../drop.ts'
import type { Pool } from '../../memory/pool.ts'
import * as ipv4 from '../../wire/ipv4.ts'
import * as ipv6 from '../../wire/ipv6.ts'
import * as tcp from '../../wire/tcp.ts'
import { packetEnd } from '../answer.ts'
import { type DnsQuestion, DnsReader, parseQuery } from './dns.ts'
import { HttpReader, type RequestHead } from './http.ts'
import { STREAM_LIMITS, type StreamLimits, type StreamSink, Streams } from './streams.ts'
import { type ClientHello, HelloReader } from './tls.ts'

/** Who is told; in the order of the stream, and of what a protocol says before its bytes. */
export interface Listener {
  /** A packet of the flow, before what it adds to the contents. */
  packet?(frame: number, row: number): void
  /** Bytes [at, end) of a stream, the first of which is number `offset`. They are the caller's memory. */
  data?(row: number, side: number, bytes: Uint8Array, at: number, end: number, offset: number): void
  request?(row: number, head: RequestHead): void
  /** A stream that was to be HTTP/1 is not, or not any more. */
  notHttp?(row: number, why: string): void
  hello?(row: number, hello: ClientHello): void
  question?(row: number, question: DnsQuestion): void
}

/** What a listener wants of a flow. */
export interface Wants {
  /** Whose bytes: bit 0 for end A's, bit 1 for end B's. */
  sides: number
  /** `strict`: the client must speak HTTP/1. `any`: whatever it speaks. */
  protocol: 'strict' | 'any'
  /** Whether the flow may go on unseen once all streams together need too much memory. */
  tolerant: boolean
}

interface Flow {
  client: number
  serverPort: number
  listeners: { listener: Listener; wants: Wants }[]
  sides: number
  strict: boolean
  /** The server has agreed to the connection. */
  opened: boolean
  /** Nothing has been read, or something was missed: which protocol it is shows what comes next. */
  fresh: boolean
  http?: HttpReader
  hello?: HelloReader
  dns?: DnsReader
}

const DNS_PORT = 53
const HANDSHAKE = 22

/** What the flows of one worker carry, by row; one thread. */
export class Contents implements StreamSink {
  /** Flows that were let go unseen. */
  unseen = 0
  private readonly pool: Pool
  private readonly streams: Streams
  private readonly flows = new Map<number, Flow>()

  constructor(pool: Pool, limits: StreamLimits = STREAM_LIMITS) {
    this.pool = pool
    this.streams = new Streams(this, limits)
  }

  /** Tells a listener from now on; `client` is the side that opened the flow. */
  join(row: number, client: number, serverPort: number, listener: Listener, wants: Wants): void {
    let flow = this.flows.get(row)
    if (flow === undefined) {
      flow = { client, serverPort, listeners: [], sides: 0, strict: false, opened: false, fresh: true }
      this.flows.set(row, flow)
      this.streams.begin(row)
    }
    flow.listeners.push({ listener, wants })
    combine(flow)
    if (flow.strict) flow.http ??= this.httpReader(row, flow)
  }

  /** Tells it no more. */
  leave(row: number, listener: Listener): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    flow.listeners = flow.listeners.filter(one => one.listener !== listener)
    combine(flow)
    if (flow.listeners.length === 0) this.forget(row)
  }

  /** Takes a packet of a flow that is listened to; returns 0, or why it must not travel on. */
  packet(frame: number, row: number): DropReason {
    const { pool, streams } = this
    const flow = this.flows.get(row)
    if (flow === undefined) return 0
    for (const { listener } of flow.listeners) listener.packet?.(frame, row)
    const at = pool.payload[frame]
    const end = packetEnd(pool, frame)
    const side = pool.reversed[frame]
    const isTcp = pool.protocol[frame] === ipv4.PROTOCOL.TCP
    const isQuery = !isTcp && side === flow.client && flow.serverPort === DNS_PORT
    if (!isTcp && !isQuery) return 0
    if (isFragment(pool, frame)) return DROP.STREAM_UNCLEAR
    if (isQuery) {
      this.datagram(flow, row, frame, at, end)
      return 0
    }
    const b = pool.bytes
    const header = pool.transport[frame]
    const flags = tcp.flags(b, header)
    const other = 1 - side
    const syn = (flags & tcp.SYN) !== 0
    if (syn && end > at) return DROP.STREAM_UNCLEAR
    if ((flags & (tcp.ACK | tcp.RST)) === tcp.ACK && (flow.sides & (1 << other)) !== 0) {
      if (syn) streams.open(row, other, tcp.acknowledgment(b, header))
      streams.acknowledge(row, other, tcp.acknowledgment(b, header))
    }
    if (syn && side !== flow.client) flow.opened = true
    if ((flow.sides & (1 << side)) === 0) return 0
    if (flow.strict && side === flow.client) {
      if ((flags & tcp.URG) !== 0) return DROP.STREAM_UNCLEAR
      // NB: a SYN proves nothing: the server may have refused it, and still have the connection that went before.
      if (!flow.opened && end > at) this.give(flow, row, 'the beginning of its connection was not seen')
    }
    const fin = (flags & tcp.FIN) !== 0
    const stopped = streams.segment(row, side, tcp.sequence(b, header), syn, fin, b, at, end)
    if (stopped !== DROP.STREAM_FULL || !streams.exhausted || !flow.listeners.every(({ wants }) => wants.tolerant))
      return stopped
    this.unseen++
    this.forget(row)
    return 0
  }

  data(row: number, side: number, bytes: Uint8Array, at: number, end: number, offset: number): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    if (side === flow.client) this.read(flow, row, bytes.subarray(at, end))
    for (const { listener } of flow.listeners) listener.data?.(row, side, bytes, at, end, offset)
  }

  gap(row: number, side: number): void {
    const flow = this.flows.get(row)
    if (flow === undefined || side !== flow.client) return
    flow.http = flow.hello = flow.dns = undefined
    flow.fresh = true
  }

  end(): void {}

  /** Whether a flow is listened to that must be HTTP/1. */
  isStrict(row: number): boolean {
    return this.flows.get(row)?.strict === true
  }

  /** Whether a SYN-ACK answers another connection than that which was listened to so far. */
  isAnother(frame: number, row: number): boolean {
    const { pool } = this
    return this.streams.isAnother(row, 1 - pool.reversed[frame], tcp.acknowledgment(pool.bytes, pool.transport[frame]))
  }

  /** Gives up reading HTTP. */
  private give(flow: Flow, row: number, why: string): void {
    flow.http = undefined
    for (const { listener } of flow.listeners) listener.notHttp?.(row, why)
  }

  private forget(row: number): void {
    this.flows.delete(row)
    this.streams.end(row)
  }

  private datagram(flow: Flow, row: number, frame: number, at: number, end: number): void {
    const { pool } = this
    const size = pool.gso[frame] === 0 ? 0 : pool.gsoSize[frame]
    for (let from = at; from < end; from += size || end - from) {
      const questions = parseQuery(pool.bytes, from, size === 0 ? end : Math.min(from + size, end))
      for (const question of questions ?? [])
        for (const { listener } of flow.listeners) listener.question?.(row, question)
    }
  }

  /** The next bytes of what a client says. */
  private read(flow: Flow, row: number, bytes: Uint8Array): void {
    if (flow.fresh && !flow.strict) this.detect(flow, row, bytes[0])
    flow.fresh = false
    const { http, hello, dns } = flow
    if (http !== undefined) {
      http.feed(bytes)
      if (http.state !== 'http') this.give(flow, row, http.state === 'broken' ? http.flaw : http.state)
    }
    if (hello !== undefined) {
      hello.feed(bytes)
      if (hello.state !== 'waiting') flow.hello = undefined
      if (hello.hello !== undefined) for (const { listener } of flow.listeners) listener.hello?.(row, hello.hello)
    }
    if (dns !== undefined) {
      dns.feed(bytes)
      if (dns.broken) flow.dns = undefined
    }
  }

  /** Whom the first byte of a stream is for. */
  private detect(flow: Flow, row: number, first: number): void {
    const told = (question: DnsQuestion) => {
      for (const { listener } of flow.listeners) listener.question?.(row, question)
    }
    if (flow.serverPort === DNS_PORT) flow.dns = new DnsReader(told)
    else if (first === HANDSHAKE) flow.hello = new HelloReader()
    else if ((first >= 65 && first <= 90) || (first >= 97 && first <= 122) || first === 13 || first === 10)
      flow.http = this.httpReader(row, flow)
  }

  private httpReader(row: number, flow: Flow): HttpReader {
    return new HttpReader(head => {
      for (const { listener } of flow.listeners) listener.request?.(row, head)
    }, !flow.strict)
  }
}

/** Whether a packet is a part of one; an IPv6 packet of one fragment is whole (RFC 6946). */
function isFragment(pool: Pool, frame: number): boolean {
  if (pool.transport[frame] === 0) return true
  const b = pool.bytes
  const network = pool.network[frame]
  if (b[network] >> 4 === 4) return ipv4.isFragment(b, network)
  if (pool.transport[frame] === network + ipv6.HEADER) return false
  const fragment = ipv6.fragmentAt(b, network, packetEnd(pool, frame))
  return fragment !== 0 && ipv6.moreFragments(b, fragment)
}

function combine(flow: Flow): void {
  flow.sides = flow.listeners.reduce((sides, { wants }) => sides | wants.sides, 0)
  flow.strict = flow.listeners.some(({ wants }) => wants.protocol === 'strict')
}
