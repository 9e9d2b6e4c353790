// pcapng: times against 64-bit integers, blocks built and taken apart, refusals. Whole files: test/device/pcap.test.ts.
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  copyInterface,
  copyOptions,
  ENHANCED_HEADER,
  EXACT_TICKS,
  type Interface,
  isPacket,
  OPTION,
  readBlock,
  Section,
  ticksOf,
  writeEnhanced,
  writeInterface,
  writeSection,
} from '../../src/wire/pcapng.ts'
import { FAULT, PacketRecord } from '../../src/wire/record.ts'

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
const plain = (ticks: number, offset = 0): Interface => ({ linktype: 1, snaplen: 0, ticks, offset, fcs: 0 })

/** A section with an interface of this clock, and one packet of these ticks. */
function timed(
  ticks: bigint,
  tsresol: number,
  little = true,
): { section: Section; packet: PacketRecord; block: Uint8Array } {
  const section = new Section()
  const head = new Uint8Array(256)
  const size = writeSection(view(head), 0, '')
  const packet = new PacketRecord()
  expect(readBlock(view(head), 0, size, section, packet)).toBe(size)
  section.little = little
  section.interfaces.push(plain(ticksOf(tsresol)))
  const block = new Uint8Array(ENHANCED_HEADER + 4)
  writeEnhanced(view(block), 0, little, 0, plain(1e6), 0, 0, 0, 0, 0)
  view(block).setUint32(12, Number(ticks >> 32n), little)
  view(block).setUint32(16, Number(ticks & 0xffff_ffffn), little)
  expect(readBlock(view(block), 0, block.length, section, packet)).toBe(block.length)
  return { section, packet, block }
}

describe('pcapng times', () => {
  const resolutions = [0, 3, 6, 7, 8, 9, 0x80 | 10, 0x80 | 20, 0x80 | 29]
  const seconds = fc.bigInt({ min: 0n, max: 0xffff_ffffn })
  const part = fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true })

  it.each([...resolutions, 12, 0x80 | 32, 0x80 | 45])('if_tsresol %i is read to the nanosecond', tsresol => {
    const unit = BigInt(ticksOf(tsresol))
    fc.assert(
      fc.property(seconds, part, fc.boolean(), (any, share, little) => {
        const whole = any % (2n ** 64n / unit)
        const rest = BigInt(Math.floor(share * Number(unit)))
        const { packet } = timed(whole * unit + rest, tsresol, little)
        expect(packet.seconds).toBe(Number(whole))
        const exact = (Number(rest) * 1e9) / Number(unit)
        expect(Math.abs(packet.nanoseconds - exact)).toBeLessThanOrEqual(1)
        if (1_000_000_000n % unit === 0n) expect(packet.nanoseconds).toBe(Number((rest * 1_000_000_000n) / unit))
      }),
    )
  })

  it.each(resolutions)('if_tsresol %i is written back to the same ticks', tsresol => {
    const unit = BigInt(ticksOf(tsresol))
    fc.assert(
      fc.property(seconds, part, fc.boolean(), (whole, share, little) => {
        const ticks = whole * unit + BigInt(Math.floor(share * Number(unit)))
        const { section, packet, block } = timed(ticks, tsresol, little)
        const again = new Uint8Array(block.length).fill(0xa5)
        const to = section.interfaces[0]
        writeEnhanced(view(again), 0, little, 0, to, packet.seconds, packet.nanoseconds, 0, 0, 0)
        expect(again).toEqual(block)
      }),
    )
  })

  it('adds if_tsoffset, and takes it away again', () => {
    const to = plain(1e9, -3600)
    const block = new Uint8Array(ENHANCED_HEADER + 4)
    writeEnhanced(view(block), 0, true, 0, to, 1_700_000_000, 5, 0, 0, 0)
    const { section, packet } = timed(0n, 9)
    section.interfaces[0] = to
    readBlock(view(block), 0, block.length, section, packet)
    expect(packet).toMatchObject({ seconds: 1_700_000_000, nanoseconds: 5 })
  })
})

