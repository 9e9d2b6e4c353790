// Worker threads: the one place that knows their file names and extensions, how they start, fail and stop.

import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { MessageChannel, type MessagePort, receiveMessageOnPort, type Transferable, Worker } from 'node:worker_threads'
import { DetourError, type ErrorCode } from '../errors.ts'
import { compiled, packageRoot } from './package.ts'

/** What every worker finds in `workerData` beside its own data. */
export interface WorkerInput {
  /** From the main thread; `stopRequested` reads it. */
  port: MessagePort
}

/** How a worker is started. */
export interface SpawnOptions {
  /** What people see in errors; the file's name when not given. */
  name?: string
  /** Moved to the worker with its data. */
  transfer?: Transferable[]
  /** Wakes a worker that waits for packets, for example by writing to its eventfd. */
  wake?: () => void
}

/** A running worker: the thread that spawned it only. */
export interface RunningWorker {
  readonly name: string
  readonly worker: Worker
  /** Settles when the thread has ended: rejects with what it threw, or when it exited with a failure. */
  readonly done: Promise<void>
  /** Resolves with the first message the worker posts to its parent; rejects like `done`. */
  readonly ready: Promise<unknown>
  /** Sends a request, which the worker takes from `serve`, and resolves with its answer; rejects with the error it threw, or when it ends first. */
  ask(request: unknown): Promise<unknown>
  /** Asks the worker to end, wakes it, and after `timeoutMs` (default 2000) terminates it; then settles like `done`. */
  stop(timeoutMs?: number): Promise<void>
}

/** Starts `workers/<name>` with `data` and a port for the stop request in its `workerData`. */
export function spawnWorker(name: string, data: object, options: SpawnOptions = {}): RunningWorker {
  const { port1, port2 } = new MessageChannel()
  const worker = new Worker(workerFile(name), {
    name: options.name ?? name,
    workerData: { ...data, port: port2 } satisfies WorkerInput,
    transferList: [port2, ...(options.transfer ?? [])],
    execArgv: [],
  })
  return track(worker, options.name ?? name, port1, options.wake)
}

/** True once the main thread has asked this worker to end; call it from the loop's tick, never per packet. */
export function stopRequested(port: MessagePort): boolean {
  return receiveMessageOnPort(port)?.message?.stop === true
}

/** Answers what the main thread has asked since the last call, and returns true once it has asked this worker to end; as `stopRequested`, for the tick. */
export function serve(port: MessagePort, answer: (request: unknown) => unknown): boolean {
  for (;;) {
    const message = receiveMessageOnPort(port)?.message as { stop?: true; id: number; request: unknown } | undefined
    if (message === undefined || message.stop) return message !== undefined
    const { id, request } = message
    try {
      port.postMessage({ id, answer: answer(request) } satisfies Answer)
    } catch (error) {
      const code = error instanceof DetourError ? error.code : 'system'
      port.postMessage({ id, failure: { code, message: (error as Error).message } } satisfies Answer)
    }
  }
}

/** What `serve` sends back. */
interface Answer {
  id: number
  answer?: unknown
  failure?: { code: ErrorCode; message: string }
}

/** The file of a worker: compiled in dist/, or the source itself where Node runs TypeScript (22.18 and later). */
export function workerFile(name: string): URL {
  const stripsTypes = (process.features as { typescript?: unknown }).typescript
  const path = compiled || !stripsTypes ? `dist/workers/${name}.js` : `workers/${name}.ts`
  const url = new URL(path, packageRoot)
  if (existsSync(url)) return url
  const remedy = path.endsWith('.js') ? 'run "npm run build" first' : 'there is no such worker'
  throw new DetourError('not-found', `worker ${name}: ${fileURLToPath(url)} does not exist; ${remedy}`)
}

function track(worker: Worker, name: string, port: MessagePort, wake?: () => void): RunningWorker {
  let asked = false
  let failure: unknown
  const asking = new Map<number, { resolve(answer: unknown): void; reject(error: unknown): void }>()
  let asks = 0
  port.on('message', ({ id, answer, failure }: Answer) => {
    const waiting = asking.get(id)
    asking.delete(id)
    if (failure === undefined) waiting?.resolve(answer)
    else waiting?.reject(new DetourError(failure.code, failure.message))
  })
  // The port must not keep the process alive; the worker itself does.
  port.unref()
  const done = new Promise<void>((resolve, reject) => {
    worker.once('error', error => {
      failure = revive(error, name)
    })
    worker.once('exit', status => {
      port.close()
      if (failure !== undefined) reject(failure)
      else if (status === 0 || asked) resolve()
      else reject(new DetourError('system', `worker ${name} exited with status ${status}`))
    })
  })
  const ready = new Promise<unknown>((resolve, reject) => {
    worker.once('message', resolve)
    const early = () => reject(new DetourError('system', `worker ${name} ended before it was ready`))
    done.then(early, reject)
  })
  // Whoever does not wait for these is not punished for it: `stop` and the other promise tell the same.
  ready.catch(() => {})
  // Of a worker that has ended nothing comes back.
  let ended: unknown
  const giveUp = (error: unknown) => {
    ended = error
    for (const { reject } of asking.values()) reject(error)
    asking.clear()
  }
  done.then(() => giveUp(new DetourError('system', `worker ${name} has ended`)), giveUp)

  function ask(request: unknown): Promise<unknown> {
    if (ended !== undefined) return Promise.reject(ended)
    return new Promise((resolve, reject) => {
      const id = asks++
      asking.set(id, { resolve, reject })
      port.postMessage({ id, request })
      wake?.()
    })
  }

  async function stop(timeoutMs = 2000): Promise<void> {
    if (!asked) {
      asked = true
      port.postMessage({ stop: true })
      wake?.()
    }
    const timer = setTimeout(() => void worker.terminate(), timeoutMs)
    try {
      await done
    } finally {
      clearTimeout(timer)
    }
  }
  return { name, worker, done, ready, ask, stop }
}

/** An error that crossed threads keeps its properties but not its class. */
function revive(error: unknown, worker: string): unknown {
  if (!(error instanceof Error)) return new DetourError('system', `worker ${worker} threw ${String(error)}`)
  if (error.name !== 'DetourError') return error
  return new DetourError((error as Error & { code: ErrorCode }).code, error.message, { cause: error })
}
