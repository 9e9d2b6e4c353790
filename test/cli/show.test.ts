// detour show, as a process, against a control socket with a face that never was.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type ControlServer, serveControl } from '../../src/control/socket.ts'
import { type Fake, fakeSource } from '../control/fake.ts'
import { detour, start } from './run.ts'

let directory: string
let path: string
let fake: Fake
let server: ControlServer

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dtshow-'))
  path = join(directory, 'lab.sock')
  fake = fakeSource()
  server = await serveControl(fake.source, { path })
})

afterEach(async () => {
  await server.close()
  rmSync(directory, { recursive: true })
})

async function show(...args: string[]): Promise<string[]> {
  const { status, stdout, stderr } = await detour(['show', ...args, '--socket', path])
  expect([status, stderr]).toEqual([0, ''])
  expect(stdout).not.toContain('\x1b')
  const [introduction, ...lines] = stdout.trimEnd().split('\n')
  expect(introduction).toMatch(new RegExp(`^detour lab \\S+, process ${process.pid}, profile geneve, up `))
  return lines
}

const words = (line: string) => line.split(/ {2,}/)

describe('once', () => {
  test('stats: counters of every stage that did something', async () => {
    const lines = await show('stats')
    expect(words(lines[0]).slice(0, 4)).toEqual(['STAGE', 'IN', 'OUT', 'DROPPED'])
    expect(words(lines[1]).slice(0, 6)).toEqual(['decide', '1,234,567', '1,234,560', '7', '0', '99.0 MB'])
    expect(lines).toHaveLength(3)
    expect(await show('stats', '--all')).toHaveLength(4)
  })

  test('drops: stage, reason, packets and the sentence', async () => {
    const [, first, second, ...rest] = await show('drops')
    expect(words(first)).toEqual(['decide', 'policy', '4', 'a rule says drop'])
    expect(words(second).slice(0, 3)).toEqual(['decide', 'unknown-peer', '3'])
    expect(rest).toEqual([])
  })

  test('flows: filtered, sorted, limited', async () => {
    const lines = await show(
      'flows',
      '--filter',
      'verdict=steer',
      '--filter',
      'protocol=tcp',
      '--sort',
      'packets',
      '-n',
      '1',
    )
    expect(lines[0]).toBe('3 of at most 1,000 flows; 2 match, 1 shown')
    expect(words(lines[2])).toEqual([
      ...['tcp', '10.1.0.2:40001', '10.1.0.3:443', 'steer', '10', '640 B', '1', '60 B', '5.0 s', '100 ms'],
    ])
    expect(lines).toHaveLength(3)
  })

  test('attachments and underlay: rungs, heartbeat, fail mode, capabilities', async () => {
    expect(words((await show('attachments'))[1])).toEqual([
      ...['client', 'lab-client', 'eth0', '02:00:00:00:00:01', '10.1.0.2 fd00::2', '1500', 'closed'],
      ...['12 ms of 200 ms', 'tcx', 'tunnel-gso', '1,000', '0', '9', '4,321'],
    ])
    expect(words((await show('underlay'))[1])).toEqual([
      ...['tap:dtr0', 'geneve', '192.0.2.1', '192.0.2.2', '6081', '7', '1500', 'tunnel-gso', '-', 'checksum tso4'],
    ])
  })

  test('alarms: whether they hold, since when and how often', async () => {
    const lines = await show('alarms')
    expect(words(lines[1])).toEqual(['RAISED', '1.5 s', '3', 'uplink eth0 is down'])
    expect(words(lines[2]).slice(2)).toEqual(['1', 'endpoint 192.0.2.2 answers again'])
    const { alarms } = JSON.parse((await detour(['show', 'alarms', '--json', '--socket', path])).stdout)
    expect(alarms[0]).toMatchObject({ name: 'uplink eth0', raised: true, times: 3 })
  })

  test('endpoints: state, flows, and what their round trips stay under', async () => {
    const [title, ...lines] = await show('endpoints')
    expect(words(title).slice(-3)).toEqual(['P50', 'P99', 'MTU'])
    expect(lines.map(words)).toEqual([
      ['gw-a', '192.0.2.2', '3', 'up', '1m 1s', '2', '9', '8', '< 1 ms', '> 250 ms', '1450'],
      ['gw-b', '2001:db8::2', '1', 'DOWN', '500 ms', '0', '9', '0', '-', '-', '-'],
    ])
  })

  test('--json: everything, zero rows too', async () => {
    const { status, stdout } = await detour(['show', 'stats', '--json', '--socket', path])
    expect(status).toBe(0)
    const { info, stats } = JSON.parse(stdout)
    expect(info).toMatchObject({ face: 'lab', pid: process.pid })
    expect(stats.map((row: { stage: string }) => row.stage)).toEqual(['decide', 'encap', 'idle'])
    expect(stats[1]).toMatchObject({ worker: 'forward-0', outBytes: 160_000_000, created: -5 })
  })
})

