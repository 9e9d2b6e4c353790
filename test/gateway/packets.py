#!/usr/bin/python3
"""Tunnel packets and what a gateway owes for them, built by scapy:  test/gateway/packets.py > test/gateway/packets.json

`frames` come in one after the other, `back` is all that may go out, byte for byte. The rules are fixtures/policy/example.yaml, or `rules`.
"""
import json

from scapy.all import *  # noqa: F403
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.vxlan import VXLAN

conf.verb = 0
NODE_MAC, GATE_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"
POD_MAC, FAR_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
NODE4, GATE4, NODE6, GATE6 = "10.99.0.1", "10.99.0.2", "fd00:99::1", "fd00:99::2"
POD4, FAR4, POD6, FAR6 = "10.1.2.3", "192.0.2.9", "fd00::a", "2001:db8::b"
SPORT = 51234
AWS = [
    GeneveOptions(classid=0x0108, type=1, data=b"\x11" * 8),
    GeneveOptions(classid=0x0108, type=2, data=b"\x22" * 8),
    GeneveOptions(classid=0x0108, type=3, data=b"\x33" * 4),
]
OURS = lambda direction: [GeneveOptions(classid=0xFFF0, type=1, data=bytes([0, 7, direction, 0, 1, 2, 3, 4]))]
cases = []


def geneve(options=(), **more):
    return GENEVE(proto=0x6558, vni=77, options=list(options), **more)


def vxlan(**more):
    return VXLAN(flags=8, vni=77, **more)


def inner(packet, back=False):
    return Ether(src=FAR_MAC if back else POD_MAC, dst=POD_MAC if back else FAR_MAC) / packet


def tunnel(header, frame, six=False, back=False, tos=0, ttl=None, chksum=None, sport=SPORT, dport=None, ether=None, options=None):
    """An outer packet from the node, or with `back` the one that the gateway owes it."""
    port = dport or (4789 if isinstance(header, VXLAN) else 6081)
    macs = dict(src=GATE_MAC, dst=NODE_MAC) if back else dict(src=NODE_MAC, dst=GATE_MAC)
    ttl = ttl or (64 if back else 37)
    if six:
        ends = dict(src=GATE6, dst=NODE6) if back else dict(src=NODE6, dst=GATE6)
        ip = IPv6(tc=tos, fl=0x54321, hlim=ttl, **ends)
    else:
        ends = dict(src=GATE4, dst=NODE4) if back else dict(src=NODE4, dst=GATE4)
        ip = IP(tos=tos, id=0x4242, flags="DF", ttl=ttl, options=options or [], **ends)
    udp = UDP(sport=sport, dport=port) if chksum is None else UDP(sport=sport, dport=port, chksum=chksum)
    link = Ether(**macs) if ether is None else Ether(**macs) / ether
    return bytes(link / ip / udp / header / frame)


def case(name, profile, frames, back, drops=None, log=(), rules=""):
    cases.append(dict(name=name, profile=profile, frames=[f.hex() for f in frames], back=[f.hex() for f in back],
                      drops=drops or {}, log=list(log), rules=rules))


def udp4(tos=0, sport=40000, dport=9, data=b"hello"):
    return IP(src=POD4, dst=FAR4, tos=tos, id=7) / UDP(sport=sport, dport=dport) / data


def udp6(tos=0, sport=40000, dport=9, data=b"hello"):
    return IPv6(src=POD6, dst=FAR6, tc=tos) / UDP(sport=sport, dport=dport) / data


def both(name, profile, header, frame, header_back=None, frame_back=None, log=(["default", "allow"],), **more):
    back = {key: value for key, value in more.items() if key != "ttl"}
    case(name, profile, [tunnel(header, frame, **more)],
         [tunnel(header_back or header, frame_back or frame, back=True, **back)], log=log)


