// A node of rung af-xdp toward 10.99.0.2, until it is killed. argv: namespace, uplink, the pod's namespace. Prints `ready`.

import { configSchema } from '../../src/control/config.ts'
import { startNode } from '../../src/node/node.ts'

const [namespace, uplink, pod] = process.argv.slice(2)
const tunnel = { profile: 'vxlan', vni: 77, local: '10.99.0.1', remote: '10.99.0.2' }
const config = configSchema.parse({ tunnel, rungs: { offload: 'af-xdp' } })
const pods = [{ id: pod, namespace: pod }]
await startNode({ config, namespace, uplink, pods, probe: { intervalMs: 0, limitMs: 0 } })
console.log('ready')
