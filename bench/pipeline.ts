// What a small packet costs in memory, without any device: into the tunnel and out of it, and all the way to the
// endpoint and back, against the same done in the straightforward way: an object a header, a buffer a packet, a Map of flows.

import { Batch } from '../src/memory/batch.ts'
import { StageCounters } from '../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../src/memory/pool.ts'
import { Decap } from '../src/pipeline/decap.ts'
import { Encap } from '../src/pipeline/encap.ts'
import { frameTemplate, Steady, steadyTunnel } from '../test/pipeline/steady.ts'
import { type Bench, each, heap } from './harness.ts'

export async function run(bench: Bench): Promise<void> {
  await tunnel(bench)
  for (const flows of bench.short ? [1000] : [1000, 1_000_000]) await there(bench, flows)
  await allocation(bench)
}

/** Encapsulation and decapsulation alone, of a batch over and over. */
async function tunnel(bench: Bench): Promise<void> {
  const batches = bench.short ? 200 : 4000
  const stages = (kind: 'geneve' | 'vxlan', outer: 4 | 6) => {
    const pool = new Pool(createPool({ frames: 256, frameSize: 1024, headroom: HEADROOM }))
    const batch = filled(pool)
    const config = steadyTunnel(kind, outer, 'zero')
    const encap = new Encap(pool, new StageCounters('encap'), config)
    const decap = new Decap(pool, new StageCounters('decap'), config, { anyPeer: true, keep: false, anyInner: false })
    return each(batches * 256, () => {
      for (let i = 0; i < batches; i++) {
        encap.run(batch)
        decap.run(batch)
      }
    })
  }
  const packets = Array.from({ length: 256 }, () => Buffer.from(frameTemplate(4)))
  const plain = new Plain()
  await bench.ask({
    name: 'a 64-byte packet into the tunnel and out of it',
    unit: 'ns',
    better: 'less',
    contenders: [
      {
        name: 'Buffer.concat and objects, VXLAN over IPv4',
        measure: each(batches * 256, () => {
          for (let i = 0; i < batches; i++)
            for (const packet of packets)
              if (plain.decap(plain.encap(packet, 0, 50_000)).length !== packet.length)
                throw new Error('another packet')
        }),
      },
      { name: 'Encap and Decap, VXLAN over IPv4', measure: stages('vxlan', 4) },
      { name: 'Encap and Decap, GENEVE over IPv4', measure: stages('geneve', 4) },
      { name: 'Encap and Decap, VXLAN over IPv6', measure: stages('vxlan', 6) },
    ],
  })
}

/** Both legs, in random order of flows. */
async function there(bench: Bench, flows: number): Promise<void> {
  const packets = bench.short ? 50_000 : 1_000_000
  const steady = (kind: 'geneve' | 'vxlan', outerChecksum: 'auto' | 'zero') => {
    const path = new Steady({ kind, outer: 4, inner: 4, flows, outerChecksum })
    // Enters all flows, as near as random order does.
    path.run(bench.short ? packets : flows * 4)
    return path
  }
  const vxlan = steady('vxlan', 'zero')
  const geneve = steady('geneve', 'auto')
  const plain = new Plain()
  const order = Int32Array.from({ length: packets }, (_, i) => ((Math.imul(i, 0x9e3779b1) >>> 8) * flows) / 0x1000000)
  await bench.ask({
    name: `a 64-byte packet to the endpoint and back, ${flows.toLocaleString('en-US')} flows in random order`,
    unit: 'ns',
    better: 'less',
    contenders: [
      { name: 'Buffer.concat, objects and a Map, VXLAN', measure: each(packets, () => plain.run(order)) },
      { name: 'Forwarder, VXLAN', measure: each(packets, () => vxlan.run(packets)) },
      { name: 'Forwarder, GENEVE with outer checksum', measure: each(packets, () => geneve.run(packets)) },
      {
        name: 'of these two, making and turning packets',
        rival: true,
        measure: each(packets, () => {
          for (let i = 0; i < packets; i += 256) vxlan.idle()
        }),
      },
    ],
  })
}

async function allocation(bench: Bench): Promise<void> {
  const packets = 2560
  const flows = bench.short ? 1000 : 1_000_000
  const steady = new Steady({ kind: 'vxlan', outer: 4, inner: 4, flows, outerChecksum: 'zero' })
  const plain = new Plain()
  const order = Int32Array.from({ length: packets }, (_, i) => i % 1000)
  steady.run(4 * flows)
  for (let i = 0; i < 100; i++) {
    steady.run(packets)
    plain.run(order)
  }
  await bench.ask({
    name: `heap that such a packet allocates, ${flows.toLocaleString('en-US')} flows`,
    unit: 'bytes',
    better: 'less',
    resolution: 1,
    contenders: [
      { name: 'Buffer.concat, objects and a Map, 1,000 flows', measure: heap(packets, () => plain.run(order)) },
      { name: 'Forwarder', measure: heap(packets, () => steady.run(packets)) },
    ],
  })
}

