// The machine that these tests make for themselves: a node, an inspection endpoint and a server outside, each in a network
// namespace of its own, and folders that stand where a runtime expects the machine's.
//
//   pods ── node ──┬─ uplink ══ downlink  gate   (10.99.0.0/24, the tunnel)
//                  └─ wan    ── eth0      out    (10.77.0.0/24, the server, which knows the pods' networks by the node)

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Running, run, start } from '../../src/lab/process.ts'
import { PIN_DIRECTORY } from '../../src/node/attachment.ts'
import {
  createNamespace,
  deleteNamespace,
  inNamespace,
  ip,
  ipBatch,
  listNamespaces,
  namespacePath,
} from '../../src/os/netns.ts'

/** The tunnel's ends. */
export const NODE = '10.99.0.1'
export const GATEWAY = '10.99.0.2'
/** Outside. */
export const SERVER = '10.77.0.2'
/** All pods' networks lie in it. */
export const PODS = '10.244.0.0/16'
export const SERVER6 = 'fd00:77::2'

const ROLES = ['node', 'gate', 'out'] as const
type Role = (typeof ROLES)[number]

export interface Scene {
  readonly name: string
  /** Of this scene alone, gone when it is closed. */
  readonly folder: string
  /** The namespaces' names. */
  readonly node: string
  readonly gate: string
  readonly out: string
  /** The ends of the tunnel's link; the scene's name stands in them, since pins are named after them. */
  readonly uplink: string
  readonly downlink: string
  /** Where the runtimes put their containers' control groups. */
  readonly cgroup: string
  /** The containers that runtimes were asked for; pins are named after them too. */
  readonly containers: string[]
  /** A path in the folder. */
  file(name: string): string
  /** Starts a program in a namespace; it is ended with the scene, if it has not ended by then. */
  start(role: Role, name: string, command: string[]): Running
  /** Runs a program in a namespace to its end, and returns what it printed; rejects when it fails. */
  run(role: Role, command: string[]): Promise<string>
  /** Starts a program on the node, where the folders of the machine that runtimes write to are the scene's own. */
  startRuntime(name: string, command: string[]): Running
  /** Runs a program on the node to its end, like `startRuntime`. */
  runRuntime(name: string, command: string[], environment?: Record<string, string>): Promise<string>
  close(): Promise<void>
}

/** Where runtimes and libcni write without being asked, beside the folder that stands in for it. */
const INSTEAD = {
  '/opt/cni': 'opt-cni',
  '/etc/cni': 'etc-cni',
  '/var/lib/cni': 'var-lib-cni',
  '/run/containerd': 'run-containerd',
} as const

const CGROUPS = '/sys/fs/cgroup'
const LIMIT_MS = 60_000
/** How long a process may take to end when it is asked to. */
const PATIENCE_MS = 10_000

/** Builds the scene, and takes away first what one that was killed left; `name` is up to six lower-case letters, and no two scenes of a name may live at a time. */
export async function buildScene(name: string): Promise<Scene> {
  const [node, gate, out] = ROLES.map(role => `dtr-${name}-${role}`)
  const names: Record<Role, string> = { node, gate, out }
  const cgroup = `/dtr-${name}`
  const remove = async (containers: string[]) => {
    removeNamespaces(names)
    for (const pin of pinsOf({ name, containers })) rmSync(join(PIN_DIRECTORY, pin), { recursive: true, force: true })
    await removeCgroups(cgroup)
  }
  await remove([])
  const folder = mkdtempSync(join(tmpdir(), `dtr-${name}-`))
  const file = (path: string) => join(folder, path)
  const running: Running[] = []
  for (const [machine, own] of Object.entries(INSTEAD)) {
    mkdirSync(machine, { recursive: true })
    mkdirSync(file(own))
  }
  mkdirSync(file('opt-cni/bin'))
  mkdirSync(file('etc-cni/net.d'))
  const uplink = `up-dtr-${name}`
  const downlink = `gw-dtr-${name}`
  makeNamespaces(names, uplink, downlink)
  writeFileSync(file('inside.sh'), inside(file))
  const wrapped = (command: string[]) => [
    'unshare',
    '-m',
    '--propagation',
    'unchanged',
    'sh',
    file('inside.sh'),
    ...command,
  ]

  const scene: Scene = {
    ...{ name, folder, node, gate, out, uplink, downlink, cgroup, file },
    containers: [],
    start(role, title, command) {
      const child = start({ path: namespacePath(names[role]) }, title, command)
      running.push(child)
      return child
    },
    run: (role, command) => run({ path: namespacePath(names[role]) }, command[0], command, LIMIT_MS),
    startRuntime: (title, command) => scene.start('node', title, wrapped(command)),
    runRuntime: (title, command, environment = {}) => {
      const settings = Object.entries(environment).map(([key, value]) => `${key}=${value}`)
      return run({ path: namespacePath(node) }, title, ['env', ...settings, ...wrapped(command)], LIMIT_MS)
    },
    async close() {
      for (const child of running.reverse()) {
        const timer = setTimeout(() => void child.stop('SIGKILL'), PATIENCE_MS)
        await child.stop('SIGTERM')
        clearTimeout(timer)
      }
      await remove(scene.containers)
      rmSync(folder, { recursive: true, force: true })
    },
  }
  return scene
}

