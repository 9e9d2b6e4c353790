// Origins: what a capture file says of its packets and a frame cannot hold, kept from the reader to the writer of one thread.
//
// The last records are kept in a table by record number (`pool.sequence`), so a packet that is copied or delayed still
// finds its row, and one that is dropped costs nothing. Blocks that are no packets wait in a queue until the writer comes
// to the packet behind them. Bounded: what is too old is forgotten, and the packet is written without it.

import { copyBytes } from '../memory/copy.ts'
import {
  BLOCK,
  copyBlock,
  copyInterface,
  copyOptions,
  copySection,
  type Interface,
  OPTION,
  type Section,
} from '../wire/pcapng.ts'
import type { PacketRecord } from '../wire/record.ts'
import type { CaptureFormat } from './pcap-file.ts'

/** Bytes of packet options that are remembered. */
const OPTIONS = 1 << 20
/** Bytes of blocks that wait for the writer; it never falls behind that far unless everything is dropped. */
const WAITING = 1 << 24

/** A block to write before record number `before`. */
export interface PassedBlock {
  before: number
  bytes: Uint8Array
  /** A section begins, in this byte order. */
  little?: boolean
  /** The interface that the block describes, as it is written. */
  described?: Interface
}

/** One thread only; give the same object to a PcapReader and a PcapWriter. */
export class Origins {
  /** Format of the file that is read. */
  readonly format: CaptureFormat
  /** Blocks in file order, taken by the writer. */
  readonly blocks: PassedBlock[] = []
  /** Blocks that were not kept, because nothing was written for too long or because they are too large. */
  lostBlocks = 0

  private waiting = 0
  private readonly mask: number
  private readonly number: Int32Array
  private readonly interfaces: Int32Array
  private readonly missing: Int32Array
  private readonly optionsAt: Float64Array
  private readonly optionsLength: Int32Array
  private readonly options = new DataView(new ArrayBuffer(OPTIONS))
  /** Option bytes ever written, counting those left out at the end of the ring. */
  private written = 0

  /** Remembers `window` records, a power of two well above the packets in flight. */
  constructor(format: CaptureFormat, window = 65_536) {
    this.format = format
    this.mask = window - 1
    this.number = new Int32Array(window).fill(-1)
    this.interfaces = new Int32Array(window)
    this.missing = new Int32Array(window)
    this.optionsAt = new Float64Array(window)
    this.optionsLength = new Int32Array(window)
  }

  /** Reader: remembers a record. */
  note(number: number, view: DataView, record: PacketRecord, little: boolean): void {
    const row = number & this.mask
    this.number[row] = number
    this.interfaces[row] = record.interface
    this.missing[row] = record.original - record.captured
    this.optionsLength[row] = 0
    if (record.optionsLength > 0) this.keep(row, view, record, little)
  }

  /** Reader: remembers a block that is no packet, which comes before record `before`. */
  pass(before: number, view: DataView, at: number, section: Section): void {
    const { type, length, little, interfaces } = section
    if (type === BLOCK.CUSTOM_PRIVATE) return
    if (this.waiting + length > WAITING && type !== BLOCK.SECTION && type !== BLOCK.INTERFACE) {
      this.lostBlocks++
      return
    }
    this.waiting += length
    if (type === BLOCK.SECTION) this.blocks.push({ before, bytes: copySection(view, at, length), little })
    else if (type === BLOCK.INTERFACE) {
      const described = { ...interfaces[interfaces.length - 1] }
      this.blocks.push({ before, bytes: copyInterface(view, at, length, little, described), described })
    } else this.blocks.push({ before, bytes: copyBlock(view, at, length) })
  }

  /** Writer: the next block that goes before record `number`, if one waits. */
  take(number: number): PassedBlock | undefined {
    if (this.blocks.length === 0 || this.blocks[0].before > number) return undefined
    const block = this.blocks.shift()!
    this.waiting -= block.bytes.length
    return block
  }

  /** Writer: the row of a record, or -1 when it is forgotten. */
  row(number: number): number {
    const row = number & this.mask
    return this.number[row] === number ? row : -1
  }

  /** Number of the interface within its section; -1 for a simple block. */
  interfaceOf(row: number): number {
    return this.interfaces[row]
  }

  /** Bytes of the packet that were on the wire and not captured. */
  missingOf(row: number): number {
    return this.missing[row]
  }

  /** Bytes of the packet's options, 0 when it had none or they were overwritten. */
  optionsOf(row: number): number {
    return this.written - this.optionsAt[row] <= OPTIONS ? this.optionsLength[row] : 0
  }

  /** Copies those bytes. */
  copyOptions(row: number, to: DataView, at: number): void {
    copyBytes(to, at, this.options, this.optionsAt[row] % OPTIONS, this.optionsLength[row])
  }

  // The hash would be that of another packet.
  private keep(row: number, view: DataView, record: PacketRecord, little: boolean): void {
    const { options, optionsLength } = record
    const most = optionsLength + 4
    if (most > OPTIONS) return
    if ((this.written % OPTIONS) + most > OPTIONS) this.written += OPTIONS - (this.written % OPTIONS)
    this.optionsAt[row] = this.written
    this.optionsLength[row] = copyOptions(
      this.options,
      this.written % OPTIONS,
      view,
      options,
      optionsLength,
      little,
      OPTION.EPB_HASH,
    )
    this.written += this.optionsLength[row]
  }
}
