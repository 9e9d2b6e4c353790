// What the kinds of policy have in common: whom they select, what they then allow or deny, and to whom.

import ipaddr from 'ipaddr.js'
import type { Party, Pod, Protocol } from './inventory.ts'

export const DIRECTIONS = ['ingress', 'egress'] as const
/** As the selected pod sees it. */
export type Direction = (typeof DIRECTIONS)[number]

/** The protocol of a flow: rules about ports say nothing of others. */
export type FlowProtocol = Protocol | 'other'

/** A port that a rule names: a number, a range, or the name of a container's port; any port without `port`. */
export interface PortRule {
  protocol?: Protocol
  port?: number | string
  endPort?: number
}

/** What an HTTP request must be like; what is left out may be anything. */
export interface HttpRule {
  matches(request: HttpRequest): boolean
  /** As it was written. */
  text: string
}

export interface HttpRequest {
  method: string
  /** Path and query, in their normal form. */
  path: string
  host: string
  headers: readonly (readonly [name: string, value: string])[]
}

/** One entry of a policy's list of rules. */
export interface PolicyRule {
  /** `default/web (policies.yaml, document 2): ingress[0]`. */
  name: string
  direction: Direction
  deny: boolean
  /** Whether the far end of a selected pod is meant. */
  peer(party: Party, pod: Pod): boolean
  /** Ports at the destination; undefined for all. */
  ports: readonly PortRule[] | undefined
  /** Requests that are allowed, where only some are. */
  http: readonly HttpRule[] | undefined
}

/** A policy that was understood. */
export interface PodPolicy {
  /** `NetworkPolicy default/web`. */
  name: string
  /** Where it was read. */
  where: string
  selects(pod: Pod): boolean
  /** Directions in which a selected pod may do no more than rules allow. */
  isolates: Readonly<Record<Direction, boolean>>
  /** Of those the ones in which the pod's own node is allowed all the same. */
  sparesNode: Readonly<Record<Direction, boolean>>
  rules: readonly PolicyRule[]
}

/** A CIDR block: whether it has an address, which is 4 or 16 bytes. */
export type Block = (address: readonly number[]) => boolean

/** Makes a CIDR block ready: a flow may be compared with thousands of them. Throws where it is none. */
export function blockOf(text: string): Block {
  const [base, bits] = ipaddr.parseCIDR(text)
  const bytes = base.toByteArray()
  const whole = bits >> 3
  const mask = 0xff00 >> (bits & 7)
  return address => {
    if (address.length !== bytes.length) return false
    for (let i = 0; i < whole; i++) if (address[i] !== bytes[i]) return false
    return ((address[whole] ^ bytes[whole]) & mask & 0xff) === 0
  }
}

/** An address in its normal form as bytes. */
export function bytesOf(address: string): number[] {
  return ipaddr.parse(address).toByteArray()
}

/** Whether one end has an address in the block: the flow's, or any where that is not known. */
export function partyInBlock({ pod, bytes }: Party, block: Block): boolean {
  if (bytes !== undefined) return block(bytes)
  return pod?.addresses.some(address => block(bytesOf(address))) === true
}

/** Whether a rule's ports cover a port of the destination. */
export function portMatches(rule: PortRule, protocol: FlowProtocol, port: number, destination: Party): boolean {
  if (protocol === 'other' || (rule.protocol !== undefined && rule.protocol !== protocol)) return false
  if (rule.port === undefined) return true
  if (typeof rule.port === 'number') return port >= rule.port && port <= (rule.endPort ?? rule.port)
  const named = destination.pod?.ports ?? []
  return named.some(one => one.name === rule.port && one.port === port && one.protocol === protocol)
}

export function isPortNumber(value: unknown): value is number {
  return Number.isInteger(value) && Number(value) >= 1 && Number(value) <= 65535
}

/** Whether a container's port may have this name (RFC 6335 section 5.1). */
export function isPortName(value: unknown): value is string {
  return typeof value === 'string' && /^(?=.*[a-z])(?!.*--)[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$/.test(value)
}
