// Which worker a packet belongs to: the kernel's program against the function in JavaScript, by BPF_PROG_TEST_RUN.

import { execFileSync } from 'node:child_process'
import { closeSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { steerFrames, steerTunnels } from '../../src/control/steering.ts'
import { randomSeed } from '../../src/flow/hash.ts'
import { type Steering, workerOfFrame, workerOfTunnel } from '../../src/flow/steering.ts'
import { loadFilter } from '../../src/os/bpf.ts'
import { addressOf, bpf, must, read } from '../../src/os/libc.ts'
import { createNamespace, deleteNamespace, inNamespace } from '../../src/os/netns.ts'
import { openTap, quietTap } from '../../src/os/tun.ts'
import { flows, packets } from '../flow/packets.ts'
import { buildFrames, random } from '../wire/build.ts'
import { missing, title } from './support.ts'

const needsRoot = process.getuid?.() === 0 ? '' : ' (skipped: needs root)'
const ETHERNET = 14
const TEST_RUN = 10

/** Runs a socket filter over bytes and returns what it returned. The kernel takes off an Ethernet header first, so one goes in front. */
function run(program: number, bytes: Uint8Array): number {
  const packet = new Uint8Array(ETHERNET + bytes.length)
  packet.set(bytes, ETHERNET)
  const attribute = new DataView(new ArrayBuffer(80))
  attribute.setUint32(0, program, true)
  attribute.setUint32(8, packet.length, true)
  attribute.setBigUint64(16, BigInt(addressOf(packet)), true)
  attribute.setUint32(32, 1, true)
  must(bpf(TEST_RUN, attribute), 'BPF_PROG_TEST_RUN', `${bytes.length} bytes`)
  return attribute.getUint32(4, true)
}

/** Frames as they are, cut off, and with bytes changed. */
function* variations(frames: Uint8Array[]): Generator<Uint8Array> {
  const r = random(7)
  for (const frame of frames) {
    yield frame
    yield frame.slice(0, 1 + r(frame.length))
    const bad = frame.slice()
    for (let i = 0; i < 3; i++) bad[r(Math.min(bad.length, 80))] = r(256)
    yield bad
  }
}

const inTunnel = (header: number[], frame: Uint8Array) => Uint8Array.of(...new Array(8).fill(0), ...header, ...frame)
const GENEVE_BARE = [0, 0, 0x65, 0x58, 0, 0, 1, 0]
const GENEVE_OPTIONS = [3, 0, 0x65, 0x58, 0, 0, 1, 0, 0xff, 0xf0, 1, 2, 9, 9, 9, 9, 8, 8, 8, 8]
const GENEVE_IP = (type: number) => [0x3f, 0, type >> 8, type & 255, 0, 0, 1, 0, ...new Array(252).fill(7)]
const VXLAN = [8, 0, 0, 0, 0, 0, 1, 0]

describe.skipIf(needsRoot !== '')(`steering in the kernel${needsRoot}`, () => {
  const scapy = packets.map(packet => Uint8Array.from(Buffer.from(packet.hex, 'hex')))
  const frames = [...scapy, ...buildFrames(2000, 5).map(built => built.bytes.slice())]
  const each = (check: (steering: Steering) => void) => {
    for (const workers of [1, 2, 3, 16]) check({ workers, seed: randomSeed() })
  }
  const load = (code: Uint8Array, use: (program: number) => void) => {
    const program = loadFilter('dtf_steer', code)
    try {
      use(program)
    } finally {
      closeSync(program)
    }
  }

  it('chooses the worker of a frame as JavaScript does', () => {
    each(steering => {
      const seen = new Set<number>()
      load(steerFrames(steering), program => {
        for (const frame of variations(frames)) {
          const worker = workerOfFrame(frame, 0, frame.length, steering)
          seen.add(worker)
          expect(run(program, frame), Buffer.from(frame).toString('hex')).toBe(worker)
        }
      })
      expect(seen.size).toBe(steering.workers)
    })
  })

  for (const [kind, header, strip] of [
    ['geneve', GENEVE_BARE, 0],
    ['geneve', GENEVE_OPTIONS, 0],
    ['geneve', GENEVE_IP(0x0800), ETHERNET],
    ['geneve', GENEVE_IP(0x86dd), ETHERNET],
    ['vxlan', VXLAN, 0],
  ] as const) {
    it(`chooses the worker of a tunnel packet by what is in it: ${kind}, ${header.length} bytes of header`, () => {
      each(steering => {
        for (const before of [0, 34]) {
          load(steerTunnels(kind, before + 8, steering), program => {
            for (const frame of variations(frames.filter((_, i) => i % 4 === 0))) {
              const tunnelled = inTunnel([...header], frame.subarray(strip))
              const worker = workerOfTunnel(tunnelled, 0, tunnelled.length, kind === 'geneve', steering)
              const bytes = Uint8Array.of(...new Array(before).fill(0), ...tunnelled)
              expect(run(program, bytes), Buffer.from(frame).toString('hex')).toBe(worker)
            }
          })
        }
      })
    })
  }
})

describe.skipIf(missing !== '')(title('a TAP with three queues'), () => {
  const namespace = 'dtf-steer'
  const steering: Steering = { workers: 3, seed: Int32Array.of(77, -78) }
  // Sends frames, given in hexadecimal, out of an interface.
  const SEND = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for line in sys.stdin: s.send(bytes.fromhex(line))
`

  /** The queue that each frame came out of, by its bytes. */
  function queuesOf(program: Uint8Array, frames: Uint8Array[]): Map<string, number> {
    const filter = loadFilter('dtf_steer', program)
    deleteNamespace(namespace)
    createNamespace(namespace)
    const tap = openTap({ name: 'three0', namespace, queues: 3, steering: filter })
    try {
      closeSync(filter)
      quietTap('three0', namespace)
      const input = frames.map(frame => `${Buffer.from(frame).toString('hex')}\n`).join('')
      inNamespace(namespace, () => execFileSync('/usr/bin/python3', ['-c', SEND, 'three0'], { input }))
      const found = new Map<string, number>()
      const buffer = new Uint8Array(4096)
      for (const [queue, fd] of tap.fds.entries()) {
        for (let n = 0; (n = read(fd, addressOf(buffer), buffer.length)) > 0; )
          found.set(Buffer.from(buffer.subarray(tap.headerSize, n)).toString('hex'), queue)
      }
      return found
    } finally {
      for (const fd of tap.fds) closeSync(fd)
      deleteNamespace(namespace)
    }
  }

  const scapy = packets.map(packet => Uint8Array.from(Buffer.from(packet.hex, 'hex')))

  it("gives each frame, and each tunnel packet of it, to its worker's queue", () => {
    const outer = (udp: Uint8Array) => Uint8Array.of(...new Array(12).fill(2), 8, 0, ...new Array(20).fill(0), ...udp)
    const queues = queuesOf(steerFrames(steering), scapy)
    expect(queues.size).toBe(new Set(packets.map(packet => packet.hex)).size)
    const seen = new Set<number>()
    for (const frame of scapy) {
      const queue = queues.get(Buffer.from(frame).toString('hex'))
      seen.add(queue ?? -1)
      expect(queue).toBe(workerOfFrame(frame, 0, frame.length, steering))
    }
    expect([...seen].sort()).toEqual([0, 1, 2])
    for (const [kind, header] of [
      ['geneve', GENEVE_OPTIONS],
      ['vxlan', VXLAN],
    ] as const) {
      const tunnelled = scapy.map(frame => outer(inTunnel([...header], frame)))
      const inside = queuesOf(steerTunnels(kind, ETHERNET + 20 + 8, steering), tunnelled)
      for (const [i, frame] of scapy.entries()) {
        const queue = inside.get(Buffer.from(tunnelled[i]).toString('hex'))
        expect(queue).toBe(queues.get(Buffer.from(frame).toString('hex')))
      }
    }
  })
})

describe('steering', () => {
  const steering: Steering = { workers: 16, seed: Int32Array.of(0x1234567, -0x7654321) }
  const bytesOf = (hex: string) => Uint8Array.from(Buffer.from(hex, 'hex'))
  const isFragment = (name: string) => /\bfragment\b/.test(name)

  it('brings everything of a flow to one worker: both directions, errors about it; packets are scapy’s', () => {
    for (const flow of Object.keys(flows)) {
      // Errors that quote too little to belong to a flow may be anywhere, each always at one worker.
      if (flow.startsWith('quote of nothing')) continue
      const own = packets.filter(packet => packet.flow === flow)
      const workers = (some: typeof own) =>
        new Set(some.map(({ hex }) => workerOfFrame(bytesOf(hex), 0, hex.length / 2, steering)))
      expect(workers(own.filter(({ name }) => !isFragment(name))).size, flow).toBeLessThanOrEqual(1)
    }
  })

  it('brings a packet through any tunnel to the worker that it came from', () => {
    for (const { hex } of packets) {
      const frame = bytesOf(hex)
      const worker = workerOfFrame(frame, 0, frame.length, steering)
      for (const [header, geneve] of [
        [GENEVE_BARE, true],
        [GENEVE_OPTIONS, true],
        [VXLAN, false],
      ] as const) {
        const tunnelled = inTunnel([...header], frame)
        expect(workerOfTunnel(tunnelled, 0, tunnelled.length, geneve, steering)).toBe(worker)
      }
      const type = (frame[12] << 8) | frame[13]
      if (type === 0x0800 || type === 0x86dd) {
        const bare = inTunnel(GENEVE_IP(type), frame.subarray(ETHERNET))
        expect(workerOfTunnel(bare, 0, bare.length, true, steering)).toBe(worker)
      }
    }
  })
})
