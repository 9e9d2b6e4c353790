// The TAP device on a TAP that goes down and away.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { TapDevice } from '../../src/device/tap.ts'
import { DROP } from '../../src/drop.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../../src/memory/pool.ts'
import { addressOf, POLL, poll } from '../../src/os/libc.ts'
import { deleteLink } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, ip } from '../../src/os/netns.ts'
import { openTap, quietTap } from '../../src/os/tun.ts'
import { missing, title } from './support.ts'

describe.skipIf(missing !== '')(title('TAP'), () => {
  const namespace = 'dtc-tap'
  beforeAll(() => {
    deleteNamespace(namespace)
    createNamespace(namespace)
  })
  afterAll(() => deleteNamespace(namespace))

  it('counts packets it cannot send as dropped, and a vanished interface once', () => {
    const { fd, headerSize, offloads } = openTap({ name: 'tap0', namespace })
    const pool = new Pool(createPool({ frames: 4, frameSize: HEADROOM + 2048, headroom: HEADROOM }))
    const counters = new StageCounters('tap')
    const device = new TapDevice(pool, counters, { name: 'tap0', fd, headerSize, capabilities: offloads })
    const batch = new Batch()
    const send = () => {
      const frame = pool.alloc()
      pool.length[frame] = 60
      pool.bytes.fill(0xff, pool.start[frame], pool.start[frame] + 60)
      batch.push(frame)
      device.transmit(batch)
      return [counters.row[COLUMN.OUT_PACKETS], counters.drops(DROP.DEVICE_ERROR), counters.row[COLUMN.ERRORS]]
    }
    expect(send()).toEqual([0, 1, 0])
    quietTap('tap0', namespace)
    expect(send()).toEqual([1, 1, 0])
    expect(device.receive(batch)).toBe(0)
    expect(device.exhausted).toBe(false)
    ip(['link', 'set', 'tap0', 'down'], namespace)
    expect(send()).toEqual([1, 2, 0])

    deleteLink('tap0', namespace)
    const waiting = Int32Array.of(fd, POLL.IN)
    expect(poll(addressOf(waiting), 1, 1000)).toBe(1)
    expect(device.receive(batch)).toBe(0)
    expect(device.receive(batch)).toBe(0)
    expect(device.exhausted).toBe(true)
    expect(send()).toEqual([1, 3, 1])
    expect(pool.available).toBe(4)
    device.close()
  })
})
