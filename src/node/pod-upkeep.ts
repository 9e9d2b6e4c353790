// Keeps pods attached: what others do to a pod's interface, its namespace, or to our TAP and classifiers there is noticed, told
// once, and made good as soon as it can be. Main thread only.

import ipaddr from 'ipaddr.js'
import type { Config } from '../control/config.ts'
import { monotonicMs } from '../os/clock.ts'
import { type Link, rtnetlinkIn } from '../os/rtnetlink.ts'
import type { Alarms } from './alarm.ts'
import type { Attachment } from './attachment.ts'
import type { Losses } from './losses.ts'
import type { PodOptions, Pods } from './pods.ts'
import { isSandbox } from './sandbox.ts'
import type { LinkChange, LinkWatch } from './watch.ts'

/** Time between two examinations where no event asks for one, ms. */
const EXAMINE_MS = 5000
/** Time between two looks at what the fail mode has stopped or let pass, ms. */
const FAILED_MS = 1000

export interface PodUpkeepOptions {
  config: Config
  pods: Pods
  watch: LinkWatch
  alarms: Alarms
  losses: Losses
}

/** Addresses in a line of the log, at most. */
const SHOWN = 8

interface Kept {
  pod: PodOptions
  /** What its losses are counted as: the name of its TAP's counters. */
  place: string
  /** What has happened since the last examination. */
  changes: Set<LinkChange>
  /** When it is next examined without anything happening, ms. */
  due: number
  /** A repair that is under way. */
  work: Promise<void> | undefined
  stop: () => void
}

/** What is found in the pod's namespace. */
interface Found {
  link: Link | undefined
  tap: Link | undefined
  addresses: string[]
}

export class PodUpkeep {
  private readonly options: PodUpkeepOptions
  private readonly kept = new Map<string, Kept>()
  private failedDue = 0
  private lastTick = monotonicMs()
  /** The longest pause of this thread since the last look, ms: what stops it stops the workers, too. */
  private pause = 0

  constructor(options: PodUpkeepOptions) {
    this.options = options
  }

  /** Keeps an attached pod attached until `release`. Throws DetourError. */
  keep(pod: PodOptions): void {
    const { watch, pods } = this.options
    const changes = new Set<LinkChange>()
    const note = (change: LinkChange) => void changes.add(change)
    const attachment = pods.get(pod.id)
    const names = attachment === undefined ? [] : [attachment.interface, attachment.tapName]
    const stops = names.map(name => watch.watch(pod.namespace, name, note).stop)
    const stop = () => {
      for (const each of stops) each()
    }
    const place = `tap ${pod.id}:${attachment?.tapName ?? ''}`
    this.kept.set(pod.id, { pod, place, changes, due: 0, work: undefined, stop })
  }

  /** Keeps it no longer; resolves when a repair that was under way is over. */
  async release(id: string): Promise<void> {
    const kept = this.kept.get(id)
    if (kept === undefined) return
    this.kept.delete(id)
    kept.stop()
    await kept.work
    this.options.alarms.forget(`attachment ${id}`)
    this.options.losses.forget(kept.place)
    this.options.losses.forget(failing(id))
  }

  /** Examines the pods that something happened to, and the others now and then. `now` in ms. */
  tick(now: number): void {
    for (const kept of this.kept.values()) {
      if (kept.work !== undefined || (kept.changes.size === 0 && now < kept.due)) continue
      kept.due = now + EXAMINE_MS
      try {
        this.examine(kept)
      } catch (error) {
        // One pod, which may do as it likes with its interface, does not keep the others from being looked at.
        const alarm = `attachment ${kept.pod.id}`
        this.options.alarms.raise(alarm, `${alarm}: ${(error as Error).message}`)
      }
    }
    this.pause = Math.max(this.pause, now - this.lastTick)
    this.lastTick = now
    if (now < this.failedDue) return
    for (const kept of this.kept.values()) if (kept.work === undefined) this.failed(kept)
    this.failedDue = now + FAILED_MS
    this.pause = 0
  }

  async close(): Promise<void> {
    await Promise.all([...this.kept.keys()].map(id => this.release(id)))
  }

