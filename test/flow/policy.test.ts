// Policy: which rule matches what, and what a bad rule is told.

import { describe, expect, it } from 'vitest'
import { DetourError } from '../../src/errors.ts'
import { compile, Policy, type PolicyRule } from '../../src/flow/policy.ts'
import { VERDICT, verdictName } from '../../src/flow/verdict.ts'
import { KEY_WORDS } from '../../src/memory/pool.ts'
import { bytesOf, packets, Reader } from './packets.ts'

const reader = new Reader()
const read = new Map(packets.map(packet => [packet.name, reader.read(bytesOf(packet))]))

/** The number of the rule that matches a packet of packets.json, as the first of its flow. */
function matched(rules: Omit<PolicyRule, 'verdict'>[], packet: string): number {
  const policy = new Policy(
    compile(
      rules.map(rule => ({ ...rule, verdict: VERDICT.DROP })),
      VERDICT.PASS,
    ),
  )
  const keys = new Int32Array(3 * KEY_WORDS)
  const { key, reversed } = read.get(packet)!
  keys.set(key, KEY_WORDS)
  return policy.match(keys, KEY_WORDS, reversed)
}

describe('Policy', () => {
  // TCP SYN: 10.1.2.3:40000 to 192.0.2.9:443; TCP SYN-ACK the other way round
  it.each<[string, Omit<PolicyRule, 'verdict'>, boolean]>([
    ['TCP SYN', {}, true],
    ['TCP SYN', { from: ['10.1.2.3'] }, true],
    ['TCP SYN', { from: ['10.1.2.4'] }, false],
    ['TCP SYN', { from: ['10.1.2.4', '10.1.0.0/16'] }, true],
    ['TCP SYN', { from: ['10.1.2.2/31'] }, true],
    ['TCP SYN', { from: ['10.1.2.4/31'] }, false],
    ['TCP SYN', { from: ['10.200.3.4/8'] }, true],
    ['TCP SYN', { from: ['0.0.0.0/0'] }, true],
    ['TCP SYN', { from: ['::/0'] }, false],
    ['TCP SYN', { to: ['10.1.2.3'] }, false],
    ['TCP SYN', { to: ['192.0.2.9/32'], from: ['10.0.0.0/8'] }, true],
    ['TCP SYN', { to: ['128.0.0.0/1'] }, true],
    ['TCP SYN', { to: ['0.0.0.0/1'] }, false],
    ['TCP SYN-ACK', { from: ['192.0.2.9'], to: ['10.1.2.3'] }, true],
    ['TCP SYN-ACK', { from: ['10.1.2.3'] }, false],
    ['TCP SYN', { protocol: 'tcp' }, true],
    ['TCP SYN', { protocol: 6 }, true],
    ['TCP SYN', { protocol: 'udp' }, false],
    ['TCP SYN', { ports: [443] }, true],
    ['TCP SYN', { ports: ['443'] }, true],
    ['TCP SYN', { ports: [80, '440-449'] }, true],
    ['TCP SYN', { ports: ['444-65535', '0-442'] }, false],
    ['TCP SYN', { ports: [40_000] }, false],
    ['TCP SYN', { sourcePorts: [40_000] }, true],
    ['TCP SYN', { sourcePorts: ['1024-65535'], ports: [443] }, true],
    ['TCP SYN', { sourcePorts: [443] }, false],
    ['TCP SYN-ACK', { sourcePorts: [443], ports: [40_000] }, true],
    ['TCP SYN-ACK', { ports: [443] }, false],
    ['TCP over IPv6', { from: ['2001:db8::/32'], to: ['2001:db8::ffff:9'], ports: [443] }, true],
    ['TCP over IPv6', { from: ['2001:db8::1:0/112'] }, true],
    ['TCP over IPv6', { from: ['2001:db8::1:2/127'] }, true],
    ['TCP over IPv6', { from: ['2001:db8::1:4/127'] }, false],
    ['TCP over IPv6', { from: ['0.0.0.0/0'] }, false],
    ['TCP over IPv6 back', { from: ['2001:db8::ffff:9'], sourcePorts: [443] }, true],
    ['echo request', { protocol: 'icmp' }, true],
    ['echo request', { protocol: 'icmpv6' }, false],
    ['echo request over IPv6', { protocol: 'icmpv6' }, true],
    ['echo request', { ports: [0x1234] }, false], // its identifier is no port
    ['GRE', { protocol: 47 }, true],
    ['GRE', { ports: ['0-65535'] }, false],
    ['SCTP', { protocol: 132, ports: [3869] }, true],
    ['time exceeded quoting 8 bytes of TCP', { protocol: 'tcp', from: ['192.0.2.9'], sourcePorts: [443] }, true],
  ])('%s, rule %j: %s', (packet, rule, match) => {
    expect(matched([rule], packet)).toBe(match ? 0 : -1)
  })

  it('takes the first rule that matches, and the default when none does', () => {
    const rules = [{ protocol: 'udp' }, { from: ['10.0.0.0/8'] }, { ports: [443] }] as const
    expect(matched([...rules], 'TCP SYN')).toBe(1)
    expect(matched([...rules].reverse(), 'TCP SYN')).toBe(0)
    expect(matched([...rules], 'TCP SYN-ACK')).toBe(-1)
    expect(matched([], 'TCP SYN')).toBe(-1)
  })

  it('knows verdicts and names, also after a passage to another thread', () => {
    const rules: PolicyRule[] = [{ verdict: VERDICT.STEER }, { name: 'no telnet', ports: [23], verdict: VERDICT.RESET }]
    const policy = new Policy(structuredClone(compile(rules, VERDICT.ALLOW)))
    expect([-1, 0, 1].map(rule => verdictName(policy.verdict(rule)))).toEqual(['allow', 'steer', 'reset'])
    expect([-1, 0, 1].map(rule => policy.name(rule))).toEqual(['default', 'rule 1', 'no telnet'])
  })

  it('finds the last of hundreds of rules', () => {
    const rules = Array.from({ length: 500 }, (_, i) => ({ to: [`198.51.${i >> 8}.${i & 255}`], ports: [i, 60_000] }))
    expect(matched([...rules, { to: ['192.0.2.9'] }], 'TCP SYN')).toBe(500)
  })

  it.each<[object, string]>([
    [{ from: ['10.0.0.0/33'] }, "steer[1].from[0]: '10.0.0.0/33'"],
    [{ from: ['10.0.0.1', '10.0.0'] }, "steer[1].from[1]: '10.0.0'"],
    [{ from: ['10.0.0.1/'] }, "steer[1].from[0]: '10.0.0.1/'"],
    [{ from: ['010.0.0.1'] }, "steer[1].from[0]: '010.0.0.1'"],
    [{ from: ['1234'] }, "steer[1].from[0]: '1234'"],
    [{ to: ['fe80::1%eth0'] }, "steer[1].to[0]: 'fe80::1%eth0'"],
    [{ to: ['fd00::/129'] }, "steer[1].to[0]: 'fd00::/129'"],
    [{ to: ['example.org'] }, "steer[1].to[0]: 'example.org'"],
    [{ to: [] }, "steer[1].to: '[]'"],
    [{ ports: [65_536] }, "steer[1].ports[0]: '65536'"],
    [{ ports: [-1] }, "steer[1].ports[0]: '-1'"],
    [{ ports: [80, 1.5] }, "steer[1].ports[1]: '1.5'"],
    [{ ports: ['90-80'] }, "steer[1].ports[0]: '90-80'"],
    [{ ports: ['http'] }, "steer[1].ports[0]: 'http'"],
    [{ sourcePorts: ['1-2-3'] }, "steer[1].sourcePorts[0]: '1-2-3'"],
    [{ protocol: 'tpc' }, "steer[1].protocol: 'tpc'"],
    [{ protocol: 'toString' }, "steer[1].protocol: 'toString'"],
    [{ protocol: 256 }, "steer[1].protocol: '256'"],
    [{ protocol: 'icmp', ports: [80] }, "steer[1].protocol: 'icmp'"],
  ])('refuses %j', (bad, message) => {
    const rules = [{ verdict: VERDICT.PASS }, { ...bad, verdict: VERDICT.PASS } as PolicyRule]
    let error: unknown
    try {
      compile(rules, VERDICT.PASS, 'steer')
    } catch (thrown) {
      error = thrown
    }
    expect(error).toBeInstanceOf(DetourError)
    expect(error).toMatchObject({ code: 'bad-config' })
    expect((error as DetourError).message).toContain(message)
    expect((error as DetourError).message).toContain('allowed is')
  })
})
