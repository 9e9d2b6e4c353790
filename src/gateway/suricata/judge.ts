// Judges by threat signatures: alerts of all that match, and drops, resets or lets be what the first of those rules says.
//
// A rule speaks once a flow (Suricata: once a packet or transaction). Of all that one packet brings to light, `pass` counts
// before `drop`, `reject` and `alert`, and ends the search in the flow.

import { KEY } from '../../flow/key.ts'
import { VERDICT } from '../../flow/verdict.ts'
import { KEY_WORDS, type Pool } from '../../memory/pool.ts'
import * as ipv4 from '../../wire/ipv4.ts'
import * as tcp from '../../wire/tcp.ts'
import { packetEnd } from '../answer.ts'
import { type Judge, UNDECIDED } from '../judge.ts'
import type { Contents, Listener } from '../l7/contents.ts'
import type { DnsQuestion } from '../l7/dns.ts'
import type { RequestHead } from '../l7/http.ts'
import type { ClientHello } from '../l7/tls.ts'
import type { Alert } from './eve.ts'
import type { Text } from './match.ts'
import { ACTIONS, type Header, type Signature } from './model.ts'
import { Found } from './prefilter.ts'
import { type Group, Ruleset, type Texts } from './ruleset.ts'
import { addressNumber, has } from './sets.ts'
import { requestTexts, textOf } from './texts.ts'
import { PIECE, Window, WindowMemory } from './window.ts'

/** Memory for windows over streams, of one worker. */
const WINDOWS = 128 << 20
/** Flows of one worker that are looked at, at most: about 1 KiB each. */
const LIMIT_FLOWS = 1 << 18
/** Rules of one stream whose needle was found and that wait for more; the oldest is given up. */
const LIMIT_PENDING = 256

/** What has been seen of a handshake. */
const HANDSHAKE = { NONE: 0, SYN: 1, ANSWERED: 2, DONE: 3 } as const

interface Side {
  window: Window
  /** Rules whose needle was found, and the number of the byte behind which that was. */
  pending: { rule: number; seen: number }[]
}

/** A flow that signatures may match in. */
interface Flow {
  protocol: number
  client: number
  /** By side. */
  addresses: [bigint, bigint]
  ports: [number, number]
  handshake: number
  /** A bit a side: packets of it were seen. */
  seen: number
  application?: 'http' | 'tls' | 'dns'
  /** Rules that have spoken; none has while undefined. NB: a bit for each rule there is would be 25 KB a flow. */
  spoken?: Set<number>
  bare: number[]
  sides: [Side, Side] | undefined
  request?: RequestHead
  hello?: ClientHello
  question?: DnsQuestion
}

/** What the signatures' judge needs of its gateway. */
export interface SignatureHost {
  contents: Contents
  /** Takes what is to be told. */
  alert(frame: number, row: number, alert: Alert): void
}

export class SignatureJudge implements Judge, Listener {
  matchedAt = -1
  detail: string | undefined
  private readonly pool: Pool
  private readonly rules: Ruleset
  private readonly host: SignatureHost
  private readonly headers: Header[]
  private readonly flows = new Map<number, Flow>()
  private readonly memory = new WindowMemory(WINDOWS)
  private readonly candidates: Found
  /** Rules that match by the packet at hand. */
  private readonly matched: number[] = []
  private readonly payload: Text

  constructor(pool: Pool, signatures: Signature[], host: SignatureHost) {
    this.pool = pool
    this.rules = new Ruleset(signatures)
    this.host = host
    this.headers = [...new Map(signatures.map(({ header }) => [headerKey(header), header])).values()]
    this.candidates = new Found(signatures.length)
    this.payload = { bytes: pool.bytes, view: pool.view, at: 0, end: 0, base: 0 }
  }

