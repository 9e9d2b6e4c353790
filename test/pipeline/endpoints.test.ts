// A forwarder with several endpoints: who gets a flow, when an endpoint is up, and what becomes of the flows of one that is not.

import { describe, expect, test } from 'vitest'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { type EndpointEntry, EndpointTable, SEGMENT_SIZE } from '../../src/memory/endpoints.ts'
import { createHealth, HEALTH, readHealth, resetHealth } from '../../src/memory/health.ts'
import { monotonicMs } from '../../src/os/clock.ts'
import type { ProbeOptions } from '../../src/pipeline/probe.ts'
import { address, frame, POD, TUNNEL_ENDS, turned, type Version } from './packets.ts'
import { Rig, TUNNELS, tunnelConfig } from './rig.ts'
import type { Packet } from './super.ts'

const ENDPOINTS = {
  4: ['192.0.2.11', '192.0.2.12', '192.0.2.13'],
  6: ['2001:db8:f::1', '2001:db8:f::2', '2001:db8:f:ffff::1'],
} as const
const MTU = 9000

interface PoolOptions {
  version?: Version
  moves?: boolean
  probe?: ProbeOptions
  direct?: boolean
  failClosed?: boolean
}

/** A forwarder with three endpoints, numbers 1 to 3, and a pod. */
class PoolRig {
  readonly table: EndpointTable
  readonly health = createHealth()
  readonly rig: Rig
  readonly pod: ReturnType<Rig['pod']>
  readonly version: Version
  private readonly entries: EndpointEntry[]

  constructor({ version = 4, moves = true, probe, direct, failClosed = true }: PoolOptions = {}) {
    this.version = version
    this.table = new EndpointTable({ moves, segmentSize: SEGMENT_SIZE.ANY })
    this.entries = ENDPOINTS[version].map(text => ({
      address: Uint8Array.from(address(text)),
      ...{ weight: 1, draining: false, mtu: MTU, hop: undefined },
    }))
    for (const [i, entry] of this.entries.entries()) this.table.set(i + 1, entry)
    const endpoints = { table: this.table.handle, health: this.health, seed: FIXED_SEED }
    this.rig = new Rig({ tunnel: tunnelConfig('geneve', version), probe, endpoints, direct })
    this.pod = this.rig.pod(POD.mac, failClosed)
    // Flows live by the clock of their packets and end by that of ticks.
    this.pod.now = monotonicMs()
  }

  /** Publishes something else of an endpoint, and has the worker see it. */
  change(number: number, change: Partial<EndpointEntry> | undefined): void {
    const entry = change && { ...this.entries[number - 1], ...change }
    this.table.set(number, entry)
    this.tick()
  }

  /** What the main thread's checks say. */
  fail(number: number, bits: number): void {
    Atomics.store(new Int32Array(this.health), number * HEALTH.WORDS + HEALTH.FAILING, bits)
    this.tick()
  }

  tick(now = performance.now()): void {
    this.rig.forwarder.tick(now)
  }

  /** The endpoint that each of some flows, by their ports, is sent to now: its number, 0 for none. */
  send(ports: number[]): number[] {
    return ports.map(port => this.goesTo(this.rig.toward(this.pod, frame({ sourcePort: port }))))
  }

  /** The number of the endpoint that a packet's outer header names. */
  goesTo(packets: Packet[]): number {
    if (packets.length === 0) return 0
    const bytes = this.version === 4 ? packets[0].bytes.slice(30, 34) : packets[0].bytes.slice(38, 54)
    return 1 + this.entries.findIndex(entry => `${entry.address}` === `${bytes}`)
  }
}

const PORTS = Array.from({ length: 90 }, (_, i) => 20_000 + i)
const count = (numbers: number[], number: number) => numbers.filter(one => one === number).length

