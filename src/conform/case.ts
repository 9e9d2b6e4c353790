// A case: what is sent, what must come back, and where that is written.

import type { Parts } from './answer.ts'
import type { Family } from './inner.ts'
import type { Maker, Probe } from './probe.ts'
import type { ConformProfile } from './profile.ts'

/** What is known of the target and of the way to it. */
export interface Target {
  profile: ConformProfile
  vnis: readonly number[]
  /** IP version of the underlay. */
  family: 4 | 6
  /** The tunnel's port at our address is ours; not so when the target has the same address. */
  ownsPort: boolean
  /** We have a second address. */
  twoAddresses: boolean
  /** Minutes of silence are allowed. */
  slow: boolean
  healthPort?: number
  killCommand?: string
}

interface Described {
  readonly name: string
  /** Where it is written. */
  readonly section: string
  /** What must happen, in a sentence. */
  readonly expected: string
  /** Why it cannot be asked of this target; undefined when it can. */
  readonly without?: (target: Target) => string | undefined
}

/** A case of packets. */
export interface PacketCase extends Described {
  /** The packets, in order. */
  readonly sends: (make: Maker) => Probe[]
  /** All are sent before the first answer is waited for. */
  readonly burst?: boolean
  /** Says what is wrong with the answer to a probe; `sent` are the identities of all packets so far (`identityOf`). */
  readonly judge?: (probe: Probe, answer: Parts, sent: ReadonlySet<string>) => string | undefined
  /** Says what is wrong with all answers together: probes in the order in which answers to them came. */
  readonly judgeAll?: (probes: readonly Probe[], answered: readonly Probe[]) => string | undefined
}

/** A case beside the tunnel. */
export interface OtherCase extends Described {
  /** What is sent, in words. */
  readonly sent: string
  /** Says what is wrong. */
  readonly run: (hands: Hands) => Promise<string | undefined>
}

/** What a case beside the tunnel has to work with. */
export interface Hands {
  target: Target
  host: string
  timeoutMs: number
  /** True when the tunnel answers. */
  alive(): Promise<boolean>
  sleep(ms: number): Promise<void>
}

/** AWS's description of what an appliance owes its load balancer. */
export const AWS_APPLIANCE = 'AWS blog, "Integrate your custom logic or appliance with AWS Gateway Load Balancer"'
/** AWS's manual of the load balancer; a word says which part of it. */
export const awsGuide = (part: string) => `AWS, "User Guide for Gateway Load Balancers" (${part})`

export type Case = PacketCase | OtherCase

/** Why nothing can be said about what comes to the tunnel's port. */
export const OWN_PORT = 'the target is at an address of ours, so its port cannot be ours as well'

/** Applies to GENEVE only, or to VXLAN only. */
export const onlyGeneve = ({ profile }: Target) => (profile.kind === 'geneve' ? undefined : 'not GENEVE')
export const onlyVxlan = ({ profile }: Target) => (profile.kind === 'vxlan' ? undefined : 'not VXLAN')

/** Asks for options back. */
export const whereReturned = (target: Target) =>
  onlyGeneve(target) ?? (target.profile.optionsReturned ? undefined : 'nobody says whether options come back')

/** Asks that metadata tell flows apart. */
export const whereFlowsDiffer = ({ profile, vnis }: Target) =>
  profile.kind === 'vxlan' && (vnis.length < 2 || profile.other !== undefined)
    ? 'nothing in a tunnel header tells flows apart here'
    : undefined

/** One case for each IP version inside. */
export function eachFamily(
  one: Omit<PacketCase, 'sends'> & { sends: (make: Maker, family: Family) => Probe[] },
): PacketCase[] {
  return ([4, 6] as const).map(family => ({
    ...one,
    name: `${one.name}-ipv${family}`,
    expected: `IPv${family} inside: ${one.expected}`,
    sends: make => one.sends(make, family),
  }))
}