  /** Never decides by a first packet's header: rules that do are asked with its contents. */
  begin(frame: number, row: number, opener: number): number {
    const { pool } = this
    this.release(row)
    const at = frame * KEY_WORDS
    const kind = pool.key[at + KEY.KIND]
    const ports = pool.key[at + KEY.PORTS]
    const version = kind >>> 24
    const flow: Flow = {
      protocol: (kind >>> 16) & 0xff,
      client: opener,
      addresses: [address(pool.key, at + KEY.A, version), address(pool.key, at + KEY.B, version)],
      ports: [ports >>> 16, ports & 0xffff],
      handshake: HANDSHAKE.NONE,
      seen: 0,
      bare: [],
      sides: undefined,
    }
    if (!this.headers.some(header => covers(header, flow, 0) || covers(header, flow, 1))) return UNDECIDED
    if (this.flows.size >= LIMIT_FLOWS) {
      this.host.contents.unseen++
      return UNDECIDED
    }
    const { signatures, bare } = this.rules
    flow.bare = bare.filter(
      rule => covers(signatures[rule].header, flow, 0) || covers(signatures[rule].header, flow, 1),
    )
    this.flows.set(row, flow)
    const isTcp = flow.protocol === ipv4.PROTOCOL.TCP
    if (isTcp && isFirst(pool, frame)) flow.handshake = HANDSHAKE.SYN
    else if (isTcp) flow.handshake = HANDSHAKE.DONE
    const port = flow.ports[1 - opener]
    this.host.contents.join(row, opener, port, this, { sides: 3, protocol: 'any', tolerant: true })
    return UNDECIDED
  }

  watches(row: number): boolean {
    return this.flows.has(row)
  }

  /** Takes what the packet is itself; its contents have been told. */
  judge(frame: number, row: number): number {
    const flow = this.flows.get(row)
    if (flow === undefined) return UNDECIDED
    this.lookAtPacket(flow, frame)
    return this.matched.length === 0 ? UNDECIDED : this.speak(flow, frame, row)
  }

