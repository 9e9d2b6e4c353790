// What a receiver of either tunnel must, and must not, refuse around the tunnel's own header, over either IP version.

import { describe, expect, test } from 'vitest'
import { frame, TUNNEL_ENDS, tunnelled } from './packets.ts'
import { open, refusal, tunnelConfig } from './rig.ts'

const INNER = frame()

describe.each([
  ['geneve', 4],
  ['geneve', 6],
  ['vxlan', 4],
  ['vxlan', 6],
] as const)('the outer packet of %s over IPv%i', (kind, version) => {
  const to = TUNNEL_ENDS[version].local
  const outer = (rest: Parameters<typeof tunnelled>[1] = {}) => refusal(INNER, { kind, ...rest }, {}, version)

  test('RFC 768, RFC 8200 section 8.1: a wrong checksum is dropped, even by one bit anywhere in the packet', () => {
    expect(outer({ checksum: 'wrong' })).toBe('udp-checksum')
    const packet = tunnelled(INNER, { kind, to })
    const inner = packet.length - INNER.length
    for (const at of [inner - 1, inner, packet.length - 1]) {
      const bad = packet.slice()
      bad[at] ^= 1
      const { reason } = open(bad, tunnelConfig(kind, version))
      expect(reason).toBe('udp-checksum')
    }
  })

  test('RFC 8926 section 4.3, RFC 7348 section 5: no checksum is fine over IPv4, over IPv6 only where allowed', () => {
    expect(outer({ checksum: 'zero' })).toBe(version === 4 ? 'none' : 'udp-zero-checksum')
    expect(refusal(INNER, { kind, checksum: 'zero' }, { zeroChecksum6: true }, version)).toBe('none')
    expect(refusal(INNER, { kind, checksum: 'wrong' }, { zeroChecksum6: true }, version)).toBe('udp-checksum')
  })

  test('RFC 8926 section 4.4.1, RFC 7348 section 4.3: outer fragments are not reassembled', () => {
    for (const fragment of version === 4 ? [0x2000, 0x0001, 0x3fff] : [1, 8, 9])
      expect(outer({ fragment })).toBe('outer-fragment')
    expect(outer(version === 4 ? { fragment: 0 } : {})).toBe('none')
  })

  test('outer TTL 1, DSCP, VLAN tags and IPv4 options are nobody’s business here', () => {
    expect(outer({ ttl: 1 })).toBe('none')
    expect(outer({ tos: 0xfc })).toBe('none')
    expect(outer({ tags: [0x8100, 5] })).toBe('none')
    expect(outer({ tags: [0x88a8, 5, 0x8100, 6] })).toBe('none')
    if (version === 4) expect(outer({ options: 40 })).toBe('none')
  })

  test('what is not UDP, or whose lengths lie, is dropped', () => {
    expect(outer({ protocol: 6 })).toBe('not-tunnel')
    expect(outer({ lengthError: 1 })).toBe('udp-length')
    expect(outer({ lengthError: -1000 })).toBe('udp-length')
    const packet = tunnelled(INNER, { kind, to })
    const broken = packet.slice()
    broken[version === 4 ? 24 : 14] ^= version === 4 ? 1 : 0x20
    expect(open(broken, tunnelConfig(kind, version)).reason).toBe(version === 4 ? 'ipv4-checksum' : 'ipv6-version')
  })

  test('bytes behind the outer packet are not the inner frame’s', () => {
    const packet = Uint8Array.from([...tunnelled(INNER, { kind, to }), 1, 2, 3])
    expect(open(packet, tunnelConfig(kind, version)).inner).toEqual(INNER)
  })

  test('a packet cut off anywhere is dropped', () => {
    const packet = tunnelled(INNER, { kind, to })
    for (let n = 0; n < packet.length; n++)
      expect(open(packet.subarray(0, n), tunnelConfig(kind, version)).inner).toBeUndefined()
  })

  test('what is in it must be an IP packet, all of it there', () => {
    const arp = frame({ raw: [0x0806, new Array(28).fill(0)] })
    const inner = (bytes: Uint8Array) => refusal(bytes, { kind }, {}, version)
    expect(inner(arp)).toBe('not-ip')
    expect(inner(INNER.subarray(0, 13))).toBe('ethernet-truncated')
    expect(inner(INNER.subarray(0, 33))).toBe('ipv4-truncated')
    expect(inner(INNER.subarray(0, INNER.length - 1))).toBe('ipv4-total-length')
    expect(inner(frame({ version: 6 }).subarray(0, 60))).toBe('ipv6-payload-length')
    const config = tunnelConfig(kind, version)
    expect(open(tunnelled(arp, { kind, to }), config, { anyInner: true }).inner).toEqual(arp)
  })

  test('RFC 7348 section 6.1: inner VLAN tags are dropped unless configured', () => {
    for (const tagged of [
      frame({ tags: [0x8100, 5] }),
      frame({ tags: [0x88a8, 5, 0x8100, 6] }),
      frame({ tags: [0x8100, 5], raw: [0x0806, new Array(28).fill(0)] }),
    ]) {
      const packet = tunnelled(tagged, { kind, to })
      const config = tunnelConfig(kind, version)
      const anyInner = { anyInner: true }
      expect(open(packet, config).reason).toBe('inner-vlan')
      expect(open(packet, config, anyInner).reason).toBe('inner-vlan')
      expect(open(packet, { ...config, innerVlan: true }, anyInner).inner).toEqual(tagged)
    }
  })
})
