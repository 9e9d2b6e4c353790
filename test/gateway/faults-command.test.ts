// Faults of `detour gateway` as people ask for them: by a schedule, by --fault and live, over a UDP socket.

import type { ChildProcess } from 'node:child_process'
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { connectControl } from '../../src/control/client.ts'
import type { FaultRow } from '../../src/control/source.ts'
import { SETTINGS } from '../../src/device/faults.ts'
import { readFaults } from '../../src/gateway/faults-file.ts'
import { detour, start } from '../cli/run.ts'
import { missing, title } from '../netns/support.ts'
import cases from './packets.json' with { type: 'json' }
import { freePort } from './ports.ts'

let directory: string
let control: string
const children: ChildProcess[] = []
const sockets: Socket[] = []

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'detour-faults-'))
  control = join(directory, 'control')
})
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  for (const socket of sockets.splice(0)) socket.close()
  rmSync(directory, { recursive: true })
})

/** GENEVE with options over UDP, numbered in its VNI. */
const PACKET = Buffer.from(
  cases.find(each => each.name === 'GENEVE options are echoed byte for byte')!.frames[0],
  'hex',
).subarray(42)
function packet(number: number): Buffer {
  const own = Buffer.from(PACKET)
  own.writeUIntBE(number, 4, 3)
  return own
}
const numberOf = (bytes: Buffer) => bytes.readUIntBE(4, 3)

interface Running {
  child: ChildProcess
  port: number
  /** Sends numbered packets and resolves with those that are back when the last of them is, or when so many are. */
  exchange(numbers: number[], expected?: number): Promise<Buffer[]>
  /** What comes from now on. */
  next(): Promise<Buffer>
  send(...numbers: number[]): Promise<void>
  fault(...args: string[]): Promise<FaultRow[]>
}

async function bound(port = 0): Promise<Socket> {
  const made = createSocket('udp4')
  sockets.push(made)
  made.bind(port, '127.0.0.2')
  await once(made, 'listening')
  return made
}

/** A gateway at 127.0.0.1, and a node at 127.0.0.2 with the same port. */
async function gateway(...args: string[]): Promise<Running> {
  const port = await freePort('127.0.0.1', '127.0.0.2')
  const node = await bound(port)
  const child = start(['gateway', '--listen', `127.0.0.1:${port}`, '--control', control, '--json', ...args])
  children.push(child)
  let err = ''
  child.stderr.on('data', data => (err += data))
  await new Promise<void>((resolve, reject) => {
    child.stdout.once('data', () => resolve())
    child.once('close', () => reject(new Error(err)))
  })
  const arrived: Buffer[] = []
  let changed = () => {}
  node.on('message', data => {
    arrived.push(data)
    changed()
  })
  const until = async (count: number) => {
    while (arrived.length < count) await new Promise<void>(resolve => (changed = resolve))
    return arrived.splice(0, count)
  }
  const send = async (...numbers: number[]) => {
    for (const number of numbers) await new Promise(resolve => node.send(packet(number), port, '127.0.0.1', resolve))
  }
  return {
    child,
    port,
    send,
    async exchange(numbers, expected = numbers.length) {
      await send(...numbers)
      return until(expected)
    },
    next: async () => (await until(1))[0],
    async fault(...args) {
      const { status, stdout, stderr } = await detour(['fault', '--socket', control, '--json', ...args])
      expect([status, stderr]).toEqual([0, ''])
      return JSON.parse(stdout).faults
    },
  }
}

const count = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

/** Asks the gateway until a fault is in a state. */
async function awaitState(id: number, state: FaultRow['state']): Promise<FaultRow> {
  const client = await connectControl(control)
  try {
    for (;;) {
      const row = (await client.ask('faults', {})).rows.find(each => each.id === id)
      if (row?.state === state) return row
    }
  } finally {
    client.close()
  }
}

/** Packets on the way back that the faults of each worker have seen; workers publish their counters now and then. */
async function throughFaults(): Promise<number[]> {
  const client = await connectControl(control)
  try {
    const { rows } = await client.ask('stats', {})
    return rows.filter(({ stage }) => stage === 'faults transmit').map(({ inPackets }) => inPackets)
  } finally {
    client.close()
  }
}

