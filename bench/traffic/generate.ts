// A process that sends UDP packets from an interface, as many as it can or so many a second. Argument: GenerateInput as JSON;
// prints `sending` when it begins, and GenerateOutput as JSON when it is done. `frames`: made before the clock starts, and 64 of
// them leave by one sendmmsg(2) on an AF_PACKET socket, which costs little beside what is measured. `socket`: as programs send,
// one send(2) a packet on UDP sockets.

import {
  AF,
  addressOf,
  bind,
  connect,
  interfaceIndex,
  must,
  SOCK,
  sendmmsg,
  setsockopt,
  socket,
  write,
} from '../../src/os/libc.ts'
import { UDP_OPTION } from '../../src/os/udp.ts'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import * as udp from '../../src/wire/udp.ts'

export interface GenerateInput {
  by: 'frames' | 'socket'
  interface: string
  source: End
  target: End
  /** Bytes of a frame, Ethernet header included. */
  size: number
  /** Different five-tuples: so many source ports, then, with `frames`, the next target port from `port` on. */
  flows: number
  sourcePorts: number
  port: number
  /** Packets a second; 0 is as many as go. */
  rate: number
  /** Ends after so many seconds; with `once` when every flow has had its packet. */
  seconds: number
  once: boolean
}

export interface End {
  mac: string
  address: string
}

export interface GenerateOutput {
  sent: number
  seconds: number
}

const FIRST_SOURCE_PORT = 1024
const ETHERNET = ethernet.HEADER
const HEADERS = ETHERNET + ipv4.HEADER + udp.HEADER
/** struct mmsghdr, struct iovec, struct sockaddr_ll. */
const MMSGHDR = 64
const IOVEC = 16
const SOCKADDR_LL = 20
const BURST = 64
/** At a fixed rate packets leave in small groups, as interrupt moderation would deliver them. */
const NAP_MS = 0.2
const SEND_BUFFER = 8 << 20

const input = JSON.parse(process.argv[2]) as GenerateInput
const kept: unknown[] = []
const sender = input.by === 'frames' ? framesSender() : socketSender()
console.log('sending')
console.log(JSON.stringify(send(sender)))

/** Sends packets of some flows from the given one on; the result is how many. */
type Sender = (flow: number, count: number) => number

function send(sender: Sender): GenerateOutput {
  const { flows, rate, seconds, once } = input
  const nap = new Int32Array(new SharedArrayBuffer(4))
  const from = performance.now()
  let sent = 0
  let next = 0
  for (;;) {
    const elapsed = performance.now() - from
    if (elapsed >= seconds * 1000 || (once && sent === flows)) return { sent, seconds: elapsed / 1000 }
    const due = rate === 0 ? BURST : Math.min(BURST, Math.floor((elapsed * rate) / 1000) - sent)
    if (due <= 0) {
      Atomics.wait(nap, 0, 0, NAP_MS)
      continue
    }
    const n = sender(next, Math.min(due, flows - next))
    sent += n
    next = (next + n) % flows
  }
}

function framesSender(): Sender {
  const { flows, size } = input
  const frames = makeFrames()
  const vectors = new DataView(new ArrayBuffer(flows * IOVEC))
  const messages = new DataView(new ArrayBuffer(flows * MMSGHDR))
  const name = linkAddress()
  const [framesAt, vectorsAt, messagesAt, nameAt] = [frames, vectors, messages, name].map(addressOf)
  for (let i = 0; i < flows; i++) {
    vectors.setBigUint64(i * IOVEC, BigInt(framesAt + i * size), true)
    vectors.setBigUint64(i * IOVEC + 8, BigInt(size), true)
    messages.setBigUint64(i * MMSGHDR, BigInt(nameAt), true)
    messages.setUint32(i * MMSGHDR + 8, SOCKADDR_LL, true)
    messages.setBigUint64(i * MMSGHDR + 16, BigInt(vectorsAt + i * IOVEC), true)
    messages.setBigUint64(i * MMSGHDR + 24, 1n, true)
  }
  // NB: an address does not keep its memory alive.
  kept.push(frames, vectors, messages, name)
  // NB: protocol 0, or the socket would be given a copy of every packet that the pod receives.
  const fd = must(socket(AF.PACKET, SOCK.RAW, 0), 'socket', 'AF_PACKET')
  setsockopt(fd, UDP_OPTION.SOL_SOCKET, UDP_OPTION.SO_SNDBUFFORCE, SEND_BUFFER)
  return (flow, count) => must(sendmmsg(fd, messagesAt + flow * MMSGHDR, count, 0), 'sendmmsg', 'AF_PACKET')
}

function socketSender(): Sender {
  const { flows, size, source, target, port } = input
  const payload = new Uint8Array(size - HEADERS)
  const at = addressOf(payload)
  kept.push(payload)
  const sockets = Array.from({ length: flows }, (_, i) => {
    const fd = must(socket(AF.INET, SOCK.DGRAM, 0), 'socket', 'UDP')
    must(bind(fd, internetAddress(source.address, FIRST_SOURCE_PORT + i)), 'bind', source.address)
    must(connect(fd, internetAddress(target.address, port)), 'connect', target.address)
    return fd
  })
  return (flow, count) => {
    for (let i = 0; i < count; i++) write(sockets[flow + i], at, payload.length)
    return count
  }
}

function makeFrames(): Uint8Array {
  const { source, target, size, flows, sourcePorts, port } = input
  if (size < HEADERS) throw new Error(`frames of ${size} bytes: at least ${HEADERS}`)
  const bytes = new Uint8Array(flows * size)
  const [from, to] = [addressNumber(source.address), addressNumber(target.address)]
  for (let i = 0; i < flows; i++) {
    const at = i * size
    bytes.set(macBytes(target.mac), at + ethernet.DESTINATION)
    bytes.set(macBytes(source.mac), at + ethernet.SOURCE)
    ethernet.setType(bytes, at, ethernet.ETHERTYPE.IPV4)
    const ip = at + ETHERNET
    const total = size - ETHERNET
    ipv4.write(bytes, ip, ipv4.HEADER, 0, total, i, ipv4.DONT_FRAGMENT, 64, ipv4.PROTOCOL.UDP, from, to)
    const sourcePort = FIRST_SOURCE_PORT + (i % sourcePorts)
    const transport = ip + ipv4.HEADER
    udp.write(bytes, transport, sourcePort, port + Math.floor(i / sourcePorts), total - ipv4.HEADER, 0)
    udp.updateChecksum(bytes, ip, transport)
  }
  return bytes
}

function linkAddress(): Uint8Array {
  const index = interfaceIndex(input.interface)
  if (index === 0) throw new Error(`interface ${input.interface} does not exist here`)
  const bytes = Buffer.alloc(SOCKADDR_LL)
  bytes.writeUInt16LE(AF.PACKET)
  bytes.writeUInt16BE(ethernet.ETHERTYPE.IPV4, 2)
  bytes.writeInt32LE(index, 4)
  bytes[11] = ethernet.ADDRESS
  bytes.set(macBytes(input.target.mac), 12)
  return bytes
}

function internetAddress(address: string, port: number): Uint8Array {
  return Uint8Array.of(AF.INET, 0, port >> 8, port, ...address.split('.').map(Number), 0, 0, 0, 0, 0, 0, 0, 0)
}

function macBytes(mac: string): Uint8Array {
  return Uint8Array.from(mac.split(':'), byte => Number.parseInt(byte, 16))
}

function addressNumber(address: string): number {
  return new DataView(Uint8Array.from(address.split('.').map(Number)).buffer).getInt32(0)
}
