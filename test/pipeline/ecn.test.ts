// ECN through the tunnel: RFC 6040, both directions, every combination of inner and outer field and IP version.

import { describe, expect, test } from 'vitest'
import { GSO, OFFLOAD } from '../../src/memory/pool.ts'
import { frame, type Inner, TCP, TUNNEL_ENDS, tunnelled, type Version } from './packets.ts'
import { open, Rig, tunnelConfig } from './rig.ts'
import { plainSum } from './super.ts'
import { decode, hasTshark } from './tshark.ts'

const NOT_ECT = 0
const ECT1 = 1
const ECT0 = 2
const CE = 3
const CODES = [NOT_ECT, ECT0, ECT1, CE]
const NAMES = { [NOT_ECT]: 'Not-ECT', [ECT0]: 'ECT(0)', [ECT1]: 'ECT(1)', [CE]: 'CE' }
const DSCP = 0x2e << 2

/** RFC 6040 figure 4: rows are the inner field, columns the outer one, both in the order of CODES; `!` where it wants a log. */
const FIGURE_4: Record<number, (number | 'drop' | [number, '!'])[]> = {
  [NOT_ECT]: [NOT_ECT, [NOT_ECT, '!'], [NOT_ECT, '!'], 'drop'],
  [ECT0]: [ECT0, ECT0, ECT1, CE],
  [ECT1]: [ECT1, ECT1, ECT1, CE],
  [CE]: [CE, CE, [CE, '!'], CE],
}

const versions: [inner: Version, outer: Version][] = [
  [4, 4],
  [4, 6],
  [6, 4],
  [6, 6],
]

const cells = CODES.flatMap(inner => CODES.map((outer, column) => ({ inner, outer, cell: FIGURE_4[inner][column] })))
const sum16 = (bytes: Uint8Array) => plainSum(Array.from(bytes))

/** One's complement sum over outer pseudo-header and datagram: 0xffff when the UDP checksum is right. */
function outerSum(packet: Uint8Array, version: Version): number {
  const transport = version === 4 ? 34 : 54
  const length = (packet[transport + 4] << 8) | packet[transport + 5]
  const addresses = version === 4 ? packet.subarray(26, 34) : packet.subarray(22, 54)
  return sum16(
    Uint8Array.from([...addresses, 0, 17, length >> 8, length, ...packet.subarray(transport, transport + length)]),
  )
}