# What is allowed comes back as the profile demands.
both("GENEVE over IPv4", "geneve", geneve(), inner(udp4()))
both("GENEVE with zero checksum", "geneve", geneve(), inner(udp4()), chksum=0)
both("GENEVE over IPv6", "geneve", geneve(), inner(udp6()), six=True)
both("GENEVE options are echoed byte for byte", "geneve", geneve(AWS + OURS(0)), inner(udp4()))
both("GENEVE reserved bits of options are echoed too", "geneve",
     geneve([GeneveOptions(classid=0x0108, type=1, reserved=5, length=1, data=b"\x11" * 4)]), inner(udp4()))
both("GENEVE reserved bits are cleared, the checksum follows", "geneve",
     geneve(AWS, reserved=0x2A, reserved2=0x99), inner(udp4()), header_back=geneve(AWS))
both("VXLAN over IPv4 without checksum", "vxlan", vxlan(), inner(udp4()), chksum=0)
both("VXLAN over IPv4 with checksum", "vxlan", vxlan(), inner(udp4()))
both("VXLAN over IPv6", "vxlan", vxlan(), inner(udp6()), six=True)
both("VXLAN reserved bits are cleared, the checksum follows", "vxlan",
     VXLAN(flags=0x48, reserved1=0xABCDEF, vni=77, reserved2=0x55), inner(udp4()), header_back=vxlan())
both("outer IPv4 options and a VLAN tag stay", "geneve", geneve(), inner(udp4()), ether=Dot1Q(vlan=12, prio=3),
     options=[IPOption_NOP(), IPOption_NOP(), IPOption_NOP(), IPOption_EOL()])
both("an Ethernet trailer stays", "vxlan", vxlan(), inner(udp4(data=b"") / Padding(b"\xee" * 9)))

# RFC 6040: what comes in is decapsulated (section 4.2), what goes out encapsulated (section 4.1); DSCP stays.
DSCP = 0xB8
for label, before, outer, after in [
    ("ECT(0) in ECT(0)", 2, 2, 2),
    ("ECT(0) in CE", 2, 3, 3),
    ("ECT(0) in ECT(1)", 2, 1, 1),
    ("ECT(1) in CE", 1, 3, 3),
    ("ECT(1) in ECT(0)", 1, 2, 1),
    ("CE in ECT(0)", 3, 2, 3),
    ("ECT(0) in Not-ECT", 2, 0, 2),
    ("Not-ECT in ECT(0)", 0, 2, 0),
]:
    for six, made in [(False, udp4), (True, udp6)]:
        case(f"ECN over {'IPv6' if six else 'IPv4'}: {label}", "geneve",
             [tunnel(geneve(), inner(made(tos=before)), six=six, tos=DSCP | outer)],
             [tunnel(geneve(), inner(made(tos=after)), six=six, tos=DSCP | after, back=True)],
             log=[["default", "allow"]])
case("ECN: Not-ECT in CE", "geneve", [tunnel(geneve(), inner(udp4()), tos=3)], [], {"decap": {"ecn-ce-not-ect": 1}})

# A peer on the gateway's own address is answered at its port.
alone = dict(src=GATE4, dst=GATE4, id=1)
case("a peer on our own address", "geneve",
     [bytes(Ether(src=NODE_MAC, dst=GATE_MAC) / IP(ttl=9, **alone) / UDP(sport=SPORT, dport=6081) / geneve() / inner(udp4()))],
     [bytes(Ether(src=GATE_MAC, dst=NODE_MAC) / IP(ttl=64, **alone) / UDP(sport=6081, dport=SPORT) / geneve() / inner(udp4()))],
     log=[["default", "allow"]])

# What is no tunnel packet of the profile is counted and goes nowhere.
good = tunnel(geneve(), inner(udp4()))


def refused(name, profile, frame, reason, stage="decap"):
    case(f"refused: {name}", profile, [frame], [], {stage: {reason: 1}})


