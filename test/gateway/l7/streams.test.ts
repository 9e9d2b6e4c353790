// Reassembly: against streams cut, doubled and shuffled at random, and against what tshark makes of the same segments.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DROP } from '../../../src/drop.ts'
import { type StreamLimits, Streams } from '../../../src/gateway/l7/streams.ts'

interface Segment {
  from: number
  to: number
}

function collect(limits?: StreamLimits) {
  const seen: Buffer[] = []
  let ended = false
  let expected = 0
  const streams = new Streams(
    {
      data(row, side, bytes, at, end, offset) {
        expect([row, side, offset]).toEqual([3, 1, expected])
        expected += end - at
        seen.push(Buffer.from(bytes.subarray(at, end)))
      },
      gap() {
        expected = Number.NaN
      },
      end() {
        ended = true
      },
    },
    limits,
  )
  return { streams, text: () => Buffer.concat(seen), ended: () => ended }
}

/** Sends a part of `text` as a segment; offset 0 has the sequence number `initial`. */
const send = (streams: Streams, text: Uint8Array, { from, to }: Segment, initial: number, fin = false) =>
  streams.segment(3, 1, (initial + from) | 0, false, fin, text, from, to)

/** Segments that cover [0, size), some of them several times, in any order. */
const segments = (size: number) =>
  fc
    .tuple(
      fc.array(fc.integer({ min: 0, max: size }), { maxLength: 12 }),
      fc.array(fc.tuple(fc.integer({ min: 0, max: size }), fc.integer({ min: 0, max: size })), { maxLength: 8 }),
    )
    .chain(([cuts, more]) => {
      const places = [...new Set([0, ...cuts, size])].sort((a, b) => a - b)
      const cover = places.slice(1).map((to, i) => ({ from: places[i], to }))
      const doubles = more.map(([a, b]) => ({ from: Math.min(a, b), to: Math.max(a, b) }))
      return fc.shuffledSubarray([...cover, ...doubles], { minLength: cover.length + doubles.length })
    })

const start = (streams: Streams, initial: number) =>
  streams.segment(3, 1, (initial - 1) | 0, true, false, new Uint8Array(0), 0, 0)

