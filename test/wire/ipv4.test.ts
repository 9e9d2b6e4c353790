// The IPv4 header.

import { describe, expect, it } from 'vitest'
import { DROP } from '../../src/drop.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import { random } from './build.ts'
import { FIXTURES, fiveTests, fixture, shared, toHex } from './harness.ts'

const NOP_OPTION = 1

// A 24-byte header (one word of NOP options) and 4 bytes of payload; 0x2a is DSCP 10, ECN 2.
// The words but the checksum add up to 0x1_c791, so the checksum is ~(0xc791 + 1) = 0x386d.
const KNOWN = '46 2a 001c 1234 6001 40 11 386d c0000201 0a000102 01010101 deadbeef'

fiveTests('ipv4', {
  known: KNOWN,
  check: ipv4.check,
  truncated: ['IPV4_TRUNCATED', 'IPV4_HEADER_LENGTH', 'IPV4_TOTAL_LENGTH'],
  fields: {
    headerLength: [ipv4.headerLength, 24],
    tos: [ipv4.tos, 0x2a],
    dscp: [ipv4.dscp, 10],
    ecn: [ipv4.ecn, 2],
    totalLength: [ipv4.totalLength, 28],
    identification: [ipv4.identification, 0x1234],
    dontFragment: [ipv4.dontFragment, true],
    moreFragments: [ipv4.moreFragments, true],
    fragmentOffset: [ipv4.fragmentOffset, 8],
    isFragment: [ipv4.isFragment, true],
    ttl: [ipv4.ttl, 64],
    protocol: [ipv4.protocol, 17],
    headerChecksum: [ipv4.headerChecksum, 0x386d],
    computeChecksum: [ipv4.computeChecksum, 0x386d],
    verifyChecksum: [ipv4.verifyChecksum, true],
    source: [ipv4.source, 0xc0000201 | 0],
    destination: [ipv4.destination, 0x0a000102],
  },
  write: (b, at) => {
    b.fill(NOP_OPTION, at + 20, at + 24)
    const flags = ipv4.DONT_FRAGMENT | ipv4.MORE_FRAGMENTS | 1
    ipv4.write(b, at, 24, 0x2a, 28, 0x1234, flags, 64, ipv4.PROTOCOL.UDP, 0xc0000201, 0x0a000102)
    b.set([0xde, 0xad, 0xbe, 0xef], at + 24)
  },
  maximum: {
    size: 65535,
    write: (b, at) => {
      b.fill(0xff, at + 20, at + 60)
      ipv4.write(b, at, ipv4.MAX, 0xff, 65535, 0xffff, 0x7fff, 255, 255, -1, -2)
    },
    fields: {
      headerLength: [ipv4.headerLength, 60],
      tos: [ipv4.tos, 0xff],
      totalLength: [ipv4.totalLength, 65535],
      identification: [ipv4.identification, 0xffff],
      fragmentOffset: [ipv4.fragmentOffset, 65528],
      ttl: [ipv4.ttl, 255],
      protocol: [ipv4.protocol, 255],
      source: [ipv4.source, -1],
      destination: [ipv4.destination, -2],
      verifyChecksum: [ipv4.verifyChecksum, true],
    },
  },
})

describe('ipv4', () => {
  it('writes single fields where write does', () => {
    const b = shared('', 0, 20, 0xa5)
    ipv4.write(b, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0)
    ipv4.setTos(b, 0, 0x2a)
    ipv4.setTotalLength(b, 0, 1234)
    ipv4.setIdentification(b, 0, 4321)
    ipv4.setTtl(b, 0, 7)
    ipv4.setSource(b, 0, -5)
    ipv4.setDestination(b, 0, 6)
    ipv4.updateChecksum(b, 0)
    const whole = shared('', 0, 20, 0xa5)
    ipv4.write(whole, 0, 20, 0x2a, 1234, 4321, 0, 7, 0, -5, 6)
    expect(toHex(b)).toBe(toHex(whole))
    ipv4.setHeaderChecksum(b, 0, 0xbeef)
    expect(ipv4.headerChecksum(b, 0)).toBe(0xbeef)
    expect(ipv4.verifyChecksum(b, 0)).toBe(false)
  })

  it('tells whole packets from first, middle and last fragments', () => {
    const at = 14
    const seen = FIXTURES.filter(({ name }) => name.startsWith('ipv4,')).map(({ name }) => [
      name,
      ipv4.isFragment(fixture(name), at),
    ])
    expect(seen.filter(([, is]) => is).map(([name]) => name)).toEqual([
      'ipv4, first fragment',
      'ipv4, middle fragment',
      'ipv4, last fragment',
    ])
    expect(seen.length).toBeGreaterThan(4)
  })

  it('refuses other versions, short headers and lengths that lie', () => {
    const end = 28
    const change = (at: number, byte: number) => {
      const b = shared(KNOWN)
      b[at] = byte
      return b
    }
    expect(ipv4.check(change(0, 0x66), 0, end)).toBe(DROP.IPV4_VERSION)
    expect(ipv4.check(change(0, 0x44), 0, end)).toBe(DROP.IPV4_HEADER_LENGTH)
    expect(ipv4.check(change(0, 0x4f), 0, end)).toBe(DROP.IPV4_HEADER_LENGTH)
    expect(ipv4.check(change(3, 23), 0, end)).toBe(DROP.IPV4_TOTAL_LENGTH)
    expect(ipv4.check(change(3, 24), 0, end)).toBe(0)
    expect(ipv4.check(change(3, 29), 0, end)).toBe(DROP.IPV4_TOTAL_LENGTH)
  })

  it('takes a quoted packet that is cut off behind its header, and no less', () => {
    const b = shared(KNOWN)
    expect(ipv4.checkQuoted(b, 0, 24)).toBe(0)
    expect(ipv4.checkQuoted(b, 0, 23)).toBe(DROP.IPV4_HEADER_LENGTH)
    b[3] = 23
    expect(ipv4.checkQuoted(b, 0, 24)).toBe(DROP.IPV4_TOTAL_LENGTH)
  })

  it('keeps the checksum right when TTL or TOS are rewritten, for every value', () => {
    const r = random(1)
    for (let tos = 0; tos < 256; tos++) {
      const b = shared('', 0, 20, 0)
      ipv4.write(b, 0, 20, r(256), r(65536), r(65536), r(65536), 1 + r(255), r(256), r(2 ** 32), r(2 ** 32))
      ipv4.rewriteTos(b, 0, tos)
      expect(ipv4.headerChecksum(b, 0)).toBe(ipv4.computeChecksum(b, 0))
      const before = ipv4.ttl(b, 0)
      ipv4.decrementTtl(b, 0)
      expect(ipv4.ttl(b, 0)).toBe(before - 1)
      expect(ipv4.headerChecksum(b, 0)).toBe(ipv4.computeChecksum(b, 0))
      ipv4.rewriteTtl(b, 0, tos)
      expect([ipv4.ttl(b, 0), ipv4.tos(b, 0)]).toEqual([tos, tos])
      expect(ipv4.headerChecksum(b, 0)).toBe(ipv4.computeChecksum(b, 0))
    }
  })

  it('prints addresses', () => {
    expect(ipv4.formatAddress(-1)).toBe('255.255.255.255')
    expect(ipv4.formatAddress(0xc0000201 | 0)).toBe('192.0.2.1')
    expect(ipv4.formatAddress(0)).toBe('0.0.0.0')
  })
})
