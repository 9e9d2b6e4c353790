// The two processes of a node: one is active, the other its successor, kept ready. The process that was started (what systemd or a
// container knows as the main one) starts the other, its partner, hands over to it, and stands by: when the partner dies or hangs it
// takes over at once, starts another, and hands over again. A process that is started while another node is active takes
// over from that one in the same way, which is an upgrade.
//
// NB: a main event loop that is stuck does not stop packets: workers go on. It stops attaching, and is why the successor
// replaces the process.

import { setTimeout as sleep } from 'node:timers/promises'
import { DetourError } from '../errors.ts'
import { monotonicMs } from '../os/clock.ts'
import { type NodeOptions, type RunningNode, startNode } from './node.ts'
import { type Ending, type Farewell, kill, Offer, Predecessor } from './succession.ts'

/** Silence of a worker of the active process, ms, after which that counts as hung. */
const HANG_MS = 1000
/** So many times as long may its main loop be silent: packets go on meanwhile, and attaching many pods takes a while. */
const PATIENCE = 5
/** Time between two looks whether it does. */
const LOOK_MS = 50
/** How long a partner may take from its start until it is the active one, and then to listen, ms. */
const PARTNER_MS = 30_000
/** A partner that dies sooner than this is not replaced at once, but after a pause, the longer the more often. */
const SHORT_LIFE_MS = 10_000
const LONGEST_PAUSE_MS = 30_000
const RETRY_MS = 20
/** Time before one that could not follow the active process tries again, ms. */
const LOST_MS = 2000

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
  /** Silence of a worker of the active process, ms, after which that counts as hung, and five times that of its main loop; 1000 unless told otherwise. */
  hangMs?: number
  log?: (line: string) => void
}

export interface Pair {
  /** Settles when this process has nothing more to do: stopped, or another has taken over for good; rejects when it failed. */
  readonly done: Promise<void>
  /** The node, while this process is the active one. */
  readonly node: RunningNode | undefined
  /** Ends both processes. `leave` keeps interception as it is, under its fail mode, for a later process; `detach` leaves every interface as it was found. */
  stop(how: Ending): Promise<void>
}

/** Becomes the active process, by handover from a live one or by adopting what a dead one left, and then keeps a partner. Throws DetourError. */
export async function runPair(options: PairOptions): Promise<Pair> {
  const pair = new RunningPair(options)
  await pair.begin()
  return pair
}

/** A paused node that knows all that the active one has. */
interface Heir {
  node: RunningNode
  /** Resumes it once it knows the last. */
  resume(): Promise<void>
}

/** Why this process is the active one no longer: its partner is, another is, or none. */
type Outcome = 'partner' | 'succeeded' | 'stopped'

class RunningPair implements Pair {
  readonly done: Promise<void>
  node: RunningNode | undefined
  private readonly options: PairOptions
  private readonly log: (line: string) => void
  private readonly finish: { resolve(): void; reject(error: unknown): void }
  private stopping: Ending | undefined
  private predecessor: Predecessor | undefined
  /** Of this process's active time: ends it. */
  private stopActive: ((how: Ending) => void) | undefined
  private partnerPid = 0
  private partnerSince = 0
  private pauseMs = 0

  constructor(options: PairOptions) {
    this.options = options
    this.log = options.log ?? (() => {})
    const finish: Partial<RunningPair['finish']> = {}
    this.done = new Promise((resolve, reject) => Object.assign(finish, { resolve, reject }))
    this.done.catch(() => {})
    this.finish = finish as RunningPair['finish']
  }

  /** Resolves when this process is the active one for the first time. */
  async begin(): Promise<void> {
    const node = await this.firstNode()
    const outcome = await this.activate(node)
    void this.live(outcome).then(this.finish.resolve, this.finish.reject)
  }

  async stop(how: Ending): Promise<void> {
    this.stopping ??= how
    this.stopActive?.(how)
    this.predecessor?.stop(how)
    await this.done
  }

