// The UDP device against real sockets: Node's own, Python's (which tells and sets DSCP and ECN), and itself.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { afterEach, describe, expect, test } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { openUdp, UdpDevice, type UdpHandle, type UdpOptions } from '../../src/device/udp.ts'
import { DROP } from '../../src/drop.ts'
import { DetourError } from '../../src/errors.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, GSO, HEADROOM, OFFLOAD, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { addressOf, POLL, poll } from '../../src/os/libc.ts'
import { createNamespace, deleteNamespace, inNamespace, ip as ipCommand } from '../../src/os/netns.ts'
import { Split } from '../../src/pipeline/split.ts'
import { ETHERTYPE, write as writeEthernet } from '../../src/wire/ethernet.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import * as ipv6 from '../../src/wire/ipv6.ts'
import * as udp from '../../src/wire/udp.ts'

const root = process.getuid?.() === 0
const hasPython = spawnSync('python3', ['--version']).status === 0
const LOOPBACK = { 4: '127.0.0.1', 6: '::1' } as const

const closing: (() => void)[] = []
afterEach(() => {
  for (const close of closing.splice(0).reverse()) close()
})

interface End {
  device: UdpDevice
  handle: UdpHandle
  pool: Pool
  counters: StageCounters
}

function open(options: Partial<UdpOptions> = {}, frames = 200, frameSize = SUPER_FRAME): End {
  const handle = openUdp({ address: LOOPBACK[4], port: 0, ...options })
  const pool = new Pool(createPool({ frames, frameSize, headroom: HEADROOM }))
  const counters = new StageCounters('udp')
  const device = new UdpDevice(pool, counters, handle)
  closing.push(() => {
    device.close()
    expect(pool.available).toBe(frames)
  })
  return { device, handle, pool, counters }
}

interface Datagram {
  from?: number[]
  to: number[]
  sourcePort?: number
  port: number
  tos?: number
  payload: Uint8Array
}

