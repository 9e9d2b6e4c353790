// Signatures made ready: by what they look at (a stream, a packet, a request ...) and from which side, behind prefilters.

import { Budget } from './expressions.ts'
import { Matcher, type Text } from './match.ts'
import type { BufferName, Signature } from './model.ts'
import { Found, NEEDLE, Prefilter } from './prefilter.ts'

/** What is looked at in one go. */
export const UNITS = ['stream', 'segment', 'datagram', 'http', 'tls', 'dns'] as const
export type Unit = (typeof UNITS)[number]

/** The texts of a unit by buffer. */
export type Texts = Partial<Record<BufferName, Text>>

/** The rules of one unit and side. */
export class Group {
  /** Rules that no needle can tell apart: negated contents and expressions only. */
  readonly always: number[] = []
  private readonly filters: { buffer: BufferName; prefilter: Prefilter; needles: Found; rules: number[][] }[] = []

  /** `chosen` are numbers of `signatures`. */
  constructor(signatures: Signature[], chosen: number[]) {
    const byBuffer = new Map<BufferName, Map<string, { bytes: Uint8Array; nocase: boolean; rules: number[] }>>()
    for (const rule of chosen) {
      const { fast, parts } = signatures[rule]
      if (fast === undefined) {
        this.always.push(rule)
        continue
      }
      const part = parts.find(one => one.buffer === fast.buffer)!.parts[fast.part]
      if (part.kind !== 'content') continue
      const bytes = part.bytes.slice(0, NEEDLE)
      const key = `${part.nocase} ${bytes.join()}`
      let needles = byBuffer.get(fast.buffer)
      if (needles === undefined) byBuffer.set(fast.buffer, (needles = new Map()))
      const needle = needles.get(key)
      if (needle === undefined) needles.set(key, { bytes, nocase: part.nocase, rules: [rule] })
      else needle.rules.push(rule)
    }
    for (const [buffer, needles] of byBuffer) {
      const all = [...needles.values()]
      this.filters.push({
        buffer,
        prefilter: new Prefilter(all),
        needles: new Found(all.length),
        rules: all.map(one => one.rules),
      })
    }
  }

  get isEmpty(): boolean {
    return this.always.length === 0 && this.filters.length === 0
  }

  /** Adds to `found` the rules whose needle lies in the texts, in that of the payload from `from` on. */
  candidates(texts: Texts, found: Found, from = -1): void {
    for (const { buffer, prefilter, needles, rules } of this.filters) {
      const text = texts[buffer]
      if (text === undefined) continue
      needles.clear()
      prefilter.scan(text.bytes, text.view, from < 0 ? text.at : from, text.end, needles)
      for (let i = 0; i < needles.count; i++) for (const rule of rules[needles.list[i]]) found.add(rule)
    }
    for (const rule of this.always) found.add(rule)
  }
}

/** All rules; one thread. */
export class Ruleset {
  readonly signatures: Signature[]
  /** By unit and side: 0 for what who opened the flow says, 1 for the other. */
  readonly groups: Record<Unit, [Group, Group]>
  /** Rules that look at nothing but the header, of packets of every kind. */
  readonly bare: number[]
  private readonly matchers: { buffer: BufferName; matcher: Matcher }[][]

  constructor(signatures: Signature[]) {
    const budget = new Budget()
    this.signatures = signatures
    this.matchers = signatures.map(({ parts }) =>
      parts.map(({ buffer, parts: those }) => ({
        buffer,
        matcher: new Matcher(those, ({ source, flags }) => budget.compile(source, flags)),
      })),
    )
    const units = signatures.map(unitsOf)
    const group = (unit: Unit, other: 'to_server' | 'to_client') =>
      new Group(
        signatures,
        signatures.flatMap(({ flow }, i) => (units[i].includes(unit) && flow.direction !== other ? [i] : [])),
      )
    this.groups = Object.fromEntries(
      UNITS.map(unit => [unit, [group(unit, 'to_client'), group(unit, 'to_server')]]),
    ) as Ruleset['groups']
    this.bare = signatures.flatMap(({ parts }, i) => (parts.length === 0 && units[i].length === 0 ? [i] : []))
  }

  /** Whether a rule finds all that it looks for. */
  matches(rule: number, texts: Texts): boolean {
    for (const { buffer, matcher } of this.matchers[rule]) {
      const text = texts[buffer]
      if (text === undefined || !matcher.matches(text)) return false
    }
    return true
  }
}

const DATAGRAMS: readonly string[] = ['udp', 'icmp', 'ip', 'dns']
const LAYER: Record<string, Unit | undefined> = { http: 'http', tls: 'tls', dns: 'dns' }

/** Where a rule looks; nowhere where it is about headers only, or about streams of what has none. */
function unitsOf({ header: { protocol }, parts, flow }: Signature): Unit[] {
  const application =
    parts.find(one => one.buffer !== 'payload')?.buffer.split('.')[0] ?? (parts.length === 0 ? protocol : '')
  const layer = LAYER[application]
  if (layer !== undefined) return [layer]
  if (parts.length === 0) return []
  const units: Unit[] = []
  if (protocol !== 'udp' && protocol !== 'icmp') {
    const only = protocol === 'tcp-pkt' ? 'packet' : protocol === 'tcp-stream' ? 'stream' : flow.only
    // Places count from a packet's start as well as from the stream's (Suricata: SIG_FLAG_REQUIRE_PACKET beside _STREAM).
    const placed = parts.some(one =>
      one.parts.some(part => part.kind === 'content' && (part.offset ?? part.depth) !== undefined),
    )
    if (only !== 'packet') units.push('stream')
    if (only === 'packet' || (only === undefined && placed)) units.push('segment')
  }
  if (DATAGRAMS.includes(protocol) && flow.only !== 'stream') units.push('datagram')
  return units
}
