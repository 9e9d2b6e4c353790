// The rule file: what it means, and that every mistake is named with file, line, key, value and what is allowed.

import { readdirSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { DetourError } from '../../src/errors.ts'
import { LIMIT_SIGNATURES, parseRules, readRules } from '../../src/gateway/rules.ts'
import { fixture } from './harness.ts'

const parse = (source: string) => parseRules(source, 'rules.yaml')

/** The message of the error that the file is refused with. */
function mistake(source: string): string {
  try {
    parse(source)
  } catch (error) {
    expect(error).toBeInstanceOf(DetourError)
    expect((error as DetourError).code).toBe('bad-config')
    return (error as Error).message
  }
  throw new Error(`accepted: ${source}`)
}

describe('rule file', () => {
  test.each(readdirSync(fixture('')))('%s is accepted', name => {
    expect(readRules(fixture(name)).rules.length).toBeGreaterThan(1)
  })

  test('says what it says', () => {
    const { default: otherwise, rules } = readRules(fixture('example.yaml'))
    expect(otherwise).toBe('allow')
    expect(rules[0]).toEqual({
      name: 'no-telnet',
      from: ['10.0.0.0/8', 'fd00::/8'],
      to: ['0.0.0.0/0', '::/0'],
      protocol: 'tcp',
      ports: [23, '8000-8100'],
      action: 'reset',
    })
    expect(rules[1].signature).toEqual({
      pattern: { regex: 'GET /secret', flags: 'i' },
      offset: 0,
      depth: Number.POSITIVE_INFINITY,
    })
    expect(rules[3].signature).toEqual({ pattern: { bytes: Uint8Array.of(0, 0xfc, 0, 1) }, offset: 12, depth: 260 })
  })

  test.each([
    ['', { default: 'allow', rules: [] }],
    ['default: drop', { default: 'drop', rules: [] }],
    ['{"rules": [{"action": "drop"}]}', { default: 'allow', rules: [{ name: 'rule 1', action: 'drop' }] }],
    ['rules: [{ protocol: 47, action: drop }]', { rules: [{ protocol: 47 }] }],
    ['rules: [{ to: [192.0.2.1, 2001:db8::/32], action: drop }]', { rules: [{ to: ['192.0.2.1', '2001:db8::/32'] }] }],
  ])('%j', (source, expected) => {
    expect(parse(source)).toMatchObject(expected)
  })

  const rule = (text: string) => `default: allow\nrules:\n  - ${text.replaceAll('\n', '\n    ')}\n`

  test.each([
    // file, line, key, value, what is allowed
    ['default: deny', 'rules.yaml:1: default: "deny" is not allowed; allowed: allow, drop, reset'],
    ['defalt: drop', 'rules.yaml:1: unknown key "defalt"; allowed: default, rules; did you mean "default"?'],
    ['rules: 7', 'rules.yaml:1: rules: 7 is not allowed; allowed: a list of rules'],
    ['- a', 'rules.yaml:1: '],
    [rule('name: x'), 'rules.yaml:3: rules[0].action: is missing; allowed: allow, drop, reset'],
    [rule('action: block'), 'rules.yaml:3: rules[0].action: "block" is not allowed'],
    [
      rule('action: drop\nport: [80]'),
      'rules.yaml:4: rules[0]: unknown key "port"; allowed: name, from, to, protocol, ports, signature, action; did you mean "ports"?',
    ],
    [
      rule('action: drop\nfrom: [10.0.0.0/33]'),
      'rules.yaml:4: rules[0].from[0]: "10.0.0.0/33" is not allowed; allowed: an address or a CIDR block',
    ],
    [rule('action: drop\nto:\n  - 10.0.0.1\n  - example.com'), 'rules.yaml:6: rules[0].to[1]: "example.com"'],
    [rule('action: drop\nto: [10.1]'), 'rules[0].to[0]: 10.1 is not allowed'],
    [rule('action: drop\nto: [fe80::1%eth0]'), 'rules[0].to[0]: "fe80::1%eth0"'],
    [rule('action: drop\nfrom: []'), 'rules.yaml:4: rules[0].from'],
    [rule('action: drop\nfrom: 10.0.0.0/8'), 'rules.yaml:4: rules[0].from'],
    [
      rule('action: drop\nprotocol: tpc'),
      'rules.yaml:4: rules[0].protocol: "tpc" is not allowed; allowed: tcp, udp, icmp, icmpv6, or a number from 0 to 255',
    ],
    [rule('action: drop\nprotocol: 256'), 'rules[0].protocol: 256 is not allowed; allowed: tcp, udp'],
    [
      rule('action: drop\nprotocol: tcp\nports: [70000]'),
      "rules.yaml:5: rules[0].ports[0]: 70000 is not allowed; allowed: a port from 0 to 65535, or a range such as '8000-8100'",
    ],
    [rule("action: drop\nprotocol: tcp\nports: [80, '90-80']"), 'rules[0].ports[1]: "90-80"'],
    [
      rule('action: drop\nprotocol: icmp\nports: [80]'),
      'rules[0].ports: [ 80 ] is not allowed; allowed: only beside protocol: tcp or protocol: udp',
    ],
    [rule('action: drop\nname: default'), 'rules[0].name: "default" is not allowed'],
    [rule('action: drop\nname: "a\\tb"'), 'rules[0].name'],
    [
      `${rule('action: drop\nname: a')}  - { name: a, action: drop }`,
      'rules.yaml:5: rules[1].name: "a" is not allowed; allowed: a name that no other rule has',
    ],
    [
      rule('action: drop\nsignature: {}'),
      'rules.yaml:4: rules[0].signature: {} is not allowed; allowed: exactly one of regex, text and bytes',
    ],
    [rule('action: drop\nsignature: { text: a, bytes: "00" }'), 'exactly one of regex, text and bytes'],
    [rule('action: drop\nsignature: { text: "" }'), 'rules[0].signature.text: "" is not allowed'],
    [
      rule('action: drop\nsignature: { bytes: "0" }'),
      'rules[0].signature.bytes: "0" is not allowed; allowed: hexadecimal bytes',
    ],
    [
      rule('action: drop\nsignature:\n  regex: "(a"'),
      'rules.yaml:5: rules[0].signature.regex: "(a" is not allowed; Invalid regular expression',
    ],
    [
      rule('action: drop\nsignature: { regex: "a*" }'),
      'rules[0].signature.regex: "a*" is not allowed; it matches the empty string',
    ],
    [
      rule('action: drop\nsignature: { regex: a, flags: g }'),
      'rules[0].signature.flags: "g" is not allowed; allowed: the letters i',
    ],
    [
      rule('action: drop\nsignature: { text: a, flags: i }'),
      'rules[0].signature.flags: "i" is not allowed; allowed: only beside regex',
    ],
    [
      rule('action: drop\nsignature: { text: a, depth: 0 }'),
      'rules[0].signature.depth: 0 is not allowed; allowed: an integer from 1',
    ],
    [rule('action: drop\nsignature: { text: a, offset: -1 }'), 'rules[0].signature.offset: -1'],
    [rule('action: drop\naction: reset'), 'rules.yaml:4:5: Map keys must be unique'],
    ['rules: [{ action: drop }', 'rules.yaml:1:'],
    [
      'a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c]',
      'rules.yaml: Excessive alias count',
    ],
    ['['.repeat(100_000), 'rules.yaml'],
    [
      `rules:\n${'  - { action: drop, signature: { text: a } }\n'.repeat(LIMIT_SIGNATURES + 1)}`,
      `rules.yaml:33: rules[31].signature`,
    ],
    [`rules:\n${'  - { action: drop }\n'.repeat(1025)}`, 'allowed: up to 1024 rules'],
  ])('refuses %j', (source, message) => {
    expect(mistake(source)).toContain(message)
  })

  test('names every mistake at once', () => {
    expect(
      mistake('default: deny\nrules:\n  - action: block\n  - { action: drop, protocol: x }').split('\n'),
    ).toHaveLength(3)
  })

  test('a file that is not there', () => {
    expect(() => readRules('/nowhere/rules.yaml')).toThrow('/nowhere/rules.yaml: cannot be read')
  })
})
