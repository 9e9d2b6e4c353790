"""Evasions as scapy makes them, and what a server really reads of them: Linux' TCP behind a TAP, and Python's own HTTP server.

    attacker ─► (gateway) ─► router, which counts TTL down ─► TAP ─► kernel ─► server

Runs in a network namespace of its own, and says first {"scenes": [NAMES]}. Each line of standard input is {"scene": NAME, "gateway": BOOL}; the answer is one of
{"read": [REQUESTS], "bytes": N, "port": OF THE CLIENT}. With a gateway, every frame goes there first: {"frame": HEX, "time": MS} out,
{"frames": [HEX ...]} back.
"""
import fcntl, http.server, io, json, os, select, socket, struct, subprocess, sys
from scapy.all import Ether, IP, TCP, UDP, Raw, fragment

CLIENT, SERVER, PORT = '10.0.0.1', '10.0.0.2', 80
OUR_MAC, SERVER_MAC = '02:00:00:00:00:01', '02:00:00:00:00:02'
MASK = 0xffffffff


class Handler(http.server.SimpleHTTPRequestHandler):
    """What Python's server would serve, of the bytes that it was sent."""
    protocol_version = 'HTTP/1.1'

    def __init__(self, said):
        self.said, self.rfile, self.wfile, self.found = said, io.BytesIO(said), io.BytesIO(), []
        self.directory, self.client_address, self.close_connection = '/', (CLIENT, 0), False
        while not self.close_connection and self.rfile.tell() < len(said):
            self.handle_one_request()

    def served(self):
        head = self.said[:self.rfile.tell()]
        # What is not at its end is no request yet.
        if not head.endswith(b'\n' if self.request_version == 'HTTP/0.9' else (b'\n\r\n', b'\n\n')):
            return
        self.found.append(f'{self.command} {self.translate_path(self.path)}')
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            while (size := int(self.rfile.readline().split(b';')[0] or b'0', 16)) > 0:
                self.rfile.read(size), self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get('Content-Length', 0)))

    do_GET = do_POST = do_PUT = served

    def log_message(self, *_):
        pass


class Server:
    """Reads from all connections, in one thread: what came before something else has been read before it."""

    def __init__(self):
        self.listener = socket.create_server((SERVER, PORT))
        self.listener.setblocking(False)
        self.said, self.ended = {}, []

    def read(self, seconds=0):
        while True:
            ready, _, _ = select.select([self.listener, *self.said], [], [], seconds)
            if not ready:
                return
            seconds = 0
            for one in ready:
                if one is self.listener:
                    self.said[one.accept()[0]] = bytearray()
                    continue
                try:
                    data = one.recv(1 << 16)
                except ConnectionError:
                    data = b''
                self.said[one] += data
                if not data:
                    self.ended.append(self.said.pop(one))
                    one.close()

    def say(self, data):
        for one in self.said:
            one.send(data)

    def forget(self):
        """What all connections have said; those that are left are closed."""
        self.read()
        said = [bytes(one) for one in [*self.ended, *self.said.values()]]
        for one in self.said:
            # With a RST, after which the kernel has nothing to say again.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            one.close()
        self.said, self.ended = {}, []
        return said


class Closed(Exception):
    pass


