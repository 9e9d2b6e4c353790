// AF_XDP against the kernel's own stack at the other end of veths: packets whole, nothing copied, every frame accounted for,
// interfaces left as found.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { everything, tunnelPackets } from '../../src/control/xdp-programs.ts'
import { openXdpUplink } from '../../src/control/xdp-uplink.ts'
import { CAPABILITY } from '../../src/device/device.ts'
import { XdpDevice } from '../../src/device/xdp.ts'
import { DROP } from '../../src/drop.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { createLivePool, umemOf } from '../../src/memory/live.ts'
import { GSO, HEADROOM, OFFLOAD, Pool, type PoolHandle, SMALL_HEADROOM } from '../../src/memory/pool.ts'
import { Assembler, XDP_PASS } from '../../src/os/assembler.ts'
import { attachXdp, loadXdp } from '../../src/os/bpf.ts'
import {
  AF,
  addressOf,
  bind,
  close,
  interfaceIndex,
  must,
  POLL,
  poll,
  read,
  SOCK,
  setsockopt,
  socket,
} from '../../src/os/libc.ts'
import { deleteLink, linkInfo } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, inNamespace, ip, ipBatch } from '../../src/os/netns.ts'
import { openXdp, steerToSockets, type XdpHandle, type XdpOptions, xdpStatistics } from '../../src/os/xdp.ts'
import { address, frame as build, type Inner } from '../pipeline/packets.ts'
import { plainSum } from '../pipeline/super.ts'
import { said } from '../processes.ts'
import { missing, Probe, runIn, start, title } from './support.ts'

const SMALL = 1024
const LARGE = 32
const LEFT = 'dtD-left'
const MID = 'dtD-mid'
const RIGHT = 'dtD-right'
const LEFT4 = '10.92.0.1'
const RIGHT4 = '10.92.0.2'
const LEFT6 = 'fd92::1'
const RIGHT6 = 'fd92::2'

// left l0 ── m0 mid m1 ── r0 right
function topology(): void {
  for (const name of [LEFT, MID, RIGHT]) {
    deleteNamespace(name)
    createNamespace(name)
  }
  ipBatch([
    `link add l0 netns ${LEFT} type veth peer name m0 netns ${MID}`,
    `link add r0 netns ${RIGHT} type veth peer name m1 netns ${MID}`,
  ])
  const quiet = (name: string) => `link set ${name} addrgenmode none up`
  ipBatch([`address add ${LEFT4}/24 dev l0`, `address add ${LEFT6}/64 dev l0 nodad`, quiet('l0')], LEFT)
  ipBatch([`address add ${RIGHT4}/24 dev r0`, `address add ${RIGHT6}/64 dev r0 nodad`, quiet('r0')], RIGHT)
  ipBatch([quiet('m0'), quiet('m1')], MID)
  // Everybody knows everybody, so that no test waits for ARP.
  for (const [here, name, there, peer, addresses] of [
    [LEFT, 'l0', RIGHT, 'r0', [RIGHT4, RIGHT6]],
    [RIGHT, 'r0', LEFT, 'l0', [LEFT4, LEFT6]],
  ] as const) {
    const { mac } = linkInfo(peer, there)
    ipBatch(
      addresses.map(to => `neighbour replace ${to} lladdr ${mac} dev ${name}`),
      here,
    )
  }
  // The kernel tells of carriers when it comes to it.
  for (const [namespace, name] of [
    [LEFT, 'l0'],
    [MID, 'm0'],
    [MID, 'm1'],
    [RIGHT, 'r0'],
  ])
    eventually(() => /state UP/.test(ip(['link', 'show', name], namespace)) || undefined)
}

/** What this returns, as soon as it returns something and does not throw. */
function eventually<T>(act: () => T | undefined): T {
  for (const end = Date.now() + 20_000; ; ) {
    try {
      const result = act()
      if (result !== undefined) return result
      if (Date.now() > end) throw new Error('it never came to pass')
    } catch (error) {
      if (Date.now() > end) throw error
    }
  }
}

const ethtool = (namespace: string, ...args: string[]) =>
  inNamespace(namespace, () => execFileSync('ethtool', args, { encoding: 'utf8' }))

