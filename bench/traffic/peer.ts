// One of two pods in mixed traffic: numbered UDP datagrams of several sizes in several flows, one bulk TCP connection each way,
// short TCP connections, echo requests and datagrams that nobody takes. Checks every byte and the order of what arrives.
// Argument: PeerInput as JSON; prints PeerOutput as JSON a few times a second. SIGUSR2 makes it begin to send, stop, go on.

import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import { connect, createServer, type Socket } from 'node:net'
import { AF, addressOf, connect as connectTo, read, SOCK, socket, write } from '../../src/os/libc.ts'

export interface PeerInput {
  /** The client opens what has a side that opens. */
  client: boolean
  local: string
  remote: string
}

/** Everything since the start. */
export interface PeerOutput {
  sending: boolean
  udpSent: number
  udpReceived: number
  /** Received by flow, so that one that stands still is seen. */
  flows: number[]
  /** A number not above the one before it in its flow. */
  reordered: number
  /** Bytes that are not what was sent: datagrams, chunks of streams, answers. */
  damaged: number
  tcpReceived: number
  /** Bulk connections that broke. */
  tcpBroken: number
  shortDone: number
  shortFailed: number
  echoSent: number
  echoReceived: number
  refused: number
}

/** Bytes of UDP payload, one flow each; those over an MTU leave as fragments. */
const SIZES = [18, 18, 18, 200, 1000, 1400, 4000, 9000]
const UDP_PORT = 20_000
const TCP_PORT = 21_000
const SHORT_PORT = 21_001
const CLOSED_PORT = 33_434
/** As traceroute begins. */
const FEW_HOPS = 3
const UDP_EVERY_MS = 2
const SHORT_EVERY_MS = 20
const ECHO_EVERY_MS = 50
const REFUSED_EVERY_MS = 1100
const REPORT_EVERY_MS = 250
/** Bytes of a stream written at once, every so many ms. */
const CHUNK = 256 * 1024
const CHUNK_EVERY_MS = 10
const SHORT_ANSWER = 2000
/** Longer than a connection of a healthy path takes. */
const SHORT_LIMIT_MS = 3000
/** A stream repeats after a prime number of bytes, so that a shift by any power of two shows. */
const PERIOD = 65_521
const IPPROTO_ICMP = 1

const { client, local, remote } = JSON.parse(process.argv[2]) as PeerInput
const pattern = Buffer.from(
  Uint8Array.from({ length: PERIOD * 8 }, (_, i) => ((i % PERIOD) * 167 + ((i % PERIOD) >> 8)) & 0xff),
)
const total: PeerOutput = {
  ...{ sending: false, udpSent: 0, udpReceived: 0, flows: SIZES.map(() => 0), reordered: 0, damaged: 0 },
  ...{ tcpReceived: 0, tcpBroken: 0, shortDone: 0, shortFailed: 0, echoSent: 0, echoReceived: 0, refused: 0 },
}
process.on('SIGUSR2', () => {
  total.sending = !total.sending
})
const every = (ms: number, body: () => void) =>
  setInterval(() => {
    if (total.sending) body()
  }, ms)
setInterval(() => console.log(JSON.stringify(total)), REPORT_EVERY_MS)

datagrams()
streams()
shortConnections()
if (client) {
  echoes()
  refusals()
}

function datagrams(): void {
  const sockets = SIZES.map((size, flow): UdpSocket => {
    const socket = createSocket({ type: 'udp4', recvBufferSize: 4 << 20 })
    let last = -1
    socket.on('message', message => {
      const number = message.readUInt32BE(0)
      total.udpReceived++
      total.flows[flow]++
      if (number <= last) total.reordered++
      last = number
      const at = number % PERIOD
      if (message.length !== size || !message.subarray(4).equals(pattern.subarray(at, at + size - 4))) total.damaged++
    })
    socket.on('error', () => {})
    socket.bind(UDP_PORT + flow, local)
    return socket
  })
  let number = 0
  every(UDP_EVERY_MS, () => {
    for (const [flow, socket] of sockets.entries()) {
      // The largest less often, and no two flows in step.
      if (SIZES[flow] > 1500 && number % 8 !== 0) continue
      const message = Buffer.alloc(SIZES[flow])
      message.writeUInt32BE(number, 0)
      pattern.copy(message, 4, number % PERIOD)
      socket.send(message, UDP_PORT + flow, remote, error => {
        if (error === null) total.udpSent++
      })
    }
    number++
  })
}

