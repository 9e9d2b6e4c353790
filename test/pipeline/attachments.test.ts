// Attachments by Ethernet address: found in either direction, replaced, taken away, however many there are.

import { expect, test } from 'vitest'
import { createPool, Pool } from '../../src/memory/pool.ts'
import {
  ARRIVING,
  AttachmentIndex,
  LEAVING,
  MAX_ATTACHMENTS,
  PROBE_ATTACHMENT,
} from '../../src/pipeline/attachments.ts'
import { PROBE_MAC } from '../../src/pipeline/probe.ts'

const UNKNOWN = Uint8Array.of(2, 9, 9, 9, 9, 9)

function indexed() {
  const pool = new Pool(createPool({ frames: 1, frameSize: 256, headroom: 64 }))
  const index = new AttachmentIndex(pool)
  const at = pool.alloc()
  return {
    index,
    /** The attachment and direction of a frame from `source` to `destination`. */
    find(destination: Uint8Array, source: Uint8Array) {
      pool.bytes.set([...destination, ...source], pool.start[at])
      return index.assign(at) ? [pool.attachment[at], pool.direction[at]] : undefined
    },
  }
}

const mac = (i: number) => Uint8Array.of(2, 0, 0, i >> 16, i >> 8, i)

test('by source it leaves, by destination it arrives, by neither it is nobody’s', () => {
  const { index, find } = indexed()
  expect(find(mac(1), UNKNOWN)).toBeUndefined()
  index.set(7, mac(1))
  expect(find(UNKNOWN, mac(1))).toEqual([7, LEAVING])
  expect(find(mac(1), UNKNOWN)).toEqual([7, ARRIVING])
  expect(find(UNKNOWN, UNKNOWN)).toBeUndefined()
  index.set(8, mac(2))
  expect(find(mac(1), mac(2)), 'between two, it belongs to the sender').toEqual([8, LEAVING])
})

test('one bit of the address decides', () => {
  const { index, find } = indexed()
  index.set(1, mac(0x123456))
  for (let bit = 0; bit < 48; bit++) {
    const other = mac(0x123456)
    other[bit >> 3] ^= 1 << (bit & 7)
    expect(find(UNKNOWN, other)).toBeUndefined()
  }
})

test('a new address replaces the old one, and what is deleted is gone', () => {
  const { index, find } = indexed()
  index.set(3, mac(1))
  index.set(3, mac(2))
  expect(find(UNKNOWN, mac(1))).toBeUndefined()
  expect(find(UNKNOWN, mac(2))).toEqual([3, LEAVING])
  index.delete(3)
  index.delete(4)
  expect(find(UNKNOWN, mac(2))).toBeUndefined()
})

test('as many as there may be, with neighbouring addresses, and the probe', () => {
  const { index, find } = indexed()
  index.set(PROBE_ATTACHMENT, PROBE_MAC)
  for (let i = 0; i < MAX_ATTACHMENTS; i++) index.set(i, mac(i))
  for (let i = 0; i < MAX_ATTACHMENTS; i++) expect(find(mac(i), UNKNOWN)).toEqual([i, ARRIVING])
  expect(find(PROBE_MAC, PROBE_MAC)).toEqual([PROBE_ATTACHMENT, LEAVING])
})