  packet(frame: number, row: number): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    this.matched.length = 0
    const { pool } = this
    const side = pool.reversed[frame]
    flow.seen |= 1 << side
    if (flow.protocol !== ipv4.PROTOCOL.TCP || pool.transport[frame] === 0) return
    const flags = tcp.flags(pool.bytes, pool.transport[frame])
    if (flow.handshake === HANDSHAKE.SYN && side !== flow.client && (flags & tcp.SYN) !== 0)
      flow.handshake = HANDSHAKE.ANSWERED
    else if (flow.handshake === HANDSHAKE.ANSWERED && side === flow.client && (flags & tcp.ACK) !== 0)
      flow.handshake = HANDSHAKE.DONE
  }

  release(row: number): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    for (const { window } of flow.sides ?? []) window.release()
    this.flows.delete(row)
    this.host.contents.leave(row, this)
  }

  verdict(rule: number): number {
    return this.rules.signatures[rule].action === 'drop' ? VERDICT.DROP : VERDICT.RESET
  }

  name(rule: number): string {
    const { gid, sid, rev, msg } = this.rules.signatures[rule]
    return `signature ${gid}:${sid}:${rev} ${msg}`
  }

  data(row: number, side: number, bytes: Uint8Array, at: number, end: number, offset: number): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    const group = this.rules.groups.stream[side === flow.client ? 0 : 1]
    if (group.isEmpty) return
    flow.sides ??= [newSide(this.memory), newSide(this.memory)]
    for (let from = at; from < end; from += PIECE)
      this.stretch(flow, group, side, bytes, from, Math.min(from + PIECE, end), offset + from - at)
  }

  request(row: number, head: RequestHead): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    flow.request = head
    this.unit(flow, 'http', () => requestTexts(head))
  }

  hello(row: number, hello: ClientHello): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    flow.hello = hello
    this.unit(flow, 'tls', () => (hello.serverName === undefined ? {} : { 'tls.sni': textOf(hello.serverName) }))
  }

  question(row: number, question: DnsQuestion): void {
    const flow = this.flows.get(row)
    if (flow === undefined) return
    flow.question = question
    this.unit(flow, 'dns', () => ({ 'dns.query': textOf(question.raw) }))
  }

  private unit(flow: Flow, unit: 'http' | 'tls' | 'dns', texts: () => Texts): void {
    flow.application = unit
    const group = this.rules.groups[unit][0]
    if (!group.isEmpty) this.look(flow, group, flow.client, texts())
  }

  /** Looks at one unit as a whole. */
  private look(flow: Flow, group: Group, side: number, texts: Texts): void {
    const { candidates } = this
    candidates.clear()
    group.candidates(texts, candidates)
    for (let i = 0; i < candidates.count; i++) {
      const rule = candidates.list[i]
      if (this.applies(flow, rule, side) && this.rules.matches(rule, texts)) this.matched.push(rule)
    }
  }

  /** Looks at a stream's newest bytes, with those before them. */
  private stretch(
    flow: Flow,
    group: Group,
    side: number,
    bytes: Uint8Array,
    at: number,
    end: number,
    offset: number,
  ): void {
    const { candidates, rules } = this
    const { window, pending } = flow.sides![side]
    const fresh = window.append(bytes, at, end, offset)
    if (side === flow.client) flow.application ??= spokenIn(window)
    const texts: Texts = { payload: window }
    candidates.clear()
    // A needle may have begun in what came before.
    group.candidates(texts, candidates, Math.max(0, fresh - 15))
    if (candidates.count === 0 && pending.length === 0) return
    for (const { rule, seen } of pending.splice(0)) {
      if (candidates.has(rule) || seen <= window.base || hasSpoken(flow, rule)) continue
      if (this.applies(flow, rule, side) && rules.matches(rule, texts)) this.matched.push(rule)
      else pending.push({ rule, seen })
    }
    for (let i = 0; i < candidates.count; i++) {
      const rule = candidates.list[i]
      if (hasSpoken(flow, rule) || !covers(rules.signatures[rule].header, flow, side)) continue
      if (this.applies(flow, rule, side) && rules.matches(rule, texts)) this.matched.push(rule)
      else if (pending.push({ rule, seen: window.base + window.end }) > LIMIT_PENDING) pending.shift()
    }
    if (this.matched.length > 0) this.matchedAt = window.base + window.end
  }

  /** Rules about packets, and about nothing but their headers. */
  private lookAtPacket(flow: Flow, frame: number): void {
    const { pool, payload, rules } = this
    const side = pool.reversed[frame]
    const isTcp = flow.protocol === ipv4.PROTOCOL.TCP
    const group = rules.groups[isTcp ? 'segment' : 'datagram'][side === flow.client ? 0 : 1]
    if (!group.isEmpty && pool.transport[frame] !== 0) {
      const end = packetEnd(pool, frame)
      const size = pool.gso[frame] === 0 ? 0 : pool.gsoSize[frame]
      for (let at = pool.payload[frame]; at < end; at = payload.end) {
        payload.at = at
        payload.end = size === 0 ? end : Math.min(at + size, end)
        this.look(flow, group, side, { payload })
      }
    }
    for (const rule of flow.bare) if (this.applies(flow, rule, side)) this.matched.push(rule)
  }

  /** Whether a rule is about what a side of a flow sends now, and has not spoken yet. */
  private applies(flow: Flow, rule: number, side: number): boolean {
    const { header, flow: wanted } = this.rules.signatures[rule]
    if (hasSpoken(flow, rule)) return false
    const { protocol } = header
    if ((protocol === 'http' || protocol === 'tls' || protocol === 'dns') && flow.application !== protocol) return false
    if (wanted.direction !== 'both' && (wanted.direction === 'to_server') !== (side === flow.client)) return false
    if (wanted.established !== undefined && wanted.established !== isEstablished(flow)) return false
    return covers(header, flow, side)
  }

  /** Tells what has matched; returns the rule that stops the flow, if one does. */
  private speak(flow: Flow, frame: number, row: number): number {
    const { matched, rules, host } = this
    const { signatures } = rules
    const order = [...new Set(matched)].sort(
      (x, y) => ACTIONS.indexOf(signatures[x].action) - ACTIONS.indexOf(signatures[y].action) || x - y,
    )
    if (signatures[order[0]].action === 'pass') {
      this.release(row)
      return UNDECIDED
    }
    flow.spoken ??= new Set()
    for (const rule of order) {
      flow.spoken.add(rule)
      const { request, hello, question, application } = flow
      const toServer = this.pool.reversed[frame] === flow.client
      host.alert(frame, row, { signature: signatures[rule], toServer, application, request, hello, question })
    }
    const [first] = order
    this.detail = undefined
    return signatures[first].action === 'alert' ? UNDECIDED : first
  }
}

