#!/usr/bin/python3
"""Packets for the flow key tests, built by scapy:  test/flow/packets.py > test/flow/packets.json

Each has the flow that it belongs to and the end of that flow it comes from.
"""
import json
import sys

from scapy.all import *  # noqa: F403
from scapy.contrib.geneve import GENEVE  # noqa: F401  (the layers below are in scapy.all)

conf.verb = 0
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
C4, S4, R4 = "10.1.2.3", "192.0.2.9", "172.16.0.1"
C6, S6, R6 = "2001:db8::1:2", "2001:db8::ffff:9", "fd00::1"
flows, packets = {}, []


def flow(name, protocol, client, client_port, server, server_port):
    flows[name] = dict(protocol=protocol, client=client, clientPort=client_port, server=server, serverPort=server_port)


def packet(name, of, sender, layers, ether=ETHER):
    data = bytes(ether / layers)
    packets.append(dict(name=name, flow=of, sender=sender, hex=data.hex()))


def quote(p, octets):
    return Raw(bytes(p)[:octets])


# TCP, both versions, with options, VLAN tag, extension headers
flow("tcp4", 6, C4, 40000, S4, 443)
to4 = IP(src=C4, dst=S4) / TCP(sport=40000, dport=443, flags="S")
packet("TCP SYN", "tcp4", "client", to4)
packet("TCP SYN-ACK", "tcp4", "server", IP(src=S4, dst=C4) / TCP(sport=443, dport=40000, flags="SA"))
packet("TCP behind IP options", "tcp4", "client",
       IP(src=C4, dst=S4, options=[IPOption_RR(routers=["0.0.0.0"] * 5)]) / TCP(sport=40000, dport=443))
packet("TCP in a VLAN", "tcp4", "server", IP(src=S4, dst=C4) / TCP(sport=443, dport=40000), ETHER / Dot1Q(vlan=7))
packet("TCP padded to 60 bytes", "tcp4", "client", IP(src=C4, dst=S4, len=40) / TCP(sport=40000, dport=443) / Padding(b"\xff" * 6))
flow("tcp6", 6, C6, 40000, S6, 443)
to6 = IPv6(src=C6, dst=S6) / TCP(sport=40000, dport=443)
packet("TCP over IPv6", "tcp6", "client", to6)
packet("TCP over IPv6 back", "tcp6", "server", IPv6(src=S6, dst=C6) / TCP(sport=443, dport=40000, flags="SA"))
packet("TCP behind three extension headers", "tcp6", "client",
       IPv6(src=C6, dst=S6) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]) / IPv6ExtHdrRouting(addresses=["fd00::7"], segleft=0)
       / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / TCP(sport=40000, dport=443))
packet("TCP in an atomic fragment", "tcp6", "client", IPv6(src=C6, dst=S6) / IPv6ExtHdrFragment(id=5, m=0) / TCP(sport=40000, dport=443))

# flows that differ from those in one thing only
flow("tcp4 other port", 6, C4, 40001, S4, 443)
packet("another source port", "tcp4 other port", "client", IP(src=C4, dst=S4) / TCP(sport=40001, dport=443))
flow("tcp4 ports exchanged", 6, C4, 443, S4, 40000)
packet("ports exchanged, addresses not", "tcp4 ports exchanged", "client", IP(src=C4, dst=S4) / TCP(sport=443, dport=40000))
flow("tcp4 other server", 6, C4, 40000, "192.0.2.10", 443)
packet("another destination", "tcp4 other server", "client", IP(src=C4, dst="192.0.2.10") / TCP(sport=40000, dport=443))
flow("udp4 same ports", 17, C4, 40000, S4, 443)
packet("UDP with the same ports", "udp4 same ports", "client", IP(src=C4, dst=S4) / UDP(sport=40000, dport=443))
flow("to itself", 17, C4, 7000, C4, 53)
packet("to itself", "to itself", "client", IP(src=C4, dst=C4) / UDP(sport=7000, dport=53))
packet("to itself, answer", "to itself", "server", IP(src=C4, dst=C4) / UDP(sport=53, dport=7000))
flow("high addresses", 17, "240.0.0.1", 9, "10.0.0.1", 9)
packet("an address with its top bit set", "high addresses", "client", IP(src="240.0.0.1", dst="10.0.0.1") / UDP(sport=9, dport=9))
packet("and back", "high addresses", "server", IP(src="10.0.0.1", dst="240.0.0.1") / UDP(sport=9, dport=9))

# other protocols
flow("sctp4", 132, C4, 3868, S4, 3869)
packet("SCTP", "sctp4", "client", IP(src=C4, dst=S4) / SCTP(sport=3868, dport=3869))
flow("sctp4 cut off", 132, C4, 0, S4, 0)
packet("SCTP cut off in its ports", "sctp4 cut off", "client", IP(src=C4, dst=S4, proto=132) / b"\x0f\x1c")
flow("gre4", 47, C4, 0, S4, 0)
packet("GRE", "gre4", "client", IP(src=C4, dst=S4) / GRE())
packet("GRE back", "gre4", "server", IP(src=S4, dst=C4) / GRE())
flow("esp6", 50, C6, 0, S6, 0)
packet("ESP over IPv6", "esp6", "client", IPv6(src=C6, dst=S6) / ESP(spi=7, seq=1))

