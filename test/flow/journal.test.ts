// What a flow table notes of flows for people.

import { describe, expect, test } from 'vitest'
import { JOURNAL_WORDS, journalEntry, keepJournal } from '../../src/flow/journal.ts'
import { KEY } from '../../src/flow/key.ts'
import { createFlowTable } from '../../src/flow/layout.ts'
import { FlowTable } from '../../src/flow/table.ts'
import { VERDICT } from '../../src/flow/verdict.ts'
import { KEY_WORDS } from '../../src/memory/pool.ts'
import { createRecords, RecordReader } from '../../src/memory/records.ts'

const [FIN, SYN, RST, ACK] = [1, 2, 4, 16]
const TCP = 6

/** Keys of TCP flows from 10.0.0.1 to 10.0.0.2, of attachment 3; the last one is of IPv6 and UDP. */
function makeKeys(count: number): Int32Array {
  const keys = new Int32Array(count * KEY_WORDS)
  for (let i = 0; i < count; i++) {
    const at = i * KEY_WORDS
    keys[at + KEY.KIND] = (4 << 24) | (TCP << 16) | 3
    keys[at + KEY.PORTS] = ((40_000 + i) << 16) | 443
    keys[at + KEY.A] = 0x0a000001
    keys[at + KEY.B] = 0x0a000002
  }
  const six = (count - 1) * KEY_WORDS
  keys[six + KEY.KIND] = (6 << 24) | (17 << 16) | 3
  keys.set([0xfd000000, 0, 0, 1, 0xfd000000, 0, 0, 2], six + KEY.A)
  return keys
}

function scene(flows: number, capacity = 64) {
  const table = new FlowTable(createFlowTable({ capacity: 256 }))
  const records = createRecords(capacity, JOURNAL_WORDS)
  keepJournal(table, records)
  const reader = new RecordReader(records)
  const keys = makeKeys(flows)
  table.now = 1000
  const rows = Array.from({ length: flows }, (_, i) => {
    const row = table.insert(keys, i * KEY_WORDS, i * 77, 0)
    table.setVerdict(row, VERDICT.STEER)
    table.onBegin?.(row)
    return row
  })
  const entries = () => {
    const all = []
    for (let record = reader.next(); record !== undefined; record = reader.next()) all.push(journalEntry(record))
    return all
  }
  return { table, rows, entries, reader }
}

describe('the journal', () => {
  test('a flow that begins, with its key and verdict', () => {
    const { entries } = scene(2)
    const [tcp, udp] = entries()
    expect(tcp).toMatchObject({ event: 'start', timeMs: 1000 })
    expect(tcp.flow).toMatchObject({
      ...{ attachment: 3, protocol: TCP, addressA: '10.0.0.1', portA: 40_000, addressB: '10.0.0.2', portB: 443 },
      ...{ verdict: VERDICT.STEER, packetsAB: 0, firstSeenMs: 1000 },
    })
    expect(udp.flow).toMatchObject({ protocol: 17, addressA: 'fd00::1', addressB: 'fd00::2' })
  })

  test('why each one ended, and what it had carried', () => {
    const { table, rows, entries } = scene(4)
    entries()
    const [closed, reset, idle] = rows
    table.now = 2000
    table.touch(closed, 0, 3, 300)
    table.touch(closed, 1, 2, 20_000)
    for (const end of [0, 1]) table.tcpFlags(closed, end, FIN | ACK)
    table.tcpFlags(reset, 0, SYN)
    table.tcpFlags(reset, 1, RST)
    table.touch(idle, 0, 1, 60)
    table.now = 14_000
    expect(table.expire(100)).toBe(2)
    table.now = 400_000
    table.expire(100)
    const ended = entries()
    expect(ended.map(({ event, flow }) => [flow.portA, event])).toEqual([
      [40_000, 'closed'],
      [40_001, 'reset'],
      [40_002, 'idle'],
      [40_003, 'idle'],
    ])
    expect(ended[0]).toMatchObject({ timeMs: 14_000 })
    expect(ended[0].flow).toMatchObject({ packetsAB: 3, bytesAB: 300, packetsBA: 2, bytesBA: 20_000, lastSeenMs: 2000 })
  })

  test('flows of an attachment that is gone end at once, those of the next one of its number do not', () => {
    const { table, entries } = scene(2)
    entries()
    table.setGone(3, true)
    expect(table.expire(100)).toBe(2)
    expect(entries().map(({ event }) => event)).toEqual(['detached', 'detached'])
    table.setGone(3, false)
    const keys = makeKeys(2)
    table.insert(keys, 0, 0, 0)
    expect([table.expire(100), table.count, table.everCreated]).toEqual([0, 1, 3])
  })

  test('what nobody reads in time is lost and counted; flows come and go', () => {
    const { table, rows, entries, reader } = scene(10, 4)
    for (const row of rows) table.remove(row)
    expect(reader.lost).toBe(16)
    expect(entries()).toHaveLength(4)
    expect(table.count).toBe(0)
  })
})
