// Passing open descriptors from one process to another over a Unix socket (unix(7), SCM_RIGHTS). What is passed is the open file
// itself: what waits in a queue behind it is not lost when the first process ends.
//
// NB: whoever connects gets everything, so the socket lies in a folder that only its user may enter.

import koffi from 'koffi'
import { DetourError } from '../errors.ts'
import { AF, addressOf, bind, close, connect, getsockopt, must, SOCK, socket } from './libc.ts'

const libc = koffi.load(null)
const c = {
  listen: libc.func('int listen(int, int)'),
  accept: libc.func('int accept4(int, uintptr_t, uintptr_t, int)'),
  sendmsg: libc.func('long sendmsg(int, uintptr_t, int)'),
  recvmsg: libc.func('long recvmsg(int, uintptr_t, int)'),
}

const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const SO_PEERCRED = 17
const MSG_NOSIGNAL = 0x4000
const MSG_CMSG_CLOEXEC = 0x4000_0000
const MSG_CTRUNC = 8

/** The most descriptors of one message (SCM_MAX_FD). */
const MOST = 253
/** struct cmsghdr: length (u64), level, type. */
const CONTROL = 16
/** struct msghdr of a 64-bit machine: name, its length, iovec, count, control, its length, flags. */
const MESSAGE = 56
const PATH_LIMIT = 107

const done = (result: number): number => (result < 0 ? -koffi.errno() : result)

/** Waits for one other process at a path, which must not exist. Throws DetourError. */
export function listenAt(path: string): number {
  const fd = must(socket(AF.UNIX, SOCK.STREAM, 0), 'socket', path)
  try {
    must(bind(fd, sockaddr(path)), 'bind', path)
    must(done(c.listen(fd, 1)), 'listen', path)
    return fd
  } catch (error) {
    close(fd)
    throw error
  }
}

/** Connects to a process that waits at a path; never blocks. Throws DetourError. */
export function connectTo(path: string): number {
  const fd = must(socket(AF.UNIX, SOCK.STREAM | SOCK.NONBLOCK, 0), 'socket', path)
  const result = connect(fd, sockaddr(path))
  if (result < 0) close(fd)
  must(result, 'connect', path)
  return fd
}

/** The connection of a process that has connected already. Throws DetourError when none has. */
export function acceptFrom(listening: number): number {
  return must(done(c.accept(listening, 0, 0, SOCK.CLOEXEC | SOCK.NONBLOCK)), 'accept', `socket ${listening}`)
}

/** Who is at the other end, as the kernel knows it. Throws DetourError. */
export function peerOf(fd: number): { pid: number; uid: number } {
  const credentials = new Int32Array(3)
  must(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials), 'SO_PEERCRED', `socket ${fd}`)
  return { pid: credentials[0], uid: credentials[1] }
}

/** Sends descriptors, which stay this process's as well. Never blocks; throws DetourError. */
export function sendDescriptors(connection: number, fds: readonly number[]): void {
  for (let from = 0; from < fds.length; from += MOST) {
    const some = fds.slice(from, from + MOST)
    const message = new Message(some.length)
    message.fds.set(some)
    must(done(c.sendmsg(connection, message.address, MSG_NOSIGNAL)), 'sendmsg', `${some.length} descriptors`)
  }
}

/** Receives so many descriptors that were sent already, close-on-exec. Throws DetourError, and then has none of them. */
export function receiveDescriptors(connection: number, count: number): number[] {
  const fds: number[] = []
  try {
    while (fds.length < count) {
      const message = new Message(MOST)
      const n = must(done(c.recvmsg(connection, message.address, MSG_CMSG_CLOEXEC)), 'recvmsg', 'descriptors')
      const got = message.received()
      fds.push(...got)
      if (n === 0 || got.length === 0 || message.truncated)
        throw new DetourError('system', `recvmsg: ${fds.length} of ${count} descriptors came`)
    }
    return fds
  } catch (error) {
    for (const fd of fds) close(fd)
    throw error
  }
}

/** A struct msghdr of one byte and room for so many descriptors. */
class Message {
  readonly address: number
  readonly fds: Int32Array
  private readonly header = new DataView(new ArrayBuffer(MESSAGE))
  private readonly iovec = new BigUint64Array(2)
  private readonly byte = new Uint8Array(1)
  private readonly control: DataView

  constructor(room: number) {
    const { header, iovec, byte } = this
    const control = new DataView(new ArrayBuffer((CONTROL + room * 4 + 7) & ~7))
    control.setBigUint64(0, BigInt(CONTROL + room * 4), true)
    control.setInt32(8, SOL_SOCKET, true)
    control.setInt32(12, SCM_RIGHTS, true)
    iovec[0] = BigInt(addressOf(byte))
    iovec[1] = 1n
    header.setBigUint64(16, BigInt(addressOf(iovec)), true)
    header.setBigUint64(24, 1n, true)
    header.setBigUint64(32, BigInt(addressOf(control)), true)
    header.setBigUint64(40, BigInt(control.byteLength), true)
    this.control = control
    this.fds = new Int32Array(control.buffer, CONTROL, room)
    this.address = addressOf(header)
  }

  received(): number[] {
    const { header, control, fds } = this
    if (header.getBigUint64(40, true) < BigInt(CONTROL)) return []
    return [...fds.subarray(0, (Number(control.getBigUint64(0, true)) - CONTROL) / 4)]
  }

  get truncated(): boolean {
    return (this.header.getInt32(48, true) & MSG_CTRUNC) !== 0
  }
}

function sockaddr(path: string): Uint8Array {
  const bytes = new TextEncoder().encode(path)
  if (bytes.length === 0 || bytes.length > PATH_LIMIT)
    throw new DetourError('bad-config', `socket ${path}: a path of 1 to ${PATH_LIMIT} bytes`)
  return Uint8Array.of(AF.UNIX, 0, ...bytes, 0)
}
