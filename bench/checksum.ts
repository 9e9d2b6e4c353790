// What the Internet checksum costs in plain JavaScript, by size: ours against the ways one would write it first. Sums begin 2
// bytes behind a multiple of 4, as those of an IP packet behind its Ethernet header do.

import { fold, sum } from '../src/wire/checksum.ts'
import { type Bench, type Contender, calls } from './harness.ts'

const SIZES = [20, 64, 576, 1460, 65_536]
const PACKETS = 256
const STRIDE = 2048
const FIRST = 142
const END = FIRST + PACKETS * STRIDE
const MEMORY = END + 65_536 - (FIRST & 3)

// NB: variables, for a constant array's address and length would be compiled into the rivals' code, and ours serves any.
let b = new Uint8Array(0)
let halves = new Uint16Array(0)
let words = new Uint32Array(0)
let view = new DataView(b.buffer)

/** Sums of so many bytes of each packet, combined. NB: a loop for each way, so that one's inlining does not depend on the others. */
const WAYS: [name: string, all: (size: number) => number][] = [
  [
    'bytes in pairs',
    size => {
      let all = 0
      for (let at = FIRST; at < END; at += STRIDE) all ^= byBytes(at, at + size)
      return all
    },
  ],
  [
    'Uint16Array, swapped at the end',
    size => {
      let all = 0
      for (let at = FIRST; at < END; at += STRIDE) all ^= byHalves(at, at + size)
      return all
    },
  ],
  [
    'DataView, 16 bits',
    size => {
      let all = 0
      for (let at = FIRST; at < END; at += STRIDE) all ^= byView(at, at + size)
      return all
    },
  ],
  [
    'Uint32Array, carries counted',
    size => {
      let all = 0
      for (let at = FIRST; at < END; at += STRIDE) all ^= byCarry(at, at + size)
      return all
    },
  ],
  [
    'Uint32Array, added as doubles',
    size => {
      let all = 0
      for (let at = FIRST; at < END; at += STRIDE) all ^= byDoubles(at, at + size)
      return all
    },
  ],
  [
    'sum',
    size => {
      let all = 0
      for (let at = FIRST; at < END; at += STRIDE) all ^= sum(b, at, at + size)
      return all
    },
  ],
]

export async function run(bench: Bench): Promise<void> {
  const memory = new ArrayBuffer(MEMORY)
  b = new Uint8Array(memory)
  halves = new Uint16Array(memory)
  words = new Uint32Array(memory)
  view = new DataView(memory)
  for (let i = 0; i < b.length; i++) b[i] = Math.imul(i, 0x9e3779b1) >>> 24
  for (const size of SIZES) {
    for (const [name, all] of WAYS)
      if (all(size) !== WAYS[0][1](size)) throw new Error(`${name} sums ${size} bytes wrongly`)
    await bench.ask({
      name: `checksum of ${size.toLocaleString('en-US')} bytes`,
      unit: 'ns',
      better: 'less',
      contenders: WAYS.map(([name, all]): Contender => {
        return { name, rival: name !== 'sum', measure: calls(() => all(size), PACKETS, bench.short ? 0.01 : 0.1) }
      }),
    })
  }
}

function byBytes(from: number, to: number): number {
  const bytes = b
  let total = 0
  for (let at = from; at < to; at += 2) total += (bytes[at] << 8) | bytes[at + 1]
  return fold(total)
}

function byHalves(from: number, to: number): number {
  const w = halves
  let total = 0
  for (let i = from >> 1; i < to >> 1; i++) total += w[i]
  return swapped(fold(total))
}

function byView(from: number, to: number): number {
  const v = view
  let total = 0
  for (let at = from; at < to; at += 2) total += v.getUint16(at)
  return fold(total)
}

function byCarry(from: number, to: number): number {
  const w = words
  let total = halves[from >> 1]
  let carries = 0
  for (let i = (from + 2) >> 2; i < to >> 2; i++) {
    const word = w[i]
    total = (total + word) >>> 0
    if (total < word) carries++
  }
  return swapped(fold(fold(total) + carries + halves[(to >> 1) - 1]))
}

function byDoubles(from: number, to: number): number {
  const w = words
  let [even, odd] = [halves[from >> 1], halves[(to >> 1) - 1]]
  let i = (from + 2) >> 2
  const last = to >> 2
  for (; i < last - 1; i += 2) {
    even += w[i]
    odd += w[i + 1]
  }
  if (i < last) even += w[i]
  const total = even + odd
  return swapped(fold(fold(total >>> 0) + fold(Math.floor(total / 2 ** 32))))
}

function swapped(sum: number): number {
  return ((sum & 0xff) << 8) | (sum >>> 8)
}