describe('flows', () => {
  test.each([4, 6] as const)('go to one endpoint each and stay, over IPv%d', version => {
    const pool = new PoolRig({ version })
    const first = pool.send(PORTS)
    for (const number of [1, 2, 3]) expect(count(first, number)).toBeGreaterThan(10)
    expect(pool.send(PORTS)).toEqual(first)
    for (const number of [1, 2, 3]) expect(pool.rig.flows.countTo(number)).toBe(count(first, number))
    pool.rig.balanced()
  })

  test('both directions of a flow go to the same endpoint, whichever came first', () => {
    const pool = new PoolRig()
    for (const port of PORTS.slice(0, 30)) {
      const there = frame({ sourcePort: port, port: 443 })
      const back = frame({
        ...{ from: '192.0.2.9', to: POD.ip4, fromMac: '02:00:00:00:0b:02', toMac: POD.mac },
        ...{ sourcePort: 443, port },
      })
      const order = port % 2 === 0 ? [there, back] : [back, there]
      const [one, other] = order.map(packet => pool.goesTo(pool.rig.toward(pool.pod, packet)))
      expect(one).toBe(other)
      expect(one).toBeGreaterThan(0)
    }
    pool.rig.balanced()
  })

  test('a draining endpoint keeps its flows and gets no new ones; with no other there is none', () => {
    const pool = new PoolRig()
    const first = pool.send(PORTS)
    pool.change(2, { draining: true })
    expect(pool.send(PORTS)).toEqual(first)
    const more = PORTS.map(port => port + 1000)
    const later = pool.send(more)
    expect(count(later, 2)).toBe(0)
    expect(count(later, 0)).toBe(0)
    for (const number of [1, 3]) pool.change(number, { draining: true })
    expect(pool.send([30_000])).toEqual([0])
    expect(pool.rig.drops).toEqual({ 'decide endpoint-down': 1 })
    expect(pool.send(PORTS)).toEqual(first)
    pool.rig.balanced()
  })

  test('a dead endpoint moves its own flows only, and they do not jump back', () => {
    const pool = new PoolRig()
    const first = pool.send(PORTS)
    pool.fail(1, 1)
    const second = pool.send(PORTS)
    for (const [i, number] of first.entries()) {
      if (number === 1) expect([2, 3]).toContain(second[i])
      else expect(second[i]).toBe(number)
    }
    expect(readHealth(pool.health, 1).moved).toBe(count(first, 1))
    expect(pool.rig.flows.countTo(1)).toBe(0)
    pool.fail(1, 0)
    expect(readHealth(pool.health, 1).up).toBe(true)
    expect(pool.send(PORTS)).toEqual(second)
    expect(count(pool.send(PORTS.map(port => port + 1000)), 1)).toBeGreaterThan(0)
    pool.rig.balanced()
  })

  test.each([
    [true, { 'decide endpoint-down': 1 }, 0],
    [false, {}, 1],
  ])('where they never move they fall under the fail mode, closed: %s', (failClosed, drops, passed) => {
    const pool = new PoolRig({ moves: false, failClosed })
    const first = pool.send(PORTS)
    const port = PORTS[first.indexOf(2)]
    const other = PORTS[first.indexOf(3)]
    pool.fail(2, 2)
    expect(pool.send([port, other])).toEqual([0, 3])
    expect(pool.rig.drops).toEqual(drops)
    expect(pool.pod.take()).toHaveLength(passed)
    expect(count(pool.send(PORTS.map(port => port + 1000)), 2)).toBe(0)
    pool.fail(2, 0)
    expect(pool.send([port, other])).toEqual([2, 3])
    pool.rig.balanced()
  })

  test('one that left the pool keeps no flows, even where they never move; one that comes takes none from others', () => {
    const pool = new PoolRig({ moves: false })
    const first = pool.send(PORTS)
    pool.change(3, undefined)
    const second = pool.send(PORTS)
    for (const [i, number] of first.entries()) {
      if (number === 3) expect([1, 2]).toContain(second[i])
      else expect(second[i]).toBe(number)
    }
    resetHealth(pool.health, 3, true)
    pool.change(3, {})
    expect(pool.send(PORTS)).toEqual(second)
    expect(count(pool.send(PORTS.map(port => port + 1000)), 3)).toBeGreaterThan(0)
    pool.rig.balanced()
  })

  test('when none is up, all fall under the fail mode; flows that begin then get an endpoint later', () => {
    const pool = new PoolRig({ failClosed: false })
    for (const number of [1, 2, 3]) pool.fail(number, 1)
    expect(pool.rig.forwarder.endpointUp).toBe(false)
    expect(pool.send(PORTS)).toEqual(PORTS.map(() => 0))
    expect(pool.pod.take()).toHaveLength(PORTS.length)
    pool.fail(2, 0)
    expect(pool.send(PORTS)).toEqual(PORTS.map(() => 2))
    pool.rig.balanced()
  })
})

