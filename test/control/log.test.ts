// The log as whoever reads its lines sees it.

import { spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { openLog } from '../../src/control/log.ts'
import { Alarms } from '../../src/node/alarm.ts'

const HOSTILE = 'web\n{"level":"error"}\r2026-01-01T00:00:00Z error forged\u2028\u202e\x1b[2J'

function written(format: 'json' | 'text', use: (log: ReturnType<typeof openLog>) => void): string[] {
  const file = join(mkdtempSync(join(tmpdir(), 'detour-log-')), 'log')
  const fd = openSync(file, 'a')
  use(openLog({ level: 'info', format, fd }))
  closeSync(fd)
  return readFileSync(file, 'utf8').split('\n').slice(0, -1)
}

test('JSON: a line an event, with fields, whatever stands in them', () => {
  const lines = written('json', log => {
    log(`pod ${HOSTILE} attached`, { event: 'attached', attachment: HOSTILE, component: 'pods' })
    log('not wanted', { level: 'debug' })
    log('plain')
  })
  expect(lines).toHaveLength(2)
  const [first, second] = lines.map(line => JSON.parse(line))
  expect(first).toEqual({
    ...{ level: 'info', time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/), pid: process.pid },
    ...{ event: 'attached', attachment: HOSTILE, component: 'pods', msg: `pod ${HOSTILE} attached` },
  })
  expect(Object.keys(second)).toEqual(['level', 'time', 'pid', 'msg'])
})

test('text: a line an event, nothing in it steers a terminal', () => {
  const lines = written('text', log => log(`pod ${HOSTILE}`, { level: 'warn', attachment: HOSTILE }))
  expect(lines).toHaveLength(1)
  expect(lines[0]).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z warn {2}pod web\\u000a/)
  expect(lines[0]).not.toMatch(/[\p{Cc}\p{Cf}\u2028]/u)
  expect(lines[0]).toContain('(attachment="web\\n')
})

test('alarms are warnings that programs can tell apart', () => {
  let now = 0
  const lines = written('json', log => {
    const alarms = new Alarms(log, () => now)
    alarms.raise('uplink eth0', 'uplink eth0 is down')
    alarms.clear('uplink eth0', 'uplink eth0 is up again')
    now = 5000
    alarms.tick()
    alarms.note('pod web', 'pod web was attached anew')
  })
  expect(lines.map(line => JSON.parse(line))).toEqual([
    expect.objectContaining({ level: 'warn', event: 'alarm raised', alarm: 'uplink eth0', msg: 'uplink eth0 is down' }),
    expect.objectContaining({ level: 'info', event: 'alarm cleared', alarm: 'uplink eth0' }),
    expect.objectContaining({ level: 'warn', event: 'alarm noted', alarm: 'pod web' }),
  ])
})

test('what was said right before a crash is there', () => {
  const program = `import { openLog } from './dist/src/control/log.js'
const log = openLog({ level: 'info', format: 'json' })
for (let i = 0; i < 1000; i++) log('line ' + i)
process.kill(process.pid, 'SIGKILL')`
  const { stdout, signal } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' })
  expect(signal).toBe('SIGKILL')
  expect(JSON.parse(stdout.trimEnd().split('\n').at(-1) as string).msg).toBe('line 999')
})

test('a reader that is gone ends nothing', () => {
  const program = `import { openLog } from './dist/src/control/log.js'
const log = openLog({ level: 'info', format: 'json' })
for (let i = 0; i < 1000; i++) log('line ' + i)
console.error('went on')`
  const { stderr } = spawnSync(
    'sh',
    ['-c', `"${process.execPath}" --input-type=module -e "$1" | true`, 'sh', program],
    {
      encoding: 'utf8',
    },
  )
  expect(stderr).toBe('went on\n')
})
