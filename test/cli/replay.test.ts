// detour replay as people run it: its report, its files, what it refuses, and live endpoints: `detour gateway`, and a
// reflector that is not ours.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { copyFileSync, existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { gzipSync } from 'node:zlib'
import { afterEach, describe, expect, test } from 'vitest'
import { fixture, missing, run, temporary, title } from '../device/captures.ts'
import { dropsOf, expectBalance, type ReportData, verdictsOf } from '../lab/accounts.ts'
import { detour, start } from './run.ts'

const HTTP = fixture('http.pcap')
const HTTP6 = fixture('http-ipv6.pcapng')
const POLICY = new URL('../../fixtures/policy/example.yaml', import.meta.url).pathname

let files = 0
const fresh = (name: string) => temporary(`${files++}-${name}`)

/** Runs a replay that must succeed, and returns its report. */
async function replay(...args: string[]): Promise<ReportData> {
  const { status, stdout, stderr } = await detour(['replay', '--json', ...args])
  expect([status, stderr]).toEqual([0, ''])
  return JSON.parse(stdout)
}

const same = (a: string, b: string) => expect(spawnSync('cmp', [a, b], { encoding: 'utf8' }).stdout).toBe('')

/** The capture without what is not for an endpoint. */
const steerable = (() => {
  let path: string | undefined
  return () => {
    if (path !== undefined) return path
    path = fresh('steerable.pcap')
    run('tcpdump', '-r', HTTP, '-w', path, 'not arp')
    return path
  }
})()

describe('the report', () => {
  test('for people: verdicts, what came back, what was dropped and why', async () => {
    const { status, stdout, stderr } = await detour(['replay', '-r', HTTP, '--policy', POLICY])
    expect([status, stderr]).toEqual([0, ''])
    const lines = stdout.trimEnd().split('\n')
    const cells = lines.map(line => line.split(/ {2,}/))
    expect(lines[0]).toBe(`${HTTP}: 283 packets of 10 flows, through geneve to a gateway in this process`)
    expect(cells.slice(1, 7)).toEqual([
      [''],
      ['verdict', 'packets', 'bytes', 'share', 'that is'],
      ['steer', '281', '179 kB', '99.3%', 'sent to the endpoint'],
      ['pass', '0', '0 B', '0.0%', 'left to go its own way'],
      ['local', '2', '84 B', '0.7%', 'of the link: ARP, neighbour discovery, DHCP, not IP'],
      ['drop', '0', '0 B', '0.0%', 'cannot be forwarded'],
    ])
    expect(cells.slice(8, 12)).toEqual([
      ['steered packets', 'packets', 'share'],
      ['returned unchanged', '272', '96.8%'],
      ['returned changed', '0', '0.0%'],
      ['not returned', '9', '3.2%'],
    ])
    expect(cells.slice(13, 15)).toEqual([
      ['side', 'stage', 'dropped', 'packets', 'because'],
      ['gateway', 'inspect', 'policy', '9', 'a rule says drop'],
    ])
    expect(lines.at(-1)).toMatch(
      /^replayed in [\d.]+ m?s, [\d.]+ k?pps; there and back in [\d.]+ (µs|ms|s) \(p50\), [\d.]+ (µs|ms|s) \(p99\)$/,
    )
    expect(lines).toHaveLength(17)
  })

  test('as data', async () => {
    const report = await replay('-r', HTTP, '--policy', POLICY)
    expectBalance(report, 283)
    const { node, gateway, verdicts, ...figures } = report as ReportData & Record<string, unknown>
    expect(figures).toEqual({
      ...{ input: HTTP, packets: 283, sent: 281, unchanged: 272, changed: 0, notReturned: 9, made: 0, flows: 10 },
      faults: [],
      seconds: expect.any(Number),
      packetsPerSecond: expect.any(Number),
      latencyP50Us: expect.any(Number),
      latencyP99Us: expect.any(Number),
    })
    // All bytes of the file but those of headers are in some verdict.
    const bytes = statSync(HTTP).size - 24 - 16 * 283
    expect(verdicts.reduce((sum, verdict) => sum + verdict.bytes, 0)).toBe(bytes)
    expect(verdicts[0]).toEqual({ verdict: 'steer', packets: 281, bytes: bytes - 2 * 42 })
    for (const row of [...node, ...gateway])
      expect(Object.keys(row)).toEqual(['stage', 'inPackets', 'inBytes', 'outPackets', 'outBytes', 'created', 'drops'])
    expect(dropsOf(gateway)).toEqual({ 'inspect policy': 9 })
  })

  test('of a capture without packets', async () => {
    const empty = fresh('empty.pcap')
    copyFileSync(HTTP, empty)
    truncateSync(empty, 24)
    const { status, stdout } = await detour(['replay', '-r', empty])
    expect(status).toBe(0)
    expect(stdout).toContain('0 packets of 0 flows')
    expect(stdout).not.toMatch(/NaN|Infinity|undefined/)
    expect(stdout).not.toContain('there and back')
    expectBalance(await replay('-r', empty), 0)
  })
})

