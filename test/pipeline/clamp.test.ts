// What a SYN announces is lowered to what fits the tunnel; tshark says whether the checksum still holds.

import { describe, expect, test } from 'vitest'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { EndpointTable, SEGMENT_SIZE } from '../../src/memory/endpoints.ts'
import { createHealth } from '../../src/memory/health.ts'
import { OFFLOAD } from '../../src/memory/pool.ts'
import { innerMtu } from '../../src/pipeline/tunnel.ts'
import { address, frame, PEER, POD, TCP, type Version } from './packets.ts'
import { plain, Rig, tunnelConfig } from './rig.ts'
import { plainSum } from './super.ts'
import { decode, hasTshark } from './tshark.ts'

const UNDERLAY = 1500
const SYN = 2
const ACK = 16
const be16 = (v: number) => [(v >> 8) & 255, v & 255]
const MSS = (bytes: number) => [2, 4, ...be16(bytes)]

interface Segment {
  version?: Version
  flags?: number
  options?: number[]
  arriving?: boolean
  tags?: number[]
}

/** A TCP segment with options and a right checksum, leaving the pod or arriving at it. */
function segment({ version = 4, flags = SYN, options = [], arriving = false, tags }: Segment): Uint8Array {
  const padded = [...options, ...new Array((4 - (options.length % 4)) % 4).fill(0)]
  const ip = version === 4 ? 'ip4' : 'ip6'
  const [from, to] = arriving ? [PEER, POD] : [POD, PEER]
  const ports = arriving ? [443, 40_000] : [40_000, 443]
  const body = [
    ...ports.flatMap(be16),
    1,
    2,
    3,
    4,
    0,
    0,
    0,
    0,
    (5 + padded.length / 4) << 4,
    flags,
    0x20,
    0,
    0,
    0,
    0,
    0,
  ]
  body.push(...padded)
  const pseudo = [...address(from[ip]), ...address(to[ip]), 0, TCP, ...be16(body.length)]
  const sum = ~plainSum([...pseudo, ...body]) & 0xffff
  body.splice(16, 2, ...be16(sum))
  return frame({ version, protocol: TCP, body, from: from[ip], to: to[ip], fromMac: from.mac, toMac: to.mac, tags })
}

function rigOf(segmentSize: number, outer: Version = 4) {
  const tunnel = tunnelConfig('geneve', outer)
  const table = new EndpointTable({ moves: true, segmentSize })
  const remote = Uint8Array.from(tunnel.remote)
  table.set(1, { address: remote, weight: 1, draining: false, mtu: UNDERLAY, hop: undefined })
  const rig = new Rig({ tunnel, endpoints: { table: table.handle, health: createHealth(), seed: FIXED_SEED } })
  return { rig, pod: rig.pod(), mtu: innerMtu(tunnel, UNDERLAY) }
}

const FIELDS = ['tcp.options.mss_val', 'tcp.checksum.status', 'tcp.flags', 'udp.checksum.status', '_ws.malformed']
/** What tshark sees in the frames that go out. */
function sent({ rig, pod }: ReturnType<typeof rigOf>, ...segments: Uint8Array[]) {
  const frames = segments.flatMap(one => rig.toward(pod, one)).map(({ bytes }) => bytes)
  expect(frames).toHaveLength(segments.length)
  rig.balanced()
  return decode(frames, FIELDS).map(fields => {
    expect(fields['tcp.checksum.status']).toEqual(['1'])
    expect(fields['udp.checksum.status']).toEqual(['1'])
    expect(fields['_ws.malformed']).toBeUndefined()
    return Number(fields['tcp.options.mss_val']?.[0] ?? 0)
  })
}

describe.skipIf(!hasTshark)(`MSS clamping${hasTshark ? '' : ' (skipped: needs tshark)'}`, () => {
  test.each([
    [4, 4, 40],
    [6, 4, 60],
    [4, 6, 40],
    [6, 6, 60],
  ] as const)(
    'lowers SYN and SYN-ACK, both ways, to what the tunnel carries: IPv%d in a tunnel over IPv%d',
    (version, outer, headers) => {
      const it = rigOf(SEGMENT_SIZE.FITTING, outer)
      const fits = it.mtu - headers
      const options = MSS(1460)
      const there = segment({ version, options })
      const back = segment({ version, options: MSS(9000), flags: SYN | ACK, arriving: true })
      expect(sent(it, there, back)).toEqual([fits, fits])
      const arriving = segment({ version, options, arriving: true })
      const answer = segment({ version, options, flags: SYN | ACK })
      expect(sent(it, arriving, answer)).toEqual([fits, fits])
    },
  )

  test('the option is found wherever it stands, at odd places too', () => {
    const it = rigOf(SEGMENT_SIZE.FITTING)
    const fits = it.mtu - 40
    const before = [
      [],
      [1],
      [1, 1],
      [4, 2],
      [3, 3, 7],
      [8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
      [1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
    const segments = before.map(options => segment({ options: [...options, ...MSS(1460), 1, 3, 3, 7] }))
    expect(sent(it, ...segments)).toEqual(before.map(() => fits))
  })

  test('what fits, and what announces nothing, goes as it came', () => {
    const it = rigOf(SEGMENT_SIZE.FITTING)
    const same = [
      segment({ options: MSS(536) }),
      segment({ options: MSS(it.mtu - 40) }),
      segment({ options: [] }),
      segment({ flags: ACK, options: MSS(1460) }),
      segment({ options: [1, 0, ...MSS(1460)] }),
      segment({ options: [2, 3, 1, 0] }),
      segment({ options: [2, 0, 5, 180] }),
    ]
    for (const one of same) {
      const [{ bytes }] = it.rig.toward(it.pod, one)
      expect(bytes.subarray(bytes.length - one.length)).toEqual(one)
    }
    it.rig.balanced()
  })

  test('a number of bytes is the most, and less where less fits; none leaves all as it is', () => {
    const syn = segment({ options: MSS(1460) })
    expect(sent(rigOf(1000), syn)).toEqual([1000])
    const wide = rigOf(9000)
    expect(sent(wide, syn)).toEqual([wide.mtu - 40])
    expect(sent(rigOf(SEGMENT_SIZE.ANY), syn)).toEqual([1460])
  })

  test('a tag takes its part, and a checksum that is partial stays so', () => {
    const it = rigOf(SEGMENT_SIZE.FITTING)
    const tagged = segment({ options: MSS(1460), tags: [0x8100, 7] })
    expect(sent(it, tagged)).toEqual([it.mtu - 44])
    const bytes = segment({ options: MSS(1460) })
    const length = bytes.length - 34
    const pseudo = plainSum([...bytes.subarray(26, 34), 0, TCP, ...be16(length)])
    bytes.set(be16(pseudo), 50)
    const partial = { ...plain(bytes), offload: OFFLOAD.NEEDS_CHECKSUM, transport: 34, checksumOffset: 16 }
    const [out] = it.rig.toward(it.pod, partial)
    const [fields] = decode([out.bytes], FIELDS)
    expect(fields).toMatchObject({ 'tcp.options.mss_val': [`${it.mtu - 40}`], 'tcp.checksum.status': ['1'] })
    it.rig.balanced()
  })
})