refused("another port", "geneve", tunnel(geneve(), inner(udp4()), dport=6082), "not-tunnel")
refused("TCP", "geneve", bytes(Ether(src=NODE_MAC, dst=GATE_MAC) / IP(src=NODE4, dst=GATE4) / TCP(dport=6081)), "not-tunnel")
refused("version 1", "geneve", tunnel(geneve(version=1), inner(udp4())), "geneve-version")
refused("options beyond the packet", "geneve", tunnel(geneve(optionlen=63), b""), "geneve-truncated")
refused("options that do not add up", "geneve",
        tunnel(geneve([GeneveOptions(classid=1, type=1, length=5, data=b"\0" * 4)], optionlen=2), inner(udp4())), "geneve-options")
refused("an unknown critical option", "geneve",
        tunnel(geneve([GeneveOptions(classid=0x0108, type=0x81, data=b"\0" * 4)], critical=1), inner(udp4())), "geneve-critical")
refused("an unknown critical option of our own class", "geneve",
        tunnel(geneve([GeneveOptions(classid=0xFFF0, type=0x81, data=b"\0" * 4)], critical=1), inner(udp4())), "geneve-critical")
refused("a control packet", "geneve", tunnel(geneve(oam=1), inner(udp4())), "geneve-control")
refused("inner IPv4 without Ethernet", "geneve", tunnel(GENEVE(proto=0x0800, vni=77), udp4()), "geneve-protocol")
refused("a wrong outer checksum", "geneve", tunnel(geneve(), inner(udp4()), chksum=0x1234), "udp-checksum")
refused("no checksum over IPv6", "geneve", tunnel(geneve(), inner(udp6()), six=True, chksum=0), "udp-zero-checksum")
refused("no I flag", "vxlan", tunnel(VXLAN(flags=0, vni=77), inner(udp4())), "vxlan-flags")
refused("an outer fragment", "vxlan",
        bytes(Ether(src=NODE_MAC, dst=GATE_MAC) / IP(src=NODE4, dst=GATE4, flags="MF") / UDP(sport=1, dport=4789) / vxlan() / inner(udp4())),
        "outer-fragment")
refused("an inner VLAN tag", "vxlan", tunnel(vxlan(), Ether(src=POD_MAC, dst=FAR_MAC) / Dot1Q(vlan=3) / udp4()), "inner-vlan")
refused("inner ARP", "vxlan", tunnel(vxlan(), Ether(src=POD_MAC, dst=FAR_MAC) / ARP()), "not-ip")
refused("inner IPv4 longer than the packet", "vxlan", tunnel(vxlan(), inner(IP(src=POD4, dst=FAR4, len=999) / UDP())), "ipv4-total-length")


# Rules. Resets of TCP: RFC 9293 section 3.10.7.1 to the sender, the number it waits for to the receiver.
def tcp4(flags, seq=1000, ack=0, data=b"", dport=23, sport=40000, back=False):
    ends = dict(src=FAR4, dst=POD4) if back else dict(src=POD4, dst=FAR4)
    ports = dict(sport=dport, dport=sport) if back else dict(sport=sport, dport=dport)
    return inner(IP(id=5, **ends) / TCP(flags=flags, seq=seq, ack=ack, **ports) / data, back)


def rst4(flags, seq, ack=0, dport=23, back=True):
    """The gateway's own segment: back to the pod, or on to the far end."""
    ends = dict(src=FAR4, dst=POD4) if back else dict(src=POD4, dst=FAR4)
    ports = dict(sport=dport, dport=40000) if back else dict(sport=40000, dport=dport)
    return inner(IP(id=0, flags="DF", ttl=64, **ends) / TCP(flags=flags, seq=seq, ack=ack, window=0, **ports), back)


def rst6(flags, seq, ack=0, back=True):
    ends = dict(src=FAR6, dst=POD6) if back else dict(src=POD6, dst=FAR6)
    ports = dict(sport=23, dport=40000) if back else dict(sport=40000, dport=23)
    return inner(IPv6(hlim=64, **ends) / TCP(flags=flags, seq=seq, ack=ack, window=0, **ports), back)


