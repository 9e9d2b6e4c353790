// The plugin's edge: environment, standard input and output of this process.

import { appendFileSync } from 'node:fs'
import { CniError, CODE, renderError } from './error.ts'
import { type Outcome, plugin } from './plugin.ts'
import { NEWEST } from './versions.ts'

/** Serves the call that this process was started for, and ends the process. */
export async function runPlugin(): Promise<void> {
  process.on('uncaughtException', error => {
    const failure = new CniError(CODE.FAILED, 'the plugin failed', error.message)
    end({ status: 1, output: renderError(failure, NEWEST), note: {} })
  })
  if (process.env.CNI_COMMAND === undefined) {
    console.error('This is a CNI plugin: a container runtime calls it with CNI_COMMAND set. --help says more.')
  }
  const outcome = await plugin(process.env, process.stdin.isTTY ? [] : process.stdin)
  log(outcome)
  end(outcome)
}

function end({ status, output }: Outcome): void {
  process.stdout.on('error', () => process.exit(1))
  process.stdout.write(output === '' ? '' : `${output}\n`, () => process.exit(status))
}

/** A log that cannot be written is no reason to fail. */
function log({ logFile, note }: Outcome): void {
  if (logFile === undefined) return
  const line = { time: new Date().toISOString(), ...note, ms: Math.round(performance.now()) }
  try {
    appendFileSync(logFile, `${JSON.stringify(line)}\n`, { mode: 0o600 })
  } catch {}
}
