// A gateway in the thread of a test: frames go in at one end of a tunnel and come out at it.

import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tunnelOf } from '../../src/cli/options.ts'
import type { Device } from '../../src/device/device.ts'
import { DROP_COUNT, dropName } from '../../src/drop.ts'
import { FIXED_SEED } from '../../src/flow/hash.ts'
import { createFlowTable } from '../../src/flow/layout.ts'
import { Engine } from '../../src/gateway/engine.ts'
import type { Policy } from '../../src/gateway/judge.ts'
import type { Signature } from '../../src/gateway/suricata/model.ts'
import { Batch } from '../../src/memory/batch.ts'
import { Counters } from '../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../../src/memory/pool.ts'
import { Encap } from '../../src/pipeline/encap.ts'
import { parse } from '../../src/pipeline/parse.ts'

/** Ethernet, IPv4, UDP and VXLAN. */
const OUTER = 50

export interface Verdict {
  sourcePort: number
  destinationPort: number
  rule: string
  action: string
  detail?: string
}

export interface Came {
  frame: Uint8Array
  timeMs: number
}

export interface Gateway {
  /** What becomes of a frame: what comes out of the tunnel for it. */
  exchange(frame: Uint8Array, timeMs: number): Uint8Array[]
  /** What came so far. */
  readonly came: Came[]
  /** The verdict log so far. */
  verdicts(): Verdict[]
  /** Reasons for which packets were dropped so far. */
  drops(): string[]
  close(): void
}

export function gateway(policy: Policy, rules: Signature[]): Gateway {
  const folder = mkdtempSync(join(tmpdir(), 'detour-evasion-'))
  const log = join(folder, 'verdicts')
  const logFd = openSync(log, 'a')
  const pool = new Pool(createPool({ frames: 64, frameSize: SUPER_FRAME, headroom: HEADROOM }))
  const counters = new Counters()
  const tunnel = tunnelOf({ profile: 'vxlan' })
  const encap = new Encap(pool, new Counters().stage('encap'), tunnel)
  const out: Uint8Array[] = []
  const wire: Device = {
    ...{ name: 'wire', capabilities: 0, fd: -1, exhausted: false },
    receive: () => 0,
    transmit(batch) {
      for (const frame of batch.frames.subarray(0, batch.length)) {
        const at = pool.start[frame]
        out.push(pool.bytes.slice(at + OUTER, at + pool.length[frame]))
      }
      pool.freeAll(batch)
    },
    close() {},
  }
  const engine = new Engine(pool, counters, wire, {
    ...{ tunnel, own: [tunnel.remote as number[]], policy, seed: FIXED_SEED, logFd, live: false },
    flows: createFlowTable({ capacity: 1024 }),
    signatures: { rules, eveFd: -1 },
  })
  const batch = new Batch()
  const came: Came[] = []
  return {
    came,
    exchange(bytes, timeMs) {
      came.push({ frame: bytes, timeMs })
      const frame = pool.alloc()
      pool.bytes.set(bytes, pool.start[frame])
      pool.length[frame] = bytes.length
      pool.time[frame] = timeMs
      // As a node does, which looks at the headers only.
      if (parse(pool, frame, pool.start[frame], pool.start[frame] + bytes.length) !== 0) {
        pool.free(frame)
        return []
      }
      batch.push(frame)
      encap.run(batch)
      engine.leg.run(batch)
      return out.splice(0)
    },
    verdicts() {
      engine.tick()
      const lines = readFileSync(log, 'utf8').split('\n').slice(0, -1)
      return lines.map(line => JSON.parse(line))
    },
    drops: () =>
      counters.stages.flatMap(stage =>
        Array.from({ length: DROP_COUNT }, (_, reason) => reason).flatMap(reason =>
          reason > 0 && stage.drops(reason) > 0 ? [dropName(reason)] : [],
        ),
      ),
    close() {
      closeSync(logFd)
      rmSync(folder, { recursive: true })
    },
  }
}
