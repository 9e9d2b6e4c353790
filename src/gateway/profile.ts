// A profile: what an inspection endpoint owes to the packets of one kind of tunnel. Data and a few functions, one file
// each in profiles/; stages ask the profile and never which one it is.

import { DetourError } from '../errors.ts'
import { GENEVE } from './profiles/geneve.ts'
import { VXLAN } from './profiles/vxlan.ts'

export interface Profile {
  readonly name: string
  readonly kind: 'geneve' | 'vxlan'
  /** UDP port that the endpoint listens on, and returns packets to. */
  readonly port: number
  /** Bytes of the tunnel header at `at`, options included. */
  headerLength(b: Uint8Array, at: number): number
  /** The VNI of the tunnel header at `at`. */
  vni(b: Uint8Array, at: number): number
  /** Makes the received tunnel header at `at` one that may be sent: reserved bits zero, everything else echoed. */
  echo(b: Uint8Array, at: number): void
  /** Corrects what the tunnel header at `at` says about direction, for an answer that travels the other way. */
  reverse(b: Uint8Array, at: number): void
}

const PROFILES: Readonly<Record<string, Profile>> = { geneve: GENEVE, vxlan: VXLAN }

/** Names that people may configure. */
export const PROFILE_NAMES = Object.keys(PROFILES)

/** The profile of a name; throws `bad-config` naming those there are. */
export function profileNamed(name: string): Profile {
  if (Object.hasOwn(PROFILES, name)) return PROFILES[name]
  throw new DetourError('bad-config', `profile ${name} is not allowed; allowed: ${PROFILE_NAMES.join(', ')}`)
}
