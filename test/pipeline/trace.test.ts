// Traced legs: what is told of packets, and that nothing else about them is different.

import { describe, expect, test } from 'vitest'
import { dropName } from '../../src/drop.ts'
import { VERDICT } from '../../src/flow/verdict.ts'
import { createRecords, RecordReader } from '../../src/memory/records.ts'
import { FATE, OUTCOME_NAMES, STEP_NAMES, TRACE, TRACE_FLAG, type TraceFilter } from '../../src/pipeline/trace.ts'
import { frame, type Inner, PEER, POD, TCP, tunnelled, UDP } from './packets.ts'
import { type FakeDevice, Rig, type RigOptions, tunnelConfig } from './rig.ts'
import { build, PLAIN, pattern } from './super.ts'

const OTHER = { mac: '02:00:00:00:0a:02', ip4: '10.1.0.6' } as const

interface Told {
  leg: number
  attachment: number
  fate: number
  length: number
  isNew: boolean
  steps: string[]
  bytes: Uint8Array
}

function trace(
  rig: Rig,
  {
    filter = {},
    count = 1000,
    limitMs = 60_000,
  }: Partial<{ filter: TraceFilter; count: number; limitMs: number }> = {},
) {
  const records = createRecords(1024, TRACE.WORDS)
  rig.forwarder.trace({ records, filter, count, limitMs })
  const reader = new RecordReader(records)
  return () => {
    const told: Told[] = []
    for (let record = reader.next(); record !== undefined; record = reader.next()) {
      const steps = [...record.subarray(TRACE.STEP, TRACE.STEP + record[TRACE.STEPS])].map(word => {
        const reason = word & 0xffff
        return `${STEP_NAMES[word >>> 24]} ${OUTCOME_NAMES[(word >>> 16) & 0xff]}${reason === 0 ? '' : ` ${dropName(reason)}`}`
      })
      told.push({
        ...{ leg: record[TRACE.LEG], attachment: record[TRACE.ATTACHMENT], fate: record[TRACE.FATE], steps },
        length: record[TRACE.LENGTH],
        isNew: (record[TRACE.FLAGS] & TRACE_FLAG.NEW) !== 0,
        bytes: new Uint8Array(record.buffer, TRACE.BYTES * 4, record[TRACE.CAPTURED]),
      })
    }
    return told
  }
}

const BYPASS = { name: 'metadata', to: ['169.254.169.254/32'], verdict: VERDICT.PASS }
const DENY = { name: 'deny', ports: ['6666'], protocol: 'udp', verdict: VERDICT.DROP } as const
const rules = [BYPASS, DENY] as RigOptions['rules']
const STEERED = ['receive on', 'classify on', 'decide on', 'fit on', 'encap on', 'send sent']

describe('what is told', () => {
  test('steered and returned: every stage, the packet as it left and as it came back', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const told = trace(rig)
    const packet = frame({ protocol: TCP })
    rig.bounce(rig.toward(pod, packet, packet))
    const [first, second, ...returned] = told()
    expect(first).toMatchObject({ leg: 0, attachment: 0, fate: FATE.STEER, length: packet.length, isNew: true })
    expect(first.steps).toEqual(STEERED)
    expect([...first.bytes]).toEqual([...packet.subarray(0, 128)])
    expect(second.isNew).toBe(false)
    expect(returned).toHaveLength(2)
    expect(returned[0]).toMatchObject({ leg: 1, attachment: 0, fate: FATE.DELIVER, length: packet.length })
    expect(returned[0].steps).toEqual(['decap on', 'restore on', 'deliver sent'])
    expect([...returned[0].bytes]).toEqual([...packet.subarray(0, 128)])
    rig.balanced()
  })

  test.each<[string, Inner, string[], number]>([
    ['a bypass rule', { to: '169.254.169.254' }, ['receive on', 'classify on', 'decide passed'], FATE.PASS],
    ['a rule that drops', { port: 6666 }, ['receive on', 'classify on', 'decide dropped policy'], FATE.DROP],
    ['ARP', { raw: [0x806, new Array(28).fill(0)] }, ['receive on', 'classify passed'], FATE.PASS],
    ['too big', { data: pattern(8990) }, ['receive on', 'classify on', 'decide on', 'fit dropped too-big'], FATE.DROP],
    ['not UDP', { protocol: UDP, body: [1, 2, 3] }, ['receive on', 'classify dropped udp-truncated'], FATE.DROP],
  ])('%s', (_, inner, steps, fate) => {
    const rig = new Rig({ rules })
    const pod = rig.pod()
    const told = trace(rig)
    rig.toward(pod, frame(), frame(inner), frame())
    const all = told()
    expect(all).toHaveLength(3)
    expect(all[1]).toMatchObject({ steps, fate })
    expect(all[2].steps).toEqual(STEERED)
    rig.balanced()
  })

  test('no room for a flow', () => {
    const rig = new Rig({ flows: { capacity: 1 } })
    const pod = rig.pod()
    const told = trace(rig)
    rig.toward(pod, frame({ port: 1 }), frame({ port: 2 }))
    expect(told().map(({ steps }) => steps.at(-1))).toEqual(['send sent', 'decide dropped flow-table-full'])
    rig.balanced()
  })

  test('what comes back and is refused', () => {
    const rig = new Rig()
    rig.pod()
    const told = trace(rig)
    const inner = frame()
    rig.back(tunnelled(inner), tunnelled(inner, { vni: 99 }), tunnelled(frame({ fromMac: PEER.mac, toMac: PEER.mac })))
    expect(told().map(({ attachment, steps }) => [attachment, steps])).toEqual([
      [0, ['decap on', 'restore dropped unknown-flow']],
      [-1, ['decap dropped unknown-vni']],
      [expect.any(Number), ['decap on', 'restore dropped unknown-attachment']],
    ])
    expect(rig.drops).toEqual({ 'restore unknown-flow': 1, 'decap unknown-vni': 1, 'restore unknown-attachment': 1 })
    rig.balanced()
  })

  test('a packet between two pods of the node is inspected where it leaves', () => {
    const rig = new Rig()
    const one = rig.pod(POD.mac)
    const two = rig.pod(OTHER.mac)
    const told = trace(rig)
    const packet = frame({ toMac: OTHER.mac, to: OTHER.ip4 })
    rig.bounce(rig.toward(one, packet))
    rig.toward(two, packet)
    expect(told().map(({ steps }) => steps.join())).toEqual([
      STEERED.join(),
      'decap on,restore on,deliver sent',
      'receive passed',
    ])
    rig.balanced()
  })
})

