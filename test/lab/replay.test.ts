// A replay: a capture through the node's stages and a gateway, both in this process. tcpdump, capinfos, tshark and
// scapy judge.

import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, test } from 'vitest'
import { tunnelOf } from '../../src/cli/options.ts'
import { asData } from '../../src/cli/replay.ts'
import { parseFaults } from '../../src/device/faults.ts'
import { ALLOW_ALL, parseRules } from '../../src/gateway/rules.ts'
import { type ReplayOptions, runReplay } from '../../src/lab/replay.ts'
import { captures, fields, fixture, missing, run, temporary, title } from '../device/captures.ts'
import { dropsOf, expectBalance, type ReportData, verdictsOf } from './accounts.ts'

const HTTP = fixture('http.pcap')
const HTTP6 = fixture('http-ipv6.pcapng')

async function replay(input: string, options: Partial<ReplayOptions> = {}): Promise<ReportData> {
  const report = await runReplay({
    input,
    tunnel: tunnelOf({ profile: 'geneve' }),
    policy: ALLOW_ALL,
    live: false,
    rate: 'max',
    workers: 1,
    ...options,
  })
  return asData(report) as ReportData
}

const rules = (text: string) => parseRules(text, 'test.yaml')

/** Time and every byte of each packet that the filter lets through, as tcpdump sees them. */
function packetsOf(path: string, ...filter: string[]): string[] {
  const { stdout } = run('tcpdump', '-tt', '--nano', '-S', '-xx', '-nr', path, ...filter)
  return stdout.trimEnd().split(/\n(?=\d)/)
}

const countOf = (path: string) => Number(/Number of packets:\s+(\d+)/.exec(run('capinfos', '-cM', path).stdout)?.[1])

const NOT_LOCAL = 'not arp and not (icmp6 and ip6[40] >= 130 and ip6[40] <= 137)'

const PYTHON = '/usr/bin/python3'
const scapy = spawnSync(PYTHON, ['-c', 'import scapy']).status === 0
const mixed = temporary('mixed.pcap')
beforeAll(() => {
  if (scapy) run(PYTHON, fileURLToPath(new URL('mixed.py', import.meta.url)), mixed)
})

describe.skipIf(missing)(title('what the gateway allows comes back as it was'), () => {
  test.each([
    ['geneve', HTTP, {}],
    ['geneve', HTTP6, { local: '2001:db8::7', remote: '2001:db8::8' }],
    ['vxlan', HTTP6, {}],
    ['vxlan', HTTP, { local: '2001:db8::7', remote: '2001:db8::8', vni: '16777215', port: '5000' }],
  ])('%s, %s, %j', async (profile, input, flags) => {
    const output = temporary('returned')
    const report = await replay(input, { output, tunnel: tunnelOf({ profile, ...flags }) })
    expectBalance(report, countOf(input))
    expect(packetsOf(output)).toEqual(packetsOf(input, NOT_LOCAL))
    expect(report).toMatchObject({ unchanged: report.sent, notReturned: 0, made: 0, faults: [] })
    expect(verdictsOf(report).local).toBe(countOf(input) - report.sent)
    expect(dropsOf(report.node)).toEqual({})
  })

  test('the underlay carries it as the tunnel of the profile, there and back', async () => {
    const path = temporary('underlay.pcapng')
    const tunnel = tunnelOf({ profile: 'vxlan', vni: '77' })
    const report = await replay(HTTP, { tunnel, underlay: { capture: path } })
    const rows = fields(path, 'ip.src', 'ip.dst', 'udp.dstport', 'vxlan.vni').map(line => line.split('\t'))
    expect(rows.map(([outer]) => outer.split(',')[0]).filter(source => source === '192.0.2.1')).toHaveLength(
      report.sent,
    )
    expect(rows).toHaveLength(report.sent + report.unchanged)
    for (const [, , port, vni] of rows) expect([port.split(',')[0], vni]).toEqual(['4789', '77'])
  })
})

