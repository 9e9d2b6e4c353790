// What the namespace tests share: who may run them, a pod with a veth, child processes, probes that need no waiting.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  AF,
  addressOf,
  bind,
  bpf,
  close,
  connect,
  interfaceIndex,
  must,
  POLL,
  poll,
  read,
  SOCK,
  setsockopt,
  socket,
  write,
} from '../../src/os/libc.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { said } from '../processes.ts'

const has = (command: string) => {
  try {
    execFileSync('which', [command])
    return true
  } catch {
    return false
  }
}

/** Why these tests cannot run here, or ''. */
export const missing =
  process.getuid?.() !== 0
    ? 'needs root'
    : ['ip', 'tc', 'nstat', 'ethtool', 'bpftool', 'iperf3']
        .filter(command => !has(command))
        .map(command => `needs ${command}`)
        .join(', ')

/** Title of a test group with the reason when it is skipped. */
export const title = (name: string) => (missing === '' ? name : `${name} (skipped: ${missing})`)

export const POD4 = '10.91.0.1'
export const HOST4 = '10.91.0.2'
export const POD6 = 'fd91::1'
export const HOST6 = 'fd91::2'

/** Two namespaces joined by a veth: `<prefix>-pod` with eth0, `<prefix>-host` with veth0. */
export function wire(prefix: string): { pod: string; host: string; remove(): void } {
  const pod = `${prefix}-pod`
  const host = `${prefix}-host`
  const remove = () => [pod, host].forEach(deleteNamespace)
  remove()
  createNamespace(pod)
  createNamespace(host)
  ipBatch([`link add eth0 netns ${pod} type veth peer name veth0 netns ${host}`])
  ipBatch(
    [`address add ${POD4}/24 dev eth0`, `address add ${POD6}/64 dev eth0 nodad`, 'link set eth0 addrgenmode none up'],
    pod,
  )
  ipBatch(
    [
      `address add ${HOST4}/24 dev veth0`,
      `address add ${HOST6}/64 dev veth0 nodad`,
      'link set veth0 addrgenmode none up',
    ],
    host,
  )
  return { pod, host, remove }
}

/** Addresses a pod's eth0, a node's `uplink` and an endpoint's eth0 at its other end, and makes the endpoint the kernel's VXLAN device, a neighbour of the pod's over IPv4 and IPv6; `family` is the tunnel's. */
export function connectByVxlan(options: {
  pod: string
  node: string
  endpoint: string
  podMac: string
  endpointMac: string
  vni: number
  family: 4 | 6
}): void {
  const { pod, node, endpoint, podMac, endpointMac, vni, family } = options
  const quiet = (name: string) => `link set ${name} addrgenmode none up`
  // NB: without an address of the link, the kernel asks for no neighbour that it has no packet for, nor whether one is there yet.
  const all = (last: number, name: string) => [
    `address add 10.99.0.${last}/24 dev ${name}`,
    ...['fd00:99', 'fe80'].map(net => `address add ${net}::${last}/64 dev ${name} nodad`),
  ]
  ipBatch(all(1, 'uplink'), node)
  ipBatch([...all(2, 'eth0'), quiet('eth0')], endpoint)
  const ends = family === 4 ? 'local 10.99.0.2 remote 10.99.0.1' : 'local fd00:99::2 remote fd00:99::1'
  ipBatch(
    [
      `link add vx0 address ${endpointMac} mtu 1500 type vxlan id ${vni} dstport 4789 ${ends}`,
      'address add 10.244.0.9/24 dev vx0',
      'address add fd00:244::9/64 dev vx0 nodad',
      quiet('vx0'),
      ...['10.244.0.2', 'fd00:244::2'].map(own => `neighbor add ${own} lladdr ${podMac} dev vx0`),
    ],
    endpoint,
  )
  ipBatch(
    [
      'address add 10.244.0.2/24 dev eth0',
      'address add fd00:244::2/64 dev eth0 nodad',
      quiet('eth0'),
      ...['10.244.0.9', 'fd00:244::9'].map(far => `neighbor add ${far} lladdr ${endpointMac} dev eth0`),
    ],
    pod,
  )
}

/** The file of a child program of these tests: compiled, or the source where Node runs TypeScript. */
export function program(name: string): string {
  const stripsTypes = (process.features as { typescript?: unknown }).typescript
  const path = stripsTypes ? `${name}.ts` : `../../dist/test/netns/${name}.js`
  const file = fileURLToPath(new URL(path, import.meta.url))
  if (!existsSync(file)) throw new Error(`${file} does not exist; run "npm run build" first`)
  return file
}

/** A child program that prints `ready`, and a line of JSON when its stdin closes. */
export interface Child<Report> {
  process: ChildProcess
  /** Closes its stdin and resolves with its report. */
  stop(): Promise<Report>
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>
}

/** Starts a child program with file descriptors 3 and on, and waits until it is ready. */
export async function start<Report>(name: string, args: (string | number)[], fds: number[]): Promise<Child<Report>> {
  const child = spawn(process.execPath, [program(name), ...args.map(String)], {
    stdio: ['pipe', 'pipe', 'inherit', ...fds],
  })
  let out = ''
  const gone = new Promise<void>(resolve => child.once('close', () => resolve()))
  await new Promise<void>((resolve, reject) => {
    child.stdout?.on('data', data => {
      out += data
      if (out.includes('ready')) resolve()
    })
    gone.then(() => reject(new Error(`${name} ended before it was ready`)))
  })
  return {
    process: child,
    async stop() {
      child.stdin?.end()
      await gone
      return JSON.parse(out.slice(out.indexOf('{')))
    },
    async kill() {
      child.kill('SIGKILL')
      await gone
    },
  }
}

