// Runs cases against a target: sends, waits for answers, and judges them, one case after the other.

import { type Answer, parts } from './answer.ts'
import type { Case, Hands, PacketCase, Target } from './case.ts'
import type { Channel } from './channel.ts'
import { identityOf } from './judges.ts'
import { type Maker, type Probe, tokenIn } from './probe.ts'
import { line } from './report.ts'

export type Outcome = 'pass' | 'fail' | 'skip'

/** A packet that passed, in either direction. */
export interface Captured {
  packet: Uint8Array
  /** ms since the epoch. */
  time: number
}

export interface Result {
  name: string
  section: string
  outcome: Outcome
  expected: string
  /** Why it was not asked. */
  why?: string
  sent?: string
  seen?: string
  ms: number
  /** Everything that was sent and received; of a failed case only. */
  packets: Captured[]
}

export interface RunOptions {
  target: Target
  channel: Channel
  make: Maker
  host: string
  timeoutMs: number
  /** Waits; a test may not want to. */
  sleep(ms: number): Promise<void>
}

/** A sentinel is sent again when it is not answered: one packet may be lost. */
const SENTINELS = 3

/** What came back for the probes of one case. */
interface Exchange {
  answers: Map<number, Answer>
  /** In the order in which answers came, twice who was answered twice. */
  answered: Probe[]
  /** Why a probe could not be sent. */
  unsendable?: string
  /** The first whose answer did not come. */
  missing?: Probe
  /** The packet behind what had to be dropped was not answered. */
  silent: boolean
}

interface Verdict {
  probe?: Probe
  seen: string
}

function endsWith(packet: Uint8Array, tail: Uint8Array): boolean {
  return Buffer.compare(packet.subarray(Math.max(0, packet.length - tail.length)), tail) === 0
}

/** Runs cases one after the other. */
export class Runner {
  private readonly options: RunOptions
  private packets: Captured[] = []
  private readonly identities = new Set<string>()
  /** Probes that have no room for a token: SYNs and the like. */
  private readonly bare: Probe[] = []
  /** The case after which the endpoint did not answer any more. */
  private deadSince?: string

  constructor(options: RunOptions) {
    this.options = options
  }

  /** Runs one case. */
  async run(one: Case): Promise<Result> {
    const started = performance.now()
    const { name, section, expected } = one
    this.packets = []
    const result = (outcome: Outcome, more: Partial<Result> = {}): Result => {
      const ms = Math.round(performance.now() - started)
      return { name, section, expected, outcome, ms, packets: outcome === 'fail' ? this.packets : [], ...more }
    }
    const why = one.without?.(this.options.target)
    if (why !== undefined) return result('skip', { why })
    if (this.deadSince !== undefined)
      return result('skip', { why: `the endpoint has not answered since ${this.deadSince}` })
    if ('run' in one) {
      const seen = await one.run(this.hands())
      return seen === undefined ? result('pass') : result('fail', { sent: one.sent, seen })
    }
    const exchange = await this.exchange(one.sends(this.options.make), one.burst === true)
    if (exchange.unsendable !== undefined) return result('skip', { why: exchange.unsendable })
    const verdict = this.judge(one, exchange)
    if (verdict === undefined) return result('pass')
    if (exchange.silent || exchange.missing !== undefined) await this.lookForLife(name, exchange, verdict)
    const { probe, seen } = verdict
    return result('fail', { sent: probe && this.line(probe.packet), seen })
  }

  private line(packet: Uint8Array): string {
    const { port, otherPort = port } = this.options.channel
    return line(this.options.target.profile.kind, [port, otherPort], packet)
  }

  private hands(): Hands {
    const { target, host, timeoutMs, sleep, make } = this.options
    const alive = async () => {
      const probe = make.plain()
      return (await this.exchange([probe], false)).answers.size > 0
    }
    return { target, host, timeoutMs, alive, sleep }
  }

