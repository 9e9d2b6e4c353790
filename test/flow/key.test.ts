// Flow keys of packets that scapy built, and of the same packets damaged.

import fc from 'fast-check'
import ipaddr from 'ipaddr.js'
import { describe, expect, it } from 'vitest'
import { FRAGMENT_MS, FragmentTable } from '../../src/flow/fragments.ts'
import { FIXED_SEED, randomSeed } from '../../src/flow/hash.ts'
import { readKey } from '../../src/flow/key.ts'
import { createPool, Pool } from '../../src/memory/pool.ts'
import { parse } from '../../src/pipeline/parse.ts'
import { allocatedBy, PER_READING } from './heap.ts'
import { bytesOf, type Flow, flows, packets, Reader } from './packets.ts'

const ATTACHMENT = 7

/** The key that a flow must have by its description alone, and whether the client is end B. */
function expected(flow: Flow): { key: number[]; clientIsB: boolean } {
  const end = (address: string, port: number) => ({ bytes: ipaddr.parse(address).toByteArray(), port })
  const client = end(flow.client, flow.clientPort)
  const server = end(flow.server, flow.serverPort)
  const order = Buffer.compare(Buffer.from(client.bytes), Buffer.from(server.bytes)) || client.port - server.port
  const [a, b] = order <= 0 ? [client, server] : [server, client]
  const words = (bytes: number[]) => {
    const padded = Buffer.alloc(16)
    padded.set(bytes)
    return [0, 4, 8, 12].map(at => padded.readInt32BE(at))
  }
  const version = a.bytes.length === 4 ? 4 : 6
  const kind = (version << 24) | (flow.protocol << 16) | ATTACHMENT
  return { key: [kind, (a.port << 16) | b.port, ...words(a.bytes), ...words(b.bytes)], clientIsB: order > 0 }
}

describe('readKey', () => {
  // One reader, in order: fragments depend on those before them.
  const reader = new Reader()
  const read = packets.map(packet => ({ packet, ...reader.read(bytesOf(packet), 1000, ATTACHMENT) }))

  it.each(read)('$packet.name belongs to $packet.flow', ({ packet, reason, key, reversed }) => {
    const { key: wanted, clientIsB } = expected(flows[packet.flow])
    expect({ reason, key }).toEqual({ reason: 0, key: wanted })
    if (packet.flow !== 'to itself' || packet.sender === 'client')
      expect(reversed === 1).toBe((packet.sender === 'client') === clientIsB)
  })

  it('gives one hash to all packets of a flow and different ones to different flows', () => {
    const hashes = new Map<string, Set<number>>()
    for (const { packet, hash } of read) hashes.set(packet.flow, (hashes.get(packet.flow) ?? new Set()).add(hash))
    for (const [flow, of] of hashes) expect([flow, of.size]).toEqual([flow, 1])
    expect(new Set([...hashes.values()].flatMap(of => [...of])).size).toBe(hashes.size)
  })

  it('tells the two ways of a flow between equal addresses apart by port', () => {
    const [out, back] = read.filter(({ packet }) => packet.flow === 'to itself')
    expect(out.reversed).toBe(1 - back.reversed)
  })

  it('keeps attachments apart only when asked to', () => {
    const bytes = bytesOf(packets[0])
    expect(reader.read(bytes, 0, 1).key).not.toEqual(reader.read(bytes, 0, 2).key)
    reader.withAttachment = false
    expect(reader.read(bytes, 0, 1)).toEqual(reader.read(bytes, 0, 2))
    expect(reader.read(bytes, 0, 1).key[0] & 0xffff).toBe(0)
  })

  it('says of a packet behind any other what it says of it alone', () => {
    const pool = new Pool(createPool({ frames: packets.length, frameSize: 4096, headroom: 256 }))
    const fragments = new FragmentTable()
    const read = (frame: number, before: number) => {
      pool.hash[frame] = 0
      expect(readKey(pool, frame, fragments, FIXED_SEED, true, undefined, before)).toBe(0)
      return pool.hash[frame]
    }
    for (const packet of packets) {
      const bytes = bytesOf(packet)
      const frame = pool.alloc()
      pool.bytes.set(bytes, pool.start[frame])
      pool.length[frame] = bytes.length
      pool.attachment[frame] = ATTACHMENT
      expect(parse(pool, frame, pool.start[frame], pool.start[frame] + bytes.length)).toBe(0)
    }
    const alone = packets.map((_, frame) => read(frame, -1))
    for (let frame = 0; frame < packets.length; frame++)
      for (let before = 0; before < packets.length; before++)
        if (before !== frame) expect(read(frame, before), packets[frame].name).toBe(alone[frame])
  })

  it('hashes by the seed', () => {
    const other = new Reader()
    other.seed = randomSeed()
    const bytes = bytesOf(packets[0])
    expect(other.read(bytes).key).toEqual(new Reader().read(bytes).key)
    expect(other.read(bytes).hash).not.toBe(new Reader().read(bytes).hash)
  })
})

