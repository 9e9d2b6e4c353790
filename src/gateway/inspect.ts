// Inspection: has every flow judged, by its first packet and by what it carries, and stops what a rule stops.

import { DROP, type DropReason } from '../drop.ts'
import type { FragmentTable } from '../flow/fragments.ts'
import type { Seed } from '../flow/hash.ts'
import { KEY, readKey } from '../flow/key.ts'
import type { FlowTableHandle } from '../flow/layout.ts'
import { FlowTable } from '../flow/table.ts'
import { VERDICT, verdictName } from '../flow/verdict.ts'
import type { Batch } from '../memory/batch.ts'
import type { StageCounters } from '../memory/counters.ts'
import { KEY_WORDS, type Pool } from '../memory/pool.ts'
import { packetsOf } from '../pipeline/decide.ts'
import type { Handover } from '../pipeline/handover.ts'
import type { Profile } from '../pipeline/profile.ts'
import type { TunnelConfig } from '../pipeline/tunnel.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as tcp from '../wire/tcp.ts'
import * as udp from '../wire/udp.ts'
import { Answers, packetEnd } from './answer.ts'
import { type Judge, type Policy, UNDECIDED } from './judge.ts'
import { Judges } from './judges.ts'
import { Contents } from './l7/contents.ts'
import type { LineLog, VerdictLog } from './log.ts'
import { PolicyJudge } from './policy/judge.ts'
import { RuleJudge } from './rule-judge.ts'
import { type Alert, eveLine } from './suricata/eve.ts'
import { SignatureJudge } from './suricata/judge.ts'
import type { Signature } from './suricata/model.ts'

export interface InspectOptions {
  profile: Profile
  tunnel: TunnelConfig
  policy: Policy
  flows: FlowTableHandle
  fragments: FragmentTable
  seed: Seed
  log: VerdictLog
  /** Threat signatures, and where alerts go. */
  signatures?: { rules: Signature[]; eve: LineLog }
  /** What is added to packet times to make them ms since the epoch; 0 where they are that already. */
  timeOriginMs: number
  /** The first flow's id and what is added for each further one; 1 and 1 when not given. */
  flowIds?: { first: number; step: number }
  /** Takes what belongs to other workers; undefined where there are none. */
  handover?: Handover
}

const STRAY = -1

/** Packets between two looks for idle flows, and rows looked at: every row is visited once in as many packets as there are rows. */
const EXPIRE_EVERY = 64

/** Networks in which the flow of a packet without tunnel header is looked for: those with a lower number. */
export const MAX_NETWORKS = 16

/** The stage between decap and turn; needs the metadata that decap leaves when it keeps the outer headers. */
export class Inspect {
  readonly flows: FlowTable
  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly options: InspectOptions
  private readonly answers: Answers
  private readonly contents: Contents
  private readonly judge: Judge
  private readonly tenants: Tenants
  /** 1 where end B opened the flow; by row. */
  private readonly opener: Uint8Array
  private packets = 0
  private nextFlow: number

  constructor(pool: Pool, counters: StageCounters, options: InspectOptions) {
    this.pool = pool
    this.counters = counters
    this.options = options
    this.nextFlow = options.flowIds?.first ?? 1
    this.flows = new FlowTable(options.flows)
    this.answers = new Answers(pool, counters, options.profile, options.tunnel)
    const { policy } = options
    const rows = options.flows.capacity + 1
    this.contents = new Contents(pool, 'rules' in policy ? undefined : policy.streams)
    const judge = 'rules' in policy ? new RuleJudge(pool, policy, rows) : new PolicyJudge(pool, this.contents, policy)
    this.judge = options.signatures === undefined ? judge : this.withSignatures(judge, options.signatures)
    this.flows.onEnd = row => this.judge.release(row)
    this.tenants = new Tenants()
    this.opener = new Uint8Array(options.flows.capacity + 1)
  }

  /**
   * Takes every frame of `received` and empties it: allowed ones, with that verdict, and answers are appended to `out` in order, which needs twice the room; those
   * of other workers are handed over, unless another worker has handed these over.
   */
  run(received: Batch, out: Batch, handedOver = false): void {
    const { pool, counters } = this
    const { frames, length } = received
    const handover = handedOver ? undefined : this.options.handover
    const before = out.length
    let bytes = 0
    let strays = 0
    for (let i = 0; i < length; i++) {
      const frame = frames[i]
      const size = pool.length[frame]
      const reason = this.inspect(frame, handover)
      // A stray is counted where it is at home.
      if (reason === STRAY) {
        strays++
        continue
      }
      bytes += size
      if (reason === 0) {
        out.push(frame)
        continue
      }
      if (reason === DROP.RESET) this.answers.make(frame, out)
      else if (reason === DROP.FORBIDDEN) this.answers.forbid(frame, out)
      counters.dropped(reason)
      pool.free(frame)
    }
    received.length = 0
    handover?.flush()
    counters.received(length - strays, bytes)
    let sent = 0
    for (let i = before; i < out.length; i++) sent += pool.length[out.frames[i]]
    counters.sent(out.length - before, sent)
  }

