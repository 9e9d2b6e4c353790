// BPF maps, programs, links and pins (bpf(2), linux/bpf.h). Set-up only; the packet path maps what it needs.

import { mkdirSync, rmSync, statfsSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import { addressOf, bpf, close, ERRNO, errnoText, mount, must, systemError } from './libc.ts'

const COMMAND = {
  MAP_CREATE: 0,
  MAP_LOOKUP: 1,
  MAP_UPDATE: 2,
  MAP_DELETE: 3,
  MAP_NEXT_KEY: 4,
  PROG_LOAD: 5,
  OBJ_PIN: 6,
  OBJ_GET: 7,
  OBJ_GET_INFO: 15,
  LINK_CREATE: 28,
  LINK_UPDATE: 29,
} as const

const MAP_TYPE = { HASH: 1, ARRAY: 2, LPM_TRIE: 11, XSKMAP: 17 } as const
const BPF_F_NO_PREALLOC = 1
const BPF_F_MMAPABLE = 0x400
const PROG_TYPE = { SOCKET_FILTER: 1, SCHED_CLS: 3, XDP: 6 } as const
const ATTACH_TYPE = { ingress: 46, egress: 47 } as const
const ATTACH_XDP = 37
const BPF_F_BEFORE = 8
const BPFFS_MAGIC = 0xcafe4a11
const LOG_SIZE = 1 << 18

/** Where a classifier runs on an interface. */
export type Hook = 'ingress' | 'egress'

// One bpf(2) call: the attribute union has 32-bit fields, pointers and a name at fixed offsets.
function call(
  command: number,
  fields: Record<number, number>,
  pointers: Record<number, Uint8Array> = {},
  name: [at: number, name: string] = [0, ''],
): number {
  const view = new DataView(new ArrayBuffer(128))
  for (const [at, value] of Object.entries(fields)) view.setUint32(Number(at), value, true)
  for (const [at, value] of Object.entries(pointers)) view.setBigUint64(Number(at), BigInt(addressOf(value)), true)
  for (let i = 0; i < Math.min(name[1].length, 15); i++) view.setUint8(name[0] + i, name[1].charCodeAt(i))
  held.push(pointers)
  const result = bpf(command, view)
  held.pop()
  return result
}

// NB: keeps what an address points to from being collected during the call.
const held: unknown[] = []

const text = (value: string) => new TextEncoder().encode(`${value}\0`)

function createMap(name: string, type: number, key: number, value: number, entries: number, flags: number): number {
  const fields = { 0: type, 4: key, 8: value, 12: entries, 16: flags }
  return must(call(COMMAND.MAP_CREATE, fields, {}, [28, name]), 'BPF_MAP_CREATE', name)
}

/** Makes an array map that mmap(2) accepts and returns its file descriptor. Throws DetourError. */
export function createArrayMap(name: string, valueSize: number, entries: number): number {
  return createMap(name, MAP_TYPE.ARRAY, 4, valueSize, entries, BPF_F_MMAPABLE)
}

/** Makes a hash map and returns its file descriptor. Throws DetourError. */
export function createHashMap(name: string, keySize: number, valueSize: number, entries: number): number {
  return createMap(name, MAP_TYPE.HASH, keySize, valueSize, entries, 0)
}

/** Makes a map that finds the longest prefix of a key, which is four bytes of length in bits and the value; returns its file descriptor. Throws DetourError. */
export function createPrefixMap(name: string, keySize: number, valueSize: number, entries: number): number {
  return createMap(name, MAP_TYPE.LPM_TRIE, keySize, valueSize, entries, BPF_F_NO_PREALLOC)
}

/** Makes the map that a program finds AF_XDP sockets in, by receive queue, and returns its file descriptor. Throws DetourError. */
export function createSocketMap(name: string, queues: number): number {
  return createMap(name, MAP_TYPE.XSKMAP, 4, 4, queues, 0)
}

/** Stores an entry. Throws DetourError, with E2BIG when the map is full. */
export function updateMap(fd: number, key: Uint8Array, value: Uint8Array): void {
  must(call(COMMAND.MAP_UPDATE, { 0: fd }, { 8: key, 16: value }), 'BPF_MAP_UPDATE_ELEM', `map ${fd}`)
}

/** Removes an entry; one that is not there is fine. */
export function deleteFromMap(fd: number, key: Uint8Array): void {
  const result = call(COMMAND.MAP_DELETE, { 0: fd }, { 8: key })
  if (result < 0 && result !== -ERRNO.ENOENT) throw systemError('BPF_MAP_DELETE_ELEM', `map ${fd}`, result)
}

/** Reads an entry into `value` and says whether there is one. */
export function lookupMap(fd: number, key: Uint8Array, value: Uint8Array): boolean {
  const result = call(COMMAND.MAP_LOOKUP, { 0: fd }, { 8: key, 16: value })
  if (result < 0 && result !== -ERRNO.ENOENT) throw systemError('BPF_MAP_LOOKUP_ELEM', `map ${fd}`, result)
  return result >= 0
}

/** Removes every entry of a hash map. */
export function clearMap(fd: number, keySize: number): void {
  const key = new Uint8Array(keySize)
  // Without a key, the first.
  while (call(COMMAND.MAP_NEXT_KEY, { 0: fd }, { 16: key }) >= 0) deleteFromMap(fd, key)
}

/** A map's number, which no other has while it lives, and the bytes of a value. Throws DetourError. */
export function mapInfo(fd: number): { id: number; valueSize: number } {
  // struct bpf_map_info: type, id, key_size, value_size.
  const info = new Uint8Array(80)
  must(call(COMMAND.OBJ_GET_INFO, { 0: fd, 4: info.length }, { 8: info }), 'BPF_OBJ_GET_INFO_BY_FD', `map ${fd}`)
  const view = new DataView(info.buffer)
  return { id: view.getUint32(4, true), valueSize: view.getUint32(12, true) }
}

const LOAD_TRIES = 5

/** Loads a classifier and returns its file descriptor. Throws DetourError with the verifier's last words. */
export function loadClassifier(name: string, instructions: Uint8Array): number {
  return loadProgram(PROG_TYPE.SCHED_CLS, name, instructions)
}

/** Loads a socket filter, which also chooses queues and sockets, and returns its file descriptor. Throws DetourError as `loadClassifier`. */
export function loadFilter(name: string, instructions: Uint8Array): number {
  return loadProgram(PROG_TYPE.SOCKET_FILTER, name, instructions)
}

function loadProgram(type: number, name: string, instructions: Uint8Array): number {
  const licence = text('Apache-2.0')
  const log = new Uint8Array(LOG_SIZE)
  const fields = { 0: type, 4: instructions.length / 8 }
  const pointers = { 8: instructions, 16: licence }
  let fd = 0
  // The verifier gives up with EAGAIN when a signal is pending (bpf_check in kernel/bpf/verifier.c).
  for (let tries = 0; tries < LOAD_TRIES; tries++) {
    fd = call(COMMAND.PROG_LOAD, fields, pointers, [48, name])
    if (fd >= 0) return fd
    if (fd !== -ERRNO.EAGAIN) break
  }
  if (fd === -ERRNO.EPERM) throw systemError('BPF_PROG_LOAD', name, fd)
  const told = call(COMMAND.PROG_LOAD, { ...fields, 24: 1, 28: LOG_SIZE }, { ...pointers, 32: log }, [48, name])
  if (told >= 0) return told
  const words = new TextDecoder()
    .decode(log.subarray(0, log.indexOf(0)))
    .trim()
    .split('\n')
    .slice(-12)
    .join('\n')
  throw new DetourError('system', `BPF_PROG_LOAD ${name}: ${errnoText(-fd)}; the verifier said:\n${words}`)
}

/** Loads an XDP program and returns its file descriptor. Throws DetourError with the verifier's last words. */
export function loadXdp(name: string, instructions: Uint8Array): number {
  return loadProgram(PROG_TYPE.XDP, name, instructions)
}

/** XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE (linux/if_link.h). */
const XDP_FLAGS = { generic: 2, native: 4 } as const

/** Where an XDP program runs: in the driver, or behind it on any interface. */
export type XdpAttach = keyof typeof XDP_FLAGS

/** Attaches an XDP program to an interface of the calling thread's namespace and returns the link's file descriptor, or -errno. The program goes when it is closed, also by the death of the process. */
export function attachXdp(program: number, interfaceIndex: number, mode: XdpAttach): number {
  return call(COMMAND.LINK_CREATE, { 0: program, 4: interfaceIndex, 8: ATTACH_XDP, 12: XDP_FLAGS[mode] })
}

/**
 * Attaches a classifier to an interface of the calling thread's namespace by a TCX link and returns the link's file descriptor, or -errno:
 * -EINVAL on a kernel without TCX (before 6.6). The link ends when that and every pin are gone. `first` puts it in front of the others there.
 */
export function attachTcx(program: number, interfaceIndex: number, hook: Hook, first: boolean): number {
  const fields = { 0: program, 4: interfaceIndex, 8: ATTACH_TYPE[hook], 12: first ? BPF_F_BEFORE : 0 }
  return call(COMMAND.LINK_CREATE, fields)
}

/** Has a link run another program from now on; no packet passes by both. Throws DetourError. */
export function updateLink(link: number, program: number): void {
  must(call(COMMAND.LINK_UPDATE, { 0: link, 4: program }), 'BPF_LINK_UPDATE', `link ${link}`)
}

/** The index of the interface that a TCX or XDP link holds; 0 when that is gone or somebody took the link off it. */
export function linkInterface(link: number): number {
  // struct bpf_link_info: type, id, program, and at 16 what is particular to the type, here first the interface.
  const info = new Uint8Array(64)
  must(call(COMMAND.OBJ_GET_INFO, { 0: link, 4: info.length }, { 8: info }), 'BPF_OBJ_GET_INFO_BY_FD', `link ${link}`)
  return new DataView(info.buffer).getUint32(16, true)
}

/** Gives a map, program or link a name in the BPF file system, so that it outlives the process. */
export function pin(fd: number, path: string): void {
  must(call(COMMAND.OBJ_PIN, { 8: fd }, { 0: text(path) }), 'BPF_OBJ_PIN', path)
}

/** Opens a pinned object, or returns -1 when there is none. */
export function getPinned(path: string): number {
  const fd = call(COMMAND.OBJ_GET, {}, { 0: text(path) })
  if (fd === -ERRNO.ENOENT) return -1
  return must(fd, 'BPF_OBJ_GET', path)
}

/** Opens the map that is pinned there, or, where there is none whose values have this size, makes one and pins it. Throws DetourError. */
export function pinnedMap(path: string, valueSize: number, make: () => number): number {
  const there = getPinned(path)
  if (there >= 0) {
    if (mapInfo(there).valueSize === valueSize) return there
    close(there)
    unpin(path)
  }
  const fd = make()
  try {
    pin(fd, path)
    return fd
  } catch (error) {
    close(fd)
    throw error
  }
}

/** Removes a pin, or a directory of pins; one that is not there is fine. */
export function unpin(path: string): void {
  rmSync(path, { recursive: true, force: true })
}

/** Where the BPF file system belongs. */
export const BPFFS = '/sys/fs/bpf'

/** Makes a directory for pins, or leaves the one that is there; mounts the BPF file system at its place when nothing is mounted there. */
export function makePinDirectory(path: string): void {
  // A dot is refused by the BPF file system itself.
  if (!/^\/sys\/fs\/bpf(\/[\w:-]+)+$/.test(path))
    throw new DetourError(
      'bad-config',
      `pin directory '${path}': below ${BPFFS}, names of letters, digits, '_' and '-'`,
    )
  if (statfsSync(BPFFS).type !== BPFFS_MAGIC) must(mount('bpf', BPFFS, 'bpf'), 'mount bpf', BPFFS)
  mkdirSync(path, { recursive: true, mode: 0o700 })
}