describe('what comes back', () => {
  test.each(TUNNELS.filter(({ kind }) => kind === 'geneve'))(
    'is let in from any endpoint of the pool, and from nobody else, $name',
    ({ outer }) => {
      const pool = new PoolRig({ version: outer })
      const [sent] = pool.rig.toward(pool.pod, frame())
      const own = pool.goesTo([sent])
      const at = outer === 4 ? 26 : 22
      const size = outer === 4 ? 4 : 16
      const from = (source: ArrayLike<number>) => {
        const bytes = turned(sent.bytes)
        bytes.set(Array.from(source), at)
        if (outer === 4) {
          bytes.set([0, 0], 24)
          let sum = 0
          for (let i = 14; i < 34; i += 2) sum += (bytes[i] << 8) | bytes[i + 1]
          sum = ~((sum & 0xffff) + (sum >>> 16)) & 0xffff
          bytes.set([sum >> 8, sum & 255], 24)
        }
        // Zero is "none" (RFC 768); over IPv6 it is refused after the peer is known.
        bytes.set([0, 0], at + 2 * size + 6)
        pool.rig.back(bytes)
        return pool.pod.take().length
      }
      for (const [i, text] of ENDPOINTS[outer].entries()) {
        const allowed = from(address(text))
        if (outer === 4) expect([i, allowed]).toEqual([i, 1])
      }
      expect(own).toBeGreaterThan(0)
      const before = pool.rig.drops['decap unknown-peer'] ?? 0
      expect(before).toBe(0)
      from(address(TUNNEL_ENDS[outer].remote))
      from(address(ENDPOINTS[outer][0]).map((byte, i, all) => (i === all.length - 1 ? byte ^ 0x80 : byte)))
      expect(pool.rig.drops['decap unknown-peer']).toBe(2)
      pool.change(3, undefined)
      from(address(ENDPOINTS[outer][2]))
      expect(pool.rig.drops['decap unknown-peer']).toBe(3)
      pool.rig.balanced()
    },
  )
})

describe('the way to each endpoint', () => {
  test('what an endpoint’s path does not carry is answered with the MTU of that path', () => {
    const pool = new PoolRig()
    const [port] = PORTS
    const [number] = pool.send([port])
    pool.change(number, { mtu: 1400 })
    expect(pool.rig.toward(pool.pod, frame({ sourcePort: port, data: new Uint8Array(1400) }))).toHaveLength(0)
    const [answer] = pool.pod.take()
    // ICMP type 3 code 4, and the next-hop MTU: without outer IPv4, UDP, GENEVE, its option and the inner Ethernet header.
    expect([...answer.bytes.slice(34, 36)]).toEqual([3, 4])
    expect((answer.bytes[40] << 8) | answer.bytes[41]).toBe(1400 - 20 - 8 - 8 - 12 - 14)
    const elsewhere = PORTS.find(other => pool.send([other])[0] !== number)!
    expect(pool.rig.toward(pool.pod, frame({ sourcePort: elsewhere, data: new Uint8Array(1400) }))).toHaveLength(1)
    pool.rig.balanced()
  })

  test('frames have the next hop’s addresses; past the kernel, nothing leaves for a next hop that is not known', () => {
    const pool = new PoolRig({ direct: true })
    const hops = [1, 2].map(i => Uint8Array.of(2, 0, 0, 0, 1, i, 2, 0, 0, 0, 2, i))
    for (const [i, hop] of hops.entries()) pool.change(i + 1, { hop })
    for (const port of PORTS) {
      const [packet] = pool.rig.toward(pool.pod, frame({ sourcePort: port }))
      if (packet === undefined) continue
      expect([...packet.bytes.slice(0, 12)]).toEqual([...hops[pool.goesTo([packet]) - 1]])
    }
    const lost = pool.rig.drops['encap next-hop']
    expect(lost).toBe(pool.rig.flows.countTo(3))
    expect(lost).toBeGreaterThan(0)
    pool.rig.balanced()
  })
})

