// Random, mutated and cut frames through both legs, with any offload fields that a device may give: nothing is thrown, no
// frame is lost, every stage accounts for all, and nothing is written outside a frame's slot.

import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { CAPABILITY } from '../../src/device/device.ts'
import { VERDICT } from '../../src/flow/verdict.ts'
import { GSO, OFFLOAD } from '../../src/memory/pool.ts'
import { random } from '../wire/build.ts'
import { FIXTURES } from '../wire/harness.ts'
import {
  frame,
  ICMP,
  ICMPV6,
  type Inner,
  icmpError,
  option,
  PEER,
  POD,
  TCP,
  TUNNEL_ENDS,
  tunnelled,
} from './packets.ts'
import { plain, Rig, type RigOptions, TUNNELS, tunnelConfig } from './rig.ts'
import { build, type Packet, PLAIN, pattern } from './super.ts'

type Random = (below: number) => number

/** The packets of the classic captures among the fixtures; whatever cannot be read is another test's business. */
function captured(): Uint8Array[] {
  const root = new URL('../../fixtures/captures/', import.meta.url)
  const packets: Uint8Array[] = []
  for (const name of readdirSync(root, { recursive: true }).map(String)) {
    if (!name.endsWith('.pcap')) continue
    const file = readFileSync(new URL(name, root))
    const little = file.readUInt32LE(0) === 0xa1b2c3d4
    if (!little && file.readUInt32BE(0) !== 0xa1b2c3d4) continue
    for (let at = 24, n = 0; at + 16 <= file.length && n < 50; n++) {
      const length = little ? file.readUInt32LE(at + 8) : file.readUInt32BE(at + 8)
      packets.push(file.subarray(at + 16, at + 16 + length))
      at += 16 + length
    }
  }
  return packets
}

const inners: Inner[] = [4, 6].flatMap(v => {
  const version = v as 4 | 6
  const icmp = version === 4 ? ICMP : ICMPV6
  return [
    { version },
    { version, protocol: TCP },
    { version, protocol: icmp },
    { version, fragment: version === 4 ? 0x2000 : 1, data: pattern(64) },
    { version, fragment: version === 4 ? 3 : 24, body: [...pattern(64)] },
    { version, protocol: 132, body: [...pattern(30)] },
    { ...icmpError({ version }, version === 4 ? 0x0304 : 0x0200, 60, version === 4 ? PEER.ip4 : PEER.ip6) },
    { version, tags: [0x8100, 7] },
    { version, data: pattern(2000) },
  ]
})

const SEEDS: Uint8Array[] = [
  ...FIXTURES.map(({ hex }) => Uint8Array.from(Buffer.from(hex, 'hex'))),
  ...captured(),
  ...inners.map(frame),
].filter(bytes => bytes.length <= 4000)

const macs = [POD.mac, PEER.mac, 'ff:ff:ff:ff:ff:ff', '02:de:70:00:00:01'].map(mac =>
  mac.split(':').map(byte => Number.parseInt(byte, 16)),
)

function mutated(r: Random, seed: Uint8Array, from = 0): Uint8Array {
  let bytes = Uint8Array.from(seed)
  for (let n = r(4); n > 0; n--) {
    const at = from + r(Math.max(1, Math.min(bytes.length - from, 100)))
    const kind = r(6)
    if (kind === 0) bytes[at] ^= 1 << r(8)
    else if (kind === 1) bytes[at] = r(256)
    else if (kind === 2) bytes[at] = 255 * r(2)
    else if (kind === 3) bytes = bytes.slice(0, Math.max(14, r(bytes.length + 1)))
    else if (kind === 4) bytes = Uint8Array.from([...bytes, ...new Array(r(64)).fill(r(256))])
    else bytes = Uint8Array.from([...bytes.subarray(0, at), ...bytes.subarray(at + r(9))])
  }
  return bytes.length < 14 ? Uint8Array.from([...bytes, ...new Array(14).fill(0)]) : bytes
}

/** Offload fields as a device may give them: of any value, but with positions inside the packet (as of a TAP). */
function offloaded(r: Random, bytes: Uint8Array): Packet {
  const packet = plain(bytes)
  const end = bytes.length
  if (r(3) !== 0 || end < 60) return { ...packet, offload: r(2) * OFFLOAD.CHECKSUM_VALID }
  packet.offload = OFFLOAD.NEEDS_CHECKSUM | (r(4) === 0 ? OFFLOAD.OUTER_CHECKSUM : 0)
  packet.transport = 14 + r(end - 16 - 14)
  packet.checksumOffset = r(end - 1 - packet.transport)
  if (r(2) === 0) return packet
  packet.gso = [GSO.TCP4, GSO.TCP6, GSO.UDP][r(3)] | (r(4) === 0 ? GSO.ECN : 0)
  packet.gsoSize = 1 + r(r(2) === 0 ? 2000 : 65_535)
  packet.payload = packet.transport + r(end - packet.transport)
  if (r(3) === 0 && end > 100) {
    packet.gso |= r(2) === 0 ? GSO.TUNNEL4 : GSO.TUNNEL6
    packet.outerTransport = 14 + r(40)
    packet.network = packet.outerTransport + 8 + r(end - packet.outerTransport - 40)
    packet.transport = Math.max(packet.transport, Math.min(packet.network + 20, end - 16))
    packet.checksumOffset = r(end - 1 - packet.transport)
  }
  return packet
}

