// What a node sends in the form of each cloud, byte by byte and as tshark reads it, and what it makes of what comes back.

import { execFileSync, spawnSync } from 'node:child_process'
import { describe, expect, test } from 'vitest'
import { type TunnelFlags, tunnelOf } from '../../src/cli/options.ts'
import { CAPABILITY } from '../../src/device/device.ts'
import { GSO } from '../../src/memory/pool.ts'
import { innerMtu, outerBytes } from '../../src/pipeline/tunnel.ts'
import { frame, type Inner, icmpError, ip, option, PEER, POD, TCP, TUNNEL_ENDS, tunnelled, turned } from './packets.ts'
import { open, Rig, type RigOptions } from './rig.ts'
import { build, type Packet, PLAIN, pattern } from './super.ts'
import { decode, hasTshark } from './tshark.ts'

const rigOf = (profile: string, flags: TunnelFlags = {}, options: RigOptions = {}) =>
  new Rig({ ...options, tunnel: tunnelOf({ profile, ...TUNNEL_ENDS[4], ...flags }) })

const hex = (bytes: ArrayLike<number>) => Buffer.from(Array.from(bytes)).toString('hex')
/** Of a packet over IPv4: its GENEVE or VXLAN header, and what is behind `bytes` of it. */
const behindUdp = ({ bytes }: Packet) => bytes.subarray(42)
const port = ({ bytes }: Packet) => (bytes[36] << 8) | bytes[37]
const vni = ({ bytes }: Packet) => (bytes[46] << 16) | (bytes[47] << 8) | bytes[48]
const received = (device: { take(): Packet[] }) => device.take().map(({ bytes }) => hex(bytes))

/** A packet from the peer to the pod. */
const arriving = (inner: Inner = {}): Inner => ({
  from: inner.version === 6 ? PEER.ip6 : PEER.ip4,
  to: inner.version === 6 ? POD.ip6 : POD.ip4,
  fromMac: PEER.mac,
  toMac: POD.mac,
  sourcePort: 40_001,
  port: 40_000,
  ...inner,
})

const AWS_HEAD = '0800080000000000'
const ids = { endpointId: '0123456789abcdef', attachmentId: 'fedcba9876540000' }
const set = Object.entries(ids).map(([key, value]) => `${key}=${value}`)

