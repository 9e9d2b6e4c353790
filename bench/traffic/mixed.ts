// Mixed traffic between two pods through Detour's node and gateway, each a process of its own, and what can be told of it: what
// the pods saw, what node and gateway counted and logged, what the kernel counted.

import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { connectControl } from '../../src/control/client.ts'
import type { DropRow, StageRow } from '../../src/control/protocol.ts'
import type { AlarmRow } from '../../src/control/source.ts'
import { type Running, start } from '../../src/lab/process.ts'
import { deleteLink } from '../../src/os/link.ts'
import { inNamespace, ipBatch } from '../../src/os/netns.ts'
import { program } from './load.ts'
import { type FaceProcess, startGateway, startNodeProcess } from './paths.ts'
import type { PeerInput, PeerOutput } from './peer.ts'
import { at, build, CLIENT, FAR, NODE, type Scene, SERVER, snmp, UPLINK_MTU, up } from './scene.ts'

/** The same tunnel for all: GENEVE, with options and checksums. */
const PROFILE = 'geneve'
const LIMIT_MS = 20_000
const REPORTED_MS = 400
/** The port of the endpoint's bridge that the uplink leads to. */
const PORT = 'port0'

/** What both pods saw, the client first. */
export type Seen = [PeerOutput, PeerOutput]

/** What a face counted. */
export interface Counted {
  stages: StageRow[]
  drops: DropRow[]
  /** Packets that the kernel had no room for in a queue to a worker, or that the fail mode stopped. */
  missed: number
  failed: number
  alarms: AlarmRow[]
}

export class Mixed {
  readonly scene: Scene
  node!: FaceProcess
  gateway!: FaceProcess
  private readonly peers: Running[] = []

  constructor(scene: Scene) {
    this.scene = scene
  }

  /** Both pods' latest reports, which are as new as this call. */
  async seen(): Promise<Seen> {
    const next = this.peers.map(peer => {
      const known = peer.lines.length
      return peer.line(() => peer.lines.length > known, LIMIT_MS)
    })
    return (await Promise.all(next)).map(line => JSON.parse(line)) as Seen
  }

  /** Lets both pods begin to send, or stop. */
  toggle(): void {
    for (const peer of this.peers) process.kill(peer.pid, 'SIGUSR2')
  }

  /**
   * Waits until something has arrived in every flow and stream, both ways, and node has received from both pods; tells what stands still after the
   * limit, undefined for nothing.
   */
  async healthy(limitMs: number): Promise<string | undefined> {
    const deadline = performance.now() + limitMs
    for (let before = await this.progress(); ; ) {
      await sleep(REPORTED_MS)
      const now = await this.progress()
      const stuck = Object.keys(now).filter(what => !(now[what] > before[what]))
      if (stuck.length === 0) return undefined
      if (performance.now() > deadline) return stuck.join(', ')
      before = now
    }
  }

  /** Numbers that grow while all is well, by what they tell of. */
  private async progress(): Promise<Record<string, number>> {
    const { client, server } = this.scene
    const seen = await this.seen()
    const { stages } = await counted(this.node)
    const progress: Record<string, number> = { 'short connections': seen[0].shortDone }
    for (const [i, pod] of [client, server].entries()) {
      const name = i === 0 ? 'client' : 'server'
      const devices = stages.filter(row => row.stage.includes(pod))
      progress[`what the node takes from the ${name}`] = devices.reduce((sum, row) => sum + row.inPackets, 0)
      progress[`TCP to the ${name}`] = seen[i].tcpReceived
      for (const [flow, received] of seen[i].flows.entries()) progress[`UDP ${flow} to the ${name}`] = received
    }
    return progress
  }

  async openGateway(): Promise<void> {
    this.gateway = await startGateway(this.scene, PROFILE)
  }

  async openNode(): Promise<void> {
    this.node = await startNodeProcess(this.scene, PROFILE, [this.scene.client, this.scene.server])
  }