  /** The node of a live process, taken over, or one of this process's own. */
  private async firstNode(): Promise<RunningNode> {
    const { path, options, partner } = this.options
    for (;;) {
      const predecessor = await Predecessor.meet(path)
      if (predecessor === undefined && partner) throw new DetourError('not-found', `nobody to stand by for at ${path}`)
      if (predecessor === undefined) return startNode(options())
      const heir = await this.prepare(predecessor)
      if (predecessor.fault !== '')
        throw new DetourError('system', `the active process cannot be followed: ${predecessor.fault}`)
      if (heir === undefined && partner) throw new DetourError('unsupported', 'nothing to stand by with')
      if (heir === undefined) {
        predecessor.stop('leave')
        await predecessor.ended
        continue
      }
      const why = await predecessor.take()
      if (why === 'yours' || why === 'dead') {
        await heir.resume()
        predecessor.taken()
        this.log(`taken over from process ${predecessor.pid}`)
        return heir.node
      }
      // It has ended on purpose, or another was faster.
      await heir.node.leave()
      if (partner) throw new DetourError('not-found', `process ${predecessor.pid} has ${why}`)
    }
  }

  /** A paused node with all that a live process has; undefined where it cannot be handed over. */
  private async prepare(predecessor: Predecessor): Promise<Heir | undefined> {
    const { inheritance: inherit, pid } = predecessor
    if (inherit === undefined) {
      this.log('the active process cannot be followed without a gap: what it leaves will be attached again')
      return undefined
    }
    try {
      const node = await startNode({ ...this.options.options(), pods: [], inherit, paused: true })
      let last: Promise<unknown> = Promise.resolve()
      predecessor.follow(change => {
        last = last.then(() => node.follow(change)).catch(error => this.log(`standby: ${(error as Error).message}`))
      })
      return { node, resume: () => last.then(() => node.resume()) }
    } catch (error) {
      this.log(`process ${pid} cannot be followed: ${(error as Error).message}`)
      return undefined
    }
  }

  /** Is the active process; the promise in what is returned settles when it is no longer. */
  private async activate(node: RunningNode): Promise<{ outcome: Promise<Outcome> }> {
    const { path, standby, partner } = this.options
    this.node = node
    let settle: { resolve(outcome: Outcome): void; reject(error: unknown): void }
    const outcome = new Promise<Outcome>((resolve, reject) => {
      settle = { resolve, reject }
    })
    outcome.catch(() => {})
    let service = await this.options.activate(node)
    let busy = false
    const end = async (how: Ending) => {
      if (busy) return
      busy = true
      await service.close()
      offer.close('stopped')
      await (how === 'leave' ? node.leave() : node.stop())
      settle.resolve('stopped')
    }
    const hand = async (pid: number, give: () => Promise<boolean>) => {
      if (busy) return
      busy = true
      await service.close()
      await node.rest()
      if (await give()) {
        offer.close('succeeded')
        await node.leave()
        settle.resolve(pid === this.partnerPid ? 'partner' : 'succeeded')
        return
      }
      this.log('the successor is gone: going on')
      await node.resume()
      service = await this.options.activate(node)
      busy = false
      // What was asked for meanwhile.
      if (this.stopping !== undefined) await end(this.stopping)
      else offer.ask()
    }
    const failed = async (error: unknown) => {
      busy = true
      // Where it listens is for whoever takes over.
      await service.close().catch(() => {})
      await node.leave().catch(() => {})
      // Without a word: whoever stands by takes over.
      offer.abort()
      settle.reject(error)
    }
    const offer = await Offer.open(node, path, {
      take: (pid, give) => void hand(pid, give).catch(failed),
      stop: how => {
        this.stopping ??= how
        end(how).catch(failed)
      },
      log: this.log,
    })
    node.done.catch(failed)
    this.stopActive = how => void end(how).catch(failed)
    if (this.stopping !== undefined) this.stopActive(this.stopping)
    if (standby && !partner) {
      if (node.inheritance() === undefined) this.log('nobody stands by: this underlay cannot be handed over')
      else void this.keepPartner(outcome)
    }
    return {
      outcome: outcome.finally(() => {
        this.node = undefined
        this.stopActive = undefined
      }),
    }
  }

  /** From when this process was active for the first time to its end. */
  private async live(active: { outcome: Promise<Outcome> }): Promise<void> {
    for (;;) {
      const outcome = await active.outcome
      if (outcome !== 'partner') {
        kill(this.partnerPid)
        return
      }
      let node = await this.standBy()
      while (node === 'again') node = await this.standBy()
      if (node === undefined) return
      active = await this.activate(node)
    }
  }

