// What the daemon does for the CNI plugin: attaches and detaches pods, remembers which, and brings the node in line with
// what it remembers. Work on one attachment is done one after the other, on different ones at the same time.

import type { Config } from '../control/config.ts'
import type { Log } from '../control/log.ts'
import {
  type AttachReply,
  type AttachRequest,
  type CheckReply,
  type CheckRequest,
  type CollectRequest,
  type DetachRequest,
  OperationFailure,
  type Operations,
  type ReadyReply,
} from '../control/operations.ts'
import { DetourError } from '../errors.ts'
import { admit, attachmentId, type OwnPod, podLabel } from './admission.ts'
import { cleanup } from './attachment.ts'
import { checkAddresses, checkAttach, checkKey } from './bounds.ts'
import { orphans, removePins } from './leftovers.ts'
import type { PodOptions, RunningNode } from './node.ts'
import { hostNamespaces, NoSandbox, type SandboxId, sandboxAt } from './sandbox.ts'
import type { AttachmentRecord, Store } from './store.ts'

type Known = Omit<AttachmentRecord, 'boot'>

export interface ServiceOptions {
  /** As it is now; read at every use. */
  config: Config
  node: Pick<RunningNode, 'attach' | 'detach' | 'attachment' | 'pods' | 'setFailMode' | 'status' | 'alarms'>
  store: Store
  /** Undefined where the daemon does not run in a pod. */
  own: OwnPod | undefined
  log: Log
}

/** The operations of a running daemon, and its memory: main thread only. */
export class NodeService implements Operations {
  private readonly options: ServiceOptions
  private readonly known = new Map<string, Known>()
  /** The last piece of work on each attachment. */
  private readonly work = new Map<string, Promise<unknown>>()
  /** What was last said of a pod that cannot be attached, so that it is said once. */
  private readonly told = new Map<string, string>()
  private readonly hosts = hostNamespaces()
  private phase: 'starting' | 'ready' | 'stopping' = 'starting'

  constructor(options: ServiceOptions) {
    this.options = options
  }

  /** Brings the node in line with what the store has, as `sweep` does, and is ready then. */
  async open(): Promise<void> {
    const { store, node, log } = this.options
    const { records, stale } = store.load()
    for (const record of records) this.known.set(record.id, record)
    for (const { id, why } of stale) {
      log(`attachment ${id}: its record ${why}: removed`, { level: 'warn', attachment: id })
      removePins(id)
    }
    for (const id of orphans(id => this.known.has(id))) {
      log(`attachment ${id}: pins without a record: removed`, { level: 'warn', attachment: id })
      removePins(id)
    }
    for (const pod of node.pods()) if (!this.known.has(pod.id)) await node.detach(pod.id)
    await this.sweep()
    const inspected = [...this.known.values()].filter(record => record.inspected).length
    if (this.known.size > 0) log(`${this.known.size} pods are known, of which ${inspected} are inspected`)
    this.phase = 'ready'
  }

  /** Takes away what has no namespace any more, and attaches what has but is not attached; what fails is told. */
  async sweep(): Promise<void> {
    // One after the other: each holds up the main loop for a moment, and many at once would make it look dead.
    for (const id of [...this.known.keys()]) await this.inTurn(id, () => this.examine(id))
  }

  /** Refuses what comes from now on; resolves when what was begun is done. */
  async close(): Promise<void> {
    this.phase = 'stopping'
    await Promise.allSettled(this.work.values())
  }

  async attach(request: AttachRequest): Promise<AttachReply> {
    checkAttach(request)
    const id = attachmentId(request)
    return this.inTurn(id, () => this.admitOne(id, request))
  }

  async detach(request: DetachRequest): Promise<{ found: boolean }> {
    checkKey(request)
    const id = attachmentId(request)
    return this.inTurn(id, async () => {
      const record = this.known.get(id)
      await this.forget(id)
      if (record !== undefined) this.say(record, 'detached')
      return { found: record !== undefined }
    })
  }

