// Several workers of one process: their part of a common pool, and a loopback between each two of them.

import { createLoopback, type Loopback, type LoopbackHandle } from '../device/loopback.ts'
import { createLivePool } from '../memory/live.ts'
import { HEADROOM, type PoolHandle, SUPER_FRAME } from '../memory/pool.ts'

/** What one worker is given; plain data. */
export interface PeerInput {
  worker: number
  workers: number
  pool: PoolHandle
  /** The frames of the pool that it may hand out. */
  frames: { first: number; count: number; firstSmall: number; smallCount: number }
  /** By worker number; undefined at its own. */
  peers: (LoopbackHandle | undefined)[]
}

/** What several workers share, before they run. */
export interface Peers {
  pool: PoolHandle
  inputs: PeerInput[]
  /** Once more does nothing. */
  close(): void
}

/** Creates the pool and the loopbacks of `workers` workers with so many large and small frames each; `close` when none of them runs. Throws DetourError. */
export function createPeers(workers: number, large: number, small = 0): Peers {
  const frames = workers * (large + small)
  const pool = createLivePool({ frames, small: workers * small, frameSize: SUPER_FRAME, headroom: HEADROOM })
  const inputs: PeerInput[] = Array.from({ length: workers }, (_, worker) => ({
    ...{ worker, workers, pool },
    peers: Array.from({ length: workers }, () => undefined),
    frames: {
      first: pool.small + worker * large,
      count: large,
      firstSmall: worker * small,
      smallCount: small,
    },
  }))
  const loopbacks: Loopback[] = []
  for (let i = 0; i < workers; i++) {
    for (let j = i + 1; j < workers; j++) {
      const loopback = createLoopback({ name: `${i}-${j}`, frames })
      inputs[i].peers[j] = loopback.left
      inputs[j].peers[i] = loopback.right
      loopbacks.push(loopback)
    }
  }
  return {
    pool,
    inputs,
    close() {
      for (const loopback of loopbacks.splice(0)) loopback.close()
    },
  }
}