  /** Sends probes and collects what comes back. */
  private async exchange(probes: Probe[], burst: boolean): Promise<Exchange & { probes: Probe[] }> {
    const { make, sleep } = this.options
    const exchange = { probes, answers: new Map<number, Answer>(), answered: [], silent: false } as Exchange & {
      probes: Probe[]
    }
    const sent = new Map<number, number>()
    for (const probe of probes) {
      if (probe.pauseSeconds > 0) await sleep(probe.pauseSeconds * 1000)
      exchange.unsendable = this.send(probe, sent)
      if (exchange.unsendable !== undefined) return exchange
      if (burst || probe.fate !== 'back') continue
      if (await this.collect(exchange, sent, [probe])) continue
      exchange.missing = probe
      return exchange
    }
    if (burst || probes.some(({ fate }) => fate !== 'back')) {
      const { flow, vni } = probes[probes.length - 1]
      const sentinels: Probe[] = []
      do {
        const sentinel = make.plain(flow, { vni })
        sentinels.push(sentinel)
        this.send(sentinel, sent)
        exchange.silent = !(await this.collect(exchange, sent, sentinels))
      } while (exchange.silent && sentinels.length < SENTINELS)
    }
    return exchange
  }

  private send(probe: Probe, sent: Map<number, number>): string | undefined {
    this.packets.push({ packet: probe.packet, time: Date.now() })
    sent.set(probe.token, performance.now())
    this.identities.add(identityOf(probe))
    if (tokenIn(probe.packet) === 0) this.bare.push(probe)
    return this.options.channel.send(probe.packet, probe.raw)
  }

  /** Takes what comes until one of `awaited` is answered: true; or until the time is over. */
  private async collect(
    exchange: Exchange & { probes: Probe[] },
    sent: Map<number, number>,
    awaited: Probe[],
  ): Promise<boolean> {
    const { channel, timeoutMs } = this.options
    const { probes, answers, answered } = exchange
    const end = performance.now() + timeoutMs
    for (;;) {
      const packet = await channel.receive(Math.max(0, end - performance.now()))
      if (packet === undefined) return false
      this.packets.push({ packet, time: Date.now() })
      const token = tokenIn(packet)
      if (awaited.some(probe => probe.token === token && !probes.includes(probe))) return true
      const known = token === 0 ? this.bare.findLast(each => endsWith(packet, each.inner))?.token : token
      // What cannot be told by token or content answers the first probe that still waits for an answer, or else a sentinel.
      const probe =
        known === undefined
          ? probes.find(each => each.fate !== 'nothing' && sent.has(each.token) && !answers.has(each.token))
          : probes.find(each => each.token === known)
      if (known === undefined && probe === undefined && awaited.every(each => !probes.includes(each))) return true
      if (probe === undefined) continue
      answered.push(probe)
      const ms = performance.now() - (sent.get(probe.token) ?? 0)
      if (!answers.has(probe.token)) answers.set(probe.token, { packet, token, ms })
      if (awaited.includes(probe)) return true
    }
  }

  private judge(one: PacketCase, exchange: Exchange & { probes: Probe[] }): Verdict | undefined {
    const { timeoutMs, target } = this.options
    const { probes, answers, answered, missing, silent } = exchange
    for (const probe of probes) {
      const answer = answers.get(probe.token)
      if (probe === missing) return { probe, seen: `nothing came back within ${timeoutMs} ms` }
      if (answer === undefined) continue
      const shown = this.line(answer.packet)
      if (probe.fate === 'nothing') return { probe, seen: `it came back: ${shown}` }
      if (one.judge === undefined) continue
      const read = parts(target.profile, answer.packet)
      const wrong = typeof read === 'string' ? read : one.judge(probe, read, this.identities)
      if (wrong !== undefined) return { probe, seen: `${wrong}; ${shown}` }
    }
    if (silent)
      return { probe: probes[probes.length - 1], seen: 'afterwards, sound packets were not answered any more' }
    const wrong = one.judgeAll?.(probes, answered)
    return wrong === undefined ? undefined : { probe: probes[0], seen: wrong }
  }

  /** Tells a target that is late, or has lost one packet, from one that is dead. */
  private async lookForLife(name: string, exchange: Exchange & { probes: Probe[] }, verdict: Verdict): Promise<void> {
    const { make, timeoutMs } = this.options
    const { missing } = exchange
    const sent = new Map<number, number>()
    const started = performance.now()
    for (let i = 0; i < SENTINELS; i++) {
      const probe = make.plain()
      this.send(probe, sent)
      const late = missing === undefined ? [] : [missing]
      const watched = { ...exchange, probes: [...late, probe], answers: new Map<number, Answer>() }
      if (!(await this.collect(watched, sent, watched.probes))) continue
      if (missing !== undefined && watched.answers.has(missing.token)) {
        const ms = timeoutMs + performance.now() - started
        verdict.seen = `the answer came after ${Math.round(ms)} ms; ${timeoutMs} ms are allowed (--timeout)`
      }
      return
    }
    this.deadSince = name
  }
}