/** What others see of a veth: its features and programs. */
const features = (namespace: string, name: string) =>
  ethtool(namespace, '-k', name) + ip(['-d', 'link', 'show', name], namespace)

/** A pool and devices on it, with the accounts that must balance. */
class Rig {
  readonly handle: PoolHandle = createLivePool({
    frames: SMALL + LARGE,
    frameSize: 4096,
    headroom: HEADROOM,
    small: SMALL,
  })
  readonly pool = new Pool(this.handle)
  readonly batch = new Batch()
  readonly devices: XdpDevice[] = []
  private readonly closers: (() => void)[] = []

  open(name: string, options: Partial<XdpOptions> = {}, namespace = MID) {
    const receive = options.receive ?? false
    const handle = openXdp(umemOf(this.handle), { namespace, interface: name, receive, ringSize: 256, ...options })
    const counters = new StageCounters(name)
    const device = new XdpDevice(this.pool, counters, handle)
    this.devices.push(device)
    return { handle, counters, device }
  }

  steer(name: string, sockets: XdpHandle[], code = everything, namespace = MID) {
    const steering = steerToSockets({ namespace, interface: name, sockets }, code)
    this.closers.push(steering.close)
    return steering
  }

  /** Waits for a datagram over IPv4 and returns its frame, which is in the batch; the interface may have something of its own to say, too (MLD). */
  datagram(handle: XdpHandle, device: XdpDevice): number {
    for (;;) {
      expect(poll(addressOf(Int32Array.of(handle.fd, POLL.IN)), 1, 10_000)).toBe(1)
      const frames = [...this.batch.frames.subarray(0, device.receive(this.batch))]
      const { bytes, start } = this.pool
      const frame = frames.find(one => bytes[start[one] + 12] === 8 && bytes[start[one] + 14 + 9] === 17)
      if (frame !== undefined) return frame
      this.pool.freeAll(this.batch)
    }
  }

  /** Puts a frame with these bytes into the batch. */
  put(bytes: Uint8Array, large = false): number {
    const { pool } = this
    const frame = large ? pool.alloc() : pool.allocSmall()
    pool.bytes.set(bytes, pool.start[frame])
    pool.length[frame] = bytes.length
    this.batch.push(frame)
    return frame
  }

  close(): void {
    for (const closer of this.closers) closer()
    for (const device of this.devices) device.close()
    expect([this.pool.availableSmall, this.pool.available]).toEqual([SMALL, LARGE])
  }
}

/** What a raw socket of the other end sees. */
class Wire {
  private readonly fd: number
  private readonly bytes = new Uint8Array(4096)
  private readonly waiting: Int32Array

  constructor(namespace: string, name: string) {
    this.fd = inNamespace(namespace, () => {
      const fd = must(socket(AF.PACKET, SOCK.RAW | SOCK.NONBLOCK, 0), 'socket', 'packet')
      const sockaddr = Buffer.alloc(20)
      sockaddr.writeUInt16LE(AF.PACKET)
      sockaddr.writeUInt16BE(3, 2)
      sockaddr.writeInt32LE(interfaceIndex(name), 4)
      // PACKET_IGNORE_OUTGOING
      must(setsockopt(fd, 263, 23, 1), 'setsockopt', name)
      must(bind(fd, sockaddr), 'bind', name)
      return fd
    })
    this.waiting = Int32Array.of(this.fd, POLL.IN)
  }

  next(timeoutMs = 10_000): Uint8Array | undefined {
    if (poll(addressOf(this.waiting), 1, timeoutMs) <= 0) return undefined
    return this.bytes.slice(0, read(this.fd, addressOf(this.bytes), this.bytes.length))
  }

  /** True when this packet comes, maybe behind others. */
  saw(packet: Uint8Array, timeoutMs = 10_000): boolean {
    for (;;) {
      const next = this.next(timeoutMs)
      if (next === undefined) return false
      if (Buffer.compare(next, packet) === 0) return true
    }
  }

  close(): void {
    close(this.fd)
  }
}

const macs = () => ({ fromMac: linkInfo('l0', LEFT).mac, toMac: linkInfo('r0', RIGHT).mac })
const row = (counters: StageCounters, column: keyof typeof COLUMN) => counters.row[COLUMN[column]]

