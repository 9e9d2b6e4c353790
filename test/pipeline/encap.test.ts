// What goes out to the endpoint, field by field, as tshark sees it: every tunnel over every IP version, around
// every IP version, with every way to send the outer checksum.

import { beforeAll, describe, expect, test } from 'vitest'
import type { OuterChecksum } from '../../src/pipeline/tunnel.ts'
import { frame, type Inner, PEER, POD, TCP, TUNNEL_ENDS, UDP, VNI } from './packets.ts'
import { Rig, TUNNELS, tunnelConfig } from './rig.ts'
import { decode, hasTshark } from './tshark.ts'

type Layers = Record<string, string[]>

const cases = TUNNELS.flatMap(({ kind, outer }) =>
  ([4, 6] as const).flatMap(inner =>
    (['auto', 'zero', 'always'] as const).map(checksum => ({ kind, outer, inner, checksum })),
  ),
)
type Case = (typeof cases)[number]

/** The inner packets of a case. */
const inners = (version: 4 | 6): Inner[] => [
  { version, protocol: UDP, sourcePort: 40_000, port: 40_001, ttl: 1 },
  { version, protocol: TCP, sourcePort: 40_001, port: 40_000, id: 0xffff },
]

function send({ kind, outer, inner, checksum }: Case): Uint8Array[] {
  const rig = new Rig({ tunnel: tunnelConfig(kind, outer, { outerChecksum: checksum }) })
  const sent = rig.toward(rig.pod(), ...inners(inner).map(frame))
  rig.balanced()
  return sent.map(packet => packet.bytes)
}

const IP_FIELDS = ['src', 'dst', 'ttl', 'id', 'flags.df', 'flags.mf', 'frag_offset', 'len', 'checksum.status', 'proto']
const IP6_FIELDS = ['src', 'dst', 'hlim', 'flow', 'plen', 'nxt']
const FIELDS = [
  ...IP_FIELDS.map(name => `ip.${name}`),
  ...IP6_FIELDS.map(name => `ipv6.${name}`),
  ...['srcport', 'dstport', 'length', 'checksum', 'checksum.status'].map(name => `udp.${name}`),
  ...['srcport', 'dstport', 'checksum.status'].map(name => `tcp.${name}`),
  ...[
    'version',
    'flags',
    'proto_type',
    'vni',
    'option.length',
    'option.class',
    'option.type',
    'option.type.critical',
  ].map(name => `geneve.${name}`),
  ...['geneve.options', 'vxlan.flags', 'vxlan.vni', 'eth.src', 'eth.dst', '_ws.malformed', '_ws.expert.message'],
]

describe.skipIf(!hasTshark)('encapsulation, by tshark (needs tshark)', () => {
  const seen = new Map<Case, Layers[]>()
  const sent = new Map<Case, Uint8Array[]>()
  beforeAll(() => {
    for (const one of cases) sent.set(one, send(one))
    const decoded = decode([...sent.values()].flat(), FIELDS)
    for (const one of cases) seen.set(one, decoded.splice(0, 2))
  })

  test.each(cases)('$kind over IPv$outer around IPv$inner, checksum $checksum', one => {
    const { kind, outer, inner, checksum } = one
    const { local, remote } = TUNNEL_ENDS[outer]
    const from = inner === 4 ? POD.ip4 : POD.ip6
    const to = inner === 4 ? PEER.ip4 : PEER.ip6
    seen.get(one)!.forEach((layers, i) => {
      const first = (name: string) => layers[name]?.[0]
      const last = (name: string) => layers[name]?.at(-1)
      const bytes = sent.get(one)![i].length
      expect(layers['_ws.malformed']).toBeUndefined()

      // The inner packet, untouched.
      expect([last('eth.src'), last('eth.dst')]).toEqual([POD.mac, PEER.mac])
      expect([last(inner === 4 ? 'ip.src' : 'ipv6.src'), last(inner === 4 ? 'ip.dst' : 'ipv6.dst')]).toEqual([from, to])
      expect(Number(last(inner === 4 ? 'ip.ttl' : 'ipv6.hlim'))).toBe(i === 0 ? 1 : 64)
      if (i === 0) expect([last('udp.srcport'), last('udp.dstport')]).toEqual(['40000', '40001'])
      else expect([first('tcp.srcport'), first('tcp.dstport')]).toEqual(['40001', '40000'])
      expect(i === 0 ? last('udp.checksum.status') : first('tcp.checksum.status')).toBe('1')

      // The outer IP header.
      if (outer === 4) {
        expect([first('ip.src'), first('ip.dst')]).toEqual([local, remote])
        expect(first('ip.flags.df'), 'RFC 4459 section 3.2: DF').toBe('1')
        expect([first('ip.flags.mf'), first('ip.frag_offset')]).toEqual(['0', '0'])
        expect(Number(first('ip.id')), 'RFC 6864 section 4.1: an atomic packet needs no identification').toBe(0)
        expect(Number(first('ip.ttl')), 'RFC 2003 section 3.1: the TTL is the tunnel’s own').toBe(61)
        expect(Number(first('ip.len'))).toBe(bytes - 14)
      } else {
        expect([first('ipv6.src'), first('ipv6.dst')]).toEqual([local, remote])
        expect(Number(first('ipv6.hlim'))).toBe(61)
        expect(Number(first('ipv6.flow')), 'RFC 6438 section 3: the flow label carries entropy').not.toBe(0)
        expect(Number(first('ipv6.plen'))).toBe(bytes - 54)
      }
      for (const status of layers['ip.checksum.status'] ?? []) expect(status).toBe('1')

      // UDP.
      expect(Number(first('udp.dstport'))).toBe(kind === 'geneve' ? 6081 : 4789)
      expect(Number(first('udp.srcport')), 'RFC 7348 section 5: 49152 to 65535').toBeGreaterThanOrEqual(49_152)
      expect(Number(first('udp.length'))).toBe(bytes - (outer === 4 ? 34 : 54))
      expect(checksumOf(layers), 'outer UDP checksum').toBe(expectedChecksum(kind, outer, checksum))

      // The tunnel's header.
      if (kind === 'geneve') {
        expect(Number(first('geneve.version')), 'RFC 8926 section 3.4').toBe(0)
        expect(Number(first('geneve.flags')), 'RFC 8926 section 3.4: O, C and reserved bits').toBe(0)
        expect(Number(first('geneve.proto_type'))).toBe(0x6558)
        expect(Number(first('geneve.vni'))).toBe(VNI)
        expect(layers['geneve.option.length']?.map(Number)).toEqual([12, 12])
        expect(Number(first('geneve.option.class')), 'RFC 8926 section 7: experimental').toBe(0xfff0)
        expect(first('geneve.option.type.critical')).toBe('0')
      } else {
        expect(Number(first('vxlan.flags')), 'RFC 7348 section 5: I alone').toBe(0x0800)
        expect(Number(first('vxlan.vni'))).toBe(VNI)
      }
    })
  })
})

