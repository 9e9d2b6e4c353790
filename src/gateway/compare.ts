// Two runs compared: what was decided of each flow, from verdict logs, and which signatures matched, from EVE files.
//
// Flows are told by their ends, and among flows with the same ends by the packet they began with, as runs of one capture count
// alike; what is left is paired in order. Of a flow whose verdict changed while it lasted the last one counts.

import { DetourError } from '../errors.ts'

/** What a run has decided of a flow, or found in it. */
export interface Decision {
  protocol: string
  /** Address and port. */
  source: string
  destination: string
  /** With which the flow began; undefined where the file does not say. */
  packet?: number
  /** `allow`, `reset` …; of a signature `allowed` or `blocked`. */
  verdict: string
  /** The rule's name, or the signature's number and message. */
  by: string
}

export interface Difference {
  what: 'changed' | 'appeared' | 'vanished'
  /** The one that vanished or changed. */
  before?: Decision
  /** The one that appeared, or into which it changed. */
  after?: Decision
}

export interface Comparison {
  /** How many decisions are in both. */
  same: number
  /** In the order of the first run, what appeared behind that. */
  differences: Difference[]
}

/** The decisions of one run, gathered line by line. */
export class Run {
  /** By what must be equal for two of them to be about the same. */
  readonly groups = new Map<string, Decision[]>()
  private readonly flows = new Map<unknown, { key: string; decision: Decision }>()

  /** Takes a line of a verdict log or of an EVE file, of which all but alerts about flows is left out. Throws DetourError that begins with `where`. */
  line(text: string, where: string): void {
    if (text.trim() === '') return
    const event = parse(text, where)
    if (isVerdict(event)) this.verdict(event)
    else if (event.event_type === 'alert' && isAlert(event)) this.alert(event)
    else if (typeof event.event_type !== 'string' || (event.event_type === 'alert' && !isOfNoFlow(event)))
      throw new DetourError('bad-file', `${where}: neither a verdict of a gateway nor an event in EVE JSON`)
  }

  private verdict(event: VerdictLine): void {
    const { protocol, source, sourcePort, destination, destinationPort, vni, flow, rule, action, packet } = event
    const [from, to] = [end(source, sourcePort), end(destination, destinationPort)]
    const ends = { protocol: `${protocol}`, source: from, destination: to }
    const key = ['flow', vni, ...Object.values(ends)].join(' ')
    const known = this.flows.get(flow)
    if (known?.key === key) Object.assign(known.decision, { verdict: action, by: rule })
    else this.flows.set(flow, { key, decision: this.add(key, { ...ends, packet, verdict: action, by: rule }) })
  }

  private alert({ proto, src_ip, src_port, dest_ip, dest_port, pcap_cnt, alert }: AlertLine): void {
    const { gid = 1, signature_id, signature, action } = alert
    const ends = { protocol: proto.toLowerCase(), source: end(src_ip, src_port), destination: end(dest_ip, dest_port) }
    const key = ['alert', ...Object.values(ends), gid, signature_id].join(' ')
    this.add(key, { ...ends, packet: pcap_cnt, verdict: action, by: `${gid}:${signature_id} ${signature}` })
  }

  private add(key: string, decision: Decision): Decision {
    const group = this.groups.get(key)
    if (group === undefined) this.groups.set(key, [decision])
    else group.push(decision)
    return decision
  }
}

/** Compares two runs; where only the rule differs they are the same, unless `byRule`. */
export function compare(before: Run, after: Run, byRule = false): Comparison {
  const comparison: Comparison = { same: 0, differences: [] }
  const { differences } = comparison
  for (const [key, decisions] of before.groups) {
    for (const [one, other] of pairs(decisions, after.groups.get(key) ?? [])) {
      if (one === undefined) differences.push({ what: 'appeared', after: other })
      else if (other === undefined) differences.push({ what: 'vanished', before: one })
      else if (one.verdict !== other.verdict || (byRule && one.by !== other.by))
        differences.push({ what: 'changed', before: one, after: other })
      else comparison.same++
    }
  }
  for (const [key, decisions] of after.groups)
    if (!before.groups.has(key)) for (const one of decisions) differences.push({ what: 'appeared', after: one })
  return comparison
}

/** Pairs decisions that began with the same packet, then the rest in order; what has no counterpart stands alone. */
function pairs(before: Decision[], after: Decision[]): [Decision | undefined, Decision | undefined][] {
  const byPacket = new Map(after.map(one => [one.packet, one]))
  const taken = new Set<Decision>()
  const found = before.map((one): [Decision, Decision | undefined] => {
    const other = one.packet === undefined ? undefined : byPacket.get(one.packet)
    if (other === undefined || taken.has(other)) return [one, undefined]
    taken.add(other)
    return [one, other]
  })
  const rest = after.filter(one => !taken.has(one)).values()
  const paired = found.map(([one, other]): [Decision, Decision | undefined] => [one, other ?? rest.next().value])
  return [...paired, ...Array.from(rest, (one): [undefined, Decision] => [undefined, one])]
}

interface VerdictLine {
  protocol: string | number
  source: string
  sourcePort: number
  destination: string
  destinationPort: number
  vni: number
  flow: number
  rule: string
  action: string
  packet: number
}

interface AlertLine {
  proto: string
  src_ip: string
  src_port?: number
  dest_ip: string
  dest_port?: number
  pcap_cnt?: number
  alert: { gid?: number; signature_id: number; signature: string; action: string }
}

function parse(text: string, where: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new DetourError('bad-file', `${where}: not JSON (${(cause as Error).message})`, { cause })
  }
  if (typeof value === 'object' && value !== null) return value as Record<string, unknown>
  throw new DetourError('bad-file', `${where}: not an object`)
}

function isVerdict(event: object): event is VerdictLine {
  const { source, destination, rule, action, packet, flow } = event as Partial<VerdictLine>
  const words = [source, destination, rule, action].every(word => typeof word === 'string')
  return words && typeof packet === 'number' && typeof flow === 'number'
}

function isAlert(event: object): event is AlertLine {
  const { proto, src_ip, dest_ip, alert } = event as Partial<AlertLine>
  const words = [proto, src_ip, dest_ip, alert?.signature, alert?.action].every(word => typeof word === 'string')
  return words && typeof alert?.signature_id === 'number'
}

/** An alert about a packet in which Suricata found no addresses. */
function isOfNoFlow(event: Record<string, unknown>): boolean {
  return event.src_ip === undefined && typeof event.alert === 'object'
}

function end(address: string, port: number | undefined): string {
  if (port === undefined) return address
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}
