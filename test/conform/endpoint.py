"""An inspection endpoint that is not ours, in a few lines: allows everything, and has one defect on demand.

usage: endpoint.py geneve|vxlan ADDRESS PORT [DEFECT]
"""

import ctypes
import os
import select
import socket
import struct
import sys
import threading
import time

kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
defect = sys.argv[4] if len(sys.argv) > 4 else ''
six = ':' in address
sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
if six:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
else:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
if defect == 'ttl-2':
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
sock.bind((address, port))
held = []
flows = {}
peers = {}
opened = set()
numbers = {}
if defect in ('ports-kept', 'first-port'):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


class Drop(Exception):
    pass


def ecn_of(packet):
    return packet[1] & 3 if packet[0] >> 4 == 4 else (packet[1] >> 4) & 3


def checksum(data):
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def refresh(packet):
    """Brings the checksum of an IPv4 header in order."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        packet[10:12] = b'\0\0'
        packet[10:12] = struct.pack('>H', checksum(bytes(packet[:size])))


def set_ecn(packet, ecn):
    if packet[0] >> 4 == 4:
        packet[1] = packet[1] & ~3 | ecn
        refresh(packet)
    else:
        packet[1] = packet[1] & ~0x30 | ecn << 4


def congestion(packet, outer):
    """RFC 6040, figure 4."""
    if defect == 'ecn-ignored':
        return
    inner = ecn_of(packet)
    if inner == 0 and outer == 3:
        raise Drop
    if inner != 0 and (outer == 3 or (outer == 1 and inner == 2)):
        set_ecn(packet, outer)


def is_misread(packet):
    """Whether the defect bears on what flow the packet is taken for: then it is answered as the flow's first one was."""
    if defect == 'ports-at-20':
        return packet[0] >> 4 == 4 and packet[0] != 0x45
    if defect == 'fragment-ports':
        word = packet[6:8] if packet[0] >> 4 == 4 else packet[42:44]
        late = struct.unpack('>H', word)[0]
        return bool(late & 0x1fff if packet[0] >> 4 == 4 else packet[6] == 44 and late >> 3)
    return True


def flow_of(packet):
    """The five-tuple, one direction, of UDP and TCP; None of all else."""
    if packet[0] >> 4 == 4:
        protocol, at = packet[9], (packet[0] & 15) * 4
        addresses = bytes(packet[12:20])
        if defect == 'ports-at-20':
            at = 20
        following = struct.unpack_from('>H', packet, 6)[0] & 0x1fff
    else:
        protocol, at, following = packet[6], 40, 0
        addresses = bytes(packet[8:40])
        if protocol == 44:
            protocol, following, at = packet[40], struct.unpack_from('>H', packet, 42)[0] >> 3, 48
    if following and defect != 'fragment-ports':
        return None
    return (protocol, addresses, bytes(packet[at:at + 4])) if protocol in (6, 17) else None


def tcp_of(packet):
    """Flags and sequence number of a TCP segment; None of all else."""
    at = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    return (packet[at + 13], struct.unpack_from('>I', packet, at + 4)[0]) if protocol == 6 else None


def both_ways(packet):
    """What both directions of a flow have in common."""
    at, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    ports = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    ends = [bytes(packet[at + i * size:at + (i + 1) * size]) + bytes(packet[ports + 2 * i:ports + 2 * i + 2]) for i in (0, 1)]
    return frozenset(ends)


def keep_state(packet):
    """Drops what a stateful inspector with a defect takes for something that does not belong to a flow it has seen open."""
    flow, segment = flow_of(packet), tcp_of(packet)
    if flow is None:
        return
    both = both_ways(packet)
    if segment and segment[0] & 18 == 2:
        if defect == 'syn-once' and both in opened:
            raise Drop
        numbers.pop(both, None)
        opened.add(both)
    elif segment:
        if defect == 'syn-wanted' and both not in opened:
            raise Drop
        last = numbers.setdefault(both, {}).setdefault(flow, segment[1])
        if defect == 'window' and (segment[1] - last) % (1 << 32) > 1 << 20:
            raise Drop
    elif defect == 'client-first' and both not in opened:
        if flow[2][:2] < flow[2][2:]:
            raise Drop
        opened.add(both)