describe.skipIf(missing !== '')(title('AF_XDP'), () => {
  let rig: Rig
  beforeEach(() => {
    topology()
    rig = new Rig()
  })
  afterAll(() => [LEFT, MID, RIGHT].forEach(deleteNamespace))

  /** Carries packets between two devices while `work` lasts. */
  async function carry<T>(a: XdpDevice, b: XdpDevice, work: Promise<T>): Promise<T> {
    let done = false
    const end = work.finally(() => (done = true))
    end.catch(() => {})
    const fds = Int32Array.of(a.fd, POLL.IN, b.fd, POLL.IN)
    while (!done) {
      let moved = 0
      for (const [from, to] of [
        [a, b],
        [b, a],
      ]) {
        moved += from.receive(rig.batch)
        to.transmit(rig.batch)
      }
      if (moved === 0) poll(addressOf(fds), 2, 1)
      await new Promise(resolve => setImmediate(resolve))
    }
    return end
  }

  it('carries TCP and UDP between two interfaces of one UMEM without copying a byte', async () => {
    ethtool(LEFT, '-K', 'l0', 'tx', 'off')
    ethtool(RIGHT, '-K', 'r0', 'tx', 'off')
    const a = rig.open('m0', { receive: true })
    const b = rig.open('m1', { receive: true, share: a.handle })
    rig.steer('m0', [a.handle])
    rig.steer('m1', [b.handle])
    const iperf = async (...args: string[]) => {
      const listening = inNamespace(RIGHT, () => spawn('iperf3', ['-s', '-1', '--forceflush']))
      const gone = once(listening, 'close')
      try {
        await said(listening.stdout, 'listening')
        return JSON.parse(await runIn(LEFT, 'iperf3', '-J', '--connect-timeout', '30000', ...args)).end
      } finally {
        listening.kill()
        await gone
      }
    }
    const transfer = async () => {
      const tcp = await iperf('-c', RIGHT4, '-n', '20M')
      const udp = await iperf('-c', RIGHT6, '-u', '-l', '1000', '-b', '20M', '-n', '1M')
      expect(udp.sum.packets - udp.sum.lost_packets).toBeGreaterThan(100)
      return tcp.sum_received.bytes
    }
    expect(await carry(a.device, b.device, transfer())).toBeGreaterThan(10e6)
    for (const [from, to] of [
      [a, b],
      [b, a],
    ]) {
      expect(row(from.counters, 'COPIED_BYTES')).toBe(0)
      const full = to.counters.drops(DROP.DEVICE_FULL)
      expect(row(from.counters, 'IN_PACKETS')).toBe(row(to.counters, 'OUT_PACKETS') + to.device.held + full)
      expect(to.counters.drops()).toBe(full)
    }
    expect(row(a.counters, 'IN_BYTES')).toBeGreaterThan(10e6)
    rig.close()
  })

  it('receives from a veth what its sender left to the device as it is, unless the sender completes checksums itself', () => {
    const { handle, device } = rig.open('m0', { receive: true })
    rig.steer('m0', [handle])
    const probe = new Probe(LEFT, undefined, RIGHT4, 9)
    const udp = () => {
      probe.send()
      const frame = rig.datagram(handle, device)
      expect(rig.pool.headroomOf(frame)).toBe(SMALL_HEADROOM)
      expect(rig.pool.offload[frame]).toBe(0)
      const at = rig.pool.start[frame] + 14 + 20
      const bytes = Array.from(rig.pool.bytes.subarray(at, rig.pool.start[frame] + rig.pool.length[frame]))
      rig.pool.freeAll(rig.batch)
      return bytes
    }
    const pseudo = plainSum([...address(LEFT4), ...address(RIGHT4), 0, 17, 0, 12])
    const partial = udp()
    expect((partial[6] << 8) | partial[7]).toBe(pseudo)
    ethtool(LEFT, '-K', 'l0', 'tx', 'off')
    expect(plainSum([...udp(), ...address(LEFT4), ...address(RIGHT4), 0, 17, 0, 12])).toBe(0xffff)
    probe.close()
    rig.close()
  })

  it('transmits without a program, changing nothing of the interface, and the kernel completes checksums', () => {
    const before = [features(MID, 'm1'), features(RIGHT, 'r0')]
    const { counters, device } = rig.open('m1')
    expect([features(MID, 'm1'), features(RIGHT, 'r0')]).toEqual(before)
    expect(device.capabilities).toBe(CAPABILITY.CHECKSUM)
    expect(device.fd).toBe(-1)
    const end = new Wire(RIGHT, 'r0')
    const packet = build({ from: LEFT4, to: RIGHT4, ...macs(), data: [1, 2, 3] })
    for (let i = 0; i < 3; i++) rig.put(packet)
    device.transmit(rig.batch)
    for (let i = 0; i < 3; i++) expect(end.next()).toEqual(packet)
    expect(row(counters, 'CALLS')).toBe(1)
    expect([row(counters, 'OUT_PACKETS'), row(counters, 'OUT_BYTES')]).toEqual([3, 3 * packet.length])

    // Without the device's help the kernel computes it, so that it can be seen.
    ethtool(MID, '-K', 'm1', 'tx', 'off')
    for (const version of [4, 6] as const) {
      const inner: Inner = version === 4 ? { from: LEFT4, to: RIGHT4 } : { version, from: LEFT6, to: RIGHT6 }
      const whole = build({ ...inner, ...macs(), data: [5, 6, 7, 8, 9] })
      const header = 14 + (version === 4 ? 20 : 40)
      const unfinished = whole.slice()
      const pseudo = plainSum([...address(inner.from!), ...address(inner.to!), 0, 17, 0, 13])
      unfinished.set([pseudo >> 8, pseudo & 255], header + 6)
      const frame = rig.put(unfinished)
      rig.pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
      rig.pool.checksumStart[frame] = rig.pool.start[frame] + header
      rig.pool.checksumOffset[frame] = 6
      device.transmit(rig.batch)
      expect(end.next()).toEqual(whole)
    }
    expect(counters.drops()).toBe(0)
    end.close()
    rig.close()
    expect(features(RIGHT, 'r0')).toBe(before[1])
  })

  it('completes checksums in software where it is told that the interface cannot', () => {
    const { device } = rig.open('m1', { softwareChecksums: true })
    const end = new Wire(RIGHT, 'r0')
    const whole = build({ from: LEFT4, to: RIGHT4, ...macs() })
    const unfinished = whole.slice()
    const pseudo = plainSum([...address(LEFT4), ...address(RIGHT4), 0, 17, 0, 13])
    unfinished.set([pseudo >> 8, pseudo & 255], 14 + 20 + 6)
    const frame = rig.put(unfinished)
    rig.pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
    rig.pool.checksumStart[frame] = rig.pool.start[frame] + 34
    rig.pool.checksumOffset[frame] = 6
    device.transmit(rig.batch)
    expect(end.next()).toEqual(whole)
    end.close()
    rig.close()
  })

  it('copies what lies in a large frame, and refuses what it does not carry', () => {
    const { counters, device } = rig.open('m1')
    const end = new Wire(RIGHT, 'r0')
    const { pool } = rig
    const data = (length: number) => Uint8Array.from({ length }, (_, i) => i)
    const packet = build({ from: LEFT4, to: RIGHT4, ...macs(), data: data(1400) })
    expect(device.fits(rig.put(packet, true))).toBe(true)
    device.transmit(rig.batch)
    expect(end.next()).toEqual(packet)
    expect(row(counters, 'COPIED_BYTES')).toBe(packet.length)

    // What fills a small frame but for what is the kernel's and the alignment's, and one byte more.
    const most = build({ from: LEFT4, to: RIGHT4, ...macs(), data: data(2048 - 32 - 42) })
    ipBatch(['link set m1 mtu 2100'], MID)
    ipBatch(['link set r0 mtu 2100'], RIGHT)
    expect(device.fits(rig.put(most, true))).toBe(true)
    device.transmit(rig.batch)
    expect(end.next()).toEqual(most)
    const over = rig.put(build({ from: LEFT4, to: RIGHT4, ...macs(), data: data(2048 - 32 - 41) }), true)
    expect(device.fits(over)).toBe(false)
    device.transmit(rig.batch)
    expect(counters.drops(DROP.OVERSIZED)).toBe(1)

    const gso = rig.put(packet)
    pool.gso[gso] = GSO.UDP
    expect(device.fits(gso)).toBe(false)
    const close = rig.put(packet)
    pool.start[close] = pool.slot(close) + 23
    const beyond = rig.put(packet)
    pool.start[beyond] = pool.limit(beyond) - packet.length + 1
    const short = rig.put(packet)
    pool.length[short] = 13
    for (const [from, offset] of [
      [0, 6],
      [34, packet.length - 35],
      [packet.length, 0],
    ]) {
      const frame = rig.put(packet)
      pool.offload[frame] = OFFLOAD.NEEDS_CHECKSUM
      pool.checksumStart[frame] = pool.start[frame] + from
      pool.checksumOffset[frame] = offset
    }
    device.transmit(rig.batch)
    expect(
      [DROP.OFFLOAD, DROP.NO_HEADROOM, DROP.OVERSIZED, DROP.ETHERNET_TRUNCATED].map(r => counters.drops(r)),
    ).toEqual([4, 1, 2, 1])
    expect(end.next(20)).toBe(undefined)
    end.close()
    rig.close()
  })

  it('holds what a link that is down does not take, drops what its ring has no room for, and goes on when it is up', () => {
    const { counters, device, handle } = rig.open('m1', { ringSize: 64 })
    const end = new Wire(RIGHT, 'r0')
    const packet = build({ from: LEFT4, to: RIGHT4, ...macs() })
    ip(['link', 'set', 'm1', 'down'], MID)
    for (let i = 0; i < 100; i++) rig.put(packet)
    device.transmit(rig.batch)
    expect([row(counters, 'OUT_PACKETS'), device.held, counters.drops(DROP.DEVICE_FULL)]).toEqual([0, 64, 36])
    expect(row(counters, 'ERRORS')).toBe(1)
    device.receive(rig.batch)
    expect(row(counters, 'ERRORS')).toBe(1)
    ip(['link', 'set', 'm1', 'up'], MID)
    device.receive(rig.batch)
    expect([row(counters, 'OUT_PACKETS'), device.held, counters.drops()]).toEqual([64, 0, 36])
    for (let i = 0; i < 64; i++) expect(end.next()).toEqual(packet)
    expect(xdpStatistics(handle.fd).txInvalid).toBe(0)
    end.close()
    rig.close()
  })

  it('says once that its interface is gone, and gives every frame back', () => {
    const { counters, device, handle } = rig.open('m1', { receive: true })
    const steering = rig.steer('m1', [handle])
    const packet = build({ from: LEFT4, to: RIGHT4, ...macs() })
    deleteLink('m1', MID)
    for (let i = 0; i < 2; i++) {
      rig.put(packet)
      device.transmit(rig.batch)
      expect([device.exhausted, device.held, counters.drops(DROP.DEVICE_ERROR)]).toEqual([true, 0, i + 1])
    }
    expect(row(counters, 'ERRORS')).toBe(1)
    expect(device.receive(rig.batch)).toBe(0)
    steering.close()
    rig.close()
  })

  it('receives no packet that a small frame does not hold; the kernel counts it', () => {
    const { handle, device } = rig.open('m0', { receive: true })
    ipBatch(['link set m0 mtu 3000'], MID)
    ipBatch(['link set l0 mtu 3000'], LEFT)
    rig.steer('m0', [handle])
    const large = new Probe(LEFT, undefined, RIGHT4, 9, { size: 1664 - 42 + 4 })
    const just = new Probe(LEFT, undefined, RIGHT4, 9, { size: 1664 - 42 - 2 })
    large.send()
    just.send()
    expect(rig.pool.length[rig.datagram(handle, device)]).toBe(1662)
    expect(xdpStatistics(handle.fd).rxDropped).toBe(1)
    rig.pool.freeAll(rig.batch)
    large.close()
    just.close()
    rig.close()
  })

  for (const version of [4, 6] as const)
    it(`takes only the tunnel's packets from an uplink, IPv${version}; the kernel keeps the rest`, () => {
      const [from, to] = version === 4 ? [LEFT4, '10.92.0.3'] : [LEFT6, 'fd92::3']
      ipBatch([`address add ${to}/${version === 4 ? 24 : 64} dev m0${version === 6 ? ' nodad' : ''}`], MID)
      const { device, handle } = rig.open('m0', { receive: true })
      rig.steer('m0', [handle], map => tunnelPackets(map, { address: Uint8Array.from(address(to)), port: 4789 }))
      const kernel = new Wire(MID, 'm0')
      const sender = openXdp(umemOf(rig.handle), { namespace: LEFT, interface: 'l0', receive: false, share: handle })
      const out = new XdpDevice(rig.pool, new StageCounters('l0'), sender)
      rig.devices.push(out)
      const seen = (inner: Inner): 'socket' | 'kernel' => {
        const ends = { fromMac: linkInfo('l0', LEFT).mac, toMac: linkInfo('m0', MID).mac }
        const packet = build({ version, from, to, ...ends, port: 4789, ...inner })
        rig.put(packet)
        out.transmit(rig.batch)
        const fds = Int32Array.of(handle.fd, POLL.IN)
        // The kernel takes a tag off before anybody looks.
        const untagged = build({ version, from, to, ...ends, port: 4789, ...inner, tags: [] })
        const where = eventually(() => {
          if (poll(addressOf(fds), 1, 20) > 0) return 'socket'
          return kernel.saw(untagged, 0) ? 'kernel' : undefined
        })
        if (where === 'socket') {
          expect(device.receive(rig.batch)).toBe(1)
          const [frame] = rig.batch.frames
          const at = rig.pool.start[frame]
          expect(rig.pool.bytes.slice(at, at + rig.pool.length[frame])).toEqual(packet)
          rig.pool.freeAll(rig.batch)
          expect(kernel.saw(packet, 0)).toBe(false)
        }
        expect(poll(addressOf(fds), 1, 0)).toBe(0)
        return where
      }
      expect(seen({})).toBe('socket')
      expect(seen({ data: Array(1400).fill(7) })).toBe('socket')
      expect(seen({ data: [] })).toBe('socket')
      expect(seen({ port: 4790 })).toBe('kernel')
      expect(seen({ to: version === 4 ? '10.92.0.4' : 'fd92::4' })).toBe('kernel')
      expect(seen({ protocol: 6 })).toBe('kernel')
      expect(seen({ fragment: version === 4 ? 0x2000 : 1 })).toBe('kernel')
      expect(seen({ fragment: version === 4 ? 3 : 3 << 3 })).toBe('kernel')
      expect(seen({ body: [0x12, 0xb5, 0x12, 0xb5, 0, 8, 0] })).toBe('kernel')
      if (version === 4) expect(seen({ options: 4 })).toBe('kernel')
      expect(seen({ tags: [0x8100, 5] })).toBe('kernel')
      kernel.close()
      rig.close()
    })

  it('has a queue of the uplink for each worker, as far as there are queues', () => {
    ethtool(MID, '-L', 'm0', 'rx', '2', 'tx', '2')
    ethtool(LEFT, '-L', 'l0', 'rx', '2', 'tx', '2')
    ipBatch(['address add 10.92.0.3/24 dev m0'], MID)
    ipBatch([`neighbour replace 10.92.0.3 lladdr ${linkInfo('m0', MID).mac} dev l0`], LEFT)
    const receive = { address: Uint8Array.from(address('10.92.0.3')), port: 4789 }
    const uplink = openXdpUplink({ namespace: MID, interface: 'm0', pool: rig.handle, workers: 3, receive })
    expect(uplink.attach).toBe('native')
    expect(uplink.sockets.map(({ name }) => name)).toEqual(['m0:0', 'm0:1'])
    // Each worker hands out small frames of its own.
    const half = SMALL / 2
    const pools = [0, 1].map(i => new Pool(rig.handle, SMALL + i, 1, i * half, half))
    const devices = uplink.sockets.map((handle, i) => new XdpDevice(pools[i], new StageCounters(handle.name), handle))
    const fds = Int32Array.of(devices[0].fd, POLL.IN, devices[1].fd, POLL.IN)
    const got = [0, 0]
    for (let flow = 0; flow < 32; flow++) {
      const probe = new Probe(LEFT, undefined, '10.92.0.3', 4789)
      probe.send()
      expect(poll(addressOf(fds), 2, 10_000)).toBe(1)
      devices.forEach((device, i) => {
        got[i] += device.receive(rig.batch)
        pools[i].freeAll(rig.batch)
      })
      probe.close()
    }
    expect(got[0] + got[1]).toBe(32)
    expect(Math.min(...got)).toBeGreaterThan(0)

    const end = new Wire(LEFT, 'l0')
    devices.forEach((device, i) => {
      const packet = build({ from: '10.92.0.3', to: LEFT4, toMac: linkInfo('l0', LEFT).mac, data: [i] })
      const frame = pools[i].allocSmall()
      expect(frame).toBeGreaterThanOrEqual(0)
      pools[i].bytes.set(packet, pools[i].start[frame])
      pools[i].length[frame] = packet.length
      rig.batch.push(frame)
      device.transmit(rig.batch)
      expect(end.saw(packet)).toBe(true)
    })
    end.close()
    uplink.close()
    expect(ip(['link', 'show', 'm0'], MID)).not.toContain('xdp')
    for (const device of devices) device.close()
    expect(pools.map(pool => pool.availableSmall)).toEqual([half, half])
    rig.close()
  })

  it('transmits on an uplink without a program, and leaves nothing behind when a socket is not to be had', () => {
    const options = { namespace: MID, interface: 'm1', pool: rig.handle, workers: 2 }
    const uplink = openXdpUplink(options)
    expect([uplink.sockets.length, uplink.attach]).toEqual([1, undefined])
    expect(() => openXdpUplink(options)).toThrow(/m1 queue 0: another AF_XDP socket/)
    for (const { fd } of uplink.sockets) close(fd)
    const other = loadXdp('somebody', new Assembler().exit(XDP_PASS).assemble())
    const link = inNamespace(MID, () => must(attachXdp(other, interfaceIndex('m1'), 'native'), 'link', 'm1'))
    const receive = { address: Uint8Array.of(10, 92, 0, 3), port: 4789 }
    expect(() => openXdpUplink({ ...options, receive })).toThrow(/somebody/)
    close(link)
    close(other)
    // The queue is free again.
    for (const { fd } of eventually(() => openXdpUplink(options)).sockets) close(fd)
    rig.close()
  })

  it('leaves an interface with a program of someone else alone, and names it', () => {
    const other = loadXdp('somebody', new Assembler().exit(XDP_PASS).assemble())
    const link = inNamespace(MID, () => must(attachXdp(other, interfaceIndex('m0'), 'native'), 'link', 'm0'))
    const { handle } = rig.open('m0', { receive: true })
    const before = features(MID, 'm0')
    expect(() => rig.steer('m0', [handle])).toThrow(/m0 has an XDP program already \(id \d+, somebody\)/)
    expect(features(MID, 'm0')).toBe(before)
    close(link)
    close(other)
    rig.close()
  })

  it('detaches with the process, also when it is killed, and leaves both ends as found', async () => {
    const before = [features(MID, 'm0'), features(LEFT, 'l0')]
    rig.close()
    for (const end of ['stop', 'kill'] as const) {
      const child = await start<{ attach: string }>('xdp-child', [MID, 'm0'], [])
      expect(ip(['link', 'show', 'm0'], MID)).toMatch(/prog\/xdp id/)
      expect([features(MID, 'm0'), features(LEFT, 'l0')]).not.toEqual(before)
      await child[end]()
      expect([features(MID, 'm0'), features(LEFT, 'l0')]).toEqual(before)
    }
  })

  it('names what cannot be opened', () => {
    const area = umemOf(rig.handle)
    const options = { namespace: MID, receive: false }
    expect(() => openXdp(area, { ...options, interface: 'none' })).toThrow(/interface none does not exist/)
    expect(() => openXdp(area, { ...options, interface: 'm0', queue: 7 })).toThrow(/m0 queue 7: .* no such queue/)
    expect(() => openXdp(area, { ...options, interface: 'm0', mode: 'zero-copy' })).toThrow(/no zero-copy/)
    const { handle } = rig.open('m0')
    expect(() => openXdp(area, { ...options, interface: 'm0' })).toThrow(/another AF_XDP socket has this queue/)
    expect(handle.zeroCopy).toBe(false)
    rig.close()
  })
})