  openPeers(): void {
    const { client, server } = this.scene
    for (const [namespace, local, remote] of [
      [client, CLIENT.address, SERVER.address],
      [server, SERVER.address, CLIENT.address],
    ]) {
      // Echo requests without raw sockets (icmp(7)).
      inNamespace(namespace, () => writeFileSync('/proc/sys/net/ipv4/ping_group_range', '0 0'))
      const input: PeerInput = { client: namespace === client, local, remote }
      this.peers.push(start(at(namespace), `peer ${local}`, program('peer', input)))
    }
  }

  async close(): Promise<void> {
    for (const peer of this.peers) await peer.stop('SIGKILL')
    await this.node?.close()
    await this.gateway?.close()
  }

  /** Resident memory of the node, MiB. */
  memory(): number {
    const status = readFileSync(`/proc/${this.node.running.pid}/status`, 'utf8')
    return Number(/^VmRSS:\s*(\d+)/m.exec(status)?.[1]) / 1024
  }

  /** A counter of both pods' /proc/net/snmp. */
  snmp(protocol: string, counter: string): number {
    const { client, server } = this.scene
    return snmp(client, protocol, counter) + snmp(server, protocol, counter)
  }
}

/** What a face has counted, asked over its control socket. */
export async function counted({ control }: FaceProcess): Promise<Counted> {
  const client = await connectControl(control)
  try {
    const { rows: stages } = await client.ask('stats', {})
    const { rows: drops } = await client.ask('drops', {})
    const { rows: attachments } = await client.ask('attachments', {})
    const { rows: underlay } = await client.ask('underlay', {})
    const { rows: alarms } = await client.ask('alarms', {})
    const missed = [...attachments, ...underlay].reduce((sum, row) => sum + (row.missed ?? 0), 0)
    const failed = attachments.reduce((sum, row) => sum + row.failDropped + row.failPassed, 0)
    return { stages, drops, missed, failed, alarms }
  } finally {
    client.close()
  }
}

/** Builds two pods, node and gateway, waits until mixed traffic flows both ways. Throws when it does not. */
export async function startMixed(): Promise<Mixed> {
  const mixed = new Mixed(build('soak', { server: true }))
  try {
    makeUplink(mixed.scene)
    await mixed.openGateway()
    await mixed.openNode()
    mixed.openPeers()
    await mixed.seen()
    mixed.toggle()
    const stuck = await mixed.healthy(LIMIT_MS)
    if (stuck !== undefined) throw new Error(`mixed traffic does not flow: ${stuck}`)
    return mixed
  } catch (error) {
    await mixed.close()
    throw error
  }
}

/** Makes the underlay's link anew; the endpoint's own interface is a bridge, which stays when the link goes. */
export function makeUplink({ node, far, uplink, downlink }: Scene): void {
  const lost = () => deleteLink(uplink, node)
  lost()
  if (!inNamespace(far, () => readFileSync('/proc/thread-self/net/dev', 'utf8')).includes(`${downlink}:`)) {
    const bridge = `link add ${downlink} address ${FAR.mac} mtu ${UPLINK_MTU} type bridge forward_delay 0 mcast_snooping 0`
    ipBatch([bridge, `address add ${FAR.address}/24 dev ${downlink}`, up(downlink)], far)
  }
  const link = `link add ${uplink} address ${NODE.mac} mtu ${UPLINK_MTU} type veth`
  ipBatch([`${link} peer name ${PORT} mtu ${UPLINK_MTU} netns ${far}`], node)
  ipBatch([`link set ${PORT} master ${downlink}`, up(PORT)], far)
  ipBatch([`address add ${NODE.address}/24 dev ${uplink}`, up(uplink)], node)
}

/** Sets the MTU of the underlay's link. */
export function setUplinkMtu({ node, far, uplink }: Scene, mtu: number): void {
  ipBatch([`link set ${uplink} mtu ${mtu}`], node)
  ipBatch([`link set ${PORT} mtu ${mtu}`], far)
}
