// The pcap file format (draft-ietf-opsawg-pcap): records read and written over a view, without I/O.
//
//   file    | magic 4 | major 2 | minor 2 | 0 4 | 0 4 | snaplen 4 | FCS bits and link type 4 |
//   record  | seconds 4 | micro- or nanoseconds 4 | captured 4 | original 4 | captured bytes ...
//
// The magic tells the unit (a1b2c3d4 microseconds, a1b23c4d nanoseconds) and, by how it reads, the byte order.

import { FAULT, MAX_CAPTURED, type PacketRecord } from './record.ts'

/** Bytes of the file header. */
export const FILE_HEADER = 24
/** Bytes in front of each packet. */
export const RECORD_HEADER = 16

const MICROSECONDS = 0xa1b2c3d4
const NANOSECONDS = 0xa1b23c4d

const MAGIC = 0
const MAJOR = 4
const MINOR = 6
const SNAPLEN = 16
const LINKTYPE = 20

const SECONDS = 0
const FRACTION = 4
const CAPTURED = 8
const ORIGINAL = 12

/** What the file header says. */
export interface PcapHeader {
  little: boolean
  /** Fractions of seconds are nanoseconds, not microseconds. */
  nanoseconds: boolean
  snaplen: number
  linktype: number
  /** Bytes of frame check sequence at the end of each packet. */
  fcs: number
}

/** True when the four bytes at `at` are a pcap magic. */
export function isPcap(v: DataView, at: number): boolean {
  return isMagic(v.getUint32(at + MAGIC, true)) || isMagic(v.getUint32(at + MAGIC, false))
}

/** Reads a file header of FILE_HEADER bytes; undefined when the magic or the version is not known. */
export function readHeader(v: DataView, at: number): PcapHeader | undefined {
  const little = isMagic(v.getUint32(at + MAGIC, true))
  const magic = v.getUint32(at + MAGIC, little)
  if (!isMagic(magic) || v.getUint16(at + MAJOR, little) !== 2) return undefined
  const link = v.getUint32(at + LINKTYPE, little)
  const fcs = link & 0x0400_0000 ? (link >>> 28) * 2 : 0
  const snaplen = v.getUint32(at + SNAPLEN, little)
  return { little, nanoseconds: magic === NANOSECONDS, snaplen, linktype: link & 0xffff, fcs }
}

/** Writes a file header of version 2.4; FCS bits are zero. */
export function writeHeader(v: DataView, at: number, header: PcapHeader): number {
  const { little, nanoseconds, snaplen, linktype } = header
  v.setUint32(at + MAGIC, nanoseconds ? NANOSECONDS : MICROSECONDS, little)
  v.setUint16(at + MAJOR, 2, little)
  v.setUint16(at + MINOR, 4, little)
  v.setUint32(at + 8, 0, little)
  v.setUint32(at + 12, 0, little)
  v.setUint32(at + SNAPLEN, snaplen, little)
  v.setUint32(at + LINKTYPE, linktype, little)
  return FILE_HEADER
}

/**
 * Reads the record at `at` into `packet` and returns its size, 0 when it does not end before `end`, or a negated FAULT.
 * As other readers do, it takes a record above the file's snaplen and one whose original length is under the captured.
 */
export function readRecord(v: DataView, at: number, end: number, header: PcapHeader, packet: PacketRecord): number {
  if (at + RECORD_HEADER > end) return 0
  const { little, fcs } = header
  const captured = v.getUint32(at + CAPTURED, little)
  if (captured > MAX_CAPTURED) return -FAULT.CAPTURED
  if (at + RECORD_HEADER + captured > end) return 0
  let seconds = v.getUint32(at + SECONDS, little)
  let fraction = v.getUint32(at + FRACTION, little)
  const unit = header.nanoseconds ? 1_000_000_000 : 1_000_000
  if (fraction >= unit) {
    const carry = Math.floor(fraction / unit)
    seconds += carry
    fraction -= carry * unit
  }
  packet.seconds = seconds
  packet.nanoseconds = header.nanoseconds ? fraction : fraction * 1000
  packet.data = at + RECORD_HEADER
  packet.linktype = header.linktype
  packet.interface = 0
  packet.optionsLength = 0
  setLengths(packet, captured, v.getUint32(at + ORIGINAL, little), fcs)
  return RECORD_HEADER + captured
}

/** Writes a record's header; the `captured` bytes go behind it. Nanoseconds are cut to microseconds when the file has those. */
export function writeRecord(
  v: DataView,
  at: number,
  header: PcapHeader,
  seconds: number,
  nanoseconds: number,
  captured: number,
  original: number,
): void {
  const { little } = header
  v.setUint32(at + SECONDS, seconds, little)
  v.setUint32(at + FRACTION, header.nanoseconds ? nanoseconds : Math.floor(nanoseconds / 1000), little)
  v.setUint32(at + CAPTURED, captured, little)
  v.setUint32(at + ORIGINAL, original, little)
}

/** Sets a packet's lengths without the frame check sequence, which is the last `fcs` bytes that were on the wire. */
export function setLengths(packet: PacketRecord, captured: number, original: number, fcs: number): void {
  const wire = Math.max(original, captured)
  packet.original = wire > fcs ? wire - fcs : 0
  packet.captured = Math.min(captured, packet.original)
}

function isMagic(magic: number): boolean {
  return magic === MICROSECONDS || magic === NANOSECONDS
}