describe('detour fault', () => {
  it('adds, lists, counts and clears while packets flow', async () => {
    const running = await gateway('--seed', '5')
    expect((await running.exchange([1, 2, 3])).map(numberOf)).toEqual([1, 2, 3])
    const [added] = await running.fault('add', 'drop', '--share', '50%', '--port', '4789', '--protocol', 'tcp')
    expect(added).toEqual({ id: 1, spec: 'drop,share=50%,port=4789,protocol=6', state: 'active', packets: 0 })
    // Of other flows.
    expect(await running.exchange([4])).toHaveLength(1)
    await running.fault('add', 'duplicate,drop-options,direction=both', '--for', '1h')
    const copies = await running.exchange([5], 4)
    expect(copies.map(numberOf)).toEqual([5, 5, 5, 5])
    // Copies are made before anything else goes wrong with a packet; options are lost on the way in, too, but of the original alone.
    expect(new Set(copies.map(({ length }) => length))).toEqual(
      new Set([PACKET.length, PACKET.length - ((PACKET[0] & 0x3f) << 2)]),
    )
    const rows = await running.fault('list')
    expect(rows.map(({ id, packets, state }) => [id, packets, state])).toEqual([
      [1, 0, 'active'],
      [2, 3, 'active'],
      [3, 2, 'active'],
    ])
    expect(rows[1].leftMs).toBeLessThanOrEqual(3_600_000)
    expect((await running.fault('clear', '2')).map(({ id }) => id)).toEqual([2])
    expect(await running.exchange([6])).toHaveLength(1)
    const shown = await detour(['show', 'faults', '--socket', control])
    expect(shown.stdout).toMatch(/ 3 +active +\S.* +3 +drop-options,direction=both,for=3600s\n/)
    await running.fault('clear')
    expect(await running.fault('list')).toEqual([])
    expect((await running.exchange([7])).map(({ length }) => length)).toEqual([PACKET.length])
  })

  it('loses the same packets for the same seed, and says so under drops', async () => {
    const lost = async (seed: string) => {
      const running = await gateway('--fault', 'drop=40%', '--seed', seed)
      await running.send(...count(0, 50))
      await expect.poll(throughFaults).toEqual([50])
      // What is behind them shows that all are through.
      await running.fault('clear')
      await running.send(99)
      const back: number[] = []
      for (let number = 0; number !== 99; ) back.push((number = numberOf(await running.next())))
      const drops = async () =>
        JSON.parse((await detour(['show', 'drops', '--json', '--socket', control])).stdout).drops
      // Workers publish their counters now and then.
      await expect.poll(drops).toMatchObject([{ stage: 'faults transmit', reason: 'fault', packets: 51 - back.length }])
      running.child.kill('SIGTERM')
      await once(running.child, 'close')
      return back
    }
    const one = await lost('3')
    expect(one.length).toBeLessThan(45)
    expect(one.length).toBeGreaterThan(15)
    expect(await lost('3')).toEqual(one)
    expect(await lost('4')).not.toEqual(one)
  })

  it('answers on other ports', async () => {
    const running = await gateway('--fault', 'wrong-port')
    const beside = await bound(running.port + 1)
    const [answer] = await Promise.all([once(beside, 'message'), running.send(1)])
    expect(numberOf(answer[0])).toBe(1)
    await running.fault('clear')
    await running.fault('add', 'swap-ports')
    const other = await bound()
    const back = once(other, 'message')
    other.send(packet(2), running.port, '127.0.0.1')
    expect(numberOf((await back)[0])).toBe(2)
  })

  it('finds flows and options in a tunnel that carries IP packets', async () => {
    const running = await gateway('--profile', 'aws-gwlb', '--fault', 'reorder-options,port=9')
    const innerIp = PACKET.subarray(8 + ((PACKET[0] & 0x3f) << 2) + 14)
    const options = ['010801021111111111111111', '010802022222222222222222', '0108030133333333']
    const sent = (list: string[]) => Buffer.from(`0800080000000100${list.join('')}${innerIp.toString('hex')}`, 'hex')
    const node = sockets[0]
    node.send(sent(options), running.port, '127.0.0.1')
    expect(await running.next()).toEqual(sent([...options.slice(1), options[0]]))
    await running.fault('clear')
    await running.fault('add', 'reorder-options,port=10')
    node.send(sent(options), running.port, '127.0.0.1')
    expect(await running.next()).toEqual(sent(options))
  })

  it('delays', async () => {
    const running = await gateway('--fault', 'delay=1h')
    await running.send(1, 2)
    // Both are in its hands before the fault goes.
    for (let held = 0; held < 2; ) held = (await running.fault('list'))[0].packets
    await running.fault('clear')
    await running.send(3)
    expect([await running.next(), await running.next(), await running.next()].map(numberOf)).toEqual([1, 2, 3])
    await running.fault('add', 'delay=20ms')
    expect(numberOf((await running.exchange([4]))[0])).toBe(4)
  })

  it('hangs without losing the socket, and comes back', async () => {
    const running = await gateway()
    const [{ id }] = await running.fault('add', 'hang')
    await running.send(1, 2)
    expect(await running.fault('list')).toMatchObject([{ id, spec: 'hang', state: 'active' }])
    await running.fault('clear', String(id))
    await running.send(3)
    expect([await running.next(), await running.next(), await running.next()].map(numberOf)).toEqual([1, 2, 3])
    await running.fault('add', 'hang')
    await running.send(4)
    running.child.kill('SIGTERM')
    expect((await once(running.child, 'close'))[0]).toBe(0)
  })

  it.each([
    ['exit', 1, null],
    ['kill', null, 'SIGKILL'],
  ])('%s', async (kind, status, signal) => {
    const running = await gateway()
    const closed = once(running.child, 'close')
    expect(await running.fault('add', kind)).toMatchObject([{ spec: kind, state: 'active' }])
    expect(await closed).toEqual([status, signal])
  })

  it('says what is not allowed', async () => {
    await gateway()
    const refused = async (...args: string[]) => {
      const { status, stdout, stderr } = await detour(['fault', '--socket', control, ...args])
      expect([status === 0, stdout]).toEqual([false, ''])
      return stderr
    }
    expect(await refused('add', 'rain')).toContain("fault 'rain': allowed are drop, duplicate")
    expect(await refused('add', 'drop', '--share', '200%')).toContain("fault 'share=200%': share is a probability")
    expect(await refused('add', 'drop', '--bytes', '100')).toContain('bytes: mtu faults only')
    expect(await refused('add', 'mtu')).toContain('bytes: a whole number of bytes')
    expect(await refused('add', 'exit', '--port', '80')).toContain('port: not with exit')
    expect(await refused('clear', '7')).toContain('fault 7: there is none such; there are none')
    expect(await refused('clear', 'all')).toContain('see detour fault list')
    const client = await connectControl(control)
    try {
      for (const spec of ['', 'seed=1', 'drop=', '\0', 'x'.repeat(100_000), 'drop,'.repeat(40)])
        await expect(client.ask('addFault', { spec })).rejects.toMatchObject({ failure: 'bad-request' })
      for (let i = 0; i < 32; i++) await client.ask('addFault', { spec: 'drop=0' })
      await expect(client.ask('addFault', { spec: 'drop' })).rejects.toThrow('32 there already, 32 at most; clear some')
    } finally {
      client.close()
    }
  })
})