/** A batch of classified frames. */
function filled(pool: Pool): Batch {
  const batch = new Batch()
  const template = frameTemplate(4)
  while (batch.room > 0) {
    const frame = pool.alloc()
    const start = pool.start[frame]
    pool.bytes.set(template, start)
    pool.length[frame] = template.length
    pool.network[frame] = start + 14
    pool.hash[frame] = Math.imul(frame, 0x9e3779b1)
    batch.push(frame)
  }
  return batch
}

interface Flow {
  port: number
  packets: number
  bytes: number
  lastSeen: number
}

/** The straightforward way: VXLAN over IPv4 only, and no more checks than it needs to work. */
class Plain {
  private readonly flows = new Map<string, Flow>()
  private readonly template = Buffer.from(frameTemplate(4))

  /** So many packets there and back, of the flows in `order`. */
  run(order: Int32Array): void {
    let returned = 0
    for (const flow of order) {
      const packet = Buffer.from(this.template)
      packet.writeUInt32BE(0x0a000000 | flow, 26)
      if (this.back(this.toward(packet)) !== undefined) returned++
    }
    if (returned !== order.length) throw new Error(`${returned} of ${order.length} packets returned`)
  }

  private toward(packet: Buffer): Buffer {
    const { key, tos } = this.parse(packet)
    let flow = this.flows.get(key)
    if (flow === undefined) {
      flow = { port: 49_152 + (this.flows.size & 0x3fff), packets: 0, bytes: 0, lastSeen: 0 }
      this.flows.set(key, flow)
    }
    flow.packets++
    flow.bytes += packet.length
    flow.lastSeen = performance.now()
    return this.encap(packet, tos, flow.port)
  }

  private back(outer: Buffer): Buffer | undefined {
    const inner = this.decap(outer)
    return this.flows.has(this.parse(inner).key) ? inner : undefined
  }

  private parse(packet: Buffer): { key: string; tos: number } {
    const view = new DataView(packet.buffer, packet.byteOffset, packet.length)
    const header = { source: view.getUint32(26), destination: view.getUint32(30), protocol: view.getUint8(23) }
    const transport = 14 + (view.getUint8(14) & 15) * 4
    const ports = { source: view.getUint16(transport), destination: view.getUint16(transport + 2) }
    const key = `${header.protocol} ${header.source}:${ports.source} ${header.destination}:${ports.destination}`
    return { key, tos: view.getUint8(15) }
  }

  encap(packet: Buffer, tos: number, port: number): Buffer {
    const header = Buffer.alloc(50)
    const view = new DataView(header.buffer, header.byteOffset, header.length)
    view.setUint32(0, 0x02000000)
    view.setUint16(12, 0x0800)
    view.setUint16(14, 0x4500 | tos)
    view.setUint16(16, 36 + packet.length)
    view.setUint16(20, 0x4000)
    view.setUint16(22, 0x4011)
    view.setUint32(26, 0x0a080001)
    view.setUint32(30, 0x0a080002)
    let sum = 0
    for (let at = 14; at < 34; at += 2) sum += view.getUint16(at)
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
    view.setUint16(24, ~sum)
    view.setUint16(34, port)
    view.setUint16(36, 4789)
    view.setUint16(38, 16 + packet.length)
    view.setUint32(42, 0x08000000)
    view.setUint32(46, 77 << 8)
    return Buffer.concat([header, packet])
  }

  decap(outer: Buffer): Buffer {
    const view = new DataView(outer.buffer, outer.byteOffset, outer.length)
    const ip = { version: view.getUint8(14) >> 4, protocol: view.getUint8(23), length: view.getUint16(16) }
    const udp = { destination: view.getUint16(36), length: view.getUint16(38) }
    const vxlan = { flags: view.getUint8(42), vni: view.getUint32(46) >>> 8 }
    let sum = 0
    for (let at = 14; at < 34; at += 2) sum += view.getUint16(at)
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
    if (sum !== 0xffff || ip.version !== 4 || ip.protocol !== 17 || udp.destination !== 4789)
      throw new Error('no VXLAN')
    if (vxlan.flags !== 8 || vxlan.vni !== 77) throw new Error('another network')
    return outer.subarray(50, 14 + ip.length)
  }
}
