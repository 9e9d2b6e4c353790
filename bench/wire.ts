// What the style of wire/ is worth, functions over (bytes, at), against the object a header that one would write first: the
// fields that a packet is classified by, and the headers that it is encapsulated in.

import * as ethernet from '../src/wire/ethernet.ts'
import * as ipv4 from '../src/wire/ipv4.ts'
import * as udp from '../src/wire/udp.ts'
import * as vxlan from '../src/wire/vxlan.ts'
import { type Bench, calls, heap } from './harness.ts'

const PACKETS = 256
const SIZE = 2048
/** Where an inner packet begins, with room before it for the outer headers. */
const INNER = 128
const OUTER = INNER - 50
const SOURCE = 0x0a080001
const TARGET = 0x0a080002

export async function run(bench: Bench): Promise<void> {
  const b = new Uint8Array(new SharedArrayBuffer(PACKETS * SIZE))
  for (let i = 0; i < PACKETS; i++) {
    const at = i * SIZE + INNER
    ethernet.write(b, at, 0x0200, 2, 0x0200, 1, ethernet.ETHERTYPE.IPV4)
    ipv4.write(b, at + 14, ipv4.HEADER, 0, 50, i, 0, 64, ipv4.PROTOCOL.UDP, 0x0a000000 + i, 0x0a800001)
    udp.write(b, at + 34, 1024 + i, 443, 30, 0)
  }
  const time = bench.short ? 0.01 : 0.1
  const reused = new Reused(b)
  same('reads', [readFunctions(b), readObjects(b), reused.read()])
  await bench.ask({
    name: 'classify: length, fragment, five-tuple of a packet',
    unit: 'ns',
    better: 'less',
    contenders: [
      { name: 'an object a header', measure: calls(() => readObjects(b), PACKETS, time) },
      { name: 'the same objects, moved', rival: true, measure: calls(() => reused.read(), PACKETS, time) },
      { name: 'functions', measure: calls(() => readFunctions(b), PACKETS, time) },
    ],
  })
  const writes = [() => writeFunctions(b), () => writeObjects(b), () => reused.write()].map(write => written(b, write))
  same('writes', writes)
  await bench.ask({
    name: 'encapsulate: write Ethernet, IPv4 with checksum, UDP, VXLAN',
    unit: 'ns',
    better: 'less',
    contenders: [
      { name: 'an object a header', measure: calls(() => writeObjects(b), PACKETS, time) },
      { name: 'the same objects, moved', rival: true, measure: calls(() => reused.write(), PACKETS, time) },
      { name: 'functions', measure: calls(() => writeFunctions(b), PACKETS, time) },
    ],
  })
  await bench.ask({
    name: 'heap that both allocate for a packet',
    unit: 'bytes',
    better: 'less',
    resolution: 1,
    contenders: [
      { name: 'an object a header', measure: heap(PACKETS, () => readObjects(b) + writeObjects(b)) },
      { name: 'the same objects, moved', rival: true, measure: heap(PACKETS, () => reused.read() + reused.write()) },
      { name: 'functions', measure: heap(PACKETS, () => readFunctions(b) + writeFunctions(b)) },
    ],
  })
}

/** Throws unless all ways come to the same. */
function same(what: string, sums: number[]): void {
  if (sums.some(sum => sum !== sums[0])) throw new Error(`${what} come to ${sums.join(', ')}`)
}

/** Clears what `write` should write, lets it, and sums up what is there. */
function written(b: Uint8Array, write: () => unknown): number {
  for (let at = 0; at < b.length; at += SIZE) b.fill(0xa5, at, at + INNER)
  write()
  return b.reduce((sum, byte) => (Math.imul(sum, 31) + byte) | 0, 0)
}

function readFunctions(b: Uint8Array): number {
  let all = 0
  for (let at = INNER; at < b.length; at += SIZE) {
    if (ethernet.type(b, at) !== ethernet.ETHERTYPE.IPV4) continue
    const ip = at + ethernet.HEADER
    if (ipv4.isFragment(b, ip)) continue
    const transport = ip + ipv4.headerLength(b, ip)
    all = (all + (ipv4.totalLength(b, ip) ^ ipv4.protocol(b, ip))) | 0
    all = (all + (ipv4.source(b, ip) ^ ipv4.destination(b, ip))) | 0
    all = (all + (udp.sourcePort(b, transport) ^ udp.destinationPort(b, transport))) | 0
  }
  return all
}

function writeFunctions(b: Uint8Array): number {
  for (let at = OUTER; at < b.length; at += SIZE) {
    ethernet.write(b, at, 0x0200, 2, 0x0200, 1, ethernet.ETHERTYPE.IPV4)
    ipv4.write(b, at + 14, ipv4.HEADER, 0, 100, 0, ipv4.DONT_FRAGMENT, 64, ipv4.PROTOCOL.UDP, SOURCE, TARGET)
    udp.write(b, at + 34, 50_000 + (at & 0xff), vxlan.PORT, 80, 0)
    vxlan.write(b, at + 42, 77)
  }
  return 0
}

