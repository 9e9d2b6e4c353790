// The pcapng file format (draft-ietf-opsawg-pcapng): blocks read and written over a view, without I/O.
//
//   block      | type 4 | total length 4 | body, padded to 4 ... | total length 4 |
//   section    | byte-order magic 4 | major 2 | minor 2 | section length 8 | options |
//   interface  | link type 2 | 0 2 | snaplen 4 | options |
//   enhanced   | interface 4 | ticks high 4 | ticks low 4 | captured 4 | original 4 | packet, padded | options |
//   packet     | interface 2 | drops 2 | then as enhanced (obsolete)
//   simple     | original 4 | packet, padded |
//   option     | code 2 | length 2 | value, padded |  code 0 ends the list
//
// A section has its own byte order and numbers its own interfaces; an interface has its own clock resolution.

import { setLengths } from './pcap.ts'
import { FAULT, MAX_CAPTURED, type PacketRecord } from './record.ts'

/** Block types that are understood. */
export const BLOCK = {
  SECTION: 0x0a0d0d0a,
  INTERFACE: 1,
  PACKET: 2,
  SIMPLE: 3,
  ENHANCED: 6,
  /** A custom block that its author forbids to copy. */
  CUSTOM_PRIVATE: 0x40000bad,
} as const

/** Option codes that are understood. */
export const OPTION = {
  END: 0,
  USER_APPLICATION: 4,
  IF_NAME: 2,
  IF_TSRESOL: 9,
  IF_FCSLEN: 13,
  IF_TSOFFSET: 14,
  EPB_FLAGS: 2,
  EPB_HASH: 3,
  /** Custom options that their author forbids to copy: text and bytes. */
  CUSTOM_PRIVATE_TEXT: 19_372,
  CUSTOM_PRIVATE_BYTES: 19_373,
} as const

/** Bytes of a section block before its options. */
export const SECTION_HEADER = 24
/** Bytes of an interface block before its options. */
export const INTERFACE_HEADER = 16
/** Bytes of an enhanced packet block before its packet. */
export const ENHANCED_HEADER = 28
/** Bytes of a simple packet block before its packet. */
export const SIMPLE_HEADER = 12
/** Bytes at the end of each block: its length again. */
export const TRAILER = 4

/** The smallest block, and what must be there before a block's length is known. */
export const MIN_BLOCK = 12
/** The largest block that is believed (as in libpcap). */
export const MAX_BLOCK = 16 * 1024 * 1024

const BYTE_ORDER = 0x1a2b3c4d
const MAX_TICKS = 2 ** 45

/** An interface of a section. */
export interface Interface {
  linktype: number
  snaplen: number
  /** Clock ticks a second, at most 2^45. */
  ticks: number
  /** Seconds to add to each timestamp. */
  offset: number
  /** Bytes of frame check sequence at the end of each packet. */
  fcs: number
}

/** The section that is being read: readBlock keeps it up to date. */
export class Section {
  little = true
  interfaces: Interface[] = []
  /** Type and total length of the block that was read last; the length is 0 when not even that was there. */
  type = 0
  length = 0
  private begun = false

  /** Reads byte order and length of the block at `at`; returns a negated FAULT, 0 when more bytes are needed, or 1. */
  open(v: DataView, at: number, end: number): number {
    this.length = 0
    if (at + MIN_BLOCK > end) return 0
    this.type = v.getUint32(at, this.little)
    if (this.type === BLOCK.SECTION) {
      this.little = v.getUint32(at + 8, true) === BYTE_ORDER
      if (v.getUint32(at + 8, this.little) !== BYTE_ORDER) return -FAULT.BYTE_ORDER
      this.begun = true
    } else if (!this.begun) return -FAULT.NO_SECTION
    const length = v.getUint32(at + 4, this.little)
    if (length < MIN_BLOCK || (length & 3) !== 0) return -FAULT.BLOCK_LENGTH
    if (length > MAX_BLOCK) return -FAULT.BLOCK_LARGE
    this.length = length
    return at + length > end ? 0 : 1
  }
}

/** True when the four bytes at `at` begin a section; the type reads the same in both byte orders. */
export function isPcapng(v: DataView, at: number): boolean {
  return v.getUint32(at, true) === BLOCK.SECTION
}

/** True when the block that was read last holds a packet. */
export function isPacket(section: Section): boolean {
  return section.type === BLOCK.ENHANCED || section.type === BLOCK.SIMPLE || section.type === BLOCK.PACKET
}

/**
 * Reads the block at `at` and returns its size, 0 when it does not end before `end` (`section.length` then tells its
 * size, if it is known), or a negated FAULT. A packet fills `packet`; a section or an interface changes `section`.
 */
