// Two runs compared: which decisions are about the same flow, and which of them differ.

import { describe, expect, test } from 'vitest'
import { type Comparison, compare, Run } from '../../src/gateway/compare.ts'

const verdict = (flow: number, packet: number, sourcePort: number, action: string, rule = 'default', vni = 7) =>
  JSON.stringify({
    ...{ time: '2026-01-01T00:00:00.000Z', flow, protocol: 'tcp', source: '10.0.0.1', sourcePort },
    ...{ destination: '10.0.0.2', destinationPort: 80, profile: 'geneve', vni, rule, action, packet, bytes: 60 },
  })

const alert = (src_port: number, sid: number, action = 'allowed', more: object = {}) =>
  JSON.stringify({
    ...{ timestamp: 'x', event_type: 'alert', src_ip: '10.0.0.1', src_port, dest_ip: '10.0.0.2', dest_port: 80 },
    ...{ proto: 'TCP', alert: { gid: 1, signature_id: sid, signature: 'a threat', action }, ...more },
  })

/** As Suricata 7 wrote of a packet of three bytes. */
const NO_FLOW =
  '{"timestamp":"x","pcap_cnt":1,"event_type":"alert","pkt_src":"wire/pcap","alert":{"action":"allowed","gid":1,"signature_id":2200000,"rev":0,"signature":"trunc","category":"","severity":3}}'

function run(...lines: string[]): Run {
  const made = new Run()
  for (const [i, line] of lines.entries()) made.line(line, `log:${i + 1}`)
  return made
}

/** Differences as `what packet source before after`. */
const told = ({ differences }: Comparison) =>
  differences.map(({ what, before, after }) =>
    [what, (before ?? after)?.packet, (before ?? after)?.source, before?.verdict ?? '-', after?.verdict ?? '-'].join(
      ' ',
    ),
  )

describe('verdicts', () => {
  test('that are equal are the same, whatever flow ids and times they have', () => {
    const comparison = compare(
      run(verdict(1, 1, 1000, 'allow'), verdict(2, 4, 1001, 'drop')),
      run(verdict(5, 4, 1001, 'drop'), verdict(9, 1, 1000, 'allow')),
    )
    expect(comparison).toEqual({ same: 2, differences: [] })
  })

  test('change, appear and vanish', () => {
    const before = run(verdict(1, 1, 1000, 'allow'), verdict(2, 2, 1001, 'allow'), verdict(3, 3, 1002, 'drop'))
    const after = run(verdict(1, 1, 1000, 'reset', 'no'), verdict(2, 3, 1002, 'drop'), verdict(3, 9, 1003, 'allow'))
    const comparison = compare(before, after)
    expect(comparison.same).toBe(1)
    expect(told(comparison)).toEqual([
      'changed 1 10.0.0.1:1000 allow reset',
      'vanished 2 10.0.0.1:1001 allow -',
      'appeared 9 10.0.0.1:1003 - allow',
    ])
  })

  test('of a flow whose verdict changed: the last one counts', () => {
    const before = run(verdict(1, 1, 1000, 'allow'), verdict(1, 5, 1000, 'reset', 'secret'))
    const after = run(verdict(1, 1, 1000, 'allow'))
    expect(told(compare(before, after))).toEqual(['changed 1 10.0.0.1:1000 reset allow'])
    expect(compare(before, before).differences).toEqual([])
  })

  test('of flows with the same ends are told apart by the packet they begin with', () => {
    const before = run(verdict(1, 1, 1000, 'drop'), verdict(2, 50, 1000, 'allow'))
    const after = run(verdict(1, 1, 1000, 'drop'), verdict(2, 20, 1000, 'drop'), verdict(3, 50, 1000, 'allow'))
    expect(told(compare(before, after))).toEqual(['appeared 20 10.0.0.1:1000 - drop'])
  })

  test('and where packets are counted otherwise, by their order', () => {
    const before = run(verdict(1, 1, 1000, 'drop'), verdict(2, 50, 1000, 'allow'))
    const after = run(verdict(1, 101, 1000, 'drop'), verdict(2, 151, 1000, 'drop'))
    expect(told(compare(before, after))).toEqual(['changed 50 10.0.0.1:1000 allow drop'])
  })

  test('of different networks are of different flows', () => {
    const comparison = compare(
      run(verdict(1, 1, 1000, 'allow', 'default', 7)),
      run(verdict(1, 1, 1000, 'allow', 'default', 8)),
    )
    expect(told(comparison)).toEqual(['vanished 1 10.0.0.1:1000 allow -', 'appeared 1 10.0.0.1:1000 - allow'])
  })

  test('by another rule are different only when that is asked for', () => {
    const [before, after] = [run(verdict(1, 1, 1000, 'allow')), run(verdict(1, 1, 1000, 'allow', 'web'))]
    expect(compare(before, after).differences).toEqual([])
    expect(compare(before, after, true).differences.map(({ before, after }) => [before?.by, after?.by])).toEqual([
      ['default', 'web'],
    ])
  })
})

describe('alerts', () => {
  test('are told by ends and signature; other events do not matter', () => {
    const before = run(alert(1000, 1), alert(1000, 2), alert(1001, 1), '{"event_type":"stats","stats":{}}', NO_FLOW, '')
    const after = run(alert(1000, 1, 'allowed', { pcap_cnt: 7 }), alert(1001, 1, 'blocked'), alert(1002, 1))
    const comparison = compare(before, after)
    expect(comparison.same).toBe(1)
    expect(told(comparison).map(line => line.replace('  ', ' '))).toEqual([
      'vanished 10.0.0.1:1000 allowed -',
      'changed 10.0.0.1:1001 allowed blocked',
      'appeared 10.0.0.1:1002 - allowed',
    ])
  })
})

test.each([
  ['{', 'log:1: not JSON'],
  ['7', 'log:1: not an object'],
  ['{"flow":1}', 'log:1: neither a verdict of a gateway nor an event in EVE JSON'],
  ['{"event_type":"alert"}', 'log:1: neither a verdict'],
  [alert(1, 1).replace('"signature_id":1', '"signature_id":"1"'), 'log:1: neither a verdict'],
])('a line %s is refused', (line, message) => {
  expect(() => run(line)).toThrow(message)
})