describe('--watch', () => {
  test('shows rates from the second table on, and ends with Ctrl-C', async () => {
    const child = start(['show', 'stats', '--watch', '0.5', '--socket', path])
    const lines: string[] = []
    let tables = 0
    for await (const line of createInterface(child.stdout)) {
      lines.push(line)
      if (line !== '') continue
      if (++tables === 1) {
        fake.counters.stages[1].sent(50_000, 5_000_000)
        fake.counters.publish()
      } else if (tables === 2) child.kill('SIGINT')
    }
    const [status] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode]
    expect(status).toBe(0)
    const second = lines.slice(lines.indexOf('') + 1)
    expect(words(second[1])).toEqual(expect.arrayContaining(['IN/S', 'OUT/S', 'OUT RATE']))
    expect(lines[1]).not.toContain('OUT RATE')
    const encap = words(second.find(line => line.startsWith('encap'))!)
    expect(encap[2]).toBe('1,284,560')
    expect(encap.slice(4, 7)).toEqual(['0 pps', expect.stringMatching(/ kpps$/), expect.stringMatching(/ Mbit\/s$/)])
  })

  test('ends with an error when the face is gone', async () => {
    // NB: a question that is on its way when the face goes fails otherwise.
    const child = start(['show', 'drops', '--json', '--watch', '2', '--socket', path])
    let stderr = ''
    child.stderr.setEncoding('utf8').on('data', text => (stderr += text))
    const [first] = await once(createInterface(child.stdout), 'line')
    expect(JSON.parse(first).drops).toHaveLength(2)
    await server.close()
    const [status] = await once(child, 'close')
    expect([status, stderr]).toEqual([1, `detour: control socket ${path}: the other side closed the connection\n`])
  })

  test('redraws a terminal and leaves it as it was', () => {
    const inner = `"${process.execPath}" dist/src/cli/main.js show drops --watch 0.1 --socket "${path}"`
    const script = `import os, pty, sys, signal
pid, fd = pty.fork()
if pid == 0: os.execvp('sh', ['sh', '-c', 'exec ' + sys.argv[1]])
seen = b''
while seen.count(b'\\x1b[H') < 3: seen += os.read(fd, 65536)
os.write(fd, b'\\x03')
try:
  while True:
    more = os.read(fd, 65536)
    if not more: break
    seen += more
except OSError: pass
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`
    const env = { ...process.env, TERM: 'xterm', NO_COLOR: '' }
    // The server lives in this process, so the child must not block it.
    return new Promise<void>((resolve, reject) => {
      const child = spawn('python3', ['-c', script, inner], { env })
      const chunks: Buffer[] = []
      child.stdout.on('data', chunk => chunks.push(chunk))
      child.on('close', status => {
        try {
          const text = Buffer.concat(chunks).toString()
          expect(status, text).toBe(0)
          expect(text.startsWith('\x1b[?25l\x1b[?7l')).toBe(true)
          expect(text).toContain('\x1b[1mSTAGE')
          expect(text.trimEnd().endsWith('\x1b[?7h\x1b[?25h')).toBe(true)
          resolve()
        } catch (error) {
          reject(error)
        }
      })
    })
  })
})

describe('without --socket', () => {
  test('the only live one is taken', async () => {
    const { status, stdout } = await detour(['show', 'drops'], { DETOUR_RUN_DIR: directory })
    expect([status, stdout.split('\n').length]).toEqual([0, 5])
  })

  test('several are listed, and that is wrong usage', async () => {
    const second = await serveControl(fake.source, { path: join(directory, 'gateway.sock') })
    const { status, stderr } = await detour(['show', 'drops'], { DETOUR_RUN_DIR: directory })
    await second.close()
    expect(status).toBe(2)
    expect(stderr).toContain(`--socket ${path}   detour lab`)
    expect(stderr).toContain(`--socket ${join(directory, 'gateway.sock')}   detour lab`)
  })

  test('none is said, with where it looked', async () => {
    const { status, stderr } = await detour(['show', 'drops'], { DETOUR_RUN_DIR: '/nonexistent' })
    expect(status).toBe(1)
    expect(stderr).toContain('no detour is running: no socket in /nonexistent answers')
  })
})
