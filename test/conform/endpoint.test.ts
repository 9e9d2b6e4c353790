// Sound endpoints pass every case that is asked; an endpoint with one defect fails the cases about it and no others.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import type { Target } from '../../src/conform/case.ts'
import { conformProfile } from '../../src/conform/profile.ts'
import { CASES } from '../../src/conform/suite.ts'
import { conform, type Endpoint, gateway, named, strange } from './endpoint.ts'

const directory = mkdtempSync(join(tmpdir(), 'detour-conform-'))
afterAll(() => rmSync(directory, { recursive: true }))

async function ask(starting: Promise<Endpoint>, profile: string, options: Parameters<typeof conform>[2] = {}) {
  const endpoint = await starting
  try {
    return await conform(profile, endpoint, options)
  } finally {
    await endpoint.stop()
  }
}

/** Not asked of a profile as it is. */
const NEVER = ['outer-ports-kept', 'inner-largest-ipv4', 'inner-largest-ipv6', 'idle-udp', 'idle-tcp']
const HEALTH = ['health-answers', 'health-dies']
const GENEVE_ONLY = [
  'options-returned',
  'options-unknown-returned',
  'options-longest-returned',
  'options-reserved-ignored',
  'options-critical-dropped',
  'options-overrun-dropped',
  'options-beyond-packet-dropped',
  'header-version-dropped',
  'header-control-dropped',
  'header-reserved-zero',
  'rubbish-options',
]
const VXLAN_ONLY = ['header-reserved-zero-vxlan', 'header-flag-dropped']
const root = process.getuid?.() === 0
const ROOT4 = root ? [] : ['outer-checksum-wrong-dropped', 'outer-fragments']
const ROOT6 = root ? [] : ['outer-checksum-wrong-dropped']
/** Not asked over IPv6, or of a target at our own address. */
const LOOPBACK6 = ['outer-port', 'outer-checksum-zero', 'outer-fragments', 'flow-other-gateway']
const SOUND = [
  ['geneve', '127.0.0.1', [...VXLAN_ONLY, ...NEVER, ...HEALTH, ...ROOT4]],
  ['geneve', '::1', [...VXLAN_ONLY, ...NEVER, ...HEALTH, ...ROOT6, ...LOOPBACK6]],
  ['vxlan', '127.0.0.1', [...GENEVE_ONLY, ...NEVER, ...HEALTH, ...ROOT4]],
  ['vxlan', '::1', [...GENEVE_ONLY, ...NEVER, ...HEALTH, ...ROOT6, ...LOOPBACK6]],
] as const

describe('sound endpoints pass', () => {
  test.each(SOUND)('ours over a UDP socket, %s at %s', async (profile, address, skipped) => {
    const results = await ask(gateway(profile, address, join(directory, 'control')), profile)
    expect(results.filter(({ outcome }) => outcome === 'fail')).toEqual([])
    expect(named(results, 'skip').sort()).toEqual([...skipped].sort())
  })

  test.each(SOUND)('a stranger in Python, %s at %s', async (profile, address, skipped) => {
    const results = await ask(strange(profile, address), profile)
    expect(results.filter(({ outcome }) => outcome === 'fail')).toEqual([])
    expect(named(results, 'skip').sort()).toEqual([...skipped].sort())
  })
})

const families = (...names: string[]) => names.flatMap(name => [`${name}-ipv4`, `${name}-ipv6`])
const INNER = ['udp', 'tcp', 'icmp', 'icmp-error', 'protocols', 'ttl', 'fragments', '1500'].map(name => `inner-${name}`)
const ECN = ['outer', 'congestion-dropped', 'congestion-shown', 'congestion-kept', 'ect1-shown', 'not-ect-kept']
const RETURNED = ['options-returned', 'options-unknown-returned', 'options-longest-returned']
const MIXED = ['flow-identity', 'inner-ip-options-flow', ...families('inner-fragments-flow'), 'flow-new-metadata']
const MOVED = ['rebalance-tcp', 'rebalance-return', 'rebalance-udp']

