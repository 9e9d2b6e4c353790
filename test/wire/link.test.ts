// Ethernet, VLAN and ARP headers.

import { describe, expect, it } from 'vitest'
import { DROP, dropName } from '../../src/drop.ts'
import * as arp from '../../src/wire/arp.ts'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as vlan from '../../src/wire/vlan.ts'
import { fiveTests, shared, toHex } from './harness.ts'

fiveTests('ethernet', {
  known: '0200deadbeef 01005e000001 0800',
  check: ethernet.check,
  truncated: ['ETHERNET_TRUNCATED'],
  fields: {
    type: [ethernet.type, 0x0800],
    destination: [ethernet.formatAddress, '02:00:de:ad:be:ef'],
    source: [(b, at) => ethernet.formatAddress(b, at + ethernet.SOURCE), '01:00:5e:00:00:01'],
    high: [ethernet.addressHigh, 0x0200],
    low: [ethernet.addressLow, 0xdeadbeef | 0],
    'destination is a group': [ethernet.isGroup, false],
    'source is a group': [(b, at) => ethernet.isGroup(b, at + ethernet.SOURCE), true],
  },
  write: (b, at) => ethernet.write(b, at, 0x0200, 0xdeadbeef, 0x0100, 0x5e000001, ethernet.ETHERTYPE.IPV4),
  maximum: {
    size: 14,
    write: (b, at) => ethernet.write(b, at, 0xffff, -1, 0xffff, -1, 0xffff),
    fields: {
      type: [ethernet.type, 0xffff],
      high: [ethernet.addressHigh, 0xffff],
      low: [(b, at) => ethernet.addressLow(b, at + ethernet.SOURCE), -1],
    },
  },
})

describe('ethernet addresses', () => {
  it('are swapped, copied and compared in place', () => {
    const b = shared('0a0b0c0d0e0f 1a1b1c1d1e1f 0800', 3)
    expect(ethernet.sameAddress(b, 3, 9)).toBe(false)
    ethernet.swapAddresses(b, 3)
    expect(toHex(b.subarray(3))).toBe('1a1b1c1d1e1f0a0b0c0d0e0f0800')
    ethernet.copyAddress(b, 3, 9)
    expect(toHex(b.subarray(3))).toBe('0a0b0c0d0e0f0a0b0c0d0e0f0800')
    expect(ethernet.sameAddress(b, 3, 9)).toBe(true)
    for (let i = 9; i < 15; i++) {
      b[i] ^= 0x80
      expect(ethernet.sameAddress(b, 3, 9)).toBe(false)
      b[i] ^= 0x80
    }
  })

  it('are read as people write them', () => {
    expect(toHex(ethernet.parseAddress('02:00:DE:ad:be:ef'))).toBe('0200deadbeef')
    expect(toHex(ethernet.parseAddress('02-00-de-ad-be-ef'))).toBe('0200deadbeef')
    for (const text of ['', '02:00:de:ad:be', '02:00:de:ad:be:ef:00', '02:00:de:ad:be:eg', '0200deadbeef'])
      expect(() => ethernet.parseAddress(text)).toThrowError(`'${text}' is not an Ethernet address`)
  })
})

const TAGS = '020000000002 020000000001 88a8 6064 8100 ffff 0800'
const payloadAt = (b: Uint8Array, at: number, end: number) => vlan.payloadAt(b, at, end) - at

fiveTests('vlan', {
  known: TAGS,
  check: (b, at, end) => Math.max(0, -vlan.payloadAt(b, at, end)),
  truncated: ['ETHERNET_TRUNCATED', 'VLAN_TRUNCATED'],
  fields: {
    payload: [(b, at) => payloadAt(b, at, at + 22), 22],
    type: [(b, at) => vlan.typeBefore(b, at + 22), 0x0800],
    'outer identifier': [(b, at) => vlan.identifier(b, at + 14), 100],
    'outer priority': [(b, at) => vlan.priority(b, at + 14), 3],
    'outer drop eligible': [(b, at) => vlan.dropEligible(b, at + 14), false],
    'inner identifier': [(b, at) => vlan.identifier(b, at + 18), 4095],
    'inner priority': [(b, at) => vlan.priority(b, at + 18), 7],
    'inner drop eligible': [(b, at) => vlan.dropEligible(b, at + 18), true],
  },
  write: writeTags,
  maximum: {
    size: 22,
    write: writeTags,
    fields: { payload: [(b, at) => payloadAt(b, at, at + 22), 22] },
  },
})

function writeTags(b: Uint8Array, at: number): void {
  ethernet.write(b, at, 0x0200, 2, 0x0200, 1, ethernet.ETHERTYPE.QINQ)
  vlan.write(b, at + 14, 100, 3, false, ethernet.ETHERTYPE.VLAN)
  vlan.write(b, at + 18, 4095, 7, true, ethernet.ETHERTYPE.IPV4)
}

describe('vlan', () => {
  it('finds the payload behind no tag, one and two, and refuses three', () => {
    const addresses = '020000000002 020000000001'
    expect(vlan.payloadAt(shared(`${addresses} 0800`), 0, 14)).toBe(14)
    expect(vlan.payloadAt(shared(`${addresses} 8100 0001 0800`), 0, 18)).toBe(18)
    expect(vlan.payloadAt(shared(`${addresses} 8100 0001 8100 0002 0800`), 0, 22)).toBe(22)
    const three = shared(`${addresses} 88a8 0001 8100 0002 8100 0003 0800`)
    expect(dropName(-vlan.payloadAt(three, 0, 26))).toBe('vlan-too-deep')
  })
})

const ARP = '0001 0800 06 04 0002 020000000001 c0000201 020000000002 ffffffff'
function writeArp(b: Uint8Array, at: number): void {
  arp.write(b, at, arp.OPERATION.REPLY, 0xc0000201, -1)
  ethernet.writeAddress(b, at + arp.SENDER_HARDWARE, 0x0200, 1)
  ethernet.writeAddress(b, at + arp.TARGET_HARDWARE, 0x0200, 2)
}

fiveTests('arp', {
  known: ARP,
  check: arp.check,
  truncated: ['ARP_TRUNCATED'],
  fields: {
    operation: [arp.operation, 2],
    sender: [arp.sender, 0xc0000201 | 0],
    target: [arp.target, -1],
    'sender hardware': [(b, at) => ethernet.formatAddress(b, at + arp.SENDER_HARDWARE), '02:00:00:00:00:01'],
    'target hardware': [(b, at) => ethernet.formatAddress(b, at + arp.TARGET_HARDWARE), '02:00:00:00:00:02'],
  },
  write: writeArp,
  maximum: {
    size: 28,
    write: (b, at) => {
      writeArp(b, at)
      arp.setOperation(b, at, 0xffff)
      arp.setSender(b, at, -1)
      arp.setTarget(b, at, -2)
    },
    fields: { operation: [arp.operation, 0xffff], sender: [arp.sender, -1], target: [arp.target, -2] },
  },
})

describe('arp', () => {
  it('refuses other hardware, protocols and address sizes', () => {
    for (let i = 0; i < 6; i++) {
      const b = shared(ARP)
      b[i] ^= 1
      expect(arp.check(b, 0, 28)).toBe(DROP.ARP_MALFORMED)
    }
  })
})
