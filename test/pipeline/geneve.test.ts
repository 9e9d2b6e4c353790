// What a GENEVE receiver must, and must not, refuse (RFC 8926), packet by packet.

import { describe, expect, test } from 'vitest'
import { METADATA } from '../../src/pipeline/tunnel.ts'
import { frame, option, TUNNEL_ENDS, tunnelled } from './packets.ts'
import { open, refusal, tunnelConfig } from './rig.ts'

const INNER = frame()
const refused = (outer: Parameters<typeof tunnelled>[1]) => refusal(INNER, { kind: 'geneve', ...outer })

describe('GENEVE, receiving', () => {
  test('a sound packet gives its inner frame, byte for byte', () => {
    for (const version of [4, 6] as const) {
      const packet = tunnelled(INNER, { to: TUNNEL_ENDS[version].local })
      expect(open(packet, tunnelConfig('geneve', version)).inner).toEqual(INNER)
    }
  })

  test('RFC 8926 section 3.4: an unknown version is dropped', () => {
    for (const version of [1, 2, 3]) expect(refused({ flags: version << 14 })).toBe('geneve-version')
  })

  test('RFC 8926 section 3.4: reserved bits are ignored', () => {
    expect(refused({ flags: 0x3f, reserved: 0xff })).toBe('none')
  })

  test('RFC 8926 section 3.4: the C bit alone costs nothing where options are parsed', () => {
    expect(refused({ flags: 0x40 })).toBe('none')
    expect(refused({ flags: 0x40, geneveOptions: option(0x0102, 0x01, [1, 2, 3, 4]) })).toBe('none')
  })

  test('RFC 8926 section 3.4: the payload of a control packet (O bit) is never forwarded', () => {
    expect(refused({ flags: 0x80 })).toBe('geneve-control')
    expect(refused({ flags: 0x80, geneveOptions: option(0x0102, 1, [0, 0, 0, 0]) })).toBe('geneve-control')
  })

  test('RFC 8926 section 3.4: only the payload type of the tunnel is taken', () => {
    for (const type of [0x0800, 0x86dd, 0x0806, 0, 0xffff]) expect(refused({ type })).toBe('geneve-protocol')
  })

  test('RFC 8926 section 3.5: options that are not critical are passed over, whatever their class', () => {
    for (const unknown of [0x0100, 0x0108, 0xfff0, 0xffff])
      expect(refused({ geneveOptions: option(unknown, 0x7f, [1, 2, 3, 4]) })).toBe('none')
    const many = Array.from({ length: 12 }, () => option(0x0100, 1, new Array(16).fill(7))).flat()
    expect(refused({ geneveOptions: [...many, ...option(0x0100, 1, new Array(8).fill(7))] })).toBe('none')
    expect(refused({ geneveOptions: [...option(0x0100, 1, new Array(124).fill(7)), ...option(1, 1)] })).toBe('none')
  })

  test('RFC 8926 section 3.5: reserved bits of an option are ignored', () => {
    const reserved = option(0x0100, 1, [1, 2, 3, 4])
    reserved[3] |= 0xe0
    expect(refused({ geneveOptions: reserved })).toBe('none')
  })

  test('RFC 8926 section 3.5: an unknown critical option is dropped, with C and without, first or last, of our class too', () => {
    const harmless = option(METADATA.CLASS, METADATA.TYPE, [0, 0, 0, 0, 0, 0, 0, 0])
    for (const optionClass of [0x0100, 0x0108, METADATA.CLASS, 0xffff])
      for (const flags of [0, 0x40]) {
        const critical = option(optionClass, 0x80 | METADATA.TYPE, [1, 2, 3, 4])
        expect(refused({ flags, geneveOptions: critical })).toBe('geneve-critical')
        expect(refused({ flags, geneveOptions: [...harmless, ...critical] })).toBe('geneve-critical')
        expect(refused({ flags, geneveOptions: [...critical, ...harmless] })).toBe('geneve-critical')
      }
  })

  test('RFC 8926 section 3.5: option lengths that do not add up are dropped', () => {
    const long = option(0x0100, 1, [1, 2, 3, 4])
    long[3] = 2
    expect(refused({ geneveOptions: long })).toBe('geneve-options')
    long[3] = 31
    expect(refused({ geneveOptions: [...option(1, 1), ...long] })).toBe('geneve-options')
  })

  test('RFC 8926 section 3.4: an options length beyond the packet is dropped', () => {
    expect(refusal(new Uint8Array(0), { optionWords: 1 })).toBe('geneve-truncated')
    expect(refusal(INNER, { optionWords: 63 })).toBe('geneve-truncated')
    expect(refusal(new Uint8Array(0), { lengthError: -1, checksum: 'zero' })).toBe('geneve-truncated')
  })

  test('RFC 8926 section 3.3: another destination port is no tunnel, ours is configurable', () => {
    expect(refused({ port: 6082 })).toBe('not-tunnel')
    const packet = tunnelled(INNER, { port: 7777 })
    expect(open(packet, tunnelConfig('geneve', 4, { port: 7777 })).inner).toEqual(INNER)
    expect(refused({ sourcePort: 6081, port: 50_000 })).toBe('not-tunnel')
  })

  test('RFC 8926 section 3.4: a VNI that is not the tunnel’s is not delivered', () => {
    expect(refused({ vni: 0x123457 })).toBe('unknown-vni')
    expect(refused({ vni: 0 })).toBe('unknown-vni')
    expect(open(tunnelled(INNER, { vni: 9 }), tunnelConfig(), { anyPeer: true }).inner).toEqual(INNER)
  })

  test('RFC 8926 section 6.2: other ends than the tunnel’s are not delivered', () => {
    expect(refused({ from: '10.8.0.3' })).toBe('unknown-peer')
    expect(refused({ to: '10.8.0.9' })).toBe('unknown-peer')
    expect(refusal(INNER, { from: 'fd00:8::3' }, {}, 6)).toBe('unknown-peer')
    const packet = tunnelled(INNER, { to: TUNNEL_ENDS[6].local })
    expect(open(packet, tunnelConfig('geneve', 4)).reason).toBe('unknown-peer')
    expect(open(packet, tunnelConfig('geneve', 4), { anyPeer: true }).inner).toEqual(INNER)
  })
})
