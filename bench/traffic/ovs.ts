// Open vSwitch's userspace datapath, run beside the machine's own: daemons, database, sockets and logs of its own in a
// temporary folder, in the namespace of the node or endpoint that it serves.

import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { DetourError } from '../../src/errors.ts'
import { type Running, run, start } from '../../src/lab/process.ts'
import { ipBatch } from '../../src/os/netns.ts'
import { at, type End, FOLDER, installed } from './scene.ts'

/** Debian's alternatives may lead to the DPDK build; this is the other. */
const PLAIN = '/usr/lib/openvswitch-switch/ovs-vswitchd'
const SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema'
const LIMIT_MS = 20_000

/** How ports are read: sockets of AF_PACKET in the main thread, or AF_XDP by a thread that polls without rest. */
export const PORT_TYPES = ['system', 'afxdp'] as const
export type PortType = (typeof PORT_TYPES)[number]

export interface SwitchOptions {
  namespace: string
  /** The tunnel's own end, whose address moves from the uplink to a bridge of the switch, and the other one. */
  local: End
  remote: End
  uplink: string
  mtu: number
  ports: PortType
}

/** Where packets that come from one port of the switch go. */
export interface Wire {
  /** An existing interface, or a new one of the switch with an Ethernet address and an IPv4 address. */
  inside: string | ({ name: string } & End)
  tunnel: 'vxlan' | 'geneve'
  vni: number
}

export interface Switch {
  /** Of both daemons. */
  readonly pids: number[]
  /** Joins an interface and a tunnel, both ways; with `track` UDP packets are entered into the switch's connection table. */
  wire(wire: Wire, track?: boolean): Promise<void>
  /** Stops the daemon in the middle of what it does, so that one that polls leaves the processors to others. */
  pause(): void
  resume(): void
  close(): Promise<void>
}

/** Says what is missing; empty when nothing is. */
export function whyNoSwitch(): string {
  const programs = ['ovsdb-tool', 'ovsdb-server', 'ovs-vsctl', 'ovs-ofctl', 'ovs-vswitchd']
  const missing = programs.find(program => !installed(program))
  return missing === undefined ? '' : `${missing} is not installed (package openvswitch-switch)`
}

/** Starts the daemons and gives them the uplink. Throws DetourError; what is half started ends with the namespace. */
export async function startSwitch(options: SwitchOptions): Promise<Switch> {
  const { namespace, local, remote, uplink, mtu, ports } = options
  const folder = join(FOLDER, namespace)
  mkdirSync(folder, { recursive: true })
  const file = (name: string) => join(folder, name)
  // Whatever is not named on the command line is put there, too.
  const environment = ['OVS_RUNDIR', 'OVS_LOGDIR', 'OVS_DBDIR', 'OVS_SYSCONFDIR'].map(name => `${name}=${folder}`)
  const command = (...words: string[]) => ['env', ...environment, ...words]
  const call = (...words: string[]) => run(at(namespace), words[0], command(...words), LIMIT_MS)
  const database = `unix:${file('db.sock')}`
  const configure = (...words: string[]) => call('ovs-vsctl', `--db=${database}`, '--timeout=15', ...words)
  const daemon = (name: string, ...words: string[]) => {
    const files = ['pidfile', 'log-file', 'unixctl'].map(option => `--${option}=${file(`${name}.${option}`)}`)
    return start(at(namespace), name, command(...words, '--no-chdir', '-vconsole:off', ...files))
  }
  await call('ovsdb-tool', 'create', file('conf.db'), SCHEMA)
  const running: Running[] = []
  const close = async () => {
    for (const it of running.splice(0).reverse()) await it.stop('SIGKILL')
  }
  try {
    running.push(daemon('ovsdb-server', 'ovsdb-server', file('conf.db'), `--remote=p${database}`))
    await configure('--retry', '--no-wait', 'init')
    const program = existsSync(PLAIN) ? PLAIN : 'ovs-vswitchd'
    const forwarder = daemon('ovs-vswitchd', program, database)
    running.push(forwarder)
    const bridge = (name: string, ...more: string[]) =>
      configure('add-br', name, '--', 'set', 'bridge', name, 'datapath_type=netdev', ...more)
    const port = (to: string, name: string, ...settings: string[]) =>
      configure('add-port', to, name, '--', 'set', 'Interface', name, ...settings)
    const type = ports === 'system' ? ['type=system'] : ['type=afxdp', 'options:xdp-mode=native']
    await bridge('br-phy', `other-config:hwaddr="${local.mac}"`)
    await port('br-phy', uplink, ...type)
    await bridge('br-int')
    const moved = [`address flush dev ${uplink}`, `link set br-phy mtu ${mtu} up`]
    ipBatch([...moved, `address add ${local.address}/24 dev br-phy`], namespace)
    await call('ovs-appctl', '-t', file('ovs-vswitchd.unixctl'), 'tnl/neigh/set', 'br-phy', remote.address, remote.mac)
    await call('ovs-ofctl', 'del-flows', `unix:${file('br-int.mgmt')}`)
    await checkPorts(file('ovs-vswitchd.log-file'))
    let wires = 0
    return {
      pids: running.map(({ pid }) => pid),
      async wire({ inside, tunnel, vni }, track = false) {
        const [a, b] = [++wires * 2, wires * 2 + 1]
        if (typeof inside === 'string') await port('br-int', inside, ...type, `ofport_request=${a}`)
        else {
          const { name, mac, address } = inside
          await port('br-int', name, 'type=internal', `mac="${mac}"`, `ofport_request=${a}`)
          ipBatch([`address add ${address}/24 dev ${name}`, `link set ${name} mtu 1500 up`], namespace)
        }
        const ends = [`options:local_ip=${local.address}`, `options:remote_ip=${remote.address}`, `options:key=${vni}`]
        await port('br-int', `tunnel${a}`, `type=${tunnel}`, ...ends, `ofport_request=${b}`)
        const flow = (rule: string) => call('ovs-ofctl', 'add-flow', `unix:${file('br-int.mgmt')}`, rule)
        await flow(`priority=1,in_port=${a},actions=output:${b}`)
        await flow(`priority=1,in_port=${b},actions=output:${a}`)
        if (track) await flow(`priority=2,udp,in_port=${a},actions=ct(commit),output:${b}`)
        await checkPorts(file('ovs-vswitchd.log-file'))
      },
      pause: () => void process.kill(forwarder.pid, 'SIGSTOP'),
      resume: () => void process.kill(forwarder.pid, 'SIGCONT'),
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

// A port that could not be opened is only a line in the log.
async function checkPorts(log: string): Promise<void> {
  const bad = readFileSync(log, 'utf8')
    .split('\n')
    .find(line => /could not (add|open|create)|AF_XDP.*(fail|error)/i.test(line))
  if (bad !== undefined) throw new DetourError('unsupported', `Open vSwitch: ${bad}`)
}
