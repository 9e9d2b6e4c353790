// UDP, TCP, ICMP and ICMPv6 headers.

import { describe, expect, it } from 'vitest'
import { DROP } from '../../src/drop.ts'
import * as icmp from '../../src/wire/icmp.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import * as tcp from '../../src/wire/tcp.ts'
import * as udp from '../../src/wire/udp.ts'
import { fiveTests, fixture, shared, toHex } from './harness.ts'

fiveTests('udp', {
  known: '04d2 162e 000b beef 616263',
  check: udp.check,
  truncated: ['UDP_TRUNCATED', 'UDP_LENGTH'],
  fields: {
    sourcePort: [udp.sourcePort, 1234],
    destinationPort: [udp.destinationPort, 5678],
    length: [udp.length, 11],
    checksum: [udp.checksum, 0xbeef],
  },
  write: (b, at) => {
    udp.write(b, at, 1234, 5678, 11, 0xbeef)
    b.set([0x61, 0x62, 0x63], at + udp.HEADER)
  },
  maximum: {
    size: 65535,
    write: (b, at) => {
      udp.setSourcePort(b, at, 65535)
      udp.setDestinationPort(b, at, 65534)
      udp.setLength(b, at, 65535)
      udp.setChecksum(b, at, 65533)
    },
    fields: {
      sourcePort: [udp.sourcePort, 65535],
      destinationPort: [udp.destinationPort, 65534],
      length: [udp.length, 65535],
      checksum: [udp.checksum, 65533],
    },
  },
})

describe('udp', () => {
  it('refuses a length under 8', () => {
    expect(udp.check(shared('04d2 162e 0007 0000'), 0, 8)).toBe(DROP.UDP_LENGTH)
    expect(udp.check(shared('04d2 162e 0008 0000'), 0, 8)).toBe(0)
  })

  // The checksums are scapy's; tshark agreed with them.
  it.each(['udp, empty', 'udp, odd payload', 'udp over ipv6', 'udp whose checksum sums up to zero'])(
    'computes the checksum that scapy computed: %s',
    name => {
      const b = fixture(name)
      const at = b[14] >>> 4 === 4 ? 34 : 54
      const known = udp.checksum(b, at)
      expect(udp.verifyChecksum(b, 14, at)).toBe(true)
      udp.setChecksum(b, at, 0x1234)
      expect(udp.verifyChecksum(b, 14, at)).toBe(false)
      udp.updateChecksum(b, 14, at)
      expect(udp.checksum(b, at)).toBe(known)
    },
  )

  it('writes 0xffff for a checksum of zero, because zero means none', () => {
    const b = fixture('udp whose checksum sums up to zero')
    udp.updateChecksum(b, 14, 34)
    expect(udp.checksum(b, 34)).toBe(0xffff)
  })
})

const TCP = '04d2 01bb 80000001 ffffffff 6 0 c2 fbff beef 0000 020405b4'

fiveTests('tcp', {
  known: TCP,
  check: tcp.check,
  truncated: ['TCP_TRUNCATED', 'TCP_HEADER_LENGTH'],
  fields: {
    sourcePort: [tcp.sourcePort, 1234],
    destinationPort: [tcp.destinationPort, 443],
    sequence: [tcp.sequence, 0x80000001 | 0],
    acknowledgment: [tcp.acknowledgment, -1],
    headerLength: [tcp.headerLength, 24],
    flags: [tcp.flags, tcp.CWR | tcp.ECE | tcp.SYN],
    window: [tcp.window, 0xfbff],
    checksum: [tcp.checksum, 0xbeef],
    urgentPointer: [tcp.urgentPointer, 0],
    maximumSegmentSize: [tcp.maximumSegmentSize, 1460],
  },
  write: (b, at) => {
    tcp.write(b, at, 24, 1234, 443, 0x80000001, -1, tcp.SYN | tcp.ECE | tcp.CWR, 0xfbff)
    tcp.setChecksum(b, at, 0xbeef)
    b.set([tcp.OPTION.MSS, 4, 0x05, 0xb4], at + tcp.HEADER)
  },
  maximum: {
    size: 60,
    write: (b, at) => {
      tcp.write(b, at, tcp.MAX, 0, 0, 0, 0, 0, 0)
      b.fill(tcp.OPTION.NOP, at + tcp.HEADER, at + tcp.MAX)
      tcp.setSourcePort(b, at, 65535)
      tcp.setDestinationPort(b, at, 65534)
      tcp.setSequence(b, at, -1)
      tcp.setAcknowledgment(b, at, -2)
      tcp.setFlags(b, at, 255)
      tcp.setWindow(b, at, 65533)
      tcp.setChecksum(b, at, 65532)
    },
    fields: {
      headerLength: [tcp.headerLength, 60],
      sourcePort: [tcp.sourcePort, 65535],
      destinationPort: [tcp.destinationPort, 65534],
      sequence: [tcp.sequence, -1],
      acknowledgment: [tcp.acknowledgment, -2],
      flags: [tcp.flags, 255],
      window: [tcp.window, 65533],
      checksum: [tcp.checksum, 65532],
      urgentPointer: [tcp.urgentPointer, 0],
      maximumSegmentSize: [tcp.maximumSegmentSize, 0],
    },
  },
})