describe.each(versions)('decapsulation, RFC 6040 section 4.2, inner IPv%i in outer IPv%i', (version, outerVersion) => {
  const to = TUNNEL_ENDS[outerVersion].local
  const inner = (ecn: number) => frame({ version, tos: DSCP | ecn, protocol: TCP })

  for (const { inner: innerEcn, outer, cell } of cells) {
    const [expected, logged] = Array.isArray(cell) ? [cell[0], 1] : [cell, 0]
    const name = expected === 'drop' ? 'drop' : NAMES[expected as keyof typeof NAMES]
    test(`${NAMES[innerEcn as keyof typeof NAMES]} in ${NAMES[outer as keyof typeof NAMES]} gives ${name}`, () => {
      for (const kind of ['geneve', 'vxlan'] as const) {
        const packet = tunnelled(inner(innerEcn), { kind, to, tos: outer })
        const got = open(packet, tunnelConfig(kind, outerVersion))
        if (expected === 'drop') expect(got).toMatchObject({ inner: undefined, reason: 'ecn-ce-not-ect' })
        // The whole packet: DSCP stays, and the IPv4 header checksum is that of the new field.
        else expect(got).toEqual({ inner: inner(expected as number), reason: 'none', logged })
      }
    })
  }

  test('kept outer headers: a non-zero outer checksum stays right', () => {
    for (const { inner: innerEcn, outer, cell } of cells) {
      if (cell === 'drop') continue
      const expected = Array.isArray(cell) ? cell[0] : (cell as number)
      const packet = tunnelled(inner(innerEcn), { to, tos: outer })
      const got = open(packet, tunnelConfig('geneve', outerVersion), { keep: true }).inner!
      expect(got.subarray(-inner(0).length)).toEqual(inner(expected))
      expect(outerSum(got, outerVersion)).toBe(0xffff)
      const none = tunnelled(inner(innerEcn), { to, tos: outer, checksum: 'zero' })
      const config = tunnelConfig('geneve', outerVersion, { zeroChecksum6: true })
      expect(outerSum(open(none, config, { keep: true }).inner!, outerVersion)).not.toBe(0xffff)
    }
  })

  test('kept outer headers: a checksum that comes out as 0 is written as 0xffff (RFC 768)', () => {
    const build = (ecn: number, sourcePort: number) => tunnelled(inner(ecn), { to, tos: CE, sourcePort })
    const field = (packet: Uint8Array) => (packet[at] << 8) | packet[at + 1]
    const at = (outerVersion === 4 ? 34 : 54) + 6
    // A packet's checksum added to one of its words makes the next checksum 0; IPv4's header hides the change of ECN.
    const port = 1 + field(build(version === 4 ? ECT0 : CE, 1))
    expect(port).toBeLessThan(0x10000)
    const got = open(build(ECT0, port), tunnelConfig('geneve', outerVersion), { keep: true }).inner!
    expect(field(got)).toBe(0xffff)
    expect(outerSum(got, outerVersion)).toBe(0xffff)
  })

  test('kept outer headers: a partial outer checksum is left to whoever completes it', () => {
    const bytes = tunnelled(inner(ECT0), { to, tos: CE })
    const transport = outerVersion === 4 ? 34 : 54
    bytes.set([0x12, 0x34], transport + 6)
    const tunnel = outerVersion === 4 ? GSO.TUNNEL4 : GSO.TUNNEL6
    const none = { gso: 0, gsoSize: 0, outerTransport: 0, network: 0, payload: 0, checksumOffset: 6, transport }
    const partial = { ...none, bytes, offload: OFFLOAD.NEEDS_CHECKSUM }
    const large = { ...none, bytes, offload: OFFLOAD.OUTER_CHECKSUM, gso: tunnel | GSO.TCP4, gsoSize: 1 }
    for (const packet of [partial, large]) {
      const got = open(packet, tunnelConfig('geneve', outerVersion), { keep: true }).inner!
      expect([...got.subarray(transport + 6, transport + 8)]).toEqual([0x12, 0x34])
      expect(got.subarray(-inner(0).length)).toEqual(inner(CE))
    }
  })
})

/** The outer frame that a pod's packet gets. */
function encapsulated(inner: Inner, outer: Version, rest: Parameters<typeof tunnelConfig>[2]): Uint8Array {
  const rig = new Rig({ tunnel: tunnelConfig('geneve', outer, rest) })
  const [packet] = rig.toward(rig.pod(), frame(inner))
  rig.balanced()
  return packet.bytes
}

describe.skipIf(!hasTshark)('encapsulation (needs tshark)', () => {
  test.each(versions)('inner IPv%i in outer IPv%i', (version, outer) => {
    const inner = (ecn: number): Inner => ({ version, tos: DSCP | ecn })
    const normal = CODES.map(ecn => encapsulated(inner(ecn), outer, { ecn: 'normal' }))
    const fixed = CODES.map(ecn => encapsulated(inner(ecn), outer, { ecn: 'compatibility', dscp: 10 }))
    const names = ['ip.dsfield', 'ipv6.tclass'].flatMap(name => [`${name}.dscp`, `${name}.ecn`])
    const decoded = decode([...normal, ...fixed], [...names, 'ip.checksum.status'])
    const field = (layers: Record<string, string[]>, name: 'dscp' | 'ecn', at: Version, layer: 0 | -1) =>
      Number(layers[at === 4 ? `ip.dsfield.${name}` : `ipv6.tclass.${name}`].at(layer))
    CODES.forEach((ecn, i) => {
      const [copied, pipe] = [decoded[i], decoded[CODES.length + i]]
      expect(field(copied, 'ecn', outer, 0), 'RFC 6040 section 4.1, normal mode').toBe(ecn)
      expect(field(copied, 'dscp', outer, 0), 'RFC 2983 section 3, uniform model').toBe(DSCP >> 2)
      expect(field(pipe, 'ecn', outer, 0), 'RFC 6040 section 4.1, compatibility mode').toBe(NOT_ECT)
      expect(field(pipe, 'dscp', outer, 0), 'RFC 2983 section 3, pipe model').toBe(10)
      for (const layers of [copied, pipe]) {
        expect(field(layers, 'ecn', version, -1)).toBe(ecn)
        expect(field(layers, 'dscp', version, -1)).toBe(DSCP >> 2)
        for (const status of layers['ip.checksum.status'] ?? []) expect(status).toBe('1')
      }
    })
  })
})
