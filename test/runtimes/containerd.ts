// A containerd of this test's own, with its root, state and socket in the scene's folder, on the scene's node.

import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Cri } from './cri.ts'
import { makeRootfs, writeImage } from './images.ts'
import { kill, type Scene, until } from './scene.ts'

export const IMAGE = 'dtr.local/busybox:1'

export interface Containerd {
  readonly cri: Cri
  /** Where the CRI service takes its conflist from. */
  readonly confDir: string
  readonly socket: string
  /** The tar that the image was imported from. */
  readonly image: string
  /** Runs `ctr` with arguments, and returns what it printed. */
  ctr(...args: string[]): Promise<string>
  /** Removes all pods, then containerd itself. */
  close(): Promise<void>
}

/** Starts containerd with one image; plugins are looked for in `binDir`. */
export async function startContainerd(scene: Scene, binDir: string): Promise<Containerd> {
  const folder = scene.file('containerd')
  const confDir = join(folder, 'net.d')
  mkdirSync(confDir, { recursive: true })
  const socket = join(folder, 'containerd.sock')
  writeFileSync(join(folder, 'config.toml'), configuration(folder, socket, binDir, confDir))
  const log = join(folder, 'containerd.log')
  const daemon = scene.startRuntime('containerd', ['sh', '-c', `exec containerd -c ${folder}/config.toml >${log} 2>&1`])
  const ctr = (...args: string[]) => scene.runRuntime('ctr', ['ctr', '-a', socket, ...args])
  const cri = new Cri(socket)
  const failed = daemon.done.then(status => {
    throw new Error(`containerd ended (${status}): ${readFileSync(log, 'utf8').slice(-2000)}`)
  })
  failed.catch(() => {})
  const image = writeImage(folder, makeRootfs(join(folder, 'rootfs')), IMAGE, ['/bin/sleep', '100000'])
  const started = async () => {
    await until('containerd answers', () => cri.status().catch(() => null))
    await ctr('-n', 'k8s.io', 'images', 'import', '--snapshotter', 'native', image)
    await until('the CRI service knows the image', () => cri.hasImage(IMAGE))
  }
  await Promise.race([failed, started()])
  return {
    ...{ cri, confDir, socket, image, ctr },
    async close() {
      for (const pod of await cri.pods().catch(() => [])) {
        await cri.stopPod(pod).catch(() => {})
        await cri.removePod(pod).catch(() => {})
      }
      cri.close()
      await daemon.stop()
      for (const pid of shims(folder)) kill(pid)
    },
  }
}

// What a containerd that failed would leave: its shims go on without it.
function shims(folder: string): number[] {
  const tasks = join(folder, 'state/io.containerd.runtime.v2.task')
  if (!existsSync(tasks)) return []
  return readdirSync(tasks, { recursive: true, encoding: 'utf8' })
    .filter(path => path.endsWith('/shim.pid'))
    .map(path => Number(readFileSync(join(tasks, path), 'utf8')))
    .filter(pid => pid > 0)
}

function configuration(folder: string, socket: string, binDir: string, confDir: string): string {
  return `version = 2
root = "${folder}/root"
state = "${folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "${socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "${binDir}"
    conf_dir = "${confDir}"
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
[plugins."io.containerd.internal.v1.opt"]
  path = "${folder}/opt"
`
}