export function readBlock(v: DataView, at: number, end: number, section: Section, packet: PacketRecord): number {
  const opened = section.open(v, at, end)
  if (opened <= 0) return opened
  const { length, little } = section
  if (v.getUint32(at + length - TRAILER, little) !== length) return -FAULT.BLOCK_LENGTHS
  let fault = 0
  switch (section.type) {
    case BLOCK.ENHANCED:
    case BLOCK.PACKET:
      fault = readPacket(v, at, section, packet)
      break
    case BLOCK.SIMPLE:
      fault = readSimple(v, at, section, packet)
      break
    case BLOCK.SECTION:
      if (length < SECTION_HEADER + TRAILER) return -FAULT.BLOCK_SHORT
      if (v.getUint16(at + 12, little) !== 1) return -FAULT.VERSION
      section.interfaces = []
      break
    case BLOCK.INTERFACE:
      fault = readInterface(v, at, section)
      break
  }
  return fault === 0 ? length : -fault
}

function readPacket(v: DataView, at: number, section: Section, packet: PacketRecord): number {
  const { length, little, interfaces } = section
  if (length < ENHANCED_HEADER + TRAILER) return FAULT.BLOCK_SHORT
  const number = section.type === BLOCK.ENHANCED ? v.getUint32(at + 8, little) : v.getUint16(at + 8, little)
  if (number >= interfaces.length) return FAULT.NO_INTERFACE
  const captured = v.getUint32(at + 20, little)
  if (captured > MAX_CAPTURED) return FAULT.CAPTURED
  const options = at + ENHANCED_HEADER + pad(captured)
  const end = at + length - TRAILER
  if (options > end) return FAULT.CAPTURED_BLOCK
  const source = interfaces[number]
  packet.data = at + ENHANCED_HEADER
  packet.linktype = source.linktype
  packet.interface = number
  packet.options = options
  packet.optionsLength = end - options
  setLengths(packet, captured, v.getUint32(at + 24, little), source.fcs)
  setTime(packet, v.getUint32(at + 12, little), v.getUint32(at + 16, little), source)
  return 0
}

function readSimple(v: DataView, at: number, section: Section, packet: PacketRecord): number {
  const { length, little, interfaces } = section
  const room = length - SIMPLE_HEADER - TRAILER
  if (room < 0) return FAULT.BLOCK_SHORT
  if (interfaces.length === 0) return FAULT.NO_INTERFACE
  const source = interfaces[0]
  const original = v.getUint32(at + 8, little)
  const captured = source.snaplen === 0 ? original : Math.min(original, source.snaplen)
  if (captured > MAX_CAPTURED) return FAULT.CAPTURED
  if (pad(captured) > room) return FAULT.CAPTURED_BLOCK
  packet.data = at + SIMPLE_HEADER
  packet.linktype = source.linktype
  packet.interface = -1
  packet.optionsLength = 0
  packet.seconds = 0
  packet.nanoseconds = 0
  setLengths(packet, captured, original, source.fcs)
  return 0
}

function readInterface(v: DataView, at: number, section: Section): number {
  const { length, little } = section
  if (length < INTERFACE_HEADER + TRAILER) return FAULT.BLOCK_SHORT
  const options = at + INTERFACE_HEADER
  const end = at + length - TRAILER
  const tsresol = findOption(v, options, end, little, OPTION.IF_TSRESOL, 1)
  const tsoffset = findOption(v, options, end, little, OPTION.IF_TSOFFSET, 8)
  const fcslen = findOption(v, options, end, little, OPTION.IF_FCSLEN, 1)
  const ticks = tsresol < 0 ? 1e6 : ticksOf(v.getUint8(tsresol))
  if (ticks > MAX_TICKS) return FAULT.RESOLUTION
  section.interfaces.push({
    linktype: v.getUint16(at + 8, little),
    snaplen: v.getUint32(at + 12, little),
    ticks,
    offset: tsoffset < 0 ? 0 : Number(v.getBigInt64(tsoffset, little)),
    fcs: fcslen < 0 ? 0 : v.getUint8(fcslen),
  })
  return 0
}

/** Ticks a second of an if_tsresol value: a power of ten, or of two when the high bit is set. */
export function ticksOf(tsresol: number): number {
  return (tsresol & 0x80 ? 2 : 10) ** (tsresol & 0x7f)
}

/** Position of an option's value of at least `size` bytes, or -1. */
export function findOption(v: DataView, at: number, end: number, little: boolean, code: number, size: number): number {
  for (let next = at; next + 4 <= end; ) {
    const found = v.getUint16(next, little)
    const length = v.getUint16(next + 2, little)
    if (found === OPTION.END || next + 4 + length > end) return -1
    if (found === code && length >= size) return next + 4
    next += 4 + pad(length)
  }
  return -1
}

