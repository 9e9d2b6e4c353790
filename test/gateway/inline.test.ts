// Between two interfaces and back: whatever came allowed through a tunnel of any kind goes back as it would have without.

import { expect, test } from 'vitest'
import { parseRules, readRules } from '../../src/gateway/rules.ts'
import { bench, fixture } from './harness.ts'
import cases from './packets.json' with { type: 'json' }

const EXAMPLE = readRules(fixture('example.yaml'))
const bytes = (hex: string) => Uint8Array.from(Buffer.from(hex, 'hex'))
const hex = (b: Uint8Array) => Buffer.from(b).toString('hex')

/** What is behind the outer packet is not in the tunnel, and networks with the same addresses are one to an appliance. */
const OTHERWISE = ['an Ethernet trailer stays', 'networks with the same addresses do not share flows']

test.each(cases.filter(({ name }) => !OTHERWISE.includes(name)).map(one => [one.name, one] as const))(
  '%s',
  (_, one) => {
    const gateway = bench(
      one.profile as 'geneve' | 'vxlan',
      one.rules === '' ? EXAMPLE : parseRules(one.rules, ''),
      512,
      true,
    )
    try {
      const back = gateway.exchange(one.frames.map(bytes)).map(hex)
      expect(back.sort()).toEqual([...one.back].sort())
      expect(gateway.drops()).toEqual(one.drops)
      expect(gateway.leaks()).toEqual([])
    } finally {
      gateway.close()
    }
  },
)

test('what may be of either of two networks goes back to neither', () => {
  const { frames } = cases.find(({ name }) => name === OTHERWISE[1])!
  const gateway = bench('geneve', parseRules('{ default: allow }', ''), 512, true)
  expect(gateway.exchange(frames.map(bytes))).toEqual([])
  expect(gateway.drops()).toEqual({ 'from appliance': { 'unknown-flow': frames.length } })
  expect(gateway.leaks()).toEqual([])
  gateway.close()
})
