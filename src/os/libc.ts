// System calls by FFI to the C library. Nothing outside src/os/ names one; any thread may call any of them.
//
// Calls return what the kernel returned, or -errno. On the packet path memory goes in as an address (a Number: `addressOf`),
// so that a call creates nothing. NB: an address does not keep its memory alive; hold on to the view.

import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'
import koffi from 'koffi'
import { DetourError } from '../errors.ts'

const libc = koffi.load(null)
const errno: () => number = koffi.errno

const c = {
  read: libc.func('long read(int, uintptr_t, size_t)'),
  write: libc.func('long write(int, uintptr_t, size_t)'),
  writev: libc.func('long writev(int, uintptr_t, int)'),
  poll: libc.func('int poll(uintptr_t, ulong, int)'),
  sendto: libc.func('long sendto(int, uintptr_t, size_t, int, uintptr_t, uint)'),
  sendmmsg: libc.func('int sendmmsg(int, uintptr_t, uint, int)'),
  recvmmsg: libc.func('int recvmmsg(int, uintptr_t, uint, int, uintptr_t)'),
  socket: libc.func('int socket(int, int, int)'),
  bind: libc.func('int bind(int, void *, uint)'),
  connect: libc.func('int connect(int, void *, uint)'),
  setsockopt: libc.func('int setsockopt(int, int, int, void *, uint)'),
  getsockopt: libc.func('int getsockopt(int, int, int, void *, void *)'),
  ioctl: libc.func('int ioctl(int, ulong, void *)'),
  ioctlNumber: libc.func('int ioctl(int, ulong, ulong)'),
  setns: libc.func('int setns(int, int)'),
  eventfd: libc.func('int eventfd(uint, int)'),
  dup: libc.func('int dup(int)'),
  close: libc.func('int close(int)'),
  mmap: libc.func('uintptr_t mmap(uintptr_t, size_t, int, int, int, int64_t)'),
  munmap: libc.func('int munmap(uintptr_t, size_t)'),
  madvise: libc.func('int madvise(uintptr_t, size_t, int)'),
  mount: libc.func('int mount(str, str, str, ulong, uintptr_t)'),
  index: libc.func('uint if_nametoindex(str)'),
  syscall: libc.func('long syscall(long, int, void *, uint)'),
}

/** errno values by name (EAGAIN, ENOBUFS, ...), as positive numbers: compare with the negated result of a call. */
export const ERRNO = constants.errno

/** Address families, socket types and options that Detour uses (x86-64 and arm64 agree). */
export const AF = { UNIX: 1, INET: 2, INET6: 10, PACKET: 17, XDP: 44 } as const
export const SOCK = { STREAM: 1, DGRAM: 2, RAW: 3, NONBLOCK: 0o4000, CLOEXEC: 0o2000000 } as const
export const POLL = { IN: 1, OUT: 4, ERR: 8, HUP: 0x10, NVAL: 0x20 } as const
export const MSG = { DONTWAIT: 0x40, WAITFORONE: 0x10000 } as const
export const PROT = { READ: 1, WRITE: 2 } as const
export const MAP = { SHARED: 1 } as const
export const MADV = { HUGEPAGE: 14 } as const

const done = (result: number): number => (result < 0 ? -errno() : result)

/** read(2). */
export function read(fd: number, address: number, length: number): number {
  const n = c.read(fd, address, length)
  return n < 0 ? -errno() : n
}

/** write(2). */
export function write(fd: number, address: number, length: number): number {
  const n = c.write(fd, address, length)
  return n < 0 ? -errno() : n
}

/** writev(2) of `count` iovec structures (address u64, length u64). */
export function writev(fd: number, iovecs: number, count: number): number {
  const n = c.writev(fd, iovecs, count)
  return n < 0 ? -errno() : n
}

/**
 * poll(2) over `count` pollfd structures (fd i32, events i16, revents i16); `timeout` in ms, -1 for ever. Goes on waiting after
 * a signal (a child that ends is one), which the kernel does not do by itself (signal(7)).
 */
export function poll(fds: number, count: number, timeout: number): number {
  const until = timeout > 0 ? performance.now() + timeout : 0
  for (let left = timeout; ; left = timeout > 0 ? Math.max(0, Math.ceil(until - performance.now())) : timeout) {
    const ready = done(c.poll(fds, count, left))
    if (ready !== -ERRNO.EINTR) return ready
  }
}

/** sendto(2); `to` is the address of a sockaddr of `toLength` bytes, or 0. */
export function sendto(
  fd: number,
  address: number,
  length: number,
  flags: number,
  to: number,
  toLength: number,
): number {
  return done(c.sendto(fd, address, length, flags, to, toLength))
}

/** sendmmsg(2) over `count` mmsghdr structures; the result is how many were sent. */
export function sendmmsg(fd: number, messages: number, count: number, flags: number): number {
  return done(c.sendmmsg(fd, messages, count, flags))
}

/** recvmmsg(2) without a timeout; the result is how many were received. */
export function recvmmsg(fd: number, messages: number, count: number, flags: number): number {
  return done(c.recvmmsg(fd, messages, count, flags, 0))
}

