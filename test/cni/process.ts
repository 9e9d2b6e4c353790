// Runs the plugin as a runtime does: as a process with no environment but the one it is given.

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const MAIN = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

/** The compiled command under the name that a runtime would call. */
export const COMPILED = [process.execPath, MAIN, 'cni']

/** Runs a plugin to its end. */
export function spawnPlugin(
  env: Record<string, string>,
  stdin: Uint8Array | string,
  [program, ...args] = COMPILED,
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const child = spawn(program, args, { env })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', text => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', text => (stderr += text))
  // It may end without having read everything.
  child.stdin.on('error', () => {})
  child.stdin.end(stdin)
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', status => resolve({ status, stdout, stderr }))
  })
}
