// Judges: each looks at one thing in an answer and says what is wrong with it, so that one defect fails the cases about it and no others.

import { ETHERTYPE } from '../wire/ethernet.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import type { Parts } from './answer.ts'
import type { Probe } from './probe.ts'

const hex = (b: Uint8Array) => (b.length === 0 ? 'none' : Buffer.from(b).toString('hex'))
const byte = (value: number | undefined) =>
  value === undefined ? 'missing' : `0x${value.toString(16).padStart(2, '0')}`

/** Where two arrays begin to differ; -1 when they are equal. */
function difference(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i
  return -1
}

/** What is behind the tunnel header is as it was sent. */
export function innerUnchanged(probe: Probe, answer: Parts): string | undefined {
  const { inner, packet, tunnelAt } = probe
  const at = difference(inner, answer.inner)
  if (at < 0) return protocolUnchanged(packet.subarray(tunnelAt), answer)
  const where = `byte ${at} behind the tunnel header`
  return innerWhole(probe, answer) ?? `${where} was ${byte(inner[at])} and came back ${byte(answer.inner[at])}`
}

/** As many bytes are behind the tunnel header as were sent. */
export function innerWhole({ inner }: Probe, answer: Parts): string | undefined {
  if (inner.length === answer.inner.length) return undefined
  return `${answer.inner.length} bytes are behind the tunnel header, ${inner.length} were sent`
}

function protocolUnchanged(sent: Uint8Array, { protocol, tunnel }: Parts): string | undefined {
  if (protocol === ETHERTYPE.TEB || (sent[2] === tunnel[2] && sent[3] === tunnel[3])) return undefined
  return `protocol type 0x${protocol.toString(16)} is another than was sent`
}

/** The options are those that were sent, byte for byte and in order. */
export function optionsUnchanged({ options }: Probe, answer: Parts): string | undefined {
  if (difference(options, answer.options) < 0) return undefined
  return `options sent: ${hex(options)}; came back: ${hex(answer.options)}`
}

/** The VNI is the one that was sent, or that of the other tunnel. */
export function vniUnchanged({ vni }: Probe, answer: Parts): string | undefined {
  return answer.vni === vni ? undefined : `the VNI is ${answer.vni} instead of ${vni}`
}

/** What tells whose a packet is: VNI and options. */
export const identityOf = ({ vni, options }: Pick<Parts, 'vni' | 'options'>) => `VNI ${vni}, options ${hex(options)}`

/** VNI and options are not those of another packet, as when an endpoint takes one flow for another; `sent` are all identities sent so far. */
export function identityUnchanged(probe: Probe, answer: Parts, sent: ReadonlySet<string>): string | undefined {
  const [own, found] = [identityOf(probe), identityOf(answer)]
  return found === own || !sent.has(found) ? undefined : `it has what belongs to another flow: ${found}; sent: ${own}`
}

/** The traffic class of the inner IP header. */
export function innerTos({ inner, protocol }: Pick<Parts, 'inner' | 'protocol'>): number {
  const at = protocol === ETHERTYPE.TEB ? 14 : 0
  if (inner.length < at + ipv4.HEADER) return 0
  return inner[at] >> 4 === 4 ? ipv4.tos(inner, at) : ipv6.trafficClass(inner, at)
}

const ECN = ['Not-ECT', 'ECT(1)', 'ECT(0)', 'CE']

/** The inner ECN field is `wanted`. */
export const innerEcnIs = (wanted: number) => (_: Probe, answer: Parts) => {
  const found = innerTos(answer) & 3
  return found === wanted ? undefined : `the inner ECN field is ${ECN[found]}, not ${ECN[wanted]}`
}

/** The outer ECN field shows the inner one. */
export function outerEcnShowsInner(_: Probe, answer: Parts): string | undefined {
  const [outer, inner] = [answer.tos & 3, innerTos(answer) & 3]
  return outer === inner ? undefined : `the outer ECN field is ${ECN[outer]}, the inner one ${ECN[inner]}`
}
