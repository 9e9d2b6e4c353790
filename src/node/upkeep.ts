// A node's upkeep: a timer of the main thread that looks at uplink, pods, endpoints and losses, tells what is wrong, once, and
// has it made good. Packets never wait for it.

import type { Config } from '../control/config.ts'
import type { Underlay } from '../control/underlay.ts'
import { monotonicMs } from '../os/clock.ts'
import { type Alarm, Alarms } from './alarm.ts'
import type { EndpointPool } from './endpoints.ts'
import type { Forwarders } from './forwarders.ts'
import { Losses } from './losses.ts'
import { PodUpkeep } from './pod-upkeep.ts'
import type { PodOptions, Pods } from './pods.ts'
import { UplinkUpkeep } from './uplink-upkeep.ts'
import { LinkWatch } from './watch.ts'

const TICK_MS = 200
const LOSSES_MS = 1000

export interface UpkeepOptions {
  config: Config
  namespace: string
  uplink: string
  underlay: Underlay
  endpoints: EndpointPool
  forwarders: Forwarders
  pods: Pods
  renewExpress(): Promise<void>
  log: (line: string) => void
}

export class Upkeep {
  private readonly options: UpkeepOptions
  private readonly alarms: Alarms
  private readonly losses: Losses
  private readonly watch = new LinkWatch()
  private readonly uplink: UplinkUpkeep
  private readonly pods: PodUpkeep
  private readonly timer: NodeJS.Timeout
  private lossesDue = 0

  /** Starts; `close` ends it. Throws DetourError. */
  constructor(options: UpkeepOptions) {
    this.options = options
    const { watch } = this
    const alarms = new Alarms(options.log)
    const losses = new Losses(alarms)
    this.alarms = alarms
    this.losses = losses
    this.uplink = new UplinkUpkeep({ ...options, watch, alarms, losses })
    this.pods = new PodUpkeep({ ...options, watch, alarms, losses })
    this.timer = setInterval(() => this.tick(), TICK_MS)
    this.timer.unref()
  }

  /** Keeps a pod attached that is. */
  keep(pod: PodOptions): void {
    this.pods.keep(pod)
  }

  /** Keeps it no longer; resolves when nothing works on it any more. */
  release(id: string): Promise<void> {
    return this.pods.release(id)
  }

  /** What is or was wrong. */
  list(): Alarm[] {
    return this.alarms.list()
  }

  /** Ends; resolves when nothing is being repaired any more. */
  async close(): Promise<void> {
    clearInterval(this.timer)
    await Promise.all([this.pods.close(), this.uplink.close()])
    this.watch.close()
  }

  private tick(): void {
    const now = monotonicMs()
    try {
      this.watch.look()
      this.uplink.tick(now)
      this.pods.tick(now)
      const { config, endpoints, forwarders } = this.options
      endpoints.tell(this.alarms, config, number => forwarders.flowsTo(number))
      if (now >= this.lossesDue) {
        this.lossesDue = now + LOSSES_MS
        this.losses.look(this.options.forwarders.counters())
      }
      this.alarms.clear('upkeep', 'upkeep works again')
    } catch (error) {
      // Packets go on without upkeep; what it could not do now it tries again.
      this.alarms.raise('upkeep', `upkeep: ${(error as Error).message}`)
    }
    this.alarms.tick()
  }
}
