// Capture files: opened and created by the main thread before packets flow. What comes out is plain data that passes
// through workerData; a descriptor belongs to the process, and whoever opened it closes it.
import { closeSync, fstatSync, openSync, read, readSync, statSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { finished } from 'node:stream/promises'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { createGunzip } from 'node:zlib'
import { DetourError } from '../errors.ts'
import { linkHeader, READABLE } from '../wire/linktype.ts'
import { FILE_HEADER, isPcap, readHeader } from '../wire/pcap.ts'
import { isPcapng } from '../wire/pcapng.ts'

/** File formats; `pcap` has microseconds, `pcap-ns` nanoseconds. */
export type CaptureFormat = 'pcap' | 'pcap-ns' | 'pcapng'

/** A capture file that is open for reading; any number of readers may share it, because they read by position. */
export interface CaptureFile {
  /** What people see; `-` is standard input. */
  name: string
  fd: number
  /** Bytes, decompressed. */
  size: number
  format: CaptureFormat
  /** Why decompression stopped short, if it did: readers report it when they have read what there is. */
  fault?: string
  /** What was named: the file itself, even where its content was copied. */
  origin?: { dev: number; ino: number }
}

/** A file that is open for writing. */
export interface OutputFile {
  name: string
  fd: number
  /** A capture that runs along ends when it holds so many bytes of packets. */
  limitBytes?: number
}

const GZIP = 0x1f8b

const readAsync = promisify(read)

/**
 * Opens a capture file, or standard input as `-`. Input that is compressed by gzip, or that cannot be read by position, is first
 * copied to a temporary file without a name, so memory stays flat. Throws DetourError when there is no capture to read.
 */
export async function openCapture(path: string): Promise<CaptureFile> {
  const name = path === '-' ? 'standard input' : path
  let fd = path === '-' ? 0 : open(path, 'r')
  try {
    const stat = fstatSync(fd)
    if (stat.isDirectory()) throw new DetourError('bad-file', `${name} is a directory, not a capture file`)
    let fault: string | undefined
    if (!stat.isFile() || magicOf(fd) === GZIP) {
      const from = fd
      fd = temporary()
      try {
        fault = await spool(from, fd, name)
      } finally {
        if (from !== 0) closeSync(from)
      }
    }
    const format = identify(fd, name, fault)
    const origin = { dev: stat.dev, ino: stat.ino }
    return { name, fd, size: fstatSync(fd).size, format, origin, ...(fault === undefined ? {} : { fault }) }
  } catch (error) {
    if (fd !== 0) closeSync(fd)
    throw error
  }
}

/** Closes the file; no reader may use it any more. */
export function closeCapture(file: CaptureFile | OutputFile): void {
  if (file.fd > 2) closeSync(file.fd)
}

/** Creates a file, or takes standard output as `-`. Throws DetourError, also when it is the file that is being read. */
export function createCapture(path: string, reading?: CaptureFile): OutputFile {
  if (path === '-') return { name: 'standard output', fd: 1 }
  if (reading !== undefined) refuseSame(path, reading)
  return { name: path, fd: open(path, 'w') }
}

// NB: never opens it: a named pipe would wait for its other end.
function refuseSame(path: string, { origin }: CaptureFile): void {
  const there = statSync(path, { throwIfNoEntry: false })
  if (there?.isFile() && there.dev === origin?.dev && there.ino === origin.ino)
    throw new DetourError('usage', `${path} is the file that is being read: write to another`)
}

function open(path: string, flags: string, mode = 0o666): number {
  try {
    return openSync(path, flags, mode)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new DetourError('not-found', `${path}: no such file or directory`, { cause: error })
    if (code === 'EACCES') throw new DetourError('permission', `${path}: permission denied`, { cause: error })
    throw new DetourError('system', `${path}: ${message}`, { cause: error })
  }
}

function temporary(): number {
  const path = join(tmpdir(), `detour-${process.pid}-${Math.random().toString(36).slice(2)}`)
  const fd = open(path, 'wx+', 0o600)
  unlinkSync(path)
  return fd
}

// Copies and decompresses; resolves to what is wrong with the compressed data, if something is.
async function spool(from: number, to: number, name: string): Promise<string | undefined> {
  // NB: what is no capture may be endless: its first bytes are enough for `identify` to refuse it.
  let hopeless: boolean | undefined
  const keep = (bytes: Buffer) => {
    hopeless ??= bytes.length >= 4 && !isCapture(bytes)
    for (let at = 0; at < bytes.length; ) at += writeSync(to, bytes, at)
  }
  const chunk = Buffer.allocUnsafe(1 << 18)
  let have = await fill(from, chunk, 2)
  const gunzip = have >= 2 && chunk.readUInt16BE() === GZIP ? createGunzip() : undefined
  let fault: string | undefined
  let failed: Error | undefined
  gunzip?.on('error', error => (fault ??= `gzip: ${error.message}`))
  gunzip?.on('data', bytes => {
    try {
      keep(bytes)
    } catch (error) {
      failed ??= error as Error
    }
  })
  try {
    for (; have > 0 && fault === undefined && !hopeless; have = await fill(from, chunk, 1)) {
      const bytes = chunk.subarray(0, have)
      if (gunzip === undefined) keep(bytes)
      else await new Promise(resolve => gunzip.write(bytes, resolve))
      if (failed !== undefined) throw failed
    }
    if (hopeless) gunzip?.destroy()
    else if (gunzip !== undefined && fault === undefined) {
      gunzip.end()
      await finished(gunzip).catch(() => {})
    }
    if (failed !== undefined) throw failed
  } catch (error) {
    throw new DetourError('system', `${name}, copied to ${tmpdir()}: ${(error as Error).message}`, { cause: error })
  }
  return fault
}

// Reads at least `least` bytes unless the file ends, and returns how many.
async function fill(fd: number, chunk: Buffer, least: number): Promise<number> {
  for (let have = 0; ; ) {
    try {
      const { bytesRead } = await readAsync(fd, chunk, have, chunk.length - have, null)
      have += bytesRead
      if (bytesRead === 0 || have >= least) return have
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
      await setTimeout(5)
    }
  }
}

function magicOf(fd: number): number {
  const two = Buffer.alloc(2)
  return readSync(fd, two, 0, 2, 0) === 2 ? two.readUInt16BE() : 0
}

function isCapture(bytes: Buffer): boolean {
  const v = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return isPcap(v, 0) || isPcapng(v, 0)
}

function identify(fd: number, name: string, fault: string | undefined): CaptureFormat {
  const bytes = new Uint8Array(FILE_HEADER)
  const got = readSync(fd, bytes, 0, FILE_HEADER, 0)
  const bad = (what: string) =>
    new DetourError('bad-file', `${name}: offset 0: ${what}${fault === undefined ? '' : ` (${fault})`}`)
  if (got === 0) throw bad('the file is empty; expected a pcap or pcapng capture')
  const v = new DataView(bytes.buffer)
  if (got >= 4 && isPcapng(v, 0)) return 'pcapng'
  if (got < 4 || !isPcap(v, 0)) {
    const magic = Buffer.from(bytes.subarray(0, Math.min(got, 4))).toString('hex')
    throw bad(`the file starts with ${magic}, which is neither pcap nor pcapng nor gzip`)
  }
  if (got < FILE_HEADER) throw bad(`the file ends after ${got} of the ${FILE_HEADER} bytes of a pcap file header`)
  const header = readHeader(v, 0)
  if (header === undefined) throw bad('the file header is of a pcap version other than 2')
  if (linkHeader(header.linktype) < 0) throw bad(unreadable(header.linktype))
  return header.nanoseconds ? 'pcap-ns' : 'pcap'
}

/** The sentence for a link type that cannot be read. */
export function unreadable(linktype: number): string {
  return `packets of link type ${linktype} cannot be read; these can: ${READABLE}`
}