# ICMP queries
flow("ping4", 1, C4, 0x1234, S4, 0x1234)
ping4 = IP(src=C4, dst=S4) / ICMP(type=8, id=0x1234, seq=1) / b"payload"
packet("echo request", "ping4", "client", ping4)
packet("echo reply", "ping4", "server", IP(src=S4, dst=C4) / ICMP(type=0, id=0x1234, seq=1) / b"payload")
flow("ping4 other", 1, C4, 0x1235, S4, 0x1235)
packet("another ping", "ping4 other", "client", IP(src=C4, dst=S4) / ICMP(type=8, id=0x1235, seq=1))
flow("timestamp", 1, C4, 77, S4, 77)
packet("timestamp request", "timestamp", "client", IP(src=C4, dst=S4) / ICMP(type=13, id=77, ts_ori=1, ts_rx=2, ts_tx=3))
packet("timestamp reply", "timestamp", "server", IP(src=S4, dst=C4) / ICMP(type=14, id=77, ts_ori=1, ts_rx=2, ts_tx=3))
flow("ping6", 58, C6, 0x1234, S6, 0x1234)
ping6 = IPv6(src=C6, dst=S6) / ICMPv6EchoRequest(id=0x1234, seq=1)
packet("echo request over IPv6", "ping6", "client", ping6)
packet("echo reply over IPv6", "ping6", "server", IPv6(src=S6, dst=C6) / ICMPv6EchoReply(id=0x1234, seq=1))

# ICMP errors: from the other side of the packet they quote, whoever sends them
packet("time exceeded quoting 8 bytes of TCP", "tcp4", "server", IP(src=R4, dst=C4) / ICMP(type=11) / quote(to4, 28))
packet("port unreachable", "udp4 same ports", "server",
       IP(src=S4, dst=C4) / ICMP(type=3, code=3) / quote(IP(src=C4, dst=S4) / UDP(sport=40000, dport=443) / (b"x" * 64), 64))
packet("fragmentation needed, from the client's side", "tcp4", "client",
       IP(src=R4, dst=S4) / ICMP(type=3, code=4, nexthopmtu=1400) / quote(IP(src=S4, dst=C4, flags="DF") / TCP(sport=443, dport=40000), 28))
packet("error quoting IP options", "tcp4", "server",
       IP(src=R4, dst=C4) / ICMP(type=12) / quote(IP(src=C4, dst=S4, options=[IPOption_RR(routers=["0.0.0.0"] * 5)]) / TCP(sport=40000, dport=443), 52))
packet("error quoting a ping", "ping4", "server", IP(src=R4, dst=C4) / ICMP(type=11) / quote(ping4, 28))
packet("packet too big", "tcp6", "server", IPv6(src=R6, dst=C6) / ICMPv6PacketTooBig(mtu=1280) / quote(to6, 60))
packet("unreachable quoting extension headers", "tcp6", "server",
       IPv6(src=R6, dst=C6) / ICMPv6DestUnreach(code=4)
       / quote(IPv6(src=C6, dst=S6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / TCP(sport=40000, dport=443), 80))
packet("ICMPv6 error quoting a ping", "ping6", "server", IPv6(src=R6, dst=C6) / ICMPv6TimeExceeded() / quote(ping6, 48))
flow("quote of nothing", 1, R4, 0x0b00, C4, 0x0b00)
packet("error quoting an IP header only", "quote of nothing", "client", IP(src=R4, dst=C4) / ICMP(type=11) / quote(to4, 20))
packet("error quoting an IP header, the ports only in the frame's padding", "quote of nothing", "client",
       IP(src=R4, dst=C4, len=48) / ICMP(type=11) / quote(to4, 20) / Padding(bytes(to4)[20:28]))
packet("error quoting half an IP header", "quote of nothing", "client", IP(src=R4, dst=C4) / ICMP(type=11) / quote(to4, 12))
packet("error quoting an error", "quote of nothing", "client", IP(src=R4, dst=C4) / ICMP(type=11) / quote(IP(src=C4, dst=S4) / ICMP(type=11) / to4, 60))
packet("error quoting IPv6", "quote of nothing", "client", IP(src=R4, dst=C4) / ICMP(type=11) / quote(to6, 60))
flow("quote of nothing 6", 58, R6, 0x0300, C6, 0x0300)
packet("ICMPv6 error quoting a cut-off extension header", "quote of nothing 6", "client",
       IPv6(src=R6, dst=C6) / ICMPv6TimeExceeded() / quote(IPv6(src=C6, dst=S6) / IPv6ExtHdrDestOpt() / TCP(), 44))

# fragments: the first names the ports for those behind it
flow("fragments4", 17, C4, 5000, S4, 53)
big4 = fragment(IP(src=C4, dst=S4, id=4242) / UDP(sport=5000, dport=53) / (b"f" * 3000), 1400)
assert len(big4) == 3
for i, piece in enumerate(big4):
    packet(f"fragment {i + 1} of 3", "fragments4", "client", piece)
packet("error quoting the second fragment", "fragments4", "server", IP(src=R4, dst=C4) / ICMP(type=11, code=1) / quote(big4[1], 28))
flow("fragments6", 17, C6, 5000, S6, 53)
big6 = fragment6(IPv6(src=C6, dst=S6) / IPv6ExtHdrFragment(id=99999) / UDP(sport=5000, dport=53) / (b"f" * 3000), 1280)
assert len(big6) == 3
for i, piece in enumerate(big6):
    packet(f"IPv6 fragment {i + 1} of 3", "fragments6", "client", piece)
flow("orphan", 17, C4, 0, S4, 0)
packet("a fragment whose first one was not seen", "orphan", "client", IP(src=C4, dst=S4, id=4243, frag=100, proto=17) / (b"f" * 64))

json.dump(dict(flows=flows, packets=packets), sys.stdout, indent=2)
print()
