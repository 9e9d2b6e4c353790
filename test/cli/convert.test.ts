// detour encap and detour decap as people run them; tshark, tcpdump, capinfos and cmp judge.

import { spawn, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { captures, fields, fixture, missing, run, temporary, title } from '../device/captures.ts'
import { detour } from './run.ts'

const HTTP = fixture('http.pcap')
const HTTP6 = fixture('http-ipv6.pcapng')

let files = 0
const fresh = (name: string) => temporary(`${files++}-${name}`)

function folder(): string {
  const path = fresh('folder')
  mkdirSync(path)
  return path
}

/** Runs a command that must succeed, and returns what it says of its only file. */
async function convert(command: 'encap' | 'decap', from: string, to: string, ...flags: string[]) {
  const { status, stdout, stderr } = await detour([command, '-r', from, '-w', to, '--json', ...flags])
  expect([status, stderr]).toEqual([0, ''])
  const report = JSON.parse(stdout)
  expect([report.command, report.files.length]).toEqual([command, 1])
  const [file] = report.files
  expect(Object.keys(file)).toEqual(['input', 'output', 'read', 'written', 'packetsPerSecond', 'drops', 'faults'])
  expect(file).toMatchObject({ input: from, output: to, faults: [] })
  const dropped = file.drops.reduce((sum: number, { packets }: { packets: number }) => sum + packets, 0)
  expect(file.read).toBe(file.written + dropped)
  return file as { read: number; written: number; drops: { stage: string; reason: string; packets: number }[] }
}

const countOf = (path: string) => Number(/Number of packets:\s+(\d+)/.exec(run('capinfos', '-cM', path).stdout)?.[1])

/** Time and every byte of each packet, as tcpdump sees them. */
const packetsOf = (path: string) =>
  run('tcpdump', '-tt', '--nano', '-S', '-xx', '-nr', path)
    .stdout.trimEnd()
    .split(/\n(?=\d)/)

const same = (a: string, b: string) => expect(spawnSync('cmp', [a, b], { encoding: 'utf8' }).stdout).toBe('')

const V4 = ['--local', '198.51.100.7', '--remote', '198.51.100.8']
const V6 = ['--local', '2001:db8::7', '--remote', '2001:db8::8']

describe.skipIf(missing)(title('encap, as tshark sees it'), () => {
  test.each([
    ['geneve', HTTP, V4, '6081'],
    ['geneve', HTTP6, V6, '6081'],
    ['vxlan', HTTP6, V4, '4789'],
    ['vxlan', HTTP, V6, '4789'],
  ])('%s: %s, %j', async (profile, input, addresses, port) => {
    const output = fresh('tunnel')
    const { read, written } = await convert(
      'encap',
      input,
      output,
      '--profile',
      profile,
      '--vni',
      '12345',
      ...addresses,
    )
    expect([read, written]).toEqual([countOf(input), countOf(input)])
    const ip = addresses === V4 ? 'ip' : 'ipv6'
    const checked = ['-o', 'udp.check_checksum:TRUE', '-o', 'ip.check_checksum:TRUE']
    const names = [`${ip}.src`, `${ip}.dst`, 'udp.srcport', 'udp.dstport', `${profile}.vni`, 'udp.checksum.status']
    const outer = run('tshark', '-r', output, ...checked, '-T', 'fields', ...names.flatMap(name => ['-e', name]))
      .stdout.trimEnd()
      .split('\n')
      .map(line => line.split('\t').map(value => value.split(',')[0]))
    for (const [source, destination, from, to, vni, checksum] of outer) {
      expect([source, destination, to]).toEqual([addresses[1], addresses[3], port])
      expect(Number(vni)).toBe(12345)
      expect(Number(from)).toBeGreaterThanOrEqual(49_152)
      // 1 is good, 3 not there: VXLAN over IPv4 leaves it out.
      expect(checksum).toBe(profile === 'vxlan' && ip === 'ip' ? '3' : '1')
    }
    // What is inside, by tshark's last layers, is what was there before.
    const inner = ['frame.time_epoch', 'tcp.seq_raw', 'tcp.payload', 'icmp.seq', 'icmpv6.type', 'arp.opcode']
    expect(fields(output, ...inner)).toEqual(fields(input, ...inner))
    // One flow, one source port; flows have different ones, as far as luck allows.
    const streams = new Map<string, Set<string>>()
    for (const line of fields(output, 'tcp.stream', 'udp.srcport')) {
      const [stream, from] = line.split('\t')
      if (stream !== '') streams.set(stream, (streams.get(stream) ?? new Set()).add(from))
    }
    expect(streams.size).toBeGreaterThan(3)
    expect([...streams.values()].every(ports => ports.size === 1)).toBe(true)
    expect(new Set([...streams.values()].map(ports => [...ports][0])).size).toBeGreaterThan(3)
  })
})

describe.skipIf(missing)(title('encap and decap'), () => {
  test.each(['geneve', 'vxlan'].flatMap(profile => [V4, V6].map(addresses => [profile, addresses] as const)))(
    '%s %j give back the input, byte for byte',
    async (profile, addresses) => {
      for (const input of [HTTP, HTTP6]) {
        const [tunnel, back] = [fresh('tunnel'), fresh('back')]
        await convert('encap', input, tunnel, '--profile', profile, ...addresses)
        expect(await convert('decap', tunnel, back, '--profile', profile)).toMatchObject({ drops: [] })
        same(back, input)
      }
    },
  )

  test('every packet of shipped Ethernet captures survives, whatever it is', async () => {
    const names = captures.filter(name => /QinQ|print-flags|isup|pptp|of13|ahcp|icmpv6|srh|nsh|http\.pcap$/.test(name))
    expect(names.length).toBeGreaterThan(8)
    const [tunnels, backs] = [folder(), folder()]
    const inputs = names.map(fixture)
    const encap = await detour(['encap', ...inputs.flatMap(path => ['-r', path]), '-w', tunnels])
    expect([encap.status, encap.stderr]).toEqual([0, ''])
    const outputs = inputs.map(path => join(tunnels, basename(path)))
    const decap = await detour(['decap', ...outputs.flatMap(path => ['-r', path]), '-w', backs])
    expect([decap.status, decap.stderr]).toEqual([0, ''])
    for (const input of inputs) expect(packetsOf(join(backs, basename(input)))).toEqual(packetsOf(input))
  })

  test('a capture in nanoseconds stays one, and comments of pcapng stay', async () => {
    const nano = fresh('nano.pcap')
    run('editcap', '-F', 'nsecpcap', HTTP6, nano)
    const comments = fresh('comments.pcapng')
    run('editcap', '-F', 'pcapng', '-a', '3:look here', '--capture-comment', 'of the file', HTTP, comments)
    for (const input of [nano, comments]) {
      const [tunnel, back] = [fresh('tunnel'), fresh('back')]
      await convert('encap', input, tunnel)
      await convert('decap', tunnel, back)
      expect(packetsOf(back)).toEqual(packetsOf(input))
      const about = (path: string) => run('capinfos', '-tkE', path).stdout.split('\n').slice(1)
      expect(about(back)).toEqual(about(input))
      expect(fields(tunnel, 'frame.comment')).toEqual(fields(input, 'frame.comment'))
      expect(fields(back, 'frame.comment')).toEqual(fields(input, 'frame.comment'))
    }
    expect(fields(comments, 'frame.comment')[2]).toBe('look here')
  })

  test.each(['pcap', 'pcap-ns', 'pcapng'])('--format %s', async format => {
    const output = fresh('output')
    await convert('encap', HTTP6, output, '--format', format)
    const type = { pcap: 'tcpdump/... - pcap', 'pcap-ns': 'nanosecond pcap', pcapng: '... - pcapng' }[format]
    expect(run('capinfos', '-t', output).stdout).toContain(`${type}\n`)
    expect(countOf(output)).toBe(128)
  })
})

describe.skipIf(missing)(title('decap of captures that others made'), () => {
  const names =
    'eth.src eth.dst arp.opcode arp.src.proto_ipv4 icmp.ident icmp.seq icmp.checksum tcp.seq_raw tcp.checksum'
  const inner = names.split(' ')
  const last = (line: string) => line.split('\t').map(value => value.split(',').at(-1))

  test('VXLAN: all of it, as tshark sees the inner frames', async () => {
    const [input, output] = [fixture('tcpdump/vxlan.pcap'), fresh('inner')]
    expect(await convert('decap', input, output, '--profile', 'vxlan')).toMatchObject({ read: 10, written: 10 })
    expect(fields(output, ...inner).map(last)).toEqual(fields(input, ...inner).map(last))
  })

  test('GENEVE: what has an unknown critical option is refused and counted, the rest is as tshark sees it', async () => {
    const [input, output] = [fixture('tcpdump/geneve.pcap'), fresh('inner')]
    const critical = run('tshark', '-r', input, '-Y', 'geneve.option.type.critical == 1')
      .stdout.trimEnd()
      .split('\n').length
    const { written, drops } = await convert('decap', input, output)
    expect(critical).toBeGreaterThan(0)
    expect(drops).toEqual([expect.objectContaining({ stage: 'decap', reason: 'geneve-critical', packets: critical })])
    expect(written).toBe(countOf(input) - critical)
    const plain = fresh('plain')
    run('tshark', '-r', input, '-Y', 'geneve.option.type.critical == 0 or not geneve.option', '-w', plain)
    expect(fields(output, ...inner).map(last)).toEqual(fields(plain, ...inner).map(last))
  })

  test('what is of no tunnel is counted, and nothing written', async () => {
    const output = fresh('nothing.pcap')
    const { drops } = await convert('decap', HTTP, output)
    expect(drops).toEqual([
      expect.objectContaining({
        reason: 'not-tunnel',
        packets: 283,
        text: 'an underlay packet that is not UDP to the tunnel port',
      }),
    ])
    expect(countOf(output)).toBe(0)
  })

  test('--zero-checksum6 takes what RFC 6935 allows', async () => {
    const [zero, refused, taken] = [fresh('zero.pcap'), fresh('refused.pcap'), fresh('taken.pcap')]
    await convert('encap', HTTP, zero, '--profile', 'vxlan', ...V6)
    const bytes = readFileSync(zero)
    for (let at = 24; at < bytes.length; at += 16 + bytes.readUInt32LE(at + 8))
      bytes.writeUInt16BE(0, at + 16 + 14 + 40 + 6)
    writeFileSync(zero, bytes)
    const { drops } = await convert('decap', zero, refused, '--profile', 'vxlan')
    expect(drops).toEqual([expect.objectContaining({ reason: 'udp-zero-checksum', packets: 283 })])
    await convert('decap', zero, taken, '--profile', 'vxlan', '--zero-checksum6')
    same(taken, HTTP)
  })
})

describe('inputs and outputs', () => {
  test('pipes at both ends: packets on standard output, the report on standard error', () => {
    const script = `set -o pipefail; cat "$1" | "$0" dist/src/cli/main.js encap -r - -w - 2>"$2.1" | "$0" dist/src/cli/main.js decap -r - -w - 2>"$2.2" >"$2"`
    const output = fresh('piped')
    const { status } = spawnSync('bash', ['-c', script, process.execPath, HTTP, output])
    expect(status).toBe(0)
    same(output, HTTP)
    for (const report of ['1', '2']) {
      const [titles, row] = readFileSync(`${output}.${report}`, 'utf8').trimEnd().split('\n')
      expect(titles.split(/ {2,}/)).toEqual(['input', 'output', 'read', 'written', 'rate'])
      expect(row).toMatch(/^standard input {2}standard output +283 +283 +[\d.]+ k?pps$/)
    }
  })

  test('a named pipe', async () => {
    const pipe = fresh('pipe')
    spawnSync('mkfifo', [pipe])
    const reader = spawn('cat', [pipe])
    const chunks: Buffer[] = []
    reader.stdout.on('data', chunk => chunks.push(chunk))
    const closed = new Promise(resolve => reader.on('close', resolve))
    const plain = fresh('plain')
    await convert('encap', HTTP, plain)
    await convert('encap', HTTP, pipe)
    await closed
    expect(Buffer.concat(chunks).equals(readFileSync(plain))).toBe(true)
  })

  test('a reader of standard output that has seen enough is no failure', () => {
    const big = fresh('big.pcap')
    const packets = readFileSync(HTTP).subarray(24)
    writeFileSync(big, Buffer.concat([readFileSync(HTTP), ...Array.from({ length: 20 }, () => packets)]))
    const script = `"$0" dist/src/cli/main.js encap -r "$1" -w - | head -c 1000 >/dev/null; echo "\${PIPESTATUS[0]}"`
    const { stdout, stderr } = spawnSync('bash', ['-c', script, process.execPath, big], { encoding: 'utf8' })
    expect([stdout, stderr]).toEqual(['0\n', ''])
  })

  test('several files into a folder: each by its name, without .gz', async () => {
    const [there, zipped] = [folder(), fresh('zipped.pcap.gz')]
    writeFileSync(zipped, gzipSync(readFileSync(HTTP)))
    const { status, stdout } = await detour(['encap', '-r', zipped, '-r', HTTP6, '-w', there])
    expect(status).toBe(0)
    expect(stdout.trimEnd().split('\n')).toHaveLength(3)
    const plain = fresh('plain')
    await convert('encap', HTTP, plain)
    same(join(there, basename(zipped, '.gz')), plain)
    await convert('encap', HTTP6, plain)
    same(join(there, 'http-ipv6.pcapng'), plain)
  })

  test('one of several that cannot be read leaves the others alone', async () => {
    const there = folder()
    const { status, stdout, stderr } = await detour(['encap', '-r', HTTP, '-r', '/nonexistent', '-w', there])
    expect([status, stderr]).toEqual([1, 'detour: /nonexistent: no such file or directory\n'])
    expect(stdout).toMatch(/^\/nonexistent +0 +0 /m)
    const plain = fresh('plain')
    await convert('encap', HTTP, plain)
    same(join(there, 'http.pcap'), plain)
  })

  test.skipIf(missing)(title('a capture without packets'), async () => {
    const [empty, output] = [fresh('empty.pcap'), fresh('output.pcap')]
    copyFileSync(HTTP, empty)
    truncateSync(empty, 24)
    expect(await convert('encap', empty, output)).toMatchObject({ read: 0, written: 0, drops: [] })
    expect(countOf(output)).toBe(0)
  })
})

describe('bad input', () => {
  test('what comes before the fault is written; file and offset are named', async () => {
    const [cut, output, back] = [fresh('cut.pcap'), fresh('output.pcap'), fresh('back.pcap')]
    copyFileSync(HTTP, cut)
    truncateSync(cut, 10_000)
    const { status, stdout, stderr } = await detour(['encap', '-r', cut, '-w', output])
    expect(status).toBe(1)
    expect(stdout).toMatch(/ 64 +64 /)
    const offset = Number(/offset (\d+): the file ends in the middle of a record/.exec(stderr)?.[1])
    expect(stderr).toContain(`detour: ${cut}: offset `)
    await convert('decap', output, back)
    expect(readFileSync(back).equals(readFileSync(cut).subarray(0, offset))).toBe(true)
  })

  test.each([
    ['a file that is not there', '/nonexistent/in.pcap', '/nonexistent/in.pcap: no such file or directory'],
    ['a folder', '/tmp', '/tmp is a directory'],
    ['text', new URL(import.meta.url).pathname, 'offset 0: the file starts with 2f2f2064, which is neither pcap'],
  ])('%s: exit status 1, and no output', async (_, input, sentence) => {
    const output = fresh('never')
    const { status, stdout, stderr } = await detour(['encap', '-r', input, '-w', output])
    expect([status, stdout]).toEqual([1, ''])
    expect(stderr).toContain(sentence)
    expect(stderr.trimEnd().split('\n')).toHaveLength(1)
    expect(existsSync(output)).toBe(false)
  })

  test('a folder to write to that is not there: exit status 1', async () => {
    const { status, stdout, stderr } = await detour(['encap', '-r', HTTP, '-w', '/nonexistent/out.pcap'])
    expect([status, stdout, stderr]).toEqual([1, '', 'detour: /nonexistent/out.pcap: no such file or directory\n'])
  })

  test('a full disk: exit status 1, and nothing counts as written', async () => {
    const { status, stdout, stderr } = await detour(['encap', '-r', HTTP, '-w', '/dev/full'])
    expect([status, stderr]).toEqual([1, 'detour: /dev/full: ENOSPC: no space left on device, write\n'])
    expect(stdout).toMatch(/ \/dev\/full +283 +0 /)
    expect(stdout).toMatch(/ write +device-error +283 /)
  })

  test.each([
    ['the file that is read', (path: string) => ['-r', path, '-w', path], 'is the file that is being read'],
    [
      'the file that is read, compressed',
      (path: string) => {
        writeFileSync(path, gzipSync(readFileSync(path)))
        return ['-r', path, '-w', path]
      },
      'is the file that is being read',
    ],
    ['two files into one', (path: string) => ['-r', path, '-r', path, '-w', '/tmp'], 'would both be written to'],
    [
      'two files without a folder',
      (path: string) => ['-r', path, '-r', HTTP, '-w', `${path}x`],
      'name a folder that exists',
    ],
    ['no output', (path: string) => ['-r', path], "required option '-w, --write <OUT>'"],
    [
      'a VNI of 25 bits',
      (path: string) => ['-r', path, '-w', '-', '--vni', '16777216'],
      'an integer from 0 to 16777215',
    ],
    [
      'a port that is none',
      (path: string) => ['-r', path, '-w', '-', '--port', 'http'],
      "--port 'http': give a number",
    ],
    ['an address that is none', (path: string) => ['-r', path, '-w', '-', '--local', '1.2.3'], "--local '1.2.3'"],
    [
      'two IP versions',
      (path: string) => ['-r', path, '-w', '-', '--local', '::1', '--remote', '1.2.3.4'],
      'same IP version',
    ],
    [
      'another tunnel',
      (path: string) => ['-r', path, '-w', '-', '--profile', 'gre'],
      'Allowed choices are geneve, vxlan',
    ],
    ['another format', (path: string) => ['-r', path, '-w', '-', '--format', 'erf'], 'Allowed choices are pcap'],
  ])('wrong usage, %s: exit status 2, and the input is untouched', async (_, args, sentence) => {
    const input = fresh('input.pcap')
    copyFileSync(HTTP, input)
    const given = args(input)
    const before = readFileSync(input)
    const { status, stdout, stderr } = await detour(['encap', ...given])
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toContain(sentence)
    expect(readFileSync(input).equals(before)).toBe(true)
  })

  test('decap has no addresses and no VNI: it takes what is there', async () => {
    const { status, stderr } = await detour(['decap', '-r', HTTP, '-w', '-', '--vni', '3'])
    expect(status).toBe(2)
    expect(stderr).toContain("unknown option '--vni'")
  })
})