describe.skipIf(missing)(title('the same input gives the same result'), () => {
  const policy = rules(`
default: allow
rules:
  - { name: no-secret, protocol: tcp, ports: [80], signature: { text: 'GET /secret' }, action: drop }
  - { name: no-missing, protocol: tcp, ports: [80], signature: { text: 'GET /missing' }, action: reset }`)

  test.each([1, 2, 3])('with %d workers, to the byte', async workers => {
    const [first, second] = ['first', 'second'].map(name => ({
      output: temporary(name),
      log: temporary(`${name}.log`),
    }))
    const report = await replay(HTTP, { ...first, policy, workers })
    expect(report.faults).toEqual([])
    expectBalance(report, 283)
    const again = await replay(HTTP, { ...second, policy, workers })
    expect(readFileSync(second.output).equals(readFileSync(first.output))).toBe(true)
    expect(readFileSync(second.log).equals(readFileSync(first.log))).toBe(true)
    expect(timeless(again)).toEqual(timeless(report))
    expect(readFileSync(first.log, 'utf8').match(/"action":"(drop|reset)"/g)).toHaveLength(2)
  })

  test.each([HTTP, HTTP6, fixture('tcpdump/of13_ericsson.pcapng'), fixture('pcapng/be/test102.pcapng')])(
    'with any number of workers: %s',
    async input => {
      const outputs = await Promise.all(
        [1, 2, 3].map(async workers => {
          const output = temporary(`by-${workers}`)
          const report = await replay(input, { output, workers, policy })
          expectBalance(report, countOf(input))
          return { bytes: readFileSync(output), report: timeless(report) }
        }),
      )
      expect(outputs[0].report.sent).toBeGreaterThan(0)
      for (const { bytes, report } of outputs.slice(1)) {
        expect(bytes.equals(outputs[0].bytes)).toBe(true)
        expect(report).toMatchObject({ ...outputs[0].report, node: expect.anything(), gateway: expect.anything() })
      }
    },
  )

  test('and the same faults', async () => {
    const underlay = { faults: parseFaults('loss=5%,duplicate=5%,reorder=5%,corrupt=5%,truncate=5%,seed=7') }
    const outputs = await Promise.all(
      ['one', 'two'].map(async name => {
        const output = temporary(name)
        const report = await replay(HTTP, { output, underlay })
        expectBalance(report, 283)
        return { bytes: readFileSync(output), report: timeless(report) }
      }),
    )
    expect(outputs[1].report).toEqual(outputs[0].report)
    expect(outputs[1].bytes.equals(outputs[0].bytes)).toBe(true)
    const { report } = outputs[0]
    expect(report.notReturned).toBeGreaterThan(20)
    expect(report.made).toBeGreaterThan(10)
    const other = await replay(HTTP, { underlay: { faults: { ...underlay.faults, seed: 8 } } })
    expect(timeless(other)).not.toEqual(report)
  })

  test('loss is what the faults say it is, each way', async () => {
    const report = await replay(HTTP, { underlay: { faults: parseFaults('loss=20%,seed=3') } })
    const lost = dropsOf(report.node)['faults loopback:tunnel fault']
    expect(lost).toBeGreaterThan(50)
    expect(report.notReturned).toBe(lost)
    expect(report.changed + report.made).toBe(0)
  })
})

/** What must be the same in every run. */
function timeless(report: ReportData): ReportData {
  const { seconds, packetsPerSecond, latencyP50Us, latencyP99Us, ...rest } = report as ReportData &
    Record<string, unknown>
  expect([seconds, packetsPerSecond, latencyP50Us, latencyP99Us].every(value => typeof value === 'number')).toBe(true)
  return rest
}

