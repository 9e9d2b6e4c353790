// Faults of tunnel packets, as tshark and scapy see what comes back.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { FAULT_NAMES } from '../../src/device/faults.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { type Bench, bench } from './harness.ts'
import cases from './packets.json' with { type: 'json' }

const missing = ['tshark', '/usr/bin/python3'].find(tool => spawnSync(tool, ['--version']).error !== undefined)
const title = (name: string) => (missing === undefined ? name : `${name} (skipped: no ${missing})`)
const folder = mkdtempSync(join(tmpdir(), 'detour-faults-'))
afterAll(() => rmSync(folder, { recursive: true }))

let gateway: Bench
beforeEach(() => {
  gateway = bench('geneve', ALLOW_ALL)
})
afterEach(() => {
  expect(gateway.leaks()).toEqual([])
  gateway.close()
})

function framesOf(name: string): Uint8Array[] {
  const found = cases.find(each => each.name === name)
  if (found === undefined) throw new Error(`no case ${name}`)
  return found.frames.map(hex => Uint8Array.from(Buffer.from(hex, 'hex')))
}
const [OVER4] = framesOf('GENEVE over IPv4')
const [OVER6] = framesOf('GENEVE over IPv6')
const [OPTIONS] = framesOf('GENEVE options are echoed byte for byte')
const [VXLAN] = framesOf('VXLAN over IPv4 with checksum')
const [TAGGED] = framesOf('outer IPv4 options and a VLAN tag stay')

/** Numbered frames of ten UDP flows, without any checksum of UDP. */
function numbered(count: number): Uint8Array[] {
  const [frame] = framesOf('GENEVE with zero checksum')
  const innerUdp = 14 + 20 + 8 + 8 + 14 + 20
  return Array.from({ length: count }, (_, i) => {
    const own = frame.slice()
    const view = new DataView(own.buffer)
    view.setUint16(innerUdp, 1000 + (i % 10))
    view.setUint16(innerUdp + 6, 0)
    view.setUint16(innerUdp + 8, i)
    return own
  })
}

/** The last of tshark's values of a field a frame: those of inner packets come behind. */
const inner = (values: string) => values.split(',').at(-1)

/** tshark's values of fields, a row a frame; it verifies checksums. */
function tshark(frames: Uint8Array[], ...names: string[]): string[][] {
  const header = Buffer.alloc(24)
  header.writeUInt32LE(0xa1b2c3d4, 0)
  header.writeUInt32LE(0x0004_0002, 4)
  header.writeUInt32LE(65535, 16)
  header.writeUInt32LE(1, 20)
  const records = frames.flatMap(frame => {
    const record = Buffer.alloc(16)
    record.writeUInt32LE(frame.length, 8)
    record.writeUInt32LE(frame.length, 12)
    return [record, frame]
  })
  const path = join(folder, 'back.pcap')
  writeFileSync(path, Buffer.concat([header, ...records]))
  const check = ['-o', 'udp.check_checksum:TRUE', '-o', 'ip.check_checksum:TRUE', '-o', 'udp.summary_in_tree:TRUE']
  const { stdout } = spawnSync(
    'tshark',
    [...check, '-r', path, '-T', 'fields', ...names.flatMap(name => ['-e', name])],
    {
      encoding: 'utf8',
    },
  )
  return stdout
    .split('\n')
    .slice(0, -1)
    .map(line => line.split('\t'))
}

const GOOD = '1'
/** What tshark says of the outer checksums and lengths of frames; an empty list when all is well. */
function wrong(frames: Uint8Array[]): string[] {
  const rows = tshark(frames, 'ip.checksum.status', 'udp.checksum.status', 'ip.len', 'udp.length', '_ws.malformed')
  return rows.flatMap(([ip, udp, ipLength, udpLength], i) => {
    const bad: string[] = []
    if (ip !== '' && ip.split(',')[0] !== GOOD && frames[i][12] === 8) bad.push(`frame ${i}: ip checksum ${ip}`)
    if (!['1', '3'].includes(udp.split(',')[0])) bad.push(`frame ${i}: udp checksum ${udp}`)
    if (frames[i][12] === 8 && Number(ipLength.split(',')[0]) !== frames[i].length - 14)
      bad.push(`frame ${i}: ${ipLength}`)
    if (Number(udpLength.split(',')[0]) <= 8) bad.push(`frame ${i}: ${udpLength}`)
    return bad
  })
}

