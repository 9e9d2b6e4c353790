// The verdict log of several workers: whole lines, whatever a sink takes at a time.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, mkdtempSync, openSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { fileSink, LineLog, type LogSink, sharedSink, type Verdict, VerdictLog } from '../../src/gateway/log.ts'
import { eveLine } from '../../src/gateway/suricata/eve.ts'
import { parseRules } from '../../src/gateway/suricata/parse.ts'
import { random } from '../wire/build.ts'

const verdict = (flow: number): Verdict => ({
  ...{ timeMs: 0, flow, protocol: 6, source: '10.0.0.1', sourcePort: 1, destination: '10.0.0.2', destinationPort: 2 },
  ...{ profile: 'geneve', vni: 1, rule: 'default', action: 'allow', packet: 1, bytes: 40, offset: -1 },
})

/** Writes verdicts of three workers in turn to a sink that takes a little at a time; the flows whose lines arrived whole. */
function flowsThrough(shared: (sink: LogSink, worker: number) => LogSink): number[] {
  let text = ''
  const r = random(3)
  const pipe: LogSink = block => {
    const taken = Math.min(block.length, r(150))
    text += new TextDecoder().decode(block.subarray(0, taken))
    return taken
  }
  const logs = [0, 1, 2].map(worker => new VerdictLog(shared(pipe, worker)))
  for (let flow = 0; flow < 300; flow++) {
    logs[flow % 3].write(verdict(flow))
    for (const log of logs) log.flush()
  }
  for (let i = 0; i < 2000; i++) for (const log of logs) log.flush()
  return text.split('\n').flatMap(line => {
    try {
      return [JSON.parse(line).flow]
    } catch {
      return []
    }
  })
}

test('long lines are not lost beside others, and too long ones are', () => {
  const lines: string[] = []
  const log = new LineLog(block => {
    lines.push(...new TextDecoder().decode(block).trimEnd().split('\n'))
    return block.length
  })
  const texts = [60_000, 100_000, 30, 131_071].map(length => 'x'.repeat(length))
  for (const text of texts) log.line(text)
  log.line('x'.repeat(131_072))
  log.end()
  expect(lines).toEqual(texts)
  expect(log.lost).toBe(1)
})

test('a full pipe is waited for where packets can wait, and not where they cannot', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'detour-log-'))
  const path = join(folder, 'pipe')
  execFileSync('mkfifo', [path])
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
  try {
    const block = Buffer.from(`${'x'.repeat(4095)}\n`)
    const [hasty, patient] = [fileSink(fd), fileSink(fd, true)]
    let filled = 0
    for (let taken = hasty(block); taken > 0; taken = hasty(block)) filled += taken
    const reader = spawn('sh', ['-c', `head -c ${filled + block.length} "$1" | wc -l`, 'sh', path])
    let count = ''
    reader.stdout.on('data', text => (count += text))
    const closed = once(reader, 'close')
    expect(patient(block)).toBe(block.length)
    await closed
    expect(Number(count)).toBe(filled / block.length + 1)
  } finally {
    closeSync(fd)
    rmSync(folder, { recursive: true })
  }
})

test('the time of a packet may be anything', () => {
  const lines: string[] = []
  const sink: LogSink = block => {
    lines.push(...new TextDecoder().decode(block).trimEnd().split('\n'))
    return block.length
  }
  const { signatures } = parseRules([{ file: 'x', text: 'alert ip any any -> any any (sid:1;)' }], {}, 'refuse')
  const times = [0, 1_700_000_000_123.5, 2 ** 64, -(2 ** 64)]
  const [log, eve] = [new VerdictLog(sink), new LineLog(sink)]
  for (const timeMs of times) log.write({ ...verdict(1), timeMs })
  log.end()
  for (const timeMs of times) eve.line(eveLine({ ...verdict(1), timeMs }, { signature: signatures[0], toServer: true }))
  eve.end()
  expect(lines.map(line => JSON.parse(line)).map(({ time, timestamp }) => time ?? timestamp)).toEqual([
    ...['1970-01-01T00:00:00.000Z', '2023-11-14T22:13:20.123Z'],
    ...['+275760-09-13T00:00:00.000Z', '-271821-04-20T00:00:00.000Z'],
    ...['1970-01-01T00:00:00.000000+0000', '2023-11-14T22:13:20.123500+0000'],
    ...['+275760-09-13T00:00:00.000000+0000', '-271821-04-20T00:00:00.000000+0000'],
  ])
})

test('lines of several workers come whole, each once', () => {
  const lock = new SharedArrayBuffer(4)
  const flows = flowsThrough((sink, worker) => sharedSink(sink, lock, worker))
  expect(flows.sort((a, b) => a - b)).toEqual(Array.from({ length: 300 }, (_, i) => i))
  expect(flowsThrough(sink => sink).length).toBeLessThan(300)
})
