// The node daemon's process: configuration, log, signals, and what the service manager is told. What it serves while it is the
// active one of the pair is in serving.ts; the packets are the node's.

import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { connectControl } from '../control/client.ts'
import { type FlowLog, openFlowLog } from '../control/flow-log.ts'
import { type Log, openLog } from '../control/log.ts'
import { packageVersion } from '../control/package.ts'
import { DetourError } from '../errors.ts'
import { NODE_CAPABILITIES, requireCapabilities } from '../os/capabilities.ts'
import { openServiceManager, type ServiceManager } from '../os/notify.ts'
import type { OwnPod } from './admission.ts'
import { type Pair, runPair, type Service } from './handover-pair.ts'
import type { NodeOptions, RunningNode } from './node.ts'
import { Serving } from './serving.ts'
import { Settings } from './settings.ts'
import { Store } from './store.ts'

export interface DaemonOptions {
  /** The configuration file. */
  file: string
  /** True in a process that another daemon started to stand by. */
  partner: boolean
}

/** Runs until it is told to stop, which leaves attachments as they are. Throws DetourError. */
export async function runDaemon(options: DaemonOptions): Promise<void> {
  await new Daemon(options).run()
}

class Daemon {
  private readonly options: DaemonOptions
  private readonly manager: ServiceManager
  private readonly store: Store
  private settings: Settings
  private write: Log
  private readonly log: Log = (text, fields) => this.write(text, fields)
  private pair: Pair | undefined
  private serving: Serving | undefined
  private flowLog: FlowLog | undefined
  private stopping = false

  constructor(options: DaemonOptions) {
    const lacking = requireCapabilities(NODE_CAPABILITIES)
    this.options = options
    this.settings = new Settings(options.file)
    this.store = new Store(this.settings.config.node.state)
    this.write = openLog(this.settings.config.log)
    this.manager = openServiceManager(options.partner ? {} : process.env)
    this.log(`detour ${packageVersion()}, configuration ${options.file}`)
    for (const { name, purpose } of lacking) this.log(`${name} is missing: it is for ${purpose}`, { level: 'warn' })
  }

  async run(): Promise<void> {
    process.on('SIGTERM', () => this.stop()).on('SIGINT', () => this.stop())
    process.on('SIGHUP', () => void this.reload())
    const { state, standby } = this.settings.config.node
    const pair = await runPair({
      path: join(state, 'handover.sock'),
      standby,
      partner: this.options.partner,
      options: () => this.nodeOptions(),
      activate: node => this.activate(node),
      startPartner: async () => this.startPartner(),
      log: this.log,
    })
    this.pair = pair
    this.manager.ready('ready')
    const beats = this.startBeating()
    if (this.stopping) void pair.stop('leave')
    await pair.done.finally(() => {
      clearInterval(beats)
      this.flowLog?.close()
      this.manager.close()
    })
  }

  /** Serves, by the configuration as it is now: this process may have stood by for long. */
  private async activate(node: RunningNode): Promise<Service> {
    const { settings, store, log } = this
    const changed = (keys: string[]) => this.changed(keys)
    const serving = await Serving.open({ node, settings, store, own: ownPod(), log, changed })
    this.serving = serving
    log(`ready: uplink ${settings.uplink}, control socket ${settings.config.node.control}`)
    return {
      close: async () => {
        this.serving = undefined
        await serving.close()
      },
    }
  }

  /** What the node is started with, as the file has it now; as it had it last where that has faults. */
  private nodeOptions(): NodeOptions {
    try {
      this.settings = new Settings(this.options.file)
    } catch (error) {
      this.log(`configuration: ${(error as Error).message}; going on with the last one`, { level: 'error' })
    }
    const { config, namespace, uplink } = this.settings
    if (config.flowLog !== 'none') this.flowLog ??= openFlowLog(config.flowLog)
    return { config, namespace, uplink, pods: [], flowLog: this.flowLog, log: this.log }
  }

  private stop(): void {
    // Whoever asks twice does not want to wait.
    if (this.stopping) process.exit(1)
    this.stopping = true
    this.log('stopping; attachments stay, under their fail mode')
    this.manager.stopping()
    void this.pair?.stop('leave')
  }

  private async reload(): Promise<void> {
    this.manager.reloading()
    try {
      if (this.serving !== undefined) await this.serving.reload()
      else await this.reloadPartner()
    } catch (error) {
      this.log(`reload: ${(error as Error).message}`, { level: 'error' })
    }
    this.manager.ready('ready')
  }

  /** While this process stands by, the other one is asked. */
  private async reloadPartner(): Promise<void> {
    const client = await connectControl(this.settings.config.node.control)
    try {
      await client.ask('reload', {})
    } finally {
      client.close()
    }
  }

  /** Called after the configuration was read again. */
  private changed(keys: string[]): void {
    // Who rotates logs sends SIGHUP, too.
    this.flowLog?.reopen()
    if (keys.some(key => key.startsWith('log.'))) this.write = openLog(this.settings.config.log)
  }

  private startBeating(): NodeJS.Timeout | undefined {
    const { watchdogMs } = this.manager
    if (watchdogMs === undefined) return undefined
    this.manager.beat()
    return setInterval(() => {
      if (this.isAlive()) this.manager.beat()
    }, watchdogMs / 2)
  }

  /** Whether the workers beat, where this process has any; that it asks says that its main loop is alive. */
  private isAlive(): boolean {
    const limitMs = Math.max(1000, 5 * this.settings.config.heartbeatLimitMs)
    return (this.pair?.node?.heartbeatAges() ?? []).every(age => age < limitMs)
  }

  private startPartner(): number {
    const { NOTIFY_SOCKET: _socket, WATCHDOG_USEC: _usec, WATCHDOG_PID: _pid, ...env } = process.env
    const args = [...process.execArgv, process.argv[1], 'node', '--config', this.options.file, '--partner']
    const partner = spawn(process.execPath, args, { stdio: 'inherit', env })
    partner.on('error', error => this.log(`partner: ${error.message}`, { level: 'error' }))
    if (partner.pid === undefined) throw new DetourError('system', `cannot start ${process.execPath}`)
    return partner.pid
  }
}

/** The daemon's own pod, as the downward API tells it. */
function ownPod({ POD_NAMESPACE: namespace, POD_NAME: name } = process.env): OwnPod | undefined {
  return namespace && name ? { namespace, name } : undefined
}