  /** Starts a partner, again and again where it comes to nothing, until this process is not the active one any more. */
  private async keepPartner(outcome: Promise<Outcome>): Promise<void> {
    let ended = false
    const over = outcome.then(
      () => {
        ended = true
      },
      () => {
        ended = true
      },
    )
    const wait = (ms: number) => Promise.race([sleep(ms, undefined, { ref: false }), over])
    const life = monotonicMs() - this.partnerSince
    this.pauseMs = life > SHORT_LIFE_MS ? 0 : Math.min(LONGEST_PAUSE_MS, Math.max(1000, 2 * this.pauseMs))
    for (;;) {
      if (this.partnerSince > 0) await wait(this.pauseMs)
      if (ended) return
      this.partnerSince = monotonicMs()
      try {
        this.partnerPid = await this.options.startPartner()
        while (!ended && isAlive(this.partnerPid) && monotonicMs() - this.partnerSince < PARTNER_MS) await wait(200)
        if (ended) return
        this.log(`partner ${this.partnerPid} did not take over`)
        kill(this.partnerPid)
      } catch (error) {
        this.log(`partner: ${(error as Error).message}`)
      }
      this.partnerPid = 0
      this.pauseMs = Math.min(LONGEST_PAUSE_MS, Math.max(1000, 2 * this.pauseMs))
    }
  }

  /** Waits for the partner's end; returns a node that has taken over, undefined when there is nothing more to do, 'again' to begin anew. */
  private async standBy(): Promise<RunningNode | 'again' | undefined> {
    const { options } = this.options
    const predecessor = await this.meetPartner()
    if (predecessor === undefined) return this.stopping === undefined ? startNode(options()) : undefined
    this.predecessor = predecessor
    if (this.stopping !== undefined) predecessor.stop(this.stopping)
    const heir = await this.prepare(predecessor)
    if (heir !== undefined) this.log('stands by')
    const watching = setInterval(this.look(predecessor, heir?.node), LOOK_MS)
    const why = await predecessor.ended.finally(() => {
      clearInterval(watching)
      this.predecessor = undefined
    })
    if (why !== 'dead' || this.stopping !== undefined) {
      await heir?.node.leave()
      if (why !== 'lost' || this.stopping !== undefined) return undefined
      this.log(`nobody stands by for the moment: the active process cannot be followed: ${predecessor.fault}`)
      await sleep(LOST_MS)
      return 'again'
    }
    this.partnerPid = 0
    const from = monotonicMs()
    if (heir === undefined) return startNode(options())
    await heir.resume()
    this.log(`process ${predecessor.pid} is dead: taken over in ${(monotonicMs() - from).toFixed(1)} ms`)
    return heir.node
  }

  /** The partner, once it listens; undefined when it died before. */
  private async meetPartner(): Promise<Predecessor | undefined> {
    const end = monotonicMs() + PARTNER_MS
    while (isAlive(this.partnerPid) && monotonicMs() < end) {
      const met = await Predecessor.meet(this.options.path)
      if (met !== undefined) return met
      await sleep(RETRY_MS)
    }
    kill(this.partnerPid)
    return undefined
  }

  /** A look at the active process, which kills one that hangs: its main loop, or one of its workers. */
  private look(predecessor: Predecessor, node: RunningNode | undefined): () => void {
    const limit = this.options.hangMs ?? HANG_MS
    let last = monotonicMs()
    let grace = last
    return () => {
      const now = monotonicMs()
      // What stops this process stops the other one, too.
      if (now - last > limit / 2) grace = now
      last = now
      if (this.stopping !== undefined || predecessor.isLeaving) return
      const silent = now - Math.max(predecessor.heardMs, grace)
      const workers = now - grace < limit ? 0 : Math.max(0, ...(node?.heartbeatAges() ?? []))
      if (silent <= PATIENCE * limit && workers <= limit) return
      const what = workers > limit ? 'a worker' : 'its main loop'
      this.log(
        `process ${predecessor.pid} hangs: ${what} was silent for ${Math.round(Math.max(silent, workers))} ms; killed`,
      )
      kill(predecessor.pid)
      grace = now
    }
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return pid > 0
  } catch {
    return false
  }
}

export type { Ending, Farewell }
