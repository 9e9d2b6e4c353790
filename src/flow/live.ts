// Flow tables of processes that forward: in huge pages, because with a million flows every packet reads lines that no cache holds, and
// with small pages their addresses must be looked up in memory too (fetching a batch's rows ahead: 21 ns a packet instead
// of 30); and, of a node, in memory that outlives the process, so that its successor goes on with the same flows.

import { addressOf, MADV, type Mapping, madvise } from '../os/libc.ts'
import { createSharedMemory, mapSharedMemory } from '../os/memfd.ts'
import { completed, createFlowTable, type FlowTableHandle, type FlowTableOptions, sizeOf } from './layout.ts'

const HUGE_PAGE = 2 ** 21

/** Tables begin so far into a page, which puts their lines on cache lines. */
const OFFSET = 16

/** Allocates a table as createFlowTable does, in huge pages where it is large and the kernel has some; it then takes memory by 2 MiB. */
export function createLiveFlowTable(options: FlowTableOptions): FlowTableHandle {
  const handle = createFlowTable(options)
  const bytes = new Uint8Array(handle.memory)
  askForHugePages(addressOf(bytes), bytes.length)
  return handle
}

/** A table whose memory other processes may have, too; plain data. */
export interface SharedFlowTable extends Required<FlowTableOptions> {
  /** Of the memory; belongs to the process. */
  fd: number
}

/** Makes such a table. Throws RangeError as createFlowTable, and DetourError. */
export function createSharedFlowTable(options: FlowTableOptions): SharedFlowTable {
  const complete = completed(options)
  return { ...complete, fd: createSharedMemory('detour-flows', OFFSET + sizeOf(complete)) }
}

/** A shared table as the calling thread sees it. Throws DetourError. */
export function openFlowTable({ fd, ...options }: SharedFlowTable): { handle: FlowTableHandle; mapping: Mapping } {
  const mapping = mapSharedMemory(fd, OFFSET + sizeOf(options), 'flow table', OFFSET)
  // Of shared memory the kernel makes huge pages only where it was told to (shmem_enabled).
  askForHugePages(mapping.address, mapping.length)
  return { handle: { ...options, memory: mapping.memory }, mapping }
}

// A kernel without huge pages refuses, and then there are none.
function askForHugePages(from: number, bytes: number): void {
  const first = Math.ceil(from / HUGE_PAGE) * HUGE_PAGE
  const end = Math.floor((from + bytes) / HUGE_PAGE) * HUGE_PAGE
  if (end > first) madvise(first, end - first, MADV.HUGEPAGE)
}
