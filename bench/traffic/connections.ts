// A capture of TCP connections that are opened and then send in turn, a segment a packet, each of which is acknowledged.

import { closeSync, openSync, writeSync } from 'node:fs'
import * as ethernet from '../../src/wire/ethernet.ts'
import * as ipv4 from '../../src/wire/ipv4.ts'
import { LINKTYPE } from '../../src/wire/linktype.ts'
import { RECORD_HEADER, writeHeader, writeRecord } from '../../src/wire/pcap.ts'
import { MAX_CAPTURED } from '../../src/wire/record.ts'
import * as tcp from '../../src/wire/tcp.ts'

/** The ends of all connections; clients' ports begin at 10,000. */
export const CLIENT = '10.0.0.1'
export const SERVER = '10.0.0.2'

const ADDRESS = { client: 0x0a000001, server: 0x0a000002 }
const HEADERS = ethernet.HEADER + ipv4.HEADER + tcp.HEADER
const NOTHING = new Uint8Array(0)

export interface Connections {
  connections: number
  /** The server's. */
  port: number
  segments: number
  /** Bytes of each segment. */
  size: number
  /** What the next segment carries: `size` bytes. */
  data(): Uint8Array
}

/** Writes the capture and returns its path. */
export function writeConnections(path: string, { connections, port, segments, size, data }: Connections): string {
  const fd = openSync(path, 'w')
  const buffer = new Uint8Array(1 << 22)
  const view = new DataView(buffer.buffer)
  const header = { little: true, nanoseconds: false, snaplen: MAX_CAPTURED, linktype: LINKTYPE.ETHERNET, fcs: 0 }
  let at = writeHeader(view, 0, header)
  let number = 0
  const packet = (
    i: number,
    fromServer: boolean,
    sequence: number,
    ack: number,
    flags: number,
    payload: Uint8Array = NOTHING,
  ) => {
    const length = HEADERS + payload.length
    if (at + RECORD_HEADER + length > buffer.length) {
      writeSync(fd, buffer, 0, at)
      at = 0
    }
    writeRecord(view, at, header, 1_700_000_000 + Math.floor(number / 1e5), (number++ % 1e5) * 1e4, length, length)
    at += RECORD_HEADER
    const ip = at + ethernet.HEADER
    const segment = ip + ipv4.HEADER
    const client = 10_000 + (i % connections)
    const [source, destination] = fromServer ? [ADDRESS.server, ADDRESS.client] : [ADDRESS.client, ADDRESS.server]
    const [from, to] = fromServer ? [port, client] : [client, port]
    ethernet.write(buffer, at, 0x0200, destination & 255, 0x0200, source & 255, ethernet.ETHERTYPE.IPV4)
    ipv4.write(buffer, ip, ipv4.HEADER, 0, length - ethernet.HEADER, 0, 0, 64, ipv4.PROTOCOL.TCP, source, destination)
    tcp.write(buffer, segment, tcp.HEADER, from, to, sequence, ack, flags, 65_535)
    buffer.set(payload, segment + tcp.HEADER)
    tcp.updateChecksum(buffer, ip, segment, segment + tcp.HEADER + payload.length)
    at += length
  }
  for (let i = 0; i < connections; i++) {
    packet(i, false, 0, 0, tcp.SYN)
    packet(i, true, 0, 1, tcp.SYN | tcp.ACK)
    packet(i, false, 1, 1, tcp.ACK)
  }
  for (let i = 0; i < segments; i++) {
    const sequence = 1 + Math.floor(i / connections) * size
    packet(i, false, sequence, 1, tcp.ACK | tcp.PSH, data())
    packet(i, true, 1, sequence + size, tcp.ACK)
  }
  writeSync(fd, buffer, 0, at)
  closeSync(fd)
  return path
}
