// What the tests of capture files share: scratch files, a reader and a writer back to back, and the tools that judge them.
import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { afterAll } from 'vitest'
import {
  type CaptureFormat,
  closeCapture,
  createCapture,
  Origins,
  openCapture,
  PcapReader,
  type PcapReaderOptions,
  PcapWriter,
} from '../../src/device/pcap.ts'
import { Batch } from '../../src/memory/batch.ts'
import { StageCounters } from '../../src/memory/counters.ts'
import { createPool, Pool } from '../../src/memory/pool.ts'

export const FIXTURES = new URL('../../fixtures/captures/', import.meta.url).pathname
export const fixture = (name: string) => join(FIXTURES, name)

/** Every shipped capture, as a path under fixtures/captures. */
export const captures = readdirSync(FIXTURES, { recursive: true, withFileTypes: true })
  .filter(entry => entry.isFile())
  .map(entry => relative(FIXTURES, join(entry.parentPath ?? entry.path, entry.name)))
  .sort()

const scratch = mkdtempSync(join(tmpdir(), 'detour-test-'))
afterAll(() => rmSync(scratch, { recursive: true }))
export const temporary = (name: string) => join(scratch, name)

export const newPool = (frames = 64, frameSize = 300_000) => new Pool(createPool({ frames, frameSize, headroom: 448 }))
const shared = newPool()

/** The first of the tools that is not installed, or an empty string. */
export const missing = ['tshark', 'editcap', 'capinfos', 'mergecap', 'tcpdump'].find(
  tool => spawnSync(tool, ['--version']).error !== undefined,
)
export const title = (name: string) => (missing === undefined ? name : `${name} (skipped: no ${missing})`)

/** Runs a tool that must succeed. */
export function run(tool: string, ...args: string[]): SpawnSyncReturns<string> {
  const result = spawnSync(tool, args, { encoding: 'utf8', maxBuffer: 1 << 28 })
  if (result.status !== 0) throw new Error(`${tool} ${args.join(' ')}: ${result.stderr}`)
  return result
}

/** One line a packet: tshark's values of the fields. */
export function fields(path: string, ...names: string[]): string[] {
  const options = names.flatMap(name => ['-e', name])
  const { stdout } = spawnSync('tshark', ['-r', path, '-T', 'fields', ...options], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  })
  return stdout.split('\n').slice(0, -1)
}

/** Opens a capture and reads it to its end; `each` sees every batch while its frames are held. */
export async function read(
  path: string,
  each: (pool: Pool, batch: Batch) => void = () => {},
  options: PcapReaderOptions & { pool?: Pool } = {},
) {
  const { pool = shared } = options
  const file = await openCapture(path)
  const counters = new StageCounters('receive')
  const reader = new PcapReader(pool, counters, file, options)
  const batch = new Batch(16)
  while (!reader.exhausted) {
    reader.receive(batch)
    each(pool, batch)
    pool.freeAll(batch)
  }
  closeCapture(file)
  return { reader, counters, file }
}

/** Copies a capture through frames; with `origins` as a converter does. */
export async function copy(path: string, to: string, format?: CaptureFormat, keepOrigins = true) {
  const pool = shared
  const file = await openCapture(path)
  const origins = keepOrigins ? new Origins(file.format, 1024) : undefined
  const reader = new PcapReader(pool, new StageCounters('receive'), file, { origins })
  const output = createCapture(to, file)
  const counters = new StageCounters('transmit')
  const writer = new PcapWriter(pool, counters, output, { format: format ?? file.format, origins })
  const batch = new Batch(16)
  while (!reader.exhausted) {
    reader.receive(batch)
    writer.transmit(batch)
  }
  writer.close()
  closeCapture(file)
  closeCapture(output)
  return { reader, writer, counters, available: pool.available === pool.frames }
}