/** What goes out for frames that come in one by one. */
function back(spec: string, ...frames: Uint8Array[]): Uint8Array[] {
  gateway.faults(spec)
  return frames.flatMap(frame => gateway.exchange([frame]))
}

describe.skipIf(missing)(title('what tshark sees'), () => {
  test('without options, all else the same, also behind a VLAN tag and over IPv6', () => {
    const [plain] = back('', OPTIONS)
    const [bare] = back('drop-options', OPTIONS)
    const types = tshark([plain, bare], 'geneve.option.type').map(([all]) => all)
    expect([types[0].split(',').length, types[1]]).toEqual([4, ''])
    const optionBytes = plain.length - bare.length
    expect(optionBytes).toBeGreaterThan(0)
    expect(bare.subarray(50)).toEqual(plain.subarray(50 + optionBytes))
    expect(wrong([bare])).toEqual([])
    const others = back('drop-options', TAGGED, OVER6, OVER4)
    expect(others).toHaveLength(3)
    expect(tshark(others, 'geneve.option.type', 'geneve.vni')).toEqual(Array(3).fill(['', '0x00004d']))
    expect(tshark(others, 'udp.checksum.status').map(([status]) => status.split(',')[0])).not.toContain('0')
  })

  test('one byte of option data inverted, another by chance, and nothing else', () => {
    const [plain] = back('', OPTIONS)
    const damaged = back('flip-option,seed=3', ...Array(12).fill(OPTIONS))
    const places = damaged.map(frame => {
      const changed = [...plain.keys()].filter(i => frame[i] !== plain[i] && (i < 40 || i > 41))
      expect(changed).toHaveLength(1)
      expect(frame[changed[0]] ^ plain[changed[0]]).toBe(0xff)
      return changed[0]
    })
    expect(new Set(places).size).toBeGreaterThan(3)
    expect(wrong(damaged)).toEqual([])
    const [types] = tshark([plain], 'geneve.option.type')
    expect(tshark(damaged, 'geneve.option.type')).toEqual(Array(12).fill(types))
  })

  test('the first option last', () => {
    const [plain] = back('', OPTIONS)
    const [turned] = back('reorder-options', OPTIONS)
    const types = (frame: Uint8Array) => tshark([frame], 'geneve.option.type')[0][0].split(',')
    const [first, ...others] = types(plain)
    expect(types(turned)).toEqual([...others, first])
    expect(types(turned)).not.toEqual(types(plain))
    expect(wrong([turned])).toEqual([])
  })

  test('a critical option', () => {
    const [plain] = back('', OPTIONS)
    const [critical] = back('critical-option', OPTIONS)
    const on = /^(1|True)$/
    const [before] = tshark([plain], 'geneve.flags.critical', 'geneve.option.type.critical')
    const [after] = tshark([critical], 'geneve.flags.critical', 'geneve.option.type.critical')
    expect([before[0], before[1].split(',')[0]]).not.toEqual([expect.stringMatching(on), expect.stringMatching(on)])
    expect([after[0], after[1].split(',')[0]]).toEqual([expect.stringMatching(on), expect.stringMatching(on)])
    expect(wrong([critical])).toEqual([])
  })

  test('the wrong port, and ports that have changed places', () => {
    const ports = (frames: Uint8Array[]) =>
      tshark(frames, 'udp.srcport', 'udp.dstport').map(row => row.map(all => all.split(',')[0]))
    const [[source, destination]] = ports(back('', OVER4))
    const wrongPort = back('wrong-port', OVER4, OVER6)
    expect(ports(wrongPort)).toEqual([
      [source, '6082'],
      [source, '6082'],
    ])
    const swapped = back('swap-ports', OVER4, OVER6)
    expect(ports(swapped)).toEqual([
      [destination, source],
      [destination, source],
    ])
    expect(destination).toBe('6081')
    expect(tshark([...wrongPort, ...swapped], 'udp.checksum.status').map(([status]) => status.split(',')[0])).toEqual(
      Array(4).fill(GOOD),
    )
  })

  test('what is larger than the MTU, cut off or lost; what is not, untouched', () => {
    const [plain] = back('', OPTIONS)
    const size = plain.length - 14
    expect(back(`mtu=${size}`, OPTIONS)).toEqual([plain])
    expect(back(`mtu=${size - 1}`, OPTIONS)).toEqual([])
    const [cut] = back(`mtu=${size - 1},larger=truncate`, OPTIONS)
    expect(cut).toHaveLength(plain.length - 1)
    expect(wrong([cut])).toEqual([])
    expect(gateway.drops()).toEqual({ 'faults transmit': { fault: 1 } })
    const [six] = back('mtu=100,larger=truncate', OVER6)
    expect(six).toHaveLength(114)
    expect(tshark([six], 'ipv6.plen', 'udp.checksum.status').map(row => row.map(all => all.split(',')[0]))).toEqual([
      ['60', GOOD],
    ])
  })

  test('an end that is missing', () => {
    const cut = back('truncate,seed=5', ...Array(20).fill(OPTIONS))
    expect(wrong(cut)).toEqual([])
    expect(new Set(cut.map(frame => frame.length)).size).toBeGreaterThan(5)
    expect(Math.max(...cut.map(frame => frame.length))).toBeLessThan(OPTIONS.length)
  })

  test('one bit, behind the outer UDP header, and the checksum says so', () => {
    const [plain] = back('', OVER4)
    const damaged = back('corrupt,seed=2', ...Array(20).fill(OVER4))
    for (const frame of damaged) {
      const bits = [...frame.keys()].flatMap(i => ((frame[i] ^ plain[i]).toString(2).match(/1/g) ?? []).map(() => i))
      expect(bits).toHaveLength(1)
      expect(bits[0]).toBeGreaterThanOrEqual(42)
    }
    expect(tshark(damaged, 'udp.checksum.status').map(([status]) => status.split(',')[0])).toEqual(Array(20).fill('0'))
  })

  test('loss, copies and another order, of some flows only', () => {
    const all = numbered(100)
    const order = (frames: Uint8Array[]) =>
      tshark(frames, 'udp.payload').map(([all]) => parseInt(inner(all)!.slice(0, 4), 16))
    const sent = order(all)
    const lost = order(back('drop=30%,seed=4', ...all))
    expect(lost).toEqual(sent.filter(n => lost.includes(n)))
    expect(lost.length).toBeGreaterThan(50)
    expect(lost.length).toBeLessThan(90)
    expect(order(back('duplicate,port=1007', ...all))).toEqual(sent.flatMap(n => (n % 10 === 7 ? [n, n] : [n])))
    expect(order(back('drop,port=1007', ...all))).toEqual(sent.filter(n => n % 10 !== 7))
    expect(back('drop,protocol=tcp', ...all)).toHaveLength(100)
    expect(back('drop,protocol=udp', ...all)).toHaveLength(0)
    expect(back('drop,cidr=10.1.2.0/25', ...all)).toHaveLength(0)
    expect(back('drop,cidr=10.1.2.128/25', ...all)).toHaveLength(100)
    expect(back('drop,cidr=192.0.2.9,protocol=udp,port=1005', ...all)).toHaveLength(90)
    expect(back('drop,cidr=fd00::a', OVER4, OVER6)).toHaveLength(1)
    gateway.faults('reorder=20%,depth=5,seed=6')
    const soon = all.flatMap(frame => gateway.exchange([frame]))
    gateway.faults('')
    const mixed = order([...soon, ...gateway.late()])
    expect(mixed).not.toEqual(sent)
    expect([...mixed].sort((a, b) => a - b)).toEqual(sent)
  })

  test('VXLAN has no options to lose, but all the rest', () => {
    const plain = bench('vxlan', ALLOW_ALL)
    const through = (spec: string) => {
      plain.faults(spec)
      return plain.exchange([VXLAN])
    }
    const [untouched] = through('')
    for (const kind of ['drop-options', 'flip-option', 'reorder-options', 'critical-option'])
      expect(through(kind)).toEqual([untouched])
    expect(through('drop,port=40000')).toEqual([])
    const [cut] = through('mtu=80,larger=truncate')
    expect(cut).toHaveLength(94)
    expect(wrong([cut])).toEqual([])
    expect(plain.leaks()).toEqual([])
    plain.close()
  })

  test('scapy makes the same bytes of what is in the altered packets', () => {
    const frames = [
      'drop-options',
      'reorder-options',
      'critical-option',
      'flip-option',
      'wrong-port',
      'mtu=90,larger=truncate',
    ].flatMap(spec => back(spec, OPTIONS, OVER6))
    const script = [
      'import sys',
      'from scapy.all import *',
      'for line in sys.stdin:',
      '    raw = bytes.fromhex(line)',
      '    p = Ether(raw)',
      '    ip = p.payload',
      '    if isinstance(ip, IP): del ip.len, ip.chksum',
      '    else: del ip.plen',
      '    u = p[UDP]',
      '    u.remove_payload()',
      '    u.add_payload(Raw(raw[len(raw) - (u.len - 8):]))',
      '    del u.len, u.chksum',
      '    print(bytes(p).hex())',
    ].join('\n')
    const hex = frames.map(frame => Buffer.from(frame).toString('hex'))
    const { stdout, stderr } = spawnSync('/usr/bin/python3', ['-c', script], {
      input: hex.join('\n'),
      encoding: 'utf8',
    })
    expect(stdout.trim().split('\n'), stderr).toEqual(hex)
  })
})

