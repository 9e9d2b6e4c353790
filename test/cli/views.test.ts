// The tables of `detour show` for a face with several workers.

import { expect, test } from 'vitest'
import { painter } from '../../src/cli/table.ts'
import { VIEWS } from '../../src/cli/views.ts'
import { dropRows, stageRows } from '../../src/control/socket.ts'
import type { WorkerCounters } from '../../src/control/source.ts'
import { DROP } from '../../src/drop.ts'
import { Counters } from '../../src/memory/counters.ts'

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