describe('inputs and outputs', () => {
  test.skipIf(missing)(title('gzip in by a pipe, what returned out by a pipe, the report beside it'), () => {
    const [zipped, output] = [fresh('in.gz'), fresh('out.pcap')]
    writeFileSync(zipped, gzipSync(readFileSync(HTTP)))
    const script = 'set -o pipefail; cat "$1" | "$0" dist/src/cli/main.js replay -r - -w - | cat >"$2"'
    const { status, stderr } = spawnSync('bash', ['-c', script, process.execPath, zipped, output], { encoding: 'utf8' })
    expect(status).toBe(0)
    expect(stderr).toContain('standard input: 283 packets of 10 flows')
    expect(packetsOf(output)).toEqual(packetsOf(steerable()))
  })

  test('verdicts on standard output', async () => {
    const { status, stdout, stderr } = await detour(['replay', '-r', HTTP, '--policy', POLICY, '--log', '-'])
    expect(status).toBe(0)
    const verdicts = stdout
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    expect(verdicts.filter(({ action }) => action === 'drop')).toMatchObject([
      { rule: 'block-secret', protocol: 'tcp' },
    ])
    expect(stderr).toContain('returned unchanged')
  })

  test.skipIf(missing)(title('--pcap shows the underlay, of several workers too; --trace prints it'), async () => {
    for (const workers of ['1', '2']) {
      const path = fresh('underlay.pcapng')
      const args = [
        '-r',
        HTTP,
        '--profile',
        'vxlan',
        '--vni',
        '9',
        '--pcap',
        path,
        '--trace',
        '5',
        '--workers',
        workers,
      ]
      const { status, stderr } = await detour(['replay', ...args])
      expect(status).toBe(0)
      const lines = stderr.trimEnd().split('\n')
      expect(lines).toHaveLength(5 * Number(workers))
      for (const line of lines)
        expect(line).toMatch(/^loopback:tunnel [<>] IP 192\.0\.2\.1\.\d+ > 192\.0\.2\.2\.4789: VXLAN.* vni 9/)
      const vni9 = run('tshark', '-r', path, '-Y', 'vxlan.vni == 9').stdout.trimEnd().split('\n')
      expect(vni9).toHaveLength(2 * 281)
    }
  })

  test('a truncated capture: what comes before the fault is replayed, exit status 1', async () => {
    const [cut, output] = [fresh('cut.pcap'), fresh('output.pcap')]
    copyFileSync(HTTP, cut)
    truncateSync(cut, 10_000)
    for (const workers of ['1', '2']) {
      const { status, stdout, stderr } = await detour([
        'replay',
        '-r',
        cut,
        '-w',
        output,
        '--workers',
        workers,
        '--json',
      ])
      expect(status).toBe(1)
      expect(stderr).toMatch(/^detour: .*cut\.pcap: offset \d+: the file ends in the middle of a record[^\n]*\n$/)
      const report: ReportData = JSON.parse(stdout)
      expectBalance(report, 64)
      expect(report.faults).toHaveLength(1)
      expect(report.unchanged).toBe(62)
    }
  })

  test.each([
    ['-w', 'no space left on device'],
    ['--pcap', 'no space left on device'],
    ['--log', 'could not be written'],
  ])('a full disk behind %s is said, exit status 1', async (flag, sentence) => {
    for (const workers of ['1', '2']) {
      const { status, stdout, stderr } = await detour(['replay', '-r', HTTP, flag, '/dev/full', '--workers', workers])
      expect(status).toBe(1)
      expect(stdout).toContain('returned unchanged')
      expect(stderr).toMatch(new RegExp(`^detour: .*(${sentence}|no space left on device)`))
    }
  })

  test.each(['-w', '--pcap', '--log'])('%s must not be the input', async flag => {
    const input = fresh('precious.pcap')
    copyFileSync(HTTP, input)
    const { status, stderr } = await detour(['replay', '-r', input, flag, input])
    expect([status, stderr]).toEqual([2, `detour: ${input} is the file that is being read: write to another\n`])
    same(input, HTTP)
  })

  test.each([
    [['-r', '/nonexistent'], '/nonexistent: no such file or directory'],
    [['-r', '/tmp'], '/tmp is a directory'],
    [['-r', POLICY], 'which is neither pcap nor pcapng nor gzip'],
    [['-r', HTTP, '-w', '/nonexistent/out'], '/nonexistent/out: no such file or directory'],
    [['-r', HTTP, '--log', '/nonexistent/log'], '/nonexistent/log: no such file or directory'],
    [['-r', HTTP, '--policy', '/nonexistent/rules'], '/nonexistent/rules'],
    [['-r', HTTP, '--endpoint', 'nowhere.invalid:6081'], 'no address of nowhere.invalid'],
  ])('what cannot be opened: %j', async (args, sentence) => {
    const { status, stdout, stderr } = await detour(['replay', ...args])
    expect([status, stdout]).toEqual([1, ''])
    expect(stderr).toContain(sentence)
    expect(stderr.trimEnd().split('\n')).toHaveLength(1)
  })

  test.each([
    [[], "required option '-r, --read <IN>'"],
    [['--workers', '0'], 'allowed: 1 to 64'],
    [['--workers', 'two'], 'allowed: 1 to 64'],
    [['--rate', 'fast'], 'allowed: max, 1x'],
    [['--rate', '0pps'], 'allowed: max, 1x'],
    [['--trace', 'x'], 'allowed: a number of packets'],
    [['--fault', 'loss=2'], 'loss is a probability'],
    [['--endpoint', 'host'], 'give HOST:PORT'],
    [['--endpoint', '::1:6081'], 'give HOST:PORT'],
    [['--endpoint', '127.0.0.1:70000'], '--port'],
    [['--endpoint', '127.0.0.1:6081', '--policy', POLICY], 'a live endpoint has its own'],
    [['--endpoint', '127.0.0.1:6081', '--remote', '127.0.0.2'], 'says both already'],
    [['--endpoint', '127.0.0.1:6081', '--workers', '2'], 'so to one worker'],
    [['--log', 'x', '--pcap', 'x'], 'only one of them can write to x'],
    [['more'], 'too many arguments'],
  ])('wrong usage: %j', async (args, sentence) => {
    const { status, stdout, stderr } = await detour(['replay', ...(args.length > 0 ? ['-r', HTTP] : []), ...args])
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toContain(sentence)
    expect(existsSync('x')).toBe(false)
  })
})

