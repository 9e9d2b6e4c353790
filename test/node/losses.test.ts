// Losses: what is told of counters that grow.
import { describe, expect, it } from 'vitest'
import { DROP } from '../../src/drop.ts'
import { StageCounters } from '../../src/memory/counters.ts'
import { Alarms, HOLD_MS } from '../../src/node/alarm.ts'
import { Losses } from '../../src/node/losses.ts'

describe('losses', () => {
  const make = () => {
    const lines: string[] = []
    let now = 0
    const alarms = new Alarms(
      line => lines.push(line),
      () => now,
    )
    const losses = new Losses(alarms)
    const second = (look: () => void) => {
      now += HOLD_MS
      look()
      alarms.tick()
      return lines.splice(0)
    }
    return { losses, second }
  }

  it('are told when they begin and, with their number, when they are over', () => {
    const { losses, second } = make()
    const workers = ['forward-0', 'forward-1'].map(worker => ({ worker, stages: [new StageCounters('tap:dt-4-4789')] }))
    const look = () => losses.look(workers)
    expect(second(look)).toEqual([])
    workers[0].stages[0].dropped(DROP.DEVICE_FULL, 10)
    expect(second(look)).toEqual(['tap:dt-4-4789 loses packets: the device had no room for the packet'])
    workers[1].stages[0].dropped(DROP.DEVICE_FULL, 5)
    for (let i = 0; i < 3; i++) expect(second(look)).toEqual([])
    expect([...second(look), ...second(look)]).toEqual([
      'tap:dt-4-4789 loses no more packets, 15 were lost (device-full) after 4.0 s',
    ])
    workers[1].stages[0].dropped(DROP.DEVICE_FULL, 1)
    expect(second(look)).toHaveLength(1)
  })

  it('are over where the stage is no more', () => {
    const { losses, second } = make()
    const stage = new StageCounters('xdp uplink:0')
    stage.dropped(DROP.DEVICE_ERROR, 3)
    expect(second(() => losses.look([{ worker: 'forward', stages: [stage] }]))).toHaveLength(1)
    const lines = [1, 2, 3, 4].flatMap(() => second(() => losses.look([{ worker: 'forward', stages: [] }])))
    expect(lines).toEqual(['xdp uplink:0 loses no more packets, 3 were lost (device-error) after 3.0 s'])
  })

  it('do not go on about what belongs to packets, and count reasons apart', () => {
    const { losses, second } = make()
    const stage = new StageCounters('decide')
    const look = () => losses.look([{ worker: 'forward', stages: [stage] }])
    stage.dropped(DROP.POLICY, 100)
    expect(second(look)).toEqual([])
    stage.dropped(DROP.FLOW_TABLE_FULL)
    stage.dropped(DROP.NO_FRAME)
    expect(second(look)).toEqual([
      'decide loses packets: no free frame in the pool',
      'decide loses packets: the flow table is full',
    ])
  })

  it('of a place that is no more are forgotten', () => {
    const { losses, second } = make()
    const count = (total: number) => second(() => losses.count('tap a', 'queue', 'its queue is full', total))
    expect(count(7)).toHaveLength(1)
    losses.forget('tap a')
    for (let i = 0; i < 6; i++) expect(count(0)).toEqual([])
    expect(count(1)).toHaveLength(1)
  })

  it('start anew where a counter does', () => {
    const { losses, second } = make()
    const count = (total: number) => second(() => losses.count('tap', 'queue', 'its queue is full', total))
    expect(count(7)).toHaveLength(1)
    for (let i = 0; i < 5; i++) count(7)
    expect(count(2)).toEqual([])
    expect(count(3)).toEqual(['tap loses packets: its queue is full'])
    expect(count(0)).toEqual([])
    expect([1, 2, 3].flatMap(() => count(0))).toEqual(['tap loses no more packets, 1 were lost (queue) after 3.0 s'])
  })
})