describe('pcapng blocks', () => {
  const bytes = Uint8Array.from(
    readFileSync(new URL('../../fixtures/captures/pcapng/be/test102.pcapng', import.meta.url)),
  )

  it('are built over what was in the buffer before', () => {
    const build = (filler: number) => {
      const out = new Uint8Array(512).fill(filler)
      let at = writeSection(view(out), 0, 'Detour')
      at += writeInterface(view(out), at, 1, 262_144, 'eth0')
      out.fill(7, at + ENHANCED_HEADER, at + ENHANCED_HEADER + 5)
      at += writeEnhanced(view(out), at, true, 0, plain(1e9), 1, 2, 5, 9, 0)
      return out.subarray(0, at)
    }
    expect(build(0xa5)).toEqual(build(0))
    const section = new Section()
    const packet = new PacketRecord()
    const out = build(0xa5)
    let at = 0
    while (at < out.length) at += readBlock(view(out), at, out.length, section, packet)
    expect(section.interfaces).toEqual([{ linktype: 1, snaplen: 262_144, ticks: 1e9, offset: 0, fcs: 0 }])
    expect(packet).toMatchObject({
      seconds: 1,
      nanoseconds: 2,
      captured: 5,
      original: 9,
      interface: 0,
      optionsLength: 0,
    })
  })

  it('ask for more at every truncation', () => {
    const section = new Section()
    const packet = new PacketRecord()
    for (let at = 0; at < bytes.length; ) {
      const size = readBlock(view(bytes), at, bytes.length, section, packet)
      expect(size).toBeGreaterThan(0)
      const known = { ...section, interfaces: [...section.interfaces] }
      for (let end = at; end < at + size; end++) expect(readBlock(view(bytes), at, end, section, packet)).toBe(0)
      expect(section.interfaces).toEqual(known.interfaces)
      at += size
    }
  })

  it.each([
    ['a packet before any section', FAULT.NO_SECTION, (b: DataView) => b.setUint32(0, 6)],
    ['a byte-order magic of neither order', FAULT.BYTE_ORDER, (b: DataView) => b.setUint32(8, 1)],
    ['version 2', FAULT.VERSION, (b: DataView) => b.setUint16(12, 2)],
    ['a length under 12', FAULT.BLOCK_LENGTH, (b: DataView) => b.setUint32(4, 8)],
    ['a length that is no multiple of 4', FAULT.BLOCK_LENGTH, (b: DataView) => b.setUint32(4, 33)],
    ['a length of 4 GiB', FAULT.BLOCK_LARGE, (b: DataView) => b.setUint32(4, 0xffff_fffc)],
    ['a second length that differs', FAULT.BLOCK_LENGTHS, (b: DataView) => b.setUint32(b.getUint32(4) - 4, 4)],
  ])('refuse %s', (_name, fault, spoil) => {
    const spoilt = bytes.slice()
    spoil(view(spoilt))
    expect(readBlock(view(spoilt), 0, spoilt.length, new Section(), new PacketRecord())).toBe(-fault)
  })

  it.each([
    ['an interface that is not described', FAULT.NO_INTERFACE, 8, 1],
    ['captured bytes beyond the block', FAULT.CAPTURED_BLOCK, 20, 5],
    ['captured bytes beyond every limit', FAULT.CAPTURED, 20, 262_145],
  ])('refuse a packet with %s', (_name, fault, at, value) => {
    const { section, packet } = timed(0n, 6)
    const block = new Uint8Array(ENHANCED_HEADER + 8)
    writeEnhanced(view(block), 0, true, 0, plain(1e6), 0, 0, 4, 4, 0)
    view(block).setUint32(at, value, true)
    expect(readBlock(view(block), 0, block.length, section, packet)).toBe(-fault)
  })

  it('refuse a clock finer than can be kept', () => {
    const { section, packet } = timed(0n, 6)
    const block = new Uint8Array(64)
    const size = writeInterface(view(block), 0, 1, 0, '')
    block[20] = 20
    expect(readBlock(view(block), 0, size, section, packet)).toBe(-FAULT.RESOLUTION)
    expect(isPacket(section)).toBe(false)
  })
})

describe('pcapng options', () => {
  const option = (code: number, ...value: number[]) => {
    const padded = (value.length + 3) & ~3
    const bytes = new Uint8Array(4 + padded)
    view(bytes).setUint16(0, code, true)
    view(bytes).setUint16(2, value.length, true)
    bytes.set(value, 4)
    return bytes
  }
  const list = (...options: Uint8Array[]) => Uint8Array.from(options.flatMap(bytes => [...bytes]))
  const copied = (from: Uint8Array) => {
    const to = new Uint8Array(64).fill(0xa5)
    return to.slice(0, copyOptions(view(to), 0, view(from), 0, from.length, true, OPTION.EPB_HASH))
  }
  const end = option(0)
  const comment = option(1, 0x68, 0x69, 0x21)

  it('are copied but for the one named and those that forbid it', () => {
    const all = list(
      comment,
      option(3, 1, 2, 3, 4, 5),
      option(19_372, 1),
      option(2988, 9, 9, 9, 9),
      option(19_373),
      end,
    )
    expect(copied(all)).toEqual(list(comment, option(2988, 9, 9, 9, 9), end))
    expect(copied(list(option(3, 1), end))).toEqual(new Uint8Array(0))
  })

  it('end where they break off', () => {
    expect(copied(list(comment))).toEqual(list(comment, end))
    expect(copied(list(comment, Uint8Array.of(1, 0, 200, 0, 1, 1, 1, 1)))).toEqual(list(comment, end))
  })

  it('of an interface keep its clock as far as it can be written', () => {
    const block = new Uint8Array(64)
    const size = writeInterface(view(block), 0, 101, 96, 'x')
    block[size - 12] = 12
    const target = plain(1e12)
    const kept = copyInterface(view(block), 0, size, true, target)
    expect(target).toMatchObject({ linktype: 1, ticks: 1e9 })
    expect(target.ticks).toBeGreaterThan(EXACT_TICKS)
    expect(kept).toHaveLength(size)
    expect(kept[size - 12]).toBe(9)
  })
})