def take_options(options, critical):
    at = 0
    while (at != len(options)) if defect == 'walk-hangs' else (at < len(options)):
        if defect == 'walk-hangs' and at > len(options):
            while True:
                time.sleep(1)
        number, type, words = struct.unpack_from('>HBB', options, at)
        if type & 0x80 and defect != 'critical-ignored':
            raise Drop
        if defect == 'walk-crashes':
            options[at + 3 + (words & 31) * 4]
        if at + 4 + (words & 31) * 4 > len(options) and defect not in ('lengths-ignored', 'walk-hangs'):
            raise Drop
        if defect == 'options-rewritten' and words & 31:
            options[at + 4] ^= 0x10
        at += 4 + (words & 31) * 4


def open_tunnel(b):
    """Splits a datagram into header, options and payload; raises Drop."""
    if len(b) < 8:
        raise Drop
    head = bytearray(b[:8])
    if kind == 'vxlan':
        if not head[0] & 8 and defect != 'flag-ignored':
            raise Drop
        if defect == 'reserved-refused' and (head[0] & ~8 or any(head[1:4]) or head[7]):
            raise Drop
        if defect != 'reserved-echoed':
            head[0:4], head[7] = b'\x08\0\0\0', 0
        return head, bytearray(), bytearray(b[8:])
    if head[0] >> 6 and defect != 'version-ignored':
        raise Drop
    size = (head[0] & 63) * 4
    if len(b) < 8 + size:
        raise Drop
    if head[1] & 0x80 and defect != 'control-ignored':
        raise Drop
    if defect == 'reserved-refused' and (head[1] & 0x3f or head[7]):
        raise Drop
    options = bytearray(b[8:8 + size])
    if defect == 'longest-refused' and size > 128:
        raise Drop
    take_options(options, head[1] & 0x40)
    if defect == 'options-dropped':
        options = bytearray()
        head[0] &= 0xc0
    if defect == 'unknown-dropped':
        options = bytearray(options[:12])
        head[0] = 3
    if defect != 'reserved-echoed':
        head[1] &= 0xc0
        head[7] = 0
    return head, options, bytearray(b[8 + size:])


def serve(b, tos, peer):
    """The answer to a datagram, its traffic class and whom it goes to."""
    head, options, payload = open_tunnel(b)
    frame = payload[:14] if kind == 'vxlan' or head[2:4] == b'\x65\x58' else bytearray()
    if defect == 'vlan-stripped':
        while frame[12:14] in (b'\x81\0', b'\x88\xa8'):
            payload = payload[:12] + payload[16:]
            frame = payload[:14]
    packet = payload[len(frame):]
    if len(packet) < 20 or packet[0] >> 4 not in (4, 6) or (packet[0] >> 4 == 6 and len(packet) < 40):
        raise Drop
    if defect == 'ipv6-refused' and packet[0] >> 4 == 6:
        raise Drop
    if defect == 'errors-refused' and packet[0] >> 4 == 4 and packet[9] == 1 and packet[20] in (3, 11):
        raise Drop
    if defect == 'protocols-refused' and packet[0] >> 4 == 4 and packet[9] not in (1, 6, 17):
        raise Drop
    if defect == 'mtu-1400' and len(packet) > 1400:
        raise Drop
    congestion(packet, tos & 3)
    flow = flow_of(packet)
    if defect == 'one-cookie':
        flow = 0
    if defect in ('syn-once', 'syn-wanted', 'window', 'client-first'):
        keep_state(packet)
    if flow is not None and defect == 'first-peer':
        peer = peers.setdefault(flow, peer)
    if flow is not None and defect == 'first-port':
        peer = peers.setdefault((flow, peer[0]), peer)
    if flow is not None and defect in ('ports-at-20', 'fragment-ports', 'one-cookie', 'first-metadata'):
        own = bytes(head[4:7]), options
        if not is_misread(packet):
            flows[flow] = own
        head[4:7], options = flows.setdefault(flow, own)
        if kind == 'geneve':
            head[0] = len(options) // 4
    if defect == 'vni-zero':
        head[4:7] = b'\0\0\0'
    if defect == 'inner-ttl' and packet[0] >> 4 == 4 and packet[8] > 1:
        packet[8] -= 1
        refresh(packet)
    if defect == 'checksum-filled' and packet[0] == 0x45 and packet[9] == 17 and packet[26:28] == b'\0\0':
        packet[26:28] = b'\x12\x34'
    if defect == 'corrupt':
        packet[-1] ^= 1
    tos = (tos & ~3) | ecn_of(packet)
    return head + options + frame + packet, peer, 0 if defect == 'tos-zero' else tos