  /**
   * Finds the flow of a packet that comes without tunnel header, its headers checked: 0 with `flow` and `reversed` of the frame set, or why there is
   * none. What may be of either of two networks is of neither; those from MAX_NETWORKS on are not looked at.
   */
  recognise(frame: number): DropReason {
    const { pool, flows, options, tenants } = this
    flows.now = pool.time[frame]
    let found = -1
    for (let tenant = 0; tenant < Math.min(tenants.count, MAX_NETWORKS); tenant++) {
      pool.attachment[frame] = tenant
      const bad = readKey(pool, frame, options.fragments, options.seed, true)
      if (bad !== 0) return bad
      const row = flows.find(pool.key, frame * KEY_WORDS, pool.hash[frame])
      if (row < 0) continue
      if (found >= 0) return DROP.UNKNOWN_FLOW
      found = row
    }
    pool.flow[frame] = found
    return found < 0 ? DROP.UNKNOWN_FLOW : 0
  }

  /** Whether a frame whose flow is known travels away from who opened that. */
  isFromOpener(frame: number): boolean {
    return this.pool.reversed[frame] === this.opener[this.pool.flow[frame]]
  }

  /** Ends flows that are idle by the clock that stamps packets; call it now and then, and not where results must not depend on when. */
  expire(nowMs: number, budget: number): void {
    this.flows.now = nowMs
    this.flows.expire(budget)
  }

  /** Flows that were not inspected to their end, for lack of memory. */
  get unseen(): number {
    return this.contents.unseen
  }

  private withSignatures(judge: Judge, { rules, eve }: NonNullable<InspectOptions['signatures']>): Judge {
    const { pool, contents } = this
    const alert = (frame: number, row: number, what: Alert) => {
      const fromB = pool.reversed[frame] === 1
      eve.line(eveLine({ ...this.ends(frame, fromB), flow: this.flows.state(row) }, what))
    }
    return new Judges(judge, new SignatureJudge(pool, rules, { contents, alert }))
  }

  /** Does for one frame all but the freeing; STRAY when it was handed over. */
  private inspect(frame: number, handover: Handover | undefined): DropReason {
    const { pool, flows, options } = this
    if (++this.packets % EXPIRE_EVERY === 0) flows.expire(EXPIRE_EVERY)
    const tunnel = pool.outerTransport[frame] + udp.HEADER
    const vni = options.profile.vni(pool.bytes, tunnel)
    // Of two tunnels, one a direction, either is the same network.
    const { vni: own, arriving } = options.tunnel
    const tenant = this.tenants.number(vni === arriving?.vni ? own : vni)
    if (tenant < 0) return DROP.UNKNOWN_VNI
    pool.attachment[frame] = tenant
    const bad = readKey(pool, frame, options.fragments, options.seed, true)
    if (bad !== 0) return bad

    flows.now = pool.time[frame]
    const at = frame * KEY_WORDS
    let row = flows.find(pool.key, at, pool.hash[frame])
    if (row >= 0 && isAnswer(pool, frame) && this.judge.watches(row) && this.contents.isAnother(frame, row)) {
      // The server has begun anew with the same ports.
      flows.remove(row)
      row = -1
    }
    const isNew = row < 0
    if (isNew) {
      if (handover?.take(frame)) return STRAY
      const opener = pool.reversed[frame] ^ (isAnswer(pool, frame) ? 1 : 0)
      row = flows.insert(pool.key, at, pool.hash[frame], opener)
      if (row < 0) return DROP.FLOW_TABLE_FULL
      this.decide(frame, row, opener)
    }
    pool.flow[frame] = row
    const isTcp = pool.protocol[frame] === ipv4.PROTOCOL.TCP && pool.transport[frame] !== 0
    flows.touch(row, pool.reversed[frame], packetsOf(pool, frame), packetEnd(pool, frame) - pool.network[frame])
    if (isTcp) flows.tcpFlags(row, pool.reversed[frame], tcp.flags(pool.bytes, pool.transport[frame]))

    const { judge } = this
    const watched = judge.watches(row) && ownProtocol(pool, frame)
    const stopped = watched ? this.contents.packet(frame, row) : 0
    const found = watched ? judge.judge(frame, row) : UNDECIDED
    if (found !== UNDECIDED) this.settle(row, found)
    if (isNew || found !== UNDECIDED) this.log(frame, row, vni, found !== UNDECIDED)
    const verdict = flows.verdict(row)
    pool.verdict[frame] = verdict
    if (verdict === VERDICT.ALLOW) return stopped
    if (verdict === VERDICT.DROP) return DROP.POLICY
    if (verdict === VERDICT.FORBID && found !== UNDECIDED) return DROP.FORBIDDEN
    // Who was answered with 403 acknowledges that, and is let go when it hangs up.
    if (verdict === VERDICT.FORBID && !isFin(pool, frame)) return DROP.POLICY
    // Both ends are told to forget the connection, so its row is not kept for long either.
    if (isTcp) flows.tcpFlags(row, pool.reversed[frame], tcp.RST)
    return DROP.RESET
  }

