// Tables and numbers for people.

import { PassThrough } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { bitRate, bytes, count, duration, Progress, packetRate, painter, quantity, table } from '../../src/cli/table.ts'

describe('numbers', () => {
  test.each([
    [0, '0'],
    [7, '7'],
    [0.5, '0.50'],
    [999, '999'],
    [999.4, '999'],
    [999.6, '1.00 k'],
    [1000, '1.00 k'],
    [9994, '9.99 k'],
    [9996, '10.0 k'],
    [99_960, '100 k'],
    [343_210, '343 k'],
    [999_500, '1.00 M'],
    [14_300_000_000, '14.3 G'],
    [-2048, '-2.05 k'],
    [1e19, '10000 P'],
  ])('quantity(%d) is %s', (n, text) => expect(quantity(n)).toBe(text))

  test('units', () => {
    expect(bytes(1500)).toBe('1.50 kB')
    expect(bytes(60)).toBe('60 B')
    expect(bitRate(1_250_000)).toBe('10.0 Mbit/s')
    expect(packetRate(343_000)).toBe('343 kpps')
    expect(count(1234567)).toBe('1,234,567')
  })

  test.each([
    [0, '0 ms'],
    [999, '999 ms'],
    [1000, '1.0 s'],
    [59_900, '59.9 s'],
    [59_990, '1m 0s'],
    [312_000, '5m 12s'],
    [3_600_000, '1h 0m'],
    [356_400_000, '4d 3h'],
  ])('duration(%d) is %s', (ms, text) => expect(duration(ms)).toBe(text))
})

describe('a table', () => {
  test('is aligned: text left, numbers right, no blanks at the end', () => {
    const columns = [{ title: 'STAGE' }, { title: 'IN', right: true }, { title: 'MEANING' }]
    expect(
      table(columns, [
        ['decide', '1,234', 'x'],
        ['tap', '5', ''],
      ]),
    ).toEqual(['STAGE      IN  MEANING', 'decide  1,234  x', 'tap         5'])
  })

  test('leaves out a column that varies when it does not', () => {
    const columns = [{ title: 'WORKER', varying: true }, { title: 'STAGE' }]
    expect(
      table(columns, [
        ['w0', 'a'],
        ['w0', 'b'],
      ]),
    ).toEqual(['STAGE', 'a', 'b'])
    expect(
      table(columns, [
        ['w0', 'a'],
        ['w1', 'b'],
      ]),
    ).toEqual(['WORKER  STAGE', 'w0      a', 'w1      b'])
  })

  test('lets no cell steer the terminal', () => {
    expect(table([{ title: 'ID' }], [['a\x1b[2Jb\r\nc\u202e']])[1]).toBe('a\ufffd[2Jb\ufffd\ufffdc\ufffd')
  })
})

test('colours are for terminals without NO_COLOR', () => {
  expect(painter({ isTTY: true }, {})('bold', 'x')).toBe('\x1b[1mx\x1b[0m')
  expect(painter({ isTTY: true }, { NO_COLOR: '1' })('bold', 'x')).toBe('x')
  expect(painter({ isTTY: true }, { TERM: 'dumb' })('bold', 'x')).toBe('x')
  expect(painter({}, {})('bold', 'x')).toBe('x')
})

describe('progress', () => {
  function run(properties: object): string {
    const stream = Object.assign(new PassThrough(), properties) as unknown as NodeJS.WriteStream
    const progress = new Progress(stream)
    progress.show('replay: 12% of 1,000,000 packets')
    progress.show('too soon to be shown')
    progress.clear()
    return String((stream as unknown as PassThrough).read() ?? '')
  }

  test('is one line of the terminal that goes away', () => {
    expect(run({ isTTY: true, columns: 12 })).toBe('\r\x1b[Kreplay: 12%\r\x1b[K')
  })

  test('is silent where there is no terminal', () => {
    expect(run({})).toBe('')
  })
})
