// What the real-traffic benches count and judge by: the kernel's tables, processor time, the generator's packets, a soak's promises.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { repeated } from '../../bench/traffic/faults.ts'
import type { GenerateInput } from '../../bench/traffic/generate.ts'
import {
  foreignTime,
  machineTime,
  others,
  parseIdle,
  parseProcess,
  processTime,
  spent,
} from '../../bench/traffic/machine.ts'
import type { Counted, Seen } from '../../bench/traffic/mixed.ts'
import type { PeerOutput } from '../../bench/traffic/peer.ts'
import { flat, leaked, unbalanced, unexplained } from '../../bench/traffic/promises.ts'
import { parseSnmp, parseTraffic } from '../../bench/traffic/scene.ts'
import type { StageRow } from '../../src/control/protocol.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { said } from '../processes.ts'

describe('tables of the kernel', () => {
  it('reads an interface from /proc/net/dev', () => {
    const ip = JSON.parse(execFileSync('ip', ['-j', '-s', 'link', 'show', 'lo'], { encoding: 'utf8' }))[0].stats64
    const { receivedPackets, sentBytes } = parseTraffic(readFileSync('/proc/net/dev', 'utf8'), 'lo')
    expect(receivedPackets).toBeGreaterThanOrEqual(ip.rx.packets)
    expect(sentBytes).toBeGreaterThanOrEqual(ip.tx.bytes)
    expect(() => parseTraffic('', 'eth9')).toThrow('eth9')
  })

  it('reads a counter of /proc/net/snmp by its name', () => {
    const table = 'Ip: Forwarding DefaultTTL\nIp: 1 64\nUdp: InDatagrams NoPorts RcvbufErrors\nUdp: 10 2 33\n'
    expect(parseSnmp(table, 'Udp', 'RcvbufErrors')).toBe(33)
    expect(parseSnmp(table, 'Ip', 'DefaultTTL')).toBe(64)
    expect(() => parseSnmp(table, 'Udp', 'InErrors')).toThrow('Udp InErrors')
    expect(parseSnmp(readFileSync('/proc/net/snmp', 'utf8'), 'Udp', 'InCsumErrors')).toBeGreaterThanOrEqual(0)
  })
})

describe('processor time', () => {
  it('takes idle, iowait and steal as time that nobody used', () => {
    expect(parseIdle('cpu  100 1 50 900 20 3 4 7 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n')).toBe((900 + 20 + 7) * 10)
  })

  it('reads a process whose name has spaces and parentheses', () => {
    const stat = `42 (a) b (c) S 7 42 42 0 -1 4194560 10 0 0 0 30 12 5 3 20 0 1 0 100`
    expect(parseProcess(stat)).toEqual({ pid: 42, parent: 7, kernel: false, ms: 500 })
  })

  it("leaves out this process's descendants and kernel threads", () => {
    const process = (pid: number, parent: number, ms: number, kernel = false) => ({ pid, parent, kernel, ms })
    const list = [
      process(1, 0, 1),
      process(2, 0, 100, true),
      process(9, 1, 10),
      process(10, 9, 20),
      process(11, 10, 40),
    ]
    expect(foreignTime(list, 10)).toBe(11)
  })

  it('tells how many processors others kept busy', () => {
    expect(others({ at: 1000, idle: 0, foreign: 500 }, { at: 3000, idle: 70, foreign: 3500 })).toBe(1.5)
  })

  it('counts what a child uses as spent, and not as foreign', async () => {
    const began = performance.now()
    const from = machineTime()
    const reading = performance.now() - began
    const child = spawn(process.execPath, ['-e', 'for (;;);'])
    const ended = once(child, 'close')
    let used = 0
    while (used < 2000) {
      await sleep(20)
      used = processTime(child.pid!)
    }
    const to = machineTime()
    child.kill()
    await ended
    // What others used while the first reading was made counts as foreign, but not as time that went by.
    expect(spent(from, to)).toBeGreaterThan(used * 0.9 - reading * cpus().length)
  })
})

