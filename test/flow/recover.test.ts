// A flow table whose writer is killed, wherever it was, is found in order by the next one.

import { spawn } from 'node:child_process'
import { closeSync, existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { createSharedFlowTable, openFlowTable } from '../../src/flow/live.ts'
import { recoverFlowTable } from '../../src/flow/recover.ts'
import { FlowTable } from '../../src/flow/table.ts'
import { FlowView } from '../../src/flow/view.ts'
import { KEY_WORDS } from '../../src/memory/pool.ts'
import { makeFlows } from './flows.ts'

const CAPACITY = 500
const WRITERS = 4

function program(name: string): string {
  const stripsTypes = (process.features as { typescript?: unknown }).typescript
  const file = fileURLToPath(new URL(stripsTypes ? `${name}.ts` : `../../dist/test/flow/${name}.js`, import.meta.url))
  if (!existsSync(file)) throw new Error(`${file} does not exist; run "npm run build" first`)
  return file
}

/** A process that writes to the table, killed in the middle of it. */
async function writeAndDie(fd: number): Promise<void> {
  const child = spawn(process.execPath, [program('writer'), `${CAPACITY}`], {
    stdio: ['ignore', 'pipe', 'inherit', fd],
  })
  const gone = new Promise(resolve => child.once('close', resolve))
  await new Promise(resolve => child.stdout?.once('data', resolve))
  child.kill('SIGKILL')
  await gone
}

describe('recoverFlowTable', () => {
  it('every flow of a killed writer is found once, and the table goes on', async () => {
    const { keys, hash } = makeFlows(4 * CAPACITY)
    const shared = createSharedFlowTable({ capacity: CAPACITY, tcpIdleMs: 1e9 })
    const { handle } = openFlowTable(shared)
    for (let writer = 0; writer < WRITERS; writer++) {
      await writeAndDie(shared.fd)
      const count = recoverFlowTable(handle)
      const table = new FlowTable(handle)
      const rows = [...new FlowView(handle).flows()]
      expect(rows).toHaveLength(count)
      expect(table.count).toBe(count)
      expect(count).toBeGreaterThan(CAPACITY / 4)
      const found = new Map<number, number>()
      for (let flow = 0; flow < hash.length; flow++) {
        const row = table.find(keys, flow * KEY_WORDS, hash[flow])
        if (row >= 0) found.set(row, flow)
      }
      // What was written beside the key belongs to it; of the flow at which the writer died it may be missing.
      const wrong = rows.filter(({ row, state }) => found.get(row) !== state)
      expect(wrong.length).toBeLessThanOrEqual(1)
      expect([...found.keys()].sort()).toEqual(rows.map(({ row }) => row).sort())
      // The free rows are all there, too: what is left fits, and nothing more.
      table.now = 2
      let entered = 0
      for (let flow = 0; flow < hash.length; flow++) {
        if (table.find(keys, flow * KEY_WORDS, hash[flow]) >= 0) continue
        if (table.insert(keys, flow * KEY_WORDS, hash[flow], 0) >= 0) entered++
      }
      expect(count + entered).toBe(CAPACITY)
      for (const { row } of [...new FlowView(handle).flows()]) table.remove(row)
      expect(recoverFlowTable(handle)).toBe(0)
    }
    closeSync(shared.fd)
  })
})
