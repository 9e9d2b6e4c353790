// Who is at the other end of a Unix socket.

import type { Socket } from 'node:net'
import { getsockopt } from '../os/libc.ts'

const SOL_SOCKET = 1
const SO_PEERCRED = 17

/** Process and user of the peer when it connected, as the kernel noted them (unix(7)); undefined when unknown. */
export function peerCredentials(socket: Socket): { pid: number; uid: number } | undefined {
  const fd: unknown = (socket as unknown as { _handle?: { fd?: unknown } })._handle?.fd
  if (typeof fd !== 'number' || fd < 0) return undefined
  const credentials = new Int32Array(3)
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials) < 0) return undefined
  return { pid: credentials[0], uid: credentials[1] >>> 0 }
}