class Path:
    """The way from the client to the server and back, with or without a gateway."""

    def __init__(self, tap, server):
        self.tap, self.server, self.gateway, self.time, self.inbox, self.passed = tap, server, False, 0, [], 0

    def judged(self, frame):
        if not self.gateway:
            return [frame]
        print(json.dumps({'frame': frame.hex(), 'time': self.time}), flush=True)
        return [bytes.fromhex(one) for one in json.loads(sys.stdin.readline())['frames']]

    def send(self, frame):
        self.time += 1
        self.passed = 0
        self.deliver(self.judged(frame))
        self.server.read()
        self.pump()

    def pump(self):
        """Takes what the server's kernel has to say."""
        while select.select([self.tap], [], [], 0)[0]:
            answer = os.read(self.tap, 1 << 16)
            if answer[12:14] == b'\x08\x00':
                self.time += 1
                self.deliver(self.judged(answer))

    def until(self, done):
        """Waits for what the server's kernel will say, if it has been told anything."""
        while not done():
            if self.passed == 0 or not select.select([self.tap], [], [], 10)[0]:
                raise Closed
            self.pump()

    def rest(self, ms):
        """Lets a time pass at the gateway, and so many strangers' packets that it looks after its flows."""
        self.time += ms
        for i in range(400):
            stranger = IP(src=CLIENT, dst='10.9.9.9', ttl=1) / UDP(sport=9, dport=1000 + i % 50)
            self.send(bytes(Ether(src=OUR_MAC, dst=SERVER_MAC) / stranger))

    def deliver(self, frames):
        for frame in frames:
            if frame[:6] == bytes.fromhex(OUR_MAC.replace(':', '')):
                self.inbox.append(Ether(frame))
                continue
            packet = Ether(frame)
            if packet[IP].ttl <= 1:
                continue
            # As a router does it: a checksum that was wrong stays wrong.
            right = IP(bytes(packet[IP])).copy()
            del right.chksum
            was_right = IP(bytes(right)).chksum == packet[IP].chksum
            packet[IP].ttl -= 1
            if was_right:
                del packet[IP].chksum
            os.write(self.tap, bytes(packet))
            self.passed += 1


class Client:
    """A TCP client that says exactly what it is told to say."""
    ports = 20000

    def __init__(self, path, isn=1000):
        Client.ports += 1
        self.path, self.isn, self.port, self.peer = path, isn, Client.ports, 0

    def packet(self, offset, data=b'', flags='PA', ip={}, tcp={}):
        seq = (self.isn + 1 + offset) & MASK
        fields = dict(sport=self.port, dport=PORT, seq=seq, ack=self.peer, flags=flags, window=65535) | tcp
        layers = Ether(src=OUR_MAC, dst=SERVER_MAC) / IP(**(dict(src=CLIENT, dst=SERVER, ttl=64) | ip)) / TCP(**fields)
        return layers / Raw(data) if data else layers

    def send(self, offset, data=b'', flags='PA', ip={}, tcp={}):
        self.path.send(bytes(self.packet(offset, data, flags, ip, tcp)))

    def syn(self, data=b'', isn=None, **more):
        before, self.isn = self.isn, self.isn if isn is None else isn
        self.send(-1, data, 'S', tcp={'ack': 0} | more.pop('tcp', {}), **more)
        self.isn = before

    def connect(self, data=b''):
        self.syn(data)
        self.answer()
        self.send(0, flags='A')

    def begin_again(self):
        # Another connection from the same port, when the server has read a public request of the first.
        self.send(len(PUBLIC), flags='R')
        self.path.inbox.clear()
        self.isn = 3_000_000_000
        self.connect()

    def heard(self, is_it):
        return [one[TCP] for one in self.path.inbox if one[TCP].dport == self.port and is_it(one[TCP])]

    def answer(self):
        self.path.until(lambda: self.heard(lambda one: one.flags == 'SA'))
        self.peer = (self.heard(lambda one: one.flags == 'SA')[0].seq + 1) & MASK

    def say(self, text, size=1400, at=0, **more):
        for i in range(0, len(text), size):
            self.send(at + i, text[i:i + size], **more)


def get(path, more=''):
    return f'GET {path} HTTP/1.1\r\nHost: server\r\n{more}\r\n'.encode('latin1')


SECRET, PUBLIC = get('/secret'), get('/public')
# As long as each other, so that one may stand for the other.
INNOCENT = get('/public', 'A: b\r\n')
DENIED = get('/secret', 'A: b\r\n')
SCENES = {}


def scene(name):
    def add(play):
        SCENES[name] = play
        return play
    return add


