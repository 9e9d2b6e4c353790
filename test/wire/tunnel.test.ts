// GENEVE and VXLAN headers.

import { describe, expect, it } from 'vitest'
import { dropName } from '../../src/drop.ts'
import { ETHERTYPE } from '../../src/wire/ethernet.ts'
import * as geneve from '../../src/wire/geneve.ts'
import * as vxlan from '../../src/wire/vxlan.ts'
import { fiveTests, fixture, shared, toHex } from './harness.ts'

// Version 0, 5 words of options, C; an empty option and one with 12 bytes of data.
const GENEVE = '05 40 6558 abcdef 00  fff0 02 00  fff0 81 03 000102030405060708090a0b'

fiveTests('geneve', {
  known: GENEVE,
  check: geneve.check,
  truncated: ['GENEVE_TRUNCATED'],
  fields: {
    version: [geneve.version, 0],
    optionsLength: [geneve.optionsLength, 20],
    headerLength: [geneve.headerLength, 28],
    control: [geneve.control, false],
    critical: [geneve.critical, true],
    protocol: [geneve.protocol, 0x6558],
    vni: [geneve.vni, 0xabcdef],
    'first option': [(b, at) => option(b, at + 8), [0xfff0, 0x02, 0]],
    'second option': [(b, at) => option(b, geneve.nextOption(b, at + 8)), [0xfff0, 0x81, 12]],
    'first found': [(b, at) => geneve.findOption(b, at, 0xfff0, 0x02) - at, 8],
    'second found': [(b, at) => geneve.findOption(b, at, 0xfff0, 0x81) - at, 12],
    'other class': [(b, at) => geneve.findOption(b, at, 0xfff1, 0x81), 0],
    'critical bit is part of the type': [(b, at) => geneve.findOption(b, at, 0xfff0, 0x01), 0],
  },
  write: (b, at) => {
    geneve.write(b, at, 20, false, true, ETHERTYPE.TEB, 0xabcdef)
    const second = geneve.writeOption(b, at + geneve.HEADER, geneve.DETOUR_CLASS, 2, 0)
    const data = geneve.writeOption(b, second, geneve.DETOUR_CLASS, 0x81, 12)
    for (let i = 0; i < 12; i++) b[data + i] = i
  },
  maximum: {
    size: geneve.MAX,
    write: (b, at) => {
      geneve.write(b, at, 252, false, false, 0, 0)
      geneve.setProtocol(b, at, 0xffff)
      geneve.setVni(b, at, 0xffffff)
      const second = geneve.writeOption(b, at + 8, 0xffff, 0x7f, geneve.OPTION_DATA_MAX) + geneve.OPTION_DATA_MAX
      geneve.writeOption(b, second, 1, 1, 120)
    },
    fields: {
      optionsLength: [geneve.optionsLength, 252],
      headerLength: [geneve.headerLength, 260],
      control: [geneve.control, false],
      critical: [geneve.critical, false],
      protocol: [geneve.protocol, 0xffff],
      vni: [geneve.vni, 0xffffff],
      'first option': [(b, at) => option(b, at + 8), [0xffff, 0x7f, 124]],
      'second option': [(b, at) => option(b, geneve.nextOption(b, at + 8)), [1, 1, 120]],
    },
  },
})

function option(b: Uint8Array, at: number): number[] {
  return [geneve.optionClass(b, at), geneve.optionType(b, at), geneve.optionLength(b, at)]
}

