// Conditions that somebody should know of: logged once when they begin and once when they have ended, however often they
// come and go in between.

import type { Log } from '../control/log.ts'
import { monotonicMs } from '../os/clock.ts'

/** How long a condition must stay away to count as ended, ms. */
export const HOLD_MS = 1000

/** A condition that holds or has held, or an event. */
export interface Alarm {
  /** What it is about: `uplink eth0 down`. */
  readonly name: string
  /** What was said of it last. */
  text: string
  raised: boolean
  /** How often it began. */
  times: number
  /** Since when it has been as it is, ms of CLOCK_MONOTONIC. */
  since: number
}

/** What is not logged yet: when the condition was logged as begun, how often it has begun since, and the words for its end. */
interface Episode {
  began: number
  times: number
  ending: string
}

/** The conditions of a face: main thread only. */
export class Alarms {
  private readonly alarms = new Map<string, Alarm>()
  private readonly episodes = new Map<string, Episode>()
  private readonly log: Log
  private readonly now: () => number

  /** `now` in ms. */
  constructor(log: Log, now: () => number = monotonicMs) {
    this.log = log
    this.now = now
  }

  /** The condition holds, for the reason that `text` gives: logs it, unless the condition held a moment ago. */
  raise(name: string, text: string): void {
    const alarm = this.alarms.get(name)
    const times = alarm?.times ?? 0
    if (alarm?.raised) {
      alarm.text = text
      return
    }
    const since = this.now()
    this.alarms.set(name, { name, text, raised: true, times: times + 1, since })
    const episode = this.episodes.get(name)
    if (episode !== undefined) episode.times++
    else {
      this.episodes.set(name, { began: since, times: 1, ending: '' })
      this.log(text, { level: 'warn', event: 'alarm raised', alarm: name })
    }
  }

  /** The condition holds no longer: `text` is logged once it has stayed away. One that did not hold is fine. */
  clear(name: string, text: string): void {
    const alarm = this.alarms.get(name)
    const episode = this.episodes.get(name)
    if (!alarm?.raised || episode === undefined) return
    Object.assign(alarm, { text, raised: false, since: this.now() })
    episode.ending = text
  }

  /** Something happened that does not last: logs `text`. */
  note(name: string, text: string): void {
    const { times = 0 } = this.alarms.get(name) ?? {}
    this.alarms.set(name, { name, text, raised: false, times: times + 1, since: this.now() })
    this.log(text, { level: 'warn', event: 'alarm noted', alarm: name })
  }

  /** Forgets what was said of something that is no more: the name itself, and those that go on after a space. */
  forget(name: string): void {
    for (const known of this.alarms.keys()) {
      if (known !== name && !known.startsWith(`${name} `)) continue
      this.alarms.delete(known)
      this.episodes.delete(known)
    }
  }

  /** Logs what has ended; call it a few times a second. */
  tick(): void {
    const now = this.now()
    for (const [name, { began, times, ending }] of this.episodes) {
      const alarm = this.alarms.get(name)
      if (alarm === undefined || alarm.raised || now - alarm.since < HOLD_MS) continue
      this.episodes.delete(name)
      const duration = ((alarm.since - began) / 1000).toFixed(1)
      const text = `${ending} after ${duration} s${times > 1 ? `, ${times} times` : ''}`
      this.log(text, { event: 'alarm cleared', alarm: name })
    }
  }

  /** All that was ever raised or noted. */
  list(): Alarm[] {
    return [...this.alarms.values()].map(alarm => ({ ...alarm }))
  }
}
