// A node with everything open: receiving, or paused, when it stands by for another process or has handed over to one.

import type { EndpointConfig } from '../control/config.ts'
import type { ForwardInput } from '../control/worker-input.ts'
import type { FailMode } from '../os/heartbeat.ts'
import type { Alarm } from './alarm.ts'
import type { Attachment } from './attachment.ts'
import type { Change, Inheritance } from './handover.ts'
import type { RunningNode } from './node.ts'
import type { PodOptions } from './pods.ts'
import { type NodeParts, nodeSource } from './source.ts'
import { Upkeep } from './upkeep.ts'

export interface RunningOptions extends NodeParts {
  uplink: string
  /** Opens the devices for small packets. */
  express(): ForwardInput['express'][]
  inheritance(): Inheritance | undefined
  listeners: Set<(change: Change) => void>
  changed(change: Change): void
  /** Takes away, or leaves to another process, what is neither pods' nor workers'. */
  takeAway(leaving: boolean): void
  log: (line: string) => void
}

export class Running implements RunningNode {
  readonly source: RunningNode['source']
  readonly done: Promise<void>
  private readonly options: RunningOptions
  /** While it receives. */
  private upkeep: Upkeep | undefined
  /** Of the devices for small packets. */
  private opening: Promise<void> | undefined
  private ended: Promise<void> | undefined

  constructor(options: RunningOptions) {
    this.options = options
    this.source = nodeSource(options, { list: () => this.alarms() })
    this.done = options.forwarders.done
  }

  status(): { endpointUp: boolean; probesSent: number; probesAnswered: number } {
    return this.options.endpoints.status()
  }

  alarms(): Alarm[] {
    return this.upkeep?.list() ?? []
  }

  attachment(id: string): Attachment | undefined {
    return this.options.pods.get(id)
  }

  pods(): PodOptions[] {
    return this.options.pods.list
  }

  async reconfigure(): Promise<void> {
    const { endpoints, forwarders, pods, config } = this.options
    endpoints.reconfigure(config)
    await forwarders.useEndpoints(endpoints)
    await pods.reconfigure()
  }

  async setEndpoints(list: readonly EndpointConfig[]): Promise<void> {
    const { endpoints, forwarders } = this.options
    endpoints.set(list)
    await forwarders.useEndpoints(endpoints)
  }

  async attach(pod: PodOptions): Promise<void> {
    await this.options.pods.attach(pod)
    this.upkeep?.keep(pod)
  }

  async detach(id: string): Promise<void> {
    await this.upkeep?.release(id)
    await this.options.pods.detach(id)
  }

  setFailMode(id: string, failMode: FailMode | undefined): Promise<void> {
    return this.options.pods.setFailMode(id, failMode)
  }

  async resume(): Promise<void> {
    if (this.upkeep !== undefined) return
    const { endpoints, forwarders, pods, log } = this.options
    endpoints.refresh()
    await forwarders.receive()
    const upkeep = new Upkeep({ ...this.options, renewExpress: () => this.renewExpress() })
    this.upkeep = upkeep
    for (const pod of pods.list) upkeep.keep(pod)
    // Where it was inherited, by another configuration.
    await pods.reconfigure()
    // NB: it takes long, and packets leave without.
    this.opening = this.renewExpress().catch(error => log(`small packets leave with the others: ${error.message}`))
  }

  async rest(): Promise<void> {
    await this.halt()
    // NB: these must be gone before a successor opens its own.
    await this.options.forwarders.useExpress([])
    await this.options.forwarders.rest()
  }

  /** Ends upkeep; resolves when nothing is being repaired any more. */
  async halt(): Promise<void> {
    const { upkeep } = this
    this.upkeep = undefined
    await upkeep?.close()
    await this.opening
  }

  inheritance(): Inheritance | undefined {
    return this.options.inheritance()
  }

  watch(listener: (change: Change) => void): () => void {
    const { listeners } = this.options
    listeners.add(listener)
    return () => listeners.delete(listener)
  }

  heartbeatAges(): number[] {
    return this.options.pods.attachments.map(attachment => attachment.heartbeatAgeMs())
  }

  async follow(change: Change): Promise<void> {
    const { underlay, pods } = this.options
    if ('uplink' in change) underlay.follow(change.uplink)
    else await pods.follow(change)
  }

  stop(): Promise<void> {
    this.ended ??= this.end(false)
    return this.ended
  }

  leave(): Promise<void> {
    this.ended ??= this.end(true)
    return this.ended
  }

  private async end(leaving: boolean): Promise<void> {
    const { forwarders, pods, takeAway } = this.options
    if (leaving) {
      await this.rest().catch(() => {})
      pods.leave()
    } else {
      await this.halt()
      // Interception first, so that no packet is on its way to a worker that is gone.
      pods.close()
    }
    await forwarders.stop().finally(() => takeAway(leaving))
  }

  private async renewExpress(): Promise<void> {
    const { forwarders, express } = this.options
    await forwarders.useExpress([])
    await forwarders.useExpress(express())
  }
}
