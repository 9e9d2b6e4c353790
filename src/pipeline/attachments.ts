// Which attachment a frame belongs to, by its Ethernet addresses. Numbers are small and reused; a frame carries its own.

import type { Pool } from '../memory/pool.ts'
import { addressHigh, addressLow, DESTINATION, SOURCE } from '../wire/ethernet.ts'

/** Directions of a frame as seen from the pod. */
export const LEAVING = 0
export const ARRIVING = 1

/** The most attachments of a worker. */
export const MAX_ATTACHMENTS = 4096

/** Attachment number of the endpoint probe, which has an address of its own and no pod. */
export const PROBE_ATTACHMENT = MAX_ATTACHMENTS

/** What finds the attachment of packets that came back. */
export interface Finder {
  /** Sets attachment and direction of a frame; false when it is of no attachment. */
  readonly assign: (frame: number) => boolean
  /** For a frame between two attachments that is no flow's of the one it left: makes it arrive at the other; false when it is not such a frame. */
  arriveInstead(frame: number): boolean
}

/** Pod interface addresses to attachment numbers: open addressing, one thread. */
export class AttachmentIndex implements Finder {
  private readonly pool: Pool
  private readonly size = MAX_ATTACHMENTS * 4
  private readonly high = new Int32Array(this.size)
  private readonly low = new Int32Array(this.size)
  private readonly number = new Int16Array(this.size).fill(-1)
  private readonly entries = new Map<number, Uint8Array>()

  constructor(pool: Pool) {
    this.pool = pool
  }

  /** Adds or replaces the address of an attachment. */
  set(attachment: number, mac: Uint8Array): void {
    this.entries.set(attachment, mac)
    this.rebuild()
  }

  delete(attachment: number): void {
    this.entries.delete(attachment)
    this.rebuild()
  }

  /**
   * Finds the attachment that a frame left (by its source address) or arrives at (by its destination), sets attachment
   * and direction, and returns true; false when neither address is known.
   */
  readonly assign = (frame: number): boolean => {
    const { pool } = this
    const start = pool.start[frame]
    let attachment = this.find(start + SOURCE)
    let direction = LEAVING
    if (attachment < 0) {
      attachment = this.find(start + DESTINATION)
      direction = ARRIVING
      if (attachment < 0) return false
    }
    pool.attachment[frame] = attachment
    pool.direction[frame] = direction
    return true
  }

  /** For a frame between two attachments that is no flow's of the one it left: makes it arrive at the other; false when it is not such a frame. */
  arriveInstead(frame: number): boolean {
    const { pool } = this
    if (pool.direction[frame] !== LEAVING) return false
    const attachment = this.find(pool.start[frame] + DESTINATION)
    if (attachment < 0 || attachment === pool.attachment[frame]) return false
    pool.attachment[frame] = attachment
    pool.direction[frame] = ARRIVING
    return true
  }

  /** The attachment of the address at a position, or -1. */
  readonly find = (at: number): number => {
    const { view } = this.pool
    const high = view.getUint16(at)
    const low = view.getInt32(at + 2)
    const mask = this.size - 1
    for (let slot = slotOf(high, low) & mask; ; slot = (slot + 1) & mask) {
      const number = this.number[slot]
      if (number < 0) return -1
      if (this.low[slot] === low && this.high[slot] === high) return number
    }
  }

  private rebuild(): void {
    const mask = this.size - 1
    this.number.fill(-1)
    for (const [attachment, mac] of this.entries) {
      const high = addressHigh(mac, 0)
      const low = addressLow(mac, 0)
      let slot = slotOf(high, low) & mask
      while (this.number[slot] >= 0) slot = (slot + 1) & mask
      this.high[slot] = high
      this.low[slot] = low
      this.number[slot] = attachment
    }
  }
}

function slotOf(high: number, low: number): number {
  const h = Math.imul(low ^ (high << 7), 0x9e3779b1)
  return h ^ (h >>> 15)
}
