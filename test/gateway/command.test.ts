// `detour gateway` as people run it: tunnel packets over UDP in, the same packets back, verdicts in a file.

import { type ChildProcess, execFileSync } from 'node:child_process'
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { detour, start } from '../cli/run.ts'
import { fixture } from './harness.ts'
import cases from './packets.json' with { type: 'json' }
import { freePort } from './ports.ts'

let directory: string
const children: ChildProcess[] = []
const sockets: Socket[] = []

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'detour-test-'))
})
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  for (const socket of sockets.splice(0)) socket.close()
  rmSync(directory, { recursive: true })
})

/** The tunnel packets of a case without their outer Ethernet, IP and UDP headers. */
function payloads(name: string, side: 'frames' | 'back' = 'frames'): string[] {
  const found = cases.find(each => each.name === name)
  if (found === undefined) throw new Error(`no case ${name}`)
  return found[side].map(hex => {
    const frame = Buffer.from(hex, 'hex')
    return frame.subarray(14 + (frame[14] >> 4 === 4 ? 20 : 40) + 8).toString('hex')
  })
}

interface Gateway {
  listening: Record<string, unknown>
  /** Sends SIGTERM and resolves with the last line, an event. */
  stop(): Promise<{ drops: { stage: string; reason: string; packets: number }[] }>
  /** Sends SIGTERM, expects that status, and resolves with all that was said. */
  end(status: number): Promise<string>
}

/** Starts the command and resolves when it says that it listens. */
async function gateway(listen: string, ...args: string[]): Promise<Gateway> {
  const files = ['--log', join(directory, 'log'), '--control', join(directory, 'control')]
  const child = start(['gateway', '--listen', listen, '--policy', fixture('example.yaml'), '--json', ...files, ...args])
  children.push(child)
  const closed = once(child, 'close')
  let out = ''
  child.stderr.on('data', data => (out += data))
  await new Promise<void>((resolve, reject) => {
    child.stdout.on('data', data => {
      out += data
      if (out.includes('\n')) resolve()
    })
    closed.then(() => reject(new Error(out)))
  })
  const end = async (status: number) => {
    child.kill('SIGTERM')
    expect((await closed)[0]).toBe(status)
    return out
  }
  return {
    listening: JSON.parse(out.split('\n')[0]),
    end,
    stop: async () => JSON.parse((await end(0)).trim().split('\n').at(-1)!),
  }
}

async function socket(address: string, port = 0): Promise<Socket> {
  const made = createSocket(address.includes(':') ? 'udp6' : 'udp4')
  sockets.push(made)
  made.bind(port, address)
  await once(made, 'listening')
  return made
}

/** Sends datagrams, then waits for as many as are expected. */
async function exchange(from: Socket, to: { address: string; port: number }, sent: string[], expected: number) {
  const back: { hex: string; port: number }[] = []
  const done = new Promise<void>(resolve =>
    from.on('message', (data, { port }) => {
      back.push({ hex: data.toString('hex'), port })
      if (back.length === expected) resolve()
    }),
  )
  for (const hex of sent) from.send(Buffer.from(hex, 'hex'), to.port, to.address)
  if (expected > 0) await done
  return back
}

const verdicts = () =>
  readFileSync(join(directory, 'log'), 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))

const DROPPED = 'drop'
const ALLOWED = 'VXLAN over IPv4 without checksum'

