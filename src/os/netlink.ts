// Netlink messages to and from the kernel (netlink(7)): one socket, its questions and their answers, and how attributes are packed.
// A socket stays bound to the namespace that it was opened in, so nothing needs entering afterwards.
//
// NB: an open socket keeps its namespace alive: close it when the namespace's name is gone, or its interfaces never end.

import { addressOf, bind, close, ERRNO, must, read, SOCK, socket, systemError, write } from './libc.ts'
import { inNamespace } from './netns.ts'

const AF_NETLINK = 16
const NETLINK_ROUTE = 0
const HEADER = 16
const NLM_F_REQUEST = 1
/** The kernel says when it is done. */
export const NLM_F_ACK = 4
/** All there are. */
export const NLM_F_DUMP = 0x300
/** What is not there yet is made; with EXCL, it must not be there. */
export const NLM_F_EXCL = 0x200
export const NLM_F_CREATE = 0x400
const ERROR = 2
const DONE = 3

/** The largest datagram that the kernel sends here is 32 KiB (netlink_recvmsg). */
export const BUFFER = 65_536

// One buffer for all sockets of a thread: nothing in it outlives a call.
export const bytes = new Uint8Array(BUFFER)
export const view = new DataView(bytes.buffer)
export const bufferAddress = addressOf(bytes)

/** One message in the buffer. */
export interface Message {
  type: number
  /** Position of the payload in the buffer, and of its end. */
  at: number
  end: number
}

/** Any error means "there is none". */
export const ANY = -1

/** A routing socket in a namespace: one thread. */
export class Netlink {
  /** Polls readable when `events` has something. */
  readonly fd: number

  /**
   * Opens a socket in a namespace (a name or path; '' is the current one). One that hears of `groups` (GROUP bits) is for `events`, one
   * without is for questions. Throws DetourError.
   */
  constructor(namespace: string, groups = 0) {
    this.fd = inNamespace(namespace, () =>
      must(socket(AF_NETLINK, SOCK.RAW | SOCK.NONBLOCK, NETLINK_ROUTE), 'socket', 'netlink'),
    )
    const result = bind(this.fd, Uint32Array.of(AF_NETLINK, 0, groups))
    if (result >= 0) return
    close(this.fd)
    throw systemError('bind', 'netlink', result)
  }

  close(): void {
    close(this.fd)
  }

  /** Sends a message (rtnetlink(7)) that is answered by one: 0 when that is what was asked for or an acknowledgement, else -errno. */
  request(type: number, flags: number, payload: number[]): number {
    this.send(type, flags, payload)
    const n = must(read(this.fd, bufferAddress, BUFFER), 'read', `netlink request ${type}`)
    for (const message of this.messages(n)) return message.type === ERROR ? view.getInt32(message.at, true) : 0
    return -ERRNO.EPROTO
  }

  // The kernel works on a request while it is being sent, so the answer is there when write(2) returns.
  protected *ask(type: number, flags: number, payload: number[], allowed = 0): Generator<Message> {
    this.send(type, flags, payload)
    for (;;) {
      const n = must(read(this.fd, bufferAddress, BUFFER), 'read', `netlink request ${type}`)
      for (const message of this.messages(n)) {
        if (message.type === DONE) return
        if (message.type !== ERROR) {
          yield message
          continue
        }
        const code = view.getInt32(message.at, true)
        if (code < 0 && allowed !== ANY && code !== -allowed) throw systemError('netlink request', `${type}`, code)
        return
      }
      if ((flags & NLM_F_DUMP) === 0) return
    }
  }

  private send(type: number, flags: number, payload: number[]): void {
    const request = Uint8Array.from([
      ...words(HEADER + payload.length),
      ...[type & 255, type >> 8, (flags | NLM_F_REQUEST) & 255, (flags | NLM_F_REQUEST) >> 8],
      ...words(0, 0),
      ...payload,
    ])
    must(write(this.fd, addressOf(request), request.length), 'write', `netlink request ${type}`)
  }

  protected *messages(length: number): Generator<Message> {
    for (let at = 0; at + HEADER <= length; ) {
      const size = view.getUint32(at, true)
      if (size < HEADER || at + size > length) return
      yield { type: view.getUint16(at + 4, true), at: at + HEADER, end: at + size }
      at += (size + 3) & ~3
    }
  }

  /** A copy of an attribute's value. */
  protected attribute(at: number, end: number, type: number): Uint8Array | undefined {
    const found = this.find(at, end, type)
    return found < 0 ? undefined : bytes.slice(found + 4, found + view.getUint16(found, true))
  }

  /** Where an attribute lies whose value has at least four bytes, or -1. */
  protected find(at: number, end: number, type: number): number {
    while (at + 4 <= end) {
      const size = view.getUint16(at, true)
      if (size < 4 || at + size > end) return -1
      if ((view.getUint16(at + 2, true) & 0x3fff) === type) return size < 8 ? -1 : at
      at += (size + 3) & ~3
    }
    return -1
  }
}

/** Text as the kernel reads it. */
export const cString = (text: string) => new TextEncoder().encode(`${text}\0`)

/** 32-bit words as the bytes of a little-endian machine. */
export function words(...values: number[]): number[] {
  return values.flatMap(value => [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24])
}

/** struct rtattr: length, type, value, padding to four bytes. */
export function attribute(type: number, value: ArrayLike<number>): number[] {
  const size = 4 + value.length
  return [size & 255, size >> 8, type & 255, type >> 8, ...Array.from(value), ...Array(-size & 3).fill(0)]
}
