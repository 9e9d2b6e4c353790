// What a VXLAN receiver must, and must not, refuse (RFC 7348). What the outer packet must be is in outer.test.ts.

import { describe, expect, test } from 'vitest'
import { frame, TUNNEL_ENDS, tunnelled } from './packets.ts'
import { open, refusal, tunnelConfig } from './rig.ts'

const INNER = frame()
const refused = (outer: Parameters<typeof tunnelled>[1], strictReserved = false) =>
  refusal(INNER, { kind: 'vxlan', ...outer }, { strictReserved })

describe('VXLAN, receiving', () => {
  test('a sound packet gives its inner frame, byte for byte', () => {
    for (const version of [4, 6] as const) {
      const packet = tunnelled(INNER, { kind: 'vxlan', to: TUNNEL_ENDS[version].local })
      expect(open(packet, tunnelConfig('vxlan', version)).inner).toEqual(INNER)
    }
  })

  test('RFC 7348 section 5: without the I flag it is dropped', () => {
    for (const flags of [0, 0xf7]) expect(refused({ flags })).toBe('vxlan-flags')
  })

  test('RFC 7348 section 5: all other bits are ignored', () => {
    expect(refused({ flags: 0xff, reserved: 0xff })).toBe('none')
  })

  test('strictReserved: reserved bits are refused, as Linux does', () => {
    expect(refused({}, true)).toBe('none')
    expect(refused({ flags: 0x88 }, true)).toBe('vxlan-reserved')
    expect(refused({ reserved: 1 }, true)).toBe('vxlan-reserved')
    const at = 14 + 20 + 8
    for (const byte of [1, 2, 3, 7]) {
      const packet = tunnelled(INNER, { kind: 'vxlan', checksum: 'zero' })
      packet[at + byte] = 0x80
      expect(open(packet, tunnelConfig('vxlan', 4, { strictReserved: true })).reason).toBe('vxlan-reserved')
      expect(open(packet, tunnelConfig('vxlan')).reason).toBe('none')
    }
  })

  test('RFC 7348 section 4: a VNI that is not the tunnel’s is not delivered', () => {
    expect(refused({ vni: 0x123457 })).toBe('unknown-vni')
    expect(open(tunnelled(INNER, { kind: 'vxlan', vni: 9 }), tunnelConfig('vxlan'), { anyPeer: true }).inner).toEqual(
      INNER,
    )
  })

  test('RFC 7348 section 4.1: other ends than the tunnel’s are not delivered', () => {
    expect(refused({ from: '10.8.0.3' })).toBe('unknown-peer')
    expect(refused({ to: '10.8.0.3' })).toBe('unknown-peer')
  })

  test('RFC 7348 section 5: another destination port is no tunnel, ours is configurable', () => {
    expect(refused({ port: 8472 })).toBe('not-tunnel')
    const packet = tunnelled(INNER, { kind: 'vxlan', port: 8472 })
    expect(open(packet, tunnelConfig('vxlan', 4, { port: 8472 })).inner).toEqual(INNER)
  })

  test('a header cut off is dropped', () => {
    expect(refusal(new Uint8Array(0), { kind: 'vxlan', lengthError: -1, checksum: 'zero' })).toBe('vxlan-truncated')
    expect(refusal(new Uint8Array(0), { kind: 'vxlan' })).toBe('ethernet-truncated')
  })
})
