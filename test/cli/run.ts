// Runs the compiled command as people do: as a process.

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const main = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

/** How a command ended. */
export interface Outcome {
  status: number | null
  stdout: string
  stderr: string
}

/** Starts `detour` with arguments; the caller awaits or kills it. */
export function start(args: string[], env: NodeJS.ProcessEnv = {}) {
  if (!existsSync(main)) throw new Error(`${main} does not exist: run "npm run build" first`)
  return spawn(process.execPath, [main, ...args], { env: { ...process.env, NODE_OPTIONS: '', ...env } })
}

/** Runs `detour` to its end. */
export function detour(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const child = start(args, env)
  const outcome: Outcome = { status: null, stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', text => (outcome.stdout += text))
  child.stderr.setEncoding('utf8').on('data', text => (outcome.stderr += text))
  return new Promise(resolve => {
    child.on('close', status => resolve({ ...outcome, status }))
  })
}
