// A node, its pods and a gateway in namespaces of their own, and the daemon as people run it: another process, its control socket.
//
//   pod0, pod1, … ── veths ── node ── uplink ══ eth0 ── gate (10.99.0.2)

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type ControlClient, connectControl } from '../../src/control/client.ts'
import type { AttachRequest } from '../../src/control/operations.ts'
import type { RequestBodies, Topic } from '../../src/control/protocol.ts'
import { detour, type Running, run, start } from '../../src/lab/process.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { killWith } from '../processes.ts'

const LIMIT_MS = 60_000

export const GATE = '10.99.0.2'
/** The node's own address on a pod's link, and the pod's. */
export const nodeAddress = (pod: number) => `10.244.${pod}.1`
export const podAddress = (pod: number) => `10.244.${pod}.2`

export interface Daemon {
  readonly process: ChildProcess
  readonly pid: number
  /** What it has said. */
  log(): string
  /** Resolves when it has said that. */
  said(text: string): Promise<void>
  /** Sends a signal and resolves with its status or the signal's name once it has ended. */
  end(signal: NodeJS.Signals): Promise<number | string>
  readonly ended: Promise<number | string>
}

export class DaemonScene {
  readonly folder: string
  readonly node: string
  readonly gate: string
  readonly pods: string[]
  readonly control: string
  readonly file: string
  private readonly daemons: Daemon[] = []
  private gateway: Running | undefined

  /** Names are made from `name`, which is short and this scene's alone. */
  constructor(name: string, pods: number) {
    this.folder = mkdtempSync(join(tmpdir(), `${name}-`))
    const prefix = `${name}-${process.pid}`
    this.node = `${prefix}-n`
    this.gate = `${prefix}-g`
    this.pods = Array.from({ length: pods }, (_, i) => `${prefix}-p${i}`)
    this.control = join(this.folder, 'd.sock')
    this.file = join(this.folder, 'node.yaml')
    for (const each of [this.node, this.gate, ...this.pods]) createNamespace(each)
    ipBatch([`link add uplink netns ${this.node} type veth peer name eth0 netns ${this.gate}`])
    ipBatch(['address add 10.99.0.1/24 dev uplink', 'link set uplink up'], this.node)
    ipBatch([`address add ${GATE}/24 dev eth0`, 'link set eth0 up', 'route add default via 10.99.0.1'], this.gate)
    for (const pod of this.pods.keys()) this.link(pod)
    inNamespace(this.node, () => writeFileSync('/proc/sys/net/ipv4/ip_forward', '1'))
  }

  /** Joins a pod to the node. */
  link(pod: number): void {
    const name = this.pods[pod]
    ipBatch([`link add veth${pod} netns ${this.node} type veth peer name eth0 netns ${name}`])
    ipBatch([`address add ${nodeAddress(pod)}/24 dev veth${pod}`, `link set veth${pod} up`], this.node)
    const route = `route add default via ${nodeAddress(pod)}`
    ipBatch([`address add ${podAddress(pod)}/24 dev eth0`, 'link set eth0 addrgenmode none up', route], name)
  }

  /** Starts the endpoint; `rules` is YAML. */
  async startGateway(rules = 'default: allow'): Promise<void> {
    const policy = join(this.folder, 'rules.yaml')
    writeFileSync(policy, rules)
    const files = ['--policy', policy, '--control', join(this.folder, 'g.sock')]
    const command = detour('gateway', '--listen', GATE, '--interface', 'eth0', ...files)
    this.gateway = start({ path: `/run/netns/${this.gate}` }, 'gateway', command)
    await this.gateway.line(line => line.includes('listens'), LIMIT_MS)
  }

  /** Writes the configuration: the least that works, and `more` over its top level. */
  configure({ standby = false, ...more }: { standby?: boolean; [key: string]: unknown } = {}): void {
    const node = { control: this.control, state: join(this.folder, 'state'), standby }
    const settings = { node, tunnel: { remote: GATE, vni: 7 }, metrics: { listen: 'none' }, ...more }
    writeFileSync(this.file, JSON.stringify(settings))
  }

  /** Starts the daemon without waiting; `through` is a command to start it by. */
  launch(env: NodeJS.ProcessEnv = {}, through: string[] = []): Daemon {
    const [program, ...args] = [...through, ...detour('node', '--config', this.file)]
    const child = inNamespace(this.node, () =>
      spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } }),
    )
    let said = ''
    const waiting = new Set<() => void>()
    const hear = (text: Buffer) => {
      said += text
      for (const look of waiting) look()
    }
    child.stdout.on('data', hear)
    child.stderr.on('data', hear)
    const ended = new Promise<number | string>(resolve =>
      child.once('close', (status, signal) => resolve(signal ?? status ?? -1)),
    )
    const daemon: Daemon = {
      process: child,
      pid: child.pid!,
      ended,
      log: () => said,
      said: text =>
        new Promise((resolve, reject) => {
          const look = () => {
            if (!said.includes(text)) return
            waiting.delete(look)
            resolve()
          }
          waiting.add(look)
          void ended.then(status => reject(new Error(`it ended (${status}) and never said "${text}":\n${said}`)))
          look()
        }),
      async end(signal) {
        child.kill(signal)
        return ended
      },
    }
    this.daemons.push(daemon)
    return daemon
  }

  /** Starts the daemon and waits until it is ready. */
  async start(env?: NodeJS.ProcessEnv, through?: string[]): Promise<Daemon> {
    const daemon = this.launch(env, through)
    await daemon.said('ready: uplink')
    return daemon
  }

  /** Asks by a connection of its own. */
  async ask<T extends Topic>(topic: T, body: RequestBodies[T]) {
    const client: ControlClient = await connectControl(this.control, LIMIT_MS)
    try {
      return await client.ask(topic, body)
    } finally {
      client.close()
    }
  }

  /** What a runtime would have attached. */
  request(pod: number, more: Partial<AttachRequest> = {}): AttachRequest {
    return {
      containerId: `${this.pods[pod]}-container`,
      ifname: 'eth0',
      netns: `/run/netns/${this.pods[pod]}`,
      network: 'cluster',
      podNamespace: 'default',
      podName: `web-${pod}`,
      podUid: '',
      annotations: {},
      addresses: [`${podAddress(pod)}/24`],
      inspect: 'default',
      excludeNamespaces: [],
      ...more,
    }
  }

  /** Of an attachment, as the detach and check operations have it. */
  key(pod: number) {
    const { containerId, ifname, netns, addresses } = this.request(pod)
    return { containerId, ifname, netns, addresses }
  }

  /** Names of the records. */
  records(): string[] {
    return readdirSync(join(this.folder, 'state', 'attachments'))
  }

  /** What `detour node --clean` says. */
  clean(): Promise<string> {
    return run({ path: `/run/netns/${this.node}` }, 'clean', detour('node', '--config', this.file, '--clean'), LIMIT_MS)
  }

  /** Ends everything. */
  async close(): Promise<void> {
    await this.gateway?.stop()
    // Partners outlive the processes that started them, and hold their output open.
    await killWith(this.file)
    for (const daemon of this.daemons) await daemon.ended
    try {
      await this.clean()
    } finally {
      for (const each of [...this.pods, this.node, this.gate]) deleteNamespace(each)
      rmSync(this.folder, { recursive: true, force: true })
    }
  }
}

/** The status files of all threads of a process, but of those that end meanwhile. */
export function threadStatus(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).flatMap(task => {
    try {
      return [readFileSync(`/proc/${pid}/task/${task}/status`, 'latin1')]
    } catch {
      return []
    }
  })
}
