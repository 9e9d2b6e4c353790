// A process at one end of UDP round trips of one byte. Argument: EchoInput as JSON. The side that answers prints `ready`, then
// sends back what comes; the side that asks prints EchoOutput as JSON when it is done. Blocking calls: only the path is measured.

import { AF, addressOf, bind, connect, must, read, SOCK, setsockopt, socket, write } from '../../src/os/libc.ts'
import { UDP_OPTION } from '../../src/os/udp.ts'

export interface EchoInput {
  side: 'ask' | 'answer'
  local: string
  remote: string
  /** Of both ends. */
  port: number
  /** Round trips that count; a tenth as many come before, and do not. */
  trips: number
}

/** Microseconds. */
export interface EchoOutput {
  p50: number
  p99: number
}

const SO_RCVTIMEO = 20
/** Longer than any round trip; what does not come back by then is lost. */
const LIMIT_S = 2n

const { side, local, remote, port, trips } = JSON.parse(process.argv[2]) as EchoInput
const fd = must(socket(AF.INET, SOCK.DGRAM, 0), 'socket', 'UDP')
must(bind(fd, sockaddr(local)), 'bind', local)
must(connect(fd, sockaddr(remote)), 'connect', remote)
const byte = new Uint8Array(64)
const at = addressOf(byte)
if (side === 'answer') answer()
else console.log(JSON.stringify(ask()))

function answer(): void {
  console.log('ready')
  // Until it is killed.
  for (;;) if (read(fd, at, byte.length) > 0) write(fd, at, 1)
}

function ask(): EchoOutput {
  setsockopt(fd, UDP_OPTION.SOL_SOCKET, SO_RCVTIMEO, BigInt64Array.of(LIMIT_S, 0n))
  const times = new Float64Array(trips)
  for (let i = -Math.ceil(trips / 10); i < trips; i++) {
    const from = performance.now()
    must(write(fd, at, 1), 'write', 'UDP')
    must(read(fd, at, byte.length), 'read', `answer ${i}`)
    if (i >= 0) times[i] = (performance.now() - from) * 1000
  }
  times.sort()
  return { p50: times[Math.floor(trips * 0.5)], p99: times[Math.floor(trips * 0.99)] }
}

function sockaddr(address: string): Uint8Array {
  return Uint8Array.of(AF.INET, 0, port >> 8, port & 0xff, ...address.split('.').map(Number), 0, 0, 0, 0, 0, 0, 0, 0)
}
