// Several workers of one process: their part of a common pool, and a loopback between each two of them.

import { createLoopback, type Loopback, type LoopbackHandle } from '../device/loopback.ts'
import { createPool, HEADROOM, type PoolHandle, SUPER_FRAME } from '../memory/pool.ts'

/** What one worker is given; plain data. */
export interface PeerInput {
  worker: number
  workers: number
  pool: PoolHandle
  /** The frames of the pool that it may hand out. */
  frames: { first: number; count: number }
  /** By worker number; undefined at its own. */
  peers: (LoopbackHandle | undefined)[]
}

/** Creates the pool and the loopbacks of `workers` workers with so many frames each; `close` when none of them runs. Throws DetourError. */
export function createPeers(workers: number, frames: number): { inputs: PeerInput[]; close(): void } {
  const pool = createPool({ frames: workers * frames, frameSize: SUPER_FRAME, headroom: HEADROOM })
  const inputs: PeerInput[] = Array.from({ length: workers }, (_, worker) => ({
    ...{ worker, workers, pool },
    peers: Array.from({ length: workers }, () => undefined),
    frames: { first: worker * frames, count: frames },
  }))
  const loopbacks: Loopback[] = []
  for (let i = 0; i < workers; i++) {
    for (let j = i + 1; j < workers; j++) {
      const loopback = createLoopback({ name: `${i}-${j}`, frames: workers * frames })
      inputs[i].peers[j] = loopback.left
      inputs[j].peers[i] = loopback.right
      loopbacks.push(loopback)
    }
  }
  return {
    inputs,
    close() {
      for (const loopback of loopbacks) loopback.close()
    },
  }
}
