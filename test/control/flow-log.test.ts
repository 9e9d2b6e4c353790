// The flow log as those that read and rotate it see it.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, renameSync, statSync, truncateSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeEach, expect, test } from 'vitest'
import { type FlowLine, openFlowLog } from '../../src/control/flow-log.ts'

let file: string
beforeEach(() => {
  file = join(mkdtempSync(join(tmpdir(), 'detour-flow-log-')), 'flows.jsonl')
})

const line = (sourcePort: number, attachment = 'a'): FlowLine => ({
  ...{ event: 'start', time: '2026-11-22T06:00:00.000Z', attachment, protocol: 'tcp' },
  ...{ source: '10.0.0.1', sourcePort, destination: '10.0.0.2', destinationPort: 443, verdict: 'steer' },
})
const ports = (path: string) =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter(text => text !== '')
    .map(text => JSON.parse(text).sourcePort)

test('lines are appended to what is there, for the owner alone to read', () => {
  const first = openFlowLog(file)
  first.write([line(1), line(2)])
  first.close()
  const second = openFlowLog(file)
  second.write([line(3)])
  second.write([])
  second.close()
  expect(ports(file)).toEqual([1, 2, 3])
  expect(statSync(file).mode & 0o777).toBe(0o600)
})

test('renamed and reopened: what comes then is in the new file', () => {
  const log = openFlowLog(file)
  log.write([line(1)])
  renameSync(file, `${file}.1`)
  log.write([line(2)])
  expect(existsSync(file)).toBe(false)
  log.reopen()
  log.write([line(3)])
  log.close()
  expect([ports(`${file}.1`), ports(file)]).toEqual([[1, 2], [3]])
})

test('truncated in place: it goes on at the start, without a hole', () => {
  const log = openFlowLog(file)
  log.write([line(1), line(2)])
  truncateSync(file)
  log.write([line(3)])
  log.close()
  expect(ports(file)).toEqual([3])
  expect(readFileSync(file).includes(0)).toBe(false)
})

test('a name from elsewhere stays in its line', () => {
  const log = openFlowLog(file)
  log.write([line(1, 'web\n{"event":"end"}\n')])
  log.close()
  expect(ports(file)).toEqual([1])
})

test('a full disk loses lines and counts them, and throws nothing', () => {
  const log = openFlowLog('/dev/full')
  log.write([line(1), line(2)])
  log.write([line(3)])
  expect(log.lost).toBe(3)
  log.close()
})

test('a disk that fills up in the middle of a line spoils no other', () => {
  const program = `import { truncateSync } from 'node:fs'
import { openFlowLog } from './dist/src/control/flow-log.js'
const [file, line] = process.argv.slice(1)
const log = openFlowLog(file)
log.write(new Array(20).fill(JSON.parse(line)))
truncateSync(file, 800)
log.write([JSON.parse(line)])
console.log(log.lost)`
  const one = JSON.stringify(line(7))
  // The file may not grow beyond 1 KiB.
  const script = `trap '' XFSZ; ulimit -f 1; exec "$0" --input-type=module -e "$1" "$2" "$3" | cat`
  const args = ['-c', script, process.execPath, program, file, one]
  const { stdout, stderr } = spawnSync('bash', args, { encoding: 'utf8' })
  const fits = Math.floor(1024 / (one.length + 1))
  expect([stderr, stdout]).toEqual(['', `${20 - fits}\n`])
  const lines = readFileSync(file, 'utf8').trimEnd().split('\n')
  expect(lines.at(-1)).toBe(one)
  expect(lines.filter(text => text !== one)).toHaveLength(1)
})

test('a file that cannot be opened says what to do; one that was open stays so', () => {
  expect(() => openFlowLog('/nonexistent/flows')).toThrow(/flowLog \/nonexistent\/flows: .*ENOENT.*; name a file/)
})