describe('aws-gwlb', () => {
  const options = (cookie: string, attachment = 'fedcba9876540000') =>
    `01080102${ids.endpointId}01080202${attachment}01080301${cookie}`

  test('a packet is an IP packet behind 68 bytes: three options in order, VNI 0', () => {
    const rig = rigOf('aws-gwlb', { set })
    const pod = rig.pod()
    const [sent] = rig.toward(pod, frame())
    const header = hex(behindUdp(sent))
    const cookie = header.slice(72, 80)
    expect(header).toBe(AWS_HEAD + options(cookie) + hex(ip({})))
    expect(cookie).not.toBe('00000000')
    expect(outerBytes(rig.tunnel) - 14).toBe(68)
    expect(innerMtu(rig.tunnel, 1500)).toBe(1432)
    expect(innerMtu(rig.tunnel, 9001)).toBe(8500)
    // AWS's sample handler sends TOS 0, TTL 2 and never writes the checksum.
    const [marked] = rig.toward(pod, frame({ tos: 0x2e, id: 7 }))
    expect(marked.bytes.slice(14, 16)).toEqual(Uint8Array.of(0x45, 0x2e))
    expect(marked.bytes[22]).toBe(64)
    expect((marked.bytes[40] << 8) | marked.bytes[41]).not.toBe(0)
    expect(port(sent)).toBe(6081)
    rig.bounce([sent, marked])
    expect(pod.take()).toHaveLength(2)
    rig.balanced()
  })

  test('an IPv6 packet says so; Ethernet padding and tags stay at home', () => {
    const rig = rigOf('aws-gwlb', { set })
    const pod = rig.pod()
    const six = frame({ version: 6 })
    const padded = frame({ data: [1], padding: 17 })
    const tagged = frame({ tags: [0x8100, 0x0005], port: 50 })
    const sent = rig.toward(pod, six, padded, tagged)
    expect(hex(behindUdp(sent[0])).slice(0, 16)).toBe('080086dd00000000')
    expect(hex(behindUdp(sent[1])).slice(80)).toBe(hex(ip({ data: [1] })))
    expect(hex(behindUdp(sent[2])).slice(80)).toBe(hex(ip({ port: 50 })))
    rig.bounce(sent)
    expect(received(pod)).toEqual([hex(six), hex(padded.subarray(0, -17)), hex(tagged)])
    rig.balanced()
  })

  test('the cookie is the flow’s, in both directions and for what is about it; the attachment is the pod’s', () => {
    const rig = rigOf('aws-gwlb', { set })
    const pods = [rig.pod(), rig.pod('02:00:00:00:0c:03')]
    const cookie = (packet: Packet) => hex(behindUdp(packet)).slice(72, 80)
    const error = frame({ fromMac: PEER.mac, toMac: POD.mac, ...icmpError({}, 0x0301, 28, '192.0.2.1') })
    const [there, back, about, other] = rig.toward(pods[0], frame(), frame(arriving()), error, frame({ port: 50 }))
    expect([cookie(back), cookie(about)]).toEqual([cookie(there), cookie(there)])
    expect(cookie(other)).not.toBe(cookie(there))
    const [second] = rig.toward(pods[1], frame({ fromMac: '02:00:00:00:0c:03', from: '10.1.0.6' }))
    expect(hex(behindUdp(second))).toContain(options(cookie(second), 'fedcba9876540001'))
  })

  test('what comes back without its flow’s cookie is dropped', () => {
    const rig = rigOf('aws-gwlb', { set })
    const pod = rig.pod()
    const sent = rig.toward(pod, frame(), frame({ port: 50 }))
    const foreign = turned(sent[0].bytes)
    foreign.set(turned(sent[1].bytes).subarray(78, 82), 78)
    foreign.fill(0, 40, 42)
    const inner = Uint8Array.from(ip({}))
    const none = tunnelled(inner, { type: 0x0800, vni: 0 })
    const wrongLength = tunnelled(inner, { type: 0x0800, vni: 0, geneveOptions: option(0x0108, 3) })
    rig.back(foreign, none, wrongLength)
    expect(rig.drops).toEqual({ 'restore flow-cookie': 3 })
    rig.bounce(sent)
    expect(pod.take()).toHaveLength(2)
    rig.balanced()
  })

  test('a larger packet than 8500 bytes vanishes on its way back', () => {
    const rig = rigOf('aws-gwlb', { set }, { underlayMtu: 9001 })
    const pod = rig.pod()
    const most = 8500 - 28
    const [sent, refused] = rig.toward(pod, frame({ data: pattern(most) }), frame({ data: pattern(most + 1) }))
    expect(refused).toBeUndefined()
    const [error] = pod.take()
    expect([...error.bytes.slice(34, 36), error.bytes[40], error.bytes[41]]).toEqual([3, 4, 8500 >> 8, 8500 & 255])
    rig.bounce([sent])
    expect(pod.take()).toHaveLength(1)
    const geneveOptions = [...behindUdp(sent).subarray(8, 40)]
    const grown = Uint8Array.from(ip({ data: pattern(most + 1) }))
    rig.back(tunnelled(grown, { type: 0x0800, vni: 0, geneveOptions }))
    expect(rig.drops).toEqual({ 'fit too-big': 1, 'decap returned-too-big': 1 })
    rig.balanced()
  })

  // Defects of AWS's sample handler: options walked past their end; O and C ignored; inner ports at a fixed offset.
  test('headers that lie, control packets and unknown critical options are dropped', () => {
    const inner = Uint8Array.from(ip({}))
    const tunnel = tunnelOf({ profile: 'aws-gwlb', ...TUNNEL_ENDS[4] })
    const reason = (outer: Parameters<typeof tunnelled>[1]) =>
      open(tunnelled(inner, { type: 0x0800, vni: 0, ...outer }), tunnel).reason
    const cookie = option(0x0108, 3, [1, 2, 3, 4])
    const beyond = [...cookie.slice(0, 3), 31, ...cookie.slice(4)]
    expect(reason({ geneveOptions: cookie })).toBe('none')
    expect(reason({ geneveOptions: beyond })).toBe('geneve-options')
    expect(reason({ geneveOptions: cookie, optionWords: 63 })).toBe('geneve-truncated')
    expect(reason({ geneveOptions: cookie, flags: 0x80 })).toBe('geneve-control')
    expect(reason({ geneveOptions: option(0x0108, 0x84, [0, 0, 0, 0]), flags: 0x40 })).toBe('geneve-critical')
    expect(reason({ geneveOptions: cookie, flags: 0x4000 })).toBe('geneve-version')
    expect(reason({ geneveOptions: cookie, vni: 1 })).toBe('unknown-vni')
    expect(open(tunnelled(frame(), { vni: 0, geneveOptions: cookie }), tunnel).reason).toBe('geneve-protocol')
    const long = Uint8Array.from(ip({ data: pattern(64) }))
    expect(open(tunnelled(long, { type: 0x86dd, vni: 0 }), tunnel).reason).toBe('ipv6-version')
  })

  test.skipIf(!hasTshark)(`as tshark reads it${hasTshark ? '' : ' (skipped: no tshark)'}`, () => {
    const rig = rigOf('aws-gwlb', { set })
    const pod = rig.pod()
    const sent = rig.toward(pod, frame({ protocol: TCP }), frame({ version: 6 }))
    const fields = ['option.class', 'option.type', 'option.length', 'proto_type', 'vni'].map(name => `geneve.${name}`)
    const [four, six] = decode(
      sent.map(({ bytes }) => bytes),
      [...fields, 'udp.checksum.status', 'tcp.checksum.status', 'ip.dst', 'ipv6.dst', 'eth.src'],
    )
    expect(four).toMatchObject({
      'geneve.option.class': ['0x0108', '0x0108', '0x0108'],
      'geneve.option.type': ['0x01', '0x02', '0x03'],
      'geneve.option.length': ['32', '12', '12', '8'],
      'geneve.proto_type': ['0x0800'],
      'geneve.vni': ['0x000000'],
      'udp.checksum.status': ['1'],
      'tcp.checksum.status': ['1'],
      'ip.dst': [TUNNEL_ENDS[4].remote, PEER.ip4],
    })
    expect(four['eth.src']).toHaveLength(1)
    expect(six).toMatchObject({ 'geneve.proto_type': ['0x86dd'], 'ipv6.dst': [PEER.ip6] })
  })
})