def inserted(name, **how):
    """What the server discards says something innocent, and then the same place says what is denied."""
    @scene(name)
    def play(c):
        c.connect()
        c.send(0, INNOCENT, **how)
        c.send(0, DENIED)


inserted('an insert with a wrong TCP checksum', tcp={'chksum': 0x1234})
inserted('an insert with a wrong IP checksum', ip={'chksum': 0x1234})
inserted('an insert whose TTL ends before the server', ip={'ttl': 1})
inserted('an insert without ACK', flags='P')
inserted('an insert that acknowledges what was never sent', tcp={'ack': 77})
inserted('an insert with an MD5 signature', tcp={'options': [(19, b'x' * 16), (1, b''), (1, b'')]})


@scene('an insert longer than what is kept, whose TTL ends before the server')
def _(c):
    c.connect()
    c.say(get('/public', 'Content-Length: 9000000\r\n') + b'x' * 9_000_000, 60_000, ip={'ttl': 1})
    c.send(0, SECRET)


@scene('a byte a segment')
def _(c):
    c.connect()
    c.say(SECRET, 1)


@scene('a byte a segment, backwards')
def _(c):
    c.connect()
    for i in reversed(range(len(SECRET))):
        c.send(i, SECRET[i:i + 1])


@scene('split over the MTU')
def _(c):
    c.connect()
    c.say(get('/secret', f'X: {"x" * 4000}\r\n'))


@scene('an overlap behind a gap, old first')
def _(c):
    c.connect()
    c.send(4, INNOCENT[4:])
    c.send(4, DENIED[4:])
    c.send(0, DENIED[:4])


@scene('an overlap behind a gap, denied first')
def _(c):
    c.connect()
    c.send(4, DENIED[4:])
    c.send(4, INNOCENT[4:])
    c.send(0, DENIED[:4])


@scene('a RST with a wrong number')
def _(c):
    c.connect()
    c.send(0, SECRET[:20])
    c.send(1 << 20, flags='R')
    c.send(20, SECRET[20:])


@scene('a RST whose TTL ends before the server')
def _(c):
    c.connect()
    c.send(0, SECRET[:20])
    c.send(20, flags='R', ip={'ttl': 1})
    c.send(20, SECRET[20:])


HEADED = b'GET /secret HTTP/1.1\r\nX: '


@scene('a RST with a wrong number, and a rest that is allowed when it has been forgotten')
def _(c):
    c.connect()
    c.send(0, HEADED)
    c.send(1 << 20, flags='R')
    c.path.rest(60_000)
    c.send(len(HEADED), PUBLIC)


@scene('a rest that is allowed, after so long that the flow has been forgotten')
def _(c):
    c.connect()
    c.send(0, HEADED)
    c.path.rest(3_600_000)
    c.send(len(HEADED), PUBLIC)


