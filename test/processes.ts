// Processes by their command lines: a daemon's own name its configuration, wherever they are. NB: not by their network namespace,
// which is a pod's while the daemon attaches to it.

import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { kill } from '../src/node/succession.ts'

/** Those with this text in their command lines, by process id; arguments are separated by null bytes. */
export function processesWith(text: string): Map<number, string> {
  const found = new Map<number, string>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const line = commandLine(name)
    if (line.includes(text)) found.set(Number(name), line)
  }
  return found
}

/** SIGKILL to all of them, and to those that they start meanwhile; resolves when they are gone. */
export async function killWith(text: string): Promise<void> {
  for (;;) {
    const left = [...processesWith(text).keys()]
    if (left.length === 0) return
    left.forEach(kill)
    await sleep(20)
  }
}

// A process that has ended has none.
function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return ''
  }
}
