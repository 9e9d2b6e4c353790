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
import { type Attachment, attach, createProtectedMap, macBytes } from './attachment.ts'
import type { Forwarders } from './forwarders.ts'

/** A pod interface to protect. */
export interface PodOptions {
  /** Names the attachment, and its pins. */
  id: string
  /** Name or path of the network namespace. */
  namespace: string
  interface?: string
  /** The configuration's when not given. */
  failMode?: FailMode
  /** What people see beside the id: `default/web-0`. */
  label?: string
  /** Addresses that count as the pod's beside those of its interface. */
  addresses?: string[]
}

export interface PodsOptions {
  config: Config
  forwarders: Forwarders
  steering: Steering
  /** The capture file of each worker, where there are any. */
  captures: (OutputFile | undefined)[]
  log: (line: string) => void
}

export class Pods {
  private readonly options: PodsOptions
  private readonly protectedMap = createProtectedMap()
  private readonly byNumber = new Map<number, Attachment>()
  /** Labels by number, also of pods that are gone. */
  private readonly labels = new Map<number, string>()
  private next = 0

  constructor(options: PodsOptions) {
    this.options = options
  }

  /** Takes a pod's packets from now on; resolves when every worker serves it. Throws DetourError and leaves the pod as it was. */
  async attach(pod: PodOptions): Promise<void> {
    const { config, forwarders, steering, captures, log } = this.options
    const { failMode, heartbeatLimitMs, rungs } = config
    if (this.numberOf(pod.id) !== undefined) throw new DetourError('usage', `attachment ${pod.id} is there already`)
    const number = this.number()
    const { protectedMap } = this
    const attachment = attach({ ...pod, failMode, heartbeatLimitMs, protectedMap, rung: rungs.attach, steering })
    this.byNumber.set(number, attachment)
    this.labels.set(number, pod.label ?? '')
    const mac = [...macBytes(attachment.mac)]
    const inputs = attachment.tapFds.map((fd, worker) => ({
      attachment: number,
      device: podDevice(attachment, fd, captures[worker]),
      mac,
      failMode,
      heartbeatFd: attachment.mapFd,
    }))
    try {
      await forwarders.attach(inputs)
    } catch (error) {
      await this.remove(number, attachment).catch(() => {})
      throw error
    }
    const capabilities = capabilityNames(attachment.capabilities).join(' ')
    const { id, rung } = attachment
    log(`attachment ${id}: ${attachment.interface} by ${rung}, fail-${failMode}, TAP with ${capabilities}`)
  }

  /** Has workers and gates go by the configuration of now. */
  async reconfigure(): Promise<void> {
    const { config, forwarders } = this.options
    await forwarders.reconfigure(config)
    const modes = [...this.byNumber.keys()].map(number => [number, config.failMode] as [number, FailMode])
    await forwarders.useFailModes(modes)
  }

  /** Leaves a pod's interface as it was found; one that is not attached is fine. */
  async detach(id: string): Promise<void> {
    const number = this.numberOf(id)
    if (number !== undefined) await this.remove(number, this.byNumber.get(number) as Attachment)
  }

  /** Leaves every interface as it was found; the workers keep what they have open until they end. Called once. */
  close(): void {
    for (const attachment of this.byNumber.values()) attachment.detach()
    closeSync(this.protectedMap)
  }

  get attachments(): Attachment[] {
    return [...this.byNumber.values()]
  }

  /** The attachment of an id, while it is there. */
  get(id: string): Attachment | undefined {
    return this.attachments.find(attachment => attachment.id === id)
  }

  /** The id of an attachment that is or was there, by its number. */
  id(number: number): string {
    return this.byNumber.get(number)?.id ?? ''
  }

  private async remove(number: number, attachment: Attachment): Promise<void> {
    // Interception first, so that no packet is on its way to a queue that is gone.
    attachment.detach()
    this.byNumber.delete(number)
    await this.options.forwarders.detach(number)
  }

  /** What people see beside the id; empty when unknown. */
  label(number: number): string {
    return this.labels.get(number) ?? ''
  }

  /** The number of an attachment, while it is there. */
  numberOf(id: string): number | undefined {
    for (const [number, attachment] of this.byNumber) if (attachment.id === id) return number
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
