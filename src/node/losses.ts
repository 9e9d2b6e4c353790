// Packets that are lost because something has no room: told when it begins and, with their number, when it is over.

import type { WorkerCounters } from '../control/source.ts'
import { DROP, dropName, dropText } from '../drop.ts'
import type { Alarms } from './alarm.ts'

/** Drops that tell of a shortage, unlike those that tell of the packet. */
const SHORTAGES = [DROP.NO_FRAME, DROP.RING_FULL, DROP.DEVICE_FULL, DROP.DEVICE_ERROR, DROP.FLOW_TABLE_FULL]

/** Looks without a loss after which it is over. */
const QUIET_LOOKS = 3

interface Loss {
  /** How many since it began, and the counter at the last look. */
  lost: number
  last: number
  /** Looks since the last loss; undefined while nothing is lost. */
  quiet: number | undefined
}

/** What is lost where: main thread only. */
export class Losses {
  private readonly losses = new Map<string, Loss>()
  /** Names of all stages there were: one that is no more loses nothing more, either. */
  private readonly stages = new Set<string>()
  private readonly alarms: Alarms

  constructor(alarms: Alarms) {
    this.alarms = alarms
  }

  /** Takes what the workers have published. Call it about once a second. */
  look(workers: WorkerCounters[]): void {
    const totals = new Map<string, number>()
    for (const reason of SHORTAGES) {
      totals.clear()
      for (const { stages } of workers) {
        for (const stage of stages) totals.set(stage.name, (totals.get(stage.name) ?? 0) + stage.drops(reason))
      }
      for (const stage of totals.keys()) this.stages.add(stage)
      for (const stage of this.stages) this.count(stage, dropName(reason), dropText(reason), totals.get(stage) ?? 0)
    }
  }

  /** Forgets a place that is no more. */
  forget(place: string): void {
    this.stages.delete(place)
    for (const name of this.losses.keys()) if (name.startsWith(`${place} `)) this.losses.delete(name)
    this.alarms.forget(place)
  }

  /** Takes a counter of lost packets: of `place`, for a reason by its name and in words. */
  count(place: string, reason: string, words: string, total: number): void {
    this.follow(`${place} ${reason}`, total, {
      begun: () => `${place} loses packets: ${words}`,
      over: lost => `${place} loses no more packets, ${lost} were lost (${reason})`,
    })
  }

  /** Takes a counter that should stand still, and tells in these words when it began to grow and when it has ended, by so much. */
  follow(name: string, total: number, words: { begun(by: number): string; over(by: number): string }): void {
    const loss = this.losses.get(name) ?? { lost: 0, last: 0, quiet: undefined }
    this.losses.set(name, loss)
    if (total > loss.last) {
      if (loss.quiet === undefined) {
        loss.lost = 0
        this.alarms.raise(name, words.begun(total - loss.last))
      }
      loss.lost += total - loss.last
      loss.quiet = 0
    } else if (loss.quiet !== undefined && ++loss.quiet >= QUIET_LOOKS) {
      loss.quiet = undefined
      this.alarms.clear(name, words.over(loss.lost))
    }
    loss.last = total
  }
}
