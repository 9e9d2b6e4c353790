// The clock against another implementation's reading of CLOCK_MONOTONIC.
import { execFileSync } from 'node:child_process'
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { monotonicMs, monotonicUnits, msToUnits } from '../../src/os/clock.ts'

describe('clock', () => {
  it('is CLOCK_MONOTONIC as python reads it', () => {
    const before = monotonicMs()
    const theirs = Number(execFileSync('python3', ['-c', 'import time; print(time.monotonic_ns() / 1e6)']))
    const after = monotonicMs()
    expect(theirs).toBeGreaterThanOrEqual(before - 0.1)
    expect(theirs).toBeLessThanOrEqual(after + 0.1)
  })

  it('counts heartbeat units like ktime >> 20', () => {
    const before = process.hrtime.bigint()
    const units = monotonicUnits()
    const after = process.hrtime.bigint()
    const low = BigInt.asUintN(32, before >> 20n)
    const high = BigInt.asUintN(32, after >> 20n)
    expect(units >>> 0).toBeGreaterThanOrEqual(Number(low) - 1)
    expect(units >>> 0).toBeLessThanOrEqual(Number(high) + 1)
    expect(Object.is(units, units | 0)).toBe(true)
  })

  it('turns milliseconds into units', () => {
    expect(msToUnits(200)).toBe(Math.round(200e6 / 2 ** 20))
    expect(msToUnits(0)).toBe(1)
  })

  // performance.now() of a worker counts from the worker's start.
  it('agrees with a thread that started later', async () => {
    const code = `const { parentPort } = require('node:worker_threads')
      parentPort.postMessage(Number(process.hrtime.bigint()) / 1e6)`
    const before = monotonicMs()
    const worker = new Worker(code, { eval: true })
    const theirs = await new Promise<number>(resolve => worker.once('message', resolve))
    expect(theirs).toBeGreaterThanOrEqual(before - 0.1)
    expect(theirs).toBeLessThanOrEqual(monotonicMs() + 0.1)
    await worker.terminate()
  })
})
