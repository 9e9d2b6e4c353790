// The verdict log of several workers: whole lines, whatever a sink takes at a time.

import { expect, test } from 'vitest'
import { type LogSink, sharedSink, type Verdict, VerdictLog } from '../../src/gateway/log.ts'
import { random } from '../wire/build.ts'

const verdict = (flow: number): Verdict => ({
  ...{ timeMs: 0, flow, protocol: 6, source: '10.0.0.1', sourcePort: 1, destination: '10.0.0.2', destinationPort: 2 },
  ...{ profile: 'geneve', vni: 1, rule: 'default', action: 'allow', packet: 1, bytes: 40, offset: -1 },
})

/** Writes verdicts of three workers in turn to a sink that takes a little at a time; the flows whose lines arrived whole. */
function flowsThrough(shared: (sink: LogSink, worker: number) => LogSink): number[] {
  let text = ''
  const r = random(3)
  const pipe: LogSink = block => {
    const taken = Math.min(block.length, r(150))
    text += new TextDecoder().decode(block.subarray(0, taken))
    return taken
  }
  const logs = [0, 1, 2].map(worker => new VerdictLog(shared(pipe, worker)))
  for (let flow = 0; flow < 300; flow++) {
    logs[flow % 3].write(verdict(flow))
    for (const log of logs) log.flush()
  }
  for (let i = 0; i < 2000; i++) for (const log of logs) log.flush()
  return text.split('\n').flatMap(line => {
    try {
      return [JSON.parse(line).flow]
    } catch {
      return []
    }
  })
}

test('lines of several workers come whole, each once', () => {
  const lock = new SharedArrayBuffer(4)
  const flows = flowsThrough((sink, worker) => sharedSink(sink, lock, worker))
  expect(flows.sort((a, b) => a - b)).toEqual(Array.from({ length: 300 }, (_, i) => i))
  expect(flowsThrough(sink => sink).length).toBeLessThan(300)
})
