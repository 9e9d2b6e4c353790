// The tables of `detour show` for a face with several workers.

import { describe, expect, test } from 'vitest'
import { painter } from '../../src/cli/table.ts'
import { type ShowTopic, VIEWS } from '../../src/cli/views.ts'
import type { ReplyBodies } from '../../src/control/protocol.ts'
import { dropRows, stageRows } from '../../src/control/socket.ts'
import type { WorkerCounters } from '../../src/control/source.ts'
import { DROP } from '../../src/drop.ts'
import { Counters } from '../../src/memory/counters.ts'
import { FLOWS, fakeSource } from '../control/fake.ts'

function worker(name: string, packets: number): WorkerCounters {
  const counters = new Counters()
  const decap = counters.stage('decap')
  decap.received(packets, packets * 100)
  decap.sent(packets - 1, (packets - 1) * 100)
  decap.dropped(DROP.UNKNOWN_PEER)
  if (packets > 10) decap.dropped(DROP.POLICY, 2)
  return { worker: name, stages: counters.stages }
}

const workers = [worker('forward-0', 10), worker('forward-1', 32)]
const options = { paint: painter({ isTTY: false } as NodeJS.WriteStream), all: false }
const cells = (lines: string[]) => lines.slice(1).map(line => line.split(/ {2,}/))

test('stats: each worker, then all together, with rates of both', () => {
  const rows = stageRows(workers)
  const plain = cells(VIEWS.stats({ rows }, options)).map(line => line.slice(0, 5))
  expect(plain).toEqual([
    ['forward-0', 'decap', '10', '9', '1'],
    ['forward-1', 'decap', '32', '31', '3'],
    ['all', 'decap', '42', '40', '4'],
  ])
  const before = { reply: { rows: stageRows([worker('forward-0', 0), worker('forward-1', 12)]) }, seconds: 1 }
  const [, , all] = cells(VIEWS.stats({ rows }, { ...options, before }))
  expect(all.slice(5, 7)).toEqual(['30 pps', '30 pps'])
})

test('drops: each worker, then all together', () => {
  expect(cells(VIEWS.drops({ rows: dropRows(workers) }, options)).map(line => line.slice(0, 4))).toEqual([
    ['forward-1', 'decap', 'policy', '2'],
    ['forward-0', 'decap', 'unknown-peer', '1'],
    ['forward-1', 'decap', 'unknown-peer', '1'],
    ['all', 'decap', 'policy', '2'],
    ['all', 'decap', 'unknown-peer', '2'],
  ])
})

test('one worker needs no sum', () => {
  expect(VIEWS.stats({ rows: stageRows(workers.slice(0, 1)) }, options)).toHaveLength(2)
})

describe('rates', () => {
  const watch = <T extends ShowTopic>(topic: T, now: ReplyBodies[T], before: ReplyBodies[T]) => {
    const [title, ...lines] = VIEWS[topic](now, { ...options, before: { reply: before, seconds: 2 } })
    const titles = title.split(/ {2,}/)
    return lines.map(line => Object.fromEntries(line.split(/ {2,}/).map((cell, i) => [titles[i], cell])))
  }

  test('attachments: packets taken and lost a second', async () => {
    const [row] = await fakeSource().source.attachments()
    const now = { rows: [{ ...row, redirected: 5000, failDropped: 19, missed: 4323 }] }
    expect(watch('attachments', now, { rows: [row] })).toEqual([
      expect.objectContaining({ TAKEN: '5,000', 'TAKEN/S': '2.00 kpps', MISSED: '4,323', 'LOST/S': '6 pps' }),
    ])
    expect(VIEWS.attachments({ rows: [row] }, options)[0]).not.toContain('/S')
  })

  test('an attachment that was not there before has none yet', async () => {
    const [row] = await fakeSource().source.attachments()
    const [line] = watch('attachments', { rows: [{ ...row, id: 'new' }] }, { rows: [row] })
    expect(line['TAKEN/S']).toBe('0 pps')
  })

  test('endpoints: answers a second', () => {
    const [row] = fakeSource().source.endpoints?.() ?? []
    const now = { rows: [{ ...row, probesAnswered: row.probesAnswered + 20 }] }
    expect(watch('endpoints', now, { rows: [row] })[0]).toMatchObject({ NAME: 'gw-a', 'ANSWERED/S': '10.0' })
  })

  test('flows and underlay', async () => {
    const page = { matched: 1, total: 1, capacity: 10 }
    const [, title, line] = VIEWS.flows(
      { ...page, rows: [{ ...FLOWS[0], sentBytes: FLOWS[0].sentBytes + 250_000, endpoint: 'gw-a' }] },
      { ...options, before: { reply: { ...page, rows: [FLOWS[0]] }, seconds: 2 } },
    )
    expect(title.split(/ {2,}/).filter(each => each === 'RATE')).toHaveLength(2)
    expect(line).toContain('1.00 Mbit/s')
    const [row] = await fakeSource().source.underlay()
    const now = { rows: [{ ...row, missed: 8 }] }
    expect(watch('underlay', now, { rows: [{ ...row, missed: 0 }] })[0]['MISSED/S']).toBe('4 pps')
  })

  test('a pod has a column where one is known', async () => {
    const [row] = await fakeSource().source.attachments()
    expect(VIEWS.attachments({ rows: [row, { ...row, pod: 'default/web-0' }] }, options)[0]).toContain('POD')
    expect(VIEWS.attachments({ rows: [row] }, options)[0]).not.toContain('POD')
  })
})

test('stages of the kernel stand for themselves', () => {
  const gates = { ...worker('kernel', 5), stages: worker('kernel', 5).stages }
  const lines = cells(VIEWS.stats({ rows: stageRows([workers[0], gates]) }, options))
  expect(lines.map(([name]) => name)).toEqual(['forward-0', 'kernel'])
})