const PYTHON = '/usr/bin/python3'
const hasScapy = spawnSync(PYTHON, ['-c', 'import scapy.contrib.geneve']).status === 0
const SCAPY = `
import sys, json
from scapy.all import Ether, IP, IPv6, UDP, Raw
from scapy.contrib.geneve import GENEVE, GeneveOptions
read, built = [], []
def options(g):
    # NB: scapy 2.5 leaves all but the first option as the first one's payload.
    found, rest = [], bytes(g.options[0])
    while rest:
        o = GeneveOptions(rest)
        found.append(GeneveOptions(rest[:4 + int(o.length) * 4]))
        rest = rest[4 + int(o.length) * 4:]
    return found
for line in sys.stdin:
    p = Ether(bytes.fromhex(line.strip()))
    g = p[GENEVE]
    read.append([[int(o.classid), int(o.type), bytes(o.data).hex()] for o in options(g)] + [g.proto, g.vni, g.payload.name])
    # Sent back by scapy, checksums and lengths its own.
    back = Ether(src=p.dst, dst=p.src)/IP(src=p[IP].dst, dst=p[IP].src)/UDP(sport=p[UDP].sport, dport=6081)
    built.append(bytes(back/GENEVE(vni=0, proto=g.proto, optionlen=8, options=options(g))/g.payload).hex())
print(json.dumps([read, built]))
`

test.skipIf(!hasScapy)(
  `aws-gwlb as scapy reads it, and as it sends it back${hasScapy ? '' : ' (skipped: no scapy)'}`,
  () => {
    const rig = rigOf('aws-gwlb', { set })
    const pod = rig.pod()
    const frames = [frame({ protocol: TCP }), frame({ version: 6 }), frame(arriving({ options: 8 }))]
    const sent = rig.toward(pod, ...frames)
    const input = sent.map(({ bytes }) => hex(bytes)).join('\n')
    const [read, built] = JSON.parse(execFileSync(PYTHON, ['-c', SCAPY], { input }).toString())
    const options = sent.map(packet => [
      [0x0108, 1, ids.endpointId],
      [0x0108, 2, ids.attachmentId],
      [0x0108, 3, hex(behindUdp(packet)).slice(72, 80)],
    ])
    expect(read).toEqual([
      [...options[0], 0x0800, 0, 'IP'],
      [...options[1], 0x86dd, 0, 'IPv6'],
      [...options[2], 0x0800, 0, 'IP'],
    ])
    rig.back(...built.map((text: string) => Uint8Array.from(Buffer.from(text, 'hex'))))
    expect(received(pod)).toEqual(frames.map(hex))
    rig.balanced()
  },
)