function newSide(memory: WindowMemory): Side {
  return { window: new Window(memory), pending: [] }
}

function hasSpoken({ spoken }: Flow, rule: number): boolean {
  return spoken?.has(rule) === true
}

function isEstablished({ protocol, handshake, seen }: Flow): boolean {
  return protocol === ipv4.PROTOCOL.TCP ? handshake === HANDSHAKE.DONE : seen === 3
}

const METHODS =
  /^(?:GET|PUT|POST|HEAD|TRACE|OPTIONS|CONNECT|DELETE|PATCH|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|LOCK|UNLOCK|REPORT|MERGE)[ \t]/
const LONGEST_METHOD = 10

/** What a client speaks, by how its stream begins (as Suricata's detection of protocols does it); a head that comes in parts is known by its first. */
function spokenIn({ bytes, base, end }: Window): Flow['application'] {
  if (base !== 0) return undefined
  if (end >= 3 && bytes[0] === 22 && bytes[1] === 3 && bytes[2] <= 4) return 'tls'
  return METHODS.test(String.fromCharCode(...bytes.subarray(0, Math.min(end, LONGEST_METHOD)))) ? 'http' : undefined
}

const NUMBERS: Record<string, readonly number[]> = {
  tcp: [6],
  'tcp-pkt': [6],
  'tcp-stream': [6],
  http: [6],
  tls: [6],
  udp: [17],
  dns: [6, 17],
  icmp: [1, 58],
}

/** Whether a rule's header is about what a side of a flow sends. */
function covers({ protocol, from, fromPorts, to, toPorts, bothWays }: Header, flow: Flow, side: number): boolean {
  if (protocol !== 'ip' && !NUMBERS[protocol].includes(flow.protocol)) return false
  const { addresses, ports } = flow
  const ported = flow.protocol === 6 || flow.protocol === 17
  const one = (x: number) =>
    has(from, addresses[x]) &&
    has(to, addresses[1 - x]) &&
    (!ported || (has(fromPorts, ports[x]) && has(toPorts, ports[1 - x])))
  return one(side) || (bothWays && one(1 - side))
}

function headerKey({ protocol, from, fromPorts, to, toPorts, bothWays }: Header): string {
  const text = [from, fromPorts, to, toPorts].map(set => set.map(({ low, high }) => `${low}-${high}`).join())
  return `${protocol} ${text.join(' ')} ${bothWays}`
}

function address(key: Int32Array, at: number, version: number): bigint {
  const bytes = new DataView(new ArrayBuffer(version === 4 ? 4 : 16))
  for (let i = 0; i < bytes.byteLength; i += 4) bytes.setInt32(i, key[at + (i >> 2)])
  return addressNumber(new Uint8Array(bytes.buffer))
}

/** A SYN that opens. */
function isFirst(pool: Pool, frame: number): boolean {
  if (pool.transport[frame] === 0) return false
  return (tcp.flags(pool.bytes, pool.transport[frame]) & (tcp.SYN | tcp.ACK)) === tcp.SYN
}
