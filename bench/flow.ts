// What a packet costs in the flow table, by number of flows and in random order, against a JavaScript Map; and what key,
// hash and policy cost.

import { FragmentTable } from '../src/flow/fragments.ts'
import { FIXED_SEED, hashKey } from '../src/flow/hash.ts'
import { KEY, readKey } from '../src/flow/key.ts'
import { createFlowTable } from '../src/flow/layout.ts'
import { compile, Policy, type PolicyRule } from '../src/flow/policy.ts'
import { FlowTable } from '../src/flow/table.ts'
import { VERDICT } from '../src/flow/verdict.ts'
import { Batch } from '../src/memory/batch.ts'
import { createPool, KEY_WORDS, Pool } from '../src/memory/pool.ts'
import { PROTOCOL, write as writeIpv4 } from '../src/wire/ipv4.ts'
import { write as writeUdp } from '../src/wire/udp.ts'
import { type Bench, calls, each, heap } from './harness.ts'

export async function run(bench: Bench): Promise<void> {
  for (const flows of bench.short ? [1000] : [1000, 10_000, 100_000, 1_000_000]) await lookup(bench, flows)
  await churn(bench, bench.short ? 10_000 : 1_000_000)
  await allocation(bench)
  await parts(bench)
}

/** TCP flows between 10/8 and 192.0.2.1, as flow keys. */
function makeKeys(flows: number): Int32Array {
  const keys = new Int32Array(flows * KEY_WORDS)
  for (let i = 0; i < flows; i++) {
    const at = i * KEY_WORDS
    keys[at + KEY.KIND] = (4 << 24) | (PROTOCOL.TCP << 16) | 1
    keys[at + KEY.PORTS] = ((1024 + (i % 60_000)) << 16) | 443
    keys[at + KEY.A] = 0x0a000000 + Math.floor(i / 7)
    keys[at + KEY.B] = 0xc0000201 | 0
  }
  return keys
}

function hashes(keys: Int32Array): Int32Array {
  return Int32Array.from({ length: keys.length / KEY_WORDS }, (_, i) => hashKey(keys, i * KEY_WORDS, FIXED_SEED))
}

/** Numbers under `flows` in an order that no prefetcher foresees, the same in every run. */
function randomOrder(length: number, flows: number): Int32Array {
  let state = 1
  return Int32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    return Math.floor(((state >>> 0) / 2 ** 32) * flows)
  })
}

interface Counted {
  keys: Int32Array
  packets: number
  bytes: number
  lastSeen: number
}

function fill(keys: Int32Array, hash: Int32Array): FlowTable {
  const table = new FlowTable(createFlowTable({ capacity: hash.length }))
  table.now = 1
  for (let i = 0; i < hash.length; i++) table.insert(keys, i * KEY_WORDS, hash[i], 0)
  return table
}

const nameOf = (keys: Int32Array, at: number) =>
  `${keys[at]} ${keys[at + 1]} ${keys[at + 2]} ${keys[at + 3]} ${keys[at + 6]} ${keys[at + 7]}`

async function lookup(bench: Bench, flows: number): Promise<void> {
  const keys = makeKeys(flows)
  const hash = hashes(keys)
  const order = randomOrder(bench.short ? 10_000 : 1_000_000, flows)
  const table = fill(keys, hash)
  // The keys of the packets, in the order of their arrival, as a pool would have them.
  const packets = new Int32Array(order.length * KEY_WORDS)
  const packetHash = order.map(i => hash[i])
  for (const [n, i] of order.entries()) packets.set(keys.subarray(i * KEY_WORDS, (i + 1) * KEY_WORDS), n * KEY_WORDS)
  const batch = new Batch()
  const flow = new Int32Array(packetHash.length).fill(-1)
  const byName = new Map<string, Counted>()
  const byHash = new Map<number, Counted>()
  for (let i = 0; i < flows; i++) {
    const at = i * KEY_WORDS
    byName.set(nameOf(keys, at), { keys: keys.slice(at, at + KEY.WORDS), packets: 0, bytes: 0, lastSeen: 0 })
    byHash.set(hash[i], byName.get(nameOf(keys, at))!)
  }
  const count = (flow: Counted | undefined) => {
    if (flow === undefined) throw new Error('a flow is missing')
    flow.packets += 1
    flow.bytes += 64
    flow.lastSeen = 2.5
  }
  await bench.ask({
    name: `find and count a packet, ${flows.toLocaleString('en-US')} flows in random order`,
    unit: 'ns',
    better: 'less',
    contenders: [
      {
        name: 'Map by string',
        measure: each(order.length, () => {
          for (let at = 0; at < packets.length; at += KEY_WORDS) count(byName.get(nameOf(packets, at)))
        }),
      },
      {
        name: 'Map by hash, collisions ignored',
        rival: true,
        measure: each(order.length, () => {
          for (let n = 0; n < packetHash.length; n++) count(byHash.get(packetHash[n]))
        }),
      },
      {
        name: 'FlowTable',
        measure: each(order.length, () => {
          for (let n = 0; n < packetHash.length; n++)
            table.touch(table.find(packets, n * KEY_WORDS, packetHash[n]), n & 1, 1, 64)
        }),
      },
      {
        name: 'FlowTable, warmed by the batch',
        measure: each(order.length, () => {
          for (let n = 0; n < packetHash.length; ) {
            batch.length = 0
            while (batch.room > 0 && n < packetHash.length) {
              flow[n] = -1
              batch.push(n++)
            }
            table.warm(batch, packetHash, flow)
            for (let i = 0; i < batch.length; i++) {
              const frame = batch.frames[i]
              const row = table.known(flow[frame], packets, frame * KEY_WORDS, packetHash[frame])
              table.touch(row, frame & 1, 1, 64)
            }
          }
        }),
      },
    ],
  })
}