describe.skipIf(missing)(title('a rule file'), () => {
  test('drops what it names; the rest comes back in order', async () => {
    const output = temporary('dropped.pcap')
    const report = await replay(HTTP, {
      output,
      policy: rules('{ default: allow, rules: [{ name: no-udp, protocol: udp, action: drop }] }'),
    })
    expectBalance(report, 283)
    expect(packetsOf(output)).toEqual(packetsOf(HTTP, 'not arp and not udp'))
    const udp = packetsOf(HTTP, 'udp').length
    expect(dropsOf(report.gateway)).toEqual({ 'inspect policy': udp })
    expect(report.notReturned).toBe(udp)
  })

  test('resets what it names: both ends are told, and nothing else of the flow comes back', async () => {
    const output = temporary('reset.pcap')
    const log = temporary('reset.log')
    const report = await replay(HTTP, {
      output,
      log,
      policy: rules('{ default: allow, rules: [{ name: no-web, protocol: tcp, ports: [80], action: reset }] }'),
    })
    expectBalance(report, 283)
    const tcp = packetsOf(HTTP, 'tcp').length
    expect(dropsOf(report.gateway)).toEqual({ 'inspect reset': tcp })
    expect(report).toMatchObject({ notReturned: tcp, changed: 0 })
    expect(packetsOf(output, 'not tcp')).toEqual(packetsOf(HTTP, 'not arp and not tcp'))
    expect(packetsOf(output, 'tcp')).toHaveLength(report.made)
    expect(packetsOf(output, 'tcp[tcpflags] & tcp-rst != 0')).toHaveLength(report.made)
    for (const way of ['tcp src port 80', 'tcp dst port 80']) expect(packetsOf(output, way).length).toBeGreaterThan(5)
    const verdicts = readFileSync(log, 'utf8')
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    expect(verdicts.filter(({ action }) => action === 'reset').length).toBe(
      verdicts.filter(v => v.protocol === 'tcp').length,
    )
  })

  test.skipIf(!scapy)('fragments and ICMP errors fare as their flow does (needs python3-scapy)', async () => {
    const output = temporary('fragments.pcap')
    const report = await replay(mixed, {
      output,
      policy: rules('{ default: allow, rules: [{ name: stop, protocol: udp, ports: [7777], action: drop }] }'),
    })
    expectBalance(report, countOf(mixed))
    // By tshark's reassembly and dissection of what an ICMP error quotes.
    const ports = (path: string, port: number) =>
      run('tshark', '-r', path, '-Y', `udp.dstport == ${port}`).stdout.trimEnd().split('\n').filter(Boolean).length
    expect(ports(mixed, 7777)).toBe(6)
    expect(ports(output, 7777)).toBe(0)
    expect(ports(output, 8888)).toBe(ports(mixed, 8888) - 1)
    const fragments = '(ip[6:2] & 0x3fff != 0) or ip6[6] == 44'
    expect(packetsOf(mixed, fragments)).toHaveLength(14)
    expect(packetsOf(output, fragments)).toHaveLength(7)
    expect(dropsOf(report.gateway)).toEqual({ 'inspect policy': 11, 'decap inner-vlan': 1 })
    expect(packetsOf(mixed)).toEqual(expect.arrayContaining(packetsOf(output)))
  })
})

test.skipIf(!scapy || missing)('what is not for an endpoint is told apart (needs python3-scapy, tshark)', async () => {
  const report = await replay(mixed)
  expectBalance(report, countOf(mixed))
  expect(verdictsOf(report)).toEqual({ steer: 29, pass: 0, local: 7, drop: 7 })
  expect(dropsOf(report.node)).toEqual({
    'classify ethernet-truncated': 1,
    'classify ipv4-truncated': 1,
    'classify ipv4-header-length': 1,
    'classify ipv4-total-length': 2,
    'classify ipv6-payload-length': 1,
    'classify udp-length': 1,
  })
  expect(dropsOf(report.gateway)).toEqual({ 'decap inner-vlan': 1 })
  expect(report.unchanged).toBe(28)
})

