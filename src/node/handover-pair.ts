// The two processes of a node: one is active, the other its successor, kept ready. The process that was started (what systemd or a
// container knows as the main one) starts the other, its partner, hands over to it, and stands by: when the partner dies or hangs it
// takes over at once, starts another, and hands over again. A process that is started while another node is active takes
// over from that one in the same way, which is an upgrade.
//
// NB: a main event loop that is stuck does not stop packets: workers go on. It stops attaching, and is why the successor
// replaces the process.

import { type NodeOptions, type RunningNode, startNode } from './node.ts'

/** What a process does while it is the active one: control socket, metrics, state. */
export interface Service {
  /** Called before the node is handed over or stopped; nothing is attached or detached afterwards. */
  close(): Promise<void>
}

export interface PairOptions {
  /** The socket by which a successor finds the active process: `/run/detour/handover.sock`. */
  path: string
  /** Whether a partner is kept; without, this process is active to its end. */
  standby: boolean
  /** True in a partner, which `startPartner` started. */
  partner: boolean
  /** What a node is started with, read anew each time. Pods that may be gone by now are better attached by `activate`, one by one, where `node.pods()` does not have them. */
  options(): NodeOptions
  /** Called as soon as this process is the active one and packets flow. */
  activate(node: RunningNode): Promise<Service>
  /** Starts a process that calls runPair with `partner: true`, its output where this one's goes; resolves with its pid. */
  startPartner(): Promise<number>
  /** Silence of the active process, ms, after which it counts as hung; 1000 unless told otherwise. */
  hangMs?: number
  log?: (line: string) => void
}

export interface Pair {
  /** Settles when this process has nothing more to do: stopped, or another has taken over for good; rejects when it failed. */
  readonly done: Promise<void>
  /** The node, while this process is the active one. */
  readonly node: RunningNode | undefined
  /** Ends both processes. `leave` keeps interception as it is, under its fail mode, for a later process; `detach` leaves every interface as it was found. */
  stop(how: 'leave' | 'detach'): Promise<void>
}

/** Becomes the active process, by handover from a live one or by adopting what a dead one left, and then keeps a partner. Throws DetourError. */
export async function runPair(options: PairOptions): Promise<Pair> {
  // Until there are two: this process alone.
  const node = await startNode(options.options())
  const service = await options.activate(node).catch(async error => {
    await node.leave()
    throw error
  })
  return {
    done: node.done,
    node,
    async stop(how) {
      await service.close()
      await (how === 'leave' ? node.leave() : node.stop())
    },
  }
}
