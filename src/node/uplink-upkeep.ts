// Keeps the uplink attached: its carrier, its MTU, a new one of its name, programs that somebody took off. Told once, made good
// where it can be. Main thread only.

import type { Underlay } from '../control/underlay.ts'
import { Rtnetlink } from '../os/rtnetlink.ts'
import type { Alarms } from './alarm.ts'
import type { EndpointPool } from './endpoints.ts'
import type { Losses } from './losses.ts'
import type { LinkWatch } from './watch.ts'

/** Time between two looks at what no event tells of, ms. */
const EXAMINE_MS = 1000
/** Time between two looks at the way, where nothing happened to the uplink, ms: a neighbour's new address is known so soon. */
const WAY_MS = 500

export interface UplinkUpkeepOptions {
  namespace: string
  uplink: string
  underlay: Underlay
  endpoints: EndpointPool
  watch: LinkWatch
  alarms: Alarms
  losses: Losses
  /** Opens the express devices on the uplink of now, in place of those that the workers have. */
  renewExpress(): Promise<void>
}

export class UplinkUpkeep {
  private readonly options: UplinkUpkeepOptions
  private readonly questions: Rtnetlink
  private readonly stop: () => void
  private readonly name: string
  private mtu: number
  private due = 0
  private wayDue = 0
  private changed = false
  private filters = false
  /** Whether it was down or gone since the last tick, be it up again by now. */
  private interrupted = false
  /** The interface that the express devices are on. */
  private expressIndex: number | undefined
  private work: Promise<void> | undefined

  /** Throws DetourError. */
  constructor(options: UplinkUpkeepOptions) {
    const { namespace, uplink, endpoints, watch } = options
    this.options = options
    this.name = `uplink ${uplink}`
    this.mtu = endpoints.mtu
    this.expressIndex = endpoints.link?.index
    this.questions = new Rtnetlink(namespace)
    this.stop = watch.watch(namespace, uplink, change => {
      this.changed = true
      if (change === 'down' || change === 'gone') this.interrupted = true
      if (change === 'filters') this.filters = true
    }).stop
  }

  /** Looks at the way and the uplink, and makes good what it can. `now` in ms. */
  tick(now: number): void {
    const { endpoints, alarms } = this.options
    const { name } = this
    if (this.changed || now >= this.wayDue) {
      this.changed = false
      this.wayDue = now + WAY_MS
      endpoints.refresh()
    }
    if (endpoints.mtu !== this.mtu) {
      alarms.note(`${name} MTU`, `${name}: the path MTU was ${this.mtu} and is ${endpoints.mtu}`)
      this.mtu = endpoints.mtu
    }
    const fault = this.fault(now)
    if (fault !== '' || this.interrupted) alarms.raise(name, `${name} ${fault || 'was down'}`)
    if (fault === '') alarms.clear(name, `${name} works again`)
    this.interrupted = false
    this.renewExpress()
  }

  /** Resolves when nothing is being opened any more. */
  async close(): Promise<void> {
    this.stop()
    this.questions.close()
    await this.work
  }

  /** Opens the express devices anew where the uplink is another one. */
  private renewExpress(): void {
    const { endpoints, alarms, renewExpress } = this.options
    const { link } = endpoints
    if (!link?.running || link.index === this.expressIndex || this.work !== undefined) return
    this.expressIndex = link.index
    this.work = renewExpress()
      .catch(error => alarms.note(`${this.name} express`, `${this.name}: ${(error as Error).message}`))
      .finally(() => {
        this.work = undefined
      })
  }

  /** What is wrong and stays so; '' when nothing is. */
  private fault(now: number): string {
    const { underlay, endpoints, alarms, losses } = this.options
    const { link } = endpoints
    if (link === undefined) return 'is gone'
    if (underlay.offloadRung === 'af-xdp' && link.index !== underlay.uplinkIndex())
      return 'was made anew, and rung af-xdp stays with the interface that it began on: restart the node'
    if (underlay.tapName !== '') {
      let lost = link.index === underlay.uplinkIndex() ? '' : 'was made anew'
      if (lost === '' && (now >= this.due || this.filters)) {
        const tap = this.questions.link(underlay.tapName)
        if (tap === undefined) return `has lost its TAP ${underlay.tapName}: restart the node`
        losses.count(`tap ${underlay.tapName}`, 'queue-full', 'the workers do not keep up', tap.txDropped)
        if (!tap.up) lost = 'has its TAP set down'
        else if ((underlay.attachRung === 'tcx' || this.filters) && !underlay.isAttached())
          lost = 'has lost its programs'
        this.due = now + EXAMINE_MS
        this.filters = false
      }
      if (lost !== '') {
        alarms.raise(this.name, `${this.name} ${lost}`)
        try {
          underlay.reattach()
        } catch (error) {
          return `cannot be attached: ${(error as Error).message}`
        }
      }
    }
    return link.running ? '' : 'is down'
  }
}
