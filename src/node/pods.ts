// The pods of a node: which are attached, under which numbers; attaching and detaching while packets flow.

import { closeSync } from 'node:fs'
import type { Config } from '../control/config.ts'
import { capabilityNames } from '../device/device.ts'
import type { DeviceSpec } from '../device/open.ts'
import type { OutputFile } from '../device/pcap.ts'
import { DetourError } from '../errors.ts'
import type { Steering } from '../flow/steering.ts'
import type { FailMode } from '../os/heartbeat.ts'
import { MAX_ATTACHMENTS } from '../pipeline/attachments.ts'
import type { AttachmentParts } from './attached.ts'
import { type Attachment, attach, inheritAttachment, macBytes } from './attachment.ts'
import type { Forwarders } from './forwarders.ts'
import { protect } from './prefixes.ts'

/** A pod interface to protect. */
export interface PodOptions {
  /** Names the attachment, and its pins. */
  id: string
  /** Name or path of the network namespace. */
  namespace: string
  /** Which one that is; another one at that path is none. Whichever is there when not given. */
  sandbox?: string
  interface?: string
  /** The configuration's when not given. */
  failMode?: FailMode
  /** What people see beside the id: `default/web-0`. */
  label?: string
  /** `address/length`, as the CNI result has them: these are the pod's then, beside link-local ones; else those of its interface. */
  addresses?: string[]
}

export interface PodsOptions {
  config: Config
  forwarders: Forwarders
  steering: Steering
  /** Of the addresses of all pods; closed in the end. */
  protectedMap: number
  /** The capture file of each worker, where there are any. */
  captures: (OutputFile | undefined)[]
  log: (line: string) => void
  /** Hears of what a successor must know. */
  changed?: (change: PodChange) => void
}

/** An attached pod as another process goes on with it. */
export interface PodParts {
  number: number
  pod: PodOptions
  parts: AttachmentParts
}

/** What happened to a pod: it is attached, or is as this says now, or is not attached any more. */
export type PodChange = { attached: PodParts } | { changed: PodParts } | { detached: number }

interface Attached {
  pod: PodOptions
  attachment: Attachment
}

export class Pods {
  private readonly options: PodsOptions
  private readonly byNumber = new Map<number, Attached>()
  /** Labels by number, also of pods that are gone. */
  private readonly labels = new Map<number, string>()
  private next = 0

  constructor(options: PodsOptions) {
    this.options = options
  }

  /** Takes a pod's packets from now on; resolves when every worker serves it. Throws DetourError and leaves the pod as it was. */
  async attach(pod: PodOptions): Promise<void> {
    const { config, steering, protectedMap, log } = this.options
    const { heartbeatLimitMs, rungs } = config
    if (this.numberOf(pod.id) !== undefined) throw new DetourError('usage', `attachment ${pod.id} is there already`)
    const number = this.number()
    const failMode = pod.failMode ?? config.failMode
    const { antiSpoofing } = config.pods
    const networks = pod.addresses?.length ? pod.addresses : undefined
    const gates = { protectedMap, rung: rungs.attach, steering, antiSpoofing, networks }
    const options = { ...pod, failMode, heartbeatLimitMs, ...gates }
    const attachment = attach(options)
    try {
      await this.serve(number, { pod, attachment })
    } catch (error) {
      // NB: where there was interception its fail mode goes on holding, until the next try.
      const end = () => (attachment.from === 'new' ? attachment.detach() : attachment.withdraw())
      await this.remove(number, end).catch(() => {})
      throw error
    }
    const capabilities = capabilityNames(attachment.capabilities).join(' ')
    const { id, rung } = attachment
    log(`attachment ${id}: ${attachment.interface} by ${rung}, fail-${failMode}, TAP with ${capabilities}`)
    this.options.changed?.({ attached: { number, pod, parts: attachment.parts() } })
  }

  /** Goes on with a pod that another process has attached; takes the descriptors. Throws DetourError. */
  async inherit({ number, pod, parts }: PodParts): Promise<void> {
    this.next = (number + 1) % MAX_ATTACHMENTS
    await this.serve(number, { pod, attachment: inheritAttachment(parts, this.options.protectedMap) })
  }

  /** Knows of a pod what the process knows that has it attached. */
  async follow(change: PodChange): Promise<void> {
    if ('attached' in change && !this.byNumber.has(change.attached.number)) await this.inherit(change.attached)
    else if ('detached' in change) await this.remove(change.detached, attachment => attachment.leave())
    else {
      const { number, pod, parts } = 'attached' in change ? change.attached : change.changed
      // It has these already.
      for (const fd of [...parts.tapFds, parts.mapFd, parts.ownFd]) closeSync(fd)
      const attached = this.byNumber.get(number)
      if (attached === undefined) return
      attached.pod = pod
      attached.attachment.follow(parts)
      await this.options.forwarders.useFailModes([[number, parts.failMode]])
    }
  }

  /** Has workers and gates go by the configuration of now. */
  async reconfigure(): Promise<void> {
    await this.options.forwarders.reconfigure(this.options.config)
    await this.govern([...this.byNumber.keys()])
  }

  /** Another fail mode from now on; undefined is the node's own. Throws 'not-found'. */
  async setFailMode(id: string, failMode: FailMode | undefined): Promise<void> {
    const number = this.numberOf(id)
    if (number === undefined) throw new DetourError('not-found', `attachment ${id} is not there`)
    const attached = this.byNumber.get(number) as Attached
    attached.pod = { ...attached.pod, failMode }
    await this.govern([number])
  }