/** Runs a command inside a namespace and resolves with its output; rejects when it fails. */
export function runIn(namespace: string, command: string, ...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = inNamespace(namespace, () => spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] }))
    let out = ''
    child.stdout.on('data', data => (out += data))
    child.stderr.on('data', data => (out += data))
    child.once('close', code => (code === 0 ? resolve(out) : reject(new Error(`${command} ${args.join(' ')}: ${out}`))))
  })
}

/** Gbit/s of a TCP transfer of 300 MB as iperf3 tells; rejects when it does not end well. */
export async function transfer(client: string, server: string, address: string, ...more: string[]): Promise<number> {
  const listening = inNamespace(server, () =>
    spawn('iperf3', ['-s', '-1', '--forceflush'], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
  const gone = new Promise<void>(resolve => listening.once('close', () => resolve()))
  try {
    await said(listening.stdout, 'listening')
    const report = JSON.parse(await runIn(client, 'iperf3', '-c', address, '-n', '300M', '-J', ...more))
    return report.end.sum_received.bits_per_second / 1e9
  } finally {
    listening.kill()
    // NB: the next one listens at the same port.
    await gone
  }
}

/** UDP between two namespaces without any waiting but for the packet itself; without `to` nobody receives. */
export class Probe {
  private readonly sender: number
  private readonly receiver: number
  private readonly bytes: Int32Array
  private readonly waiting: Int32Array
  private sequence = 0

  constructor(from: string, to: string | undefined, address: string, port: number, { mark = 0, size = 4 } = {}) {
    this.bytes = new Int32Array(size / 4)
    this.receiver = to === undefined ? -1 : inNamespace(to, () => udp())
    if (to !== undefined) must(bind(this.receiver, sockaddr(address, port)), 'bind', address)
    this.sender = inNamespace(from, () => udp())
    if (mark !== 0) must(setsockopt(this.sender, 1, 36, mark), 'SO_MARK', address)
    must(connect(this.sender, sockaddr(address, port)), 'connect', address)
    this.waiting = Int32Array.of(this.receiver, POLL.IN)

    function udp() {
      return must(socket(address.includes(':') ? AF.INET6 : AF.INET, SOCK.DGRAM, 0), 'socket', address)
    }
  }

  /** Sends one datagram and says whether it arrived within `timeoutMs`: name a short one where it should not. */
  send(timeoutMs = 5000): boolean {
    this.bytes[0] = ++this.sequence
    const at = addressOf(this.bytes)
    if (write(this.sender, at, this.bytes.byteLength) < 0) return false
    while (this.receiver >= 0 && poll(addressOf(this.waiting), 1, timeoutMs) > 0) {
      read(this.receiver, at, this.bytes.byteLength)
      if (this.bytes[0] === this.sequence) return true
    }
    return false
  }

  close(): void {
    close(this.sender)
    if (this.receiver >= 0) close(this.receiver)
  }
}

function sockaddr(address: string, port: number): Uint8Array {
  if (!address.includes(':'))
    return Uint8Array.of(AF.INET, 0, port >> 8, port & 255, ...address.split('.').map(Number), 0, 0, 0, 0, 0, 0, 0, 0)
  const [left, right] = address.split('::').map(part =>
    part
      .split(':')
      .filter(Boolean)
      .map(word => Number.parseInt(word, 16)),
  )
  const words = [...left, ...Array(8 - left.length - right.length).fill(0), ...right]
  return Uint8Array.of(
    AF.INET6,
    0,
    port >> 8,
    port & 255,
    0,
    0,
    0,
    0,
    ...words.flatMap(word => [word >> 8, word & 255]),
    0,
    0,
    0,
    0,
  )
}

/** What a namespace looks like from outside: links, addresses, routes, qdiscs, and filters and TCX programs of some interfaces. */
export function listing(namespace: string, ...interfaces: string[]): string {
  return inNamespace(namespace, () => {
    const run = (command: string, ...args: string[]) => execFileSync(command, args, { encoding: 'utf8' })
    const hooks = interfaces.flatMap(name => [
      run('tc', 'filter', 'show', 'dev', name, 'ingress'),
      run('tc', 'filter', 'show', 'dev', name, 'egress'),
      `${name}: ${tcxPrograms(name, 46)} TCX programs in, ${tcxPrograms(name, 47)} out`,
    ])
    return [run('ip', '-d', 'address'), run('ip', 'route'), run('tc', 'qdisc'), ...hooks].join('\n')
  })
}

// BPF_PROG_QUERY, as the bpftool of Debian 12 does not show TCX.
function tcxPrograms(name: string, attachType: number): number {
  const attribute = Uint32Array.of(interfaceIndex(name), attachType, 0, 0, 0, 0, 0, 0, ...Array(24).fill(0))
  must(bpf(16, attribute), 'BPF_PROG_QUERY', name)
  return attribute[6]
}
