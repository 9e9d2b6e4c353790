// Pins of attachments that no record names: what is left when the folder of the records was lost.

import { closeSync, readdirSync, statSync } from 'node:fs'
import { getPinned, unpin } from '../os/bpf.ts'
import { Heartbeat } from '../os/heartbeat.ts'
import { PIN_DIRECTORY } from './attachment.ts'

/** Those of the daemon's attachments end so (attachmentId). */
const ID = /^[\w-]+-[0-9a-f]{8}$/

/** Pins and heartbeats of this age are nobody's any more: another daemon of this machine, or one that is being replaced, beats. */
const DEAD_MS = 600_000

/** Ids of attachments that nobody serves and `known` does not accept. */
export function orphans(known: (id: string) => boolean): string[] {
  return pinned().filter(id => ID.test(id) && !known(id) && ageMs(id) > DEAD_MS)
}

/** Removes the pins of an attachment: its gates go with them. Those that are not there are fine. */
export function removePins(id: string): void {
  unpin(`${PIN_DIRECTORY}/${id}`)
}

function pinned(): string[] {
  try {
    return readdirSync(PIN_DIRECTORY)
  } catch {
    return []
  }
}

/** The least of the ages of pins and heartbeat: between making and enabling an attachment, nothing has beaten. */
function ageMs(id: string): number {
  const { mtimeMs } = statSync(`${PIN_DIRECTORY}/${id}`, { throwIfNoEntry: false }) ?? { mtimeMs: Date.now() }
  return Math.min(Date.now() - mtimeMs, heartbeatAgeMs(id))
}

function heartbeatAgeMs(id: string): number {
  const fd = getPinned(`${PIN_DIRECTORY}/${id}/heartbeat`)
  if (fd < 0) return 0
  try {
    const heartbeat = new Heartbeat(fd)
    const age = heartbeat.ageMs()
    heartbeat.close()
    return age
  } finally {
    closeSync(fd)
  }
}
