// The faces of Detour that the laboratory runs, each a process of its own: the gateway and the node.

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { connectControl } from '../control/client.ts'
import type { Config, FailMode, WorkerCount } from '../control/config.ts'
import type { PodOptions } from '../node/node.ts'
import { type ProfileName, profileNamed } from '../pipeline/profile.ts'
import { detour, program, type Running, start } from './process.ts'
import type { FaceSnapshot } from './report.ts'
import { attachmentId, controlSocket, type Topology } from './topology.ts'

/** What the two faces are told. */
export interface FaceOptions {
  topology: Topology
  profile: ProfileName
  family: 'ipv4' | 'ipv6'
  failMode: FailMode
  rungs: Config['rungs']
  workers: WorkerCount
  /** Where rule file, verdict log and captures go. */
  folder: string
}

/** One line of the gateway's verdict log. */
export interface VerdictLine {
  rule: string
  action: string
  source: string
  destination: string
  destinationPort: number
}

/** What `programs/node` reads from its argument. */
export interface NodeProgramInput {
  /** Path of the control socket. */
  control: string
  /** As a configuration file would say it. */
  config: object
  uplink: string
  pods: PodOptions[]
  capture: { overlay: string; underlay: string; limitBytes: number }
}

/** What the faces leave in the report's folder. */
const FILES = {
  policy: 'policy.yaml',
  verdicts: 'gateway.jsonl',
  gatewayLog: 'gateway.log',
  nodeLog: 'node.log',
  overlay: 'overlay.pcapng',
  underlay: 'underlay.pcapng',
} as const
export const RUN_FILES: readonly string[] = Object.values(FILES)

const START_LIMIT_MS = 15_000
const VNI = 77
/** Of each capture file: the requests fit, of the bulk transfer only the beginning. */
const CAPTURE_LIMIT = 4 << 20

const POLICY = `# What the laboratory's gateway does: everything may pass but one page.
default: allow
rules:
  - name: no-secrets
    protocol: tcp
    ports: [8080]
    signature: { text: 'GET /secret' }
    action: reset
`

export const RULE = 'no-secrets'

/** Starts the gateway in its namespace and waits until it answers on its control socket. */
export async function startGateway(options: FaceOptions): Promise<Running> {
  const { topology, profile, family, rungs, workers, folder } = options
  const policy = join(folder, FILES.policy)
  writeFileSync(policy, POLICY)
  const { [family]: address, interface: name } = topology.places.gateway
  const listen = `${address.includes(':') ? `[${address}]` : address}:${profileNamed(profile).port}`
  const control = controlSocket(topology.run, 'gateway')
  const files = ['--policy', policy, '--log', verdictLog(folder), '--control', control]
  const device = ['--interface', name, '--offload', rungs.offload, '--attach', rungs.attach, '--workers', `${workers}`]
  const command = detour('gateway', '--listen', listen, '--profile', profile, ...network(profile), ...device, ...files)
  return answering(start(topology.places.gateway, 'gateway', command, { log: join(folder, FILES.gatewayLog) }), control)
}

/** Starts the node in its namespace, with both pods attached, and waits until it answers on its control socket. */
export async function startNode(options: FaceOptions): Promise<Running> {
  const { topology, profile, family, failMode, rungs, workers, folder } = options
  const { node, gateway, client, server } = topology.places
  const control = controlSocket(topology.run, 'node')
  const input: NodeProgramInput = {
    control,
    config: {
      tunnel: { profile, local: node[family], remote: gateway[family], ...vniOf(profile) },
      failMode,
      rungs,
      workers,
    },
    uplink: node.interface,
    pods: [client, server].map(pod => ({
      id: attachmentId(topology.run, pod.role),
      namespace: pod.path,
      interface: pod.interface,
    })),
    capture: {
      overlay: join(folder, FILES.overlay),
      underlay: join(folder, FILES.underlay),
      limitBytes: CAPTURE_LIMIT,
    },
  }
  return answering(
    start(node, 'node', program('node', JSON.stringify(input)), { log: join(folder, FILES.nodeLog) }),
    control,
  )
}

/** The laboratory's VNI, where the profile has not one of its own. */
function vniOf(profile: ProfileName): { vni?: number } {
  return 'fixed' in profileNamed(profile).vnis ? {} : { vni: VNI }
}

const network = (profile: ProfileName) => Object.values(vniOf(profile)).flatMap(vni => ['--vni', `${vni}`])

/** Reads what a running face tells about itself. */
export async function snapshot(topology: Topology, face: 'node' | 'gateway'): Promise<FaceSnapshot> {
  const client = await connectControl(controlSocket(topology.run, face))
  try {
    const [stages, drops, flows, attachments, underlay] = await Promise.all([
      client.ask('stats', {}),
      client.ask('drops', {}),
      client.ask('flows', { limit: 20, order: 'bytes' }),
      client.ask('attachments', {}),
      client.ask('underlay', {}),
    ])
    return {
      face,
      stages: stages.rows,
      drops: drops.rows.filter(row => row.packets > 0),
      flows: flows.rows,
      attachments: attachments.rows,
      underlay: underlay.rows,
    }
  } finally {
    client.close()
  }
}

/** The gateway's verdicts so far. */
export function verdicts(folder: string): VerdictLine[] {
  if (!existsSync(verdictLog(folder))) return []
  // The last line may be half written.
  return readFileSync(verdictLog(folder), 'utf8')
    .split('\n')
    .slice(0, -1)
    .map(line => JSON.parse(line) as VerdictLine)
}

function verdictLog(folder: string): string {
  return join(folder, FILES.verdicts)
}

/** A face is ready when its control socket answers; one that ends before that is an error with its last words. */
async function answering(running: Running, control: string): Promise<Running> {
  const limit = Date.now() + START_LIMIT_MS
  let ended = false
  void running.done.then(() => {
    ended = true
  })
  for (;;) {
    try {
      const client = await connectControl(control, 1000)
      const { pid } = await client.ask('info', {})
      client.close()
      if (pid === running.pid) return running
    } catch (error) {
      if (ended || Date.now() > limit) throw running.failure(ended ? 'ended at once' : (error as Error).message)
    }
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}