describe('packets without a link header get theirs back', () => {
  const four: [string, Inner[]][] = [
    ['whole', [{}]],
    [
      'fragments',
      [
        { fragment: 0x2000, data: pattern(64) },
        { fragment: 8, body: [...pattern(40)] },
      ],
    ],
    ['with IP options', [{ options: 12, protocol: TCP }]],
    ['of ICMP', [{ protocol: 1 }]],
  ]
  const version = 6 as const
  const six: [string, Inner[]][] = [
    ['whole', [{ version }]],
    [
      'fragments',
      [
        { version, fragment: 1, data: pattern(64) },
        { version, fragment: 64, body: [...pattern(40)] },
      ],
    ],
    ['of ICMP', [{ version, protocol: 58 }]],
  ]
  for (const profile of ['aws-gwlb', 'gcp-nsi'])
    test.each([...four.map(shape => ['IPv4', ...shape] as const), ...six.map(shape => ['IPv6', ...shape] as const)])(
      `${profile}, %s, %s`,
      (_version, _name, inners) => {
        const rig = rigOf(profile)
        const pod = rig.pod()
        const frames = inners.flatMap(inner => [frame(inner), frame(arriving(inner))])
        rig.bounce(rig.toward(pod, ...frames))
        expect(received(pod)).toEqual(frames.map(hex))
        rig.balanced()
      },
    )

  test('an answer in a direction that nothing took before has the addresses the other way about', () => {
    const rig = rigOf('aws-gwlb')
    const pod = rig.pod()
    const [sent] = rig.toward(pod, frame({ protocol: TCP, flags: 2 }))
    const reset = { protocol: TCP, flags: 0x14, from: PEER.ip4, to: POD.ip4, sourcePort: 40_001, port: 40_000 }
    const geneveOptions = [...behindUdp(sent).subarray(8, 40)]
    rig.back(tunnelled(Uint8Array.from(ip(reset)), { type: 0x0800, vni: 0, geneveOptions }))
    expect(received(pod)).toEqual([hex(frame({ ...reset, fromMac: PEER.mac, toMac: POD.mac }))])
    rig.balanced()
  })

  test('pods are told apart by their addresses; what is of none, or of one that went, is dropped', () => {
    const rig = rigOf('gcp-nsi')
    const first = rig.pod()
    const second = rig.pod('02:00:00:00:0c:03')
    const other = frame({ from: '10.1.0.6', fromMac: '02:00:00:00:0c:03' })
    const sent = [...rig.toward(first, frame()), ...rig.toward(second, other)]
    rig.bounce(sent)
    expect([received(first), received(second)]).toEqual([[hex(frame())], [hex(other)]])
    rig.back(tunnelled(Uint8Array.from(ip({ from: '10.9.9.9' })), { type: 0x0800, vni: 0 }))
    rig.forwarder.detach(1)
    rig.bounce([sent[1]])
    expect(rig.drops).toEqual({ 'restore unknown-attachment': 2 })
    rig.balanced()
  })

  test('a flow in the place of another has nothing of it', () => {
    const rig = rigOf('gcp-nsi', {}, { flows: { capacity: 1 } })
    const pod = rig.pod()
    rig.toward(pod, frame(arriving()))
    rig.forwarder.table.now = 1e9
    rig.forwarder.table.expire(16)
    const [sent] = rig.toward(pod, frame({ port: 50, toMac: '02:00:00:00:0d:04' }))
    if (sent === undefined) throw new Error('the row of the first flow was not given to the second')
    const answer = { from: PEER.ip4, to: POD.ip4, sourcePort: 50, port: 40_000 }
    rig.back(tunnelled(Uint8Array.from(ip(answer)), { type: 0x0800, vni: 0 }))
    expect(received(pod)).toEqual([hex(frame({ ...answer, fromMac: '02:00:00:00:0d:04', toMac: POD.mac }))])
  })

  test('super-packets stay whole where devices take them, and are cut where not', () => {
    const ALL = Object.values(CAPABILITY).reduce((all, one) => all | one, 0)
    const whole = build({ ...PLAIN, payload: pattern(9000), gsoSize: 1000 })
    const mac = '02:00:00:00:77:01'
    for (const capabilities of [ALL, 0]) {
      const rig = rigOf('aws-gwlb', {}, { underlayCapabilities: capabilities, podCapabilities: ALL, frames: 64 })
      const pod = rig.pod(mac)
      const sent = rig.toward(pod, whole)
      expect(sent).toHaveLength(capabilities === 0 ? 9 : 1)
      if (capabilities !== 0) {
        expect(sent[0].gso).toBe(GSO.TCP4 | GSO.TUNNEL4)
        expect(sent[0].network).toBe(14 + 68)
      }
      rig.bounce(sent)
      const back = pod.take()
      expect(back.reduce((sum, { bytes }) => sum + bytes.length - 66, 0)).toBe(9000)
      if (capabilities !== 0) expect(hex(back[0].bytes)).toBe(hex(whole.bytes))
      rig.balanced()
    }
  })
})