describe('--faults', () => {
  const schedule = (text: string) => {
    const file = join(directory, 'faults.yaml')
    writeFileSync(file, text)
    return file
  }

  it('begins and ends by itself', async () => {
    const file = schedule(`
- { fault: drop-options, for: 1s, share: 1, flows: { port: 9, protocol: udp, cidr: 10.1.2.3 } }
- fault: duplicate
  at: 300ms
  direction: transmit
- { at: 23h, fault: kill }
`)
    const running = await gateway('--faults', file, '--fault', 'swap-ports,at=24h')
    expect((await running.fault('list')).map(({ spec }) => spec)).toEqual([
      'drop-options,port=9,protocol=17,cidr=10.1.2.3/32,for=1s',
      'duplicate,direction=transmit,at=300ms',
      'kill,at=82800s',
      'swap-ports,at=86400s',
    ])
    // Workers hear of a change after the state has changed, so some packets more may fare as before.
    await awaitState(2, 'active')
    const first: number[] = []
    for (let number = 0; first.length < number + 1; number++) {
      await running.send(number)
      first.push(numberOf(await running.next()))
      const [, { packets }] = await running.fault('list')
      if (packets > 0) first.push(numberOf(await running.next()))
    }
    expect(first.at(-1)).toBe(first.at(-2))
    await running.fault('clear', '2')
    await awaitState(1, 'over')
    for (let whole = false; !whole; ) whole = (await running.exchange([7]))[0].length === PACKET.length
    const states = (await running.fault('list')).map(({ id, state }) => [id, state])
    expect(states).toEqual([
      [1, 'over'],
      [3, 'waiting'],
      [4, 'waiting'],
    ])
  })

  it.each([
    ['- { fault: rain }', ':1: [0].fault: "rain" is not allowed; allowed: drop, duplicate'],
    ['- fault: drop\n- fault: drop\n  share: 110%', ':3: [1].share: "110%" is not allowed; allowed: a probability'],
    ['- fault: drop\n  for: 10', ':2: [0].for: 10 is not allowed; allowed: a time such as 500ms'],
    ['- fault: delay', ':1: [0].time: is missing; allowed: a time such as 50ms'],
    ['- { fault: exit,\n    flows: { port: 80 } }', ':2: [0].flows.port: 80 is not allowed; allowed: not with exit'],
    [
      '- { fault: drop, flows: { prot: 80 } }',
      ':1: [0].flows: unknown key "prot"; allowed: cidr, port, protocol; did you mean "port"?',
    ],
    ['- { fault: drop, port: 80 }', 'unknown key "port"'],
    ['fault: drop', 'allowed: a list of faults'],
    ['', 'allowed: a list of faults'],
    ['- drop', 'allowed: a mapping with the keys fault, share'],
    ['- { fault: drop, at: { a: 1 } }', ':1: [0].at:'],
    ['- [', ':1:'],
    ['&a [*a, *a]', 'allowed: a mapping'],
    ['- { fault: drop }\n'.repeat(33), 'allowed: 32 faults at most'],
    ['\0\x01', 'faults.yaml'],
  ])('refuses %j', (text, message) => {
    const file = schedule(text)
    expect(() => readFaults(file, 1)).toThrow(message)
    expect(() => readFaults(file, 1)).toThrow(file)
  })

  it('names the mistakes', async () => {
    const file = schedule('- fault: drop\n  share: some\n- fault: mtu\n')
    const { status, stdout, stderr } = await detour(['gateway', '--listen', '127.0.0.1', '--faults', file])
    expect([status, stdout]).toEqual([1, ''])
    expect(stderr).toBe(`detour: ${file}:2: [0].share: "some" is not allowed; allowed: ${SETTINGS.share.allowed}
${file}:3: [1].bytes: is missing; allowed: ${SETTINGS.bytes.allowed}
`)
  })

  it.each([
    [['--faults', '/nowhere/f.yaml'], 1, '/nowhere/f.yaml: cannot be read'],
    [['--fault', 'drop=101%'], 2, "fault 'drop=101%': drop is a probability"],
    [['--seed', '-1'], 2, 'Allowed: a whole number, 0 to 2147483647.'],
  ])('refuses %j', async (args, status, message) => {
    const outcome = await detour(['gateway', '--listen', '127.0.0.1', ...args])
    expect(outcome).toMatchObject({ status, stdout: '' })
    expect(outcome.stderr).toContain(message)
  })
})

describe.skipIf(missing !== '')(title('several workers'), () => {
  it('share the faults, and their counts are one', async () => {
    const running = await gateway('--workers', '2')
    await running.fault('add', 'duplicate')
    // Inner source ports make flows of which both workers have some.
    const sent = count(0, 64).map(number => {
      const own = packet(number)
      own.writeUInt16BE(1000 + number, 8 + ((own[0] & 0x3f) << 2) + 14 + 20)
      own.writeUInt16BE(0, 8 + ((own[0] & 0x3f) << 2) + 14 + 20 + 6)
      return own
    })
    const all = (async () => {
      const back: number[] = []
      while (back.length < 128) back.push(numberOf(await running.next()))
      return back
    })()
    const node = sockets[0]
    for (const own of sent) await new Promise(resolve => node.send(own, running.port, '127.0.0.1', resolve))
    expect((await all).sort((a, b) => a - b)).toEqual(count(0, 64).flatMap(n => [n, n]))
    expect(await running.fault('list')).toMatchObject([{ packets: 64 }])
    const each = async () => (await throughFaults()).map(packets => packets > 0)
    await expect.poll(each).toEqual([true, true])
    await running.fault('clear')
    expect(await running.exchange([7])).toHaveLength(1)
  })
})
