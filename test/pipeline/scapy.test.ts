// Tunnelled packets against scapy: it reads what we send, and we take apart what it builds.

import { execFileSync, spawnSync } from 'node:child_process'
import { describe, expect, test } from 'vitest'
import { METADATA } from '../../src/pipeline/tunnel.ts'
import { frame, type Inner, TCP, TUNNEL_ENDS, VNI } from './packets.ts'
import { open, Rig, TUNNELS, tunnelConfig } from './rig.ts'

const PYTHON = '/usr/bin/python3'
const hasScapy = spawnSync(PYTHON, ['-c', 'import scapy.contrib.geneve']).status === 0

// NB: scapy 2.5 masks OptLen with 0x2f, so it is no oracle for options of 16 to 31 and 48 to 63 words.
const READ = `
import sys, json
from scapy.all import Ether, IP, IPv6, UDP
from scapy.layers.vxlan import VXLAN
from scapy.contrib.geneve import GENEVE
rows = []
for line in sys.stdin:
    p = Ether(bytes.fromhex(line.strip()))
    t = p[GENEVE] if GENEVE in p else p[VXLAN]
    row = {'vni': t.vni, 'dport': p[UDP].dport, 'inner': bytes(t.payload).hex(), 'name': t.name}
    if GENEVE in p:
        o = t.options[0]
        row.update(optionlen=t.optionlen, critical=t.critical, oam=t.oam, proto=t.proto)
        row.update(optclass=int(o.classid), opttype=int(o.type), length=int(o.length), data=bytes(o.data).hex())
    ip = p[IP] if p.type == 0x800 else p[IPv6]
    if ip.version == 4: del ip.chksum
    if ip[UDP].chksum != 0: del ip[UDP].chksum
    row['same'] = bytes(p).hex() == line.strip()
    rows.append(row)
print(json.dumps(rows))
`

const BUILD = `
import sys, json
from scapy.all import Ether, IP, IPv6, UDP, TCP, ICMP, Raw
from scapy.layers.vxlan import VXLAN
from scapy.contrib.geneve import GENEVE, GeneveOptions
spec = json.load(sys.stdin)
rows = []
inners = [
    Ether(src='02:00:00:00:0b:02', dst='02:00:00:00:0a:01')/IP(src='192.0.2.9', dst='10.1.0.5')/TCP(sport=443, dport=40000, flags='SA', options=[('MSS', 1400)]),
    Ether(src='02:00:00:00:0b:02', dst='02:00:00:00:0a:01')/IP(src='192.0.2.9', dst='10.1.0.5', options=[])/ICMP(type=0, id=7)/Raw(b'x' * 33),
    Ether(src='02:00:00:00:0b:02', dst='02:00:00:00:0a:01')/IPv6(src='2001:db8::9', dst='fd00:1::5', fl=77)/UDP(sport=53, dport=40000)/Raw(b'y' * 200),
]
for version, ends in spec['ends'].items():
    outer = (IP if version == '4' else IPv6)(src=ends['remote'], dst=ends['local'])
    for inner in inners:
        for words in (None, 0, 1, 15):
            if words is None: tunnel = UDP(sport=51234, dport=4789)/VXLAN(vni=spec['vni'])
            else:
                options = [] if words == 0 else [GeneveOptions(classid=0x0102, type=1, length=words - 1, data=b'z' * 4 * (words - 1))]
                tunnel = UDP(sport=51234, dport=6081)/GENEVE(vni=spec['vni'], proto=0x6558, optionlen=words, options=options)
            frame = Ether(src='02:00:00:00:00:02', dst='02:00:00:00:00:01')/outer/tunnel/inner
            rows.append({'version': int(version), 'kind': 'vxlan' if words is None else 'geneve', 'words': words, 'frame': bytes(frame).hex(), 'inner': bytes(inner).hex()})
print(json.dumps(rows))
`

function python(script: string, input: string): Record<string, unknown>[] {
  return JSON.parse(execFileSync(PYTHON, ['-c', script], { input, maxBuffer: 1 << 26 }).toString())
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

describe.skipIf(!hasScapy)('scapy (needs python3-scapy)', () => {
  test('reads what we send, and computes the same checksums', () => {
    const inners: Inner[] = [{ version: 4 }, { version: 6, protocol: TCP }]
    const cases = TUNNELS.flatMap(tunnel =>
      (['auto', 'always'] as const).map(outerChecksum => ({ tunnel, outerChecksum })),
    )
    const sent = cases.flatMap(({ tunnel: { kind, outer }, outerChecksum }) => {
      const rig = new Rig({ tunnel: tunnelConfig(kind, outer, { outerChecksum }) })
      return rig.toward(rig.pod(), ...inners.map(frame)).map(packet => hex(packet.bytes))
    })
    const rows = python(READ, sent.join('\n'))
    expect(rows).toHaveLength(cases.length * 2)
    rows.forEach((row, i) => {
      const { kind } = cases[i >> 1].tunnel
      const port = kind === 'geneve' ? 6081 : 4789
      expect(row).toMatchObject({ vni: VNI, dport: port, inner: hex(frame(inners[i & 1])), same: true })
      if (kind !== 'geneve') return
      expect(row).toMatchObject({ optionlen: 3, critical: 0, oam: 0, proto: 0x6558 })
      expect(row).toMatchObject({ optclass: 0xfff0, opttype: METADATA.TYPE, length: 2 })
      // Attachment 0, leaving, flow cookie.
      expect(row.data).toMatch(/^00000000[0-9a-f]{8}$/)
    })
  })

  test('builds what we take apart', () => {
    const rows = python(BUILD, JSON.stringify({ ends: TUNNEL_ENDS, vni: VNI }))
    expect(rows).toHaveLength(24)
    for (const row of rows) {
      const config = tunnelConfig(row.kind as 'geneve', row.version as 4)
      const got = open(Uint8Array.from(Buffer.from(row.frame as string, 'hex')), config)
      expect(got.reason, JSON.stringify(row)).toBe('none')
      expect(hex(got.inner!)).toBe(row.inner)
    }
  })
})