@scene('a request after so long that the flow has been forgotten, and the server speaks first')
def _(c):
    c.connect()
    c.send(0, PUBLIC)
    c.path.rest(3_600_000)
    c.path.server.say(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
    c.path.passed = 1
    c.path.until(lambda: c.heard(lambda one: one.payload))
    c.send(len(PUBLIC), SECRET)


@scene('a rest that is allowed behind a second SYN, after so long that the flow has been forgotten')
def _(c):
    c.connect()
    c.send(0, HEADED)
    c.path.rest(3_600_000)
    c.syn(isn=c.isn + len(HEADED))
    c.send(len(HEADED), PUBLIC)


@scene('a FIN with a wrong number')
def _(c):
    c.connect()
    c.send(0, SECRET[:20])
    c.send(1 << 20, flags='FA')
    c.send(20, SECRET[20:])


@scene('a FIN whose TTL ends before the server')
def _(c):
    c.connect()
    c.send(0, flags='FA', ip={'ttl': 1})
    c.send(0, SECRET)


@scene('a SYN with data that the server ignores')
def _(c):
    c.connect(INNOCENT)
    c.send(0, DENIED)


@scene('a SYN with data in front of another SYN')
def _(c):
    c.syn(b'GET /public HTTP/1.1\r\nHost: server\r\nContent-Length: 999\r\n\r\n', ip={'ttl': 1})
    c.isn += 59
    c.connect()
    c.send(0, SECRET)


@scene('another SYN before the one that counts, with a larger number')
def _(c):
    c.syn(isn=c.isn + 100_000, ip={'ttl': 1})
    c.send(100_000, PUBLIC, ip={'ttl': 1})
    c.connect()
    c.send(0, SECRET)


@scene('another SYN before the one that counts, with a smaller number')
def _(c):
    c.isn = 500_000
    c.syn(isn=c.isn - 100_000, ip={'ttl': 1})
    c.send(-100_000, PUBLIC, ip={'ttl': 1})
    c.connect()
    c.send(0, SECRET)


@scene('another SYN in the middle, which the server refuses')
def _(c):
    c.connect()
    c.send(0, HEADED)
    c.syn(isn=c.isn + len(HEADED))
    c.send(len(HEADED), PUBLIC)


@scene('another connection from the same port')
def _(c):
    c.connect()
    c.send(0, PUBLIC)
    c.begin_again()
    c.send(0, SECRET)


@scene('an urgent byte that is not read')
def _(c):
    c.connect()
    text = get('/public/X../secret')
    at = text.index(b'X')
    c.send(0, text, 'PAU', tcp={'urgptr': at + 1})


@scene('an urgent pointer in an empty segment')
def _(c):
    c.connect()
    text = get('/public/X../secret')
    at = text.index(b'X')
    c.send(0, flags='AU', tcp={'urgptr': at + 1})
    c.send(0, text)


@scene('fragments of IP')
def _(c):
    c.connect()
    for one in fragment(c.packet(0, get('/secret', f'X: {"x" * 400}\r\n'), ip={'id': 7}), 64):
        c.path.send(bytes(one))


@scene('fragments of IP, backwards')
def _(c):
    c.connect()
    for one in reversed(fragment(c.packet(0, get('/secret', f'X: {"x" * 400}\r\n'), ip={'id': 8}), 64)):
        c.path.send(bytes(one))


@scene('fragments of IP after a part that is allowed')
def _(c):
    c.connect()
    c.send(0, b'GET /public')
    rest = b'/../secret HTTP/1.1\r\nHost: server\r\n\r\n'
    for one in fragment(c.packet(11, rest, ip={'id': 9}), 24):
        c.path.send(bytes(one))


def said(name, text):
    @scene(name)
    def play(c):
        c.connect()
        c.say(text if isinstance(text, bytes) else text.encode('latin1'))


said('a path with an encoded letter', get('/%73ecret'))
said('dots encoded', get('/public/%2e%2e/secret'))
said('dots encoded in mixed case', get('/public/%2E%2e/secret'))
said('dots encoded twice', get('/public/%252e%252e/secret'))
said('a slash encoded', get('/public/..%2fsecret'))
said('slashes encoded', get('/public%2F..%2Fsecret'))
said('a slash encoded behind an allowed beginning', get('/public%2f%2e%2e%2fsecret'))
said('dots behind an encoded slash that lead to what is allowed', get('/secret%2f..%2fpublic'))
said('dots behind two slashes', get('/secret/x//../../public'))
said('backslashes', get('/public\\..\\secret'))
said('a parameter behind dots', get('/public/..;/secret'))
said('a null byte encoded', get('/public%00/../secret'))
said('a null byte in the path', get('/public\0/../secret'))
said('a null byte in a header', get('/public', 'X: a\0b\r\n'))
said('UTF-8 that is too long', get('/public/%c0%ae%c0%ae/secret'))
said('an absolute form', b'GET http://server/secret HTTP/1.1\r\nHost: server\r\n\r\n')
said('a method in small letters', SECRET.replace(b'GET', b'get'))
said('no version', b'GET /secret\r\n')
said('no version behind an allowed request', PUBLIC + b'GET /secret\r\n')
said('bare line feeds', SECRET.replace(b'\r\n', b'\n'))
said('two spaces', SECRET.replace(b'GET ', b'GET  '))
said('a folded header', get('/secret', 'X: a\r\n b\r\n'))
said('a folded header that hides the next', get('/public', 'X: a\r\n Content-Length: 5\r\n') + SECRET)
said('two hosts', get('/public', 'Host: other\r\n'))
said('behind a body', get('/public', 'Content-Length: 4\r\n') + b'abcd' + SECRET)
said('behind chunks', get('/public', 'Transfer-Encoding: chunked\r\n') + b'3\r\nabc\r\n0\r\n\r\n' + SECRET)
said('behind chunks with extensions',
     get('/public', 'Transfer-Encoding: chunked\r\n') + b'3;a=b;c="d"\r\nabc\r\n0;x\r\nT: u\r\n\r\n' + SECRET)
said('behind a chunk of an odd size', get('/public', 'Transfer-Encoding: chunked\r\n') + b'0x3\r\nabc\r\n0\r\n\r\n' + SECRET)
said('both a length and chunks', get('/public', 'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n') + b'0\r\n\r\n' + SECRET)
said('chunks in HTTP/1.0', get('/public', 'Transfer-Encoding: chunked\r\n').replace(b'1.1', b'1.0') + b'0\r\n\r\n' + SECRET)


@scene('allowed: cut, shuffled and sent twice')
def _(c):
    c.connect()
    text = get('/public', f'X: {"x" * 3000}\r\n')
    for i in (2, 0, 1, 0, 3, 2):
        c.send(i * 800, text[i * 800:i * 800 + 800])


@scene('allowed: a SYN twice, and another connection from the same port')
def _(c):
    c.syn()
    c.connect()
    c.send(0, PUBLIC)
    c.begin_again()
    c.send(0, PUBLIC)


@scene('allowed: more than is kept, which the server acknowledges')
def _(c):
    c.connect()
    text = get('/public', 'Content-Length: 9000000\r\n') + b'x' * 9_000_000
    for i in range(0, len(text), 30_000):
        c.send(i, text[i:i + 30_000])
        end = (c.isn + 1 + min(i + 30_000, len(text))) & MASK
        c.path.until(lambda: c.heard(lambda one: one.ack == end))
        c.path.inbox.clear()


@scene('allowed: an encoded slash and odd letters')
def _(c):
    c.connect()
    c.say(get('/public/a%2Fb/%41%20%c3%a4;v=1/./c//d?x=../%00'))


def settle(path):
    """Returns when the server has read all that has reached it: what is sent last is read last."""
    path.gateway = False
    last = Client(path)
    last.connect()
    last.send(0, b'.')
    while b'.' not in path.server.said.values():
        path.server.read(10)
    path.server.said = {one: said for one, said in path.server.said.items() if said != b'.'}


def main():
    # The kernel takes frames in order on one processor.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tap = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH', b'tap0', 0x1002))
    for line in ('link set lo up', f'link set tap0 address {SERVER_MAC} mtu 65000 up', f'address add {SERVER}/24 dev tap0',
                 f'neighbor add {CLIENT} lladdr {OUR_MAC} dev tap0'):
        subprocess.run(['ip', *line.split()], check=True)
    server = Server()
    path = Path(tap, server)
    print(json.dumps({'scenes': list(SCENES)}), flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        path.gateway, path.time, path.inbox = wish['gateway'], 0, []
        client = Client(path)
        try:
            SCENES[wish['scene']](client)
        except Closed:
            pass
        settle(path)
        said = server.forget()
        while select.select([tap], [], [], 0)[0]:
            os.read(tap, 1 << 16)
        read = [request for one in said for request in Handler(one).found]
        print(json.dumps({'read': read, 'bytes': sum(map(len, said)), 'port': client.port}), flush=True)


main()