describe('many packets', () => {
  test.skipIf(spawnSync('python3', ['--version']).error !== undefined)(
    'a million: none lost, and memory does not grow with the file (needs python3)',
    async () => {
      const measure = `
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(done.returncode)`
      const peak = (packets: number) => {
        const input = fresh('many.pcap')
        writeFileSync(input, manyPackets(packets))
        const command = [process.execPath, 'dist/src/cli/main.js', 'replay', '--json', '-r', input]
        const { status, stdout, stderr } = spawnSync('python3', ['-c', measure, ...command], { encoding: 'utf8' })
        expect(status).toBe(0)
        const report: ReportData = JSON.parse(stdout)
        expectBalance(report, packets)
        expect(report).toMatchObject({ unchanged: packets, flows: 500 })
        return Number(stderr) / 1024
      }
      const [some, many] = [peak(200_000), peak(1_000_000)]
      expect(many).toBeLessThan(some + 24)
      expect(many).toBeLessThan(256)
    },
    120_000,
  )
})

/** A pcap file of numbered UDP packets of 500 flows. */
function manyPackets(packets: number): Buffer {
  const headers = '0200000000020200000000010800' + '45000024000000004011000000000000' + '0a000002' + '0000003500100000'
  const frame = Buffer.from(`${headers}${'00'.repeat(8)}`, 'hex')
  const record = Buffer.alloc(16 + frame.length)
  record.writeUInt32LE(frame.length, 8)
  record.writeUInt32LE(frame.length, 12)
  frame.copy(record, 16)
  const file = Buffer.alloc(24 + packets * record.length)
  Buffer.from('d4c3b2a1020004000000000000000000000004000100000', 'hex').copy(file)
  file.writeUInt32LE(1, 20)
  for (let i = 0; i < packets; i++) {
    const at = 24 + i * record.length
    record.copy(file, at)
    file.writeUInt32LE(1_700_000_000 + Math.floor(i / 1e5), at)
    file.writeUInt32LE((i % 1e5) * 10, at + 4)
    file.writeUInt32BE(0x0a010000 + (i % 500), at + 16 + 26)
    file.writeUInt16BE(4000, at + 16 + 34)
    file.writeUInt32BE(i, at + 16 + 42)
  }
  return file
}

