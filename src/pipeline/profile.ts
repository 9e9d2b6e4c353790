// A profile: what one kind of cloud or vendor sends through a tunnel, and what the endpoint behind it owes to these packets.
// Data and a few functions in one file of profiles/, for both sides: a node's stages read the tunnel that `tunnel` completes,
// a gateway's call the functions. No stage asks which profile it is.

import { DetourError } from '../errors.ts'
import { AWS_GWLB } from './profiles/aws-gwlb.ts'
import { AZURE_GWLB } from './profiles/azure-gwlb.ts'
import { GCP_NSI } from './profiles/gcp-nsi.ts'
import { GENEVE } from './profiles/geneve.ts'
import { PAN_CNI } from './profiles/pan-cni.ts'
import { VXLAN } from './profiles/vxlan.ts'
import type { Setting, Settings } from './setting.ts'
import type { TunnelConfig } from './tunnel.ts'

export interface Profile {
  readonly name: string
  /** One line for people. */
  readonly summary: string
  readonly kind: 'geneve' | 'vxlan'
  /** What is in the tunnel: Ethernet frames, or IP packets without an Ethernet header. */
  readonly inner: 'ethernet' | 'ip'
  /** UDP port that the endpoint listens on, and returns packets to. */
  readonly port: number
  /** The VNI where none is configured, and which are allowed; none may be configured where it is fixed. */
  readonly vnis: { readonly fixed: number } | { readonly min: number; readonly max: number; readonly usual?: number }
  /** IP versions of the outer header. */
  readonly outer: readonly (4 | 6)[]
  /** What may be configured beyond what every tunnel has. */
  readonly settings: Readonly<Record<string, Setting>>
  /** What the tunnel header carries beside the VNI, for people. */
  readonly metadata: readonly string[]
  /** What an endpoint must do with packets that it returns, and what becomes of others, for people. */
  readonly returns: readonly string[]
  /** Where this is written. */
  readonly sources: readonly string[]
  /** What its tunnels have beyond the configured, from checked settings. */
  tunnel(settings: Settings): Partial<TunnelConfig>
  /** Bytes of the tunnel header at `at`, options included. */
  headerLength(b: Uint8Array, at: number): number
  /** The VNI of the tunnel header at `at`. */
  vni(b: Uint8Array, at: number): number
  /** Makes the received tunnel header at `at`, behind its UDP header, one that may be sent back. */
  echo(b: Uint8Array, at: number, tunnel: TunnelConfig): void
  /** Corrects what the tunnel header at `at` says about direction, for an answer that travels the other way. */
  reverse(b: Uint8Array, at: number, tunnel: TunnelConfig): void
}

const PROFILES = {
  geneve: GENEVE,
  vxlan: VXLAN,
  'aws-gwlb': AWS_GWLB,
  'gcp-nsi': GCP_NSI,
  'azure-gwlb': AZURE_GWLB,
  'pan-cni': PAN_CNI,
} as const satisfies Record<string, Profile>

export type ProfileName = keyof typeof PROFILES

/** Names that people may configure. */
export const PROFILE_NAMES = Object.keys(PROFILES) as [ProfileName, ...ProfileName[]]

/** The profile of a name; throws `bad-config` naming those there are. */
export function profileNamed(name: string): Profile {
  if (Object.hasOwn(PROFILES, name)) return PROFILES[name as ProfileName]
  throw new DetourError('bad-config', `profile ${name} is not allowed; allowed: ${PROFILE_NAMES.join(', ')}`)
}
