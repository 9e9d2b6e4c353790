// A child program: a node of two processes. Argument: PairInput as JSON. It prints what it logs, `active` with its pid whenever it becomes
// the active process, and ends as told by SIGTERM.

import { spawn } from 'node:child_process'
import { configSchema } from '../../src/control/config.ts'
import { runPair } from '../../src/node/handover-pair.ts'
import type { PodOptions } from '../../src/node/node.ts'

export interface PairInput {
  path: string
  standby: boolean
  partner?: boolean
  config: object
  namespace: string
  uplink: string
  pods: PodOptions[]
  probe?: { intervalMs: number; limitMs: number }
  hangMs?: number
}

const input = JSON.parse(process.argv[2]) as PairInput
const say = (line: string) => console.log(`${process.pid} ${line}`)
const pair = await runPair({
  ...{ path: input.path, standby: input.standby, partner: input.partner ?? false, hangMs: input.hangMs, log: say },
  options: () => {
    const { namespace, uplink, probe = { intervalMs: 0, limitMs: 0 } } = input
    return { config: configSchema.parse(input.config), namespace, uplink, pods: [], probe, log: say }
  },
  async activate(node) {
    const known = node.pods().map(({ id }) => id)
    for (const pod of input.pods) if (!known.includes(pod.id)) await node.attach(pod)
    say('active')
    return { close: async () => {} }
  },
  async startPartner() {
    const args = [...process.execArgv, process.argv[1], JSON.stringify({ ...input, partner: true })]
    const partner = spawn(process.execPath, args, { stdio: 'inherit' })
    partner.unref()
    return partner.pid as number
  },
})
process.on('SIGTERM', () => void pair.stop('leave')).on('SIGINT', () => void pair.stop('detach'))
await pair.done
say('done')