describe('geneve check', () => {
  const judge = (hex: string, known?: number) => {
    const b = shared(hex)
    return dropName(geneve.check(b, 0, b.length, known))
  }

  it.each([
    ['version 1', '40 00 6558 000001 00', 'geneve-version'],
    ['version 3', 'c0 00 6558 000001 00', 'geneve-version'],
    ['an option longer than all options', '01 00 6558 000001 00 0100 01 01', 'geneve-options'],
    ['options that leave less than an option over', '02 00 6558 000001 00 0100 01 02 00000000', 'geneve-options'],
    ['a critical option that is not known', '01 40 6558 000001 00 0100 80 00', 'geneve-critical'],
    ['one that the C bit did not announce (section 3.5)', '01 00 6558 000001 00 0100 80 00', 'geneve-critical'],
    ['one behind a known one', '02 40 6558 000001 00 fff0 80 00 0100 ff 00', 'geneve-critical'],
    ['a control packet', '00 80 6558 000001 00', 'geneve-control'],
  ])('refuses %s', (_, hex, reason) => expect(judge(hex)).toBe(reason))

  it.each([
    ['reserved bits set anywhere', '01 3f 6558 000001 ff 0100 01 e0'],
    ['the C bit without a critical option', '01 40 6558 000001 00 0100 01 00'],
    ['the C bit without any option', '00 40 6558 000001 00'],
    ['a critical option of our class', '01 40 6558 000001 00 fff0 80 00'],
    ['any protocol', '00 00 0000 000001 00'],
  ])('takes %s', (_, hex) => expect(judge(hex)).toBe('none'))

  it('takes critical options of the class it is told', () => {
    expect(judge('01 40 6558 000001 00 0108 81 00', 0x0108)).toBe('none')
    expect(judge('01 40 6558 000001 00 fff0 81 00', 0x0108)).toBe('geneve-critical')
  })

  it('writes the control bit', () => {
    const b = shared('', 0, 8, 0xa5)
    geneve.write(b, 0, 0, true, false, ETHERTYPE.IPV4, 1)
    expect(toHex(b)).toBe('0080080000000100')
    expect(geneve.control(b, 0)).toBe(true)
  })

  it.each([
    ['geneve, no options', 0],
    ['geneve, three options', 0x0108],
    ['geneve, critical option', 0xfff0],
    ['geneve, longest header', 0],
  ])('takes what scapy built: %s', (name, known) => {
    const b = fixture(name)
    expect(dropName(geneve.check(b, 42, b.length, known))).toBe('none')
  })

  it('finds the options of an endpoint by class and type', () => {
    const b = fixture('geneve, three options')
    const cookie = geneve.findOption(b, 42, 0x0108, 3)
    expect(toHex(b.subarray(cookie + geneve.OPTION, cookie + geneve.OPTION + geneve.optionLength(b, cookie)))).toBe(
      '03030303',
    )
  })
})

const check = (b: Uint8Array, at: number, end: number) => vxlan.check(b, at, end, true)

fiveTests('vxlan', {
  known: '08 000000 abcdef 00',
  check,
  truncated: ['VXLAN_TRUNCATED'],
  fields: { flags: [vxlan.flags, 8], vni: [vxlan.vni, 0xabcdef] },
  write: (b, at) => vxlan.write(b, at, 0xabcdef),
  maximum: {
    size: 8,
    write: (b, at) => {
      vxlan.write(b, at, 0)
      vxlan.setVni(b, at, 0xffffff)
    },
    fields: { vni: [vxlan.vni, 0xffffff] },
  },
})

describe('vxlan check', () => {
  const judge = (hex: string, strict: boolean) => dropName(vxlan.check(shared(hex), 0, 8, strict))

  it('wants the I flag', () => {
    expect(judge('00000000 000001 00', false)).toBe('vxlan-flags')
    expect(judge('f7000000 000001 00', false)).toBe('vxlan-flags')
  })

  it('ignores each reserved bit, unless strict', () => {
    const reserved = [...Array(64).keys()].filter(bit => bit !== 4 && (bit < 32 || bit >= 56))
    expect(reserved.length).toBe(7 + 24 + 8)
    for (const bit of reserved) {
      const b = shared('08000000 abcdef 00')
      b[bit >> 3] |= 0x80 >> (bit & 7)
      expect(vxlan.check(b, 0, 8, false)).toBe(0)
      expect(dropName(vxlan.check(b, 0, 8, true))).toBe('vxlan-reserved')
      expect(vxlan.vni(b, 0)).toBe(0xabcdef)
    }
  })

  it('judges what scapy built', () => {
    const b = fixture('vxlan')
    expect(vxlan.check(b, 42, b.length, true)).toBe(0)
    const reserved = fixture('vxlan, reserved bits')
    expect(vxlan.check(reserved, 42, reserved.length, false)).toBe(0)
    expect(dropName(vxlan.check(reserved, 42, reserved.length, true))).toBe('vxlan-reserved')
  })
})
