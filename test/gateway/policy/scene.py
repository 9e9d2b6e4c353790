"""Connections of a client to an HTTP server as scapy writes them: one a way to cut and shuffle the same request."""
import json, sys
from scapy.all import Ether, IP, IPv6, TCP, Raw, wrpcap

cases, file = json.loads(sys.argv[1]), sys.argv[2]
packets = []
for number, case in enumerate(cases):
    net = (lambda a, b: IPv6(src=a, dst=b)) if case.get('six') else (lambda a, b: IP(src=a, dst=b))
    client, server = ('fd00::1', 'fd00::2') if case.get('six') else ('10.0.0.1', '10.0.0.2')
    sport, isn, peer = 20000 + number, case.get('isn', 1000), 5000
    out = Ether(src='02:00:00:00:00:01', dst='02:00:00:00:00:02') / net(client, server)
    back = Ether(src='02:00:00:00:00:02', dst='02:00:00:00:00:01') / net(server, client)
    ports = dict(sport=sport, dport=80)
    packets.append(out / TCP(**ports, flags='S', seq=isn))
    packets.append(back / TCP(sport=80, dport=sport, flags='SA', seq=peer, ack=(isn + 1) & 0xffffffff))
    packets.append(out / TCP(**ports, flags='A', seq=(isn + 1) & 0xffffffff, ack=peer + 1))
    for offset, text in case['segments']:
        seq = (isn + 1 + offset) & 0xffffffff
        packets.append(out / TCP(**ports, flags='PA', seq=seq, ack=peer + 1) / Raw(text.encode('latin1')))
for i, packet in enumerate(packets):
    packet.time = 1700000000 + i / 1000
wrpcap(file, packets)
