import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Containerd, IMAGE, startContainerd } from './containerd.ts'
import { writeConflist } from './primaries.ts'
import { setUpPodman, type Podman } from './podman.ts'
import { buildScene, type Scene, SERVER, until } from './scene.ts'

let scene: Scene
let podman: Podman
let containerd: Containerd
beforeAll(async () => {
  scene = buildScene('pod')
  podman = setUpPodman(scene, '/usr/lib/cni')
  containerd = await startContainerd(scene, '/usr/lib/cni')
}, 60000)
afterAll(async () => {
  await podman?.close()
  await containerd?.close()
  await scene?.close()
}, 60000)
it('podman', async () => {
  writeConflist(podman.confDir, { name: 'dbr', primary: 'bridge', subnet: '10.244.2.0/24', cniVersion: '0.4.0', dataDir: scene.file('ipam'), chained: [{type:'portmap', capabilities: {portMappings:true}}] })
  console.time('pod')
  const pod = await podman.run('dbr', ['-p', '8081:8080'], 'sleep', '1000')
  console.timeEnd('pod')
  console.log(pod, await podman.podman('exec', pod, 'ping', '-c', '1', SERVER))
  console.log(await podman.podman('inspect', '--format', '{{.NetworkSettings.SandboxKey}} {{.State.Pid}}', pod))
}, 60000)
it('ctr', async () => {
  writeConflist(scene.file('etc-cni/net.d'), { name: 'dctr', primary: 'ptp', subnet: '10.244.3.0/24', cniVersion: '0.4.0', dataDir: scene.file('ipam'), chained: [] })
  await containerd.ctr('images', 'import', '--snapshotter', 'native', scene.file('containerd/image.tar'))
  const run = scene.startRuntime('ctr run', ['ctr', '-a', scene.file('containerd/containerd.sock'), 'run', '--rm', '--cni', '--snapshotter', 'native', '--cgroup', scene.cgroup+'/ctr', IMAGE, 'one', 'sleep', '1000'])
  await until('ctr exec', () => containerd.ctr('task', 'exec', '--exec-id', 'x1', 'one', 'ping', '-c', '1', SERVER).then(x => (console.log(x), 1), x => {console.log(x.message); return 0}))
  await containerd.ctr('task', 'kill', '-s', 'KILL', 'one')
  console.log(await run.done, run.errors())
}, 60000)