test('what is received goes wrong before it is judged, when that is asked for', () => {
  expect(back('drop', OVER4)).toEqual([])
  expect(gateway.log()).toHaveLength(1)
  expect(back('critical-option,direction=receive', OPTIONS)).toEqual([])
  expect(back('corrupt,direction=receive', OVER4, OVER4)).toEqual([])
  expect(back('drop,direction=both', OVER4)).toEqual([])
  expect(gateway.drops()).toEqual({
    'faults transmit': { fault: 1 },
    'faults receive': { fault: 1 },
    decap: { 'geneve-critical': 1, 'udp-checksum': 2 },
  })
})

test('a delayed packet comes when it is time, and at once when the fault is over', () => {
  vi.useFakeTimers({ toFake: ['performance'] })
  try {
    const [plain] = back('', OVER4)
    expect(back('delay=50ms', OVER4)).toEqual([])
    vi.advanceTimersByTime(49)
    expect(gateway.late()).toEqual([])
    vi.advanceTimersByTime(1)
    expect(gateway.late()).toEqual([plain])
    expect(back('delay=1h,direction=receive', OVER4)).toEqual([])
    gateway.faults('')
    expect(gateway.late()).toEqual([plain])
  } finally {
    vi.useRealTimers()
  }
})

test('a fault that stays goes on with its dice when others come and go', () => {
  const all = numbered(60)
  const lost = (between: () => void) => {
    gateway.faults('drop=30%,seed=9')
    const first = all.slice(0, 30).flatMap(frame => gateway.exchange([frame]))
    between()
    return [...first, ...all.slice(30).flatMap(frame => gateway.exchange([frame]))]
  }
  const alone = lost(() => {})
  gateway.faults('')
  expect(lost(() => gateway.faults('drop=30%,drop=0,seed=9'))).toEqual(alone)
})

