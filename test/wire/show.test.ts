// Lines that tcpdump words otherwise, or cannot have: what is behind the marks. Where they are alike, packets.test.ts compares.

import { describe, expect, it } from 'vitest'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import { show, showPacket } from '../../src/wire/show.ts'
import * as udp from '../../src/wire/udp.ts'
import * as vxlan from '../../src/wire/vxlan.ts'
import { fixture, shared } from './harness.ts'

const INNER = 'IP 10.1.2.3.40000 > 10.200.0.4.40001: Flags [P.], seq 2147483649:2147483690, ack 5, win 8192, length 41'
const OUTER = 'IP 192.0.2.1.49153 > 198.51.100.200.6081: Geneve'

describe('show', () => {
  it.each([
    ['ethernet, unknown type', '02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88cc, length 55'],
    ['vlan tag', 'vlan 4095, p 7, IP 192.0.2.1.1 > 198.51.100.200.65535: UDP, length 41'],
    ['two vlan tags', 'vlan 100, p 3, vlan 1, p 0, IP6 2001:db8::1.1000 > 2001:db8:0:1::ffff.2000: UDP, length 3'],
    ['ipv4, every field', 'IP 255.255.255.255 > 128.0.0.1: protocol 99, length 41'],
    ['ipv4, first fragment', 'IP 192.0.2.1.1234 > 198.51.100.200.5678: frag 43981:48@0+, UDP, length 1000'],
    ['ipv4, middle fragment', 'IP 192.0.2.1 > 198.51.100.200: frag 43981:48@48+, UDP, length 48'],
    ['ipv4, last fragment', 'IP 192.0.2.1 > 198.51.100.200: frag 43981:1@65528, UDP, length 1'],
    ['ipv6, no next header', 'IP6 fe80::1 > fe80::2: no next header, length 0'],
    ['ipv6, hop-by-hop', 'IP6 2001:db8::1 > 2001:db8:0:1::ffff: HBH ICMP6, mldv2 report, length 8'],
    [
      'ipv6, many extensions',
      'IP6 2001:db8::1.1 > 2001:db8:0:1::ffff.2: HBH DSTOPT RT frag 2309737967:69@0, DSTOPT Flags [S], seq 0:41, win 8192, length 41',
    ],
    ['ipv6, last fragment', 'IP6 2001:db8::1 > 2001:db8:0:1::ffff: frag 4275878552:9@65528, TCP, length 9'],
    [
      'icmp fragmentation needed',
      'IP 192.0.2.1 > 198.51.100.200: ICMP unreachable - need to frag (mtu 1400), length 36 (IP 198.51.100.200.443 > 192.0.2.1.51000: TCP)',
    ],
    [
      'icmpv6 packet too big',
      'IP6 2001:db8::1 > 2001:db8:0:1::ffff: ICMP6, packet too big, mtu 1280, length 97 (IP6 2001:db8:0:1::ffff.443 > 2001:db8::1.51000: UDP, length 1452)',
    ],
    [
      'geneve, three options',
      `${OUTER}, vni 0, options [0x0108/0x1:0101010101010101 0x0108/0x2:0202020202020202 0x0108/0x3:03030303]: ${INNER}`,
    ],
    [
      'geneve, unknown critical option',
      `${OUTER}, Flags [C], vni 9, options [0x0102/0x80:00000001] [geneve-critical]: ${INNER}`,
    ],
    ['geneve, control', `${OUTER}, Flags [O], vni 9 [geneve-control]`],
    ['vxlan, vlan tag inside', `IP 192.0.2.1.49153 > 198.51.100.200.4789: VXLAN, vni 1: vlan 2, p 0, ${INNER}`],
  ])('%s', (name, line) => expect(show(fixture(name))).toBe(line))

  it('finds tunnels on the ports that it is told', () => {
    const geneve = fixture('geneve, ipv4 inside')
    udp.setDestinationPort(geneve, 34, 7000)
    expect(show(geneve)).toMatch(/7000: UDP, length 89$/)
    expect(show(geneve, 0, geneve.length, { geneve: [1, 7000] })).toContain(`7000: Geneve, vni 1: ${INNER}`)
    const vxlan = fixture('vxlan')
    udp.setDestinationPort(vxlan, 34, 10800)
    expect(show(vxlan, 0, vxlan.length, { vxlan: [10800, 10801] })).toContain(`10800: VXLAN, vni 11259375: ${INNER}`)
  })

  it('shows packets without an Ethernet header', () => {
    const b = fixture('udp over ipv6')
    expect(showPacket(b, 14)).toBe(show(b))
    expect(showPacket(fixture('udp, empty'), 14)).toBe(show(fixture('udp, empty')))
  })

  it.each([
    ['0200', '[ethernet-truncated]'],
    ['020000000002 020000000001 8100 00', '[vlan-truncated]'],
    ['020000000002 020000000001 8100 0000 8100 0000 8100 0000 0800', '[vlan-too-deep]'],
    ['020000000002 020000000001 0806 0001', 'ARP [arp-truncated]'],
    ['020000000002 020000000001 0800', 'IP [ipv4-truncated]'],
    ['020000000002 020000000001 86dd 60', 'IP6 [ipv6-truncated]'],
  ])('marks %s', (hex, line) => expect(show(shared(hex))).toBe(line))

  it.each([
    ['udp, odd payload', 60, 'IP 192.0.2.1.1234 > 198.51.100.200.5678: UDP, length 41 [ipv4-total-length]'],
    ['udp, odd payload', 40, 'IP 192.0.2.1 > 198.51.100.200: UDP [udp-truncated] [ipv4-total-length]'],
    ['tcp syn', 60, 'IP 192.0.2.1.49152 > 198.51.100.200.443: TCP [tcp-header-length] [ipv4-total-length]'],
    ['icmp echo request', 41, 'IP 192.0.2.1 > 198.51.100.200: ICMP [icmp-truncated] [ipv4-total-length]'],
    ['udp over ipv6', 70, 'IP6 2001:db8::1.1234 > 2001:db8:0:1::ffff.5678: UDP, length 41 [ipv6-payload-length]'],
    ['ipv6, hop-by-hop', 60, 'IP6 2001:db8::1 > 2001:db8:0:1::ffff: [ipv6-extension] [ipv6-payload-length]'],
  ])('marks %s when cut off at %i bytes', (name, end, line) => expect(show(fixture(name), 0, end)).toBe(line))

  it('stops at the eighth packet inside another', () => {
    const b = new Uint8Array(2000)
    let start = b.length
    for (let i = 0; i < 20; i++) {
      vxlan.write(b, (start -= vxlan.HEADER), i)
      udp.write(b, (start -= udp.HEADER), 1, vxlan.PORT, b.length - start, 0)
      start -= ipv4.HEADER
      ipv4.write(b, start, ipv4.HEADER, 0, b.length - start, 0, 0, 64, ipv4.PROTOCOL.UDP, 1, 2)
      ethernet.write(b, (start -= ethernet.HEADER), 0, 1, 0, 2, ethernet.ETHERTYPE.IPV4)
    }
    const line = show(b, start)
    expect(line.match(/VXLAN/g)?.length).toBe(8)
    expect(line).toMatch(/4789: \.\.\.$/)
  })
})