/** A frame with outer headers, as encap leaves it. */
function frameOf(pool: Pool, { from, to, sourcePort = 1, port, tos = 0, payload }: Datagram): number {
  const { bytes: b } = pool
  const frame = pool.alloc()
  const at = pool.start[frame]
  const four = to.length === 4
  const source = from ?? (four ? [127, 0, 0, 1] : [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
  writeEthernet(b, at, 0, 0, 0, 0, four ? ETHERTYPE.IPV4 : ETHERTYPE.IPV6)
  const ip = at + 14
  const transport = ip + (four ? 20 : 40)
  const length = 8 + payload.length
  if (four) ipv4.write(b, ip, 20, tos, 20 + length, 0, 0x4000, 64, 17, 0, 0)
  else ipv6.write(b, ip, tos, 0, length, 17, 64)
  b.set([...source, ...to], ip + (four ? 12 : 8))
  udp.write(b, transport, sourcePort, port, length, 0)
  b.set(payload, transport + 8)
  pool.length[frame] = transport + length - at
  return frame
}

function send(end: End, datagrams: Datagram[]): void {
  const batch = new Batch(datagrams.length)
  for (const datagram of datagrams) batch.push(frameOf(end.pool, datagram))
  end.device.transmit(batch)
  expect(batch.length).toBe(0)
}

/** Waits until the device has something, then gives it. */
function receive(end: End): Batch {
  const batch = new Batch()
  const pollfd = Int32Array.of(end.device.fd, POLL.IN)
  if (poll(addressOf(pollfd), 1, 20_000) !== 1) throw new Error('nothing came')
  end.device.receive(batch)
  return batch
}

/** What a received frame says. */
function read({ pool }: End, frame: number) {
  const b = pool.bytes
  const at = pool.start[frame]
  const ip = at + 14
  const end = at + pool.length[frame]
  const four = b[ip] >> 4 === 4
  const bad = four ? ipv4.check(b, ip, end) : ipv6.check(b, ip, end)
  const transport = four ? ip + ipv4.headerLength(b, ip) : ipv6.transportAt(b, ip, end)
  expect([bad, udp.check(b, transport, end), !four || ipv4.verifyChecksum(b, ip)]).toEqual([0, 0, true])
  return {
    source: four ? ipv4.formatAddress(ipv4.source(b, ip)) : ipv6.formatAddress(b, ip + 8),
    destination: four ? ipv4.formatAddress(ipv4.destination(b, ip)) : ipv6.formatAddress(b, ip + 24),
    sourcePort: udp.sourcePort(b, transport),
    port: udp.destinationPort(b, transport),
    tos: four ? ipv4.tos(b, ip) : ipv6.trafficClass(b, ip),
    payload: Buffer.from(b.slice(transport + 8, end)),
    offload: pool.offload[frame],
    checksumStart: pool.checksumStart[frame] - transport,
  }
}

async function nodeSocket(family: 4 | 6): Promise<Socket> {
  const socket = createSocket(family === 4 ? 'udp4' : 'udp6')
  socket.bind(0, LOOPBACK[family])
  await once(socket, 'listening')
  closing.push(() => socket.close())
  return socket
}

const bytesOf = (family: 4 | 6) => (family === 4 ? [127, 0, 0, 1] : [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])

/** Answers each datagram with its traffic class in front, sent with that class. */
const PYTHON = `
import socket, struct, sys
six = sys.argv[1] == '6'
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
level, receive, kind = (socket.IPPROTO_IPV6, 66, 67) if six else (socket.IPPROTO_IP, 13, 1)
s.setsockopt(level, receive, 1)
s.bind(('::1' if six else '127.0.0.1', 0))
print(s.getsockname()[1], flush=True)
while True:
    data, control, flags, peer = s.recvmsg(70000, 256)
    tos = control[0][2][0]
    s.setsockopt(level, kind, tos)
    s.sendto(bytes([tos]) + data, peer)
`

describe.each([4, 6] as const)('UDP device over IPv%i', family => {
  test('a datagram of a plain socket arrives as a whole frame, and goes back as one', async () => {
    const peer = await nodeSocket(family)
    const end = open({ address: LOOPBACK[family] })
    await new Promise(sent => peer.send('over there', end.handle.port, LOOPBACK[family], sent))
    const batch = receive(end)
    expect(batch.length).toBe(1)
    const got = read(end, batch.frames[0])
    expect(got).toEqual({
      source: LOOPBACK[family],
      destination: LOOPBACK[family],
      sourcePort: peer.address().port,
      port: end.handle.port,
      tos: 0,
      payload: Buffer.from('over there'),
      offload: OFFLOAD.NEEDS_CHECKSUM,
      checksumStart: 0,
    })
    end.pool.freeAll(batch)
    const message = once(peer, 'message')
    send(end, [{ to: bytesOf(family), port: peer.address().port, payload: Buffer.from('and back') }])
    const [data, from] = (await message) as [Buffer, RemoteInfo]
    expect([data.toString(), from.port]).toEqual(['and back', end.handle.port])
    const { row } = end.counters
    const headers = family === 4 ? 42 : 62
    expect(Array.from(row.subarray(0, 4))).toEqual([1, headers + 10, 1, headers + 8])
  })

  test.skipIf(!hasPython)('DSCP and ECN go out and come in (needs python3)', async () => {
    const peer: ChildProcess = spawn('python3', ['-c', PYTHON, String(family)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    closing.push(() => peer.kill())
    const [line] = await once(peer.stdout as NodeJS.ReadableStream, 'data')
    const end = open({ address: LOOPBACK[family] })
    const classes = [0, 1, 2, 3, 0xb8, 0xbb]
    send(
      end,
      classes.map(tos => ({ to: bytesOf(family), port: Number(line), tos, payload: Uint8Array.of(99) })),
    )
    const seen: number[][] = []
    while (seen.length < classes.length) {
      const batch = receive(end)
      for (let i = 0; i < batch.length; i++) {
        const { tos, payload } = read(end, batch.frames[i])
        seen.push([tos, ...payload])
      }
      end.pool.freeAll(batch)
    }
    expect(seen).toEqual(classes.map(tos => [tos, tos, 99]))
  })

  test.each([
    [true, true],
    [true, false],
    [false, true],
    [false, false],
  ])('ten thousand packets in order, segments %s, receive coalescing %s', (segment, gro) => {
    const from = open({ address: LOOPBACK[family], offload: segment })
    const to = open({ address: LOOPBACK[family], offload: gro })
    expect(from.device.capabilities).toBe(segment ? CAPABILITY.USO4 | CAPABILITY.USO6 : 0)
    const count = 10_000
    const received: Buffer[] = []
    let supers = 0
    const split = new Split(to.pool, new StageCounters('split'), batch => {
      for (let i = 0; i < batch.length; i++) received.push(read(to, batch.frames[i]).payload)
      to.pool.freeAll(batch)
    })
    const sent: Buffer[] = []
    for (let i = 0; i < count; i++) {
      const payload = Buffer.alloc(i % 100 < 70 ? 1000 : 8 + ((i * 37) % 1200), i)
      payload.writeUInt32BE(i)
      sent.push(payload)
    }
    for (let i = 0; i < count; i += 100) {
      send(
        from,
        sent.slice(i, i + 100).map(payload => ({ to: bytesOf(family), port: to.handle.port, payload })),
      )
      while (received.length < i + 100) {
        const batch = receive(to)
        for (let j = 0; j < batch.length; j++) if (to.pool.gso[batch.frames[j]] !== GSO.NONE) supers++
        split.run(batch)
      }
    }
    expect(Buffer.concat(received).equals(Buffer.concat(sent))).toBe(true)
    expect(received).toHaveLength(count)
    expect(from.counters.row[COLUMN.OUT_PACKETS]).toBe(count)
    expect(from.counters.row[COLUMN.CALLS]).toBeLessThanOrEqual(segment ? 110 : 250)
    expect(supers > 100).toBe(segment && gro)
    expect(to.counters.row[COLUMN.IN_PACKETS] < count / 2).toBe(segment && gro)
  })

  test.each([true, false])('a super-packet goes out as its datagrams, segments %s', async segment => {
    const peer = await nodeSocket(family)
    const messages: Buffer[] = []
    const all = new Promise<void>(resolve => peer.on('message', data => messages.push(data) === 5 && resolve()))
    const end = open({ address: LOOPBACK[family], offload: segment })
    const { port } = peer.address()
    const frame = frameOf(end.pool, { to: bytesOf(family), port, payload: new Uint8Array(3500).map((_, i) => i) })
    end.pool.gso[frame] = GSO.UDP
    end.pool.gsoSize[frame] = 1000
    const batch = new Batch()
    batch.push(frame)
    batch.push(frameOf(end.pool, { to: bytesOf(family), port, payload: Uint8Array.of(1) }))
    end.device.transmit(batch)
    await all
    expect(messages.map(data => data.length)).toEqual([1000, 1000, 1000, 500, 1])
    expect([...Buffer.concat(messages)]).toEqual([...new Uint8Array(3500).map((_, i) => i), 1])
    expect(end.counters.row[COLUMN.OUT_PACKETS]).toBe(2)
  })

  test('neighbours of another peer, class or a larger size do not share a message', () => {
    const from = open({ address: LOOPBACK[family] })
    const [a, b] = [open({ address: LOOPBACK[family] }), open({ address: LOOPBACK[family] })]
    const to = bytesOf(family)
    const datagram = (end: End, size: number, tos = 0) => ({
      to,
      port: end.handle.port,
      tos,
      payload: new Uint8Array(size),
    })
    const mixed = [
      datagram(a, 50),
      datagram(b, 50),
      datagram(a, 50),
      datagram(a, 50, 2),
      datagram(a, 60),
      datagram(a, 40),
      datagram(a, 40),
      datagram(a, 0),
    ]
    send(from, mixed)
    const sizes = (end: End, count: number) => {
      const found: number[][] = []
      new Split(end.pool, new StageCounters('split'), batch => {
        for (let i = 0; i < batch.length; i++) {
          const { payload, tos } = read(end, batch.frames[i])
          found.push([payload.length, tos])
        }
        end.pool.freeAll(batch)
      }).run(receive(end))
      expect(found).toHaveLength(count)
      return found
    }
    expect(sizes(b, 1)).toEqual([[50, 0]])
    expect(sizes(a, 7)).toEqual([
      [50, 0],
      [50, 0],
      [50, 2],
      [60, 0],
      [40, 0],
      [40, 0],
      [0, 0],
    ])
  })

  test('what cannot be sent is counted, never thrown', () => {
    const end = open({ address: LOOPBACK[family] })
    const to = bytesOf(family)
    const other = bytesOf(family === 4 ? 6 : 4)
    const payload = new Uint8Array(65_530)
    const tcp = frameOf(end.pool, { to, port: 9, payload: new Uint8Array(40) })
    end.pool.bytes[end.pool.start[tcp] + 14 + (family === 4 ? 9 : 6)] = 6
    const short = frameOf(end.pool, { to, port: 9, payload: new Uint8Array(4) })
    end.pool.length[short] -= 6
    const tso = frameOf(end.pool, { to, port: 9, payload: new Uint8Array(4) })
    end.pool.gso[tso] = GSO.TCP4
    const batch = new Batch()
    for (const frame of [tcp, short, tso]) batch.push(frame)
    end.device.transmit(batch)
    send(end, [{ to: other, port: 9, payload: new Uint8Array(9) }])
    send(end, [{ to, port: 9, payload }])
    send(end, [{ to, port: 0, payload: new Uint8Array(9) }])
    expect(end.counters.drops(DROP.NOT_TUNNEL)).toBe(3)
    expect(end.counters.drops(DROP.OFFLOAD)).toBe(1)
    expect(end.counters.drops(DROP.OVERSIZED)).toBe(1)
    expect(end.counters.drops(DROP.DEVICE_ERROR)).toBe(1)
    // Nobody listens there: the ICMP answer is for a socket that is not connected, and gets lost.
    for (let i = 0; i < 20; i++) send(end, [{ to, port: 9, payload: new Uint8Array(9) }])
    expect(end.counters.row[COLUMN.OUT_PACKETS]).toBe(20)
  })
})

describe('UDP device', () => {
  test('a socket for all addresses tells which one was meant, and answers from it', async () => {
    const peer = await nodeSocket(4)
    const end = open({ address: '0.0.0.0' })
    await new Promise(sent => peer.send('x', end.handle.port, '127.0.0.77', sent))
    const batch = receive(end)
    expect(read(end, batch.frames[0])).toMatchObject({ source: '127.0.0.1', destination: '127.0.0.77' })
    end.pool.freeAll(batch)
    const message = once(peer, 'message')
    send(end, [{ from: [127, 0, 0, 77], to: [127, 0, 0, 1], port: peer.address().port, payload: Uint8Array.of(1) }])
    expect((await message)[1]).toMatchObject({ address: '127.0.0.77' })
  })

  test('frames too small for coalesced datagrams turn coalescing off; a datagram that does not fit is dropped', () => {
    const from = open()
    const small = open({}, 64, 2048)
    const payload = new Uint8Array(1000)
    send(
      from,
      Array.from({ length: 20 }, () => ({ to: [127, 0, 0, 1], port: small.handle.port, payload })),
    )
    const batch = receive(small)
    expect(batch.length).toBe(20)
    small.pool.freeAll(batch)
    send(from, [{ to: [127, 0, 0, 1], port: small.handle.port, payload: new Uint8Array(1600) }])
    expect(receive(small).length).toBe(0)
    expect(small.counters.drops(DROP.OVERSIZED)).toBe(1)
    expect(small.counters.row[COLUMN.IN_PACKETS]).toBe(21)
  })

  test('without frames nothing is received, and nothing is lost', () => {
    const from = open()
    const to = open({}, 4)
    const taken = [to.pool.alloc(), to.pool.alloc(), to.pool.alloc(), to.pool.alloc()]
    send(from, [{ to: [127, 0, 0, 1], port: to.handle.port, payload: Uint8Array.of(5) }])
    expect(receive(to).length).toBe(0)
    for (const frame of taken) to.pool.free(frame)
    const batch = receive(to)
    expect(batch.length).toBe(1)
    to.pool.freeAll(batch)
  })

  test('a wildcard becomes the address that leads to the remote end', () => {
    const { handle } = open({ address: '', remote: '127.0.0.9' })
    expect(handle).toMatchObject({ family: 4, address: [127, 0, 0, 1] })
    expect(open({ address: '::', remote: '::1' }).handle).toMatchObject({ family: 6, address: bytesOf(6) })
  })

  test('set-up errors name what was wrong', () => {
    const { port } = open().handle
    expect(() => openUdp({ address: '127.0.0.1', port })).toThrow(`bind UDP socket 127.0.0.1 port ${port}: EADDRINUSE`)
    expect(() => openUdp({ address: 'nowhere', port: 0 })).toThrow(DetourError)
    expect(() => openUdp({ address: '::', port: 0, remote: '127.0.0.1' })).toThrow('different IP versions')
  })

  test.skipIf(!root)('a path that is too narrow for some costs only those (needs root)', () => {
    const name = `dtD-udp-${process.pid}`
    deleteNamespace(name)
    createNamespace(name)
    closing.push(() => deleteNamespace(name))
    ipCommand(['link', 'set', 'lo', 'mtu', '1000'], name)
    const [from, to] = inNamespace(name, () => [open(), open()])
    const sizes = [1200, 1200, 800, 900, 900]
    send(
      from,
      sizes.map(size => ({ to: [127, 0, 0, 1], port: to.handle.port, payload: new Uint8Array(size) })),
    )
    expect(from.counters.drops(DROP.OVERSIZED)).toBe(2)
    expect(from.counters.row[COLUMN.OUT_PACKETS]).toBe(3)
    const batch = receive(to)
    expect(Array.from(batch.frames.subarray(0, batch.length), frame => to.pool.length[frame])).toEqual([842, 1842])
    to.pool.freeAll(batch)
  })
})
