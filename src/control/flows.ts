// Flow tables of workers as rows for the control socket.

import { verdictName } from '../flow/verdict.ts'
import type { FlowView } from '../flow/view.ts'
import type { FlowRow, FlowVerdict } from './source.ts'

/** The rows of one worker's table; `attachmentId` names an attachment by its number. */
export function* flowRows(
  view: FlowView,
  worker: string,
  attachmentId: (number: number) => string,
): Generator<FlowRow> {
  for (const flow of view.flows()) {
    const a = { address: flow.addressA, port: flow.portA, packets: flow.packetsAB, bytes: flow.bytesAB }
    const b = { address: flow.addressB, port: flow.portB, packets: flow.packetsBA, bytes: flow.bytesBA }
    const [opener, other] = flow.openedBy === 'a' ? [a, b] : [b, a]
    yield {
      worker,
      attachment: attachmentId(flow.attachment),
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
      ageMs: Math.max(0, view.now - flow.firstSeenMs),
      idleMs: Math.max(0, view.now - flow.lastSeenMs),
      cookie: flow.cookie >>> 0,
    }
  }
}
