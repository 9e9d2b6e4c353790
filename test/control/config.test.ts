// The configuration: defaults, and errors that say file, line, key, value and what is allowed.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { configSchema, workerCount } from '../../src/control/config.ts'
import { closest } from '../../src/control/suggest.ts'
import { checkValue, parseYaml, readYaml } from '../../src/control/yaml.ts'
import { DetourError } from '../../src/errors.ts'

const parse = (text: string) => parseYaml(configSchema, text, 'node.yaml')

function complaint(text: string): string {
  try {
    parse(text)
  } catch (error) {
    expect(error).toBeInstanceOf(DetourError)
    expect(error).toMatchObject({ code: 'bad-config' })
    return (error as Error).message
  }
  throw new Error(`accepted: ${text}`)
}

// RFC 1918, 6598, 3927, 4193.
const privateNetworks = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', '169.254.0.0/16', 'fc00::/7']

test('an empty file is the defaults', () => {
  expect(parse('# nothing\n')).toEqual({
    node: { control: '/run/detour/detour.sock', state: '/run/detour', standby: true },
    tunnel: {
      profile: 'geneve',
      settings: {},
      port: 6081,
      vni: 1,
      ttl: 64,
      dscp: 'copy',
      ecn: 'normal',
      udpChecksum: 'auto',
      strictReserved: false,
    },
    endpoints: [],
    health: { probe: { intervalMs: 100, limitMs: 350 }, rise: 3, fall: 3, holdDownSeconds: 1 },
    rebalance: 'onFailure',
    endpointSeed: '',
    pods: {
      inspect: true,
      excludeNamespaces: ['kube-system'],
      bypassNode: true,
      antiSpoofing: true,
      protectedCidrs: [],
      flows: 131072,
    },
    failMode: 'closed',
    heartbeatLimitMs: 200,
    flows: { capacity: 1048576, tcpTimeoutSeconds: 350, otherTimeoutSeconds: 120 },
    bypass: [
      { name: 'metadata', cidr: ['169.254.169.254/32', 'fd00:ec2::254/128'] },
      { name: 'dns', cidr: privateNetworks, protocol: 'udp', port: 53 },
      { name: 'dns', cidr: privateNetworks, protocol: 'tcp', port: 53 },
    ],
    mssClamp: 'auto',
    rungs: { attach: 'auto', offload: 'auto', express: 'auto' },
    workers: 1,
    polling: { mode: 'adaptive', maxMicroseconds: 100 },
    metrics: { listen: '127.0.0.1:9469' },
    log: { level: 'info', format: 'auto' },
    flowLog: 'none',
  })
})

test('the port follows the profile, unless it is given', () => {
  expect(parse('tunnel: { profile: vxlan }').tunnel.port).toBe(4789)
  expect(parse('tunnel: { profile: vxlan, port: 6080 }').tunnel.port).toBe(6080)
})

test('every key can be set', () => {
  const text = `
tunnel: { profile: vxlan, port: 8472, vni: 16777215, local: "fd00::1", remote: "fd00::2", ttl: 255, dscp: 46,
          ecn: compatibility, udpChecksum: zero, strictReserved: true }
flows: { capacity: 1000, tcpTimeoutSeconds: 60, otherTimeoutSeconds: 5 }
failMode: open
heartbeatLimitMs: 20
rungs: { attach: clsact, offload: udp-socket }
workers: 4
polling: { mode: never, maxMicroseconds: 20 }
bypass:
  - { cidr: fd00::/8 }
  - { protocol: udp, port: 53 }
  - { protocol: tcp, port: 8000-8100, cidr: 10.0.0.0/8 }
`
  const config = parse(text)
  expect(config.tunnel).toMatchObject({ vni: 16777215, dscp: 46, remote: 'fd00::2', udpChecksum: 'zero' })
  expect(config.bypass).toHaveLength(3)
  expect(config.polling).toEqual({ mode: 'never', maxMicroseconds: 20 })
})

