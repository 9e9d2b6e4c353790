// The control socket: real sockets, honest and hostile clients.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { connectControl } from '../../src/control/client.ts'
import { decodeReply, encodeRequest, FRAME_LIMIT, FrameReader, type Reply } from '../../src/control/protocol.ts'
import { liveSockets } from '../../src/control/registry.ts'
import { type ControlOptions, type ControlServer, serveControl } from '../../src/control/socket.ts'
import type { Source } from '../../src/control/source.ts'
import { dropText } from '../../src/drop.ts'
import { FLOWS, fakeSource } from './fake.ts'

const root = process.geteuid?.() === 0
let directory: string
let path: string
const servers: ControlServer[] = []

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dtctl-'))
  path = join(directory, 'lab.sock')
})

afterEach(async () => {
  for (const server of servers.splice(0)) await server.close()
  rmSync(directory, { recursive: true })
})

async function serve(options: ControlOptions = {}, source: Source = fakeSource().source): Promise<ControlServer> {
  const server = await serveControl(source, { path, ...options })
  servers.push(server)
  return server
}

/** Sends bytes, then says goodbye if asked to, and gives back every reply until the connection is closed. */
async function raw(...chunks: (Uint8Array | 'end')[]): Promise<Reply[]> {
  const socket = connect(path)
  const reader = new FrameReader()
  const replies: Reply[] = []
  socket.on('error', () => {})
  socket.on('data', chunk => {
    reader.push(chunk)
    for (let content = reader.next(); content !== undefined; content = reader.next()) replies.push(decodeReply(content))
  })
  for (const chunk of chunks) chunk === 'end' ? socket.end() : socket.write(chunk)
  await new Promise(resolve => socket.on('close', resolve))
  return replies
}

const HELLO = encodeRequest(1, 'hello', { lowest: 1, highest: 1 })

async function stillServes(): Promise<void> {
  const client = await connectControl(path)
  expect((await client.ask('info', {})).pid).toBe(process.pid)
  client.close()
}

describe('answers', () => {
  test('info, stats, drops, flows, attachments, underlay and alarms are what the source said', async () => {
    const { source } = fakeSource()
    await serve({}, source)
    const client = await connectControl(path)
    expect(client.version).toBe(1)
    const { version } = JSON.parse(readFileSync('package.json', 'utf8'))
    expect(await client.ask('info', {})).toMatchObject({ face: 'lab', profile: 'geneve', pid: process.pid, version })

    const stats = await client.ask('stats', {})
    expect(stats.rows.map(row => [row.worker, row.stage, row.inPackets, row.outBytes, row.drops, row.created])).toEqual(
      [
        ['forward-0', 'decide', 1234567, 98_000_000, 7, 0],
        ['forward-0', 'encap', 1234560, 160_000_000, 0, -5],
        ['forward-0', 'idle', 0, 0, 0, 0],
      ],
    )
    expect((await client.ask('drops', {})).rows).toEqual([
      { worker: 'forward-0', stage: 'decide', reason: 'policy', text: 'a rule says drop', packets: 4 },
      {
        worker: 'forward-0',
        stage: 'decide',
        reason: 'unknown-peer',
        text: expect.stringContaining('source'),
        packets: 3,
      },
    ])
    expect(dropText(0)).toBe('not dropped')
    expect((await client.ask('attachments', {})).rows).toEqual(await source.attachments())
    expect((await client.ask('underlay', {})).rows).toEqual(await source.underlay())
    expect((await client.ask('alarms', {})).rows).toEqual(source.alarms?.())
    client.close()
  })

  test('a face that keeps no watch has no alarms', async () => {
    await serve({}, { ...fakeSource().source, alarms: undefined })
    const client = await connectControl(path)
    expect((await client.ask('alarms', {})).rows).toEqual([])
    client.close()
  })

  test('flows are filtered, sorted and limited', async () => {
    await serve()
    const client = await connectControl(path)
    const byBytes = await client.ask('flows', { limit: 2, order: 'bytes' })
    expect(byBytes).toEqual({ rows: [FLOWS[1], FLOWS[2]], matched: 3, total: 3, capacity: 1000 })
    const steered = await client.ask('flows', { limit: 9, order: 'packets', verdict: 'steer' })
    expect(steered).toMatchObject({ rows: [FLOWS[0], FLOWS[2]], matched: 2, total: 3 })
    expect((await client.ask('flows', { limit: 9, order: 'age', port: 40003 })).rows).toEqual([FLOWS[2]])
    expect((await client.ask('flows', { limit: 9, order: 'age', address: '10.9.9.9' })).rows).toEqual([])
    client.close()
  })

  test('counters are read anew for each question', async () => {
    const { source, counters } = fakeSource()
    await serve({}, source)
    const client = await connectControl(path)
    const before = (await client.ask('stats', {})).rows[2]
    counters.stages[2].received(11, 700)
    counters.publish()
    const after = (await client.ask('stats', {})).rows[2]
    expect([after.inPackets - before.inPackets, after.inBytes - before.inBytes]).toEqual([11, 700])
    client.close()
  })

  test('a source that throws is an error for that question only', async () => {
    const { source } = fakeSource()
    const broken = { ...source, attachments: () => Promise.reject(new Error('netns is gone')) }
    await serve({}, broken)
    const client = await connectControl(path)
    await expect(client.ask('attachments', {})).rejects.toThrow(/attachments: netns is gone/)
    expect((await client.ask('underlay', {})).rows).toHaveLength(1)
    client.close()
  })

  test('an answer over the limit is refused with advice', async () => {
    const { source } = fakeSource()
    const many = Array.from({ length: 5000 }, () => ({ ...FLOWS[0], attachment: 'x'.repeat(300) }))
    await serve({}, { ...source, flows: () => ({ rows: many, matched: 5000, total: 5000, capacity: 5000 }) })
    const client = await connectControl(path)
    await expect(client.ask('flows', { limit: 5000, order: 'bytes' })).rejects.toThrow(/ask for fewer rows/)
    client.close()
  })
})