  /** Decides a new flow, for now or for good. */
  private decide(frame: number, row: number, opener: number): void {
    const { judge, contents } = this
    let rule = judge.begin(frame, row, opener)
    if (isMidway(this.pool, frame) && !contents.isStrict(row)) {
      // Who speaks first of a connection that was begun unseen need not have opened it: if what the other one says is limited, it is.
      rule = judge.begin(frame, row, 1 - opener)
      if (contents.isStrict(row)) opener = 1 - opener
      else rule = judge.begin(frame, row, opener)
    }
    this.flows.setRule(row, rule)
    this.flows.setVerdict(row, this.judge.verdict(rule))
    this.opener[row] = opener
    this.flows.setState(row, this.nextFlow)
    this.nextFlow += this.options.flowIds?.step ?? 1
  }

  /** Decides a flow for good. */
  private settle(row: number, rule: number): void {
    this.flows.setRule(row, rule)
    const verdict = this.judge.verdict(rule)
    this.flows.setVerdict(row, verdict)
    if (verdict !== VERDICT.ALLOW) this.judge.release(row)
  }

  private log(frame: number, row: number, vni: number, byContent: boolean): void {
    const { pool, flows, options, judge } = this
    options.log.write({
      ...this.ends(frame, this.opener[row] === 1),
      flow: flows.state(row),
      profile: options.profile.name,
      vni,
      rule: judge.name(flows.rule(row)),
      action: verdictName(flows.verdict(row)),
      packet: this.packets,
      bytes: packetEnd(pool, frame) - pool.network[frame],
      offset: byContent ? judge.matchedAt : -1,
      detail: byContent ? judge.detail : undefined,
    })
  }

  /** When a frame came, and between whom, `fromB` as from end B. */
  private ends(frame: number, fromB: boolean) {
    const { pool, options } = this
    const at = frame * KEY_WORDS
    const ports = pool.key[at + KEY.PORTS]
    const kind = pool.key[at + KEY.KIND]
    const a = formatAddress(pool.key, at + KEY.A, kind >>> 24)
    const b = formatAddress(pool.key, at + KEY.B, kind >>> 24)
    return {
      timeMs: options.timeOriginMs + pool.time[frame],
      protocol: (kind >>> 16) & 0xff,
      source: fromB ? b : a,
      sourcePort: fromB ? ports & 0xffff : ports >>> 16,
      destination: fromB ? a : b,
      destinationPort: fromB ? ports >>> 16 : ports & 0xffff,
    }
  }
}

/** Small numbers for the VNIs seen, so that networks with overlapping addresses do not share flows (RFC 7348 section 4). */
class Tenants {
  private readonly numbers = new Map<number, number>()
  private lastVni = -1
  private lastNumber = -1

  get count(): number {
    return this.numbers.size
  }

  /** The number of a VNI, or -1 when there are too many. */
  number(vni: number): number {
    if (vni === this.lastVni) return this.lastNumber
    let number = this.numbers.get(vni)
    if (number === undefined) {
      number = this.numbers.size
      if (number > 0xffff) return -1
      this.numbers.set(vni, number)
    }
    this.lastVni = vni
    this.lastNumber = number
    return number
  }
}

/** A SYN with ACK: the packet's receiver has opened the connection. */
function isAnswer(pool: Pool, frame: number): boolean {
  if (pool.protocol[frame] !== ipv4.PROTOCOL.TCP || pool.transport[frame] === 0) return false
  const both = tcp.SYN | tcp.ACK
  return (tcp.flags(pool.bytes, pool.transport[frame]) & both) === both
}

/** A TCP packet that begins no connection. */
function isMidway(pool: Pool, frame: number): boolean {
  if (pool.protocol[frame] !== ipv4.PROTOCOL.TCP || pool.transport[frame] === 0) return false
  return (tcp.flags(pool.bytes, pool.transport[frame]) & tcp.SYN) === 0
}

function isFin(pool: Pool, frame: number): boolean {
  return pool.transport[frame] !== 0 && (tcp.flags(pool.bytes, pool.transport[frame]) & tcp.FIN) !== 0
}

/** False for an ICMP error about the flow, whose payload is not the flow's. */
function ownProtocol(pool: Pool, frame: number): boolean {
  return ((pool.key[frame * KEY_WORDS + KEY.KIND] >>> 16) & 0xff) === pool.protocol[frame]
}

function formatAddress(key: Int32Array, at: number, version: number): string {
  if (version === 4) return ipv4.formatAddress(key[at])
  const bytes = new Uint8Array(16)
  for (let i = 0; i < 4; i++) new DataView(bytes.buffer).setInt32(4 * i, key[at + i])
  return ipv6.formatAddress(bytes)
}
