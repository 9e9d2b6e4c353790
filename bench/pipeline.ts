// What a small packet costs in memory, without any device: into the tunnel and out of it, and all the way to the
// endpoint and back, against the same done in the straightforward way: an object a header, a buffer a packet, a Map of flows.

import { once } from 'node:events'
import { extname } from 'node:path'
import { Worker } from 'node:worker_threads'
import { frameTemplate, Steady } from '../test/pipeline/steady.ts'
import { type Bench, type Contender, each, heap } from './harness.ts'
import type { ThreadInput } from './pipeline-thread.ts'

export async function run(bench: Bench): Promise<void> {
  await tunnel(bench)
  for (const flows of bench.short ? [1000] : [1000, 1_000_000]) await there(bench, flows)
  await allocation(bench)
}

/** Encapsulation and decapsulation alone. */
async function tunnel(bench: Bench): Promise<void> {
  const count = 256 * (bench.short ? 200 : 4000)
  const packets = Array.from({ length: 256 }, () => Buffer.from(frameTemplate(4)))
  const plain = new Plain()
  const thread = (name: string, kind: 'geneve' | 'vxlan', outer: 4 | 6) =>
    threaded(name, { what: 'tunnel', kind, outer }, count)
  await ask(bench, 'a 64-byte packet into the tunnel and out of it', [
    {
      name: 'Buffer.concat and objects, VXLAN over IPv4',
      measure: each(count, () => {
        for (let i = 0; i < count; i += 256)
          for (const packet of packets)
            if (plain.decap(plain.encap(packet, 0, 50_000)).length !== packet.length) throw new Error('another packet')
      }),
    },
    thread('Encap and Decap, VXLAN over IPv4', 'vxlan', 4),
    thread('Encap and Decap, GENEVE over IPv4', 'geneve', 4),
    thread('Encap and Decap, VXLAN over IPv6', 'vxlan', 6),
  ])
}

/** Both legs, in random order of flows. */
async function there(bench: Bench, flows: number): Promise<void> {
  const packets = bench.short ? 51_200 : 1_024_000
  const plain = new Plain()
  const order = Int32Array.from({ length: packets }, (_, i) => ((Math.imul(i, 0x9e3779b1) >>> 8) * flows) / 0x1000000)
  const thread = (name: string, what: 'there' | 'idle', kind: 'geneve' | 'vxlan') => {
    const outerChecksum = kind === 'vxlan' ? 'zero' : 'auto'
    return threaded(name, { what, kind, outer: 4, inner: 4, flows, outerChecksum }, packets)
  }
  await ask(
    bench,
    `a 64-byte packet to the endpoint and back, ${flows.toLocaleString('en-US')} flows in random order`,
    [
      { name: 'Buffer.concat, objects and a Map, VXLAN', measure: each(packets, () => plain.run(order)) },
      thread('Forwarder, VXLAN', 'there', 'vxlan'),
      thread('Forwarder, GENEVE with outer checksum', 'there', 'geneve'),
      { ...thread('of these two, making and turning packets', 'idle', 'vxlan'), rival: true },
    ],
  )
}

interface Threaded extends Contender {
  thread: Worker
}

/** A contender in a thread of its own, which is compiled in when it first answers. */
function threaded(name: string, input: ThreadInput, packets: number): Threaded {
  const thread = new Worker(new URL(`./pipeline-thread${extname(import.meta.url)}`, import.meta.url), {
    workerData: input,
  })
  let compiled = false
  const answer = async (): Promise<number> => {
    thread.postMessage(packets)
    const [ns] = await once(thread, 'message')
    return ns
  }
  const measure = async () => {
    if (!compiled) await answer()
    compiled = true
    return answer()
  }
  return { name, measure, thread }
}

/** Asks, and ends the threads afterwards. */
async function ask(bench: Bench, name: string, contenders: (Contender | Threaded)[]): Promise<void> {
  try {
    await bench.ask({ name, unit: 'ns', better: 'less', contenders })
  } finally {
    for (const contender of contenders) if ('thread' in contender) await contender.thread.terminate()
  }
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
