// A process at one end of numbered datagrams at a steady pace. Argument: PaceInput as JSON. The side that answers prints `ready`, then
// sends back what comes; the side that asks prints `going`, then PaceOutput as JSON: what did not come back.

import { setTimeout as sleep } from 'node:timers/promises'
import { AF, addressOf, bind, connect, must, POLL, poll, read, SOCK, socket, write } from '../../src/os/libc.ts'

export interface PaceInput {
  side: 'ask' | 'answer'
  local: string
  remote: string
  port: number
  /** Packets a second, and how many. */
  rate: number
  packets: number
}

export interface PaceOutput {
  lost: number
  /** The longest round trip of those that came back, ms. */
  slowestMs: number
}

/** How long the last ones are waited for, ms. */
const LAST_MS = 1000

const { side, local, remote, port, rate, packets } = JSON.parse(process.argv[2]) as PaceInput
const fd = must(socket(AF.INET, SOCK.DGRAM | SOCK.NONBLOCK, 0), 'socket', 'UDP')
must(bind(fd, sockaddr(local)), 'bind', local)
must(connect(fd, sockaddr(remote)), 'connect', remote)
const number = new Int32Array(1)
const at = addressOf(number)
const waiting = Int32Array.of(fd, POLL.IN)
const sent = new Float64Array(packets)
const back = new Uint8Array(packets)
let slowestMs = 0
if (side === 'answer') answer()
console.log('going')
// The line leaves before this thread is busy.
await sleep(10)
console.log(JSON.stringify(ask()))

function answer(): never {
  console.log('ready')
  // Until it is killed.
  for (;;) if (poll(addressOf(waiting), 1, 1000) > 0 && read(fd, at, 4) > 0) write(fd, at, 4)
}

function ask(): PaceOutput {
  const from = performance.now()
  for (let i = 0; i < packets; ) {
    const now = performance.now()
    if (now < from + (i * 1000) / rate) {
      if (poll(addressOf(waiting), 1, 1) > 0) receive()
      continue
    }
    number[0] = i
    sent[i++] = now
    write(fd, at, 4)
  }
  for (const end = performance.now() + LAST_MS; performance.now() < end; )
    if (poll(addressOf(waiting), 1, 10) > 0) receive()
  return { lost: back.reduce((sum, came) => sum + 1 - came, 0), slowestMs }
}

function receive(): void {
  while (read(fd, at, 4) > 0) {
    const [i] = number
    if (back[i] === 1) continue
    back[i] = 1
    slowestMs = Math.max(slowestMs, performance.now() - sent[i])
  }
}

function sockaddr(address: string): Uint8Array {
  return Uint8Array.of(AF.INET, 0, port >> 8, port & 0xff, ...address.split('.').map(Number), 0, 0, 0, 0, 0, 0, 0, 0)
}
