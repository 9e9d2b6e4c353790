// How many packets of a pod are lost while the node's daemon is killed, upgraded, or stopped and started again, at 1,000 packets a
// second each way? The daemon as people run it, in fail-closed; Detour's gateway as endpoint, another pod that answers. Baseline:
// one process alone that is killed and started again, which adopts what it left. Needs root, iproute2, ethtool.

import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connectControl } from '../src/control/client.ts'
import { detour, type Running, run as runCommand, start } from '../src/lab/process.ts'
import { ip, namespacePath } from '../src/os/netns.ts'
import type { Bench } from './harness.ts'
import { program } from './traffic/load.ts'
import type { PaceInput, PaceOutput } from './traffic/pace.ts'
import { startGateway, tunnelOf } from './traffic/paths.ts'
import { at, build, CLIENT, FOLDER, onStage, type Scene, SERVER, whyNot } from './traffic/scene.ts'

const RATE = 1000
const PORT = 7008
const LIMIT_MS = 60_000
/** Traffic before the event, and all of it. */
const BEFORE_MS = 500

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot()
  if (reason !== '') return bench.skip(reason)
  const packets = bench.short ? 3000 : 6000
  await onStage(async stage => {
    const scene = build('restart', { server: true })
    await stage.open(startGateway(scene, 'geneve'))
    const place = new Place(scene)
    await stage.open({ close: () => place.clear() })
    const measure = (standby: boolean, event: (daemon: Running) => Promise<Running>) => () =>
      place.lost(standby, packets, event)
    await bench.ask({
      name: `packets lost of ${packets.toLocaleString('en-US')} at 1,000/s, there and back`,
      unit: 'packets',
      better: 'less',
      resolution: 1,
      contenders: [
        { name: 'killed, started again', measure: measure(false, daemon => place.again(daemon, 'SIGKILL')) },
        { name: 'stopped, started again', measure: measure(false, daemon => place.again(daemon, 'SIGTERM')) },
        { name: 'killed, another stands by', measure: measure(true, daemon => place.kill(daemon)) },
        { name: 'upgraded', measure: measure(true, daemon => place.upgrade(daemon)) },
      ],
    })
  })
}

/** A node's daemon and the traffic through it. */
class Place {
  private readonly scene: Scene
  private readonly folder = join(FOLDER, 'restart')
  private readonly control = join(this.folder, 'detour.sock')
  private daemon: Running | undefined

  constructor(scene: Scene) {
    this.scene = scene
    mkdirSync(this.folder, { recursive: true })
  }

  /** Packets lost while the event happens. */
  async lost(standby: boolean, packets: number, event: (daemon: Running) => Promise<Running>): Promise<number> {
    const { scene } = this
    this.configure(standby)
    let daemon = await this.start()
    if (standby) await this.stoodBy(daemon)
    for (const pod of [scene.client, scene.server]) await this.attach(pod)
    const [asking, answering] = [CLIENT, SERVER].map(({ address }, i): PaceInput => {
      const remote = [SERVER, CLIENT][i].address
      return { side: i === 0 ? 'ask' : 'answer', local: address, remote, port: PORT, rate: RATE, packets }
    })
    const echo = start(at(scene.server), 'echo', program('pace', answering))
    try {
      await echo.line(line => line === 'ready', LIMIT_MS)
      // What is compiled and resolved at first is not asked about.
      await runCommand(at(scene.client), 'warm-up', program('pace', { ...asking, packets: 300 }), LIMIT_MS)
      const pace = start(at(scene.client), 'pace', program('pace', asking))
      await pace.line(line => line === 'going', LIMIT_MS)
      await sleep(BEFORE_MS)
      daemon = await event(daemon)
      const output = JSON.parse(await pace.line(line => line.startsWith('{'), LIMIT_MS)) as PaceOutput
      return output.lost
    } finally {
      await echo.stop('SIGKILL')
      await daemon.stop()
      this.daemon = undefined
    }
  }

  /** Ends the only process, and starts another. */
  async again(daemon: Running, signal: NodeJS.Signals): Promise<Running> {
    await daemon.stop(signal)
    return this.start()
  }

  /** Kills the active process. */
  async kill(daemon: Running): Promise<Running> {
    const stood = this.times(daemon, 'stands by')
    process.kill(await this.activePid(), 'SIGKILL')
    await this.stoodBy(daemon, stood + 1)
    return daemon
  }

  /** Starts a daemon beside the one that runs, which ends. */
  async upgrade(daemon: Running): Promise<Running> {
    const next = await this.start()
    await daemon.done
    await this.stoodBy(next)
    return next
  }

  /** Leaves the pods as they were. */
  async clear(): Promise<void> {
    await this.daemon?.stop()
    for (const pid of ip(['netns', 'pids', this.scene.node]).split('\n').filter(Boolean)) {
      try {
        process.kill(Number(pid), 'SIGKILL')
      } catch {
        // Gone by itself.
      }
    }
    await runCommand(at(this.scene.node), 'clean-up', this.command('--clean'), LIMIT_MS)
  }

  private configure(standby: boolean): void {
    const { folder, control, scene } = this
    const node = { uplink: scene.uplink, control, state: folder, standby }
    const more = { failMode: 'closed', metrics: { listen: 'none' } }
    writeFileSync(join(folder, 'node.yaml'), JSON.stringify({ node, tunnel: tunnelOf('geneve'), ...more }))
  }

  private command(...more: string[]): string[] {
    return detour('node', '--config', join(this.folder, 'node.yaml'), ...more)
  }

  private async start(): Promise<Running> {
    const daemon = start(at(this.scene.node), 'daemon', this.command())
    this.daemon = daemon
    await daemon.line(line => line.includes('ready: uplink'), LIMIT_MS)
    return daemon
  }

  private async attach(pod: string): Promise<void> {
    const client = await connectControl(this.control, LIMIT_MS)
    try {
      await client.ask('attach', {
        ...{ containerId: pod, ifname: 'eth0', netns: namespacePath(pod), network: 'bench' },
        ...{ podNamespace: 'bench', podName: pod, podUid: '', annotations: {}, addresses: [] },
        ...{ inspect: 'always', excludeNamespaces: [] },
      })
    } finally {
      client.close()
    }
  }

  private async activePid(): Promise<number> {
    const client = await connectControl(this.control, LIMIT_MS)
    try {
      return (await client.ask('info', {})).pid
    } finally {
      client.close()
    }
  }

  private times(daemon: Running, words: string): number {
    return daemon.lines.filter(line => line.includes(words)).length
  }

  /** Resolves when the main process has stood by so often. */
  private async stoodBy(daemon: Running, times = 1): Promise<void> {
    await daemon.line(() => this.times(daemon, 'stands by') >= times, LIMIT_MS)
  }
}