describe('what is wrong is said with line, key, value and what is allowed', () => {
  const cases: [string, string][] = [
    ['tunnel:\n  ttl: 300', 'node.yaml:2: tunnel.ttl: 300 is not allowed; allowed: an integer from 1 to 255'],
    ['tunnel:\n  ttl: 1.5', 'node.yaml:2: tunnel.ttl: 1.5 is not allowed; allowed: an integer from 1 to 255'],
    ['tunnel:\n  vni: "7"', 'node.yaml:2: tunnel.vni: "7" is not allowed; allowed: an integer from 0 to 16777215'],
    ['tunnel:\n  dscp: 64', 'node.yaml:2: tunnel.dscp: 64 is not allowed; allowed: copy, or an integer from 0 to 63'],
    [
      'tunnel:\n  profile: geneva',
      'node.yaml:2: tunnel.profile: "geneva" is not allowed; allowed: geneve, vxlan, aws-gwlb, gcp-nsi, azure-gwlb, pan-cni; did you mean "geneve"?',
    ],
    [
      'tunnel:\n  remote: fe80::1%eth0',
      'node.yaml:2: tunnel.remote: "fe80::1%eth0" is not allowed; allowed: an IPv4 or IPv6 address',
    ],
    [
      'tunnel:\n  local: 10.0.0.1\n  remote: fd00::1',
      'node.yaml:3: tunnel.remote: "fd00::1" is not allowed; allowed: an address of the same IP version as local',
    ],
    [
      'workers: 2\nheartbeatLimitMs: 19',
      'node.yaml:2: heartbeatLimitMs: 19 is not allowed; allowed: an integer from 20 to 60000 (milliseconds)',
    ],
    ['failMode: opne', 'node.yaml:1: failMode: "opne" is not allowed; allowed: open, closed; did you mean "open"?'],
    [
      'flows:\n  capcity: 5',
      'node.yaml:2: flows: unknown key "capcity"; allowed: capacity, tcpTimeoutSeconds, otherTimeoutSeconds; ' +
        'did you mean "capacity"?',
    ],
    [
      'bypass:\n  - cidr: 10.0.0.0/8\n  - cidr: 10.0.0.0/33',
      'node.yaml:3: bypass[1].cidr: "10.0.0.0/33" is not allowed; ' +
        'allowed: a prefix like 10.0.0.0/8 or fd00::/8, or a list of them',
    ],
    [
      'bypass:\n  - {}',
      'node.yaml:2: bypass[0]: {} is not allowed; allowed: a rule with at least one of cidr, from, protocol, port',
    ],
    ['bypass:\n  - port: 53', 'node.yaml:2: bypass[0].protocol: is missing; allowed beside a port: tcp, udp'],
    [
      'bypass:\n  - { protocol: tcp, port: 90-80 }',
      'node.yaml:2: bypass[0].port: "90-80" is not allowed; ' +
        'allowed: a port from 0 to 65535, or a range like 8000-8100',
    ],
    ['workers: 17', 'node.yaml:1: workers: 17 is not allowed; allowed: auto, or an integer from 1 to 16'],
    ['workers: 1\nworkers: 2', 'node.yaml:2:1: Map keys must be unique'],
  ]
  for (const [text, message] of cases) test(message, () => expect(complaint(text)).toBe(message))
})

test('several mistakes are all said, a line each', () => {
  expect(complaint('workers: 0\nfailMode: maybe\ntunel: {}').split('\n')).toHaveLength(3)
})

test('no text makes anything but a DetourError', () => {
  const texts = [
    '- 1',
    '5',
    'a: [',
    '&a [*a]',
    'tunnel: 5',
    '__proto__: { a: 1 }',
    '? [a]\n: b',
    '\u0000',
    '!!binary x: y',
  ]
  for (const text of [...texts, `${'['.repeat(20_000)}`, `${'a: {'.repeat(500)}`]) complaint(text)
})

test('a file that is not there is named', () => {
  expect(() => readYaml(configSchema, '/nonexistent/node.yaml')).toThrow(/\/nonexistent\/node.yaml: cannot be read/)
})

test('a file is read, and named with the line', () => {
  const directory = mkdtempSync(join(tmpdir(), 'dtconf-'))
  const file = join(directory, 'a.yaml')
  writeFileSync(file, 'workers: 3\n')
  expect(readYaml(configSchema, file).workers).toBe(3)
  writeFileSync(file, 'workers: auto\n')
  expect(workerCount(readYaml(configSchema, file).workers)).toBeGreaterThan(0)
  writeFileSync(file, '\n\nworkers: many\n')
  expect(() => readYaml(configSchema, file)).toThrow(`${file}:3: workers: "many" is not allowed`)
  rmSync(directory, { recursive: true })
})

test('options of a command are checked by the same schema', () => {
  expect(() => checkValue(configSchema, { tunnel: { vni: -1 } }, 'command line')).toThrow(
    'command line: tunnel.vni: -1 is not allowed; allowed: an integer from 0 to 16777215',
  )
})

test('a suggestion is made only when it is near', () => {
  expect(closest('atach', ['attach', 'offload'])).toBe('attach')
  expect(closest('banana', ['attach', 'offload'])).toBeUndefined()
})
