// Tunnel packets through the gateway: what comes back, byte for byte as scapy builds it, what is counted and what is logged.

import { afterEach, describe, expect, test } from 'vitest'
import { parseRules, readRules } from '../../src/gateway/rules.ts'
import { type Bench, bench, fixture } from './harness.ts'
import cases from './packets.json' with { type: 'json' }

interface Case {
  name: string
  profile: 'geneve' | 'vxlan'
  frames: string[]
  back: string[]
  drops: Record<string, Record<string, number>>
  log: [rule: string, action: string][]
  /** A rule file; the example's when empty. */
  rules: string
}

const EXAMPLE = readRules(fixture('example.yaml'))
const bytes = (hex: string) => Uint8Array.from(Buffer.from(hex, 'hex'))
const hex = (b: Uint8Array) => Buffer.from(b).toString('hex')

let gateway: Bench

afterEach(() => {
  expect(gateway.leaks()).toEqual([])
  gateway.close()
})

describe('what scapy sends', () => {
  test.each(cases as unknown as Case[])('$name', ({ profile, frames, back, drops, log, rules }) => {
    gateway = bench(profile, rules === '' ? EXAMPLE : parseRules(rules, ''))
    expect(gateway.exchange(frames.map(bytes)).map(hex)).toEqual(back)
    expect(gateway.drops()).toEqual(drops)
    expect(gateway.log().map(({ rule, action }) => [rule, action])).toEqual(log)
  })

  test.each(cases as unknown as Case[])('$name, a packet at a time', ({ profile, frames, back, rules }) => {
    gateway = bench(profile, rules === '' ? EXAMPLE : parseRules(rules, ''))
    expect(frames.flatMap(frame => gateway.exchange([bytes(frame)])).map(hex)).toEqual(back)
  })
})

/** The frames of a case. */
function framesOf(name: string): Uint8Array[] {
  const found = cases.find(each => each.name === name)
  if (found === undefined) throw new Error(`no case ${name}`)
  return found.frames.map(bytes)
}

/** Frames of so many UDP flows: a packet without outer checksum, and a source port of its own in each. */
function flows(count: number): Uint8Array[] {
  const [frame] = framesOf('GENEVE with zero checksum')
  const sourcePort = 14 + 20 + 8 + 8 + 14 + 20
  return Array.from({ length: count }, (_, i) => {
    const own = frame.slice()
    new DataView(own.buffer).setUint16(sourcePort, 1000 + i)
    return own
  })
}

describe('bounds', () => {
  test('a full flow table is counted, and has room again when flows were idle', () => {
    gateway = bench('geneve', EXAMPLE)
    expect(gateway.exchange(flows(20), 1000)).toHaveLength(16)
    expect(gateway.drops()).toEqual({ inspect: { 'flow-table-full': 4 } })
    expect(gateway.exchange(flows(20).slice(16), 122_000)).toHaveLength(4)
    expect(gateway.log().map(({ flow, time }) => [flow, time])).toContainEqual([20, '1970-01-01T00:02:02.000Z'])
  })

  test('ICMP errors come in bursts of 100 and 1000 a second', () => {
    gateway = bench('geneve', EXAMPLE)
    const [frame] = framesOf('reset of UDP over IPv4, 5 bytes')
    const many = Array(300).fill(frame)
    expect(gateway.exchange(many, 5000)).toHaveLength(100)
    expect(gateway.exchange(many, 5000)).toHaveLength(0)
    expect(gateway.exchange(many, 5020)).toHaveLength(20)
    expect(gateway.exchange(many, 9000)).toHaveLength(100)
    expect(gateway.drops()).toEqual({ inspect: { reset: 1200 } })
  })

  test('answers that find no free frame are left out, and the packets are dropped all the same', () => {
    gateway = bench('geneve', EXAMPLE, 64)
    const [frame] = framesOf('reset over IPv6')
    // A batch that fills the pool leaves each packet only what those before it gave back.
    const back = gateway.exchange(Array(64).fill(frame))
    expect(gateway.drops()).toEqual({ inspect: { reset: 64 } })
    expect(back.length).toBeGreaterThan(30)
    expect(back.length).toBeLessThan(128)
  })

  test('the same packets give the same packets and the same log, however they are batched', () => {
    const all = (cases as unknown as Case[])
      .filter(({ profile }) => profile === 'geneve')
      .flatMap(({ frames }) => frames.map(bytes))
    const results = [1, 3, 50].map(size => {
      gateway = bench('geneve', EXAMPLE)
      const back: string[] = []
      for (let i = 0; i < all.length; i += size)
        back.push(...gateway.exchange(all.slice(i, i + size), 1_700_000_000_000).map(hex))
      const result = { back, log: gateway.logText() }
      if (size < 50) gateway.close()
      return result
    })
    expect(results[1]).toEqual(results[0])
    expect(results[2]).toEqual(results[0])
    expect(results[0].log.split('\n').length).toBeGreaterThan(10)
  })

  test('bytes gone wrong are counted or returned, never more', () => {
    gateway = bench('geneve', EXAMPLE)
    const all = (cases as unknown as Case[]).flatMap(({ frames }) => frames.map(bytes))
    let random = 1
    const next = (limit: number) => {
      random = (Math.imul(random, 1103515245) + 12345) & 0x7fffffff
      return (random >>> 8) % limit
    }
    for (let round = 0; round < 20_000; round++) {
      const frame = all[next(all.length)].slice()
      for (let flips = next(4); flips >= 0; flips--) frame[next(Math.min(frame.length, 120))] = next(256)
      const cut = next(3) === 0 ? frame.subarray(0, next(frame.length)) : frame
      for (const back of gateway.exchange([cut], round)) expect(back.length).toBeGreaterThanOrEqual(14 + 20 + 8 + 8)
    }
    expect(Object.keys(gateway.drops())).toEqual(['decap', 'inspect'])
  })
})
