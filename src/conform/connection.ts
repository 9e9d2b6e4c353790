// Connections of the conformance suite: TCP segments as probes.

import * as tcp from '../wire/tcp.ts'
import { type Family, type Flow, tcpPacket } from './inner.ts'
import type { Maker, Probe, ProbeFields } from './probe.ts'

/** MSS 1300, SACK permitted, window scale 7: what SYNs say. */
const SYN_OPTIONS = Uint8Array.of(2, 4, 5, 20, 4, 2, 1, 3, 3, 7, 1, 1)

/** Sequence number of a client's SYN, as a rule. */
export const FIRST = 0x1000_0000
/** How far from it the server's is. */
const SERVER = 0x1000_0000

/** A segment of a connection that the flow's client began, with `bytes` bytes of data. */
export function segment(
  make: Maker,
  flow: Flow,
  flags: number,
  [sequence, acknowledgment, bytes = 0]: readonly [number, number, number?],
  fields: ProbeFields = {},
): Probe {
  const options = (flags & tcp.SYN) !== 0 ? SYN_OPTIONS : undefined
  const data = bytes === 0 ? undefined : make.data(bytes)
  const packet = tcpPacket(flow, { flags, sequence, acknowledgment, options, data }, { reply: fields.reply })
  return make.probe(flow, packet, fields)
}

/** A connection's first five segments, whose numbers go with each other: a stateful inspector has to agree. */
export function connection(make: Maker, family: Family): Probe[] {
  const flow = make.flow(family)
  return [...handshake(make, flow, FIRST), ...exchange(make, flow, FIRST)]
}

/** Three segments; `first` is the number of the first. */
export function handshake(make: Maker, flow: Flow, first: number, fields: ProbeFields = {}): Probe[] {
  const { SYN, ACK } = tcp
  const [client, server] = [first, first + SERVER]
  return [
    segment(make, flow, SYN, [client, 0], fields),
    segment(make, flow, SYN | ACK, [server, client + 1], { ...fields, reply: true }),
    segment(make, flow, ACK, [client + 1, server + 1], fields),
  ]
}

/** A request and its answer, behind a handshake that began with `first`. */
export function exchange(make: Maker, flow: Flow, first: number): Probe[] {
  const flags = tcp.ACK | tcp.PSH
  const [client, server] = [first + 1, first + SERVER + 1]
  return [
    segment(make, flow, flags, [client, server, 100]),
    segment(make, flow, flags, [server, client + 100, 300], { reply: true }),
  ]
}
