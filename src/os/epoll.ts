// Waiting for many file descriptors at once (epoll(7)): unlike poll(2), a look costs the same for one as for a thousand, and a
// descriptor that is closed leaves by itself.
//
// The kernel's struct epoll_event is events (u32) and a word of ours (u64); on x86-64 it is packed (linux/eventpoll.h).

import koffi from 'koffi'
import { addressOf, close, must, POLL } from './libc.ts'

const libc = koffi.load(null)
const c = {
  create: libc.func('int epoll_create1(int)'),
  control: libc.func('int epoll_ctl(int, int, int, void *)'),
  wait: libc.func('int epoll_wait(int, uintptr_t, int, int)'),
}

const CLOEXEC = 0o2000000
const ADD = 1
const DELETE = 2
const PACKED = process.arch === 'x64'
const EVENT = PACKED ? 12 : 16
const KEY = PACKED ? 4 : 8

const done = (result: number): number => (result < 0 ? -koffi.errno() : result)

/** Events that one look brings at most; further ones come first in the next. */
const MOST = 64

/** A set of descriptors to wait for, each with a key, a number of the caller's. Any thread; one at a time. */
export class Epoll {
  private readonly fd: number
  private readonly events = new DataView(new ArrayBuffer(MOST * EVENT))
  private readonly at = addressOf(this.events)

  /** Throws DetourError. */
  constructor() {
    this.fd = must(done(c.create(CLOEXEC)), 'epoll_create1', 'a set of descriptors')
  }

  /** Waits for a descriptor to become readable, from now on. Throws DetourError. */
  add(fd: number, key: number): void {
    const event = new DataView(new ArrayBuffer(EVENT))
    event.setUint32(0, POLL.IN, true)
    event.setInt32(KEY, key, true)
    must(done(c.control(this.fd, ADD, fd, event)), 'epoll_ctl', `descriptor ${fd}`)
  }

  /** Waits for it no longer; one that was closed has left already. */
  delete(fd: number): void {
    c.control(this.fd, DELETE, fd, null)
  }

  /** Returns how many descriptors are ready, after at most so many ms; 0 looks only. Creates nothing. */
  wait(timeoutMs: number): number {
    return Math.max(0, c.wait(this.fd, this.at, MOST, timeoutMs))
  }

  /** The key of one of those. */
  key(i: number): number {
    return this.events.getInt32(i * EVENT + KEY, true)
  }

  /** Whether it has something; if not, something is wrong with it, and stays wrong. */
  readable(i: number): boolean {
    return (this.events.getUint32(i * EVENT, true) & POLL.IN) !== 0
  }

  close(): void {
    close(this.fd)
  }
}