describe('the socket file', () => {
  test('is for its owner only, and goes when the server closes', async () => {
    const server = await serve()
    expect(statSync(path).mode & 0o777).toBe(0o600)
    servers.pop()
    await server.close()
    expect(existsSync(path)).toBe(false)
  })

  test('of a process that was killed is replaced', async () => {
    const script = 'require("net").createServer().listen(process.argv[1], () => console.log("up"))'
    const child = spawn(process.execPath, ['-e', script, path], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(child.stdout, 'data')
    child.kill('SIGKILL')
    await once(child, 'exit')
    expect(existsSync(path)).toBe(true)
    await expect(connectControl(path)).rejects.toMatchObject({ code: 'not-found', message: /nobody listens/ })
    await serve()
    await stillServes()
  })

  test('of a process that dies meanwhile is replaced', async () => {
    // Connections come to nothing before nobody listens any more.
    const dying = createServer(socket => {
      socket.destroy()
      if (++hungUp === 3) dying.close()
    }).listen(path)
    let hungUp = 0
    await once(dying, 'listening')
    await serve()
    expect(hungUp).toBe(3)
    await stillServes()
  })

  test('of a live process is refused, naming its pid', async () => {
    await serve()
    await expect(serve()).rejects.toMatchObject({
      code: 'system',
      message: expect.stringContaining(`${path} is in use by detour lab, process ${process.pid}`),
    })
    await stillServes()
  })

  test('of a live stranger is refused', async () => {
    const stranger = createServer(socket => socket.resume().end('HTTP/1.1 400 Bad Request\r\n\r\n')).listen(path)
    await once(stranger, 'listening')
    await expect(serve()).rejects.toThrow(/in use by a process that does not answer/)
    await new Promise(resolve => stranger.close(resolve))
  })

  test('in a directory that does not exist is refused', async () => {
    await expect(serve({ path: '/nowhere/x.sock' })).rejects.toThrow(/\/nowhere does not exist/)
  })

  test('that is no socket is left alone', async () => {
    writeFileSync(path, 'precious')
    await expect(serve()).rejects.toThrow(/not a socket/)
    expect(readFileSync(path, 'utf8')).toBe('precious')
  })

  test('with a name too long for the kernel is refused', async () => {
    await expect(serve({ path: join(directory, 'x'.repeat(100)) })).rejects.toMatchObject({ code: 'bad-config' })
  })

  test('is found among dead ones', async () => {
    await serve()
    writeFileSync(join(directory, 'gateway.sock'), '')
    const live = await liveSockets(directory)
    expect(live.map(found => found.path)).toEqual([path])
    expect(live[0].info.pid).toBe(process.pid)
  })

  test('of which the folder is writable for others is refused', async () => {
    chmodSync(directory, 0o777)
    process.env.DETOUR_RUN_DIR = directory
    try {
      await expect(serve()).rejects.toMatchObject({ code: 'permission' })
    } finally {
      delete process.env.DETOUR_RUN_DIR
    }
  })

  test.skipIf(!root)('turns another user away, whatever the mode (needs root)', async () => {
    await serve()
    chmodSync(directory, 0o755)
    chmodSync(path, 0o777)
    const script = `const s = require("net").connect(process.argv[1], () => s.write(Buffer.from(process.argv[2], "hex")))
      s.on("data", d => process.stdout.write(d)).on("error", () => {}).on("close", () => process.exit(0))`
    const child = spawn(process.execPath, ['-e', script, path, Buffer.from(HELLO).toString('hex')], {
      uid: 65534,
      gid: 65534,
      cwd: '/',
      env: {},
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const chunks: Buffer[] = []
    child.stdout.on('data', chunk => chunks.push(chunk))
    await once(child, 'close')
    const reply = decodeReply(Buffer.concat(chunks).subarray(4))
    expect(reply).toMatchObject({ id: 0, failure: { code: 'permission', message: expect.stringContaining('65534') } })
  })
})

describe('hostile clients', () => {
  test('no hello first', async () => {
    await serve()
    const [reply] = await raw(encodeRequest(5, 'stats', {}))
    expect(reply.failure).toEqual({ code: 'protocol', message: 'the first request must be hello' })
    await stillServes()
  })

  test('a version that the server does not speak', async () => {
    await serve()
    const [reply] = await raw(encodeRequest(1, 'hello', { lowest: 2, highest: 9 }))
    expect(reply.failure?.code).toBe('version')
    const [welcome] = await raw(encodeRequest(1, 'hello', { lowest: 1, highest: 9 }), 'end')
    expect(welcome.hello).toEqual({ version: 1 })
  })

  test('a request of the future is refused and the connection lives', async () => {
    await serve()
    const future = Buffer.from('050000000809f20300', 'hex')
    const replies = await raw(HELLO, future, encodeRequest(3, 'underlay', {}), 'end')
    expect(replies.map(reply => reply.body)).toEqual(['hello', 'failure', 'underlay'])
    expect(replies[1]).toMatchObject({ id: 9, failure: { code: 'unknown-request' } })
  })

  test('operations are a node daemon’s: other faces refuse them', async () => {
    await serve()
    const asked = [encodeRequest(2, 'ready', {}), encodeRequest(3, 'collect', { network: 'x', valid: [] })]
    const replies = await raw(HELLO, ...asked, encodeRequest(4, 'reload', {}), 'end')
    expect(replies.slice(1).map(({ failure }) => failure?.code)).toEqual(Array(3).fill('unknown-request'))
  })

  test('faults on demand are a gateway’s: other faces refuse them', async () => {
    await serve()
    const asked = [encodeRequest(2, 'faults', {}), encodeRequest(3, 'addFault', { spec: 'kill' })]
    const replies = await raw(HELLO, ...asked, encodeRequest(4, 'clearFaults', {}), 'end')
    expect(replies.slice(1).map(({ failure }) => failure?.code)).toEqual(Array(3).fill('unknown-request'))
  })

  test('an oversize frame', async () => {
    await serve()
    const length = Buffer.alloc(4)
    length.writeUInt32LE(FRAME_LIMIT + 1)
    const replies = await raw(HELLO, length)
    expect(replies.at(-1)?.failure).toMatchObject({ code: 'protocol', message: expect.stringContaining('1048577') })
    await stillServes()
  })

  test('silence, and half a frame, end when patience does', async () => {
    await serve({ patienceMs: 500 })
    expect((await raw())[0].failure?.message).toMatch(/hello did not come within 500 ms/)
    expect((await raw(HELLO, HELLO.subarray(0, 7)))[1].failure?.message).toMatch(/rest of a frame did not come/)
    await stillServes()
  })

  test('a client that says goodbye before it reads gets its answer', async () => {
    await serve()
    const socket = connect(path)
    socket.end(Buffer.concat([HELLO, encodeRequest(2, 'info', {})]))
    const chunks: Buffer[] = []
    for await (const chunk of socket) chunks.push(chunk)
    const reader = new FrameReader()
    reader.push(Buffer.concat(chunks))
    reader.next()
    expect(decodeReply(reader.next()!).info?.pid).toBe(process.pid)
  })

  test('a client that asks and never reads is cut off, and little is kept for it', async () => {
    const { source } = fakeSource()
    let asked = 0
    const rows = Array.from({ length: 4000 }, () => FLOWS[0])
    const flows = () => {
      asked++
      return { rows, matched: 4000, total: 4000, capacity: 4000 }
    }
    await serve({ patienceMs: 200 }, { ...source, flows })
    const socket = connect(path)
    socket.on('error', () => {})
    socket.pause()
    socket.write(HELLO)
    for (let id = 2; id < 1000; id++) socket.write(encodeRequest(id, 'flows', { limit: 4000, order: 'bytes' }))
    // A socket that does not read learns of the end only when it writes.
    while (!socket.destroyed) {
      socket.write(HELLO.subarray(0, 1))
      await new Promise(resolve => setTimeout(resolve, 20))
    }
    expect(asked).toBeGreaterThan(0)
    expect(asked).toBeLessThan(20)
    await stillServes()
  })

  test('too many clients: the one too many hears why, and a place that is left is free again', async () => {
    await serve({ clients: 2 })
    const first = await connectControl(path)
    const second = await connectControl(path)
    await expect(connectControl(path)).rejects.toThrow(/too many clients/)
    const gone = once((first as unknown as { socket: NodeJS.EventEmitter }).socket, 'close')
    first.close()
    await gone
    await second.ask('info', {})
    await stillServes()
    second.close()
  })

  test('fuzz: 600 connections of mutated frames and noise', async () => {
    await serve({ patienceMs: 2000, clients: 64 })
    const frames = [
      HELLO,
      encodeRequest(2, 'flows', { limit: 3, order: 'bytes', address: '10.1.0.2', verdict: 'drop' }),
      encodeRequest(3, 'stats', {}),
      encodeRequest(4, 'attachments', {}),
    ]
    const next = generator(20261121)
    let answered = 0
    for (let round = 0; round < 30; round++) {
      const attacks = Array.from({ length: 20 }, () => {
        const bytes = Buffer.concat([HELLO, ...Array.from({ length: 4 }, () => frames[next() % frames.length])])
        const from = next() % 3 === 0 ? 0 : HELLO.length
        for (let flips = next() % 8; flips >= 0; flips--) bytes[from + (next() % (bytes.length - from))] = next() & 0xff
        return raw(bytes.subarray(0, next() % 4 === 0 ? 4 + (next() % (bytes.length - 4)) : bytes.length), 'end')
      })
      for (const replies of await Promise.all(attacks)) answered += replies.length
    }
    expect(answered).toBeGreaterThan(600)
    await stillServes()
  })
})

describe('the client', () => {
  test('names a server that speaks something else', async () => {
    const stranger = createServer(socket => socket.resume().end('HTTP/1.1 400 Bad Request\r\n\r\n')).listen(path)
    await once(stranger, 'listening')
    await expect(connectControl(path)).rejects.toThrow(/not Detour's control protocol/)
    await new Promise(resolve => stranger.close(resolve))
  })

  test('gives up on a server that is silent', async () => {
    const silent = createServer(socket => socket.resume()).listen(path)
    await once(silent, 'listening')
    await expect(connectControl(path, 500)).rejects.toThrow(/no answer within 500 ms/)
    await new Promise(resolve => silent.close(resolve))
  })

  test('what is asked when the server goes is rejected, and so is what is asked later', async () => {
    const { source } = fakeSource()
    let called = () => {}
    const reached = new Promise<void>(resolve => {
      called = resolve
    })
    const underlay = () => new Promise<never>(() => called())
    const server = await serve({}, { ...source, underlay })
    const client = await connectControl(path)
    const asked = expect(client.ask('underlay', {})).rejects.toThrow(/closed the connection/)
    await reached
    servers.pop()
    await server.close()
    await asked
    await expect(client.ask('info', {})).rejects.toThrow(/closed the connection/)
  })

  test('loads no native code', () => {
    const script = `await import(${JSON.stringify(new URL('../../dist/src/control/client.js', import.meta.url))})
      const { readFileSync } = await import('node:fs')
      console.log(readFileSync('/proc/self/maps', 'utf8').includes('koffi'))`
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' })
    expect(stdout.trim(), stderr).toBe('false')
  })
})

/** Mulberry32: the same noise on every run. */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return (t ^ (t >>> 14)) >>> 0
  }
}