describe('tcp', () => {
  it('refuses a data offset under five words', () => {
    const b = shared(TCP)
    b[12] = 0x40
    expect(tcp.check(b, 0, 24)).toBe(DROP.TCP_HEADER_LENGTH)
  })

  it.each(['tcp syn', 'tcp syn ack over ipv6', 'tcp, every flag', 'tcp, longest header', 'ipv6, many extensions'])(
    'computes the checksum that scapy computed: %s',
    name => {
      const b = fixture(name)
      const at = name === 'ipv6, many extensions' ? 54 + 64 : b[14] >>> 4 === 4 ? 34 : 54
      const known = tcp.checksum(b, at)
      expect(tcp.verifyChecksum(b, 14, at, b.length)).toBe(true)
      tcp.setChecksum(b, at, known ^ 1)
      expect(tcp.verifyChecksum(b, 14, at, b.length)).toBe(false)
      tcp.updateChecksum(b, 14, at, b.length)
      expect(tcp.checksum(b, at)).toBe(known)
    },
  )

  const options = (hex: string) => {
    const b = shared(`04d2 01bb 00000000 00000000 50 02 0000 0000 0000 ${hex}`, 0, 8, 0x02)
    b[12] = ((b.length - 8) / 4) << 4
    return b
  }

  it('finds an option behind others', () => {
    const b = fixture('tcp, longest header')
    expect(tcp.findOption(b, 34, tcp.OPTION.SACK)).toBe(54)
    expect(tcp.findOption(b, 34, tcp.OPTION.MSS)).toBe(54 + 26)
    expect(tcp.maximumSegmentSize(b, 34)).toBe(536)
    expect(tcp.findOption(b, 34, tcp.OPTION.TIMESTAMPS)).toBe(0)
  })

  it.each([
    ['behind the end of options', '00 020405b4 010101'],
    ['behind a length of 0', '0500 0204 05b4 0101'],
    ['behind a length of 1', '0501 0204 05b4 0101'],
    ['behind a length beyond the header', '0509 0204 05b4 0101'],
    ['whose own length is beyond the header', '01010101 01010204'],
    ['whose length byte is beyond the header', '01010101 01010102'],
    ['of the wrong length', '020505b4 01010101'],
  ])('finds no segment size %s', (_, hex) => {
    expect(tcp.maximumSegmentSize(options(hex), 0)).toBe(0)
  })
})

fiveTests('icmp', {
  known: '03 04 beef 0000 05dc',
  check: icmp.check,
  truncated: ['ICMP_TRUNCATED'],
  fields: {
    type: [icmp.type, icmp.TYPE4.UNREACHABLE],
    code: [icmp.code, icmp.FRAGMENTATION_NEEDED],
    checksum: [icmp.checksum, 0xbeef],
    nextHopMtu4: [icmp.nextHopMtu4, 1500],
    nextHopMtu6: [icmp.nextHopMtu6, 1500],
    rest: [icmp.rest, 1500],
  },
  write: (b, at) => {
    icmp.write(b, at, icmp.TYPE4.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, 1500)
    b.set([0xbe, 0xef], at + icmp.CHECKSUM)
  },
  maximum: {
    size: 8,
    write: (b, at) => icmp.write(b, at, 255, 255, -1),
    fields: {
      type: [icmp.type, 255],
      code: [icmp.code, 255],
      checksum: [icmp.checksum, 0],
      identifier: [icmp.identifier, 0xffff],
      sequence: [icmp.sequence, 0xffff],
      rest: [icmp.rest, -1],
      nextHopMtu4: [icmp.nextHopMtu4, 0xffff],
      nextHopMtu6: [icmp.nextHopMtu6, 0xffff],
    },
  },
})

describe('icmp', () => {
  it.each(['icmp echo request', 'icmp fragmentation needed', 'icmp port unreachable'])(
    'computes the checksum that scapy computed: %s',
    name => {
      const b = fixture(name)
      const known = toHex(b)
      expect(icmp.verifyChecksum4(b, 34, b.length)).toBe(true)
      b[36] ^= 0xff
      expect(icmp.verifyChecksum4(b, 34, b.length)).toBe(false)
      icmp.updateChecksum4(b, 34, b.length)
      expect(toHex(b)).toBe(known)
    },
  )

  it.each(['icmpv6 echo request', 'icmpv6 packet too big', 'icmpv6 neighbor solicitation'])(
    'computes the checksum that scapy computed: %s',
    name => {
      const b = fixture(name)
      const known = toHex(b)
      expect(icmp.verifyChecksum6(b, 14, 54, b.length)).toBe(true)
      b[56] ^= 0xff
      expect(icmp.verifyChecksum6(b, 14, 54, b.length)).toBe(false)
      icmp.updateChecksum6(b, 14, 54, b.length)
      expect(toHex(b)).toBe(known)
    },
  )

  it('quotes a packet where the errors have it', () => {
    const b = fixture('icmp fragmentation needed')
    expect(icmp.isError4(icmp.type(b, 34))).toBe(true)
    expect(icmp.nextHopMtu4(b, 34)).toBe(1400)
    expect(ipv4.formatAddress(ipv4.source(b, 34 + icmp.QUOTE))).toBe('198.51.100.200')
  })

  it('knows errors from messages', () => {
    // RFC 1122 section 3.2.2 and RFC 4443 section 2.1.
    const all = Array.from({ length: 256 }, (_, type) => type)
    expect(all.filter(icmp.isError4)).toEqual([3, 4, 5, 11, 12])
    expect(all.filter(icmp.isError6)).toEqual(all.slice(0, 128))
  })
})