describe('a stream', () => {
  it('comes in order, whole and once, however it was cut, doubled, shuffled and wrapped around', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 300 }),
        fc.integer(),
        fc.infiniteStream(fc.nat(300)),
        (text, initial, acknowledged) => {
          const [order] = fc.sample(segments(text.length), { numRuns: 1, seed: initial })
          const { streams, text: seen, ended } = collect()
          start(streams, initial)
          for (const one of order) {
            expect(send(streams, text, one, initial, one.to === text.length)).toBe(0)
            streams.acknowledge(3, 1, (initial + acknowledged.next().value!) | 0)
          }
          expect(seen().equals(text)).toBe(true)
          expect(ended()).toBe(true)
        },
      ),
      { numRuns: 500 },
    )
  })

  it('has no second version of a byte until it is acknowledged, judged or waiting', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 2, maxLength: 200 }),
        fc.nat(),
        fc.nat(),
        fc.integer(),
        (text, a, b, initial) => {
          const { streams, text: seen } = collect()
          start(streams, initial)
          const place = a % text.length
          const from = Math.min(place, b % text.length)
          send(streams, text, { from, to: text.length }, initial)
          const other = Uint8Array.from(text)
          other[place] ^= 1
          const before = seen().length
          expect(send(streams, other, { from: 0, to: text.length }, initial)).toBe(
            place >= from ? DROP.STREAM_OVERLAP : 0,
          )
          if (place >= from) expect(seen()).toHaveLength(before)
        },
      ),
    )
  })

  it('has no data behind its end', () => {
    const { streams, ended } = collect()
    start(streams, 100)
    expect(send(streams, Buffer.from('abc'), { from: 0, to: 3 }, 100, true)).toBe(0)
    expect(ended()).toBe(true)
    expect(send(streams, Buffer.from('abcd'), { from: 0, to: 4 }, 100)).toBe(DROP.STREAM_OVERLAP)
  })

  it('is taken from where it is met', () => {
    const { streams, text } = collect()
    const whole = Buffer.from('0123456789')
    send(streams, whole, { from: 4, to: 6 }, 7)
    expect(send(streams, whole, { from: 0, to: 4 }, 7)).toBe(0)
    send(streams, whole, { from: 2, to: 9 }, 7)
    expect(text().toString()).toBe('45678')
  })

  it('keeps no more than its limit, and what was refused may come again', () => {
    const { streams, text } = collect({ flow: 8192, total: 16_384 })
    const whole = Buffer.alloc(20_000, 'ab')
    start(streams, 0)
    expect(send(streams, whole, { from: 9000, to: 9010 }, 0)).toBe(DROP.STREAM_FULL)
    expect(send(streams, whole, { from: 8000, to: 8100 }, 0)).toBe(0)
    for (let from = 0; from < 20_000; from += 1000) {
      expect(send(streams, whole, { from, to: from + 1000 }, 0)).toBe(0)
      expect(streams.kept).toBeLessThanOrEqual(16_384)
    }
    expect(text().equals(whole)).toBe(true)
    streams.end(3)
    expect(streams.kept).toBe(0)
  })

  it('gives up nothing that its receiver may not have', () => {
    const { streams, text } = collect({ flow: 8192, total: 16_384 })
    const whole = Buffer.alloc(20_000, 'ab')
    const other = Buffer.alloc(20_000, 'ba')
    start(streams, 0)
    streams.acknowledge(3, 1, 0)
    expect(send(streams, whole, { from: 0, to: 8000 }, 0)).toBe(0)
    expect(send(streams, whole, { from: 8000, to: 9000 }, 0)).toBe(DROP.STREAM_FULL)
    expect(send(streams, other, { from: 0, to: 100 }, 0)).toBe(DROP.STREAM_OVERLAP)
    streams.acknowledge(3, 1, 1000)
    expect(send(streams, whole, { from: 8000, to: 9000 }, 0)).toBe(0)
    expect(send(streams, other, { from: 900, to: 1100 }, 0)).toBe(DROP.STREAM_OVERLAP)
    expect(text().equals(whole.subarray(0, 9000))).toBe(true)
  })

  it('begins where the other end says', () => {
    const { streams, text } = collect()
    start(streams, 500)
    streams.open(3, 1, 7)
    expect(streams.isAnother(3, 1, 500)).toBe(false)
    send(streams, Buffer.from('abc'), { from: 0, to: 3 }, 7)
    expect(text().toString()).toBe('abc')
    expect([streams.isAnother(3, 1, 7), streams.isAnother(3, 1, 500)]).toEqual([false, true])
  })

  it('shares what all may keep', () => {
    const { streams } = collect({ flow: 8192, total: 4096 })
    const whole = Buffer.alloc(5000)
    start(streams, 0)
    expect(send(streams, whole, { from: 10, to: 20 }, 0)).toBe(0)
    streams.begin(4)
    expect(streams.segment(4, 0, 10, false, false, whole, 0, 5)).toBe(DROP.STREAM_FULL)
  })

  it('is what tshark follows', () => {
    const folder = mkdtempSync(join(tmpdir(), 'detour-streams-'))
    try {
      const text = Buffer.from(Array.from({ length: 400 }, (_, i) => `line ${i} of many\n`).join(''))
      const initial = 0xffff_f000
      const order = fc.sample(segments(text.length), { numRuns: 1, seed: 7 })[0].filter(one => one.to > one.from)
      const script = `
import json, sys
from scapy.all import Ether, IP, TCP, Raw, wrpcap
text = bytes.fromhex(sys.argv[1]); order = json.loads(sys.argv[2]); initial = ${initial}
base = Ether(src='02:00:00:00:00:01', dst='02:00:00:00:00:02')/IP(src='10.0.0.1', dst='10.0.0.2')
back = Ether(src='02:00:00:00:00:02', dst='02:00:00:00:00:01')/IP(src='10.0.0.2', dst='10.0.0.1')
packets = [base/TCP(sport=1234, dport=80, flags='S', seq=initial - 1), back/TCP(sport=80, dport=1234, flags='SA', seq=9, ack=initial)]
packets += [base/TCP(sport=1234, dport=80, flags='PA', seq=(initial + s['from']) & 0xffffffff, ack=10)/Raw(text[s['from']:s['to']]) for s in order]
wrpcap(sys.argv[3], packets)
`
      const file = join(folder, 'stream.pcap')
      writeFileSync(join(folder, 'make.py'), script)
      execFileSync('/usr/bin/python3', [join(folder, 'make.py'), text.toString('hex'), JSON.stringify(order), file])
      const followed = execFileSync('tshark', ['-r', file, '-q', '-z', 'follow,tcp,raw,0'], { encoding: 'utf8' })
      const hex = followed.split('\n').filter(line => /^[0-9a-f]+$/.test(line))
      const { streams, text: seen } = collect()
      start(streams, initial)
      for (const one of order) send(streams, text, one, initial)
      expect(seen().toString('hex')).toBe(hex.join(''))
      expect(seen().equals(text)).toBe(true)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
