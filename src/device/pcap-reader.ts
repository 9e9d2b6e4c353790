// Reads a capture file into frames of the pool, as fast as asked or paced.
//
// The file is read in chunks by position, so that several threads can read one descriptor; each packet is copied once,
// from the chunk into its frame. `receive` never throws: what is wrong with the file ends it and is kept in `fault`.
import { readSync } from 'node:fs'
import { DROP } from '../drop.ts'
import { DetourError } from '../errors.ts'
import type { Batch } from '../memory/batch.ts'
import { copyBytes } from '../memory/copy.ts'
import type { StageCounters } from '../memory/counters.ts'
import type { Pool } from '../memory/pool.ts'
import { HEADER as ETHERNET_HEADER } from '../wire/ethernet.ts'
import { LINKTYPE, linkHeader, linkProtocol, writeLink } from '../wire/linktype.ts'
import { FILE_HEADER, type PcapHeader, readHeader, readRecord } from '../wire/pcap.ts'
import { isPacket, readBlock, Section } from '../wire/pcapng.ts'
import { FAULT, faultText, PacketRecord } from '../wire/record.ts'
import type { Device } from './device.ts'
import { type CaptureFile, unreadable } from './pcap-file.ts'
import type { Origins } from './pcap-origins.ts'
import type { Pieces } from './pcap-pieces.ts'

/** `max`: at once; `1x`: by the file's timestamps; a number: packets a second. */
export type Rate = 'max' | '1x' | number

export interface PcapReaderOptions {
  /** `max` when not given. */
  rate?: Rate
  /** Milliseconds that only grow; `performance.now` when not given. */
  clock?: () => number
  /** Where to keep what a frame cannot hold, for a PcapWriter in the same thread. */
  origins?: Origins
  /** A pcap file that other threads read too: packets come after `nextPiece`. */
  pieces?: Pieces
}

/** Holds the largest record; a block that is larger is passed over. */
const CHUNK = 1 << 20
/** Bytes a system call: more would leave the second-level cache before they are used. */
const READ = 1 << 18
/** Bytes of a piece; above the largest record. */
const PIECE = 2 * READ

/** Receives the packets of a capture file; transmitting to it drops. `close` leaves the descriptor to whoever opened it. */
export class PcapReader implements Device {
  readonly name: string
  readonly capabilities = 0
  readonly fd = -1
  /** Set when the file ended by a fault; all packets before it have been received. */
  fault: DetourError | undefined = undefined
  /** Packets read so far. */
  packets = 0

  private readonly pool: Pool
  private readonly counters: StageCounters
  private readonly file: CaptureFile
  private readonly origins: Origins | undefined
  private readonly pieces: Pieces | undefined
  private readonly rate: Rate
  private readonly clock: () => number

  private readonly chunk = new Uint8Array(CHUNK)
  private readonly view = new DataView(this.chunk.buffer)
  /** The chunk's offset in the file, and the part of it that is not yet read. */
  private base = 0
  private at = 0
  private end = 0

  private readonly header: PcapHeader | undefined
  private readonly section = new Section()
  private readonly record = new PacketRecord()
  /** The record is filled and not yet received. */
  private ready = false
  private done = false
  /** Behind the bytes at hand another piece begins. */
  private cut = false

  /** Clock at the first packet that has a time, and that time in ms. */
  private begun = Number.NaN
  private first = 0
  private released = 0

  constructor(pool: Pool, counters: StageCounters, file: CaptureFile, options: PcapReaderOptions = {}) {
    this.pool = pool
    this.counters = counters
    this.file = file
    this.name = `pcap:${file.name}`
    this.origins = options.origins
    this.pieces = options.pieces
    this.rate = options.rate ?? 'max'
    this.clock = options.clock ?? (() => performance.now())
    if (file.format !== 'pcapng' && this.load()) {
      this.header = readHeader(this.view, 0)
      this.at = FILE_HEADER
    }
    // Nothing is there to receive before the first piece.
    this.done = this.done || options.pieces !== undefined
  }

  get exhausted(): boolean {
    return this.done
  }

  /** Bytes of the file that were read, for progress: of `file.size`. */
  get position(): number {
    return this.base + this.at
  }

  /** Appends the packets that are due; an empty pool or a full batch just ends the turn, for a file can wait. */
  receive(batch: Batch): number {
    const { pool, rate } = this
    const paced = rate !== 'max'
    const now = paced ? this.clock() : 0
    const before = batch.length
    let bytes = 0
    while (batch.room > 0 && pool.available > 0 && (this.ready || this.next())) {
      if (paced && this.dueAt(now) > now) break
      const frame = this.take()
      if (frame < 0) continue
      bytes += pool.length[frame]
      batch.push(frame)
    }
    const received = batch.length - before
    this.counters.received(received, bytes)
    this.counters.copied(bytes)
    return received
  }

  /** Goes to this thread's next piece of the file; false when there is none. */
  nextPiece(): boolean {
    const { pieces } = this
    if (pieces === undefined || !pieces.awaitRead()) return false
    this.base = pieces.position
    this.packets = pieces.packets
    this.at = 0
    this.end = 0
    while (this.fault === undefined && this.end < PIECE && this.load()) {}
    const records = this.cutPiece()
    pieces.passRead(this.base + this.end, this.packets + records, !this.cut)
    // What could not be read is behind this piece, so that is for the thread whose piece would begin with it.
    if (this.cut) this.fault = undefined
    this.done = this.fault !== undefined
    return true
  }

