// podman with its CNI backend, storage and state of its own in the scene's folder, on the scene's node.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeRootfs } from './images.ts'
import { kill, type Scene } from './scene.ts'

export interface Podman {
  /** Where the conflists are. */
  readonly confDir: string
  /** Runs `podman` with arguments, and returns what it printed. */
  podman(...args: string[]): Promise<string>
  /** Starts a container on a network of the conflist folder; `options` are those of `podman run`. Returns its id. */
  run(network: string, options: string[], ...command: string[]): Promise<string>
  /** Removes all containers. */
  close(): Promise<void>
}

/** Makes the folders; plugins are looked for in `binDir`. */
export function setUpPodman(scene: Scene, binDir: string): Podman {
  const folder = scene.file('podman')
  const confDir = join(folder, 'net.d')
  mkdirSync(confDir, { recursive: true })
  const rootfs = makeRootfs(join(folder, 'rootfs'))
  const settings = join(folder, 'containers.conf')
  writeFileSync(settings, configuration(folder, binDir, confDir))
  // podman writes its default network there if nothing else is.
  const global = ['--root', `${folder}/root`, '--runroot', `${folder}/run`, '--storage-driver', 'vfs']
  const podman = async (...args: string[]) =>
    (await scene.runRuntime('podman', ['podman', ...global, ...args], { CONTAINERS_CONF: settings })).trim()
  // NB: more than this machine's own limits is refused.
  const limits = ['--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1000:1000']
  return {
    ...{ confDir, podman },
    run: (network, options, ...command) =>
      podman(
        'run',
        '-d',
        ...limits,
        '--cgroup-parent',
        scene.cgroup,
        '--network',
        network,
        ...options,
        '--rootfs',
        rootfs,
        ...command,
      ),
    async close() {
      await podman('rm', '-f', '-a', '-t', '0').catch(() => {})
      for (const pid of monitors(folder)) kill(pid)
    },
  }
}

// What a podman that failed would leave: the monitor of each container, by the files that it wrote its number to.
function monitors(folder: string): number[] {
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(path => path.endsWith('conmon.pid'))
  return files.map(path => Number(readFileSync(join(folder, path), 'utf8'))).filter(pid => pid > 0)
}

function configuration(folder: string, binDir: string, confDir: string): string {
  return `[network]
network_backend = "cni"
cni_plugin_dirs = ["${binDir}"]
network_config_dir = "${confDir}"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
lock_type = "file"
static_dir = "${folder}/static"
tmp_dir = "${folder}/tmp"
volume_path = "${folder}/volumes"
[containers]
apparmor_profile = ""
log_driver = "k8s-file"
`
}