  private examine(kept: Kept): void {
    const { pods, alarms, losses } = this.options
    const { pod, changes } = kept
    const { id, namespace } = pod
    const interrupted = changes.has('down')
    changes.clear()
    const attachment = pods.get(id)
    const name = attachment?.interface ?? pod.interface ?? 'eth0'
    const found = look(pod, name, attachment?.tapName ?? '')
    const alarm = `attachment ${id}`
    const fault = faultOf(attachment, found)
    if (fault === '' && attachment !== undefined && found?.link !== undefined) {
      alarms.clear(alarm, `${alarm}: ${name} of ${namespace} is served again`)
      const { running, up } = found.link
      if (!running || interrupted)
        alarms.raise(`${alarm} link`, `${alarm}: ${name} ${up ? 'has no carrier' : 'is down'}`)
      if (running) alarms.clear(`${alarm} link`, `${alarm}: ${name} is up again`)
      if (found.addresses.join() !== attachment.addresses.join() || found.link.mtu !== attachment.mtu) {
        pods.update(id, found.addresses, found.link.mtu)
        alarms.note(`${alarm} changed`, `${alarm}: ${name} now has ${inWords(found.addresses)}, MTU ${found.link.mtu}`)
      }
      losses.count(kept.place, 'queue-full', 'the workers do not keep up', found.tap?.txDropped ?? 0)
      return
    }
    alarms.raise(alarm, `${alarm}: ${fault.replace('%', `${name} of ${namespace}`)}`)
    kept.work = this.repair(kept, found?.link !== undefined)
      .catch(error => alarms.raise(alarm, `${alarm}: ${(error as Error).message}`))
      .finally(() => {
        kept.work = undefined
      })
  }

  /** Tells of packets that the kernel stopped or let pass because a worker was silent. */
  private failed({ pod: { id } }: Kept): void {
    const { pods, losses, config } = this.options
    const attachment = pods.get(id)
    if (attachment === undefined) return
    const counters = attachment.failCounters()
    const seconds = (Math.max(this.pause, attachment.heartbeatAgeMs(), config.heartbeatLimitMs) / 1000).toFixed(1)
    for (const what of ['passed', 'dropped'] as const) {
      losses.follow(`${failing(id)} ${what}`, counters[what] - attachment.toldBefore[what], {
        begun: by =>
          `attachment ${id}: a worker did not answer for ${seconds} s: ${by} packets ${what} by the fail mode`,
        over: by => `attachment ${id}: the workers answer again, ${by} packets ${what} by the fail mode`,
      })
    }
  }

  /** Attaches again, going on with what is left, where there is an interface; where there is none, takes away what is left. */
  private async repair({ pod, place, changes }: Kept, there: boolean): Promise<void> {
    const { pods, losses } = this.options
    const goOn = there && this.kept.has(pod.id)
    await (goOn ? pods.withdraw(pod.id) : pods.detach(pod.id))
    losses.forget(place)
    if (!goOn) return
    await pods.attach(pod)
    // What that did to the namespace is looked at, too, which ends the alarm.
    changes.add('filters')
  }
}

/** A pod may give its interface thousands. */
const inWords = (addresses: string[]) =>
  addresses.slice(0, SHOWN).join(', ') + (addresses.length > SHOWN ? ` and ${addresses.length - SHOWN} more` : '')

/** What the fail mode's packets are counted as. */
const failing = (id: string) => `attachment ${id} fail-mode`

/** What is wrong with an attachment in words, '%' for its interface; '' when nothing is. */
function faultOf(attachment: Attachment | undefined, found: Found | undefined): string {
  if (found === undefined) return 'the namespace of % is gone'
  const { link, tap } = found
  if (link === undefined) return '% is gone'
  if (attachment === undefined || attachment.index !== link.index) return '% was made anew'
  if (attachment.mac !== link.mac) return `% has another address, ${link.mac}`
  if (tap?.index !== attachment.tapIndex) return 'the TAP beside % was taken away'
  if (!tap.up) return 'the TAP beside % was set down'
  if (!attachment.isAttached()) return 'the programs on % were taken off'
  return ''
}

/** Undefined when there is no such namespace. */
function look({ namespace, sandbox }: PodOptions, name: string, tapName: string): Found | undefined {
  if (sandbox !== undefined && !isSandbox(namespace, sandbox)) return undefined
  const questions = rtnetlinkIn(namespace)
  if (questions === undefined) return undefined
  try {
    const link = questions.link(name)
    const bytes = link === undefined ? [] : questions.addresses(link.index)
    const addresses = bytes.map(address => ipaddr.fromByteArray(Array.from(address)).toString())
    return { link, tap: tapName === '' ? undefined : questions.link(tapName), addresses }
  } finally {
    questions.close()
  }
}