describe('gcp-nsi', () => {
  const flags = { set: ['networkId=19088743', 'endpointId=00000000000a0000', 'profileId=00000000075bcd15'] }

  test.skipIf(!hasTshark)(`options as tshark knows them${hasTshark ? '' : ' (skipped: no tshark)'}`, () => {
    const rig = rigOf('gcp-nsi', flags)
    const pod = rig.pod()
    const sent = rig.toward(pod, frame(), frame(arriving()))
    const names = ['vnid', 'direction', 'reserved', 'endpoint', 'profile'].map(name => `geneve.option.gcp.${name}`)
    const read = decode(
      sent.map(({ bytes }) => bytes),
      [...names, 'geneve.vni', 'udp.dstport'],
    )
    const same = {
      'geneve.option.gcp.vnid': ['19088743'],
      'geneve.option.gcp.reserved': ['0'],
      'geneve.option.gcp.profile': ['123456789'],
      'geneve.vni': ['0x000000'],
    }
    expect(read[0]).toMatchObject({ ...same, 'geneve.option.gcp.direction': ['1'] })
    expect(read[1]).toMatchObject({ ...same, 'geneve.option.gcp.direction': ['0'] })
    expect(hex(behindUdp(sent[0]))).toContain('0132020200000000000a0000')
  })

  test('what comes back without options is let in all the same', () => {
    const rig = rigOf('gcp-nsi', flags)
    const pod = rig.pod()
    rig.toward(pod, frame())
    rig.back(tunnelled(Uint8Array.from(ip({})), { type: 0x0800, vni: 0 }))
    expect(received(pod)).toEqual([hex(frame())])
    rig.balanced()
  })
})

describe('azure-gwlb', () => {
  /** By the other tunnel. */
  function changed(packet: Packet): Uint8Array {
    const bytes = turned(packet.bytes)
    const external = port(packet) === 2001
    bytes.set(external ? [2000 >> 8, 2000 & 255] : [2001 >> 8, 2001 & 255], 36)
    bytes.set(external ? [0, 3, 0] : [0, 3, 1], 46)
    return bytes
  }
  const flags = { port: '2000', vni: '768', set: ['externalPort=2001', 'externalVni=769'] }

  test('what leaves goes by the internal tunnel, what arrives by the external; each returns by the other', () => {
    const rig = rigOf('azure-gwlb', flags)
    const pod = rig.pod()
    const frames = [frame(), frame(arriving())]
    const sent = rig.toward(pod, ...frames)
    expect(sent.map(packet => [port(packet), vni(packet)])).toEqual([
      [2000, 768],
      [2001, 769],
    ])
    rig.back(...sent.map(changed))
    expect(received(pod)).toEqual(frames.map(hex))
    rig.balanced()
  })

  test('a port with the VNI of the other tunnel, or another port, is not ours', () => {
    const rig = rigOf('azure-gwlb', flags)
    const [sent] = rig.toward(rig.pod(), frame())
    const mixed = (to: number, network: number) => {
      const bytes = turned(sent.bytes)
      bytes.set([to >> 8, to & 255], 36)
      bytes.set([network >> 16, (network >> 8) & 255, network & 255], 46)
      return bytes
    }
    rig.back(mixed(2000, 769), mixed(2001, 768), mixed(10800, 768))
    expect(rig.drops).toEqual({ 'decap unknown-vni': 2, 'decap not-tunnel': 1 })
    rig.balanced()
  })

  test('one port for both tunnels is refused, for it would not tell them apart', () => {
    expect(() => tunnelOf({ profile: 'azure-gwlb', port: '10801' })).toThrow(
      /--port '10801': .* other tunnel has this port/,
    )
    const set = ['externalPort=2000']
    expect(() => tunnelOf({ profile: 'azure-gwlb', port: '2000', set })).toThrow(/--port '2000'/)
  })

  test('the ports and VNIs of its documentation are the default', () => {
    const { port: internal, vni: network, arriving: external } = tunnelOf({ profile: 'azure-gwlb' })
    expect({ internal, network, external }).toEqual({
      internal: 10800,
      network: 800,
      external: { port: 10801, vni: 801 },
    })
  })
})

