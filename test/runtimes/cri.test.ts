import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Containerd, IMAGE, startContainerd } from './containerd.ts'
import { writeConflist } from './primaries.ts'
import { buildScene, type Scene, SERVER, until } from './scene.ts'

let scene: Scene
let containerd: Containerd
beforeAll(async () => {
  scene = buildScene('cri')
  console.time('start')
  containerd = await startContainerd(scene, '/usr/lib/cni')
  console.timeEnd('start')
}, 60000)
afterAll(async () => {
  await containerd?.close()
  await scene?.close()
}, 60000)
it('x', async () => {
  writeConflist(containerd.confDir, { name: 'ptp', primary: 'ptp', subnet: '10.244.1.0/24', cniVersion: '0.4.0', dataDir: scene.file('ipam'), chained: [] })
  await until('network ready', async () => (await containerd.cri.status()).find(c => c.type === 'NetworkReady')?.status)
  const config = { metadata: { name: 'a', uid: 'u', namespace: 'default' }, linux: { cgroupParent: scene.cgroup } }
  console.time('pod')
  const pod = await containerd.cri.runPod(config)
  console.timeEnd('pod')
  console.log(await containerd.cri.podNetwork(pod))
  const c = await containerd.cri.createContainer(pod, config, 'c', IMAGE, ['/bin/sleep', '1000'])
  await containerd.cri.startContainer(c)
  console.log(await containerd.cri.exec(c, 'ping', '-c', '1', SERVER))
}, 60000)
