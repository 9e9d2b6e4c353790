// Tunnel packets through the gateway: what comes back, byte for byte as scapy builds it, what is counted and what is logged.

import { afterEach, describe, expect, test } from 'vitest'
import { readRules } from '../../src/gateway/rules.ts'
import { type Bench, bench, fixture } from './harness.ts'
import cases from './packets.json' with { type: 'json' }

interface Case {
  name: string
  profile: 'geneve' | 'vxlan'
  frames: string[]
  back: string[]
  drops: Record<string, Record<string, number>>
  log: [rule: string, action: string][]
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
  test.each(cases as unknown as Case[])('$name', ({ profile, frames, back, drops, log }) => {
    gateway = bench(profile, EXAMPLE)
    expect(gateway.exchange(frames.map(bytes)).map(hex)).toEqual(back)
    expect(gateway.drops()).toEqual(drops)
    expect(gateway.log().map(({ rule, action }) => [rule, action])).toEqual(log)
  })

  test.each(cases as unknown as Case[])('$name, a packet at a time', ({ profile, frames, back }) => {
    gateway = bench(profile, EXAMPLE)
    expect(frames.flatMap(frame => gateway.exchange([bytes(frame)])).map(hex)).toEqual(back)
  })
})
