// The flow table: against a Map, at a million flows, full, and as another thread sees it.

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FIXED_SEED, hashKey } from '../../src/flow/hash.ts'
import { KEY } from '../../src/flow/key.ts'
import { COLD, createFlowTable, type FlowTableOptions, LINE, layoutOf } from '../../src/flow/layout.ts'
import { FlowTable, REFUSED } from '../../src/flow/table.ts'
import { VERDICT } from '../../src/flow/verdict.ts'
import { FlowView } from '../../src/flow/view.ts'
import { Batch } from '../../src/memory/batch.ts'
import { KEY_WORDS } from '../../src/memory/pool.ts'
import { makeFlows } from './flows.ts'
import { allocatedBy, PER_READING } from './heap.ts'

const TCP = 6
const UDP = 17
const [FIN, SYN, RST, ACK] = [1, 2, 4, 16]

function make(options: FlowTableOptions): { table: FlowTable; view: FlowView } {
  const handle = createFlowTable(options)
  return { table: new FlowTable(handle), view: new FlowView(handle) }
}

describe('FlowTable', () => {
  it('holds a million flows, finds each, and lets each go when idle', () => {
    const count = 1_000_000
    const { keys, hash } = makeFlows(count)
    const { table, view } = make({ capacity: count })
    const rows = new Int32Array(count)
    table.now = 1000
    for (let i = 0; i < count; i++) rows[i] = table.insert(keys, i * KEY_WORDS, hash[i], 0)
    expect(table.count).toBe(count)
    expect(new Set(rows).size).toBe(count)
    expect(table.insert(keys, 0, hash[0], 0)).toBe(-1)
    let wrong = 0
    for (let i = 0; i < count; i++) if (table.find(keys, i * KEY_WORDS, hash[i]) !== rows[i]) wrong++
    expect(wrong).toBe(0)
    table.now = 351_000
    expect(table.expire(count)).toBe(0)
    for (let i = 0; i < count; i += 2) table.touch(rows[i], 0, 1, 64)
    table.now = 351_001
    expect(table.expire(count)).toBe(count / 2)
    for (let i = 0; i < count; i++) if (table.find(keys, i * KEY_WORDS, hash[i]) !== (i % 2 ? -1 : rows[i])) wrong++
    expect(wrong).toBe(0)
    table.now = 1e6
    let calls = 0
    for (; table.count > 0; calls++) table.expire(10_000)
    expect(calls).toBeLessThanOrEqual(count / 10_000)
    expect([...view.flows()]).toEqual([])
  })

  it('behaves as a Map does, whatever happens in whatever order', () => {
    const FLOWS = 40
    const CAPACITY = 24
    const { keys } = makeFlows(FLOWS)
    const flow = fc.nat(FLOWS - 1)
    const step = fc.oneof(
      fc.record({ do: fc.constant('insert' as const), flow, reversed: fc.nat(1) }),
      fc.record({ do: fc.constant('touch' as const), flow, reversed: fc.nat(1), bytes: fc.nat(65_535) }),
      fc.record({ do: fc.constant('remove' as const), flow }),
      fc.record({ do: fc.constant('wait' as const), ms: fc.nat(200_000) }),
      fc.record({ do: fc.constant('expire' as const) }),
    )
    const run = (steps: (typeof step extends fc.Arbitrary<infer S> ? S : never)[], hashes: number[]) => {
      const { table, view } = make({ capacity: CAPACITY })
      const model = new Map<number, { seen: number; packets: number[]; bytes: number[]; row: number }>()
      const ended: number[] = []
      table.onEnd = row => ended.push(row)
      const all = new Batch(FLOWS)
      for (let i = 0; i < FLOWS; i++) all.push(i)
      const hash = Int32Array.from(hashes)
      const rows = new Int32Array(FLOWS).fill(-1)
      let now = 0
      for (const step of steps) {
        if (step.do === 'insert') {
          const at = step.flow * KEY_WORDS
          if (model.has(step.flow)) continue
          if (model.size === CAPACITY) {
            const idle = [...model].filter(([, { seen }]) => now - seen > 350_000)
            for (const [gone] of idle) model.delete(gone)
          }
          const row = table.insert(keys, at, hashes[step.flow], step.reversed)
          expect(row >= 0).toBe(model.size < CAPACITY)
          if (row >= 0) model.set(step.flow, { seen: now, packets: [0, 0], bytes: [0, 0], row })
        } else if (step.do === 'touch') {
          const known = model.get(step.flow)
          if (known === undefined) continue
          table.touch(known.row, step.reversed, 2, step.bytes)
          known.seen = now
          known.packets[step.reversed] += 2
          known.bytes[step.reversed] += step.bytes
        } else if (step.do === 'remove') {
          const known = model.get(step.flow)
          if (known === undefined) continue
          ended.length = 0
          table.remove(known.row)
          expect(ended).toEqual([known.row])
          model.delete(step.flow)
        } else if (step.do === 'wait') {
          table.now = now += step.ms
        } else {
          const idle = [...model].filter(([, { seen }]) => now - seen > 350_000)
          ended.length = 0
          expect(table.expire(CAPACITY)).toBe(idle.length)
          expect(ended.sort()).toEqual(idle.map(([, { row }]) => row).sort())
          for (const [gone] of idle) model.delete(gone)
        }
        expect(table.count).toBe(model.size)
        for (let i = 0; i < FLOWS; i++) expect(table.find(keys, i * KEY_WORDS, hashes[i])).toBe(model.get(i)?.row ?? -1)
        // What was known before the step, right or wrong by now, leads to the same rows.
        for (let i = 0; i < FLOWS; i++) {
          const at = i * KEY_WORDS
          const row = model.get(i)?.row ?? -1
          expect(table.known(Math.max(0, rows[i]), keys, at, hashes[i])).toBe(row)
          expect([row, -1]).toContain(table.recall(keys, at))
          if (row >= 0) {
            table.remember(keys, at, row)
            expect(table.recall(keys, at)).toBe(row)
          }
        }
        if (step.do !== 'touch') rows.fill(-1)
        table.warm(all, hash, rows)
      }
      const counters = new Map([...view.flows()].map(flow => [flow.row, flow]))
      expect(counters.size).toBe(model.size)
      for (const { row, packets, bytes } of model.values()) {
        const { packetsAB, packetsBA, bytesAB, bytesBA } = counters.get(row)!
        expect([packetsAB, packetsBA, bytesAB, bytesBA]).toEqual([...packets, ...bytes])
      }
    }
    // Few different hashes, so that runs of the index collide, wrap around and are closed again.
    const hashes = fc.array(fc.constantFrom(0, 1, 2, -1, 1 << 30, 0x55555555), { minLength: FLOWS, maxLength: FLOWS })
    fc.assert(fc.property(fc.array(step, { maxLength: 120 }), hashes, run), { numRuns: 300 })
  })

  it('tells flows with one hash apart by every word of the key', () => {
    const { table } = make({ capacity: 64 })
    const keys = new Int32Array(KEY_WORDS)
    keys[0] = 6 << 24
    const rows = [table.insert(keys, 0, 99, 0)]
    for (let word = 0; word < KEY.WORDS; word++) {
      keys[word] ^= 1
      expect(table.find(keys, 0, 99)).toBe(-1)
      rows.push(table.insert(keys, 0, 99, 0))
      keys[word] ^= 1
    }
    expect(new Set(rows).size).toBe(KEY.WORDS + 1)
    expect(table.find(keys, 0, 99)).toBe(rows[0])
  })

  it('recalls a flow by its whole key only, and not when it has ended', () => {
    const { table } = make({ capacity: 8 })
    const keys = new Int32Array(2 * KEY_WORDS)
    keys.set([(6 << 24) | (TCP << 16), 1, 2, 3, 4, 5, 6, 7, 8, 9])
    const row = table.insert(keys, 0, 99, 0)
    expect(table.recall(keys, 0)).toBe(-1)
    table.remember(keys, 0, row)
    expect(table.recall(keys, 0)).toBe(row)
    for (let word = 0; word < KEY.WORDS; word++) {
      keys[word] ^= 1
      expect(table.recall(keys, 0), `word ${word}`).toBe(-1)
      keys[word] ^= 1
    }
    // Words 3, 4, 7 and 8 have no part in where a flow is remembered: another key in the same place.
    keys.set(keys.subarray(0, KEY_WORDS), KEY_WORDS)
    keys[KEY_WORDS + 3] ^= 1
    expect(table.recall(keys, KEY_WORDS)).toBe(-1)
    table.remove(row)
    expect(table.recall(keys, 0)).toBe(-1)
    expect(table.insert(keys, KEY_WORDS, 99, 0)).toBe(row)
    expect(table.recall(keys, 0)).toBe(-1)
    expect(table.recall(keys, KEY_WORDS)).toBe(row)
  })

  it('makes room for a new flow when it is full of idle ones, and says -1 when they are not', () => {
    const { keys, hash } = makeFlows(101)
    const { table } = make({ capacity: 100 })
    for (let i = 0; i < 100; i++) expect(table.insert(keys, i * KEY_WORDS, hash[i], 0)).toBeGreaterThan(0)
    expect(table.insert(keys, 100 * KEY_WORDS, hash[100], 0)).toBe(-1)
    expect(table.count).toBe(100)
    table.now = 350_001
    const row = table.insert(keys, 100 * KEY_WORDS, hash[100], 0)
    expect(row).toBeGreaterThan(0)
    expect(table.find(keys, 100 * KEY_WORDS, hash[100])).toBe(row)
  })

  it('gives an attachment its quota and no more, others theirs, and counts again what a table already has', () => {
    const { keys, hash } = makeFlows(30)
    const handle = createFlowTable({ capacity: 100, quota: 10 })
    const attachments = [1, 4096, 65_535]
    for (let i = 0; i < 30; i++) keys[i * KEY_WORDS] = (4 << 24) | (UDP << 16) | attachments[i % 3]
    const enter = (table: FlowTable, i: number) => table.insert(keys, i * KEY_WORDS, hash[i], 0)
    const first = new FlowTable(handle)
    for (let i = 0; i < 30; i++) expect(enter(first, i)).toBeGreaterThan(0)
    for (const table of [first, new FlowTable(handle)]) {
      expect([30, 31, 32].map(i => enter(table, i % 30))).toEqual([REFUSED.QUOTA, REFUSED.QUOTA, REFUSED.QUOTA])
      expect(table.count).toBe(30)
    }
    const row = first.find(keys, 3 * KEY_WORDS, hash[3])
    first.remove(row)
    expect([1, 2, 3, 6].map(i => enter(first, i))).toEqual([REFUSED.QUOTA, REFUSED.QUOTA, row, REFUSED.QUOTA])
    first.now = 120_001
    expect(first.expire(100)).toBe(30)
    for (let i = 0; i < 30; i++) expect(enter(first, i)).toBeGreaterThan(0)
  })

  it('forgets TCP after 350 s, all else after 120, a finished connection after 10', () => {
    const { keys, hash } = makeFlows(5)
    keys[4 * KEY_WORDS] = (4 << 24) | (UDP << 16)
    const { table } = make({ capacity: 8 })
    const [idle, reset, finished, reused, udp] = [0, 1, 2, 3, 4].map(i => table.insert(keys, i * KEY_WORDS, hash[i], 0))
    table.tcpFlags(idle, 0, FIN | ACK)
    table.tcpFlags(idle, 0, FIN | ACK) // twice from one end does not finish a connection
    table.tcpFlags(reset, 1, RST)
    table.tcpFlags(finished, 0, FIN | ACK)
    table.tcpFlags(finished, 1, FIN | ACK)
    table.tcpFlags(reused, 0, RST)
    table.tcpFlags(reused, 0, SYN)
    const ended: number[] = []
    table.onEnd = row => ended.push(row)
    const endedBy = (ms: number) => {
      table.now = ms
      table.expire(8)
      return ended.splice(0).sort()
    }
    expect(endedBy(10_000)).toEqual([])
    expect(endedBy(10_001)).toEqual([reset, finished])
    expect(endedBy(120_000)).toEqual([])
    expect(endedBy(120_001)).toEqual([udp])
    expect(endedBy(350_000)).toEqual([])
    expect(endedBy(350_001)).toEqual([idle, reused])
  })

  it('takes other timeouts', () => {
    const { keys, hash } = makeFlows(1, UDP)
    const { table } = make({ capacity: 1, idleMs: 5 })
    table.insert(keys, 0, hash[0], 0)
    table.now = 6
    expect(table.expire(1)).toBe(1)
  })

  it('keeps what the owner writes, and starts a row anew for the next flow', () => {
    const { keys, hash } = makeFlows(2)
    const { table } = make({ capacity: 1 })
    const row = table.insert(keys, 0, hash[0], 1)
    table.setVerdict(row, VERDICT.DROP)
    table.setRule(row, -1)
    table.setEndpoint(row, 3)
    table.setCookie(row, -5)
    table.setState(row, 1 << 31)
    table.tcpFlags(row, 0, RST)
    const all = (row: number) => [
      table.verdict(row),
      table.rule(row),
      table.endpoint(row),
      table.cookie(row),
      table.state(row),
    ]
    let last: number[] = []
    table.onEnd = row => (last = all(row))
    expect(all(row)).toEqual([VERDICT.DROP, -1, 3, -5, 1 << 31])
    table.remove(row)
    expect(last).toEqual([VERDICT.DROP, -1, 3, -5, 1 << 31])
    expect(table.insert(keys, KEY_WORDS, hash[1], 0)).toBe(row)
    expect(all(row)).toEqual([0, 0, 0, 0, 0])
  })

  it('refuses a size that makes no sense', () => {
    for (const capacity of [0, -1, 1.5, Number.NaN, 2 ** 20 + 1])
      expect(() => createFlowTable({ capacity })).toThrow(RangeError)
    expect(() => createFlowTable({ capacity: 2 ** 20 })).not.toThrow()
  })

  it('commits memory only for the flows there are', () => {
    const before = process.memoryUsage.rss()
    const { keys, hash } = makeFlows(10)
    const { table } = make({ capacity: 2 ** 20 })
    for (let i = 0; i < 10; i++) table.insert(keys, i * KEY_WORDS, hash[i], 0)
    expect(process.memoryUsage.rss() - before).toBeLessThan(32 * 2 ** 20)
  })

  it('allocates nothing for 1,000,000 packets', () => {
    const flows = 10_000
    const { keys, hash } = makeFlows(flows)
    const { table } = make({ capacity: flows })
    for (let i = 0; i < flows; i++) table.insert(keys, i * KEY_WORDS, hash[i], 0)
    const batch = new Batch(250)
    const flow = new Int32Array(flows).fill(-1)
    let missing = 0
    const packets = (step: number) => {
      const from = step * 250
      batch.length = 0
      for (let i = from; i < from + 250; i++) batch.push(i % flows)
      table.warm(batch, hash, flow)
      for (let i = 0; i < 250; i++) {
        const frame = batch.frames[i]
        table.now = 1.5 + from + i
        const row = table.find(keys, frame * KEY_WORDS, hashKey(keys, frame * KEY_WORDS, FIXED_SEED))
        if (row < 0) missing++
        table.touch(row, i & 1, 3, 65_000)
        table.tcpFlags(row, i & 1, ACK)
        if (table.verdict(row) !== 0) missing++
      }
      table.expire(100)
    }
    expect(allocatedBy(4000, packets)).toBeLessThan(4000 * PER_READING)
    expect(missing).toBe(0)
  })
})