/** Defect, profile, and exactly the cases that fail. */
const DEFECTS: readonly [string, 'geneve' | 'vxlan', readonly string[]][] = [
  ['options-dropped', 'geneve', RETURNED],
  ['options-rewritten', 'geneve', RETURNED],
  ['unknown-dropped', 'geneve', ['options-unknown-returned', 'options-longest-returned']],
  ['longest-refused', 'geneve', ['options-longest-returned']],
  ['critical-ignored', 'geneve', ['options-critical-dropped']],
  ['lengths-ignored', 'geneve', ['options-overrun-dropped']],
  ['walk-crashes', 'geneve', ['options-overrun-dropped']],
  ['walk-hangs', 'geneve', ['options-overrun-dropped']],
  ['control-ignored', 'geneve', ['header-control-dropped']],
  ['version-ignored', 'geneve', ['header-version-dropped']],
  ['flag-ignored', 'vxlan', ['header-flag-dropped']],
  ['reserved-echoed', 'geneve', ['header-reserved-zero']],
  ['reserved-echoed', 'vxlan', ['header-reserved-zero-vxlan']],
  ['reserved-refused', 'geneve', ['header-reserved-ignored']],
  ['reserved-refused', 'vxlan', ['header-reserved-ignored']],
  ['vni-zero', 'geneve', ['header-vni-returned']],
  ['vni-zero', 'vxlan', ['header-vni-returned']],
  ['ports-swapped', 'geneve', ['outer-port']],
  ['ports-swapped', 'vxlan', ['outer-port']],
  ['ttl-2', 'geneve', ['outer-ttl']],
  ['tos-zero', 'geneve', ['outer-dscp', ...families('ecn-outer')]],
  ['ecn-ignored', 'geneve', families('ecn-congestion-dropped', 'ecn-congestion-shown', 'ecn-ect1-shown')],
  ['ports-at-20', 'geneve', ['inner-ip-options-flow']],
  ['ports-at-20', 'vxlan', ['inner-ip-options-flow']],
  ['fragment-ports', 'geneve', families('inner-fragments-flow')],
  ['fragment-ports', 'vxlan', families('inner-fragments-flow')],
  ['one-cookie', 'geneve', [...RETURNED, 'header-vni-returned', ...MIXED]],
  ['one-cookie', 'vxlan', ['header-vni-returned', ...MIXED]],
  ['mtu-1400', 'geneve', families('inner-1500')],
  ['errors-refused', 'geneve', ['inner-icmp-error-ipv4']],
  ['protocols-refused', 'geneve', ['inner-protocols-ipv4']],
  [
    'ipv6-refused',
    'geneve',
    [...INNER, ...ECN.map(name => `ecn-${name}`), 'inner-fragments-flow', ...MOVED].map(name => `${name}-ipv6`),
  ],
  ['inner-ttl', 'geneve', [...INNER.map(name => `${name}-ipv4`), 'inner-checksum-none', 'inner-ip-options']],
  ['checksum-filled', 'geneve', ['inner-checksum-none']],
  ['corrupt', 'geneve', [...families(...INNER), 'inner-checksum-none', 'inner-ip-options']],
  ['reorder', 'geneve', ['flow-order']],
  ['duplicate', 'geneve', ['flow-once']],
  ['vlan-stripped', 'geneve', ['inner-vlan']],
  ['vlan-stripped', 'vxlan', ['inner-vlan']],
  ['syn-wanted', 'geneve', families('rebalance-tcp')],
  ['syn-wanted', 'vxlan', families('rebalance-tcp')],
  ['window', 'geneve', families('rebalance-return')],
  ['client-first', 'geneve', families('rebalance-udp')],
  ['first-metadata', 'geneve', ['flow-new-metadata']],
  ['first-metadata', 'vxlan', ['flow-new-metadata']],
  ['syn-once', 'geneve', ['flow-reopened']],
  ['first-peer', 'geneve', ['flow-other-gateway']],
  ['first-peer', 'vxlan', ['flow-other-gateway']],
]

describe('a defect fails the cases about it and no others', () => {
  test.each(DEFECTS)('%s, %s', async (defect, profile, expected) => {
    const results = await ask(strange(profile, '127.0.0.1', defect), profile, { timeoutMs: 1500 })
    const failed = results.filter(({ outcome }) => outcome === 'fail')
    expect(failed.map(({ name }) => name).sort()).toEqual([...expected].sort())
    for (const { sent, seen, packets } of failed) {
      expect([sent, seen]).toEqual([expect.stringContaining('127.0.0.1'), expect.stringMatching(/./)])
      expect(packets.length).toBeGreaterThan(0)
    }
  })

  test.runIf(root).each([
    ['checksum-ignored', 'geneve', 'outer-checksum-wrong-dropped'],
    ['checksum-ignored', 'vxlan', 'outer-checksum-wrong-dropped'],
    ['first-fragment', 'geneve', 'outer-fragments'],
    ['first-fragment', 'vxlan', 'outer-fragments'],
    ['last-fragment', 'geneve', 'outer-fragments'],
    ['last-fragment', 'vxlan', 'outer-fragments'],
  ])('%s, %s (needs root)', async (defect, profile, expected) => {
    const results = await ask(strange(profile, '127.0.0.1', defect), profile)
    expect(named(results, 'fail')).toEqual([expected])
  })
})

/** Faults of our own gateway, and exactly the cases that fail. */
const FAULTS: readonly [string, readonly string[]][] = [
  ['drop-options', RETURNED],
  ['flip-option', RETURNED],
  ['critical-option', RETURNED],
  ['reorder-options', ['options-unknown-returned', 'options-longest-returned']],
  ['swap-ports', ['outer-port']],
  ['wrong-port', ['answers']],
  ['mtu=1400', families('inner-1500')],
  ['mtu=1400,larger=truncate', families('inner-1500')],
  ['duplicate', ['flow-once']],
  ['reorder=0.1', ['flow-order']],
]

