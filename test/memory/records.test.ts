// Records from one thread to another.

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { packageRoot } from '../../src/control/package.ts'
import { createRecords, RecordReader, RecordWriter } from '../../src/memory/records.ts'

function write(writer: RecordWriter, value: number): boolean {
  const at = writer.take()
  if (at < 0) return false
  writer.words[at] = value
  writer.doubles[(at + 2) / 2] = value / 3
  writer.submit()
  return true
}

test('come out as they went in, in order, however often the slots are used again', () => {
  const handle = createRecords(4, 4)
  const [writer, reader] = [new RecordWriter(handle), new RecordReader(handle)]
  for (let i = 0; i < 100; i += 3) {
    for (let j = 0; j < 3; j++) expect(write(writer, i + j)).toBe(true)
    expect(reader.waiting).toBe(3)
    for (let j = 0; j < 3; j++) {
      const record = reader.next() as Int32Array
      expect([record.length, record[0], new Float64Array(record.buffer)[1]]).toEqual([4, i + j, (i + j) / 3])
    }
    expect(reader.next()).toBeUndefined()
  }
  expect(reader.lost).toBe(0)
})

test('the oldest stay where there is no room, the rest is counted', () => {
  const handle = createRecords(4, 4)
  const [writer, reader] = [new RecordWriter(handle), new RecordReader(handle)]
  const taken = Array.from({ length: 7 }, (_, i) => write(writer, i))
  expect(taken).toEqual([true, true, true, true, false, false, false])
  expect([reader.waiting, reader.lost]).toEqual([4, 3])
  expect((reader.next() as Int32Array)[0]).toBe(0)
  expect(write(writer, 9)).toBe(true)
  expect([1, 2, 3, 9].map(() => (reader.next() as Int32Array)[0])).toEqual([1, 2, 3, 9])
})

test('sizes that make no sense are refused', () => {
  for (const [capacity, words] of [
    [3, 4],
    [0, 4],
    [4, 3],
  ])
    expect(() => createRecords(capacity, words)).toThrow(RangeError)
})

test('between threads: whole records, in order, none twice', async () => {
  const count = 200_000
  const handle = createRecords(64, 8)
  const compiled = new URL('dist/src/memory/records.js', packageRoot)
  const program = `import { workerData } from 'node:worker_threads'
import { RecordWriter } from '${compiled}'
const writer = new RecordWriter(workerData)
for (let i = 1; i <= ${count}; i++) {
  const at = writer.take()
  if (at < 0) continue
  for (let j = 0; j < 8; j++) writer.words[at + j] = i
  writer.submit()
}`
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(program)}`), { workerData: handle })
  let running = true
  const exited = once(worker, 'exit').then(([status]) => {
    running = false
    return status
  })
  const reader = new RecordReader(handle)
  let [last, read, torn] = [0, 0, 0]
  while (running || reader.waiting > 0) {
    for (let record = reader.next(); record !== undefined; record = reader.next()) {
      if (record[0] <= last || record.some(word => word !== record[0])) torn++
      last = record[0]
      read++
    }
    await new Promise(resolve => setImmediate(resolve))
  }
  expect(await exited).toBe(0)
  expect([torn, read + reader.lost]).toEqual([0, count])
  expect(read).toBeGreaterThan(0)
})