TELNET = [["no-telnet", "reset"]]
case("reset of a SYN: to the sender alone", "geneve", [tunnel(geneve(AWS + OURS(0)), tcp4("S", 0xFFFFFFFF))],
     [tunnel(geneve(AWS + OURS(1)), rst4("RA", 0, 0), back=True)], {"inspect": {"reset": 1}}, TELNET)
case("reset of data: to both", "vxlan", [tunnel(vxlan(), tcp4("PA", 1000, 2000, b"x" * 11), chksum=0)],
     [tunnel(vxlan(), rst4("R", 2000), back=True, chksum=0), tunnel(vxlan(), rst4("RA", 1000, 2000, back=False), back=True, chksum=0)],
     {"inspect": {"reset": 1}}, TELNET)
case("reset of FIN without ACK", "geneve", [tunnel(geneve(), tcp4("F", 1000, data=b"abc"))],
     [tunnel(geneve(), rst4("RA", 0, 1004), back=True)], {"inspect": {"reset": 1}}, TELNET)
case("reset over IPv6", "geneve",
     [tunnel(geneve(), inner(IPv6(src=POD6, dst=FAR6) / TCP(sport=40000, dport=23, flags="A", seq=5, ack=6)), six=True)],
     [tunnel(geneve(), rst6("R", 6), six=True, back=True), tunnel(geneve(), rst6("RA", 5, 6, back=False), six=True, back=True)],
     {"inspect": {"reset": 1}}, TELNET)
case("a RST is not answered", "geneve", [tunnel(geneve(), tcp4("R", 1000))], [], {"inspect": {"reset": 1}}, TELNET)
case("a SYN-ACK seen first belongs to the connection of its receiver", "geneve", [tunnel(geneve(), tcp4("SA", 50, 1001, back=True))],
     [tunnel(geneve(), rst4("R", 1001, back=False), back=True), tunnel(geneve(), rst4("RA", 50, 1001), back=True)],
     {"inspect": {"reset": 1}}, TELNET)


def prohibited4(packet, quoted=548):
    quote = bytes(packet)[:quoted]
    return inner(IP(src=FAR4, dst=POD4, tos=0xC0, id=0, flags="DF", ttl=64) / ICMP(type=3, code=13) / quote, True)


def prohibited6(packet, quoted=1232):
    return inner(IPv6(src=FAR6, dst=POD6, tc=0xC0, hlim=64) / ICMPv6DestUnreach(code=1) / Raw(bytes(packet)[:quoted]), True)


SYSLOG = [["no-syslog", "reset"]]
for size in (5, 1400):
    p4, p6 = udp4(dport=514, data=b"z" * size), udp6(dport=514, data=b"z" * size)
    case(f"reset of UDP over IPv4, {size} bytes", "geneve", [tunnel(geneve(OURS(0)), inner(p4))],
         [tunnel(geneve(OURS(1)), prohibited4(p4), back=True)], {"inspect": {"reset": 1}}, SYSLOG)
    case(f"reset of UDP over IPv6, {size} bytes", "vxlan", [tunnel(vxlan(), inner(p6), six=True)],
         [tunnel(vxlan(), prohibited6(p6), six=True, back=True)], {"inspect": {"reset": 1}}, SYSLOG)
case("reset of UDP to a group is silent", "geneve",
     [tunnel(geneve(), Ether(src=POD_MAC, dst="01:00:5e:00:00:09") / IP(src=POD4, dst="224.0.0.9") / UDP(sport=9, dport=514))],
     [], {"inspect": {"reset": 1}}, SYSLOG)
fragments = fragment(udp4(dport=514, data=b"z" * 1200), fragsize=800)
case("reset of a fragment but the first is silent", "geneve", [tunnel(geneve(), inner(f)) for f in fragments],
     [tunnel(geneve(), prohibited4(fragments[0]), back=True)], {"inspect": {"reset": 2}}, SYSLOG)