describe('a fault of our own gateway fails the cases about it and no others', () => {
  test.each(FAULTS)('%s', async (fault, expected) => {
    const endpoint = gateway('geneve', '127.0.0.1', join(directory, 'control'), '--fault', fault)
    const results = await ask(endpoint, 'geneve', { timeoutMs: 1500 })
    expect(named(results, 'fail').sort()).toEqual([...expected].sort())
  })
})

describe('behind AWS’s load balancer', () => {
  const aws = { slow: true, timeoutMs: 1500 }

  test('an endpoint over a UDP socket cannot keep the source port, and that is all', async () => {
    for (const starting of [
      strange('geneve', '127.0.0.1'),
      gateway('aws-gwlb', '127.0.0.1', join(directory, 'control')),
    ])
      expect(named(await ask(starting, 'aws-gwlb', aws), 'fail')).toEqual(['outer-ports-kept'])
  })

  test.each([
    ['mtu-1400', [...families('inner-1500'), ...families('inner-largest')]],
    ['options-dropped', RETURNED],
    ['one-cookie', [...RETURNED, ...MIXED]],
    ['ports-at-20', ['inner-ip-options-flow']],
    ['syn-wanted', families('rebalance-tcp')],
    ['window', families('rebalance-return')],
    ['client-first', families('rebalance-udp')],
    ['first-metadata', ['flow-new-metadata']],
    ['syn-once', ['flow-reopened']],
    ['first-peer', ['flow-other-gateway']],
  ])('%s', async (defect, expected) => {
    const results = await ask(strange('geneve', '127.0.0.1', defect), 'aws-gwlb', aws)
    expect(named(results, 'fail').sort()).toEqual(['outer-ports-kept', ...expected].sort())
  })
})

describe.runIf(root)('behind AWS’s load balancer, with a raw socket (needs root)', () => {
  test.each([
    ['ports-kept', []],
    ['first-port', ['outer-ports-kept']],
  ])('%s', async (defect, expected) => {
    const results = await ask(strange('geneve', '127.0.0.1', defect), 'aws-gwlb', { slow: true })
    expect(named(results, 'fail')).toEqual(expected)
  })
})

describe('what nobody says is not asked', () => {
  test.each([
    ['azure-gwlb', 'connections stay where they are', families('rebalance-tcp', 'rebalance-return')],
    ['pan-cni', 'nobody says whether flows are moved', families('rebalance-tcp', 'rebalance-return', 'rebalance-udp')],
    ['aws-gwlb', 'the profile has no frames inside', ['inner-vlan']],
    ['gcp-nsi', 'the profile has no frames inside', ['inner-vlan']],
  ])('%s: %s', (name, why, expected) => {
    const profile = conformProfile(name)
    const { vnis } = profile
    const target: Target = { profile, vnis, family: 4, ownsPort: true, twoAddresses: true, slow: false }
    expect(
      CASES.filter(each => each.without?.(target) === why)
        .map(each => each.name)
        .sort(),
    ).toEqual(expected.sort())
  })
})

describe('an endpoint that does not answer', () => {
  test('after a packet: later cases are not asked, and say since when', async () => {
    const results = await ask(strange('geneve', '127.0.0.1', 'walk-crashes'), 'geneve', { timeoutMs: 500 })
    const dead = results.findIndex(({ name }) => name === 'options-overrun-dropped')
    expect(results[dead].seen).toBe('afterwards, sound packets were not answered any more')
    const later = results.slice(dead + 1).filter(({ why }) => why?.includes('has not answered'))
    expect(later.length).toBeGreaterThan(20)
    expect(new Set(later.map(({ why }) => why))).toEqual(
      new Set(['the endpoint has not answered since options-overrun-dropped']),
    )
  })

  test('at all: one failure, and nothing else is asked', async () => {
    const socket = await ask(strange('vxlan', '127.0.0.1', 'flag-ignored'), 'geneve', { timeoutMs: 50 })
    expect(named(socket, 'fail')).toEqual(['answers'])
    expect(named(socket, 'pass')).toEqual([])
  })

  test('in time: answers that come later are told apart from none', async () => {
    const cases = ['answers', 'outer-ttl', 'options-critical-dropped', 'header-version-dropped']
    const late = strange('geneve', '127.0.0.1', 'late', { LATE: '0.6' })
    const results = await ask(late, 'geneve', { timeoutMs: 400, cases })
    expect(named(results, 'fail')).toEqual(['answers', 'outer-ttl'])
    for (const { outcome, seen } of results)
      if (outcome === 'fail') expect(seen).toMatch(/^the answer came after \d+ ms; 400 ms are allowed/)
  })
})
