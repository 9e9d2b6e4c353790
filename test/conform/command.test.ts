// detour conform as people run it: what it prints, writes and exits with.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { junit } from '../../src/conform/report.ts'
import type { Result } from '../../src/conform/run.ts'
import { detour } from '../cli/run.ts'
import { freePort } from '../gateway/ports.ts'
import { type Endpoint, gateway, strange } from './endpoint.ts'

let directory: string
const endpoints: Endpoint[] = []

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'detour-conform-'))
})
afterEach(async () => {
  for (const endpoint of endpoints.splice(0)) await endpoint.stop()
  rmSync(directory, { recursive: true })
})

async function target(starting: Promise<Endpoint>): Promise<string[]> {
  const endpoint = await starting
  endpoints.push(endpoint)
  const { address, port } = endpoint
  return ['--target', address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`]
}

const own = (profile: string, address = '127.0.0.1') => target(gateway(profile, address, join(directory, 'control')))
const broken = (profile: string, defect: string) => target(strange(profile, '127.0.0.1', defect))
const here = (name: string) => join(directory, name)

describe('detour conform', () => {
  test('prints a line a case and exits with 0 when all pass', async () => {
    const { status, stdout, stderr } = await detour(['conform', ...(await own('geneve')), '--case', 'outer-*'])
    expect([status, stderr]).toEqual([0, ''])
    const lines = stdout.trim().split('\n')
    expect(lines[0]).toBe('✓ outer-port                    RFC 8926 section 3.3, RFC 7348 section 5')
    expect(lines[1]).toMatch(/^– outer-ports-kept +the profile does not ask for it$/)
    expect(lines.at(-1)).toMatch(/^\d passed, 0 failed, \d not asked$/)
  })

  test('says of a failure what was sent, expected and seen, and exits with 1', async () => {
    const options = await broken('geneve', 'ttl-2')
    const { status, stdout } = await detour(['conform', ...options, '--case', 'outer-ttl', '--case', 'outer-port'])
    expect(status).toBe(1)
    expect(stdout).toMatch(/^✓ outer-port /m)
    expect(stdout).toMatch(
      /^✗ outer-ttl .*\n {4}sent: {5}\(tos 0x0, ttl 64\) IP 127\.0\.0\.2\.\d+ > 127\.0\.0\.1\.\d+: Geneve, vni 1, options \[0xfff0\/0x1:\w+\]: IP 10\.64\.1\.\d+.*\n {4}expected: .*\n {4}seen: {5}the answer's TTL is 2; \(tos 0x0, ttl 2\) IP 127\.0\.0\.1/m,
    )
  })

  test('writes JUnit XML that a parser reads', async () => {
    const file = here('conform.xml')
    const options = await broken('geneve', 'options-rewritten')
    const { status } = await detour(['conform', ...options, '--case', 'options-*', '--case', 'idle-*', '--junit', file])
    expect(status).toBe(1)
    const script = `
import json, sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot().find('testsuite')
cases = [(c.get('name'), [(e.tag, e.get('message'), e.text) for e in c]) for c in suite]
print(json.dumps([suite.attrib, cases]))`
    const parsed = spawnSync('/usr/bin/python3', ['-c', script, file], { encoding: 'utf8' })
    expect(parsed.stderr).toBe('')
    const [suite, cases] = JSON.parse(parsed.stdout)
    expect(suite).toMatchObject({ tests: '9', failures: '3', errors: '0', skipped: '2' })
    const byName = Object.fromEntries(cases)
    expect(byName['options-reserved-ignored']).toEqual([])
    expect(byName['idle-tcp']).toEqual([['skipped', 'the profile names no idle timeout', null]])
    const [[tag, message, text]] = byName['options-returned']
    expect([tag, message]).toEqual(['failure', expect.stringMatching(/^options sent: fff0\w+; came back: fff0/)])
    expect(text).toMatch(/^section: {2}RFC 8926 section 3\.5; AWS blog, "Integrate .*"\nsent: {5}\(tos/)
  })

  test('JUnit XML of hostile text is well formed and says the same', () => {
    const seen = `<![CDATA[ ]]> & "quoted" 'single' \t tab\nline \0 \x1b[31m \ud800 \u{1f600} \ufffe`
    const result = { name: '<x>&"', section: 's', expected: 'e', outcome: 'fail', sent: '<', seen, ms: 1, packets: [] }
    const xml = junit('suite "&<', [result as Result], new Date(0))
    const script = `
import json, sys, xml.etree.ElementTree as tree
case = tree.fromstring(sys.stdin.buffer.read()).find('testsuite/testcase')
print(json.dumps([case.get('classname'), case.get('name'), case[0].get('message')]))`
    const parsed = spawnSync('/usr/bin/python3', ['-c', script], { input: xml, encoding: 'utf8' })
    expect(parsed.stderr).toBe('')
    const said = `<![CDATA[ ]]> & "quoted" 'single' \t tab\nline \ufffd \ufffd[31m \ufffd \u{1f600} \ufffd`
    expect(JSON.parse(parsed.stdout)).toEqual(['suite "&<', '<x>&"', said])
  })

  test('writes both directions of a failure to a pcap file that tshark dissects', async () => {
    const options = await broken('geneve', 'options-dropped')
    const { status, stdout } = await detour(['conform', ...options, '--case', 'options-*', '--pcap', here('pcaps')])
    expect(status).toBe(1)
    expect(readdirSync(here('pcaps')).sort()).toEqual([
      'options-longest-returned.pcap',
      'options-returned.pcap',
      'options-unknown-returned.pcap',
    ])
    const path = here('pcaps/options-returned.pcap')
    expect(stdout).toContain(`pcap:     ${path}`)
    const port = options[1].split(':')[1]
    const fields = ['ip.src', 'udp.checksum.status', 'geneve.option.class', 'geneve.vni', '_ws.malformed']
    const args = ['-r', path, '-d', `udp.port==${port},geneve`, '-o', 'udp.check_checksum:TRUE', '-T', 'fields']
    const found = spawnSync('tshark', [...args, '-E', 'occurrence=f', ...fields.flatMap(field => ['-e', field])], {
      encoding: 'utf8',
    })
    expect(found.stdout.split('\n')[0].split('\t')).toEqual([
      '127.0.0.2',
      '1',
      expect.stringMatching(/fff0/i),
      '0x000001',
      '',
    ])
    expect(found.stdout.split('\n')[1].split('\t')).toEqual(['127.0.0.1', '1', '', '0x000001', ''])
  })

  test('says of a flow that moved from gateway to gateway where each packet went', async () => {
    const options = await broken('geneve', 'first-peer')
    const names = ['rebalance-*', 'flow-other-gateway'].flatMap(name => ['--case', name])
    const files = ['--pcap', directory, '--junit', here('conform.xml'), '--json']
    const { status, stdout } = await detour(['conform', ...options, ...names, ...files])
    expect(status).toBe(1)
    const { cases, ...head } = JSON.parse(stdout)
    expect(head).toMatchObject({ pass: 6, fail: 1, skip: 0 })
    const path = here('flow-other-gateway.pcap')
    expect(cases.at(-1)).toMatchObject({
      name: 'flow-other-gateway',
      section: expect.stringContaining('User Guide for Gateway Load Balancers" (cross-zone load balancing)'),
      outcome: 'fail',
      sent: expect.stringContaining('127.0.0.3'),
      seen: expect.stringMatching(/^it went to another address than the packet came from; .* > 127\.0\.0\.2\./),
      pcap: path,
    })
    const xml = readFileSync(here('conform.xml'), 'utf8')
    expect(xml.match(/<testcase [^>]*name="rebalance-(tcp|return|udp)-ipv[46]" time="[\d.]+"\/>/g)).toHaveLength(6)
    expect(xml).toMatch(/name="flow-other-gateway" [^>]*>\n +<failure message="it went to another address/)
    const fields = ['-T', 'fields', '-e', 'ip.src', '-e', 'ip.dst', '-E', 'occurrence=f']
    const found = spawnSync('tshark', ['-r', path, ...fields], { encoding: 'utf8' })
    const [there, back] = [['127.0.0.2', '127.0.0.3'].map(from => `${from}\t127.0.0.1`), '127.0.0.1\t127.0.0.2']
    expect(found.stdout.trim().split('\n')).toEqual([there[0], back, there[1], back, there[0], back])
  })

  test.runIf(process.getuid?.() === 0)('sends fragments that tshark puts together', async () => {
    const options = await broken('vxlan', 'last-fragment')
    const args = ['-p', 'vxlan', ...options, '--case', 'outer-fragments', '--pcap', directory]
    const { status, stdout } = await detour(['conform', ...args])
    expect([status, stdout]).toEqual([1, expect.stringMatching(/^✗ outer-fragments .*\n {4}sent: .*frag.*\n/)])
    const port = options[1].split(':')[1]
    const fields = ['ip.flags.mf', 'ip.fragment.count', 'vxlan.vni'].flatMap(field => ['-e', field])
    const decode = ['-d', `udp.port==${port},vxlan`, '-T', 'fields', '-E', 'occurrence=f', ...fields]
    const found = spawnSync('tshark', ['-r', here('outer-fragments.pcap'), ...decode], { encoding: 'utf8' })
    expect(found.stdout.split('\n').slice(0, 3)).toEqual(['1\t\t', '0\t2\t1', '0\t\t'])
  })

  test('prints JSON', async () => {
    const options = await own('vxlan', '::1')
    const args = ['conform', '-p', 'vxlan', ...options, '--case', 'header-*', '--json']
    const { status, stdout } = await detour(args)
    expect(status).toBe(0)
    const { cases, ...head } = JSON.parse(stdout)
    expect(head).toMatchObject({ profile: 'vxlan', host: '::1', pass: 4, fail: 0, skip: 3 })
    expect(cases).toContainEqual({
      name: 'header-vni-returned',
      section: 'RFC 8926 section 3.4, RFC 7348 section 5',
      expected: 'the VNI of a packet goes back with it, or that of the other tunnel where there are two',
      outcome: 'pass',
      ms: expect.any(Number),
    })
  })

  test('lists the cases, where they are written and why one would not be asked', async () => {
    const { status, stdout } = await detour(['conform', '--list', '--profile', 'vxlan'])
    expect(status).toBe(0)
    expect(stdout).toMatch(/^CASE +EXPECTED +SECTION +NOT ASKED BECAUSE$/m)
    expect(stdout).toMatch(/^header-control-dropped +the payload .* +RFC 8926 section 3\.4 +not GENEVE$/m)
    const rows = JSON.parse((await detour(['conform', '--list', '--json'])).stdout)
    expect(rows.length).toBe(stdout.trim().split('\n').length - 1)
    expect(new Set(rows.map(({ name }: { name: string }) => name)).size).toBe(rows.length)
  })

  test('nobody there: exit status 1, and nothing is said to have passed', async () => {
    const port = await freePort('127.0.0.1')
    const { status, stdout } = await detour(['conform', '--target', `127.0.0.1:${port}`, '--timeout', '0.05'])
    expect(status).toBe(1)
    expect(stdout).toMatch(/^✗ answers .*\n.*\n.*\n {4}seen: {5}nothing came back within 50 ms$/m)
    expect(stdout).toMatch(/^0 passed, 1 failed, \d+ not asked$/m)
  })

  test.each([
    [[], 2, "required option '--target"],
    [['--target', '127.0.0.1:0'], 2, 'Allowed: a host, or host:port'],
    [['--target', '127.0.0.1', '--timeout', '0'], 2, 'Allowed: 0.01 to 60 seconds.'],
    [['--target', '127.0.0.1', '--vni', '1,16777216'], 2, 'Allowed: numbers below 2^24'],
    [['--target', '127.0.0.1', '--profile', 'gre'], 2, 'Allowed choices are geneve, vxlan'],
    [['--target', '127.0.0.1', '--case', 'inner-upd'], 2, 'case inner-upd: there is none of that name'],
    [['--target', '::1', '--profile', 'aws-gwlb'], 2, 'profile aws-gwlb is over IPv4 only'],
    [['--target', 'no-such-host.invalid'], 1, 'target no-such-host.invalid: no address found'],
    [['--target', '127.0.0.1', '--local', '203.0.113.7'], 1, '203.0.113.7'],
    [['--target', '127.0.0.1', '--local', '::1'], 1, 'different IP versions'],
    [['--target', '127.0.0.1', '--second-local', '203.0.113.7'], 1, '203.0.113.7'],
    [['--target', '127.0.0.1', '--second-local', '127.0.0.2'], 2, "127.0.0.2: the tunnel's port is taken there"],
  ])('refuses %j', async (args, status, message) => {
    const outcome = await detour(['conform', ...args])
    expect(outcome).toMatchObject({ status, stdout: '' })
    expect(outcome.stderr).toContain(message)
  })
})

describe('health checks', () => {
  let server: Server
  let port: number
  let well = true

  beforeEach(async () => {
    well = true
    server = createServer((_, response) => response.writeHead(well ? 200 : 503).end())
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    port = (server.address() as AddressInfo).port
  })
  afterEach(() => new Promise(resolve => server.close(resolve)))

  const args = () => ['--health', `${port}`, '--case', 'health-*']

  test('a port that takes connections is well; one that does not is not', async () => {
    const options = await own('geneve')
    const { status, stdout } = await detour(['conform', ...options, ...args()])
    expect([status, stdout.split('\n')[0].slice(0, 16)]).toEqual([0, '✓ health-answers'])
    expect(stdout).toMatch(/^– health-dies +a page that is well for ever is told only by ending the data path/m)
    const refused = await detour(['conform', ...options, ...args(), '--health', `${await freePort('127.0.0.1')}`])
    expect(refused.status).toBe(1)
    expect(refused.stdout).toMatch(/^✗ health-answers /m)
  })

  test.each([
    ['that follows the data path', 0, '✓'],
    ['that is well for ever', 1, '✗'],
  ])('a page %s', async (_, expected, mark) => {
    const endpoint = await strange('geneve', '127.0.0.1')
    endpoints.push(endpoint)
    // The command tells the page that the data path is going to die; a page that is well for ever does not listen.
    server.on('request', request => {
      if (request.url === '/die' && expected === 0) well = false
    })
    const kill = `kill ${endpoint.pid}; curl -s -o /dev/null http://127.0.0.1:${port}/die`
    const more = ['--kill-command', kill, '--timeout', '1']
    const options = ['--target', `127.0.0.1:${endpoint.port}`, ...args(), ...more]
    const { status, stdout } = await detour(['conform', ...options])
    expect(status).toBe(expected)
    expect(stdout).toMatch(new RegExp(`^${mark} health-dies `, 'm'))
    if (expected === 1) expect(stdout).toContain('the data path is dead, and 10 health checks still found it well')
  })
})

test('the capture of a run is what was sent and received, not more', async () => {
  const options = await broken('vxlan', 'flag-ignored')
  await detour(['conform', '-p', 'vxlan', ...options, '--case', 'header-flag-dropped', '--pcap', directory])
  const bytes = readFileSync(here('header-flag-dropped.pcap'))
  const { stdout } = spawnSync('tcpdump', ['-r', '-', '-nn'], { input: bytes, encoding: 'utf8' })
  // Two packets and the sound one behind them, each answered.
  expect(stdout.trim().split('\n').length).toBe(6)
})