// NB: nanoseconds since 1970 are above 2^53, so the 64-bit number is divided by long division, 16 or 8 bits at a time,
// whose every step is exact: a remainder is under `ticks`, which is at most 2^37 or 2^45.
function setTime(packet: PacketRecord, high: number, low: number, source: Interface): void {
  const { ticks } = source
  const bits = ticks <= 2 ** 37 ? 16 : 8
  const base = bits === 16 ? 65_536 : 256
  let seconds = Math.floor(high / ticks)
  let rest = high - seconds * ticks
  for (let shift = 32 - bits; shift >= 0; shift -= bits) {
    const part = rest * base + ((low >>> shift) & (base - 1))
    const quotient = Math.floor(part / ticks)
    rest = part - quotient * ticks
    seconds = seconds * base + quotient
  }
  packet.seconds = seconds + source.offset
  packet.nanoseconds = rest === 0 ? 0 : Math.min(999_999_999, Math.round((rest / ticks) * 1e9))
}

/** Ticks a second up to which a timestamp in nanoseconds gives back the ticks it came from. */
export const EXACT_TICKS = 2 ** 29

/** Writes an EPB timestamp at `at`, in `ticks` a second (at most EXACT_TICKS); seconds are taken modulo 2^32. */
function writeTime(
  v: DataView,
  at: number,
  little: boolean,
  seconds: number,
  nanoseconds: number,
  to: Interface,
): void {
  const { ticks, offset } = to
  const whole = (seconds - offset) >>> 0
  const rest = Math.round((nanoseconds * ticks) / 1e9)
  const upper = (whole >>> 16) * ticks
  const lower = (whole & 0xffff) * ticks + rest
  const middle = (upper % 65_536) * 65_536 + lower
  v.setUint32(at, Math.floor(upper / 65_536) + Math.floor(middle / 2 ** 32), little)
  v.setUint32(at + 4, middle % 2 ** 32, little)
}

/**
 * Copies a list of options but for those of code `without` and those that forbid it, and returns the bytes written, a
 * multiple of 4: at most `length` + 4. A list that breaks off is ended.
 */
export function copyOptions(
  to: DataView,
  toAt: number,
  from: DataView,
  at: number,
  length: number,
  little: boolean,
  without: number,
): number {
  const end = at + length
  let target = toAt
  for (let next = at; next + 4 <= end; ) {
    const code = from.getUint16(next, little)
    const size = 4 + pad(from.getUint16(next + 2, little))
    if (code === OPTION.END || next + size > end) break
    if (code !== without && code !== OPTION.CUSTOM_PRIVATE_TEXT && code !== OPTION.CUSTOM_PRIVATE_BYTES) {
      for (let i = 0; i < size; i += 4) to.setUint32(target + i, from.getUint32(next + i, little), little)
      target += size
    }
    next += size
  }
  if (target === toAt) return 0
  to.setUint32(target, 0, little)
  return target + 4 - toAt
}

/** A copy of the section block at `at`, of unknown length, so that packets may grow. */
export function copySection(v: DataView, at: number, length: number): Uint8Array {
  const block = copyBlock(v, at, length)
  block.fill(0xff, 16, SECTION_HEADER)
  return block
}

/** A copy of the block at `at`. */
export function copyBlock(v: DataView, at: number, length: number): Uint8Array {
  return new Uint8Array(v.buffer, v.byteOffset + at, length).slice()
}

/**
 * A copy of the interface block at `at` for packets that were rewritten as Ethernet and may have grown. `target` becomes the
 * interface it describes: it has no frame check sequence, and ticks of nanoseconds where they were finer than those kept.
 */
export function copyInterface(v: DataView, at: number, length: number, little: boolean, target: Interface): Uint8Array {
  const block = new Uint8Array(length + 4)
  const to = new DataView(block.buffer)
  const fine = target.ticks > EXACT_TICKS
  target.linktype = 1
  target.fcs = 0
  if (fine) target.ticks = 1e9
  if (target.snaplen > 0 && target.snaplen < MAX_CAPTURED) target.snaplen = MAX_CAPTURED
  to.setUint32(0, BLOCK.INTERFACE, little)
  to.setUint16(8, target.linktype, little)
  to.setUint32(12, target.snaplen, little)
  let end = INTERFACE_HEADER
  const options = at + INTERFACE_HEADER
  end += copyOptions(to, end, v, options, length - INTERFACE_HEADER - TRAILER, little, OPTION.IF_FCSLEN)
  if (fine) to.setUint8(findOption(to, INTERFACE_HEADER, end, little, OPTION.IF_TSRESOL, 1), 9)
  to.setUint32(4, end + TRAILER, little)
  to.setUint32(end, end + TRAILER, little)
  return block.subarray(0, end + TRAILER)
}

