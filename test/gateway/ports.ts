// UDP ports for what a test starts.

import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'

/** Below those that the kernel gives to sockets by itself, so that between the look and the use nobody takes one; so many for each of the test files that run at a time. */
const FIRST = 10_000
const EACH = 1000
const own = FIRST + EACH * (Number(process.env.VITEST_POOL_ID ?? 0) % 16)
let next = randomInt(EACH)

/** A port that nothing uses at any of the addresses, nor the one after it. */
export async function freePort(...addresses: string[]): Promise<number> {
  for (;;) {
    next = (next + 2) % EACH
    const port = own + next - (next % 2)
    const ends = addresses.flatMap(address => [isFree(address, port), isFree(address, port + 1)])
    if ((await Promise.all(ends)).every(Boolean)) return port
  }
}

function isFree(address: string, port: number): Promise<boolean> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4')
  return new Promise(resolve => {
    socket.once('error', () => socket.close(() => resolve(false)))
    socket.bind(port, address, () => socket.close(() => resolve(true)))
  })
}