describe("a soak's promises", () => {
  it('holds memory for flat that swings, and not that grows', () => {
    const swing = Array.from({ length: 40 }, (_, i) => 100 + (i % 5))
    expect(flat(swing)).toEqual([])
    expect(flat(swing.map((mib, i) => mib + i / 2))[0]).toMatch(/grew from 10\d\.\d to 1[12]\d\.\d MiB/)
  })

  const row = (stage: string, inPackets: number, created: number, outPackets: number, drops: number): StageRow => {
    return {
      worker: 'forward',
      stage,
      inPackets,
      created,
      outPackets,
      drops,
      inBytes: 0,
      outBytes: 0,
      copiedBytes: 0,
      calls: 0,
      errors: 0,
    }
  }

  it('finds the stage, and the face, that lost a frame', () => {
    const devices = [row('tap a', 10, 0, 4, 1), row('tap b', 5, 0, 11, 0)]
    const stages = [row('classify', 14, 0, 13, 1), row('fit', 10, 2, 12, 0)]
    expect(unbalanced('node', [...devices, ...stages])).toEqual([])
    expect(unbalanced('node', [row('decap', 5, 0, 4, 0)])[0]).toContain('forward decap: in 5')
    expect(leaked('node', [...devices, ...stages], 0)).toEqual([])
    expect(leaked('node', [...devices, row('tap c', 3, 0, 0, 0), ...stages], 2)[0]).toContain('3 frames')
  })

  it('explains losses by drops, full queues and full sockets, and nothing else', () => {
    const peer = (udpSent: number, udpReceived: number) =>
      ({ udpSent, udpReceived, echoSent: 0, echoReceived: 0 }) as PeerOutput
    const seen: Seen = [peer(100, 90), peer(100, 95)]
    const drop = { worker: 'forward', stage: 'decide', reason: 'endpoint-down', text: '', packets: 10 }
    const counted: Counted = { stages: [], drops: [drop], missed: 3, failed: 0, alarms: [] }
    expect(unexplained(seen, [counted], 2)).toEqual([])
    expect(unexplained(seen, [counted], 1)).toEqual(['15 datagrams and echoes lost; counters explain 14'])
  })

  it('takes a line for repeated that comes again, or again and again with other numbers', () => {
    expect(repeated(['MTU 1600 is 1400', 'uplink down', 'uplink up after 2.1 s', 'MTU 1400 is 1600'])).toEqual([])
    expect(repeated(['uplink down', 'uplink up', 'uplink down'])).toEqual(['uplink down'])
    expect(repeated(['queue full, 1 lost', 'queue full, 2 lost', 'queue full, 3 lost'])).toEqual(['queue full, # lost'])
  })
})

const missing =
  process.getuid?.() !== 0 ? 'needs root' : ['tcpdump', 'tshark'].find(name => spawnSync(name, ['--version']).error)

describe.skipIf(missing !== undefined)(
  `the generator's packets${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    const namespace = `dt-generate-${process.pid}`
    const folder = mkdtempSync(join(tmpdir(), 'detour-generate-'))

    beforeAll(() => {
      createNamespace(namespace)
      ipBatch(
        [
          'link add eth0 type veth peer name eth1',
          'link set eth0 addrgenmode none up',
          'link set eth1 addrgenmode none up',
        ],
        namespace,
      )
      ipBatch(
        ['address add 10.0.0.1/24 dev eth0', 'neighbor add 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0'],
        namespace,
      )
    })
    afterAll(() => {
      deleteNamespace(namespace)
      rmSync(folder, { recursive: true })
    })

    for (const by of ['frames', 'socket'] as const)
      it(`are whole, of the size asked for, one a flow: ${by}`, async () => {
        const file = join(folder, `${by}.pcap`)
        const inside = (command: string[]) => inNamespace(namespace, () => spawn(command[0], command.slice(1)))
        const filter = ['-c', '70', 'udp and dst host 10.0.0.2']
        const tcpdump = inside([
          'tcpdump',
          '-i',
          'eth1',
          '-Q',
          'in',
          '-U',
          '--immediate-mode',
          '-s',
          '256',
          '-w',
          file,
          ...filter,
        ])
        const captured = once(tcpdump, 'close')
        await said(tcpdump.stderr, 'listening on')
        const sourcePorts = by === 'frames' ? 50 : 70
        const input: GenerateInput = {
          ...{ by, interface: 'eth0', size: 64, flows: 70, sourcePorts, port: 9, rate: 0, seconds: 10, once: true },
          source: { mac: '02:00:00:00:00:01', address: '10.0.0.1' },
          target: { mac: '02:00:00:00:00:02', address: '10.0.0.2' },
        }
        const program = fileURLToPath(new URL('../../dist/bench/traffic/generate.js', import.meta.url))
        // NB: on one processor: packets of a sender that changes it overtake others.
        const generator = inside(['taskset', '-c', '0', process.execPath, program, JSON.stringify(input)])
        const output = (await generator.stdout.toArray()).join('')
        expect(output).toContain('"sent":70')
        await captured
        const fields = ['frame.len', 'udp.srcport', 'udp.dstport', 'ip.checksum.status', 'udp.checksum.status']
        const options = [
          '-o',
          'ip.check_checksum:TRUE',
          '-o',
          `udp.check_checksum:${by === 'frames' ? 'TRUE' : 'FALSE'}`,
        ]
        const tshark = ['-r', file, ...options, '-T', 'fields', ...fields.flatMap(field => ['-e', field])]
        const rows = execFileSync('tshark', tshark, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
          .trim()
          .split('\n')
        const good = by === 'frames' ? '1' : '2'
        const expected = Array.from({ length: 70 }, (_, i) =>
          [64, 1024 + (i % sourcePorts), 9 + Math.floor(i / sourcePorts), 1, good].join('\t'),
        )
        expect(rows).toEqual(expected)
      })
  },
)
