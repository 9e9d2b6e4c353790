// Memory for packets that come from and go to the kernel: on page boundaries where AF_XDP wants them, in huge pages where there are some.

import { addressOf, MADV, madvise } from '../os/libc.ts'
import type { UmemArea } from '../os/xdp.ts'
import { createPool, type PoolHandle, type PoolOptions, SMALL_FRAME, SMALL_HEADROOM } from './pool.ts'

const PAGE = 4096

/** Allocates a pool as createPool does, its small frames at a page's start, so that they can be a UMEM, and asks the kernel for huge pages. */
export function createLivePool(options: PoolOptions): PoolHandle {
  const handle = createPool(options)
  const bytes = new Uint8Array(handle.memory)
  const toPage = (PAGE - (addressOf(bytes) % PAGE)) % PAGE
  if (handle.small > 0) handle.base = toPage
  // A kernel without huge pages refuses, and then there are none.
  madvise(addressOf(bytes) + toPage, Math.floor((bytes.length - toPage) / PAGE) * PAGE, MADV.HUGEPAGE)
  return handle
}

/** The small frames of a live pool as AF_XDP wants them. */
export function umemOf({ memory, base, small }: PoolHandle): UmemArea {
  return { memory, base, chunks: small, chunkSize: SMALL_FRAME, headroom: SMALL_HEADROOM }
}
