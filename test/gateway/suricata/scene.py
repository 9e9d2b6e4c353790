"""Flows as scapy writes them: TCP with handshake and acknowledgements, UDP, ICMP; each a list of what its sides say."""
import json, sys
from scapy.all import Ether, ICMP, IP, IPv6, TCP, UDP, Raw, wrpcap

flows, file = json.loads(sys.argv[1]), sys.argv[2]
packets = []
for number, flow in enumerate(flows):
    six = flow.get('six')
    net = IPv6 if six else IP
    client, server = ('fd00::1', 'fd00::2') if six else (flow.get('client', '10.0.0.1'), flow.get('server', '10.0.0.2'))
    out = Ether(src='02:00:00:00:00:01', dst='02:00:00:00:00:02') / net(src=client, dst=server)
    back = Ether(src='02:00:00:00:00:02', dst='02:00:00:00:00:01') / net(src=server, dst=client)
    sport, dport, kind = 20000 + number, flow.get('port', 80), flow.get('kind', 'tcp')
    said = [(side, offset, bytes.fromhex(data)) for side, offset, data in flow['said']]
    if kind == 'udp':
        for side, _, data in said:
            packets.append((out / UDP(sport=sport, dport=dport) if side == 0 else back / UDP(sport=dport, dport=sport)) / Raw(data))
        continue
    if kind == 'ip':
        for side, _, data in said:
            packets.append(Ether(bytes(out)[:14]) / IP(src=client, dst=server, proto=dport) / Raw(data))
        continue
    if kind == 'icmp':
        for side, _, data in said:
            packets.append((out / ICMP(type=8, id=sport) if side == 0 else back / ICMP(type=0, id=sport)) / Raw(data))
        continue
    first = [1000 + flow.get('isn', 0), 5000]
    ports = [dict(sport=sport, dport=dport), dict(sport=dport, dport=sport)]
    ways = [out, back]
    wrap = lambda n: n & 0xffffffff
    packets.append(out / TCP(**ports[0], flags='S', seq=wrap(first[0])))
    packets.append(back / TCP(**ports[1], flags='SA', seq=first[1], ack=wrap(first[0] + 1)))
    packets.append(out / TCP(**ports[0], flags='A', seq=wrap(first[0] + 1), ack=first[1] + 1))
    first = [n + 1 for n in first]
    stretches, reached = [set(), set()], [0, 0]
    for side, offset, data in said:
        stretches[side].update(range(offset, offset + len(data)))
        while reached[side] in stretches[side]:
            reached[side] += 1
        other = 1 - side
        seq, ack = wrap(first[side] + offset), wrap(first[other] + reached[other])
        packets.append(ways[side] / TCP(**ports[side], flags='PA', seq=seq, ack=ack) / Raw(data))
        packets.append(ways[other] / TCP(**ports[other], flags='A', seq=ack, ack=wrap(first[side] + reached[side])))
    ends = [wrap(first[side] + reached[side]) for side in (0, 1)]
    packets.append(out / TCP(**ports[0], flags='FA', seq=ends[0], ack=ends[1]))
    packets.append(back / TCP(**ports[1], flags='FA', seq=ends[1], ack=wrap(ends[0] + 1)))
    packets.append(out / TCP(**ports[0], flags='A', seq=wrap(ends[0] + 1), ack=wrap(ends[1] + 1)))
for i, packet in enumerate(packets):
    packet.time = 1700000000 + i / 1000
wrpcap(file, packets)
