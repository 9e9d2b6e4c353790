// detour profiles: which clouds and vendors a tunnel can be like, and what each sends and expects.

import { Command } from 'commander'
import { PROFILE_NAMES, type Profile, profileNamed } from '../pipeline/profile.ts'
import type { Setting } from '../pipeline/setting.ts'
import { innerMtu, outerBytes } from '../pipeline/tunnel.ts'
import { HEADER as ETHERNET, ETHERTYPE } from '../wire/ethernet.ts'
import { tunnelOf } from './options.ts'
import { painter, table } from './table.ts'

const STANDARD_MTU = 1500

/** A profile as data. */
interface Row {
  name: string
  summary: string
  outer: string
  inner: string
  port: number
  vni: string
  /** Bytes from the outer IP header to what is inside, over each IP version. */
  overhead: Record<string, number>
  /** Largest inner IP packet over an underlay of MTU 1500, and at all where the profile has a limit. */
  mtu: Record<string, number>
  largest: number | undefined
  metadata: readonly string[]
  returns: readonly string[]
  settings: { name: string; usual: Setting['usual']; allowed: string; describe: string }[]
  sources: readonly string[]
}

/** The subcommand `profiles`. */
export function profilesCommand(): Command {
  return new Command('profiles')
    .description('Lists what a tunnel can be like: the clouds and vendors whose endpoints expect a form of their own.')
    .argument('[NAME]', 'explains this one')
    .option('--json', 'as data')
    .addHelpText(
      'after',
      `
Examples:
  detour profiles
  detour profiles aws-gwlb
  detour encap -r in.pcap -w out.pcap --profile aws-gwlb --set endpointId=0123456789abcdef
  sudo detour gateway --listen 10.99.0.2 --interface eth0 --profile azure-gwlb --vni 2000 --set externalVni=2001`,
    )
    .action(run)
}

function run(name: string | undefined, { json }: { json?: boolean }): void {
  const rows = (name === undefined ? PROFILE_NAMES : [profileNamed(name).name]).map(each => rowOf(profileNamed(each)))
  const lines = name === undefined ? list(rows) : explain(rows[0])
  process.stdout.write(
    json ? `${JSON.stringify(name === undefined ? rows : rows[0], null, 2)}\n` : `${lines.join('\n')}\n`,
  )
}

function rowOf(profile: Profile): Row {
  const { name, summary, kind, inner, port, vnis, metadata, returns, settings, sources } = profile
  const versions = profile.outer.map(version => {
    const local = version === 4 ? '192.0.2.1' : '2001:db8::1'
    return { key: `ipv${version}`, tunnel: tunnelOf({ profile: name, local }, true) }
  })
  const numbers = (of: (tunnel: (typeof versions)[0]['tunnel']) => number) =>
    Object.fromEntries(versions.map(({ key, tunnel }) => [key, of(tunnel)]))
  const range = 'fixed' in vnis ? `${vnis.fixed}` : `${vnis.min} to ${vnis.max}`
  const usual = 'fixed' in vnis ? '' : vnis.usual === undefined ? ', must be given' : `, ${vnis.usual} when not given`
  return {
    name,
    summary,
    outer: `${kind.toUpperCase()} over ${profile.outer.map(version => `IPv${version}`).join(' and ')}`,
    inner: inner === 'ip' ? `IP packets (${hex(ETHERTYPE.IPV4)}, ${hex(ETHERTYPE.IPV6)})` : 'Ethernet frames',
    port,
    vni: range + usual,
    overhead: numbers(tunnel => outerBytes(tunnel) - ETHERNET),
    mtu: numbers(tunnel => innerMtu(tunnel, STANDARD_MTU)),
    largest: versions[0].tunnel.largest,
    metadata,
    returns,
    settings: Object.entries(settings).map(([key, { usual: value, allowed, describe }]) => ({
      name: key,
      usual: value,
      allowed,
      describe,
    })),
    sources,
  }
}

const hex = (type: number) => `0x${type.toString(16).padStart(4, '0')}`

function list(rows: Row[]): string[] {
  const titles = [
    { title: 'profile' },
    { title: 'port', right: true },
    { title: 'inside' },
    { title: 'bytes', right: true },
    { title: 'what it is' },
  ]
  const cells = rows.map(row => [
    row.name,
    `${row.port}`,
    row.inner.split(' (')[0],
    Object.values(row.overhead).join(' / '),
    row.summary,
  ])
  return [
    ...table(titles, cells, painter(process.stdout)),
    '',
    'bytes: of the headers in front of what is inside, over IPv4 and over IPv6. detour profiles NAME tells more.',
  ]
}

function explain(row: Row): string[] {
  const paint = painter(process.stdout)
  const both = (values: Record<string, number>) =>
    Object.entries(values)
      .map(([key, value]) => `${value} over ${key.replace('ip', 'IP')}`)
      .join(', ')
  const facts = [
    ['outside', row.outer],
    ['inside', row.inner],
    ['UDP port', `${row.port}`],
    ['VNI', row.vni],
    ['overhead', `${both(row.overhead)}, in bytes, from the outer IP header on`],
    ['largest packet', `${both(row.mtu)}, in bytes, where the underlay's MTU is ${STANDARD_MTU}`],
    ...(row.largest === undefined ? [] : [['', `${row.largest} bytes whatever the underlay`]]),
  ]
  const section = (title: string, lines: readonly string[]) =>
    lines.length === 0 ? [] : ['', paint('bold', title), ...lines.map(line => `  ${line}`)]
  return [
    paint('bold', `${row.name}: ${row.summary}`),
    '',
    ...facts.map(([title, fact]) => `${title.padEnd(16)}${fact}`),
    ...section('What the header carries', row.metadata),
    ...section('What an endpoint returns', row.returns),
    ...section(
      'Settings (tunnel.settings, --set NAME=VALUE)',
      row.settings.map(
        ({ name, usual, allowed, describe }) => `${name}: ${describe} Allowed: ${allowed}; ${usual} when not given.`,
      ),
    ),
    ...section('Written in', row.sources),
  ]
}