describe('health', () => {
  const probe = { intervalMs: 100, limitMs: 350, rise: 3, fall: 3, holdDownMs: 0 }

  /** Ticks every 100 ms; `answers` says by round and endpoint number whether its probe comes back. Returns who was up after each. */
  function run(pool: PoolRig, from: number, rounds: number, answers: (round: number, number: number) => boolean) {
    const states: boolean[][] = []
    for (let round = 0; round < rounds; round++) {
      pool.tick(from + round * 100)
      const probes = pool.rig.underlay.take()
      expect(probes).toHaveLength(3)
      pool.rig.bounce(probes.filter(packet => answers(round, pool.goesTo([packet]))))
      // What is under test is not this machine's clock: an answer came when its probe left.
      const doubles = new Float64Array(pool.health)
      for (const number of [1, 2, 3])
        if (answers(round, number)) doubles[(number * HEALTH.WORDS) / 2 + HEALTH.DOUBLES.LAST_ANSWER] = at(from, round)
      states.push([1, 2, 3].map(number => readHealth(pool.health, number).up))
    }
    return states
  }
  // The forwarder's own clock is monotonicMs, from which performance.now() is a fixed way off.
  let offset = 0
  const at = (from: number, round: number) => from + round * 100 + offset
  const start = (options: Partial<ProbeOptions> = {}) => {
    const pool = new PoolRig({ probe: { ...probe, ...options } })
    const now = performance.now()
    pool.tick(now)
    offset = readHealth(pool.health, 1).lastAnswerMs - now
    pool.rig.bounce(pool.rig.underlay.take())
    return { pool, from: now + 100 }
  }
  const changes = (states: boolean[][], number: number) =>
    states.filter((state, i) => i > 0 && state[number - 1] !== states[i - 1][number - 1]).length

  test('each endpoint’s probes tell of it alone', () => {
    const { pool, from } = start()
    const states = run(pool, from, 10, (_, number) => number !== 2)
    expect(states.map(state => state[0] && state[2])).toEqual(states.map(() => true))
    expect(states[2][1]).toBe(true)
    expect(states[9][1]).toBe(false)
    expect(changes(states, 2)).toBe(1)
    expect(readHealth(pool.health, 1)).toMatchObject({ sent: 11, answered: 11 })
    expect(readHealth(pool.health, 2)).toMatchObject({ sent: 11, answered: 1 })
    expect(readHealth(pool.health, 1).buckets.reduce((a, b) => a + b)).toBe(11)
    pool.rig.balanced()
  })

  test('one that answers every second time does not flap: up it stays up, down it stays down', () => {
    const { pool, from } = start()
    const every = (round: number, number: number) => number !== 3 || round % 2 === 0
    expect(changes(run(pool, from, 40, every), 3)).toBe(0)
    const silent = run(pool, from + 4000, 8, (_, number) => number !== 3)
    expect(silent[7][2]).toBe(false)
    expect(changes(run(pool, from + 4800, 40, every), 3)).toBe(0)
    expect(readHealth(pool.health, 3).up).toBe(false)
    pool.rig.balanced()
  })

  test('it is back after so many answers in a row, and not before its hold-down is over', () => {
    const { pool, from } = start({ holdDownMs: 1500 })
    run(pool, from, 8, (_, number) => number !== 1)
    const down = readHealth(pool.health, 1)
    expect(down.up).toBe(false)
    const states = run(pool, from + 800, 20, () => true)
    const back = states.findIndex(state => state[0])
    expect(back).toBeGreaterThan(0)
    const since = readHealth(pool.health, 1).sinceMs
    expect(since - down.sinceMs).toBeGreaterThanOrEqual(1500)
    expect(since - down.sinceMs).toBeLessThan(1700)
    pool.rig.balanced()
  })

  test('a check of the main thread’s takes one down at once, and holds it there', () => {
    const { pool, from } = start()
    pool.fail(2, 1)
    expect(readHealth(pool.health, 2).up).toBe(false)
    pool.rig.underlay.take()
    const states = run(pool, from + 100, 6, () => true)
    expect(changes(states, 2)).toBe(0)
    pool.fail(2, 0)
    expect(readHealth(pool.health, 2).up).toBe(true)
  })

  test('nobody can answer for another: neither a pod nor an endpoint that guesses', () => {
    const { pool, from } = start()
    pool.tick(from)
    const [first] = pool.rig.underlay.take()
    const number = pool.goesTo([first])
    const forge = (change: (bytes: Uint8Array) => void) => {
      const bytes = turned(first.bytes)
      // The inner and outer UDP checksums say "none".
      bytes.set([0, 0], 40)
      bytes.set([0, 0], first.bytes.length - 16 - 2)
      change(bytes)
      pool.rig.back(bytes)
    }
    const end = first.bytes.length
    const answered = () => [1, 2, 3].map(one => readHealth(pool.health, one).answered)
    const before = answered()
    forge(bytes => bytes.set([0, 0, 0, (number % 3) + 1], end - 12))
    forge(bytes => {
      bytes[end - 1] ^= 1
    })
    forge(bytes => bytes.set([0xff, 0xff, 0xff, 0xff], end - 12))
    forge(bytes => bytes.set([0x7f, 0xff, 0xff, 0xff], end - 8))
    expect(answered()).toEqual(before)
    forge(() => {})
    expect(answered()).toEqual(before.map((count, i) => (i + 1 === number ? count + 1 : count)))
    forge(() => {})
    expect(answered()[number - 1]).toBe(before[number - 1] + 1)
  })
})
