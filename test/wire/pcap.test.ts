// pcap: known bytes taken apart and built, in both byte orders and both units; refusals.
import { describe, expect, it } from 'vitest'
import {
  FILE_HEADER,
  isPcap,
  type PcapHeader,
  RECORD_HEADER,
  readHeader,
  readRecord,
  writeHeader,
  writeRecord,
} from '../../src/wire/pcap.ts'
import { FAULT, faultText, PacketRecord } from '../../src/wire/record.ts'

// Bytes as tcpdump 4.99.3 wrote them (-w, and the same with the words turned around for a big-endian machine).
const files = [
  {
    name: 'little, microseconds',
    hex: 'd4c3b2a1020004000000000000000000000004000100000015cd5b0740e201000300000005000000aabbcc',
  },
  {
    name: 'big, microseconds',
    hex: 'a1b2c3d40002000400000000000000000004000000000001075bcd150001e2400000000300000005aabbcc',
  },
  {
    name: 'little, nanoseconds',
    hex: '4d3cb2a1020004000000000000000000000004000100000015cd5b0700ca5b070300000005000000aabbcc',
  },
  {
    name: 'big, nanoseconds',
    hex: 'a1b23c4d0002000400000000000000000004000000000001075bcd15075bca000000000300000005aabbcc',
  },
].map(file => ({ ...file, bytes: Uint8Array.from(Buffer.from(file.hex, 'hex')) }))

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
const header: PcapHeader = { little: true, nanoseconds: false, snaplen: 262_144, linktype: 1, fcs: 0 }

describe.each(files)('pcap, $name', ({ name, bytes }) => {
  const little = name.startsWith('little')
  const nanoseconds = name.endsWith('nanoseconds')
  const whole = 123_456_789
  const fraction = 123_456_000

  it('is taken apart', () => {
    const v = view(bytes)
    expect(isPcap(v, 0)).toBe(true)
    expect(readHeader(v, 0)).toEqual({ little, nanoseconds, snaplen: 262_144, linktype: 1, fcs: 0 })
    const packet = new PacketRecord()
    expect(readRecord(v, FILE_HEADER, bytes.length, readHeader(v, 0)!, packet)).toBe(RECORD_HEADER + 3)
    expect(packet).toMatchObject({
      data: 40,
      captured: 3,
      original: 5,
      seconds: whole,
      nanoseconds: fraction,
      linktype: 1,
    })
  })

  it('is built', () => {
    const built = new Uint8Array(bytes.length).fill(0xa5)
    const head = { ...header, little, nanoseconds }
    expect(writeHeader(view(built), 0, head)).toBe(FILE_HEADER)
    writeRecord(view(built), FILE_HEADER, head, whole, fraction, 3, 5)
    built.set([0xaa, 0xbb, 0xcc], FILE_HEADER + RECORD_HEADER)
    expect(Buffer.from(built).toString('hex')).toBe(Buffer.from(bytes).toString('hex'))
  })

  it('asks for more at every truncation of a record', () => {
    const head = readHeader(view(bytes), 0)!
    for (let end = FILE_HEADER; end < bytes.length; end++)
      expect(readRecord(view(bytes), FILE_HEADER, end, head, new PacketRecord())).toBe(0)
  })
})

describe('pcap', () => {
  const record = (captured: number, original: number, fraction = 0) => {
    const bytes = new Uint8Array(RECORD_HEADER + Math.min(captured, 300_000))
    writeRecord(view(bytes), 0, { ...header, nanoseconds: true }, 7, fraction, captured, original)
    return bytes
  }
  const parse = (bytes: Uint8Array, head = header) => {
    const packet = new PacketRecord()
    return { size: readRecord(view(bytes), 0, bytes.length, head, packet), packet }
  }

  it('takes the largest record and refuses a larger one', () => {
    expect(parse(record(262_144, 262_144)).size).toBe(RECORD_HEADER + 262_144)
    expect(parse(record(262_145, 262_145)).size).toBe(-FAULT.CAPTURED)
    expect(parse(record(0xffff_ffff, 0)).size).toBe(-FAULT.CAPTURED)
    expect(faultText(FAULT.CAPTURED)).toContain('262144')
  })

  it('takes an original length under the captured one for the captured one', () => {
    expect(parse(record(60, 50)).packet).toMatchObject({ captured: 60, original: 60 })
  })

  it('carries a fraction of a second and more into the seconds', () => {
    expect(parse(record(0, 0, 3_000_001)).packet).toMatchObject({ seconds: 10, nanoseconds: 1000 })
  })

  it('leaves out the frame check sequence that the link type announces', () => {
    const bytes = new Uint8Array(FILE_HEADER)
    writeHeader(view(bytes), 0, { ...header, linktype: 0x2400_0001 })
    const head = readHeader(view(bytes), 0)!
    expect(head).toMatchObject({ linktype: 1, fcs: 4 })
    expect(parse(record(64, 64), head).packet).toMatchObject({ captured: 60, original: 60 })
    expect(parse(record(62, 64), head).packet).toMatchObject({ captured: 60, original: 60 })
    expect(parse(record(40, 64), head).packet).toMatchObject({ captured: 40, original: 60 })
    expect(parse(record(2, 2), head).packet).toMatchObject({ captured: 0, original: 0 })
  })

  it('does not know another magic or version', () => {
    const bytes = files[0].bytes.slice()
    bytes[4] = 3
    expect(readHeader(view(bytes), 0)).toBeUndefined()
    bytes[0] = 0
    expect(isPcap(view(bytes), 0)).toBe(false)
    expect(readHeader(view(bytes), 0)).toBeUndefined()
  })
})