  /** Milliseconds until the next packet is due: 0 when it is, or when nothing more will come. */
  nextDue(): number {
    if (this.rate === 'max' || (!this.ready && !this.next())) return 0
    const now = this.clock()
    const wait = this.dueAt(now) - now
    return Math.max(wait, 0)
  }

  /** Drops and frees: a file that is being read takes no packets. */
  transmit(batch: Batch): void {
    this.counters.dropped(DROP.DEVICE_ERROR, batch.length)
    this.pool.freeAll(batch)
  }

  close(): void {
    this.done = true
    this.ready = false
  }

  // The clock's time at which the record that is ready is due. A simple pcapng block has no time: it is due at once.
  private dueAt(now: number): number {
    const { record, rate } = this
    if (rate === '1x' && record.interface < 0) return now
    const time = record.seconds * 1000 + record.nanoseconds / 1e6
    if (Number.isNaN(this.begun)) {
      this.begun = now
      this.first = time
    }
    return this.begun + (rate === '1x' ? time - this.first : (this.released * 1000) / (rate as number))
  }

  // Moves the record that is ready into a frame; -1 when it is no packet that a frame can hold, which is counted.
  private take(): number {
    const { pool, record, chunk } = this
    this.ready = false
    this.released++
    const number = this.packets++
    const link = linkHeader(record.linktype)
    const ethernet = record.linktype === LINKTYPE.ETHERNET ? 0 : ETHERNET_HEADER
    const payload = record.captured - link
    if (payload < 0) return this.refuse(DROP.ETHERNET_TRUNCATED)
    const length = ethernet + payload
    if (length > pool.frameSize - pool.headroom) return this.refuse(DROP.OVERSIZED)
    const frame = pool.alloc()
    const start = pool.start[frame]
    if (ethernet !== 0) {
      const end = record.data + record.captured
      writeLink(pool.bytes, start, linkProtocol(chunk, record.data, end, record.linktype))
    }
    copyBytes(pool.view, start + ethernet, this.view, record.data + link, payload)
    pool.length[frame] = length
    pool.time[frame] = record.seconds * 1000 + record.nanoseconds / 1e6
    pool.seconds[frame] = record.seconds
    pool.nanoseconds[frame] = record.nanoseconds
    pool.sequence[frame] = number
    this.origins?.note(number, this.view, record, this.section.little)
    return frame
  }

  private refuse(reason: number): number {
    this.counters.received(1, this.record.captured)
    this.counters.dropped(reason)
    return -1
  }

  // Fills the record with the next packet; false at the end of the file.
  private next(): boolean {
    while (!this.done) {
      const { view, header, section, record, at, end } = this
      const size =
        header !== undefined ? readRecord(view, at, end, header, record) : readBlock(view, at, end, section, record)
      if (size > 0) {
        this.at = at + size
        if (header === undefined && !isPacket(section)) {
          this.origins?.pass(this.packets, view, at, section)
          continue
        }
        if (linkHeader(record.linktype) < 0) return this.stop(at, unreadable(record.linktype))
        this.ready = true
        return true
      }
      if (size < 0) return this.stop(at, faultText(-size))
      this.refill()
    }
    return false
  }

  // Cuts what is at hand behind its last whole record and returns how many there are. Where there is none the file ends,
  // well or badly, and the record reader will tell.
  private cutPiece(): number {
    const { view, header, record, end } = this
    let at = 0
    let records = 0
    while (header !== undefined) {
      const size = readRecord(view, at, end, header, record)
      if (size <= 0) break
      at += size
      records++
    }
    this.cut = records > 0
    if (this.cut) this.end = at
    return records
  }

  // Gets more of the file behind the record that was cut off, or ends it.
  private refill(): void {
    const { section } = this
    if (this.cut) this.done = true
    else if (section.length > CHUNK && this.header === undefined) {
      if (isPacket(section)) this.stop(this.at, faultText(FAULT.BLOCK_LARGE))
      else this.skip(section.length)
    } else if (!this.load() && !this.done) {
      const { at, end } = this
      if (at < end) this.stop(at, faultText(FAULT.TRUNCATED))
      else if (this.file.fault !== undefined) this.stop(at, this.file.fault)
      else this.done = true
    }
  }

  // Passes over a block that is larger than the chunk and of no use.
  private skip(length: number): void {
    const { at, origins } = this
    const next = this.base + at + length
    if (next > this.file.size) {
      this.stop(at, faultText(FAULT.TRUNCATED))
      return
    }
    if (origins !== undefined) origins.lostBlocks++
    this.base = next
    this.at = 0
    this.end = 0
  }

  // Moves the unread bytes to the front and reads behind them; false when the file has no more.
  private load(): boolean {
    const { chunk } = this
    if (this.at > 0) {
      chunk.copyWithin(0, this.at, this.end)
      this.base += this.at
      this.end -= this.at
      this.at = 0
    }
    try {
      const room = Math.min(READ, CHUNK - this.end)
      const read = readSync(this.file.fd, chunk, this.end, room, this.base + this.end)
      this.counters.called()
      this.end += read
      return read > 0
    } catch (error) {
      return this.stop(0, (error as Error).message)
    }
  }

  private stop(at: number, what: string): false {
    const { name } = this.file
    const text = `${name}: offset ${this.base + at}: ${what} (packets read before it: ${this.packets})`
    this.fault = new DetourError('bad-file', text)
    this.done = true
    return false
  }
}
