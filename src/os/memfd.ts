// Memory that several processes may have: a file without a name (memfd_create(2)), which whoever gets its descriptor maps. It lasts
// as long as a descriptor or a mapping does, so what lies in it survives the process that wrote it.

import koffi from 'koffi'
import { close, type Mapping, mmap, munmap, must, PROT } from './libc.ts'

const libc = koffi.load(null)
const c = {
  create: libc.func('int memfd_create(str, uint)'),
  resize: libc.func('int ftruncate(int, int64_t)'),
}

const CLOEXEC = 1

const done = (result: number): number => (result < 0 ? -koffi.errno() : result)

/** Makes zeroed memory, which is committed page by page as it is written, and returns its descriptor. Throws DetourError. */
export function createSharedMemory(name: string, bytes: number): number {
  const fd = must(done(c.create(name, CLOEXEC)), 'memfd_create', name)
  const result = done(c.resize(fd, bytes))
  if (result < 0) close(fd)
  must(result, 'ftruncate', name)
  return fd
}

/**
 * Maps it, `memory` from byte `from` on; the descriptor may be closed afterwards. The mapping ends with unmapSharedMemory, or when
 * nothing refers to its memory any more. Throws DetourError.
 */
export function mapSharedMemory(fd: number, bytes: number, name: string, from = 0): Mapping {
  const { address, length } = mmap(fd, bytes, PROT.READ | PROT.WRITE, 0, name)
  const memory = koffi.view(BigInt(address + from), bytes - from)
  forgotten.register(memory, { address, length }, memory)
  return { address, length, memory }
}

/** Unmaps at once. NB: nothing may look at the memory afterwards: that kills the process. */
export function unmapSharedMemory(mapping: Mapping): void {
  forgotten.unregister(mapping.memory)
  munmap(mapping)
}

const forgotten = new FinalizationRegistry((mapping: Pick<Mapping, 'address' | 'length'>) => void munmap(mapping))
