# Writes a capture, to the file that is named, of what is not plain TCP and UDP: fragments, ICMP errors, what belongs to the link, damaged packets.
import sys

from scapy.all import (
    ARP, BOOTP, DHCP, GRE, ICMP, IP, TCP, UDP, Dot1Q, Dot3, Ether, ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6MLReport2,
    ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, LLC, Raw, fragment, fragment6, raw, wrpcap,
)

A, B = '10.1.0.2', '10.1.0.3'
A6, B6 = 'fd00:1::2', 'fd00:1::3'
eth = lambda p, dst='02:00:00:00:00:0b': Ether(src='02:00:00:00:00:0a', dst=dst) / p
packets = []
add = lambda *many: packets.extend(many)


def udp(port, text, size=0, **ip):
    return IP(src=A, dst=B, **ip) / UDP(sport=4000, dport=port) / Raw(text.encode().ljust(size, b'.'))


def udp6(port, text, size=0):
    return IPv6(src=A6, dst=B6) / UDP(sport=4000, dport=port) / Raw(text.encode().ljust(size, b'.'))


# Two fragmented datagrams, interleaved, one of them of a flow that a rule may stop.
one, two = fragment(udp(7777, 'stopped', 4000, id=1), 1480), fragment(udp(8888, 'let through', 4000, id=2), 1480)
for pair in zip(one, two):
    add(*map(eth, pair))
split = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=7) / UDP(sport=4000, dport=7777) / Raw(b'x' * 4000)
add(*map(eth, fragment6(split, 1280)))
split = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=8) / UDP(sport=4000, dport=8888) / Raw(b'y' * 4000)
add(*map(eth, fragment6(split, 1280)))

# What a router says of each flow, and what the far end says of it, both quoting its packet.
for port in 7777, 8888:
    quoted = raw(udp(port, 'quoted', 40))
    add(eth(IP(src='10.9.9.9', dst=A) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(quoted[:28])))
    add(eth(IP(src=B, dst=A) / ICMP(type=3, code=3) / Raw(quoted)))
    quoted = raw(udp6(port, 'quoted', 40))
    add(eth(IPv6(src='fd00:9::9', dst=A6) / ICMPv6PacketTooBig(mtu=1280) / Raw(quoted)))
    add(eth(IPv6(src=B6, dst=A6) / ICMPv6DestUnreach(code=4) / Raw(quoted)))

# Plain ones of other protocols.
add(eth(IP(src=A, dst=B) / ICMP(id=9) / b'echo'), eth(IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=9) / b'echo'))
add(eth(IP(src=A, dst=B) / GRE() / IP(src='1.1.1.1', dst='2.2.2.2') / UDP(sport=1, dport=2) / b'gre'))
add(eth(IP(src=A, dst=B, proto=132) / Raw(bytes.fromhex('0fa00050000000010000000003000008'))))
add(eth(IPv6(src=A6, dst=B6) / TCP(sport=4001, dport=80, flags='S')))
add(eth(IP(src=A, dst=B, options=[b'\x94\x04\x00\x00']) / TCP(sport=4001, dport=80, flags='S')))

# What belongs to the link.
add(eth(ARP(psrc=A, pdst=B)), eth(IPv6(src=A6, dst=B6, hlim=255) / ICMPv6ND_NS(tgt=B6)))
add(Ether(src='02:00:00:00:00:01', dst='33:33:00:00:00:16') / IPv6(src='fe80::2', dst='ff02::16', hlim=1) / ICMPv6MLReport2())
dhcp = IP(src='0.0.0.0', dst='255.255.255.255') / UDP(sport=68, dport=67) / BOOTP() / DHCP(options=['end'])
dhcp6 = IPv6(src='fe80::2', dst='ff02::1:2') / UDP(sport=546, dport=547) / b'\x01\x00\x00\x01'
add(eth(dhcp, 'ff:ff:ff:ff:ff:ff'), eth(dhcp6, '33:33:00:01:00:02'))
add(Ether(dst='01:80:c2:00:00:0e', type=0x88CC) / Raw(b'\x02\x07' + bytes(20)))
add(Dot3(dst='01:80:c2:00:00:00') / LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(bytes(38)))

# Damaged: cut off, or with lengths that lie.
whole = raw(eth(udp(9999, 'damaged', 40)))
add(whole[:10], whole[:20], whole[:40])
add(eth(IP(src=A, dst=B, len=900) / UDP(sport=4000, dport=9999) / b'long'))
add(eth(IP(src=A, dst=B, ihl=3) / b'short header'))
add(eth(IP(src=A, dst=B) / UDP(sport=4000, dport=9999, len=4) / b'short length'))
add(eth(IPv6(src=A6, dst=B6, plen=900) / UDP(sport=4000, dport=9999) / b'long'))

# A tagged one: endpoints of tunnels drop such (RFC 7348 section 6.1).
add(Ether(src='02:00:00:00:00:0a', dst='02:00:00:00:00:0b') / Dot1Q(vlan=5) / udp(8888, 'tagged'))

wrpcap(sys.argv[1], [p if isinstance(p, bytes) else raw(p) for p in packets], linktype=1)