/**
 * Writes an enhanced packet block around its packet, which the caller puts at `at` + ENHANCED_HEADER, and its options,
 * which go behind the padded packet; returns the block's size.
 */
export function writeEnhanced(
  v: DataView,
  at: number,
  little: boolean,
  interfaceNumber: number,
  to: Interface,
  seconds: number,
  nanoseconds: number,
  captured: number,
  original: number,
  optionsLength: number,
): number {
  const size = ENHANCED_HEADER + pad(captured) + optionsLength + TRAILER
  v.setUint32(at, BLOCK.ENHANCED, little)
  v.setUint32(at + 4, size, little)
  v.setUint32(at + 8, interfaceNumber, little)
  writeTime(v, at + 12, little, seconds, nanoseconds, to)
  v.setUint32(at + 20, captured, little)
  v.setUint32(at + 24, original, little)
  writePadding(v, at + ENHANCED_HEADER, captured)
  v.setUint32(at + size - TRAILER, size, little)
  return size
}

/** Writes a simple packet block around its packet, which the caller puts at `at` + SIMPLE_HEADER; returns the block's size. */
export function writeSimple(v: DataView, at: number, little: boolean, length: number): number {
  const size = SIMPLE_HEADER + pad(length) + TRAILER
  v.setUint32(at, BLOCK.SIMPLE, little)
  v.setUint32(at + 4, size, little)
  v.setUint32(at + 8, length, little)
  writePadding(v, at + SIMPLE_HEADER, length)
  v.setUint32(at + size - TRAILER, size, little)
  return size
}

function writePadding(v: DataView, at: number, length: number): void {
  for (let i = length; (i & 3) !== 0; i++) v.setUint8(at + i, 0)
}

/** Bytes of a list of options that holds only epb_flags. */
export const FLAGS_SIZE = 12

/** Writes that list, little-endian; direction 1 is inbound, 2 outbound. */
export function writeFlags(v: DataView, at: number, direction: number): void {
  v.setUint16(at, OPTION.EPB_FLAGS, true)
  v.setUint16(at + 2, 4, true)
  v.setUint32(at + 4, direction, true)
  v.setUint32(at + 8, 0, true)
}

/** Writes a little-endian section block of unknown length that names its author; returns its size. */
export function writeSection(v: DataView, at: number, application: string): number {
  v.setUint32(at, BLOCK.SECTION, true)
  v.setUint32(at + 8, BYTE_ORDER, true)
  v.setUint16(at + 12, 1, true)
  v.setUint16(at + 14, 0, true)
  v.setInt32(at + 16, -1, true)
  v.setInt32(at + 20, -1, true)
  const end = writeText(v, at + SECTION_HEADER, OPTION.USER_APPLICATION, application)
  return finish(v, at, end)
}

/** Writes a little-endian interface block with a clock of nanoseconds, without a name when it is empty; returns its size. */
export function writeInterface(v: DataView, at: number, linktype: number, snaplen: number, name: string): number {
  v.setUint32(at, BLOCK.INTERFACE, true)
  v.setUint16(at + 8, linktype, true)
  v.setUint16(at + 10, 0, true)
  v.setUint32(at + 12, snaplen, true)
  const options = at + INTERFACE_HEADER
  const next = name === '' ? options : writeText(v, options, OPTION.IF_NAME, name)
  v.setUint16(next, OPTION.IF_TSRESOL, true)
  v.setUint16(next + 2, 1, true)
  v.setUint32(next + 4, 9, true)
  return finish(v, at, next + 8)
}

function writeText(v: DataView, at: number, code: number, text: string): number {
  const bytes = new TextEncoder().encode(text)
  v.setUint16(at, code, true)
  v.setUint16(at + 2, bytes.length, true)
  v.setUint32(at + 4 + pad(bytes.length) - 4, 0, true)
  for (let i = 0; i < bytes.length; i++) v.setUint8(at + 4 + i, bytes[i])
  return at + 4 + pad(bytes.length)
}

function finish(v: DataView, at: number, options: number): number {
  v.setUint32(options, OPTION.END, true)
  const size = options + 4 + TRAILER - at
  v.setUint32(at + 4, size, true)
  v.setUint32(at + size - TRAILER, size, true)
  return size
}

/** `length` rounded up to a multiple of 4. */
export function pad(length: number): number {
  return (length + 3) & ~3
}