describe('FlowView', () => {
  it('reads flows as people see them', () => {
    const { table, view } = make({ capacity: 4 })
    const keys = new Int32Array(2 * KEY_WORDS)
    keys.set([(4 << 24) | (TCP << 16) | 9, (40_000 << 16) | 443, 0x0a010203, 0, 0, 0, 0xc0000209 | 0])
    keys.set([(6 << 24) | (UDP << 16), 53, 0x20010db8, 0, 0, 1, 0xfd000000 | 0, 0, 0, 0xffff], KEY_WORDS)
    table.now = 1.7e12
    const first = table.insert(keys, 0, 1, 1)
    table.setVerdict(first, VERDICT.STEER)
    table.setCookie(first, 77)
    table.touch(first, 1, 1, 60)
    table.now = 1.7e12 + 5
    table.touch(first, 0, 45, 2 ** 16)
    for (let i = 0; i < 100_000; i++) table.touch(first, 0, 1, 65_536)
    table.insert(keys, KEY_WORDS, 2, 0)
    expect(view.count).toBe(2)
    expect(view.now).toBe(1.7e12 + 5)
    const [tcp, udp] = view.flows()
    expect(tcp).toMatchObject({
      attachment: 9,
      protocol: TCP,
      addressA: '10.1.2.3',
      portA: 40_000,
      addressB: '192.0.2.9',
      portB: 443,
      openedBy: 'b',
      closed: false,
      verdict: VERDICT.STEER,
      cookie: 77,
      firstSeenMs: 1.7e12,
      lastSeenMs: 1.7e12 + 5,
      packetsAB: 100_045,
      bytesAB: 65_536 * 100_001,
      packetsBA: 1,
      bytesBA: 60,
    })
    expect(udp).toMatchObject({ addressA: '2001:db8::1', portA: 0, addressB: 'fd00::ffff', portB: 53, openedBy: 'a' })
    expect([...view.flows(udp.row)]).toEqual([udp])
    table.tcpFlags(first, 0, FIN)
    expect(view.read(first)?.closed).toBe(false)
    table.tcpFlags(first, 1, FIN)
    expect(view.read(first)?.closed).toBe(true)
    table.remove(first)
    expect([...view.flows()]).toEqual([udp])
  })

  it('leaves out a row that is changing hands', () => {
    const handle = createFlowTable({ capacity: 1 })
    const table = new FlowTable(handle)
    const { keys, hash } = makeFlows(1)
    const row = table.insert(keys, 0, hash[0], 0)
    const view = new FlowView(handle)
    const cold = new Int32Array(handle.memory, layoutOf(handle).cold)
    cold[row * LINE + COLD.SEQUENCE]++
    expect(view.read(row)).toBeUndefined()
    cold[row * LINE + COLD.SEQUENCE]++
    expect(view.read(row)).toBeDefined()
  })
})