case("an ICMP error shares the verdict of its flow, and is not answered", "geneve",
     [tunnel(geneve(), inner(udp4(dport=514))),
      tunnel(geneve(), inner(IP(src=FAR4, dst=POD4) / ICMP(type=3, code=3) / udp4(dport=514), True))],
     [tunnel(geneve(), prohibited4(udp4(dport=514)), back=True)], {"inspect": {"reset": 2}}, SYSLOG)
case("drop", "vxlan", [tunnel(vxlan(), inner(udp4(dport=69)))], [], {"inspect": {"policy": 1}}, [["no-tftp", "drop"]])

# Signatures.
ALLOW = ["default", "allow"]
SECRET = ["block-secret", "drop"]


def web(data, seq, sport=40000):
    return tunnel(geneve(), tcp4("PA", seq, 1, data, dport=80, sport=sport))


def web_back(data, seq, sport=40000):
    return tunnel(geneve(), tcp4("PA", seq, 1, data, dport=80, sport=sport), back=True)


case("a signature in one segment; what follows is dropped too", "geneve",
     [web(b"GET / HTTP/1.1\r\n", 100), web(b"xx get /SECRET HTTP", 116), web(b"more", 135)],
     [web_back(b"GET / HTTP/1.1\r\n", 100)], {"inspect": {"policy": 2}}, [ALLOW, SECRET])
case("a signature across three segments", "geneve",
     [web(b"GET ", 100), web(b"/sec", 104), web(b"ret", 108)],
     [web_back(b"GET ", 100), web_back(b"/sec", 104)], {"inspect": {"policy": 1}}, [ALLOW, SECRET])
case("a signature across segments, one of them sent twice, sequence numbers wrapping", "geneve",
     [web(b"GET /s", 0xFFFFFFFC), web(b"GET /s", 0xFFFFFFFC), web(b"ecret", 2)],
     [web_back(b"GET /s", 0xFFFFFFFC)] * 2, {"inspect": {"policy": 1}}, [ALLOW, SECRET])
case("a signature that overlaps what was seen", "geneve",
     [web(b"GET /se", 100), web(b"/secret", 104)], [web_back(b"GET /se", 100)], {"inspect": {"policy": 1}}, [ALLOW, SECRET])
case("a signature in a segment with a hole before it", "geneve",
     [web(b"a", 100), web(b"GET /secret", 5000)], [web_back(b"a", 100)], {"inspect": {"policy": 1}}, [ALLOW, SECRET])
case("pieces of different flows are no signature", "geneve",
     [web(b"GET /sec", 100, 40000), web(b"ret", 108, 40001)],
     [web_back(b"GET /sec", 100, 40000), web_back(b"ret", 108, 40001)], {}, [ALLOW, ALLOW])
virus = b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE"
case("a signature that resets, in the answer", "geneve",
     [tunnel(geneve(), tcp4("S", 99, dport=80)), tunnel(geneve(), tcp4("PA", 500, 100, virus, dport=80, back=True))],
     [tunnel(geneve(), tcp4("S", 99, dport=80), back=True),
      tunnel(geneve(), rst4("R", 100, dport=80, back=False), back=True),
      tunnel(geneve(), rst4("RA", 500, 100, dport=80), back=True)],
     {"inspect": {"reset": 1}}, [ALLOW, ["no-test-virus", "reset"]])
question = bytes(DNS(rd=1, qd=DNSQR(qname="example.com", qtype="AXFR")))
case("a signature in the first datagram is logged once", "geneve", [tunnel(geneve(), inner(udp4(dport=53, data=question)))],
     [tunnel(geneve(), prohibited4(udp4(dport=53, data=question)), back=True)], {"inspect": {"reset": 1}},
     [["no-zone-transfer", "reset"]])
case("a signature in front of its offset does not count", "geneve",
     [tunnel(geneve(), inner(udp4(dport=53, data=b"\x00\xfc\x00\x01" + b"-" * 20)))],
     [tunnel(geneve(), inner(udp4(dport=53, data=b"\x00\xfc\x00\x01" + b"-" * 20)), back=True)], {}, [ALLOW])
