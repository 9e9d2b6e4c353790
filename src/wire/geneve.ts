// GENEVE header: RFC 8926 sections 3.4 (base header) and 3.5 (options).
//
//   0               1               2               4                       7       8
//   |ver|options/4  |O|C|reserved   | protocol type | VNI                   | resv  | options
//
//   option:  0               2       3               4
//            | class         |C|type |---| data/4    | data

import { DROP, type DropReason } from '../drop.ts'
import { setU16, setU24, u16, u24 } from './bytes.ts'

/** The UDP destination port assigned to GENEVE (section 3.3). */
export const PORT = 6081
/** Bytes of the base header. */
export const HEADER = 8
/** Bytes of the base header and the most options there can be. */
export const MAX = 260

const FLAGS = 1
const PROTOCOL = 2
const VNI = 4
const CONTROL = 0x80
const CRITICAL = 0x40

/** Bytes of an option without its data. */
export const OPTION = 4
/** Bytes of option data at most. */
export const OPTION_DATA_MAX = 124
/** The bit of an option's type that makes it critical. */
export const OPTION_CRITICAL = 0x80
/** The experimental class (section 7) that Detour's own options are in. */
export const DETOUR_CLASS = 0xfff0

const OPTION_TYPE = 2
const OPTION_LENGTH = 3

/**
 * 0 when header and options are sound and the payload may be forwarded, or a drop reason. Critical options are known
 * only in class `known`; whoever owns the class judges their types.
 *
 * An unknown critical option drops the packet whether or not the C bit announced it (section 3.5); a C bit without any
 * critical option costs nothing, because the options were parsed, which is all it asks for (section 3.4). Reserved bits
 * are ignored (sections 3.4 and 3.5).
 */
export function check(b: Uint8Array, at: number, end: number, known = DETOUR_CLASS): DropReason {
  if (at + HEADER > end) return DROP.GENEVE_TRUNCATED
  if (version(b, at) !== 0) return DROP.GENEVE_VERSION
  const payload = at + headerLength(b, at)
  if (payload > end) return DROP.GENEVE_TRUNCATED
  for (let option = at + HEADER; option < payload; ) {
    const next = nextOption(b, option)
    if (next > payload) return DROP.GENEVE_OPTIONS
    if (b[option + OPTION_TYPE] >= OPTION_CRITICAL && optionClass(b, option) !== known) return DROP.GENEVE_CRITICAL
    option = next
  }
  return control(b, at) ? DROP.GENEVE_CONTROL : 0
}

export function version(b: Uint8Array, at: number): number {
  return b[at] >>> 6
}

/** Bytes of all options. */
export function optionsLength(b: Uint8Array, at: number): number {
  return (b[at] & 0x3f) << 2
}

/** Bytes of the base header and all options. */
export function headerLength(b: Uint8Array, at: number): number {
  return HEADER + ((b[at] & 0x3f) << 2)
}

/** The O bit: a control packet, whose payload is never forwarded. */
export function control(b: Uint8Array, at: number): boolean {
  return (b[at + FLAGS] & CONTROL) !== 0
}

/** The C bit: one of the options is critical. */
export function critical(b: Uint8Array, at: number): boolean {
  return (b[at + FLAGS] & CRITICAL) !== 0
}

/** The EtherType of the payload; 0x6558 for an Ethernet frame. */
export function protocol(b: Uint8Array, at: number): number {
  return u16(b, at + PROTOCOL)
}

export function setProtocol(b: Uint8Array, at: number, value: number): void {
  setU16(b, at + PROTOCOL, value)
}

/** The 24-bit virtual network identifier. */
export function vni(b: Uint8Array, at: number): number {
  return u24(b, at + VNI)
}

export function setVni(b: Uint8Array, at: number, value: number): void {
  setU24(b, at + VNI, value)
}

/** Writes the base header; `options` is the length in bytes, a multiple of 4 and at most 252, of what the caller writes behind it. */
export function write(
  b: Uint8Array,
  at: number,
  options: number,
  isControl: boolean,
  isCritical: boolean,
  protocolType: number,
  network: number,
): void {
  b[at] = options >>> 2
  b[at + FLAGS] = (isControl ? CONTROL : 0) | (isCritical ? CRITICAL : 0)
  setU16(b, at + PROTOCOL, protocolType)
  setU24(b, at + VNI, network)
  b[at + HEADER - 1] = 0
}

/** The class of the option at `option`. */
export function optionClass(b: Uint8Array, option: number): number {
  return u16(b, option)
}

/** The type of the option at `option`, its critical bit included. */
export function optionType(b: Uint8Array, option: number): number {
  return b[option + OPTION_TYPE]
}

/** Bytes of data of the option at `option`. */
export function optionLength(b: Uint8Array, option: number): number {
  return (b[option + OPTION_LENGTH] & 0x1f) << 2
}

/** The position behind the option at `option`. */
export function nextOption(b: Uint8Array, option: number): number {
  return option + OPTION + ((b[option + OPTION_LENGTH] & 0x1f) << 2)
}

/** The position of the first option of a class and type in a checked header, or 0. */
export function findOption(b: Uint8Array, at: number, classNumber: number, type: number): number {
  const payload = at + headerLength(b, at)
  for (let option = at + HEADER; option < payload; option = nextOption(b, option)) {
    if (b[option + OPTION_TYPE] === type && optionClass(b, option) === classNumber) return option
  }
  return 0
}

/** Writes an option's header and returns the position of its data, `dataLength` bytes, a multiple of 4 and at most 124, for the caller to write. */
export function writeOption(
  b: Uint8Array,
  option: number,
  classNumber: number,
  type: number,
  dataLength: number,
): number {
  setU16(b, option, classNumber)
  b[option + OPTION_TYPE] = type
  b[option + OPTION_LENGTH] = dataLength >>> 2
  return option + OPTION
}