/** Time and every byte of each packet, as tcpdump sees them. */
const packetsOf = (path: string) =>
  run('tcpdump', '-tt', '--nano', '-S', '-xx', '-nr', path)
    .stdout.trimEnd()
    .split(/\n(?=\d)/)

const children: ChildProcess[] = []
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

/** A port that nobody had a moment ago. */
async function freePort(address: string): Promise<number> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4').bind(0, address)
  await once(socket, 'listening')
  const { port } = socket.address()
  socket.close()
  await once(socket, 'close')
  return port
}

describe.skipIf(missing)(title('a live endpoint: detour gateway'), () => {
  /** Starts one; resolves when it listens. */
  async function gateway(address: string, ...args: string[]): Promise<string> {
    const host = address.includes(':') ? `[${address}]` : address
    for (;;) {
      const listen = `${host}:${await freePort(address)}`
      const child = start(['gateway', '--listen', listen, '--json', '--control', fresh('socket'), ...args])
      children.push(child)
      let complaint = ''
      child.stderr.on('data', text => (complaint += text))
      const [line] = await Promise.race([once(createInterface(child.stdout), 'line'), once(child, 'close')])
      // Somebody else took the port meanwhile.
      if (complaint.includes('EADDRINUSE')) continue
      expect([complaint, JSON.parse(line)]).toEqual(['', expect.objectContaining({ event: 'listening' })])
      return listen
    }
  }

  test.each([
    ['geneve', '127.0.0.1'],
    ['vxlan', '::1'],
  ])('%s, %s: everything comes back as it went, with its time', async (profile, address) => {
    const endpoint = await gateway(address, '--profile', profile)
    const output = fresh('returned.pcap')
    const report = await replay('-r', HTTP, '-w', output, '--profile', profile, '--endpoint', endpoint)
    expectBalance(report, 283)
    expect(report).toMatchObject({ unchanged: 281, changed: 0, notReturned: 0, made: 0, gateway: [] })
    expect(packetsOf(output)).toEqual(packetsOf(steerable()))
    const second = await replay('-r', HTTP6, '--profile', profile, '--endpoint', endpoint, '--rate', '20000pps')
    expect(second).toMatchObject({ unchanged: 124, notReturned: 0 })
  })

  test('its rules hold: what it stops does not return, as with the gateway in this process', async () => {
    const log = fresh('verdicts')
    const endpoint = await gateway('127.0.0.1', '--policy', POLICY, '--log', log)
    const [output, inside] = [fresh('live.pcap'), fresh('inside.pcap')]
    const report = await replay('-r', HTTP, '-w', output, '--endpoint', `localhost:${endpoint.split(':')[1]}`)
    expect(report).toMatchObject({ unchanged: 272, changed: 0, notReturned: 9, made: 0 })
    await replay('-r', HTTP, '-w', inside, '--policy', POLICY)
    same(output, inside)
  })
})