/** socket(2), close-on-exec. */
export function socket(family: number, type: number, protocol: number): number {
  return done(c.socket(family, type | SOCK.CLOEXEC, protocol))
}

/** bind(2) to the sockaddr that the view holds. */
export function bind(fd: number, address: ArrayBufferView): number {
  return done(c.bind(fd, address, address.byteLength))
}

/** connect(2) to the sockaddr that the view holds. */
export function connect(fd: number, address: ArrayBufferView): number {
  return done(c.connect(fd, address, address.byteLength))
}

/** setsockopt(2) with an int, or with the bytes of a view. */
export function setsockopt(fd: number, level: number, option: number, value: number | ArrayBufferView): number {
  const view = typeof value === 'number' ? Int32Array.of(value) : value
  return done(c.setsockopt(fd, level, option, view, view.byteLength))
}

/** getsockopt(2) into a view; the result is 0, the size that came is not kept. */
export function getsockopt(fd: number, level: number, option: number, value: ArrayBufferView): number {
  const length = Uint32Array.of(value.byteLength)
  return done(c.getsockopt(fd, level, option, value, length))
}

/** ioctl(2) with a number, or with the address of a view. */
export function ioctl(fd: number, request: number, argument: number | ArrayBufferView): number {
  return done(typeof argument === 'number' ? c.ioctlNumber(fd, request, argument) : c.ioctl(fd, request, argument))
}

/** setns(2): the calling thread enters the namespace. */
export function setns(fd: number, type: number): number {
  return done(c.setns(fd, type))
}

/** eventfd(2), non-blocking and close-on-exec. */
export function eventfd(): number {
  return done(c.eventfd(0, SOCK.NONBLOCK | SOCK.CLOEXEC))
}

/** dup(2). */
export function dup(fd: number): number {
  return done(c.dup(fd))
}

/** close(2). */
export function close(fd: number): number {
  return done(c.close(fd))
}

/** mount(2) without flags and data. */
export function mount(source: string, target: string, type: string): number {
  return done(c.mount(source, target, type, 0, 0))
}

/** if_nametoindex(3) in the calling thread's namespace; 0 when there is no such interface. */
export function interfaceIndex(name: string): number {
  return c.index(name)
}

const SYS_BPF: Partial<Record<string, number>> = { x64: 321, arm64: 280 }

/** bpf(2) with an attribute structure. */
export function bpf(command: number, attribute: ArrayBufferView): number {
  const call = SYS_BPF[process.arch]
  if (call === undefined) throw new DetourError('unsupported', `bpf(2) is not known here for processor ${process.arch}`)
  return done(c.syscall(call, command, attribute, attribute.byteLength))
}

/** A mapped file: `memory` is valid until `munmap(address, length)`. */
export interface Mapping {
  address: number
  length: number
  memory: ArrayBuffer
}

/** mmap(2), shared, of a file's first `length` bytes from `offset`. Throws DetourError; `object` names the file in it. */
export function mmap(fd: number, length: number, protection: number, offset: number, object: string): Mapping {
  const address = Number(c.mmap(0, length, protection, MAP.SHARED, fd, offset))
  if (address >= 2 ** 63) throw systemError('mmap', object, -errno())
  return { address, length, memory: koffi.view(BigInt(address), length) }
}

/** munmap(2). NB: a view over the mapping must not be touched afterwards: that kills the process. */
export function munmap(mapping: Pick<Mapping, 'address' | 'length'>): number {
  return done(c.munmap(mapping.address, mapping.length))
}

/** madvise(2); `address` is a page's. */
export function madvise(address: number, length: number, advice: number): number {
  return done(c.madvise(address, length, advice))
}

/** Where a view's first byte is in memory; works for ArrayBuffer and SharedArrayBuffer, in every thread. */
export function addressOf(view: ArrayBufferView): number {
  return Number(koffi.address(view))
}

/** Name and meaning of an errno: `ENOENT (no such file or directory)`. */
export function errnoText(code: number): string {
  const known = getSystemErrorMap().get(-code)
  return known === undefined ? `errno ${code}` : `${known[0]} (${known[1]})`
}

const CAPABILITIES = 'CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_SYS_ADMIN'

const ADVICE: Record<number, string> = {
  [ERRNO.EADDRINUSE]: '; end who has it (ss -anp shows) or name another',
  [ERRNO.EADDRNOTAVAIL]: '; no interface here has it (ip address shows)',
}

/** The error for a call that returned -errno: `TUNSETIFF dt0: EBUSY (resource busy or locked)`. */
export function systemError(call: string, object: string, result: number): DetourError {
  const code = -result
  const denied = code === ERRNO.EPERM || code === ERRNO.EACCES
  const lacking = call === 'bind' && code === ERRNO.EACCES ? 'CAP_NET_BIND_SERVICE' : CAPABILITIES
  const advice = denied ? `; run as root or grant ${lacking}` : (ADVICE[code] ?? '')
  return new DetourError(denied ? 'permission' : 'system', `${call} ${object}: ${errnoText(code)}${advice}`)
}

/** Passes a call's result through, or throws systemError. For set-up. */
export function must(result: number, call: string, object: string): number {
  if (result < 0) throw systemError(call, object, result)
  return result
}
