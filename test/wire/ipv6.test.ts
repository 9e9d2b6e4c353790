// The IPv6 header and its extension headers.

import ipaddr from 'ipaddr.js'
import { describe, expect, it } from 'vitest'
import { DROP, dropName } from '../../src/drop.ts'
import * as ipv6 from '../../src/wire/ipv6.ts'
import { fiveTests, fixture, shared } from './harness.ts'

const SOURCE = '20010db8 00000000 00000000 00000001'
const DESTINATION = 'fe800000 00000000 02000eff fe000002'
// Version 6, traffic class 0xb9 (DSCP 46, ECN 1), flow label 0xabcde, 4 bytes of payload, UDP, hop limit 63.
const KNOWN = `6b9abcde 0004 11 3f ${SOURCE} ${DESTINATION} deadbeef`

fiveTests('ipv6', {
  known: KNOWN,
  check: ipv6.check,
  truncated: ['IPV6_TRUNCATED', 'IPV6_PAYLOAD_LENGTH'],
  fields: {
    trafficClass: [ipv6.trafficClass, 0xb9],
    dscp: [ipv6.dscp, 46],
    ecn: [ipv6.ecn, 1],
    flowLabel: [ipv6.flowLabel, 0xabcde],
    payloadLength: [ipv6.payloadLength, 4],
    nextHeader: [ipv6.nextHeader, 17],
    hopLimit: [ipv6.hopLimit, 63],
    source: [(b, at) => ipv6.formatAddress(b, at + ipv6.SOURCE), '2001:db8::1'],
    destination: [(b, at) => ipv6.formatAddress(b, at + ipv6.DESTINATION), 'fe80::200:eff:fe00:2'],
    words: [
      (b, at) => Array.from({ length: 8 }, (_, i) => ipv6.word(b, at, i)),
      [0x20010db8, 0, 0, 1, 0xfe800000 | 0, 0, 0x02000eff, 0xfe000002 | 0],
    ],
  },
  write: (b, at) => {
    ipv6.write(b, at, 0xb9, 0xabcde, 4, 17, 63)
    for (const [i, word] of [0x20010db8, 0, 0, 1, 0xfe800000, 0, 0x02000eff, 0xfe000002].entries()) {
      ipv6.setWord(b, at, i, word)
    }
    b.set([0xde, 0xad, 0xbe, 0xef], at + 40)
  },
  maximum: {
    size: 40 + 65535,
    write: (b, at) => ipv6.write(b, at, 0xff, 0xfffff, 65535, 255, 255),
    fields: {
      trafficClass: [ipv6.trafficClass, 0xff],
      flowLabel: [ipv6.flowLabel, 0xfffff],
      payloadLength: [ipv6.payloadLength, 65535],
      nextHeader: [ipv6.nextHeader, 255],
      hopLimit: [ipv6.hopLimit, 255],
    },
  },
})

describe('ipv6', () => {
  it('writes single fields and leaves their neighbours alone', () => {
    const b = shared('60000000 0000 00 00')
    ipv6.setTrafficClass(b, 0, 0xa5)
    ipv6.setFlowLabel(b, 0, 0xf0f0f)
    expect([ipv6.trafficClass(b, 0), ipv6.flowLabel(b, 0), b[0] >>> 4]).toEqual([0xa5, 0xf0f0f, 6])
    ipv6.setTrafficClass(b, 0, 0x5a)
    expect([ipv6.trafficClass(b, 0), ipv6.flowLabel(b, 0), b[0] >>> 4]).toEqual([0x5a, 0xf0f0f, 6])
    ipv6.setFlowLabel(b, 0, 0x50505)
    expect([ipv6.trafficClass(b, 0), ipv6.flowLabel(b, 0), b[0] >>> 4]).toEqual([0x5a, 0x50505, 6])
    ipv6.setPayloadLength(b, 0, 0x1234)
    ipv6.setNextHeader(b, 0, 58)
    ipv6.setHopLimit(b, 0, 1)
    expect([ipv6.payloadLength(b, 0), ipv6.nextHeader(b, 0), ipv6.hopLimit(b, 0)]).toEqual([0x1234, 58, 1])
  })

  it('refuses other versions; takes a quoted packet that is cut off', () => {
    const b = shared(KNOWN)
    expect(ipv6.checkQuoted(b, 0, 40)).toBe(0)
    expect(ipv6.checkQuoted(b, 0, 39)).toBe(DROP.IPV6_TRUNCATED)
    b[0] = 0x4b
    expect(ipv6.check(b, 0, 44)).toBe(DROP.IPV6_VERSION)
  })

  it('prints addresses as RFC 5952 wants them', () => {
    // The examples of RFC 5952 sections 4.2.2 and 4.2.3.
    for (const text of ['2001:db8:0:1:1:1:1:1', '2001:0:0:1::1', '2001:db8::1:0:0:1', '::', '::1', 'ff02::2']) {
      expect(ipv6.formatAddress(Uint8Array.from(ipaddr.parse(text).toByteArray()))).toBe(text)
    }
  })
})