case("networks with the same addresses do not share flows", "geneve",
     [web(b"GET /sec", 100), tunnel(GENEVE(proto=0x6558, vni=78), tcp4("PA", 108, 1, b"ret", dport=80))],
     [web_back(b"GET /sec", 100), tunnel(GENEVE(proto=0x6558, vni=78), tcp4("PA", 108, 1, b"ret", dport=80), back=True)],
     {}, [ALLOW, ALLOW])

# Where in a stream, and which rule first.
def stream(name, rules, pieces, stopped, log):
    """Segments of one direction of a connection: (offset in the stream, bytes); the first is a SYN's successor."""
    syn = tunnel(geneve(), tcp4("S", 99, dport=80))
    sent = [web(data, 100 + at) for at, data in pieces]
    back = [web_back(data, 100 + at) for i, (at, data) in enumerate(pieces) if i not in stopped]
    drops = {"inspect": {"policy": len(stopped)}} if stopped else {}
    case(name, "geneve", [syn, *sent], [tunnel(geneve(), tcp4("S", 99, dport=80), back=True), *back], drops, [ALLOW, *log], rules)


def drop_by(signature):
    return "rules: [{ name: it, protocol: tcp, signature: %s, action: drop }]" % signature


IT = [["it", "drop"]]
ANCHORED = drop_by("{ regex: '^SSH-[0-9]' }")
stream("an anchored signature at the stream's beginning", ANCHORED, [(0, b"SS"), (2, b"H-2.0")], [1], IT)
stream("an anchored signature later in the stream does not count", ANCHORED, [(0, b"x"), (1, b"SSH-2.0"), (50, b"SSH-2.0")], [], [])
WINDOW = drop_by("{ text: evil, offset: 4, depth: 8 }")
stream("a signature that ends where its window ends", WINDOW, [(0, b"........ev"), (10, b"il")], [1], IT)
stream("a signature that ends behind its window", WINDOW, [(0, b".........ev"), (11, b"il")], [], [])
stream("a signature that begins before its window", WINDOW, [(0, b"..."), (3, b"evil")], [], [])
stream("a window over three segments", WINDOW, [(0, b"...."), (4, b"e"), (5, b"vi"), (7, b"l")], [3], IT)
EVIL = drop_by("{ text: evil }")
stream("what fills a hole is searched by itself", EVIL, [(0, b"a"), (5, b"later"), (1, b"evil")], [2], IT)
stream("behind a hole, a signature may straddle segments again", EVIL, [(0, b"a"), (5, b"..ev"), (9, b"il")], [2], IT)
case("a connection that was there before is searched from its first packet on", "geneve", [web(b"ev", 100), web(b"il", 102)],
     [web_back(b"ev", 100)], {"inspect": {"policy": 1}}, [ALLOW, *IT], EVIL)
FIRST = """
rules:
  - { name: good, protocol: tcp, signature: { text: good }, action: allow }
  - { name: bad, protocol: tcp, signature: { text: bad }, action: drop }
"""
stream("the rule that stands first decides where both match", FIRST, [(0, b"bad good"), (8, b"bad")], [], [["good", "allow"]])
stream("and the one that matches first where they do not", FIRST, [(0, b"bad"), (3, b"good")], [0, 1], [["bad", "drop"]])
LIST = """
default: drop
rules:
  - { name: queries, protocol: udp, ports: [53], signature: { bytes: '00 01 00 00', offset: 4 }, action: allow }
"""
query = bytes(DNS(rd=1, qd=DNSQR(qname="example.com")))
case("a signature that allows what is dropped otherwise", "geneve",
     [tunnel(geneve(), inner(udp4(dport=53, data=query))), tunnel(geneve(), inner(udp4(sport=40001, dport=53, data=b"junk" * 5)))],
     [tunnel(geneve(), inner(udp4(dport=53, data=query)), back=True)],
     {"inspect": {"policy": 1}}, [["queries", "allow"], ["default", "drop"]], LIST)

print(json.dumps(cases, indent=1))
