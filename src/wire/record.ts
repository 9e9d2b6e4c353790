// What a capture file says of one packet, filled in place by the readers of pcap and pcapng, and what can be wrong with a record.

/** One packet of a capture file; positions are in the view that was read. One object is reused for a whole file. */
export class PacketRecord {
  /** Position of the captured bytes. */
  data = 0
  /** Captured bytes, without a frame check sequence. */
  captured = 0
  /** Bytes that the packet had on the wire, never under `captured`. */
  original = 0
  seconds = 0
  nanoseconds = 0
  linktype = 0
  /** pcapng: number of the interface within its section; -1 when the block names none and has no time (a simple one). */
  interface = 0
  /** pcapng: position and bytes of the packet's options, 0 bytes when it has none. */
  options = 0
  optionsLength = 0
}

/** The most that a record may capture (libpcap's MAXIMUM_SNAPLEN). */
export const MAX_CAPTURED = 262_144

const FAULTS = [
  'fine',
  'the file ends in the middle of a record',
  `the record captured more than ${MAX_CAPTURED} bytes`,
  'the block length is under 12 or not a multiple of 4',
  'the two lengths of a block differ',
  'the block is too short for what it must hold',
  'the captured bytes do not fit their block',
  'the byte-order magic of a section is neither 1a2b3c4d nor 4d3c2b1a',
  'the section is of a version other than 1',
  'the file does not start with a section header',
  'the packet names an interface that its section has not described',
  'the timestamp resolution of an interface is finer than 2^-45 s',
  'the block is larger than 16 MiB, or than 1 MiB and holds a packet',
] as const

/** Faults of a record, by name; a reader returns the number negated. */
export const FAULT = {
  TRUNCATED: 1,
  CAPTURED: 2,
  BLOCK_LENGTH: 3,
  BLOCK_LENGTHS: 4,
  BLOCK_SHORT: 5,
  CAPTURED_BLOCK: 6,
  BYTE_ORDER: 7,
  VERSION: 8,
  NO_SECTION: 9,
  NO_INTERFACE: 10,
  RESOLUTION: 11,
  BLOCK_LARGE: 12,
} as const

/** The sentence that says what a fault means. */
export function faultText(fault: number): string {
  return FAULTS[fault] ?? `fault ${fault}`
}