def send_kept(data, peer, tos):
    """Sends from the source port that the peer had, which takes a raw socket."""
    ip = struct.pack('>BBHHHBBH', 0x45, tos, 0, 0, 0x4000, 64, 17, 0) + socket.inet_aton(address) + socket.inet_aton(peer[0])
    raw.sendto(ip + struct.pack('>HHHH', peer[1], port, 8 + len(data), 0) + data, (peer[0], 0))


def send(data, peer, tos):
    if defect in ('ports-kept', 'first-port'):
        return send_kept(data, peer, tos)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    to = peer[1] if defect == 'ports-swapped' or peer[0] == address else port
    sock.sendto(data, (peer[0], to))


def answer(b, peer, tos):
    try:
        data, peer, tos = serve(b, tos, peer)
    except Drop:
        return
    if defect == 'late':
        threading.Timer(float(os.environ['LATE']), send, (data, peer, tos)).start()
    elif defect == 'reorder':
        reorder(data, peer, tos)
    else:
        send(data, peer, tos)
        if defect == 'duplicate':
            send(data, peer, tos)


def reorder(data, peer, tos):
    """Every second packet overtakes the one in front of it; what nothing overtakes goes on soon."""
    held.append((data, peer, tos))
    if len(held) > 1:
        for each in reversed(held):
            send(*each)
        held.clear()


def only_ours(all_packets):
    """Leaves out, in the kernel, what is for another port: others' packets would fill the queue."""
    # ldxb 4*([0]&0xf); ldh [x+2]; jeq #port, 0, 1; ret #-1; ret #0 (classic BPF, on what begins with an IPv4 header)
    code = [(0xb1, 0, 0, 0), (0x48, 0, 0, 2), (0x15, 0, 1, port), (0x06, 0, 0, 0xffffffff), (0x06, 0, 0, 0)]
    program = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *each) for each in code))
    SO_ATTACH_FILTER = 26
    all_packets.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack('@HP', len(code), ctypes.addressof(program)))


if defect == 'checksum-ignored':
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    only_ours(raw)
    print('ready', flush=True)
    while True:
        whole, peer = raw.recvfrom(65535)
        at = (whole[0] & 15) * 4
        source, destination = struct.unpack_from('>HH', whole, at)
        if destination == port and whole[16:20] == socket.inet_aton(address):
            answer(whole[at + 8:], (peer[0], source), whole[1])

if defect in ('first-fragment', 'last-fragment'):
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    only_ours(link)
    print('ready', flush=True)
    while True:
        ready = select.select([link, sock], [], [])[0]
        if link in ready:
            whole, (_, _, kind_of, *_) = link.recvfrom(65535)
            fragment = struct.unpack_from('>H', whole, 6)[0] & 0x3fff
            served = fragment == 0x2000 if defect == 'first-fragment' else 0 < fragment < 0x2000
            if kind_of != socket.PACKET_OUTGOING and served and whole[16:20] == socket.inet_aton(address):
                source, destination = struct.unpack_from('>HH', whole, 20)
                if destination == port:
                    answer(whole[28:], (socket.inet_ntoa(whole[12:16]), source), whole[1])
        else:
            b, control, _, peer = sock.recvmsg(65535, 256)
            answer(b, peer, control[0][2][0] if control else 0)

print('ready', flush=True)
while True:
    sock.settimeout(0.01 if held else None)
    try:
        b, control, _, peer = sock.recvmsg(65535, 256)
    except socket.timeout:
        send(*held.pop())
        continue
    answer(b, peer, control[0][2][0] if control else 0)
