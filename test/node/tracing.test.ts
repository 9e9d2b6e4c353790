// Traces for clients of the control socket: one at a time, and none for a client that is gone.

import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { RecordWriter } from '../../src/memory/records.ts'
import { Tracing } from '../../src/node/tracing.ts'
import { FATE, TRACE, type TraceInput } from '../../src/pipeline/trace.ts'

let inputs: TraceInput[] | undefined
let tracing: Tracing

beforeEach(() => {
  vi.useFakeTimers()
  inputs = undefined
  tracing = new Tracing({
    workers: ['forward-0', 'forward-1'],
    attachment: number => `pod-${number}`,
    numberOf: id => (id === 'pod-5' ? 5 : undefined),
    endpoint: () => 'gw-a',
    bypass: () => ['dns'],
    async trace(asked) {
      inputs = asked
    },
  })
})
afterEach(() => void vi.useRealTimers())

const open = (more: object = {}) =>
  tracing.ask({ session: 0, query: { count: 10, limitMs: 60_000, ...more }, stop: false })
const more = (session: number) => tracing.ask({ session, stop: false })

/** As a worker tells of a packet. */
function tell(worker: number, timeMs: number): void {
  const writer = new RecordWriter((inputs as TraceInput[])[worker].records)
  const at = writer.take()
  writer.words[at + TRACE.ATTACHMENT] = 5
  writer.words[at + TRACE.FATE] = FATE.PASS
  writer.doubles[(at + TRACE.TIME) / 2] = timeMs
  writer.submit()
}

test('packets of all workers, in the order of time, until there are enough', async () => {
  const { session } = await open({ count: 3, attachment: 'pod-5' })
  expect(inputs?.map(({ filter, count }) => [filter.attachment, count])).toEqual(Array(2).fill([5, 3]))
  tell(0, 30)
  tell(1, 20)
  const page = await more(session)
  expect(page.rows.map(row => [row.worker, row.timeMs, row.attachment, row.verdict])).toEqual([
    ['forward-1', 20, 'pod-5', 'pass'],
    ['forward-0', 30, 'pod-5', 'pass'],
  ])
  expect(page.ended).toBe('')
  tell(0, 40)
  tell(0, 50)
  expect(await more(session)).toMatchObject({ rows: [{ timeMs: 40 }], ended: 'all packets that were asked for' })
  expect(inputs).toBeUndefined()
  expect((await more(session)).ended).toBe('it is over')
})

test('a client that is silent has gone: its trace ends, and another may', async () => {
  const { session } = await open()
  await vi.advanceTimersByTimeAsync(2900)
  await more(session)
  await vi.advanceTimersByTimeAsync(2900)
  expect(inputs).toBeDefined()
  await expect(open()).rejects.toThrow(/another client traces/)
  await vi.advanceTimersByTimeAsync(200)
  expect(inputs).toBeUndefined()
  expect((await open()).session).not.toBe(session)
})

test('the time is up', async () => {
  const { session } = await open({ limitMs: 500 })
  await vi.advanceTimersByTimeAsync(400)
  expect((await more(session)).ended).toBe('')
  await vi.advanceTimersByTimeAsync(200)
  expect((await more(session)).ended).toBe('the time is up')
  expect(inputs).toBeUndefined()
})

test('what a client asks for is bounded', async () => {
  await open({ count: 2 ** 32 - 1, limitMs: 2 ** 32 - 1 })
  expect(inputs?.map(({ count, limitMs }) => [count, limitMs])).toEqual(Array(2).fill([1_000_000, 3_600_000]))
})
