// What the active process of a node serves: the control socket with the plugin's operations, metrics, and once a minute a look
// at what has become of its pods.

import type { Log } from '../control/log.ts'
import { OperationFailure, type ReloadReply } from '../control/operations.ts'
import { type ControlServer, serveControl } from '../control/socket.ts'
import type { OwnPod } from './admission.ts'
import { type MetricsServer, startMetrics } from './metrics.ts'
import type { RunningNode } from './node.ts'
import { NodeService } from './service.ts'
import type { Settings } from './settings.ts'
import type { Store } from './store.ts'

const SWEEP_MS = 60_000
/** Time between two tries to serve metrics. */
const METRICS_MS = 1000

/** Plugins of pods that start at the same time. */
const CLIENTS = 256

export interface ServingOptions {
  node: RunningNode
  settings: Settings
  store: Store
  own: OwnPod | undefined
  log: Log
  /** Called when the configuration was read again, with the keys that count from now on. */
  changed(keys: string[]): void
}

/** Main thread only. */
export class Serving {
  private readonly options: ServingOptions
  private readonly service: NodeService
  private readonly timer: NodeJS.Timeout
  private control: ControlServer | undefined
  private metrics: MetricsServer | undefined
  /** Why there are no metrics, as it was last told. */
  private why = ''
  /** The last thing that was begun with the configuration; what comes then waits for it. */
  private turn: Promise<unknown> = Promise.resolve()
  private closing = false

  private constructor(options: ServingOptions) {
    this.options = options
    const { settings, node, store, own, log } = options
    this.service = new NodeService({ config: settings.config, node, store, own, log })
    this.timer = setInterval(() => void this.look(), SWEEP_MS)
    this.timer.unref()
  }

  /** Attaches the pods that are remembered, and serves. Throws DetourError, and then serves nothing. */
  static async open(options: ServingOptions): Promise<Serving> {
    const serving = new Serving(options)
    try {
      // What was changed since the node was started counts, too; faults are told.
      await serving.takeOver().catch(({ message }) => options.log(message, { level: 'error', event: 'reload' }))
      await serving.start()
      return serving
    } catch (error) {
      await serving.close()
      throw error
    }
  }

  /** Hangs up on all clients, once what was begun for them is done; nothing is attached or detached afterwards. */
  async close(): Promise<void> {
    clearInterval(this.timer)
    this.closing = true
    await this.service.close()
    // NB: what it would serve after that would stand in the way of a successor.
    await this.turn
    await Promise.all([this.control?.close(), this.metrics?.close()])
  }

  /** Reads the configuration again. Throws OperationFailure that says what is wrong with it, and then nothing has changed. */
  reload(): Promise<ReloadReply> {
    return this.inTurn(() => this.readAgain())
  }

  private async readAgain(): Promise<ReloadReply> {
    const { log, changed } = this.options
    const changes = await this.takeOver().catch(({ message }: Error) => {
      log(`configuration not taken over: ${message}`, { level: 'error', event: 'reload' })
      throw new OperationFailure('bad-request', message)
    })
    const { applied, waiting } = changes
    changed(applied)
    if (applied.some(key => key === 'metrics.listen' || key === 'heartbeatLimitMs')) await this.serveMetrics()
    log(`configuration read again: ${applied.length === 0 ? 'nothing changed' : `changed: ${applied.join(', ')}`}`, {
      event: 'reload',
    })
    if (waiting.length > 0)
      log(`these count from the next start on: ${waiting.join(', ')}`, { level: 'warn', event: 'reload' })
    return changes
  }

  private async takeOver(): Promise<ReloadReply> {
    const { settings, node } = this.options
    const { undo, applied, waiting } = settings.reload()
    try {
      if (applied.length > 0) await node.reconfigure()
    } catch (error) {
      undo()
      await node.reconfigure()
      throw error
    }
    return { applied, waiting }
  }

  private async start(): Promise<void> {
    const { settings, node } = this.options
    const operations = Object.assign(this.service, { reload: () => this.reload() })
    const { control } = settings.config.node
    this.control = await serveControl(node.source, { path: control, operations, clients: CLIENTS })
    await this.serveMetrics()
    await this.service.open()
  }

  private async serveMetrics(): Promise<void> {
    const { settings, node, log } = this.options
    const { metrics, heartbeatLimitMs } = settings.config
    await this.metrics?.close()
    this.metrics = undefined
    if (metrics.listen === 'none') return
    const ready = async () => {
      const { ready, reason } = await this.service.ready()
      return { ok: ready, text: reason }
    }
    try {
      this.metrics = await startMetrics(node.source, { listen: metrics.listen, heartbeatLimitMs, ready, log })
      this.why = ''
    } catch (error) {
      // Packets matter more than figures: a port that somebody else has, or a process that is dying, is no reason to leave pods
      // alone. It is tried again.
      const { message } = error as Error
      if (message !== this.why) log(`no metrics: ${message}`, { level: 'error' })
      this.why = message
      const again = async () => {
        if (this.metrics === undefined) await this.serveMetrics()
      }
      setTimeout(() => void this.inTurn(again).catch(() => {}), METRICS_MS).unref()
    }
  }

  private inTurn<T>(task: () => Promise<T>): Promise<T> {
    if (this.closing)
      return Promise.reject(new OperationFailure('busy', 'the daemon is stopping; try again in a moment'))
    const mine = this.turn.then(task)
    this.turn = mine.catch(() => {})
    return mine
  }

  private async look(): Promise<void> {
    const { settings, node, log } = this.options
    try {
      await this.inTurn(async () => {
        if (settings.refresh()) await node.reconfigure()
      })
      await this.service.sweep()
    } catch (error) {
      log(`upkeep of the attachments: ${(error as Error).message}`, { level: 'warn' })
    }
  }
}