/** The rival: a view of a header, with an accessor a field. */
class Header {
  view: DataView
  at: number

  constructor(view: DataView, at = 0) {
    this.view = view
    this.at = at
  }
}

class Ethernet extends Header {
  get type(): number {
    return this.view.getUint16(this.at + 12)
  }

  write(target: number, source: number, type: number): void {
    const { view, at } = this
    view.setUint16(at, 0x0200)
    view.setUint32(at + 2, target)
    view.setUint16(at + 6, 0x0200)
    view.setUint32(at + 8, source)
    view.setUint16(at + 12, type)
  }
}

class Ipv4 extends Header {
  get headerLength(): number {
    return (this.view.getUint8(this.at) & 15) * 4
  }

  get totalLength(): number {
    return this.view.getUint16(this.at + 2)
  }

  get fragment(): boolean {
    return (this.view.getUint16(this.at + 6) & 0x3fff) !== 0
  }

  get protocol(): number {
    return this.view.getUint8(this.at + 9)
  }

  get source(): number {
    return this.view.getInt32(this.at + 12)
  }

  get target(): number {
    return this.view.getInt32(this.at + 16)
  }

  write(length: number, source: number, target: number): void {
    const { view, at } = this
    view.setUint16(at, 0x4500)
    view.setUint16(at + 2, length)
    view.setUint32(at + 4, 0x4000)
    view.setUint32(at + 8, 0x40110000)
    view.setUint32(at + 12, source)
    view.setUint32(at + 16, target)
    let sum = 0
    for (let i = at; i < at + 20; i += 2) sum += view.getUint16(i)
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
    view.setUint16(at + 10, ~sum)
  }
}

class Udp extends Header {
  get source(): number {
    return this.view.getUint16(this.at)
  }

  get target(): number {
    return this.view.getUint16(this.at + 2)
  }

  write(source: number, target: number, length: number): void {
    const { view, at } = this
    view.setUint16(at, source)
    view.setUint16(at + 2, target)
    view.setUint16(at + 4, length)
    view.setUint16(at + 6, 0)
  }
}

class Vxlan extends Header {
  write(vni: number): void {
    this.view.setUint32(this.at, 0x08000000)
    this.view.setUint32(this.at + 4, vni << 8)
  }
}

function fields(ip: Ipv4, udp: Udp): number {
  return ((ip.totalLength ^ ip.protocol) + (ip.source ^ ip.target) + (udp.source ^ udp.target)) | 0
}

function readObjects(b: Uint8Array): number {
  const view = (at: number) => new DataView(b.buffer, b.byteOffset + at)
  let all = 0
  for (let at = INNER; at < b.length; at += SIZE) {
    if (new Ethernet(view(at)).type !== 0x0800) continue
    const ip = new Ipv4(view(at + 14))
    if (!ip.fragment) all = (all + fields(ip, new Udp(view(at + 14 + ip.headerLength)))) | 0
  }
  return all
}

function writeObjects(b: Uint8Array): number {
  const view = (at: number) => new DataView(b.buffer, b.byteOffset + at)
  for (let at = OUTER; at < b.length; at += SIZE) {
    new Ethernet(view(at)).write(2, 1, 0x0800)
    new Ipv4(view(at + 14)).write(100, SOURCE, TARGET)
    new Udp(view(at + 34)).write(50_000 + (at & 0xff), 4789, 80)
    new Vxlan(view(at + 42)).write(77)
  }
  return 0
}

/** One object of each kind, moved from packet to packet. */
class Reused {
  private readonly size: number
  private readonly ethernet: Ethernet
  private readonly ip: Ipv4
  private readonly udp: Udp
  private readonly vxlan: Vxlan

  constructor(b: Uint8Array) {
    const view = new DataView(b.buffer, b.byteOffset, b.length)
    this.size = b.length
    this.ethernet = new Ethernet(view)
    this.ip = new Ipv4(view)
    this.udp = new Udp(view)
    this.vxlan = new Vxlan(view)
  }

  read(): number {
    const { ethernet, ip, udp } = this
    let all = 0
    for (let at = INNER; at < this.size; at += SIZE) {
      ethernet.at = at
      if (ethernet.type !== 0x0800) continue
      ip.at = at + 14
      if (ip.fragment) continue
      udp.at = ip.at + ip.headerLength
      all = (all + fields(ip, udp)) | 0
    }
    return all
  }

  write(): number {
    const { ethernet, ip, udp, vxlan } = this
    for (let at = OUTER; at < this.size; at += SIZE) {
      ethernet.at = at
      ip.at = at + 14
      udp.at = at + 34
      vxlan.at = at + 42
      ethernet.write(2, 1, 0x0800)
      ip.write(100, SOURCE, TARGET)
      udp.write(50_000 + (at & 0xff), 4789, 80)
      vxlan.write(77)
    }
    return 0
  }
}
