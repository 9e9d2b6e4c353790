// Puts a flow table in order whose writer ended, perhaps in the middle of a write: the rows are the truth, the index and the list
// of free rows are made anew from them. A row that was being given to a flow, or taken from it, is free.

import { ENDPOINT_NUMBERS } from '../memory/endpoints.ts'
import { COLD, ENDPOINT_SHIFT, type FlowTableHandle, HEADER, HOT, LINE, layoutOf } from './layout.ts'
import { indexPlace, indexWord } from './table.ts'

/** Makes the table fit to be written again, and returns how many flows it has; before a FlowTable is built on it, while nobody writes. */
export function recoverFlowTable(handle: FlowTableHandle): number {
  const { memory } = handle
  const at = layoutOf(handle)
  const header = new Int32Array(memory, 0, HEADER.WORDS)
  const index = new Int32Array(memory, at.index, at.slots)
  const hot = new Int32Array(memory, at.hot, at.words)
  const cold = new Int32Array(memory, at.cold, at.words)
  const used = Math.min(header[HEADER.USED], handle.capacity)
  // An index that was never written is not touched, or all of it would be committed.
  if (used > 0) index.fill(0)
  header.fill(0, HEADER.FLOWS_TO, HEADER.FLOWS_TO + ENDPOINT_NUMBERS)
  let free = 0
  let count = 0
  for (let row = used; row > 0; row--) {
    const own = row * LINE
    if (hot[own + HOT.KIND] !== 0 && (cold[own + COLD.SEQUENCE] & 1) === 0) {
      const hash = hot[own + HOT.HASH]
      let slot = indexPlace(hash, at.slots)
      while (index[slot] !== 0) slot = (slot + 1) & (at.slots - 1)
      index[slot] = indexWord(hash, row)
      header[HEADER.FLOWS_TO + (hot[own + HOT.VERDICT] >>> ENDPOINT_SHIFT)]++
      count++
      continue
    }
    hot[own + HOT.KIND] = 0
    cold[own + COLD.LINK] = free
    cold[own + COLD.SEQUENCE] += cold[own + COLD.SEQUENCE] & 1
    free = row
  }
  header[HEADER.USED] = used
  header[HEADER.COUNT] = count
  header[HEADER.FREE] = free
  return count
}
