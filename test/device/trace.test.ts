// Trace: the lines of tcpdump's manner, direction and count, and a device that is otherwise the same.

import { expect, test } from 'vitest'
import { TraceDevice } from '../../src/device/trace.ts'
import { Batch } from '../../src/memory/batch.ts'
import { GSO } from '../../src/memory/pool.ts'
import { batchOf, bytesOf, FakeDevice, FRAMES, smallPool } from './fake.ts'

/** An ARP request for 10.0.0.2, as scapy builds it: Ether(dst='ff:ff:ff:ff:ff:ff', src='02:00:00:00:00:01')/ARP(...). */
const ARP = Buffer.from(
  'ffffffffffff02000000000108060001080006040001020000000001' + '0a000001' + '0000000000000a000002',
  'hex',
)

test('a line a packet with its direction, so many at most, and the packets unharmed', () => {
  const pool = smallPool()
  const device = new FakeDevice(pool)
  const lines: string[] = []
  const trace = new TraceDevice(device, pool, { write: line => lines.push(line), count: 3 })
  expect([trace.name, trace.capabilities, trace.fd, trace.exhausted]).toEqual(['fake:0', 5, 7, false])
  device.give(ARP, ARP)
  const batch = new Batch()
  expect(trace.receive(batch)).toBe(2)
  expect(bytesOf(pool, batch).map(b => Buffer.from(b))).toEqual([ARP, ARP])
  const out = batchOf(pool, [ARP, ARP])
  pool.gso[out.frames[0]] = GSO.TCP4
  pool.gsoSize[out.frames[0]] = 1448
  trace.transmit(out)
  expect(device.sent).toHaveLength(2)
  expect(lines).toHaveLength(3)
  expect(lines[0]).toMatch(/^fake:0 < .*10\.0\.0\.2.*10\.0\.0\.1/)
  expect(lines[2]).toBe(`${lines[0].replace('<', '>')} (segments of 1448)`)
  device.ends = true
  trace.close()
  expect([trace.exhausted, device.closed, pool.available]).toEqual([true, true, FRAMES])
})

test('only packets that this call received are traced', () => {
  const pool = smallPool()
  const device = new FakeDevice(pool)
  const lines: string[] = []
  const trace = new TraceDevice(device, pool, { write: line => lines.push(line) })
  device.give(ARP)
  const batch = batchOf(pool, [ARP])
  const larger = new Batch()
  larger.push(batch.frames[0])
  expect(trace.receive(larger)).toBe(1)
  expect(lines).toHaveLength(1)
})
