// The parts that several workers of a replay write, to be put together: files without a name, which go away with their
// descriptors.

import { fstatSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { CaptureFile, OutputFile } from '../device/pcap.ts'
import { DetourError } from '../errors.ts'

const CHUNK = 1 << 20

/** Opens a file without a name, for writing and reading; people see what it `is`. Throws DetourError. */
export function scratch(is: string): OutputFile {
  try {
    const folder = mkdtempSync(join(tmpdir(), 'detour-'))
    const fd = openSync(join(folder, 'part'), 'wx+', 0o600)
    rmSync(folder, { recursive: true })
    return { name: `${is} in ${tmpdir()}`, fd }
  } catch (error) {
    throw new DetourError('system', `${is}: no file in ${tmpdir()} (${(error as Error).message})`, { cause: error })
  }
}

/** A part that was written as pcap with nanoseconds, to be read. */
export function rewound({ name, fd }: OutputFile): CaptureFile {
  return { name, fd, size: fstatSync(fd).size, format: 'pcap-ns' }
}

/** Copies all of a part behind what the file holds; returns what went wrong. */
export function append(to: OutputFile, from: OutputFile): string[] {
  const chunk = Buffer.allocUnsafe(CHUNK)
  try {
    for (let at = 0; ; ) {
      const read = readSync(from.fd, chunk, 0, CHUNK, at)
      if (read === 0) return []
      at += read
      for (let written = 0; written < read; ) written += writeSync(to.fd, chunk, written, read - written)
    }
  } catch (error) {
    return [`${to.name}: ${(error as Error).message}`]
  }
}