  async check(request: CheckRequest): Promise<CheckReply> {
    checkKey(request)
    checkAddresses(request.addresses)
    const id = attachmentId(request)
    const record = this.known.get(id)
    const no = (reason: string): CheckReply => ({ ok: false, reason: `${record?.label ?? id}: ${reason}` })
    if (record === undefined) return no('is not known to the daemon; it was never added, or was removed')
    if (!record.inspected) return { ok: true, reason: record.reason }
    if (request.netns !== '' && this.sandbox(request.netns) !== record.sandbox)
      return no(`${request.netns} is not the namespace that was attached`)
    const attachment = this.options.node.attachment(id)
    if (attachment === undefined) return no(`${record.ifname} is not attached; the daemon tries again`)
    if (!attachment.isAttached())
      return no(`programs on ${record.ifname} were taken off; the daemon puts them on again`)
    const age = attachment.heartbeatAgeMs()
    const { heartbeatLimitMs } = this.options.config
    if (age > heartbeatLimitMs) return no(`the workers have not answered for ${Math.round(age)} ms`)
    const lost = request.addresses.map(withoutLength).filter(address => !attachment.addresses.includes(address))
    if (lost.length > 0) return no(`${record.ifname} does not have address ${lost.join(', ')}`)
    return { ok: true, reason: this.endpointFault(record) || record.reason }
  }

  async ready(): Promise<ReadyReply> {
    const { node } = this.options
    if (this.phase !== 'ready')
      return { ready: false, degraded: false, reason: `the daemon is ${this.phase}; try again in a moment` }
    const underlay = node.alarms().find(({ name, raised }) => raised && name.startsWith('uplink '))
    if (underlay !== undefined) return { ready: false, degraded: true, reason: underlay.text }
    const [unserved] = this.unserved
    const fault =
      this.endpointFault() || (unserved && `${unserved.label} is not attached; the daemon tries again`) || ''
    return { ready: true, degraded: fault !== '', reason: fault || 'pods can be attached' }
  }

  async collect({ network, valid }: CollectRequest): Promise<{ removed: string[] }> {
    for (const key of valid) checkKey(key)
    const keep = new Set(valid.map(attachmentId))
    const gone = [...this.known.values()].filter(record => record.network === network && !keep.has(record.id))
    const removed: string[] = []
    const failures: string[] = []
    for (const record of gone) {
      try {
        await this.inTurn(record.id, () => this.forget(record.id))
        removed.push(record.id)
        this.say(record, 'detached: the runtime does not know it any more')
      } catch (error) {
        failures.push(`${record.label}: ${(error as Error).message}`)
      }
    }
    if (failures.length > 0) throw new OperationFailure('unavailable', `not removed: ${failures.join('; ')}`)
    return { removed }
  }

  private async admitOne(id: string, request: AttachRequest): Promise<AttachReply> {
    const { config, own, node } = this.options
    const label = podLabel(request)
    const { containerId, ifname, netns, network, podUid, addresses } = request
    const sandbox = this.sandbox(netns)
    if (sandbox === undefined)
      throw new OperationFailure('bad-request', `pod ${label}: network namespace ${netns} does not exist (any more)`)
    const { inspect: inspected, reason, failMode } = admit(request, config.pods, own)
    const record: Known = {
      ...{ id, containerId, ifname, network, netns, sandbox, label, podUid, addresses, inspected, reason },
      ...(failMode === undefined ? {} : { failMode }),
    }
    // NB: nothing else may happen between the last look at rivals and `remember`.
    for (let rival = this.rivalOf(record); rival !== undefined; rival = this.rivalOf(record))
      await this.makeWay(record, rival)
    const last = this.known.get(id)
    const attached = node.attachment(id)
    const same =
      last?.sandbox === sandbox && last.netns === netns && last.inspected === inspected && attached?.isAttached()
    this.remember(record)
    if (!same) await this.takeAway(id, last)
    if (!inspected) {
      this.say(record, `left alone: ${reason}`)
      return { inspected, reason, id, mac: '' }
    }
    if (!same) await this.intercept(record)
    else if (last?.failMode !== failMode) await node.setFailMode(id, failMode)
    this.say(record, `attached: ${reason}`)
    return { inspected, reason, id, mac: node.attachment(id)?.mac ?? '' }
  }

  /** Another attachment of the same interface, or of one that was there before. */
  private rivalOf({ id, netns, sandbox, ifname, inspected }: Known): Known | undefined {
    if (!inspected) return undefined
    return [...this.known.values()].find(
      other =>
        other.id !== id &&
        other.inspected &&
        other.ifname === ifname &&
        (other.sandbox === sandbox || other.netns === netns),
    )
  }

  /** An interface has one attachment: one of a namespace that was at this path before goes, another of this one stays. */
  private async makeWay({ netns, ifname, sandbox }: Known, rival: Known): Promise<void> {
    const { id, containerId } = rival
    if (rival.sandbox === sandbox)
      throw new OperationFailure(
        'bad-request',
        `${ifname} of ${netns} is attached already, for container ${containerId}; DEL that one first`,
      )
    await this.inTurn(id, async () => {
      if (this.known.get(id) === rival) await this.forget(id)
    })
  }

