// The capture wrapper: what goes in and out of a device, as tshark finds it in the file.
import { closeSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { CaptureDevice } from '../../src/device/capture.ts'
import type { Device } from '../../src/device/device.ts'
import { createCapture, PcapWriter } from '../../src/device/pcap.ts'
import { Batch } from '../../src/memory/batch.ts'
import { StageCounters } from '../../src/memory/counters.ts'
import type { Pool } from '../../src/memory/pool.ts'
import { fields, missing, newPool, temporary, title } from './captures.ts'

/** Gives what it was told to give, and frees what it is given. */
class Fake implements Device {
  readonly name: string
  readonly capabilities = 6
  readonly fd = 77
  readonly exhausted = false
  readonly toGive = new Batch(16)
  taken = 0
  private readonly pool: Pool

  constructor(name: string, pool: Pool) {
    this.name = name
    this.pool = pool
  }

  receive(batch: Batch): number {
    const { length } = this.toGive
    for (let i = 0; i < length; i++) batch.push(this.toGive.frames[i])
    this.toGive.length = 0
    return length
  }

  transmit(batch: Batch): void {
    this.taken += batch.length
    this.pool.freeAll(batch)
  }

  close(): void {}
}

describe.skipIf(missing !== undefined)(title('capture'), () => {
  it('writes both directions of two devices, super-packets whole, and passes everything on', () => {
    const pool = newPool(64, 70_000)
    const path = temporary('capture.pcapng')
    const output = createCapture(path)
    const writer = new PcapWriter(pool, new StageCounters('capture'), output)
    const fakes = [new Fake('tap:dtr0', pool), new Fake('udp:6081', pool)]
    const [pod, underlay] = fakes.map(fake => new CaptureDevice(fake, writer))
    expect([pod.name, pod.capabilities, pod.fd, pod.exhausted]).toEqual(['tap:dtr0', 6, 77, false])

    const make = (length: number) => {
      const frame = pool.alloc()
      pool.length[frame] = length
      pool.bytes.fill(length & 0xff, pool.start[frame], pool.start[frame] + length)
      pool.sequence[frame] = 3
      pool.seconds[frame] = 1
      return frame
    }
    const before = Date.now() / 1000 - 1
    const batch = new Batch(16)
    batch.push(make(60))
    fakes[0].toGive.push(make(65_550))
    fakes[0].toGive.push(make(61))
    expect(pod.receive(batch)).toBe(2)
    expect(batch.length).toBe(3)
    underlay.transmit(batch)
    expect(fakes[1].taken).toBe(3)
    expect(pool.available).toBe(64)
    pod.close()
    underlay.close()
    closeSync(output.fd)

    const seen = fields(path, 'frame.interface_name', 'frame.packet_flags_direction', 'frame.len', 'frame.cap_len')
    expect(seen).toEqual([
      'tap:dtr0\t0x00000001\t65550\t65550',
      'tap:dtr0\t0x00000001\t61\t61',
      'udp:6081\t0x00000002\t60\t60',
      'udp:6081\t0x00000002\t65550\t65550',
      'udp:6081\t0x00000002\t61\t61',
    ])
    for (const time of fields(path, 'frame.time_epoch')) {
      expect(Number(time)).toBeGreaterThan(before)
      expect(Number(time)).toBeLessThan(Date.now() / 1000 + 1)
    }
  })

  it('leaves the frames as they were', () => {
    const pool = newPool(8, 2048)
    const output = createCapture(temporary('untouched.pcapng'))
    const fake = new Fake('fake', pool)
    const device = new CaptureDevice(fake, new PcapWriter(pool, new StageCounters('capture'), output))
    const frame = pool.alloc()
    pool.length[frame] = 100
    pool.seconds[frame] = 5
    pool.nanoseconds[frame] = 6
    pool.sequence[frame] = 7
    fake.toGive.push(frame)
    const batch = new Batch(4)
    device.receive(batch)
    device.close()
    closeSync(output.fd)
    expect([pool.length[frame], pool.seconds[frame], pool.nanoseconds[frame], pool.sequence[frame]]).toEqual([
      100, 5, 6, 7,
    ])
  })
})
