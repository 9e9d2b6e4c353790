// Detour on the scene's node and at its endpoint: the gateway, the daemon, and the plugin beside the reference plugins.

import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { entryOf, PLUGIN } from '../../src/cni/install/entry.ts'
import { type ControlClient, connectControl } from '../../src/control/client.ts'
import { detour, type Running } from '../../src/lab/process.ts'
import { PIN_DIRECTORY } from '../../src/node/attachment.ts'
import { killWith, processesWith } from '../processes.ts'
import { PORT } from './outside.ts'
import type { Plugin } from './primaries.ts'
import { GATEWAY, NODE, type Scene, shortId, until } from './scene.ts'

/** Debian's reference plugins. */
const REFERENCE_PLUGINS = '/usr/lib/cni'
/** UDP to it is dropped by the gateway, whoever sends it. */
export const CLOSED_PORT = 9999

const POLICY = `default: allow
rules:
  - { name: no-secrets, protocol: tcp, ports: [${PORT}], signature: { text: 'GET /secret' }, action: reset }
  - { name: closed-port, protocol: udp, ports: [${CLOSED_PORT}], action: drop }
`
const START_LIMIT_MS = 60_000
/** A machine that is busy for a moment must count neither as a worker's death nor as the gateway's. */
const CALM = { heartbeatLimitMs: 2000, health: { probe: { limitMs: 5000 } } }

/** One line of the gateway's verdict log. */
export interface Verdict {
  source: string
  destination: string
  destinationPort: number
  /** Counts flows. */
  flow: number
  rule: string
  action: string
}

export interface Gateway {
  /** The verdicts so far on flows from an address. */
  verdicts(source: string): Verdict[]
}

/** Starts the gateway at the other end of the uplink. */
export async function startGateway(scene: Scene): Promise<Gateway> {
  const policy = scene.file('policy.yaml')
  const log = scene.file('verdicts.jsonl')
  writeFileSync(policy, POLICY)
  const files = ['--policy', policy, '--log', log, '--control', scene.file('gateway.sock')]
  const command = detour('gateway', '--listen', GATEWAY, '--interface', scene.downlink, '--json', ...files)
  await scene.start('gate', 'gateway', command).line(line => line.includes('"listening"'), START_LIMIT_MS)
  return {
    verdicts(source) {
      const lines = existsSync(log) ? readFileSync(log, 'utf8').split('\n').slice(0, -1) : []
      return lines.map(line => JSON.parse(line) as Verdict).filter(verdict => verdict.source === source)
    },
  }
}

/** The daemon's control socket, wherever it is mentioned. */
export const socketOf = (scene: Scene) => scene.file('detour/detour.sock')

const configOf = (scene: Scene) => scene.file('detour.yaml')

export interface Daemon {
  readonly running: Running
  /** All its processes: the active one, its standby. */
  pids(): number[]
  /** Resolves with its partner's process id when that one serves. NB: before, while it takes over, calls find nobody for a moment. */
  partner(): Promise<number>
  /** SIGKILL to all of them; resolves when they are gone. */
  killAll(): Promise<void>
}

/** Starts the daemon on the node and waits until a partner serves; `more` is merged over the configuration's top level. */
export async function startDaemon(scene: Scene, more: object = {}): Promise<Daemon> {
  const config = configOf(scene)
  const state = scene.file('detour')
  mkdirSync(state, { recursive: true, mode: 0o700 })
  const settings = {
    node: { uplink: scene.uplink, control: socketOf(scene), state },
    tunnel: { local: NODE, remote: GATEWAY, vni: 77 },
    metrics: { listen: 'none' },
    ...CALM,
    ...more,
  }
  // YAML is a superset of JSON.
  writeFileSync(config, JSON.stringify(settings))
  const log = scene.file('daemon.log')
  const command = ['sh', '-c', `exec "$@" >>'${log}' 2>&1`, 'daemon', ...detour('node', '--config', config)]
  const running = scene.start('node', 'daemon', command)
  const ended = running.done.then(status => {
    throw new Error(`the daemon ended (${status}): ${readFileSync(log, 'utf8').slice(-2000)}`)
  })
  ended.catch(() => {})
  // A daemon's other processes carry the path of its configuration too, which is the scene's alone.
  const processes = () => processesWith(config)
  const pids = () => [...processes().keys()]
  const partner = () =>
    until('the partner serves', async () => {
      const pid = await active(scene)
      return (processes().get(pid) ?? '').includes('--partner') && pid
    })
  const started = async () => {
    await until('the daemon is ready', () => isReady(scene), START_LIMIT_MS)
    await partner()
  }
  await Promise.race([ended, started()])
  return {
    ...{ running, pids, partner },
    async killAll() {
      await killWith(config)
      await running.done
    },
  }
}

/** Takes away what a daemon that has ended left on the node. */
export const cleanNode = (scene: Scene) => scene.run('node', detour('node', '--clean', '--config', configOf(scene)))

/** Whether the daemon would serve ADD now. */
const isReady = (scene: Scene) => asked(scene, async client => (await client.ask('ready', {})).ready, false)

/** The process that serves, of those that a daemon has; 0 while none does. */
export const active = (scene: Scene) => asked(scene, async client => (await client.ask('info', {})).pid, 0)

async function asked<T>(scene: Scene, question: (client: ControlClient) => Promise<T>, otherwise: T): Promise<T> {
  try {
    const client = await connectControl(socketOf(scene), 1000)
    try {
      return await question(client)
    } finally {
      client.close()
    }
  } catch {
    return otherwise
  }
}

/** Fills the folder where runtimes look for plugins with the reference ones and this source tree's. */
export function makePlugins(scene: Scene): string {
  const folder = scene.file('opt-cni/bin')
  for (const name of readdirSync(REFERENCE_PLUGINS)) symlinkSync(join(REFERENCE_PLUGINS, name), join(folder, name))
  writePlugin(join(folder, PLUGIN))
  return folder
}

/** Writes an executable that is the plugin of this very source tree. */
export function writePlugin(path: string): void {
  const words = detour('cni').map(word => `'${word}'`)
  writeFileSync(path, `#!/bin/sh\nexec ${words.join(' ')}\n`)
  chmodSync(path, 0o755)
}

const logOf = (scene: Scene) => scene.file('cni.log')

/** Detour's entry of a conflist, as the installer writes it, with a log of calls. */
export function entry(scene: Scene, more: object = {}): Plugin {
  return { ...entryOf({ socket: socketOf(scene) }), logFile: logOf(scene), ...more }
}

/** What the daemon keeps of attachments: pins and state files that carry a container's id. */
export function tracesOf(scene: Scene, containerId: string): string[] {
  const folders = [PIN_DIRECTORY, scene.file('detour')].filter(existsSync)
  const names = folders.flatMap(folder => readdirSync(folder, { recursive: true, encoding: 'utf8' }))
  return names.filter(name => name.includes(shortId(containerId)))
}

/** The containers that the plugin was called for, by its log. */
export function calledFor(scene: Scene): string[] {
  const lines = readFileSync(logOf(scene), 'utf8').split('\n').filter(Boolean)
  return [...new Set(lines.map(line => (JSON.parse(line) as { containerId: string }).containerId))]
}
