// Judges by Kubernetes' and Cilium's policies: once a flow, and once a request where only some requests are allowed.

import { KEY } from '../../flow/key.ts'
import { VERDICT } from '../../flow/verdict.ts'
import { KEY_WORDS, type Pool } from '../../memory/pool.ts'
import * as ipv4 from '../../wire/ipv4.ts'
import * as ipv6 from '../../wire/ipv6.ts'
import { type Denial, type Judge, type Manifests, UNDECIDED } from '../judge.ts'
import type { Contents, Listener } from '../l7/contents.ts'
import type { RequestHead } from '../l7/http.ts'
import { type Inventory, inventoryOf } from './inventory.ts'
import type { HttpRule } from './model.ts'
import { type HalfAnswer, Policies, policiesOf } from './policies.ts'

const NAMED = { [ipv4.PROTOCOL.TCP]: 'TCP', [ipv4.PROTOCOL.UDP]: 'UDP', 132: 'SCTP' } as const

const ACTION = { reset: VERDICT.RESET, drop: VERDICT.DROP, 403: VERDICT.RESET } as const

/** A flow of which only some requests are allowed. */
interface Watched {
  /** Sets of requests: one of each must match. */
  wanted: (readonly HttpRule[])[]
  /** The rule that decides when a request is denied. */
  denying: number
}

export class PolicyJudge implements Judge, Listener {
  matchedAt = -1
  detail: string | undefined
  private readonly pool: Pool
  private readonly inventory: Inventory
  private readonly policies: Policies
  private readonly denial: Denial
  private readonly contents: Contents
  private readonly watched = new Map<number, Watched>()
  /** Rules by number: what they are called and what becomes of a flow. */
  private readonly names: string[] = []
  private readonly verdicts: number[] = []
  private readonly numbers = new Map<string, number>()
  /** What a packet has brought to light. */
  private found = UNDECIDED

  /** Throws DetourError when a policy cannot be understood. */
  constructor(pool: Pool, contents: Contents, { policies, inventory, denial }: Manifests) {
    this.pool = pool
    this.inventory = inventoryOf(inventory)
    this.policies = new Policies(policiesOf(policies))
    this.denial = denial
    this.contents = contents
  }

  begin(frame: number, row: number, opener: number): number {
    const { pool, inventory } = this
    const at = frame * KEY_WORDS
    const kind = pool.key[at + KEY.KIND]
    const ports = pool.key[at + KEY.PORTS]
    const fromB = opener === 1
    const port = fromB ? ports >>> 16 : ports & 0xffff
    const [a, b] = [KEY.A, KEY.B].map(end => inventory.party(addressOf(pool.key, at + end, kind >>> 24)))
    const protocol = (kind >>> 16) & 0xff
    const answer = this.policies.decide({
      from: fromB ? b : a,
      to: fromB ? a : b,
      protocol: protocol in NAMED ? NAMED[protocol as keyof typeof NAMED] : 'other',
      port,
    })
    const { egress, ingress } = answer
    this.release(row)
    const halves = [egress, ingress]
    if (answer.verdict === 'deny')
      return this.number(halves.find(half => half.verdict === 'deny')!.reason, ACTION[this.denial])
    // The receiver's word is the last one, unless only the sender has something to say.
    const telling = halves.findLast(half => half.rule !== undefined) ?? ingress
    if (answer.verdict === 'request' && protocol === ipv4.PROTOCOL.TCP) this.watch(row, opener, port, halves)
    return this.number(telling.rule ?? telling.reason, VERDICT.ALLOW)
  }

  watches(row: number): boolean {
    return this.watched.has(row)
  }

  judge(): number {
    const { found } = this
    this.found = UNDECIDED
    return found
  }

  release(row: number): void {
    if (this.watched.delete(row)) this.contents.leave(row, this)
  }

  verdict(rule: number): number {
    return this.verdicts[rule]
  }

  name(rule: number): string {
    return this.names[rule]
  }

  request(row: number, head: RequestHead): void {
    const watched = this.watched.get(row)
    if (watched === undefined || this.found !== UNDECIDED) return
    if (watched.wanted.every(rules => rules.some(rule => rule.matches(head)))) return
    this.deny(watched, `${head.method} ${head.target}`)
  }

  notHttp(row: number, why: string): void {
    const watched = this.watched.get(row)
    if (watched !== undefined && this.found === UNDECIDED) this.deny(watched, `not HTTP/1: ${why}`)
  }

  data(_row: number, _side: number, _bytes: Uint8Array, at: number, end: number, offset: number): void {
    if (this.found !== UNDECIDED) this.matchedAt = offset + (end - at)
  }

  private watch(row: number, client: number, port: number, halves: HalfAnswer[]): void {
    const limited = halves.filter(half => half.verdict === 'request')
    const policy = limited[0].rule
    const denied = this.denial === '403' ? VERDICT.FORBID : ACTION[this.denial]
    this.watched.set(row, {
      wanted: limited.map(half => half.http),
      denying: this.number(`${policy} (request)`, denied),
    })
    this.contents.join(row, client, port, this, { sides: 1 << client, protocol: 'strict', tolerant: false })
  }

  private deny(watched: Watched, detail: string): void {
    this.detail = detail
    this.found = watched.denying
  }

  /** The number of a rule of this name and verdict. */
  private number(name: string, verdict: number): number {
    const key = `${verdict} ${name}`
    let number = this.numbers.get(key)
    if (number === undefined) {
      number = this.names.length
      this.numbers.set(key, number)
      this.names.push(name)
      this.verdicts.push(verdict)
    }
    return number
  }
}

function addressOf(key: Int32Array, at: number, version: number): string {
  if (version === 4) return ipv4.formatAddress(key[at])
  const bytes = new Uint8Array(16)
  for (let i = 0; i < 4; i++) new DataView(bytes.buffer).setInt32(4 * i, key[at + i])
  return ipv6.formatAddress(bytes)
}