test.skipIf(missing)(
  title('the accounts of every shipped capture balance'),
  async () => {
    let faulty = 0
    for (const name of captures) {
      const report = await replay(fixture(name), { output: temporary('any') })
      if (report.faults.length > 0) faulty++
      expectBalance(report, report.faults.length > 0 ? report.packets : countOf(fixture(name)))
    }
    expect(faulty).toBeLessThan(captures.length / 4)
  },
  600_000,
)

describe('many packets', () => {
  test.each([1, 2])('of 100,000 flows, through %d workers', async workers => {
    const input = temporary('flows.pcap')
    writeFileSync(input, udpCapture(200_000, 100_000))
    const output = temporary('flows-returned.pcap')
    const report = await replay(input, { output, workers })
    expectBalance(report, 200_000)
    expect(report).toMatchObject({ flows: 100_000, unchanged: 200_000, faults: [] })
    expect(readFileSync(output).equals(readFileSync(input))).toBe(true)
  })

  test('of one flow, all of them the same, some of them lost', async () => {
    const input = temporary('same.pcap')
    writeFileSync(input, udpCapture(200_000, 1, false))
    const report = await replay(input, { underlay: { faults: parseFaults('loss=40%,seed=1') } })
    expectBalance(report, 200_000)
    expect(report.notReturned).toBe(dropsOf(report.node)['faults loopback:tunnel fault'])
  })
})

/** A pcap file of UDP packets, 100,000 a second, a flow after the other; numbered, or all alike. */
function udpCapture(packets: number, flows: number, numbered = true): Buffer {
  const PAYLOAD = 8
  const ip = Buffer.from('450000240000000040110000000000000a000002' + '0000003500100000', 'hex')
  const frame = Buffer.concat([Buffer.from('0200000000020200000000010800', 'hex'), ip, Buffer.alloc(PAYLOAD)])
  const size = 16 + frame.length
  const file = Buffer.alloc(24 + packets * size)
  file.writeUInt32LE(0xa1b2c3d4, 0)
  file.writeUInt16LE(2, 4)
  file.writeUInt16LE(4, 6)
  file.writeUInt32LE(262_144, 16)
  file.writeUInt32LE(1, 20)
  for (let i = 0; i < packets; i++) {
    const at = 24 + i * size
    file.writeUInt32LE(1_700_000_000 + Math.floor(i / 100_000), at)
    file.writeUInt32LE((i % 100_000) * 10, at + 4)
    file.writeUInt32LE(frame.length, at + 8)
    file.writeUInt32LE(frame.length, at + 12)
    frame.copy(file, at + 16)
    const flow = i % flows
    file.writeUInt32BE(0x0b000000 + (flow >> 12), at + 16 + 14 + 12)
    file.writeUInt16BE(1024 + (flow & 0xfff), at + 16 + 34)
    if (numbered) file.writeUInt32BE(i, at + 16 + 42)
  }
  return file
}

test('an hour without packets in the capture is nothing to those on their way', async () => {
  const input = temporary('gaps.pcap')
  const file = udpCapture(20_000, 100)
  for (let at = 24, i = 0; at < file.length; at += 16 + file.readUInt32LE(at + 8), i++) {
    file.writeUInt32LE(file.readUInt32LE(at) + 3600 * Math.floor(i / 1500), at)
    // Other flows after each gap, so that those before it are idle.
    file[at + 16 + 26] = 0x0b + Math.floor(i / 1500)
  }
  writeFileSync(input, file)
  const report = await replay(input)
  expectBalance(report, 20_000)
  expect(report).toMatchObject({ unchanged: 20_000, flows: 1400 })
})

describe('at a rate', () => {
  test.each(['1x', 20_000] as const)('of %s everything comes back in order', async rate => {
    const input = temporary('short.pcap')
    writeFileSync(input, udpCapture(2000, 7))
    const output = temporary('paced.pcap')
    const report = await replay(input, { output, rate })
    expectBalance(report, 2000)
    expect(readFileSync(output).equals(readFileSync(input))).toBe(true)
  })
})
