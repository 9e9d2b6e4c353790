// A scene for a pool of endpoints: a pod and, elsewhere, a server; a node between them; and gateways, processes that can be killed,
// each in a namespace of its own on the node's underlay, where tcpdump listens.
//
//   pod ── node ── world          node ── underlay (a bridge) ── gw1, gw2, gw3

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { configSchema } from '../../src/control/config.ts'
import { DROP } from '../../src/drop.ts'
import { detour, type Running, start } from '../../src/lab/process.ts'
import { type NodeOptions, type RunningNode, startNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch, namespacePath } from '../../src/os/netns.ts'
import { said } from '../processes.ts'
import { runIn } from './support.ts'

export const PREFIX = 'dte'
export const POD = `${PREFIX}-pod`
export const WORLD = `${PREFIX}-world`
export const NODE = `${PREFIX}-node`
export const NET = `${PREFIX}-net`
export const SERVER = { 4: '10.30.0.2', 6: 'fd30::2' } as const

/** A gateway's namespace and addresses, by its number from 1. */
export const gatewayName = (number: number) => `${PREFIX}-gw${number}`
export const gatewayAddress = (number: number, version: 4 | 6 = 4) =>
  version === 4 ? `10.99.0.${10 + number}` : `fd99::1${number}`
export const LOCAL = { 4: '10.99.0.1', 6: 'fd99::1' } as const

/** Heartbeats and probes that bear with silence. */
const CALM = { heartbeatLimitMs: 5000, health: { probe: { limitMs: 2000 } } }

const MARK = 'all-before-this-is-there'

const quiet = (name: string) => `link set ${name} addrgenmode none up`
const both = (last: string, name: string, net4: string, net6: string) => [
  `address add ${net4}.${last}/24 dev ${name}`,
  `address add ${net6}::${last}/64 dev ${name} nodad`,
]

export class Scene {
  readonly folder = mkdtempSync(join(tmpdir(), 'detour-pool-'))
  node!: RunningNode
  readonly log: string[] = []
  private readonly names: string[]
  private readonly gateways = new Map<number, Running>()
  private readonly running: Running[] = []
  private readonly places = new Map<ChildProcess, string>()
  private readonly children: ChildProcess[] = []
  private readonly listeners = new Map<number, { child: ChildProcess; file: string }>()

  /** Builds the namespaces; `gateways` is how many there are. */
  constructor(gateways = 3) {
    const numbers = Array.from({ length: gateways }, (_, i) => i + 1)
    this.names = [POD, WORLD, NODE, NET, ...numbers.map(gatewayName)]
    for (const name of this.names) deleteNamespace(name)
    for (const name of this.names) createNamespace(name)
    ipBatch([
      `link add eth0 netns ${POD} address 02:00:00:00:00:a0 type veth peer name pod0 netns ${NODE}`,
      `link add eth0 netns ${WORLD} type veth peer name world0 netns ${NODE}`,
      `link add uplink netns ${NODE} mtu 1600 type veth peer name node netns ${NET} mtu 1600`,
    ])
    ipBatch(['link add br0 mtu 1600 type bridge', quiet('br0'), 'link set node master br0', quiet('node')], NET)
    ipBatch([...both('2', 'eth0', '10.244.0', 'fd44'), quiet('eth0')], POD)
    ipBatch(['route add default via 10.244.0.1', 'route add default via fd44::1'], POD)
    ipBatch([...both('2', 'eth0', '10.30.0', 'fd30'), quiet('eth0')], WORLD)
    ipBatch(['route add default via 10.30.0.1', 'route add default via fd30::1'], WORLD)
    ipBatch(
      [
        ...[...both('1', 'pod0', '10.244.0', 'fd44'), quiet('pod0')],
        ...[...both('1', 'world0', '10.30.0', 'fd30'), quiet('world0')],
        ...[...both('1', 'uplink', '10.99.0', 'fd99'), quiet('uplink')],
      ],
      NODE,
    )
    for (const number of numbers) {
      const name = gatewayName(number)
      ipBatch([`link add eth0 netns ${name} mtu 1600 type veth peer name gw${number} netns ${NET} mtu 1600`])
      ipBatch([`link set gw${number} master br0`, quiet(`gw${number}`)], NET)
      ipBatch([...both(`1${number}`, 'eth0', '10.99.0', 'fd99'), quiet('eth0')], name)
    }
  }

