// Child processes of the laboratory: real programs started inside its network namespaces, waited for with a limit.

import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { compiled, packageRoot } from '../control/package.ts'
import { DetourError } from '../errors.ts'
import { inNamespace } from '../os/netns.ts'

/** Where a process runs: a network namespace to enter, or null for this process's own. */
export type Where = { readonly path: string } | null

/** A process that was started and may end by itself. */
export interface Running {
  readonly name: string
  readonly pid: number
  /** Every line of its standard output so far. */
  readonly lines: readonly string[]
  /** Standard error so far. */
  readonly errors: () => string
  /** Its exit status, or the name of the signal that ended it; never rejects. */
  readonly done: Promise<number | string>
  /** Resolves with the first line, past or to come, that the test accepts; rejects when it ends or the time is over. */
  line(test: (line: string) => boolean, timeoutMs: number): Promise<string>
  /** Lets this process end without it. */
  release(): void
  /** An error that names the process and its last words. */
  failure(why: string): DetourError
  /** Sends a signal and waits for the end; a process that is gone is fine. */
  stop(signal?: NodeJS.Signals): Promise<void>
}

export interface StartOptions {
  onLine?: (line: string) => void
  /** Gets what the process says, instead of `lines`; the process may then outlive this one. */
  log?: string
}

/** Starts a program in a namespace; throws `system` when it cannot be started. */
export function start(where: Where, name: string, command: string[], options: StartOptions = {}): Running {
  const [program, ...args] = command
  const log = options.log === undefined ? undefined : openSync(options.log, 'a')
  const output = log ?? 'pipe'
  // NB: in a session of its own, or Ctrl-C at a terminal would end it before this process knows, and a step would fail by that.
  const settings: SpawnOptions = { stdio: ['ignore', output, output], detached: true }
  const child = inNamespace(where?.path ?? '', () => spawn(program, args, settings))
  if (log !== undefined) closeSync(log)
  if (child.pid === undefined) throw new DetourError('system', `lab: cannot start ${program} (for ${name})`)
  return follow(child, name, options)
}

/** Runs a program to its end and returns its standard output; throws `system` when it fails or takes too long. */
export async function run(where: Where, name: string, command: string[], timeoutMs: number): Promise<string> {
  const running = start(where, name, command)
  const timer = setTimeout(() => void running.stop('SIGKILL'), timeoutMs)
  const status = await running.done
  clearTimeout(timer)
  if (status === 0) return running.lines.join('\n')
  throw running.failure(status === 'SIGKILL' ? `no end after ${timeoutMs} ms` : `status ${status}`)
}

/** The command line that runs one of the laboratory's own programs. */
export function program(name: string, ...args: (string | number)[]): string[] {
  return [process.execPath, sourceFile(`src/lab/programs/${name}`), ...args.map(String)]
}

/** The command line of `detour` itself. */
export function detour(...args: string[]): string[] {
  return [process.execPath, sourceFile('src/cli/main'), ...args]
}

function sourceFile(path: string): string {
  const stripsTypes = (process.features as { typescript?: unknown }).typescript
  const file = fileURLToPath(new URL(compiled || !stripsTypes ? `dist/${path}.js` : `${path}.ts`, packageRoot))
  if (!existsSync(file)) throw new DetourError('not-found', `lab: ${file} does not exist; run "npm run build" first`)
  return file
}

function follow(child: ChildProcess, name: string, { onLine, log }: StartOptions): Running {
  const lines: string[] = []
  const waiting = new Set<(line: string | null) => void>()
  let rest = ''
  let errors = ''
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n')
    rest = parts.pop() ?? ''
    for (const line of parts) {
      lines.push(line)
      onLine?.(line)
      for (const wake of waiting) wake(line)
    }
  })
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-8192)
  })
  const done = new Promise<number | string>(resolve => {
    child.once('error', error => resolve(error.message))
    child.once('close', (status, signal) => resolve(signal ?? status ?? -1))
  }).then(status => {
    if (rest !== '') lines.push(rest)
    for (const wake of waiting) wake(null)
    return status
  })
  const running: Running = {
    name,
    pid: child.pid!,
    lines,
    errors: () => (log === undefined ? errors : readFileSync(log, 'utf8').slice(-8192)),
    done,
    line(test, timeoutMs) {
      const past = lines.find(test)
      if (past !== undefined) return Promise.resolve(past)
      return new Promise((resolve, reject) => {
        const fail = (why: string) => finish(() => reject(running.failure(why)))
        const timer = setTimeout(() => fail(`not ready after ${timeoutMs} ms`), timeoutMs)
        const wake = (line: string | null) => {
          if (line === null) fail('ended before it was ready')
          else if (test(line)) finish(() => resolve(line))
        }
        const finish = (settle: () => void) => {
          clearTimeout(timer)
          waiting.delete(wake)
          settle()
        }
        if (child.exitCode !== null || child.signalCode !== null) fail('ended before it was ready')
        else waiting.add(wake)
      })
    },
    release() {
      child.unref()
      child.stdout?.destroy()
      child.stderr?.destroy()
    },
    failure: why => new DetourError('system', `lab: ${name}: ${why}: ${tail(running)}`),
    async stop(signal = 'SIGTERM') {
      child.kill(signal)
      await done
    },
  }
  return running
}

function tail(running: Running): string {
  const text = running.errors().trim() || running.lines.slice(-3).join(' | ')
  return text === '' ? 'it said nothing' : text.split('\n').slice(-4).join(' | ')
}