// NB: on many machines mounts are shared, and what is put over a folder here would be seen there. /run/netns stays so: the
// daemon finds the pods' namespaces by it.
function inside(file: (name: string) => string): string {
  const mounts = Object.entries(INSTEAD).map(
    ([machine, own]) => `mount --make-private "$(stat -c %m ${machine})"\nmount --bind '${file(own)}' ${machine}`,
  )
  return ['set -e', ...mounts, 'exec "$@"', ''].join('\n')
}

function makeNamespaces({ node, gate, out }: Record<Role, string>, uplink: string, downlink: string): void {
  for (const name of [node, gate, out]) {
    createNamespace(name)
    // NB: a new namespace inherits some of the machine's settings, so each is set here.
    const settings = {
      'ipv4/ip_forward': +(name === node),
      'ipv6/conf/all/forwarding': +(name === node),
      'ipv6/conf/all/disable_ipv6': 0,
      'ipv6/conf/default/disable_ipv6': 0,
      'ipv4/conf/all/rp_filter': 0,
      'ipv4/conf/default/rp_filter': 0,
    }
    inNamespace(name, () => {
      for (const [key, value] of Object.entries(settings)) writeFileSync(`/proc/sys/net/${key}`, String(value))
    })
  }
  ipBatch(
    [
      `link add ${uplink} mtu 1600 type veth peer name ${downlink} mtu 1600 netns ${gate}`,
      `link add wan type veth peer name eth0 netns ${out}`,
      `addr add ${NODE}/24 dev ${uplink}`,
      'addr add 10.77.0.1/24 dev wan',
      'addr add fd00:77::1/64 dev wan nodad',
      `link set ${uplink} up`,
      'link set wan up',
    ],
    node,
  )
  ipBatch([`addr add ${GATEWAY}/24 dev ${downlink}`, `link set ${downlink} up`], gate)
  const addresses = [`addr add ${SERVER}/24 dev eth0`, `addr add ${SERVER6}/64 dev eth0 nodad`]
  const routes = [`route add ${PODS} via 10.77.0.1`, 'route add fd00:244::/32 via fd00:77::1']
  ipBatch([...addresses, 'link set eth0 up', ...routes], out)
}

// What runs in them is this scene's own, or that of one that was killed.
function removeNamespaces(names: Record<Role, string>): void {
  const there = listNamespaces()
  for (const name of Object.values(names).filter(each => there.includes(each))) {
    for (const pid of ip(['netns', 'pids', name]).split('\n').filter(Boolean)) kill(Number(pid))
    deleteNamespace(name)
  }
}

// What is in a control group was started by a runtime of this scene; with version 1 the group stands below each controller.
async function removeCgroups(cgroup: string): Promise<void> {
  const roots = ['', ...readdirSync(CGROUPS)].map(controller => join(CGROUPS, controller, cgroup))
  await until(`control groups ${cgroup} are removed`, () => roots.every(isRemoved))
}

// A process that was killed takes a moment to leave its group.
function isRemoved(root: string): boolean {
  if (!existsSync(root)) return true
  const inside = readdirSync(root, { recursive: true, withFileTypes: true }).filter(entry => entry.isDirectory())
  const paths = [root, ...inside.map(entry => join(entry.parentPath, entry.name))].sort((a, b) => b.length - a.length)
  try {
    for (const path of paths) {
      for (const pid of readFileSync(join(path, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean)) kill(Number(pid))
      rmdirSync(path)
    }
    return true
  } catch {
    return false
  }
}

/** The pins of a scene's daemon and gateway. */
export function pinsOf({ name, containers }: Pick<Scene, 'name' | 'containers'>): string[] {
  const parts = [`-dtr-${name}_`, ...containers.map(shortId)]
  const names = existsSync(PIN_DIRECTORY) ? readdirSync(PIN_DIRECTORY) : []
  return names.filter(name => parts.some(part => name.includes(part)))
}

/** What names of pins and state files show of a container's id. */
export const shortId = (containerId: string) => containerId.slice(0, 12)

/** SIGKILL to one process, of which it is known whose it is. NB: 0 would be this process and all around it. */
export function kill(pid: number): void {
  if (!(pid > 1)) throw new Error(`${pid} is no process to kill`)
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // gone already
  }
}

/** Resolves when it is so; the answer is what the condition gave. */
export async function until<T>(
  what: string,
  condition: () => T | false | 0 | Promise<T | false | 0>,
  limitMs = 60_000,
): Promise<NonNullable<T>> {
  const end = Date.now() + limitMs
  for (;;) {
    const answer = await condition()
    if (answer) return answer
    if (Date.now() > end) throw new Error(`it never came to pass: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

/** Whether the machine itself forwards, which no test may change. */
export const machineForwards = () => readFileSync('/proc/sys/net/ipv4/ip_forward', 'utf8').trim()