  /** Has the node forward between pod and world. */
  async forward(): Promise<void> {
    await runIn(NODE, 'sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
  }

  /** Starts the gateway of a number; resolves when it takes packets. */
  async gateway(number: number, version: 4 | 6 = 4): Promise<void> {
    this.gateways.set(number, await this.gatewayIn(gatewayName(number), gatewayAddress(number, version)))
  }

  /** Starts a gateway on eth0 of a namespace. */
  async gatewayIn(namespace: string, address: string): Promise<Running> {
    const listen = `${address.includes(':') ? `[${address}]` : address}:6081`
    const control = join(this.folder, `${namespace}.sock`)
    const command = detour('gateway', '--listen', listen, '--interface', 'eth0', '--control', control)
    const running = start({ path: namespacePath(namespace) }, namespace, command)
    this.running.push(running)
    await running.line(line => line.includes('listens on'), 30_000)
    return running
  }

  /** Makes one more namespace. */
  extra(name: string): string {
    const full = `${PREFIX}-${name}`
    deleteNamespace(full)
    createNamespace(full)
    this.names.push(full)
    return full
  }

  /** Packets that a stage of the node dropped for a reason. */
  drops(stage: string, reason: string): number {
    const code = Object.entries(DROP).find(([name]) => name.toLowerCase().replaceAll('_', '-') === reason)![1]
    const stages = this.node.source.counters().flatMap(({ stages }) => stages)
    return stages.filter(({ name }) => name === stage).reduce((sum, one) => sum + one.drops(code), 0)
  }

  /** Ends the child that runs a script in a namespace. */
  end(source: string, namespace: string): void {
    for (const one of this.children)
      if (one.spawnargs.includes(source) && this.places.get(one) === namespace) one.kill('SIGKILL')
  }

  /** Kills a gateway; resolves when it is gone. */
  async kill(number: number): Promise<void> {
    await this.gateways.get(number)?.stop('SIGKILL')
  }

  /** Starts the node with the pod attached; `more` is configuration. NB: on a busy machine nobody is to be taken for dead who only waits for a processor. */
  async start(more: object, options: Partial<NodeOptions> = {}, version: 4 | 6 = 4): Promise<RunningNode> {
    const config = configSchema.parse({ tunnel: { vni: 7, local: LOCAL[version] }, ...CALM, ...more })
    const pods = [{ id: 'pod', namespace: POD }]
    const log = (line: string) => void this.log.push(line)
    this.node = await startNode({ config, namespace: NODE, uplink: 'uplink', pods, log, ...options })
    return this.node
  }

  /** A child that runs JavaScript in a namespace and prints lines; `line` resolves with the next one that has a text in it. */
  async script(namespace: string, source: string, ...args: (string | number)[]): Promise<Script> {
    const child = inNamespace(namespace, () =>
      spawn(process.execPath, ['-e', source, ...args.map(String)], { stdio: ['pipe', 'pipe', 'inherit'] }),
    )
    this.children.push(child)
    this.places.set(child, namespace)
    return new Script(child)
  }

  /** Captures what a gateway gets and sends, as packets reach its interface. */
  async listen(number: number): Promise<void> {
    const file = join(this.folder, `gw${number}.pcap`)
    const child = inNamespace(gatewayName(number), () =>
      spawn('tcpdump', ['-i', 'eth0', '-n', '-U', '--immediate-mode', '-s', '256', '-w', file, 'udp'], {
        stdio: ['ignore', 'ignore', 'pipe'],
      }),
    )
    this.children.push(child)
    this.listeners.set(number, { child, file })
    await said(child.stderr, 'listening')
  }

  /** Ends a capture and has tshark tell each packet's fields, a line each. */
  async heard(number: number, filter: string, ...fields: string[]): Promise<string[][]> {
    const { child, file } = this.listeners.get(number)!
    // What came before this has been written when this has.
    await runIn(NODE, 'bash', '-c', `echo -n ${MARK} > /dev/udp/${gatewayAddress(number)}/9`)
    while (!readFileSync(file).includes(MARK)) await new Promise(resolve => setTimeout(resolve, 10))
    const gone = new Promise(resolve => child.once('close', resolve))
    child.kill('SIGINT')
    await gone
    this.listeners.delete(number)
    const wanted = fields.flatMap(field => ['-e', field])
    const out = await runIn(NET, 'tshark', '-r', file, '-Y', filter, '-T', 'fields', ...wanted)
    return out
      .split('\n')
      .filter(line => line.includes('\t') || (fields.length === 1 && line !== '' && !line.startsWith('Running')))
      .map(line => line.split('\t'))
  }

  async remove(): Promise<void> {
    await this.node?.stop()
    for (const child of this.children) {
      const gone = new Promise(resolve => child.once('close', resolve))
      if (child.exitCode !== null || child.signalCode !== null) continue
      child.kill('SIGKILL')
      await gone
    }
    for (const running of this.running) await running.stop('SIGKILL')
    for (const name of this.names) deleteNamespace(name)
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** A child's lines. */
export class Script {
  private readonly child: ChildProcess
  private rest = ''
  private readonly lines: string[] = []
  private wake: (() => void) | undefined
  private ended = false

  constructor(child: ChildProcess) {
    this.child = child
    child.stdout?.on('data', data => {
      const parts = `${this.rest}${data}`.split('\n')
      this.rest = parts.pop() ?? ''
      this.lines.push(...parts)
      this.wake?.()
    })
    child.once('close', () => {
      this.ended = true
      this.wake?.()
    })
  }

  say(line: string): void {
    this.child.stdin?.write(`${line}\n`)
  }

  /** The next line that begins with a text; earlier ones are gone. */
  async line(text: string): Promise<string> {
    for (;;) {
      while (this.lines.length > 0) {
        const line = this.lines.shift()!
        if (line.startsWith(text)) return line
      }
      if (this.ended) throw new Error(`the script ended before it said ${text}`)
      await new Promise<void>(resolve => {
        this.wake = resolve
      })
    }
  }

  /** Says a line and waits for the answer. */
  async ask(line: string, text: string): Promise<string> {
    this.say(line)
    return this.line(text)
  }
}

/** An echo server over TCP and UDP: argv address, port. */
export const ECHO = `
  const [address, port] = process.argv.slice(1)
  require('net').createServer(s => { s.on('error', () => {}); s.pipe(s) }).listen(+port, address, () => {
    const s = require('dgram').createSocket(address.includes(':') ? 'udp6' : 'udp4')
    s.on('message', (m, from) => s.send(m, from.port, from.address))
    s.bind(+port, address, () => console.log('ready'))
  })`

/**
 * TCP connections, and UDP sockets, to an echo server: argv address, port. Commands: "open N" says "open PORT,PORT,…"; "ping" has each
 * connection send a line, and says "back N" when all N that are left have got theirs; "udp N" has N sockets send until each has got
 * an answer, and says "udp N"; "bulk BYTES" has the newest connection send so much and says "bulk BYTES" when all of it is back.
 */
export const CLIENT = `
  const [address, port] = process.argv.slice(1)
  const all = new Set()
  let round = 0
  const commands = {
    open(n) {
      const ports = []
      for (let i = 0; i < n; i++) {
        const s = require('net').connect(+port, address)
        s.setNoDelay(true)
        s.text = ''
        s.on('connect', () => { all.add(s); ports.push(s.localPort); if (ports.length == n) console.log('open ' + ports) })
        s.on('data', d => { s.text += d; check() })
        s.on('error', () => {})
        s.on('close', () => { all.delete(s); check() })
      }
    },
    udp(n) {
      let left = n
      for (let i = 0; i < n; i++) {
        const s = require('dgram').createSocket(address.includes(':') ? 'udp6' : 'udp4')
        const send = () => s.send('hello', +port, address, () => {})
        const timer = setInterval(send, 200)
        s.on('message', () => { clearInterval(timer); s.close(); if (--left == 0) console.log('udp ' + n) })
        send()
      }
    },
    bulk(bytes) {
      const s = [...all].pop()
      let got = 0
      s.on('data', function more(d) {
        got += d.length
        if (got >= bytes) { s.off('data', more); console.log('bulk ' + got) }
      })
      s.write(Buffer.alloc(bytes, 46))
    },
    ping() { round++; for (const s of all) s.write(round + '\\n'); check() },
  }
  let told = 0
  function check() {
    if (told == round) return
    if (![...all].every(s => s.text.endsWith(round + '\\n'))) return
    told = round
    console.log('back ' + all.size)
  }
  require('readline').createInterface({ input: process.stdin }).on('line', line => {
    const [command, ...rest] = line.split(' ')
    commands[command](...rest.map(Number))
  })
  console.log('ready')`