/** Returns what it gets to where it came from: all, with the last byte of every tenth one flipped, or every second. */
const REFLECTOR = `
import socket, sys
mode, address = sys.argv[1:]
s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
try: s.setsockopt(socket.SOL_SOCKET, 33, 1 << 22) # SO_RCVBUFFORCE
except OSError: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
s.bind((address, 0))
print(s.getsockname()[1], flush=True)
n = 0
while True:
    data, peer = s.recvfrom(65536)
    n += 1
    if mode == 'flip' and n % 10 == 0: data = data[:-1] + bytes([data[-1] ^ 1])
    if mode == 'half' and n % 2 == 0: continue
    s.sendto(data, peer)
    if mode == 'twice': s.sendto(data, peer)
`

const hasPython = spawnSync('python3', ['--version']).status === 0

describe.skipIf(!hasPython)('a live endpoint that is not ours (needs python3)', () => {
  async function reflector(mode: string, address = '127.0.0.1'): Promise<string> {
    const child = spawn('python3', ['-c', REFLECTOR, mode, address], { stdio: ['ignore', 'pipe', 'inherit'] })
    children.push(child)
    const [port] = await once(createInterface(child.stdout), 'line')
    return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
  }

  test.each([
    ['geneve', '127.0.0.1'],
    ['vxlan', '::1'],
  ])('%s, %s: returns all', async (profile, address) => {
    const output = fresh('returned.pcap')
    const endpoint = await reflector('all', address)
    const report = await replay('-r', HTTP6, '-w', output, '--profile', profile, '--endpoint', endpoint)
    expectBalance(report, 128)
    expect(report).toMatchObject({ unchanged: 124, changed: 0, notReturned: 0, made: 0 })
    const inside = fresh('inside')
    await replay('-r', HTTP6, '-w', inside)
    same(output, inside)
  })

  test('changes some: they are told apart', async () => {
    const report = await replay('-r', HTTP, '--endpoint', await reflector('flip'))
    expectBalance(report, 283)
    expect(report).toMatchObject({ unchanged: 253, changed: 28, notReturned: 0, made: 0 })
  })

  test('swallows some: they are missed', async () => {
    const output = fresh('half.pcap')
    const report = await replay('-r', HTTP, '-w', output, '--endpoint', await reflector('half'))
    expectBalance(report, 283)
    expect(report).toMatchObject({ unchanged: 141, changed: 0, notReturned: 140, made: 0 })
    expect(packetsOf(output)).toEqual(packetsOf(steerable()).filter((_, i) => i % 2 === 0))
  })

  test('answers twice: second copies are no packets of ours', async () => {
    const report = await replay('-r', HTTP, '--endpoint', await reflector('twice'))
    expectBalance(report, 283)
    expect(report).toMatchObject({ unchanged: 281, changed: 0, notReturned: 0 })
    expect(report.made).toBeGreaterThan(250)
  })
})

test('an endpoint that is not there: the replay ends by itself and says so', async () => {
  const endpoint = `127.0.0.1:${await freePort('127.0.0.1')}`
  const { status, stdout } = await detour(['replay', '-r', HTTP, '--endpoint', endpoint])
  expect(status).toBe(0)
  expect(stdout).toMatch(/^not returned +281 +100\.0%$/m)
  expect(stdout).toContain(`nothing came back: is there an endpoint at ${endpoint}`)
  expect(verdictsOf(await replay('-r', HTTP, '--endpoint', endpoint))).toMatchObject({ steer: 281, local: 2 })
})
