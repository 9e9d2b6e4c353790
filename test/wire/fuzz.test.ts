// Bad bytes: changed, cut off and random. Nothing throws, and nothing reads outside [at, end): the same bytes with
// different surroundings must give the same answers.

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DROP_COUNT } from '../../src/drop.ts'
import * as arp from '../../src/wire/arp.ts'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as geneve from '../../src/wire/geneve.ts'
import * as icmp from '../../src/wire/icmp.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import * as ipv6 from '../../src/wire/ipv6.ts'
import { show, showPacket } from '../../src/wire/show.ts'
import * as tcp from '../../src/wire/tcp.ts'
import * as udp from '../../src/wire/udp.ts'
import * as vlan from '../../src/wire/vlan.ts'
import * as vxlan from '../../src/wire/vxlan.ts'
import { random } from './build.ts'
import { dissect } from './dissect.ts'
import { FIXTURES, fixture } from './harness.ts'

type Check = (b: Uint8Array, at: number, end: number) => number
type Reader = (b: Uint8Array, at: number) => unknown

/** Everything in a header module that reads a header: a new accessor is tried without being named here. */
function readers(module: object): [string, Reader][] {
  return Object.entries(module).filter(
    ([name, value]) =>
      typeof value === 'function' &&
      value.length === 2 &&
      !/^(set|write|update|decrement|swap|verify|format|isTag)/.test(name),
  )
}

const HEADERS: [name: string, check: Check, readers: [string, Reader][]][] = [
  ['ethernet', ethernet.check, readers(ethernet)],
  ['arp', arp.check, readers(arp)],
  ['ipv4', ipv4.check, readers(ipv4)],
  ['ipv4 quoted', ipv4.checkQuoted, readers(ipv4)],
  ['ipv6', ipv6.check, readers(ipv6)],
  ['ipv6 quoted', ipv6.checkQuoted, readers(ipv6)],
  ['udp', udp.check, readers(udp)],
  ['tcp', tcp.check, readers(tcp)],
  ['icmp', icmp.check, readers(icmp)],
  ['geneve', geneve.check, readers(geneve)],
  ['vxlan', (b, at, end) => vxlan.check(b, at, end, true), readers(vxlan)],
]

/** What every header module says of the bytes, header by header, wherever the header may be. */
function everything(b: Uint8Array, at: number, end: number): unknown[] {
  const said: unknown[] = [vlan.payloadAt(b, at, end)]
  for (const [name, check, readers] of HEADERS) {
    const reason = check(b, at, end)
    said.push(name, reason)
    if (reason !== 0) continue
    for (const [reader, read] of readers) said.push(reader, read(b, at))
    if (name.startsWith('ipv6')) {
      said.push(ipv6.transportAt(b, at, end), ipv6.transportProtocol(b, at, end), ipv6.fragmentAt(b, at, end))
    }
    if (name === 'ipv4') said.push(ipv4.verifyChecksum(b, at))
    if (name === 'tcp') said.push(tcp.findOption(b, at, tcp.OPTION.TIMESTAMPS))
    if (name === 'geneve') said.push(geneve.findOption(b, at, geneve.DETOUR_CLASS, 1))
  }
  return said
}

function expectBounded(bytes: Uint8Array, before: number): void {
  const at = before
  const end = before + bytes.length
  const [zeros, ones] = [0, 0xff].map(fill => {
    const b = new Uint8Array(end + 80).fill(fill)
    b.set(bytes, at)
    return b
  })
  const hex = Buffer.from(bytes).toString('hex')
  const line = show(zeros, at, end)
  expect(line, hex).toMatch(/^[ -~]+$/)
  expect(show(ones, at, end), hex).toBe(line)
  expect(showPacket(ones, at, end), hex).toBe(showPacket(zeros, at, end))
  expect(dissect(ones, at, end), hex).toEqual(dissect(zeros, at, end))
  for (const header of [at, at + 14, at + 34, at + 42, at + 54]) {
    if (header <= end) expect(everything(ones, header, end), hex).toEqual(everything(zeros, header, end))
  }
}

describe('bad bytes', () => {
  it('there are readers to try', () => {
    for (const [name, , found] of HEADERS) expect([name, found.length > 1]).toEqual([name, true])
  })

  it('cut off anywhere: every fixture at every length', () => {
    for (const { name } of FIXTURES) {
      const b = fixture(name)
      for (let length = 0; length <= Math.min(b.length, 140); length++) expectBounded(b.subarray(0, length), length & 7)
    }
  })

  it('changed: 10,000 mutated fixtures', () => {
    const r = random(20261121)
    const edges = [0, 1, 4, 5, 6, 7, 8, 0x0f, 0x3f, 0x40, 0x45, 0x7f, 0x80, 0xfe, 0xff]
    const frames = FIXTURES.map(({ name }) => fixture(name))
    for (let i = 0; i < 10_000; i++) {
      const b = frames[r(frames.length)].slice()
      for (let changes = r(6); changes >= 0; changes--) b[r(b.length)] = r(2) === 0 ? edges[r(edges.length)] : r(256)
      expectBounded(b.subarray(0, r(4) === 0 ? r(b.length + 1) : b.length), r(8))
    }
  })

  it('random, with an EtherType that leads somewhere', () => {
    const types = [0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8]
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(...types), fc.boolean(), (b, type, ip) => {
        if (b.length > 14) ethernet.setType(b, 0, type)
        if (b.length > 14 && ip) b[14] = type === 0x0800 ? 0x45 : 0x60
        expectBounded(b, 3)
      }),
      { numRuns: 2000 },
    )
  })

  it('every refusal is a reason of the list', () => {
    const r = random(3)
    for (let i = 0; i < 2000; i++) {
      const b = Uint8Array.from({ length: r(80) }, () => r(256))
      for (const [, check] of HEADERS) {
        const reason = check(b, 0, b.length)
        expect(Number.isInteger(reason) && reason >= 0 && reason < DROP_COUNT).toBe(true)
      }
    }
  })
})