/** A packet whose payload is `chain`, with the right length. */
function packet(next: number, chain: string): Uint8Array {
  const b = shared(`60000000 0000 00 40 ${SOURCE} ${DESTINATION} ${chain}`)
  ipv6.setNextHeader(b, 0, next)
  ipv6.setPayloadLength(b, 0, b.length - 40)
  return b
}

const UDP = '0001000200080000'

describe('extension headers', () => {
  // Where scapy's frames have their upper-layer header, counted by hand from the sizes of the headers in oracle.py.
  it.each([
    ['udp over ipv6', 54, 17, 0],
    ['ipv6, hop-by-hop', 54 + 8, 58, 0],
    ['ipv6, many extensions', 54 + 16 + 8 + 24 + 8 + 8, 6, 54 + 16 + 8 + 24],
    ['ipv6, first fragment', 54 + 8, 17, 54],
    ['ipv6, last fragment', 0, 6, 54],
    ['ipv6, authentication header', 54 + 24, 17, 0],
    ['ipv6, esp', 54, 50, 0],
    ['ipv6, no next header', 54, 59, 0],
  ])('of scapy: %s', (name, transport, protocol, fragment) => {
    const b = fixture(name)
    expect(ipv6.transportAt(b, 14, b.length)).toBe(transport)
    expect(ipv6.transportProtocol(b, 14, b.length)).toBe(protocol)
    expect(ipv6.fragmentAt(b, 14, b.length)).toBe(fragment)
  })

  const refused = (b: Uint8Array) => {
    const end = b.length
    expect(dropName(-ipv6.transportAt(b, 0, end))).toBe('ipv6-extension')
    expect(dropName(-ipv6.transportProtocol(b, 0, end))).toBe('ipv6-extension')
    expect(ipv6.fragmentAt(b, 0, end)).toBe(0)
  }

  it('walks every kind there is', () => {
    const kinds = [0, 43, 60, 51, 135, 139, 140]
    const chain = kinds.map((kind, i) => {
      const next = (kinds[i + 1] ?? 17).toString(16).padStart(2, '0')
      return kind === 51 ? `${next}01${'00'.repeat(10)}` : `${next}00${'00'.repeat(6)}`
    })
    const b = packet(0, chain.join('') + UDP)
    expect(ipv6.transportAt(b, 0, b.length)).toBe(40 + 6 * 8 + 12)
    expect(ipv6.transportProtocol(b, 0, b.length)).toBe(17)
  })

  it('refuses every truncation of a chain', () => {
    const b = fixture('ipv6, many extensions')
    const transport = ipv6.transportAt(b, 14, b.length)
    for (let end = 54; end < transport; end++) {
      expect(dropName(-ipv6.transportAt(b, 14, end))).toBe('ipv6-extension')
    }
    expect(ipv6.transportAt(b, 14, transport)).toBe(transport)
  })

  it('does not read behind the payload length, whatever lies there', () => {
    const b = packet(60, `1100${'00'.repeat(6)}${UDP}`)
    ipv6.setPayloadLength(b, 0, 7)
    refused(b)
  })

  it('refuses a hop-by-hop header that is not the first', () => {
    refused(packet(60, `0000${'00'.repeat(6)}1100${'00'.repeat(6)}${UDP}`))
  })

  it('refuses a second fragment header', () => {
    refused(packet(44, `2c00000100000001 1100000100000001 ${UDP}`))
  })

  it('refuses a ninth extension header, so that no packet makes it walk for long', () => {
    const options = (count: number) =>
      [...Array(count).keys()].map(i => (i < count - 1 ? '3c' : '11') + '00'.repeat(7)).join('')
    const eight = packet(60, options(8) + UDP)
    expect(ipv6.transportAt(eight, 0, eight.length)).toBe(40 + 64)
    refused(packet(60, options(9) + UDP))
  })

  it('knows the fields of a fragment header', () => {
    const b = shared('1100 fff9 fedcba98')
    expect([ipv6.fragmentOffset(b, 0), ipv6.moreFragments(b, 0)]).toEqual([65528, true])
    expect(ipv6.fragmentIdentification(b, 0)).toBe(0xfedcba98 | 0)
  })
})