describe('which packets', () => {
  const frames = [
    frame({ port: 80, protocol: TCP }),
    frame({ port: 53 }),
    frame({ version: 6, port: 80, protocol: TCP }),
    frame({ port: 6666 }),
    frame({ protocol: UDP, body: [1] }),
  ]
  const word = (text: string) => new DataView(Uint8Array.from(text.split('.').map(Number)).buffer).getInt32(0)
  test.each<[string, TraceFilter, number[]]>([
    ['all', {}, [0, 1, 2, 3, 4]],
    ['a port', { port: 80 }, [0, 2]],
    ['a protocol', { protocol: UDP }, [1, 3]],
    ['an address', { address: { version: 4, words: [word(PEER.ip4), 0, 0, 0] } }, [0, 1, 3]],
    ['an address and a port', { port: 53, address: { version: 4, words: [word(POD.ip4), 0, 0, 0] } }, [1]],
    ['another address', { address: { version: 4, words: [1, 0, 0, 0] } }, []],
    ['what was dropped', { fate: FATE.DROP }, [3, 4]],
    ['this attachment', { attachment: 0, port: 53 }, [1]],
    ['another attachment', { attachment: 1 }, []],
  ])('%s', (_, filter, wanted) => {
    const rig = new Rig({ rules })
    const pod = rig.pod()
    rig.pod(OTHER.mac)
    const told = trace(rig, { filter })
    rig.toward(pod, ...frames)
    expect(told().map(({ bytes }) => [...bytes])).toEqual(wanted.map(i => [...frames[i].subarray(0, 128)]))
    rig.balanced()
  })

  test('as many as were asked for, then none', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const told = trace(rig, { count: 3 })
    rig.toward(pod, frame(), frame(), frame(), frame())
    rig.forwarder.tick(performance.now())
    rig.toward(pod, frame())
    expect(told()).toHaveLength(3)
    rig.balanced()
  })

  test('none when the time is up, or when it was stopped', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const told = trace(rig, { limitMs: -1 })
    rig.forwarder.tick(performance.now())
    rig.toward(pod, frame())
    expect(told()).toEqual([])
    const again = trace(rig)
    rig.toward(pod, frame())
    rig.forwarder.trace(undefined)
    rig.toward(pod, frame())
    expect(again()).toHaveLength(1)
    rig.balanced()
  })

  test('what the reader does not take in time is lost and counted, and packets do not wait', () => {
    const rig = new Rig()
    const pod = rig.pod()
    const records = createRecords(4, TRACE.WORDS)
    rig.forwarder.trace({ records, filter: {}, count: 1000, limitMs: 60_000 })
    const sent = rig.toward(pod, ...Array.from({ length: 9 }, () => frame()))
    expect(sent).toHaveLength(9)
    const reader = new RecordReader(records)
    expect([reader.waiting, reader.lost]).toEqual([4, 5])
    rig.balanced()
  })
})

test('traced or not: the same bytes leave, in the same order, and the same is counted', () => {
  const mixed = (rig: Rig, pod: FakeDevice) => {
    const packets = [
      frame({ protocol: TCP }),
      frame({ to: '169.254.169.254' }),
      frame({ port: 6666 }),
      frame({ data: pattern(8990) }),
      frame({ raw: [0x806, new Array(28).fill(0)] }),
      frame({ version: 6 }),
      frame({ protocol: UDP, body: [1] }),
      frame({ protocol: TCP, flags: 0x14 }),
    ]
    const big = build({ ...PLAIN, payload: pattern(9000), gsoSize: 1400 })
    const out = rig.toward(pod, ...packets, big, ...packets)
    rig.bounce(out)
    rig.back(tunnelled(frame({ fromMac: PEER.mac, toMac: PEER.mac })))
    rig.balanced()
    return {
      out,
      back: pod.take(),
      drops: rig.drops,
      rows: rig.counters.stages.map(({ name, row }) => [name, [...row]]),
    }
  }
  for (const kind of ['geneve', 'vxlan'] as const) {
    const results = [false, true].map(traced => {
      const rig = new Rig({ tunnel: tunnelConfig(kind), rules })
      const pod = rig.pod('02:00:00:00:77:01')
      const told = traced ? trace(rig) : undefined
      const result = mixed(rig, pod)
      if (told !== undefined) expect(told().length).toBeGreaterThan(20)
      return result
    })
    expect(results[1]).toEqual(results[0])
    expect(results[0].out.length).toBeGreaterThan(10)
  }
})