describe('detour gateway', () => {
  it('goes on while nobody reads its log, and says what was lost', async () => {
    const pipe = join(directory, 'log')
    execFileSync('mkfifo', [pipe])
    const reader = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK)
    const port = await freePort('127.0.0.1', '127.0.0.2')
    const running = await gateway(`127.0.0.1:${port}`)
    const node = await socket('127.0.0.2', port)
    const [first] = payloads('GENEVE over IPv4')
    // Each is a flow of another network, and a line of more than 200 bytes: a pipe holds 64 KiB.
    const vni = (n: number) => `${first.slice(0, 8)}${n.toString(16).padStart(6, '0')}${first.slice(14)}`
    for (let n = 1; n <= 1000; n += 10) {
      const sent = Array.from({ length: 10 }, (_, i) => vni(n + i))
      const back = await exchange(node, { address: '127.0.0.1', port }, sent, sent.length)
      node.removeAllListeners('message')
      expect(back).toHaveLength(sent.length)
    }
    expect(await running.end(1)).toMatch(/verdict log: \d+ lines could not be written/)
    closeSync(reader)
  })

  it('returns what a rule allows and nothing else, GENEVE', async () => {
    const port = await freePort('127.0.0.1', '127.0.0.2')
    const running = await gateway(`127.0.0.1:${port}`)
    expect(running.listening).toMatchObject({
      event: 'listening',
      where: `127.0.0.1:${port}`,
      profile: 'geneve',
      rules: 6,
    })
    const node = await socket('127.0.0.2', port)
    const reset = 'reset of UDP over IPv4, 5 bytes'
    const signature = 'a signature across three segments'
    const sent = [
      ...payloads('GENEVE options are echoed byte for byte'),
      ...payloads('refused: an unknown critical option'),
      ...payloads(reset),
      ...payloads('refused: version 1'),
      ...payloads(signature),
      ...payloads('GENEVE over IPv4'),
    ]
    const expected = [
      ...payloads('GENEVE options are echoed byte for byte'),
      ...payloads(reset, 'back'),
      ...payloads(signature, 'back'),
      ...payloads('GENEVE over IPv4'),
    ]
    const back = await exchange(node, { address: '127.0.0.1', port }, sent, expected.length)
    expect(back.map(({ hex }) => hex)).toEqual(expected)
    const { drops } = await running.stop()
    expect(Object.fromEntries(drops.map(({ stage, reason, packets }) => [`${stage} ${reason}`, packets]))).toEqual({
      'decap geneve-critical': 1,
      'decap geneve-version': 1,
      'inspect policy': 1,
      'inspect reset': 1,
    })
    expect(verdicts()).toEqual([
      {
        time: expect.stringMatching(/^20\d\d-\d\d-\d\dT[\d:.]+Z$/),
        flow: 1,
        protocol: 'udp',
        source: '10.1.2.3',
        sourcePort: 40000,
        destination: '192.0.2.9',
        destinationPort: 9,
        profile: 'geneve',
        vni: 77,
        rule: 'default',
        action: 'allow',
        packet: 1,
        bytes: 33,
      },
      expect.objectContaining({ flow: 2, destinationPort: 514, rule: 'no-syslog', action: 'reset', packet: 2 }),
      expect.objectContaining({
        flow: 3,
        protocol: 'tcp',
        destinationPort: 80,
        rule: 'default',
        action: 'allow',
        packet: 3,
      }),
      expect.objectContaining({ flow: 3, rule: 'block-secret', action: 'drop', packet: 5, bytes: 43, offset: 11 }),
    ])
    // The clock of the log is that of the day.
    expect(Math.abs(Date.parse(verdicts()[0].time) - Date.now())).toBeLessThan(60_000)
  })

  it.each([
    ['127.0.0.1', '127.0.0.1', ''],
    ['::1', '::1', ''],
    ['0.0.0.0', '127.0.0.1', ''],
    ['0.0.0.0', '127.0.0.1', '127.0.0.2'],
    ['::', '::1', ''],
  ])('listening at %s, it answers a peer of the same host at its own port (to %s)', async (listen, to, from) => {
    const port = await freePort(listen)
    const running = await gateway(
      listen.includes(':') ? `[${listen}]:${port}` : `${listen}:${port}`,
      '--profile',
      'vxlan',
    )
    const peer = await socket(from || to)
    const sent = [...payloads(DROPPED), ...payloads(ALLOWED)]
    const back = await exchange(peer, { address: to, port }, sent, 1)
    expect(back).toEqual([{ hex: payloads(ALLOWED)[0], port }])
    const { drops } = await running.stop()
    expect(drops).toMatchObject([{ stage: 'inspect', reason: 'policy', packets: 1 }])
  })

  it('serves what has arrived before it ends', async () => {
    const port = await freePort('127.0.0.1')
    const running = await gateway(`127.0.0.1:${port}`, '--profile', 'vxlan')
    const peer = await socket('127.0.0.1')
    const burst = Array(200).fill(payloads(DROPPED)[0])
    await Promise.all(
      burst.map(hex => new Promise(resolve => peer.send(Buffer.from(hex, 'hex'), port, '127.0.0.1', resolve))),
    )
    const { drops } = await running.stop()
    expect(drops).toMatchObject([{ stage: 'inspect', reason: 'policy', packets: 200 }])
  })

  it('says when the log could not be written', async () => {
    const port = await freePort('127.0.0.1')
    const child = start([
      'gateway',
      '--listen',
      `127.0.0.1:${port}`,
      '--control',
      join(directory, 'control'),
      '--log',
      '/dev/full',
    ])
    children.push(child)
    const closed = once(child, 'close')
    let err = ''
    child.stderr.on('data', data => (err += data))
    await once(child.stdout, 'data')
    const peer = await socket('127.0.0.1')
    await exchange(peer, { address: '127.0.0.1', port }, payloads('GENEVE over IPv4'), 1)
    child.kill('SIGTERM')
    expect((await closed)[0]).toBe(1)
    expect(err).toContain('verdict log: 1 lines could not be written')
  })

  it('says what it did in a table', async () => {
    const port = await freePort('127.0.0.1')
    const child = start([
      'gateway',
      '--listen',
      `127.0.0.1:${port}`,
      '--control',
      join(directory, 'control'),
      '--log',
      '-',
    ])
    children.push(child)
    const closed = once(child, 'close')
    let out = ''
    let err = ''
    child.stdout.on('data', data => (out += data))
    await new Promise<void>(resolve => child.stderr.on('data', data => (err += data).includes('\n') && resolve()))
    const peer = await socket('127.0.0.1')
    await exchange(
      peer,
      { address: '127.0.0.1', port },
      [...payloads('refused: version 1'), ...payloads('GENEVE over IPv4')],
      1,
    )
    child.kill('SIGINT')
    expect((await closed)[0]).toBe(0)
    expect(err).toMatch(/^gateway: listens on 127\.0\.0\.1:\d+, profile geneve, 0 rules/)
    expect(err).toMatch(/inspect +1 +1 +0/)
    expect(err).toMatch(/decap +geneve-version +1/)
    expect(JSON.parse(out)).toMatchObject({ rule: 'default', action: 'allow' })
  })

  it.each([
    [['--listen', 'here:6081'], 2, 'Allowed: an address and a port'],
    [['--listen', '127.0.0.1:0'], 2, 'Allowed: an address and a port'],
    [['--listen', '127.0.0.1:99999'], 2, 'Allowed: an address and a port'],
    [[], 2, '--listen'],
    [['--listen', '127.0.0.1', '--inline', 'nosuch0,nosuch1'], 1, 'interface nosuch0 does not exist'],
    [['--listen', '127.0.0.1', '--inline', 'lo,nosuch0', '--workers', '2'], 1, 'an appliance inline is served by one'],
    [['--listen', '127.0.0.1', '--profile', 'gre'], 2, 'Allowed choices are geneve, vxlan'],
    [['--listen', '127.0.0.1', '--policy', '/nowhere/x.yaml'], 1, '/nowhere/x.yaml: cannot be read'],
    [['--listen', '127.0.0.1', '--log', '/nowhere/log'], 1, 'log /nowhere/log: cannot be written'],
    [['--listen', '203.0.113.7:6081'], 1, '203.0.113.7'],
    [['--listen', '127.0.0.1', '--namespace', 'no-such-place'], 1, 'no-such-place'],
  ])('refuses %j', async (args, status, message) => {
    const outcome = await detour(['gateway', '--control', join(directory, 'control'), ...args])
    expect(outcome).toMatchObject({ status, stdout: '' })
    expect(outcome.stderr).toContain(message)
  })

  it('names the mistakes of a rule file', async () => {
    const file = join(directory, 'rules.yaml')
    writeFileSync(file, 'default: allow\nrules:\n  - action: block\n')
    const outcome = await detour(['gateway', '--listen', '127.0.0.1', '--policy', file])
    expect(outcome).toMatchObject({ status: 1, stdout: '' })
    expect(outcome.stderr).toContain(`${file}:3: rules[0].action: "block" is not allowed; allowed: allow, drop, reset`)
  })
})
