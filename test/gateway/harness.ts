// An engine on a device that the test fills and empties, all in one thread.

import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Device } from '../../src/device/device.ts'
import { parseFaults } from '../../src/device/faults.ts'
import { DROP_COUNT, dropName } from '../../src/drop.ts'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { createFlowTable } from '../../src/flow/layout.ts'
import { Engine, type EngineOptions } from '../../src/gateway/engine.ts'
import type { Policy } from '../../src/gateway/judge.ts'
import { Batch } from '../../src/memory/batch.ts'
import { COLUMN, Counters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../../src/memory/pool.ts'
import { TUNNEL_PORT, type TunnelConfig } from '../../src/pipeline/tunnel.ts'

/** A device of bytes. */
class Wire implements Device {
  readonly name = 'wire'
  readonly capabilities = 0
  readonly fd = -1
  readonly exhausted = false
  readonly inbox: Uint8Array[] = []
  readonly outbox: Uint8Array[] = []
  now = 0
  private readonly pool: Pool

  constructor(pool: Pool) {
    this.pool = pool
  }

  receive(batch: Batch): number {
    const { pool, inbox } = this
    let n = 0
    for (; inbox.length > 0 && batch.room > 0 && pool.available > 0; n++) {
      const bytes = inbox.shift()!
      const frame = pool.alloc()
      // NB: what a frame held before must not matter.
      pool.bytes.fill(0xa5, frame * pool.frameSize, pool.limit(frame))
      pool.bytes.set(bytes, pool.start[frame])
      pool.length[frame] = bytes.length
      pool.time[frame] = this.now
      batch.push(frame)
    }
    return n
  }

  transmit(batch: Batch): void {
    const { pool } = this
    for (const frame of batch.frames.subarray(0, batch.length)) {
      this.outbox.push(pool.bytes.slice(pool.start[frame], pool.start[frame] + pool.length[frame]))
    }
    pool.freeAll(batch)
  }

  close(): void {}
}

export interface Bench {
  /** Sends frames in, one batch, and returns those that came out. */
  exchange(frames: Uint8Array[], timeMs?: number): Uint8Array[]
  /** What goes wrong from now on: a SPEC; nothing when it is empty. */
  faults(spec: string): void
  /** What faults have let go of by now. */
  late(): Uint8Array[]
  /** Verdict lines so far. */
  log(): Record<string, unknown>[]
  /** Bytes of the log so far. */
  logText(): string
  /** Drops by stage and reason so far. */
  drops(): Record<string, Record<string, number>>
  /** Says of each stage that its accounts do not balance, and how many frames are missing. */
  leaks(): string[]
  close(): void
}

/** A wire with two ends: what goes in at one comes out of the other. */
function cable(pool: Pool): [Device, Device] {
  const [left, right] = [new Wire(pool), new Wire(pool)]
  const end = (own: Wire, other: Wire): Device => ({
    ...{ name: 'cable', capabilities: 0, fd: -1, exhausted: false },
    receive: batch => own.receive(batch),
    transmit(batch) {
      own.transmit(batch)
      other.inbox.push(...own.outbox.splice(0))
    },
    close() {},
  })
  return [end(left, right), end(right, left)]
}

/** With `inline`, a cable is between the interfaces for an appliance. */
export function bench(profile: 'geneve' | 'vxlan', policy: Policy, frames = 512, inline = false): Bench {
  const directory = mkdtempSync(join(tmpdir(), 'detour-test-'))
  const path = join(directory, 'verdicts')
  const logFd = openSync(path, 'a')
  const pool = new Pool(createPool({ frames, frameSize: HEADROOM + 4096, headroom: HEADROOM }))
  const counters = new Counters()
  const wire = new Wire(pool)
  const tunnel: TunnelConfig = {
    profile,
    kind: profile,
    port: TUNNEL_PORT[profile],
    vni: 0,
    local: [0, 0, 0, 0],
    remote: [0, 0, 0, 0],
    ttl: 64,
    dscp: 'copy',
    ecn: 'normal',
    outerChecksum: 'auto',
    zeroChecksum6: false,
    strictReserved: false,
    innerVlan: false,
    metadata: true,
  }
  const flows = createFlowTable({ capacity: 16 })
  const options: EngineOptions = {
    tunnel,
    own: [[10, 99, 0, 2]],
    policy,
    flows,
    seed: FIXED_SEED,
    logFd,
    live: false,
  }
  const engine = new Engine(pool, counters, wire, options, [], inline ? cable(pool) : undefined)
  const batch = new Batch()
  const logText = () => {
    engine.tick()
    return readFileSync(path, 'utf8')
  }
  return {
    exchange(frames, timeMs = 0) {
      wire.now = timeMs
      wire.inbox.push(...frames)
      while (wire.receive(batch) > 0) engine.leg.run(batch)
      for (const leg of engine.applianceLegs) while (leg.device.receive(batch) > 0) leg.run(batch)
      return wire.outbox.splice(0)
    },
    faults: spec => engine.faultStage.set(spec === '' ? [] : parseFaults(spec).faults),
    late() {
      engine.faultStage.leg.device.receive(batch)
      return wire.outbox.splice(0)
    },
    logText,
    log: () =>
      logText()
        .split('\n')
        .slice(0, -1)
        .map(line => JSON.parse(line)),
    drops() {
      const drops: Record<string, Record<string, number>> = {}
      for (const stage of counters.stages)
        for (let reason = 1; reason < DROP_COUNT; reason++)
          if (stage.drops(reason) > 0) (drops[stage.name] ??= {})[dropName(reason)] = stage.drops(reason)
      return drops
    },
    leaks() {
      const bad = counters.stages
        .filter(({ row }) => row[COLUMN.OUT_PACKETS] > 0 || row[COLUMN.IN_PACKETS] > 0)
        .filter(stage => {
          const { row } = stage
          return row[COLUMN.IN_PACKETS] + row[COLUMN.CREATED] !== row[COLUMN.OUT_PACKETS] + stage.drops()
        })
        .map(stage => stage.name)
      return pool.available === pool.frames ? bad : [...bad, `${pool.frames - pool.available} frames`]
    },
    close() {
      closeSync(logFd)
      rmSync(directory, { recursive: true })
    },
  }
}

export const fixture = (name: string) => new URL(`../../fixtures/policy/${name}`, import.meta.url).pathname
