// The pool: slots of two sizes that never overlap, frames that go back to where they belong, memory that AF_XDP can use.
import { describe, expect, it } from 'vitest'
import { Batch } from '../../src/memory/batch.ts'
import { createLivePool, umemOf } from '../../src/memory/live.ts'
import { createPool, GSO, HEADROOM, OFFLOAD, Pool, SMALL_FRAME, SMALL_HEADROOM } from '../../src/memory/pool.ts'
import { addressOf } from '../../src/os/libc.ts'

const OPTIONS = { frames: 21, frameSize: 5000, headroom: HEADROOM, small: 13 }

describe('pool', () => {
  for (const [kind, create] of [
    ['plain', createPool],
    ['live', createLivePool],
  ] as const)
    it(`gives every frame of a ${kind} pool its own bytes, all of them and no others'`, () => {
      const handle = create(OPTIONS)
      const pool = new Pool(handle)
      const small = Array.from({ length: 13 }, () => pool.allocSmall())
      const large = Array.from({ length: 8 }, () => pool.alloc())
      expect([pool.allocSmall(), pool.alloc(), pool.availableSmall, pool.available]).toEqual([-1, -1, 0, 0])
      expect([...small].sort((a, b) => a - b)).toEqual(Array.from({ length: 13 }, (_, i) => i))
      expect([...large].sort((a, b) => a - b)).toEqual(Array.from({ length: 8 }, (_, i) => 13 + i))
      let from = handle.base
      for (let frame = 0; frame < 21; frame++) {
        const [size, headroom] = frame < 13 ? [SMALL_FRAME, SMALL_HEADROOM] : [pool.frameSize, HEADROOM]
        expect([pool.slot(frame), pool.limit(frame)]).toEqual([from, from + size])
        expect(pool.headroomOf(frame)).toBe(headroom)
        from += size
      }
      expect(from).toBe(pool.bytes.length)
      // Metadata lies behind the last frame, whatever the base.
      pool.bytes.fill(0xa5)
      expect([pool.length[20], pool.gso[20], pool.verdict[20]]).toEqual([0, 0, 0])
    })

  it('takes frames back to the stack of their size, last freed first, and forgets what they were', () => {
    const pool = new Pool(createPool(OPTIONS))
    const small = pool.allocSmall()
    const large = pool.alloc()
    const batch = new Batch()
    for (const frame of [small, large]) {
      pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
      pool.gso[frame] = GSO.UDP
      pool.flow[frame] = 5
      pool.outerTransport[frame] = 7
      pool.start[frame] += 100
      batch.push(frame)
    }
    pool.freeAll(batch)
    expect([batch.length, pool.availableSmall, pool.available]).toEqual([0, 13, 8])
    expect([pool.allocSmall(), pool.alloc()]).toEqual([small, large])
    for (const frame of [small, large]) {
      expect([pool.offload[frame], pool.gso[frame], pool.flow[frame], pool.outerTransport[frame]]).toEqual([
        0, 0, -1, 0,
      ])
    }
    expect([pool.headroomOf(small), pool.headroomOf(large)]).toEqual([SMALL_HEADROOM, HEADROOM])
  })

  it('shares frames out among threads, and takes back what another handed out', () => {
    const handle = createPool(OPTIONS)
    const one = new Pool(handle, 13, 3, 0, 6)
    const other = new Pool(handle, 16, 5, 6, 7)
    expect([one.availableSmall, one.available, other.availableSmall, other.available]).toEqual([6, 3, 7, 5])
    for (let i = 0; i < 6; i++) other.free(one.allocSmall())
    for (let i = 0; i < 3; i++) other.free(one.alloc())
    expect([one.availableSmall, one.available, other.availableSmall, other.available]).toEqual([0, 0, 13, 8])
  })

  it('begins at a page in memory, where a UMEM must', () => {
    for (let i = 0; i < 8; i++) {
      const area = umemOf(createLivePool({ ...OPTIONS, frameSize: 4096 + i * 64 }))
      expect(addressOf(new Uint8Array(area.memory, area.base)) % 4096).toBe(0)
      expect([area.chunks, area.chunkSize, area.headroom]).toEqual([13, 2048, 384])
    }
  })

  it('refuses sizes that make no sense', () => {
    const refused = (more: object) => expect(() => createPool({ ...OPTIONS, ...more })).toThrow(RangeError)
    refused({ small: 22 })
    refused({ small: -1 })
    refused({ frames: 0, small: 0 })
    refused({ frames: 40_000, frameSize: 66_000 })
    refused({ headroom: 5056 })
    expect(createPool({ ...OPTIONS, frames: 13 }).frames).toBe(13)
  })
})
