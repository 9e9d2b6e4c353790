// A child program: enters and ends flows in the shared table of descriptor 3, as fast as it can, until it is killed. Argument: its capacity.

import { openFlowTable } from '../../src/flow/live.ts'
import { FlowTable } from '../../src/flow/table.ts'
import { KEY_WORDS } from '../../src/memory/pool.ts'
import { makeFlows } from './flows.ts'

const capacity = Number(process.argv[2])
const { keys, hash } = makeFlows(4 * capacity)
const { handle } = openFlowTable({ capacity, quota: capacity, tcpIdleMs: 1e9, idleMs: 1e9, lingerMs: 1e9, fd: 3 })
const table = new FlowTable(handle)
table.now = 1
let state = process.pid
for (let n = 0; ; n++) {
  state = (Math.imul(state, 1664525) + 1013904223) | 0
  const flow = (state >>> 8) % (4 * capacity)
  const row = table.find(keys, flow * KEY_WORDS, hash[flow])
  if (row >= 0) table.remove(row)
  else if (table.count < capacity) table.setState(table.insert(keys, flow * KEY_WORDS, hash[flow], 0), flow)
  if (n === 100_000) process.stdout.write('writing\n')
}
