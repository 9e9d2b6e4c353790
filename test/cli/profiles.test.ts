// detour profiles, and captures through each profile by replay, encap and decap, with tshark as the witness.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { hasTshark } from '../pipeline/tshark.ts'
import { detour } from './run.ts'

const HTTP = 'fixtures/captures/http.pcap'
const HTTP6 = 'fixtures/captures/http-ipv6.pcapng'
const NAMES = ['geneve', 'vxlan', 'aws-gwlb', 'gcp-nsi', 'azure-gwlb', 'pan-cni']
const flagsOf = (name: string) => ['--profile', name, ...(name === 'pan-cni' ? ['--vni', '5'] : [])]

let folder = ''
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'detour-profiles-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

describe('detour profiles', () => {
  test('lists all, as a table and as data', async () => {
    const { status, stdout } = await detour(['profiles'])
    expect(status).toBe(0)
    for (const name of NAMES) expect(stdout).toMatch(new RegExp(`^${name} `, 'm'))
    const rows = JSON.parse((await detour(['profiles', '--json'])).stdout)
    expect(rows.map(({ name }: { name: string }) => name)).toEqual(NAMES)
    expect(rows.map(({ port }: { port: number }) => port)).toEqual([6081, 4789, 6081, 6081, 10800, 6080])
  })

  test('explains one', async () => {
    const { stdout } = await detour(['profiles', 'aws-gwlb'])
    for (const words of [
      '68 over IPv4',
      '8500',
      'class 0x0108, type 3: flow cookie',
      'both UDP ports kept',
      'endpointId',
    ])
      expect(stdout).toContain(words)
    expect(JSON.parse((await detour(['profiles', 'pan-cni', '--json'])).stdout)).toMatchObject({ port: 6080 })
  })

  test('does not know others', async () => {
    const { status, stderr } = await detour(['profiles', 'aws'])
    expect(status).not.toBe(0)
    expect(stderr).toContain('allowed: geneve, vxlan, aws-gwlb')
  })
})

/** Fields of every packet of a capture as tshark reads them, those of the outer headers only. */
function outer(file: string, fields: string[]): string[] {
  const ports = ['10800', '10801', '6080'].flatMap(port => ['-d', `udp.port==${port},vxlan`])
  const each = fields.flatMap(field => ['-e', field])
  const args = ['-r', file, ...ports, '-T', 'fields', '-E', 'occurrence=f', ...each]
  return execFileSync('tshark', args, { stdio: ['ignore', 'pipe', 'ignore'] })
    .toString()
    .trim()
    .split('\n')
}

describe('replay, there and back', () => {
  for (const name of NAMES)
    for (const capture of [HTTP, HTTP6])
      test(`${name}: ${capture}`, async () => {
        const { status, stdout } = await detour(['replay', '-r', capture, ...flagsOf(name), '--json'])
        expect(status).toBe(0)
        const report = JSON.parse(stdout)
        expect(report.sent).toBeGreaterThan(100)
        expect(report.unchanged).toBe(report.sent)
      })

  test('without the options that nobody asks back for', async () => {
    const args = ['replay', '-r', HTTP, '--profile', 'gcp-nsi', '--set', 'echo=none', '--json']
    const report = JSON.parse((await detour(args)).stdout)
    expect(report.unchanged).toBe(report.sent)
  })
})