  /** Writes the record first, so that what a crash leaves behind is known; without one nothing is begun. */
  private remember(record: Known): void {
    try {
      this.options.store.save(record)
    } catch (error) {
      throw new OperationFailure(
        'unavailable',
        `pod ${record.label}: its record cannot be written: ${(error as Error).message}`,
      )
    }
    this.known.set(record.id, record)
  }

  private async intercept(record: Known): Promise<void> {
    const { id, label, netns, ifname } = record
    try {
      await this.options.node.attach(podOptions(record))
      if (this.sandbox(netns) === record.sandbox) return
      throw new DetourError('not-found', `its network namespace ${netns} went away meanwhile`)
    } catch (error) {
      await this.forget(id).catch(() => {})
      if (error instanceof OperationFailure) throw error
      const code = error instanceof DetourError && LASTING.includes(error.code) ? 'bad-request' : 'unavailable'
      throw new OperationFailure(code, `pod ${label}: cannot attach ${ifname}: ${(error as Error).message}`)
    }
  }

  /** Takes an attachment away, then its record. */
  private async forget(id: string): Promise<void> {
    await this.takeAway(id, this.known.get(id))
    this.options.store.remove(id)
    this.known.delete(id)
    this.told.delete(id)
  }

  /** Also what is there although the node has not adopted it. */
  private async takeAway(id: string, record: Known | undefined): Promise<void> {
    const { node } = this.options
    if (node.attachment(id) !== undefined) await node.detach(id)
    else if (record?.inspected) cleanup(podOptions(record))
  }

  private async examine(id: string): Promise<void> {
    const { node, log } = this.options
    const record = this.known.get(id)
    if (record === undefined) return
    try {
      if (this.isGone(record)) {
        await this.forget(id)
        this.say(record, `detached: its network namespace ${record.netns} is gone`)
      } else if (record.inspected && !node.pods().some(pod => pod.id === id)) {
        await node.attach(podOptions(record))
        this.say(record, 'attached again')
      }
      this.told.delete(id)
    } catch (error) {
      const { message } = error as Error
      if (this.told.get(id) !== message) log(`${record.label}: ${message}`, { level: 'warn', attachment: id })
      this.told.set(id, message)
    }
  }

  /** Pods that should be inspected, but could not be attached. */
  private get unserved(): Known[] {
    const { node } = this.options
    return [...this.known.values()].filter(({ id, inspected }) => inspected && !node.pods().some(pod => pod.id === id))
  }

  private sandbox(netns: string): SandboxId | undefined {
    return sandboxAt(netns, this.hosts)
  }

  private isGone({ netns, sandbox }: Known): boolean {
    try {
      return this.sandbox(netns) !== sandbox
    } catch (error) {
      if (error instanceof NoSandbox) return true
      throw error
    }
  }

  /** What the endpoint's death means for a pod, or for those that say nothing; '' while it answers. */
  private endpointFault(record?: Known): string {
    const { node, config } = this.options
    if (node.status().endpointUp) return ''
    const open = (record?.failMode ?? config.failMode) === 'open'
    return `no endpoint answers: packets ${open ? 'pass uninspected (fail-open)' : 'are dropped (fail-closed)'}`
  }

  private async inTurn<T>(id: string, task: () => Promise<T>): Promise<T> {
    if (this.phase === 'stopping') throw new OperationFailure('busy', 'the daemon is stopping; try again in a moment')
    const before = this.work.get(id) ?? Promise.resolve()
    const mine = before.then(task, task)
    this.work.set(id, mine)
    try {
      return await mine
    } finally {
      if (this.work.get(id) === mine) this.work.delete(id)
    }
  }

  private say({ id, label, ifname }: Known, what: string): void {
    this.options.log(`${label}: ${ifname} ${what}`, { event: 'attachment', attachment: id })
  }
}

/** Errors that trying again does not mend. */
const LASTING: readonly string[] = ['not-found', 'unsupported', 'bad-config', 'usage']

const withoutLength = (address: string) => address.split('/')[0]

function podOptions({ id, netns, sandbox, ifname, failMode, label, addresses }: Known): PodOptions {
  return {
    id,
    namespace: netns,
    sandbox,
    interface: ifname,
    label,
    addresses,
    ...(failMode === undefined ? {} : { failMode }),
  }
}
