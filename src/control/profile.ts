// What people configure of a tunnel, held against its profile.

import { isIP } from 'node:net'
import { DetourError } from '../errors.ts'
import { type Profile, type ProfileName, profileNamed } from '../pipeline/profile.ts'
import type { Settings } from '../pipeline/setting.ts'
import { didYouMean } from './suggest.ts'

interface Configured {
  profile: ProfileName
  port?: number
  vni?: number
  local?: string
  remote?: string
  settings: Settings
}

/** Something that the profile does not allow, or misses. */
interface Flaw {
  path: string[]
  message: string
}

/** Whether a value may be a mapping of settings at all. */
export function isSettings(value: unknown): boolean {
  return (
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    Object.values(value).every(one => typeof one === 'string' || typeof one === 'number')
  )
}

/** All that is wrong with a tunnel for its profile. */
export function profileFlaws({ profile: name, port, vni, local, remote, settings }: Configured): Flaw[] {
  const profile = profileNamed(name)
  const { vnis, outer } = profile
  const flaws: Flaw[] = []
  if ('fixed' in vnis) {
    if (vni !== undefined && vni !== vnis.fixed)
      flaws.push({ path: ['vni'], message: `allowed with profile ${name}: ${vnis.fixed}` })
  } else if (vni === undefined ? vnis.usual === undefined : vni < vnis.min || vni > vnis.max) {
    flaws.push({ path: ['vni'], message: `allowed with profile ${name}: an integer from ${vnis.min} to ${vnis.max}` })
  }
  for (const [key, address] of Object.entries({ local, remote }))
    if (address !== undefined && !outer.includes(isIP(address) as 4 | 6))
      flaws.push({ path: [key], message: `allowed with profile ${name}: an IPv${outer.join(' or IPv')} address` })

  const known = Object.keys(profile.settings)
  for (const [key, value] of Object.entries(settings)) {
    const setting = Object.hasOwn(profile.settings, key) ? profile.settings[key] : undefined
    if (setting === undefined) {
      const allowed = known.length === 0 ? 'it has none' : `allowed: ${known.join(', ')}${didYouMean(key, known)}`
      flaws.push({ path: ['settings', key], message: `no setting of profile ${name}; ${allowed}` })
    } else if (!setting.valid(value)) flaws.push({ path: ['settings', key], message: `allowed: ${setting.allowed}` })
  }
  if (flaws.length === 0) flaws.push(...sameTunnel(profile, { port, settings }))
  return flaws
}

/** Two tunnels are told apart by their ports. */
function sameTunnel(
  profile: Profile,
  { port = profile.port, settings }: Pick<Configured, 'port' | 'settings'>,
): Flaw[] {
  const { arriving } = profile.tunnel(completed(profile, settings))
  if (arriving?.port !== port) return []
  return [{ path: ['port'], message: `profile ${profile.name}'s other tunnel has this port; allowed: another` }]
}

function completed({ settings: known }: Profile, settings: Settings): Settings {
  return { ...Object.fromEntries(Object.entries(known).map(([key, { usual }]) => [key, usual])), ...settings }
}

/** A tunnel without flaws, with what its profile has where nothing is configured. */
export function completeProfile<Tunnel extends Configured>(tunnel: Tunnel): Tunnel & { port: number; vni: number } {
  const profile = profileNamed(tunnel.profile)
  const { port, vnis } = profile
  const vni = 'fixed' in vnis ? vnis.fixed : (tunnel.vni ?? vnis.usual ?? vnis.min)
  return { ...tunnel, port: tunnel.port ?? port, vni, settings: completed(profile, tunnel.settings) }
}

/** A gateway's tunnel, checked and completed; anybody's VNI is welcome there, unless it tells tunnels apart. Throws DetourError. */
export function gatewayTunnel(given: Omit<Configured, 'remote'>): Configured & { port: number; vni: number } {
  const { vnis } = profileNamed(given.profile)
  const tunnel = { ...given, vni: given.vni ?? ('fixed' in vnis ? vnis.fixed : (vnis.usual ?? vnis.min)) }
  const [flaw] = profileFlaws(tunnel)
  if (flaw !== undefined)
    throw new DetourError('bad-config', `profile ${given.profile}: ${flaw.path.join('.')}: ${flaw.message}`)
  return completeProfile(tunnel)
}

/** The settings of lines like `externalPort=10801`. Throws DetourError. */
export function settingsOf(lines: readonly string[]): Settings {
  const entries = lines.map(line => {
    const [, key, value] = /^(\w+)=(.*)$/.exec(line) ?? []
    if (key === undefined) throw new DetourError('usage', `--set '${line}': give NAME=VALUE; see detour profiles`)
    return [key, /^(0|[1-9]\d{0,14})$/.test(value) ? Number(value) : value]
  })
  return Object.fromEntries(entries)
}