describe.skipIf(!hasTshark)(`what the gateway returns${hasTshark ? '' : ' (skipped: no tshark)'}`, () => {
  async function underlay(...flags: string[]): Promise<string> {
    const file = join(folder, `${flags.join('-').replaceAll('/', '_')}.pcapng`)
    const { status, stderr } = await detour(['replay', '-r', HTTP, '--pcap', file, ...flags])
    expect([status, stderr]).toEqual([0, ''])
    return file
  }
  const there = (line: string) => line.startsWith('192.0.2.1\t')

  test('aws-gwlb: the same GENEVE bytes, ports kept, addresses swapped', async () => {
    const file = await underlay('--profile', 'aws-gwlb')
    const fields = ['ip.src', 'ip.dst', 'udp.srcport', 'udp.dstport', 'geneve.options', 'geneve.flags', 'geneve.vni']
    const lines = outer(file, fields)
    const strip = (line: string) => line.split('\t').slice(2).join()
    expect(lines.filter(there)).toHaveLength(281)
    expect(
      lines
        .filter(line => !there(line))
        .map(strip)
        .sort(),
    ).toEqual(lines.filter(there).map(strip).sort())
    for (const line of lines) expect(line).toMatch(/^192\.0\.2\.[12]\t192\.0\.2\.[12]\t\d+\t6081\t0108:?01:?02/)
  })

  test('azure-gwlb: by the other port and VNI', async () => {
    const file = await underlay('--profile', 'azure-gwlb', '--vni', '900', '--set', 'externalVni=901')
    const lines = outer(file, ['ip.src', 'udp.dstport', 'vxlan.vni'])
    expect(new Set(lines)).toEqual(new Set(['192.0.2.1\t10800\t900', '192.0.2.2\t10801\t901']))
  })

  test('pan-cni: to the pod’s address', async () => {
    const lines = outer(await underlay(...flagsOf('pan-cni')), ['ip.src', 'ip.dst', 'udp.dstport', 'vxlan.vni'])
    const pod = /^10\.1\.0\.\d+\t192\.0\.2\.2\t6080\t5$|^192\.0\.2\.2\t10\.1\.0\.\d+\t6080\t5$/
    expect(lines.filter(line => line.includes('10.1.0.') && !pod.test(line))).toEqual([])
    expect(lines.filter(line => pod.test(line)).length).toBeGreaterThan(200)
  })

  test.each(['aws-gwlb', 'gcp-nsi', 'azure-gwlb'])('%s: resets and all checksums are right', async name => {
    const rules = join(folder, 'rules.yaml')
    writeFileSync(rules, 'default: reset\n')
    const file = await underlay('--profile', name, '--policy', rules)
    const ports = ['10800', '10801'].flatMap(port => ['-d', `udp.port==${port},vxlan`])
    const checks = ['ip', 'udp', 'tcp'].flatMap(each => ['-o', `${each}.check_checksum:TRUE`])
    const filter = 'ip.checksum.status==0 || udp.checksum.status==0 || tcp.checksum.status==0 || _ws.malformed'
    const tshark = (wanted: string) =>
      execFileSync('tshark', ['-r', file, ...ports, ...checks, '-Y', wanted], { stdio: ['ignore', 'pipe', 'ignore'] })
    expect(tshark(filter).toString()).toBe('')
    expect(tshark('tcp.flags.reset==1').toString()).not.toBe('')
  })
})

describe('encap and decap', () => {
  test.each(NAMES)('%s: what went in comes out', async name => {
    const [tunnelled, plain] = [join(folder, `${name}.pcap`), join(folder, `${name}-plain.pcap`)]
    expect((await detour(['encap', '-r', HTTP, '-w', tunnelled, ...flagsOf(name)])).status).toBe(0)
    const { stdout, stderr } = await detour(['decap', '-r', tunnelled, '-w', plain, '--profile', name, '--json'])
    expect(stderr).toBe('')
    const bare = name === 'aws-gwlb' || name === 'gcp-nsi'
    // Two of them are ARP, which IP tunnels do not carry.
    expect(JSON.parse(stdout).files[0].written).toBe(bare ? 281 : 283)
    const packets = (file: string) => {
      const bytes = readFileSync(file)
      const found: string[] = []
      for (let at = 24; at < bytes.length; ) {
        const length = bytes.readUInt32LE(at + 8)
        const packet = bytes.subarray(at + 16, at + 16 + length)
        at += 16 + length
        if (!bare) found.push(packet.toString('hex'))
        else if (packet.readUInt16BE(12) === 0x0800)
          found.push(packet.subarray(14, 14 + packet.readUInt16BE(16)).toString('hex'))
      }
      return found
    }
    expect(packets(plain)).toEqual(packets(HTTP))
  })
})