/** What tshark makes of the outer checksum. NB: over IPv6 it calls a zero one bad, which by RFC 8200 it would be. */
function checksumOf(layers: Layers): string {
  if (Number(layers['udp.checksum'][0]) === 0) return 'none'
  return layers['udp.checksum.status'][0] === '1' ? 'good' : 'bad'
}

function expectedChecksum(kind: string, outer: number, mode: OuterChecksum): string {
  if (mode !== 'auto') return mode === 'zero' ? 'none' : 'good'
  // RFC 8926 section 4.3: SHOULD over IPv4, MUST over IPv6. RFC 7348 section 5: SHOULD be zero; RFC 8200 section 8.1: MUST over IPv6.
  return kind === 'geneve' || outer === 6 ? 'good' : 'none'
}

describe('entropy', () => {
  const port = (bytes: Uint8Array, outer: 4 | 6) => {
    const at = outer === 4 ? 34 : 54
    return (bytes[at] << 8) | bytes[at + 1]
  }
  const label = (bytes: Uint8Array) => ((bytes[15] & 15) << 16) | (bytes[16] << 8) | bytes[17]

  test.each(TUNNELS)(
    'RFC 8926 section 3.3, RFC 7348 section 5: one source port a flow, in both directions ($name)',
    ({ kind, outer }) => {
      const rig = new Rig({ tunnel: tunnelConfig(kind, outer) })
      const pod = rig.pod()
      for (const version of [4, 6] as const) {
        const [from, to] = version === 4 ? [POD.ip4, PEER.ip4] : [POD.ip6, PEER.ip6]
        const there: Inner = { version, sourcePort: 1234, port: 53 }
        const here: Inner = {
          version,
          sourcePort: 53,
          port: 1234,
          from: to,
          to: from,
          fromMac: PEER.mac,
          toMac: POD.mac,
        }
        const sent = rig.toward(
          pod,
          frame(there),
          frame(here),
          frame({ ...there, data: new Array(500).fill(1), tos: 4 }),
        )
        expect(sent).toHaveLength(3)
        expect(new Set(sent.map(p => port(p.bytes, outer))).size).toBe(1)
        if (outer === 6) expect(new Set(sent.map(p => label(p.bytes))).size).toBe(1)
      }
      rig.balanced()
    },
  )

  test.each([
    ['source port', 4, port],
    ['IPv6 flow label', 6, label],
  ] as const)('RFC 6335 section 6, RFC 6438 section 3: flows spread over the %s', (_, outer, of) => {
    const flows = 4096
    const bins = 64
    const rig = new Rig({ tunnel: tunnelConfig('vxlan', outer), flows: { capacity: flows } })
    const pod = rig.pod()
    const values: number[] = []
    // What a client does: one port after the other to the same server.
    for (let i = 0; i < flows; i++)
      values.push(of(rig.toward(pod, frame({ protocol: TCP, sourcePort: 20_000 + i, port: 443 }))[0].bytes, outer))
    rig.balanced()
    // Of the low and of the high bits: chi square with 63 degrees of freedom stays under 120 in all but 2 of 100,000 cases.
    for (const shift of outer === 4 ? [0, 8] : [0, 14]) {
      const counts = new Array<number>(bins).fill(0)
      for (const value of values) counts[(value >> shift) & (bins - 1)]++
      const expected = flows / bins
      const chi = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)
      expect(chi).toBeLessThan(120)
    }
  })

  test('another attachment’s flow of the same addresses is another flow', () => {
    const rig = new Rig()
    const one = rig.pod('02:00:00:00:0a:01')
    const two = rig.pod('02:00:00:00:0a:02')
    const [first] = rig.toward(one, frame())
    const [second] = rig.toward(two, frame({ fromMac: '02:00:00:00:0a:02' }))
    expect(port(first.bytes, 4)).not.toBe(port(second.bytes, 4))
    expect(rig.forwarder.table.count).toBe(2)
    rig.balanced()
  })
})
