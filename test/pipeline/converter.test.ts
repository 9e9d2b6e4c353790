// Real captures into every tunnel and out again; captures of other people's tunnels out of theirs. tshark is the judge.

import { writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { closeCapture, createCapture, Origins, openCapture, PcapReader, PcapWriter } from '../../src/device/pcap.ts'
import { COLUMN, Counters } from '../../src/memory/counters.ts'
import { Converter } from '../../src/pipeline/converter.ts'
import type { TunnelConfig } from '../../src/pipeline/tunnel.ts'
import { fields, fixture, missing, newPool, read, temporary } from '../device/captures.ts'
import { frame } from './packets.ts'
import { TUNNELS, tunnelConfig } from './rig.ts'
import { pattern } from './super.ts'
import { pcapOf } from './tshark.ts'

/** Converts a file as a worker does; every frame is accounted for. Returns drops and packets written. */
async function convert(direction: 'encap' | 'decap', from: string, to: string, tunnel: TunnelConfig) {
  const pool = newPool()
  const counters = new Counters()
  const input = await openCapture(from)
  const output = createCapture(to, input)
  const origins = new Origins(input.format)
  const reader = new PcapReader(pool, counters.stage('read'), input, { origins })
  const writer = new PcapWriter(pool, counters.stage('write'), output, { format: input.format, origins })
  const converter = new Converter(pool, counters, reader, writer, direction, tunnel)
  while (converter.step());
  writer.close()
  closeCapture(input)
  closeCapture(output)
  expect(reader.fault ?? writer.fault).toBeUndefined()
  expect(pool.available).toBe(pool.frames)
  const drops = counters.stages.reduce((sum, stage) => sum + stage.drops(), 0)
  const written = counters.stages.find(stage => stage.name === 'write')!.row[COLUMN.OUT_PACKETS]
  expect(written + drops).toBe(reader.packets)
  for (const { name, row } of counters.stages.filter(stage => /cap|complete/.test(stage.name)))
    expect(row[COLUMN.COPIED_BYTES], name).toBe(0)
  return { drops, written, counters }
}

async function packetsOf(path: string): Promise<string[]> {
  const packets: string[] = []
  await read(path, (pool, batch) => {
    for (let i = 0; i < batch.length; i++) {
      const at = batch.frames[i]
      packets.push(Buffer.from(pool.bytes.slice(pool.start[at], pool.start[at] + pool.length[at])).toString('hex'))
    }
  })
  return packets
}

const file = (name: string) => temporary(`${name}-${Math.round(performance.now() * 1e6)}`)

describe.each(TUNNELS)('into $name and out again', ({ kind, outer }) => {
  const tunnel = tunnelConfig(kind, outer)
  test.each(['http.pcap', 'http-ipv6.pcapng'])('%s: the same packets, the same times', async name => {
    const [inside, again] = [file('inside'), file('again')]
    const { written } = await convert('encap', fixture(name), inside, tunnel)
    expect(await convert('decap', inside, again, tunnel)).toMatchObject({ drops: 0, written })
    expect(await packetsOf(again)).toEqual(await packetsOf(fixture(name)))
    expect(written).toBeGreaterThan(100)
    if (missing !== undefined) return
    const inner = [
      'frame.time_epoch',
      'tcp.srcport',
      'tcp.dstport',
      'tcp.seq_raw',
      'tcp.ack_raw',
      'tcp.len',
      'tcp.checksum',
    ]
    expect(fields(inside, ...inner)).toEqual(fields(fixture(name), ...inner))
    expect(new Set(fields(inside, `${kind}.vni`)).size).toBe(1)
  })

  test('what is not IP, or broken, goes in all the same, and comes out', async () => {
    const [odd, inside, again] = [file('odd'), file('inside'), file('again')]
    const broken = frame()
    broken[14] = 0x41
    const frames = [
      frame({ raw: [0x0806, new Array(28).fill(1)] }),
      frame({ raw: [0x88cc, [1, 2, 3]] }),
      frame({ raw: [0x0026, new Array(38).fill(3)] }),
      broken,
      frame({ data: pattern(400) }).subarray(0, 100),
      frame({ fragment: 3, body: [...pattern(30)] }),
      frame().subarray(0, 14),
    ]
    writeFileSync(odd, pcapOf(frames))
    expect(await convert('encap', odd, inside, tunnel)).toMatchObject({ drops: 0, written: frames.length })
    expect(await convert('decap', inside, again, tunnel)).toMatchObject({ drops: 0, written: frames.length })
    expect(await packetsOf(again)).toEqual(frames.map(bytes => Buffer.from(bytes).toString('hex')))
  })
})

test('a packet that no outer one can hold is dropped, the rest goes on', async () => {
  const [large, inside] = [file('large'), file('inside')]
  // An Ethernet frame of 65,535 bytes: what tcpdump records of super-packets.
  writeFileSync(large, pcapOf([frame(), new Uint8Array(65_535).fill(1), frame()]))
  const { drops, written, counters } = await convert('encap', large, inside, tunnelConfig())
  expect([drops, written]).toEqual([1, 2])
  expect(counters.stages.find(stage => stage.name === 'encap')!.drops()).toBe(1)
})

test('packets of no tunnel are counted drops', async () => {
  const { drops, written } = await convert('decap', fixture('http.pcap'), file('none'), tunnelConfig())
  expect(written).toBe(0)
  expect(drops).toBeGreaterThan(100)
})

describe.skipIf(missing !== undefined)('tunnels of others, by tshark (needs the Wireshark tools)', () => {
  test.each([
    ['vxlan', 'tcpdump/vxlan.pcap'],
    ['geneve', 'tcpdump/geneve.pcap'],
  ] as const)('%s: what comes out is what tshark sees inside', async (kind, name) => {
    const out = file(kind)
    const { counters, written } = await convert('decap', fixture(name), out, tunnelConfig(kind))
    const seen = fields(fixture(name), ...NAMES, 'geneve.option.type.critical').map(line => line.split('\t'))
    // RFC 8926 section 3.5: dropped, and nothing else is.
    const critical = seen.filter(values => values.at(-1)?.includes('1')).length
    expect(counters.stages.find(stage => stage.name === 'decap')!.drops()).toBe(critical)
    expect(written).toBe(seen.length - critical)
    expect(written).toBeGreaterThan(5)
    const inside = seen.filter(values => !values.at(-1)?.includes('1')).map(values => innermost(values.slice(0, -1)))
    expect(fields(out, ...NAMES)).toEqual(inside)
  })
})

const NAMES = ['arp.opcode', 'eth.src', 'eth.dst', 'ip.src', 'ip.dst', 'ip.id', 'ip.len', 'ip.checksum'].concat([
  'icmp.checksum',
  'tcp.checksum',
  'tcp.seq_raw',
])

/** A field of several layers reads `outer,inner`; of ARP in a tunnel the only IP header is the outer one. */
function innermost(values: string[]): string {
  const isArp = values[0] !== ''
  return values.map((value, i) => (isArp && NAMES[i].startsWith('ip.') ? '' : value.split(',').at(-1))).join('\t')
}