async function churn(bench: Bench, flows: number): Promise<void> {
  const keys = makeKeys(flows)
  const hash = hashes(keys)
  const live = fill(keys, hash)
  const table = new FlowTable(createFlowTable({ capacity: flows }))
  let now = 0
  await bench.ask({
    name: `a flow's whole life and the sweep, ${flows.toLocaleString('en-US')} flows`,
    unit: 'ns',
    better: 'less',
    contenders: [
      {
        name: 'Map by string: set, delete',
        measure: each(flows, () => {
          const map = new Map<string, Counted>()
          for (let i = 0; i < flows; i++)
            map.set(nameOf(keys, i * KEY_WORDS), { keys, packets: 0, bytes: 0, lastSeen: 0 })
          for (let i = 0; i < flows; i++) map.delete(nameOf(keys, i * KEY_WORDS))
        }),
      },
      {
        name: 'FlowTable: insert, expire',
        measure: each(flows, () => {
          for (let i = 0; i < flows; i++) table.insert(keys, i * KEY_WORDS, hash[i], 0)
          table.now = now += 1e6
          while (table.count > 0) table.expire(1024)
        }),
      },
      {
        name: 'FlowTable: sweep over a live row',
        measure: each(flows, () => {
          for (let i = 0; i < flows; i += 1000) live.expire(1000)
        }),
      },
    ],
  })
}

async function allocation(bench: Bench): Promise<void> {
  const flows = 1000
  const keys = makeKeys(flows)
  const hash = hashes(keys)
  const table = fill(keys, hash)
  const map = new Map<string, Counted>()
  for (let i = 0; i < flows; i++) map.set(nameOf(keys, i * KEY_WORDS), { keys, packets: 0, bytes: 0, lastSeen: 0 })
  const packets = 5000
  const byName = () => {
    for (let n = 0; n < packets; n++) map.get(nameOf(keys, (n % flows) * KEY_WORDS))!.packets++
  }
  const byTable = () => {
    for (let n = 0; n < packets; n++) {
      const at = (n % flows) * KEY_WORDS
      table.now = n + 0.5
      table.touch(table.find(keys, at, hashKey(keys, at, FIXED_SEED)), 0, 1, 64)
    }
  }
  for (let i = 0; i < 200; i++) {
    byName()
    byTable()
  }
  await bench.ask({
    name: 'heap that a packet of a known flow allocates',
    unit: 'bytes',
    better: 'less',
    resolution: 1,
    contenders: [
      { name: 'Map by string', measure: heap(packets, byName) },
      { name: 'FlowTable', measure: heap(packets, byTable) },
    ],
  })
}

async function parts(bench: Bench): Promise<void> {
  const handle = createPool({ frames: 256, frameSize: 2048, headroom: 128 })
  const pool = new Pool(handle)
  for (let frame = 0; frame < pool.frames; frame++) {
    const network = (pool.network[frame] = pool.start[frame] = frame * pool.frameSize + 128)
    pool.length[frame] = 64
    pool.protocol[frame] = PROTOCOL.UDP
    pool.transport[frame] = network + 20
    writeIpv4(pool.bytes, network, 20, 0, 64, frame, 0, 64, PROTOCOL.UDP, 0x0a000000 + frame, 0x0a800001)
    writeUdp(pool.bytes, network + 20, 1024 + frame, 53, 44, 0)
  }
  const fragments = new FragmentTable()
  const keys = makeKeys(1000)
  const wide = keys.slice()
  for (let at = 0; at < wide.length; at += KEY_WORDS) wide[at] = (6 << 24) | (PROTOCOL.TCP << 16) | 1
  const hash = (from: Int32Array) => () => {
    let sum = 0
    for (let at = 0; at < from.length; at += KEY_WORDS) sum ^= hashKey(from, at, FIXED_SEED)
    return sum
  }
  const name = () => {
    let length = 0
    for (let at = 0; at < keys.length; at += KEY_WORDS) length += nameOf(keys, at).length
    return length
  }
  const match = (rules: number) => {
    const list: PolicyRule[] = Array.from({ length: rules }, (_, i) => ({
      from: [`172.16.${i % 256}.0/24`],
      protocol: 'tcp',
      ports: [80, '8000-8999'],
      verdict: VERDICT.DROP,
    }))
    const policy = new Policy(compile(list, VERDICT.PASS))
    return () => {
      let sum = 0
      for (let at = 0; at < keys.length; at += KEY_WORDS) sum += policy.match(keys, at, 0)
      return sum
    }
  }
  const read = () => {
    for (let frame = 0; frame < 256; frame++) readKey(pool, frame, fragments, FIXED_SEED, true)
  }
  await bench.ask({
    name: 'the parts, by benny',
    unit: 'ns',
    better: 'less',
    contenders: [
      { name: 'a string of an IPv4 key, as a Map needs it', measure: calls(name, 1000) },
      { name: 'hash of an IPv4 key', measure: calls(hash(keys), 1000) },
      { name: 'hash of an IPv6 key', measure: calls(hash(wide), 1000) },
      { name: 'readKey of an IPv4 packet, hash included', measure: calls(read, 256) },
      { name: 'policy of 10 rules, none matches', measure: calls(match(10), 1000) },
      { name: 'policy of 300 rules, none matches', measure: calls(match(300), 1000) },
    ],
  })
}
