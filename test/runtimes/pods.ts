// One way to run a pod, whichever runtime does it: containerd's CRI as a kubelet uses it, ctr, podman.

import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { ip } from '../../src/os/netns.ts'
import { type Containerd, IMAGE } from './containerd.ts'
import type { Output, PodConfig } from './cri.ts'
import type { Podman } from './podman.ts'
import { type Network, writeConflist } from './primaries.ts'
import { type Scene, until } from './scene.ts'

export interface Wanted {
  name: string
  command?: string[]
  /** Where the runtime knows of them. */
  kubernetesNamespace?: string
  annotations?: Record<string, string>
  /** A port of the node that is led to port 8080 of the pod. */
  hostPort?: number
}

export interface Pod {
  /** What plugins get as CNI_CONTAINERID. */
  readonly id: string
  readonly address: string
  /** The path of the network namespace that the runtime made. */
  readonly namespace: string
  /** Runs a program in the pod's container. */
  exec(...command: string[]): Promise<Output>
  /** Stops and removes it. */
  remove(): Promise<void>
}

export interface Runtime {
  readonly network: Network
  run(wanted: Wanted): Promise<Pod>
}

const IDLE = ['sleep', '100000']

/** Pods by containerd's CRI service. Resolves when it has taken over the network. */
export async function byCri(scene: Scene, { cri, confDir }: Containerd, network: Network): Promise<Runtime> {
  writeConflist(join(confDir, '10-network.conflist'), network)
  await until(`containerd took over network ${network.name}`, async () => {
    const { ready, network: text } = await cri.status()
    return ready && text.includes(`"${network.name}"`)
  })
  return {
    network,
    async run({ name, command = IDLE, kubernetesNamespace = 'default', annotations, hostPort }) {
      const config: PodConfig = {
        metadata: { name, uid: randomUUID(), namespace: kubernetesNamespace },
        annotations,
        portMappings: hostPort === undefined ? [] : [{ containerPort: 8080, hostPort }],
        linux: { cgroupParent: scene.cgroup },
      }
      const id = await cri.runPod(config)
      scene.containers.push(id)
      const container = await cri.createContainer(id, config, 'main', IMAGE, command)
      await cri.startContainer(container)
      const remove = async () => {
        await cri.stopPod(id)
        await cri.removePod(id)
      }
      return { id, ...(await cri.podNetwork(id)), exec: (...args) => cri.exec(container, ...args), remove }
    },
  }
}

/** Pods by `ctr run --cni`, which runs as long as its container. */
export async function byCtr(scene: Scene, { ctr, socket, image }: Containerd, network: Network): Promise<Runtime> {
  writeConflist(scene.file('etc-cni/net.d/10-network.conflist'), network)
  await ctr('images', 'import', '--snapshotter', 'native', image)
  return {
    network,
    async run({ name, command = IDLE }) {
      scene.containers.push(`default-${name}`)
      const options = ['--rm', '--cni', '--snapshotter', 'native', '--cgroup', `${scene.cgroup}/${name}`]
      const running = scene.startRuntime('ctr run', ['ctr', '-a', socket, 'run', ...options, IMAGE, name, ...command])
      let execs = 0
      const exec = async (...args: string[]) => {
        const id = `${name}-${++execs}`
        return output(ctr('task', 'exec', '--exec-id', id, name, ...args))
      }
      const failed = running.done.then(() => {
        throw running.failure('ended')
      })
      failed.catch(() => {})
      const task = async () => {
        const line = (await ctr('task', 'ls')).split('\n').find(each => each.startsWith(`${name} `))
        return line?.includes('RUNNING') ? Number(line.split(/\s+/)[1]) : 0
      }
      const pid = await Promise.race([failed, until(`ctr runs ${name}`, task)])
      const remove = async () => {
        await ctr('task', 'kill', '-s', 'KILL', name)
        await running.done
      }
      // go-cni calls a container by its containerd namespace and its name.
      const namespace = `/proc/${pid}/ns/net`
      return { id: `default-${name}`, address: addressIn(namespace), namespace, exec, remove }
    },
  }
}

/** Pods by podman, with a root file system of their own and no image. */
export function byPodman(scene: Scene, { confDir, podman, run }: Podman, network: Network): Runtime {
  writeConflist(join(confDir, `${network.name}.conflist`), network)
  return {
    network,
    async run({ name, command = IDLE, hostPort }) {
      const ports = hostPort === undefined ? [] : ['-p', `${hostPort}:8080`]
      const id = await run(network.name, ['--name', name, ...ports], ...command)
      scene.containers.push(id)
      const exec = (...args: string[]) => output(podman('exec', id, ...args))
      const inspect = (what: string) => podman('inspect', '--format', `{{${what}}}`, id)
      return {
        id,
        address: await inspect(`(index .NetworkSettings.Networks "${network.name}").IPAddress`),
        namespace: await inspect('.NetworkSettings.SandboxKey'),
        exec,
        remove: async () => void (await podman('rm', '-f', '-t', '0', id)),
      }
    },
  }
}

// NB: as the kernel has it: an exec by ctr that fails says nothing, which would count as no address.
function addressIn(namespace: string): string {
  const [, address] = /inet ([\d.]+)/.exec(ip(['-4', '-o', 'address', 'show', 'eth0'], namespace)) ?? []
  if (address === undefined) throw new Error(`no address at eth0 of ${namespace}`)
  return address
}

// Clients that pass a program's status on only say what it printed.
async function output(printed: Promise<string>): Promise<Output> {
  try {
    return { stdout: await printed, stderr: '', exitCode: 0 }
  } catch (error) {
    return { stdout: '', stderr: (error as Error).message, exitCode: 1 }
  }
}
