// Child processes of tests: what they say, and all of a daemon's by their command lines, which name its configuration. NB: not by their
// network namespace, which is a pod's while the daemon attaches to it.

import { readdirSync, readFileSync } from 'node:fs'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { kill } from '../src/node/succession.ts'

/** Resolves when a child's output has this text in it, in one piece or several; rejects when it ends without. */
export function said(output: Readable, text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let all = ''
    output.on('data', data => (all += data).includes(text) && resolve())
    output.once('close', () => reject(new Error(`it never said "${text}", but ${JSON.stringify(all)}`)))
  })
}

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