  /** Takes over what is found of a pod's interface. Throws DetourError. */
  update(id: string, addresses: readonly string[], mtu: number): void {
    const number = this.numberOf(id)
    if (number === undefined) return
    const { attachment } = this.byNumber.get(number) as Attached
    const before = attachment.sources
    attachment.update(addresses, mtu)
    this.keepProtected(before)
    this.tell(number)
  }

  /** Leaves a pod's interface as it was found; one that is not attached is fine. */
  async detach(id: string): Promise<void> {
    const number = this.numberOf(id)
    if (number !== undefined) await this.remove(number, attachment => attachment.detach())
  }

  /** Serves a pod no more, but leaves its interception in place, for `attach` to go on with: its fail mode holds meanwhile. */
  async withdraw(id: string): Promise<void> {
    const number = this.numberOf(id)
    if (number !== undefined) await this.remove(number, attachment => attachment.withdraw())
  }

  /** Leaves every interface as it was found; the workers keep what they have open until they end. Called once, or `leave`. */
  close(): void {
    for (const { attachment } of this.byNumber.values()) attachment.detach()
    closeSync(this.options.protectedMap)
  }

  /** Leaves every interface as it is, for another process. */
  leave(): void {
    for (const { attachment } of this.byNumber.values()) attachment.leave()
    closeSync(this.options.protectedMap)
  }

  get attachments(): Attachment[] {
    return [...this.byNumber.values()].map(({ attachment }) => attachment)
  }

  /** The pods as they were given. */
  get list(): PodOptions[] {
    return [...this.byNumber.values()].map(({ pod }) => pod)
  }

  /** All that another process needs to go on with them. */
  parts(): PodParts[] {
    return [...this.byNumber].map(([number, { pod, attachment }]) => ({ number, pod, parts: attachment.parts() }))
  }

  /** The attachment of an id, while it is there. */
  get(id: string): Attachment | undefined {
    return this.attachments.find(attachment => attachment.id === id)
  }

  /** The id of an attachment that is or was there, by its number. */
  id(number: number): string {
    return this.byNumber.get(number)?.attachment.id ?? ''
  }

  /** Has every worker serve its queue of the pod's device. */
  private async serve(number: number, attached: Attached): Promise<void> {
    const { forwarders, captures } = this.options
    const { attachment, pod } = attached
    this.byNumber.set(number, attached)
    this.labels.set(number, pod.label ?? '')
    const mac = [...macBytes(attachment.mac)]
    const { failMode, mapFd: heartbeatFd, tapFds } = attachment
    await forwarders.attach(
      tapFds.map((fd, worker) => {
        const device = podDevice(attachment, fd, captures[worker])
        return { attachment: number, device, mac, failMode, heartbeatFd }
      }),
    )
  }

  /** Has gates and workers go by each pod's fail mode and the limit of now. */
  private async govern(numbers: number[]): Promise<void> {
    const { config, forwarders } = this.options
    const modes: [number, FailMode][] = []
    for (const number of numbers) {
      const { pod, attachment } = this.byNumber.get(number) as Attached
      const failMode = pod.failMode ?? config.failMode
      attachment.govern(failMode, config.heartbeatLimitMs)
      modes.push([number, failMode])
      this.tell(number)
    }
    await forwarders.useFailModes(modes)
  }

  private tell(number: number): void {
    const { pod, attachment } = this.byNumber.get(number) as Attached
    this.options.changed?.({ changed: { number, pod, parts: attachment.parts() } })
  }

  private async remove(number: number, end: (attachment: Attachment) => void): Promise<void> {
    const attached = this.byNumber.get(number)
    if (attached === undefined) return
    // Interception first, so that no packet is on its way to a queue that is gone.
    const before = attached.attachment.sources
    end(attached.attachment)
    this.byNumber.delete(number)
    this.keepProtected(before)
    this.options.changed?.({ detached: number })
    await this.options.forwarders.detach(number)
  }

  /** Protects what another pod has, too, of addresses that one had: an address may be given away before its last owner is taken away. */
  private keepProtected(addresses: readonly string[]): void {
    for (const { attachment } of this.byNumber.values())
      protect(
        this.options.protectedMap,
        attachment.sources.filter(address => addresses.includes(address)),
      )
  }

  /** What people see beside the id; empty when unknown. */
  label(number: number): string {
    return this.labels.get(number) ?? ''
  }

  /** The number of an attachment, while it is there. */
  numberOf(id: string): number | undefined {
    for (const [number, { attachment }] of this.byNumber) if (attachment.id === id) return number
    return undefined
  }

  // Numbers are taken in turn: flows of the last pod of a number should have ended before the next one has it.
  private number(): number {
    if (this.byNumber.size === MAX_ATTACHMENTS)
      throw new DetourError('unsupported', `a node has room for ${MAX_ATTACHMENTS} attachments`)
    while (this.byNumber.has(this.next)) this.next = (this.next + 1) % MAX_ATTACHMENTS
    const number = this.next
    this.next = (number + 1) % MAX_ATTACHMENTS
    return number
  }
}

function podDevice(attachment: Attachment, fd: number, capture: OutputFile | undefined): DeviceSpec {
  const { tapName, headerSize, capabilities, id } = attachment
  const device = { kind: 'tap' as const, name: `${id}:${tapName}`, fd, headerSize, capabilities }
  return capture === undefined ? { device } : { device, capture }
}