describe('readKey on the path', () => {
  it('allocates nothing for 1,000,000 packets of every kind', () => {
    const pool = new Pool(createPool({ frames: packets.length, frameSize: 4096, headroom: 256 }))
    const fragments = new FragmentTable()
    for (const packet of packets) {
      const frame = pool.alloc()
      const bytes = bytesOf(packet)
      pool.bytes.set(bytes, pool.start[frame])
      pool.length[frame] = bytes.length
      pool.time[frame] = 1.7e12 + 0.5
      expect(parse(pool, frame, pool.start[frame], pool.start[frame] + bytes.length)).toBe(0)
    }
    const steps = 4000
    const step = () => {
      for (let i = 0; i < 250; i++) readKey(pool, i % packets.length, fragments, FIXED_SEED, true)
    }
    expect(allocatedBy(steps, step)).toBeLessThan(steps * PER_READING)
  })
})

describe('fragments', () => {
  const named = (name: string) => bytesOf(packets.find(packet => packet.name === name)!)
  const ports = (reader: Reader, name: string, timeMs: number) => reader.read(named(name), timeMs).key[1]

  it.each(['fragment', 'IPv6 fragment'])('%s: have no ports before the first, nor after too long', kind => {
    const reader = new Reader()
    expect(ports(reader, `${kind} 3 of 3`, 0)).toBe(0)
    const known = ports(reader, `${kind} 1 of 3`, 1)
    expect([known >>> 16, known & 0xffff].sort()).toEqual([5000, 53])
    expect(ports(reader, `${kind} 3 of 3`, 2)).toBe(known)
    expect(ports(reader, `${kind} 2 of 3`, 1 + FRAGMENT_MS)).toBe(known)
    expect(ports(reader, `${kind} 2 of 3`, 2 + FRAGMENT_MS)).toBe(0)
  })

  it('of both versions do not disturb each other', () => {
    const reader = new Reader()
    const known = ['fragment', 'IPv6 fragment'].map(kind => ports(reader, `${kind} 1 of 3`, 0))
    expect(['fragment', 'IPv6 fragment'].map(kind => ports(reader, `${kind} 2 of 3`, 0))).toEqual(known)
    expect(['fragment', 'IPv6 fragment'].map(kind => ports(reader, `${kind} 3 of 3`, 0))).toEqual(known)
  })

  it('remember at most as many datagrams as there is room for, the newest first', () => {
    const reader = new Reader()
    const first = named('fragment 1 of 3')
    const second = named('fragment 2 of 3')
    const IDENTIFICATION = 18
    const identified = (bytes: Uint8Array, id: number) => {
      const copy = Buffer.from(bytes)
      copy.writeUInt16BE(id, IDENTIFICATION)
      return copy
    }
    for (let id = 0; id < 5000; id++) {
      const known = reader.read(identified(first, id), id).key[1]
      expect(reader.read(identified(second, id), id).key[1]).toBe(known)
    }
    let remembered = 0
    for (let id = 0; id < 5000; id++) if (reader.read(identified(second, id), 5000).key[1] !== 0) remembered++
    expect(remembered).toBe(64)
  })
})

describe('readKey of damaged packets', () => {
  // Two readers, one with 0xa5 behind the packet and one with 0x5a: whoever reads there gives two answers.
  const readers = [new Reader(0xa5), new Reader(0x5a)]

  function readBoth(bytes: Uint8Array): void {
    const [one, other] = readers.map(reader => reader.read(bytes))
    expect(one.reason).toBe(other.reason)
    if (one.reason === 0) expect(one).toEqual(other)
  }

  it('never reads behind the end, however short the packet', () => {
    for (const packet of packets) {
      const bytes = bytesOf(packet)
      for (let length = 0; length <= Math.min(bytes.length, 200); length++) readBoth(bytes.subarray(0, length))
    }
  })

  it('never throws or reads behind the end, whatever the bytes', () => {
    const damage = fc.record({
      packet: fc.constantFrom(...packets.map(bytesOf)),
      length: fc.double({ min: 0.3, max: 1, noNaN: true }),
      flips: fc.array(fc.tuple(fc.nat(150), fc.nat(255)), { minLength: 1, maxLength: 6 }),
    })
    const property = fc.property(damage, ({ packet, length, flips }) => {
      const bytes = packet.slice(0, Math.ceil(packet.length * length))
      for (const [at, value] of flips) if (at < bytes.length) bytes[at] = value
      readBoth(bytes)
    })
    fc.assert(property, { numRuns: 20_000 })
  })
})
