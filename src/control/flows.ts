// Flow tables of workers as rows for the control socket.

import { verdictName } from '../flow/verdict.ts'
import type { FlowRecord, FlowView } from '../flow/view.ts'
import type { FlowRow, FlowVerdict } from './source.ts'

/** Names of what flows know by number. */
export interface FlowNames {
  /** Id of the attachment; empty when unknown. */
  attachment(number: number): string
  endpoint?(number: number): string | undefined
  /** Of the rule that decided; -1 is the default. */
  rule?(number: number): string | undefined
}

/** The rows of one worker's table. */
export function* flowRows(view: FlowView, worker: string, names: FlowNames): Generator<FlowRow> {
  for (const flow of view.flows()) yield flowRow(flow, worker, names, view.now)
}

/** One flow, as of `now` on its table's clock. */
export function flowRow(flow: FlowRecord, worker: string, names: FlowNames, now: number): FlowRow {
  const a = { address: flow.addressA, port: flow.portA, packets: flow.packetsAB, bytes: flow.bytesAB }
  const b = { address: flow.addressB, port: flow.portB, packets: flow.packetsBA, bytes: flow.bytesBA }
  const [opener, other] = flow.openedBy === 'a' ? [a, b] : [b, a]
  return {
    worker,
    attachment: names.attachment(flow.attachment),
    endpoint: names.endpoint?.(flow.endpoint),
    rule: names.rule?.(flow.rule),
    protocol: flow.protocol,
    source: opener.address,
    sourcePort: opener.port,
    destination: other.address,
    destinationPort: other.port,
    verdict: verdictName(flow.verdict) as FlowVerdict,
    sentPackets: opener.packets,
    sentBytes: opener.bytes,
    receivedPackets: other.packets,
    receivedBytes: other.bytes,
    ageMs: Math.max(0, now - flow.firstSeenMs),
    idleMs: Math.max(0, now - flow.lastSeenMs),
    cookie: flow.cookie >>> 0,
  }
}

/** How people write an IP protocol. */
export function protocolName(protocol: number): string {
  return PROTOCOLS[protocol] ?? String(protocol)
}

const PROTOCOLS: Record<number, string> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmp6', 132: 'sctp' }
