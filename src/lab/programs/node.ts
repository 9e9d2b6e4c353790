// The laboratory's node: a process of its own, so that it can be killed. Argument: NodeProgramInput as JSON.

import { configSchema } from '../../control/config.ts'
import { serveControl } from '../../control/socket.ts'
import { startNode } from '../../node/node.ts'
import type { NodeProgramInput } from '../faces.ts'

const { control, config, uplink, pods, capture } = JSON.parse(process.argv[2]) as NodeProgramInput
const log = (line: string) => console.log(line)
const node = await startNode({ config: configSchema.parse(config), namespace: '', uplink, pods, capture, log })
const server = await serveControl(node.source, { path: control })

async function stop(): Promise<void> {
  await server.close()
  await node.stop()
}
process.once('SIGINT', stop).once('SIGTERM', stop)
await node.done
