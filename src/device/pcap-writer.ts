// Writes frames to a capture file through one large buffer. Link type Ethernet, little-endian, snaplen 262144.
import { writeSync } from 'node:fs'
import { DROP } from '../drop.ts'
import { DetourError } from '../errors.ts'
import type { Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import { COLUMN, type StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { LINKTYPE } from '../wire/linktype.ts'
import { type PcapHeader, RECORD_HEADER, writeHeader, writeRecord } from '../wire/pcap.ts'
import {
  ENHANCED_HEADER,
  FLAGS_SIZE,
  type Interface,
  pad,
  SIMPLE_HEADER,
  writeEnhanced,
  writeFlags,
  writeInterface,
  writeSection,
  writeSimple,
} from '../wire/pcapng.ts'
import { MAX_CAPTURED } from '../wire/record.ts'
import type { Device } from './device.ts'
import type { CaptureFormat, OutputFile } from './pcap-file.ts'
import type { Origins } from './pcap-origins.ts'
import type { Pieces } from './pcap-pieces.ts'

export interface PcapWriterOptions {
  /** `pcapng` when not given. */
  format?: CaptureFormat
  /**
   * What the reader of the same thread knows of each packet: its length on the wire and, from pcapng to pcapng, byte
   * order, sections, interfaces, options and blocks that are no packets.
   */
  origins?: Origins
  /** Other threads write the same pcap file: a piece is written with `endPiece`. */
  pieces?: Pieces
}

/** Directions of a packet, as in epb_flags; NONE writes no flags. */
export const DIRECTION = { NONE: 0, RECEIVED: 1, TRANSMITTED: 2 } as const

// Bytes a system call: more would leave the second-level cache before they are written.
const FLUSH = 1 << 18
// A piece should fit, for a thread that must write in the middle of it waits for its turn.
const FLUSH_PIECE = 1 << 20
// Behind the flush mark there is room for one more packet with options, or one more block that was read whole.
const RESERVE = 2 << 20

/** Transmits to a capture file; receives nothing. `close` flushes and leaves the descriptor to whoever opened it. */
export class PcapWriter implements Device {
  readonly name: string
  readonly capabilities = 0
  readonly fd = -1
  readonly exhausted = true
  /** Set when the file could not be written; from then on packets are dropped. */
  fault: DetourError | undefined = undefined

  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly file: OutputFile
  private readonly origins: Origins | undefined
  private readonly pieces: Pieces | undefined
  private readonly mark: number
  /** Sections and interfaces come from the file that is read. */
  private readonly mirror: boolean
  /** pcap's file header; undefined for pcapng. */
  private readonly header: PcapHeader | undefined
  private readonly buffer: Uint8Array
  private readonly view: DataView
  private at = 0
  /** Packets in the buffer, and their bytes. */
  private waiting = 0
  private waitingBytes = 0
  private little = true
  private interfaces: Interface[] = []

  constructor(pool: Pool, counters: StageCounters, file: OutputFile, options: PcapWriterOptions = {}) {
    const { format = 'pcapng', origins, pieces } = options
    this.pool = pool
    this.counters = counters
    this.file = file
    this.name = `pcap:${file.name}`
    this.origins = origins
    this.pieces = pieces
    this.mark = pieces === undefined ? FLUSH : FLUSH_PIECE
    this.mirror = format === 'pcapng' && origins?.format === 'pcapng'
    this.buffer = new Uint8Array(this.mark + RESERVE + pool.frameSize)
    this.view = new DataView(this.buffer.buffer)
    if (format === 'pcapng') {
      if (!this.mirror) this.at = writeSection(this.view, 0, 'Detour')
    } else {
      const nanoseconds = format === 'pcap-ns'
      this.header = { little: true, nanoseconds, snaplen: MAX_CAPTURED, linktype: LINKTYPE.ETHERNET, fcs: 0 }
      if (pieces === undefined || pieces.first) this.at = writeHeader(this.view, 0, this.header)
    }
  }

  /** Describes an interface of a pcapng file and returns its number. */
  addInterface(name: string): number {
    this.at += writeInterface(this.view, this.at, LINKTYPE.ETHERNET, MAX_CAPTURED, name)
    return (
      this.interfaces.push({ linktype: LINKTYPE.ETHERNET, snaplen: MAX_CAPTURED, ticks: 1e9, offset: 0, fcs: 0 }) - 1
    )
  }

  /** Bytes of packets written so far. */
  get packetBytes(): number {
    return this.counters.row[COLUMN.OUT_BYTES]
  }

  receive(): number {
    return 0
  }

  /** Writes every frame of the batch with its capture time, and frees it. */
  transmit(batch: Batch): void {
    const { pool } = this
    const { seconds, nanoseconds } = pool
    for (let i = 0; i < batch.length; i++) {
      const frame = batch.frames[i]
      this.write(frame, seconds[frame], nanoseconds[frame], 0, DIRECTION.NONE)
    }
    pool.freeAll(batch)
  }

  /** Writes a frame, which stays with the caller. Counts it as sent or dropped. */
  write(frame: number, seconds: number, nanoseconds: number, interfaceNumber: number, direction: number): void {
    const { pool, counters, header, view, origins } = this
    const length = pool.length[frame]
    if (this.at >= this.mark) this.flush()
    if (this.fault !== undefined || length > MAX_CAPTURED) {
      counters.dropped(this.fault === undefined ? DROP.OVERSIZED : DROP.DEVICE_ERROR)
      return
    }
    const row = origins === undefined ? -1 : origins.row(pool.sequence[frame])
    const original = row < 0 ? length : length + origins!.missingOf(row)
    if (header !== undefined) {
      writeRecord(view, this.at, header, seconds, nanoseconds, length, original)
      copyBytes(view, this.at + RECORD_HEADER, pool.view, pool.start[frame], length)
      this.at += RECORD_HEADER + length
    } else if (this.mirror) {
      this.passBlocks(pool.sequence[frame])
      if (!this.mirrored(frame, row, original, seconds, nanoseconds)) {
        counters.dropped(DROP.DEVICE_ERROR)
        return
      }
    } else this.enhanced(frame, original, seconds, nanoseconds, interfaceNumber, direction)
    counters.sent(1, length)
    counters.copied(length)
    this.waiting++
    this.waitingBytes += length
  }

  /** Hands what is buffered to the kernel; never throws. */
  flush(): void {
    let from = 0
    if (this.at > 0) this.pieces?.awaitWrite()
    while (from < this.at && this.fault === undefined) {
      try {
        from += writeSync(this.file.fd, this.buffer, from, this.at - from)
        this.counters.called()
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EAGAIN') Atomics.wait(sleeper, 0, 0, 1)
        else this.fail(error as Error)
      }
    }
    this.at = 0
    this.waiting = this.waitingBytes = 0
  }

  // What is in the buffer was counted as sent.
  private fail(cause: Error): void {
    this.fault = new DetourError('system', `${this.file.name}: ${cause.message}`, { cause })
    this.counters.sent(-this.waiting, -this.waitingBytes)
    this.counters.dropped(DROP.DEVICE_ERROR, this.waiting)
  }

  /** Writes what is left of the piece, and lets the thread that has the next one write. */
  endPiece(): void {
    this.flush()
    this.pieces?.passWrite()
  }

  close(): void {
    if (this.mirror) this.passBlocks(Number.POSITIVE_INFINITY)
    else if (this.header === undefined && this.interfaces.length === 0) this.addInterface('')
    this.flush()
  }

  // Writes a packet of our own.
  private enhanced(
    frame: number,
    original: number,
    seconds: number,
    nanoseconds: number,
    number: number,
    direction: number,
  ): void {
    const { pool, view, interfaces } = this
    if (interfaces.length === 0) this.addInterface('')
    const { at } = this
    const length = pool.length[frame]
    const options = direction === DIRECTION.NONE ? 0 : FLAGS_SIZE
    copyBytes(view, at + ENHANCED_HEADER, pool.view, pool.start[frame], length)
    if (options > 0) writeFlags(view, at + ENHANCED_HEADER + pad(length), direction)
    this.at += writeEnhanced(
      view,
      at,
      true,
      number,
      interfaces[number],
      seconds,
      nanoseconds,
      length,
      original,
      options,
    )
  }

  // Writes a packet in the manner of the file that is read; false when that has described no interface yet.
  private mirrored(frame: number, row: number, original: number, seconds: number, nanoseconds: number): boolean {
    const { pool, view, little } = this
    const { interfaces, at } = this
    if (interfaces.length === 0) return false
    const length = pool.length[frame]
    const number = row < 0 ? 0 : this.origins!.interfaceOf(row)
    if (number < 0 && original === length) {
      copyBytes(view, at + SIMPLE_HEADER, pool.view, pool.start[frame], length)
      this.at += writeSimple(view, at, little, length)
      return true
    }
    const options = row < 0 ? 0 : this.origins!.optionsOf(row)
    copyBytes(view, at + ENHANCED_HEADER, pool.view, pool.start[frame], length)
    if (options > 0) this.origins!.copyOptions(row, view, at + ENHANCED_HEADER + pad(length))
    const to = number < 0 || number >= interfaces.length ? 0 : number
    this.at += writeEnhanced(view, at, little, to, interfaces[to], seconds, nanoseconds, length, original, options)
    return true
  }

  // Writes the blocks that come before a record.
  private passBlocks(number: number): void {
    for (let block = this.origins!.take(number); block !== undefined; block = this.origins!.take(number)) {
      if (this.at >= this.mark) this.flush()
      if (block.little !== undefined) {
        this.little = block.little
        this.interfaces = []
      }
      if (block.described !== undefined) this.interfaces.push(block.described)
      this.buffer.set(block.bytes, this.at)
      this.at += block.bytes.length
    }
  }
}

const sleeper = new Int32Array(new SharedArrayBuffer(4))