/** One connection that carries a stream each way, made anew when it breaks. */
function streams(): void {
  if (client) open()
  else createServer(carry).listen(TCP_PORT, local)

  function open(): void {
    const socket = connect(TCP_PORT, remote)
    socket.on('connect', () => carry(socket)).on('close', () => setTimeout(open, 200))
    socket.on('error', () => socket.destroy())
  }

  function carry(socket: Socket): void {
    let sent = 0
    let received = 0
    const timer = every(CHUNK_EVERY_MS, () => {
      if (socket.writableNeedDrain) return
      const at = sent % PERIOD
      socket.write(pattern.subarray(at, at + CHUNK))
      sent += CHUNK
    })
    socket.on('data', chunk => {
      for (let from = 0; from < chunk.length; from += CHUNK) {
        const part = chunk.subarray(from, from + CHUNK)
        const at = received % PERIOD
        if (!part.equals(pattern.subarray(at, at + part.length))) total.damaged++
        received += part.length
      }
      total.tcpReceived += chunk.length
    })
    socket.on('error', () => socket.destroy())
    // A path that is dead for long must not hold the stream: the next connection tells whether it has recovered.
    socket.setTimeout(5000, () => total.sending && socket.destroy())
    socket.on('close', () => {
      clearInterval(timer)
      total.tcpBroken++
    })
  }
}

function shortConnections(): void {
  if (!client) {
    createServer(socket => {
      socket.on('error', () => socket.destroy())
      socket.once('data', () => socket.end(pattern.subarray(0, SHORT_ANSWER)))
    }).listen(SHORT_PORT, local)
    return
  }
  every(SHORT_EVERY_MS, () => {
    const socket = connect(SHORT_PORT, remote)
    const parts: Buffer[] = []
    socket.setTimeout(SHORT_LIMIT_MS, () => socket.destroy())
    socket.on('connect', () => socket.write('please'))
    socket.on('data', part => void parts.push(part))
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      const answer = Buffer.concat(parts)
      if (answer.length === 0) total.shortFailed++
      else if (answer.equals(pattern.subarray(0, SHORT_ANSWER))) total.shortDone++
      else total.damaged++
    })
  })
}

/** Echo requests by a ping socket (icmp(7)); the kernel fills identifier and checksum. */
function echoes(): void {
  const fd = socket(AF.INET, SOCK.DGRAM | SOCK.NONBLOCK, IPPROTO_ICMP)
  connectTo(fd, Uint8Array.of(AF.INET, 0, 0, 0, ...remote.split('.').map(Number), 0, 0, 0, 0, 0, 0, 0, 0))
  const request = Buffer.alloc(64)
  const reply = Buffer.alloc(128)
  const [requestAt, replyAt] = [request, reply].map(addressOf)
  setInterval(() => {
    for (let n = read(fd, replyAt, reply.length); n > 0; n = read(fd, replyAt, reply.length)) {
      total.echoReceived++
      if (n !== request.length || !reply.subarray(8, n).equals(pattern.subarray(0, n - 8))) total.damaged++
    }
    if (!total.sending) return
    request.fill(0, 0, 8)
    request[0] = 8
    request.writeUInt16BE(total.echoSent & 0xffff, 6)
    pattern.copy(request, 8, 0, request.length - 8)
    if (write(fd, requestAt, request.length) > 0) total.echoSent++
  }, ECHO_EVERY_MS)
}

/** Datagrams to a port that nobody listens on, with few hops to go: the answer is an ICMP error about them. */
function refusals(): void {
  const socket = createSocket('udp4')
  socket.on('error', () => {
    total.refused++
  })
  socket.bind(0, local, () => {
    socket.setTTL(FEW_HOPS)
    socket.connect(CLOSED_PORT, remote, () => every(REFUSED_EVERY_MS, () => socket.send('who is there?', () => {})))
  })
}