/** A super-packet that is one, now and then with one byte that is not. */
function superPacket(r: Random, tunnel?: 'geneve' | 'vxlan', outer: 4 | 6 = 4): Packet {
  const shape = {
    inner: r(2) === 0 ? (4 as const) : (6 as const),
    protocol: r(2) === 0 ? ('tcp' as const) : ('udp' as const),
  }
  const packet = build({ ...PLAIN, ...shape, tunnel, outer, payload: pattern(1 + r(6000)), gsoSize: 100 + r(1500) })
  if (r(3) === 0) packet.bytes[r(packet.payload)] = r(256)
  return packet
}

const USO = CAPABILITY.CHECKSUM | CAPABILITY.USO4 | CAPABILITY.USO6
const rungs = [
  ['no offloads', 0],
  ['checksums', CAPABILITY.CHECKSUM],
  ['USO', USO],
  ['all offloads', -1],
] as const

const cases = TUNNELS.flatMap(({ kind, outer }, i) =>
  rungs.map(([rung, capabilities], j) => ({ kind, outer, rung, capabilities, seed: 17 * i + j })),
)
const ROUNDS = 60
const PER_ROUND = 25

describe.each(cases)('$kind over IPv$outer, $rung', ({ kind, outer, capabilities, seed }) => {
  const options: RigOptions = {
    tunnel: tunnelConfig(kind, outer, { innerVlan: seed % 2 === 0 }),
    underlayMtu: 1500,
    underlayCapabilities: capabilities,
    podCapabilities: capabilities,
    frames: 16,
    flows: { capacity: 256, idleMs: 1000 },
    rules: [
      { protocol: 'udp', ports: ['0-100'], verdict: VERDICT.PASS },
      { protocol: 'tcp', ports: ['0-100'], verdict: VERDICT.DROP },
    ],
    probe: { intervalMs: 1, limitMs: 1e12 },
  }

  test('toward the endpoint', () => {
    const r = random(seed)
    const rig = new Rig(options)
    const pod = rig.pod()
    let sent = 0
    for (let round = 0; round < ROUNDS; round++) {
      const packets = Array.from({ length: PER_ROUND }, () => {
        if (r(10) === 0) return superPacket(r, r(8) === 0 ? kind : undefined)
        const bytes = mutated(r, SEEDS[r(SEEDS.length)])
        if (r(4) !== 0) bytes.set(macs[r(macs.length)], 0)
        if (r(4) !== 0) bytes.set(macs[r(macs.length)], 6)
        return offloaded(r, bytes)
      })
      pod.now += r(300)
      rig.forwarder.tick(round)
      const out = rig.toward(pod, ...packets)
      for (const { bytes } of out) expect((bytes[12] << 8) | bytes[13]).toBe(outer === 4 ? 0x0800 : 0x86dd)
      sent += out.length
      pod.take()
      rig.balanced()
    }
    expect(sent).toBeGreaterThan(200)
    expect(rig.stage('classify').drops()).toBeGreaterThan(50)
  })

  test('back from the endpoint', () => {
    const r = random(seed + 1)
    const rig = new Rig(options)
    const pod = rig.pod()
    for (const inner of inners) rig.toward(pod, frame({ ...inner, tags: undefined }))
    pod.take()
    let delivered = 0
    for (let round = 0; round < ROUNDS; round++) {
      const packets = Array.from({ length: PER_ROUND }, () => {
        if (r(10) === 0) return superPacket(r, kind, outer)
        const inner = mutated(r, r(2) === 0 ? frame(inners[r(inners.length)]) : SEEDS[r(SEEDS.length)])
        const packet = tunnelled(inner, {
          kind,
          to: TUNNEL_ENDS[outer].local,
          checksum: outer === 4 && r(2) === 0 ? 'zero' : 'right',
          tos: r(256),
          geneveOptions: r(3) === 0 ? option(r(65_536), r(256), [...pattern(4 * r(5))]) : [],
        })
        // Either what is in it is damaged, or the outside too.
        return offloaded(r, r(2) === 0 ? packet : mutated(r, packet))
      })
      rig.back(...packets)
      delivered += pod.take().length
      rig.underlay.take()
      rig.balanced()
    }
    expect(delivered).toBeGreaterThan(50)
    expect(rig.stage('decap').drops()).toBeGreaterThan(200)
  })
})

test('random bytes alone', () => {
  const r = random(5)
  const rig = new Rig({ frames: 16 })
  const pod = rig.pod()
  for (let round = 0; round < 100; round++) {
    const packets = Array.from({ length: 20 }, () => pattern(14 + r(200), r(1 << 30)))
    rig.toward(pod, ...packets)
    rig.back(...packets)
    pod.take()
    rig.balanced()
  }
})
