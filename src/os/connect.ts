// A TCP connection that is only tried: opened in another network namespace, never waited for (connect(2)).

import { AF, addressOf, ERRNO, getsockopt, POLL, poll, SOCK, socket, connect as start } from './libc.ts'
import { inNamespace } from './netns.ts'

const SOL_SOCKET = 1
const SO_ERROR = 4

/** Begins to connect from a namespace to an address, 4 or 16 bytes; returns a descriptor, which is the caller's to close, or -errno. */
export function startConnect(namespace: string, address: Uint8Array, port: number): number {
  const four = address.length === 4
  const to = new Uint8Array(four ? 16 : 28)
  to[0] = four ? AF.INET : AF.INET6
  to[2] = port >> 8
  to[3] = port
  to.set(address, four ? 4 : 8)
  const fd = inNamespace(namespace, () => socket(to[0], SOCK.STREAM | SOCK.NONBLOCK, 0))
  // What fails at once is found by connectState.
  if (fd >= 0) start(fd, to)
  return fd
}

/** What has become of it: 1 connected, 0 on its way, or -errno. */
export function connectState(fd: number): number {
  const waiting = Int32Array.of(fd, POLL.OUT)
  if (poll(addressOf(waiting), 1, 0) === 0) return 0
  const error = new Int32Array(1)
  getsockopt(fd, SOL_SOCKET, SO_ERROR, error)
  if (error[0] !== 0) return -error[0]
  return (waiting[1] >>> 16) & POLL.HUP ? -ERRNO.ECONNREFUSED : 1
}