test('whatever comes in, with whatever faults: nothing is lost that is not counted', () => {
  const frames = cases.filter(({ profile }) => profile === 'geneve').flatMap(each => each.frames)
  const spec = fc.uniqueArray(
    fc.constantFrom(...FAULT_NAMES.filter(name => !['hang', 'exit', 'kill'].includes(name))),
    {
      minLength: 1,
    },
  )
  const damaged = fc.tuple(fc.constantFrom(...frames), fc.nat(), fc.nat(255), fc.nat(40))
  fc.assert(
    fc.property(spec, fc.array(damaged, { maxLength: 20 }), fc.nat(1000), (kinds, packets, seed) => {
      const own = { delay: 'delay=1ms', mtu: 'mtu=80,larger=truncate' } as Record<string, string>
      const others = kinds.filter(kind => kind !== 'mtu').map(kind => own[kind] ?? kind)
      const words = [
        ...others,
        ...(kinds.includes('mtu') ? ['mtu=80'] : []),
        'share=60%',
        'direction=both',
        `seed=${seed}`,
      ]
      gateway.faults(words.join(','))
      const bytes = packets.map(([hex, at, value, cut]) => {
        const frame = Uint8Array.from(Buffer.from(hex, 'hex'))
        frame[at % frame.length] ^= value
        return frame.subarray(0, Math.max(14, frame.length - cut))
      })
      for (const frame of bytes) expect(() => gateway.exchange([frame])).not.toThrow()
      gateway.faults('')
      gateway.late()
      expect(gateway.leaks()).toEqual([])
    }),
    { numRuns: 200, seed: 1 },
  )
})