describe('pan-cni', () => {
  test('comes from the pod’s address, whichever way it goes, with the cluster’s number, and returns to it', () => {
    const rig = rigOf('pan-cni', { vni: '5' })
    const pod = rig.pod()
    const frames = [frame(), frame(arriving()), frame({ version: 6 })]
    const sent = rig.toward(pod, ...frames)
    const source = ({ bytes }: Packet) => [...bytes.subarray(26, 30)].join('.')
    expect(sent.map(source)).toEqual([POD.ip4, POD.ip4, TUNNEL_ENDS[4].local])
    expect(sent.map(packet => [port(packet), vni(packet)])).toEqual(Array(3).fill([6080, 5]))
    rig.bounce(sent)
    expect(received(pod)).toEqual(frames.map(hex))
    rig.balanced()
  })

  test('over IPv6 it is the pod’s IPv6 address', () => {
    const rig = rigOf('pan-cni', { vni: '2048', ...TUNNEL_ENDS[6] })
    const pod = rig.pod()
    const frames = [frame({ version: 6 }), frame(arriving({ version: 6 }))]
    const sent = rig.toward(pod, ...frames)
    for (const { bytes } of sent) expect(hex(bytes.subarray(22, 38))).toBe('fd000001000000000000000000000005')
    rig.bounce(sent)
    expect(received(pod)).toEqual(frames.map(hex))
  })
})

describe('what a profile does not allow is named', () => {
  test.each<[TunnelFlags, string]>([
    [{ profile: 'pan-cni' }, '--vni is missing: allowed with profile pan-cni: an integer from 1 to 2048'],
    [{ profile: 'pan-cni', vni: '2049' }, "--vni '2049': allowed with profile pan-cni: an integer from 1 to 2048"],
    [{ profile: 'aws-gwlb', vni: '7' }, "--vni '7': allowed with profile aws-gwlb: 0"],
    [
      { profile: 'aws-gwlb', local: '2001:db8::1' },
      "--local '2001:db8::1': allowed with profile aws-gwlb: an IPv4 address",
    ],
    [{ profile: 'aws-gwlb', set: ['endpointId=12'] }, '--set endpointId: allowed: 16 hexadecimal digits, in quotes'],
    [
      { profile: 'aws-gwlb', set: ['endpoint=12'] },
      '--set endpoint: no setting of profile aws-gwlb; allowed: endpointId, attachmentId',
    ],
    [{ profile: 'vxlan', set: ['echo=none'] }, '--set echo: no setting of profile vxlan; it has none'],
    [{ profile: 'gcp-nsi', set: ['networkId=268435456'] }, '--set networkId: allowed: an integer from 0 to 268435455'],
    [{ profile: 'gcp-nsi', set: ['constructor=1'] }, '--set constructor: no setting of profile gcp-nsi'],
    [{ profile: 'gcp-nsi', set: ['networkId'] }, "--set 'networkId': give NAME=VALUE"],
  ])('%j', (flags, sentence) => {
    expect(() => tunnelOf(flags)).toThrow(sentence)
  })
})
