// The laboratory's steps: what each should do, how it is done, and what was seen.

import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { ip } from '../os/netns.ts'
import { type FaceOptions, RULE, snapshot, startGateway, startNode, type VerdictLine, verdicts } from './faces.ts'
import { bytes } from './format.ts'
import type { Lab, Step } from './lab.ts'
import type { FaceSnapshot, LinkCounters } from './report.ts'
import { buildTopology, keepTopology, leftOver, ROLES, type Role, type Topology } from './topology.ts'
import { bulkTransfer, type Exchange, httpGet, probeLoss, startHttpServer, startProbe, waitFor } from './traffic.ts'

const PORT = { http: 8080, bulk: 5201, probe: 7007 }
const REQUEST_LIMIT_MS = 3000
/** So many probes answered in a row count as "traffic flows". */
const STEADY = 25
/** How long fail-closed must hold before it is believed. */
const SILENCE_MS = 2000

export const STEPS: Step[] = [
  {
    name: 'Build the topology',
    expectation: () => 'client and server pods on a node, an uplink to a gateway, all in namespaces of their own',
    async run(lab) {
      const { run } = lab.options
      lab.topology = buildTopology({ run })
      for (const role of ROLES) {
        const { namespace, interface: name, [lab.family]: address } = lab.topology.places[role]
        lab.report.places[role] = { namespace, interface: name, address }
      }
      const { server } = lab.topology.places
      lab.http = await startHttpServer(server, server[lab.family], PORT.http)
      return { ok: true, observed: `${ROLES.length} namespaces; HTTP server on ${server[lab.family]}` }
    },
  },
  {
    name: 'Baseline without Detour',
    expectation: () => 'both pages are served, and a bulk transfer sets the mark',
    async run(lab) {
      const allowed = await get(lab, '/allowed')
      const secret = await get(lab, '/secret')
      const bulk = await transfer(lab, 'without Detour')
      const observed = `/allowed ${words(allowed)}, /secret ${words(secret)}; ${bulk.gbps.toFixed(1)} Gbit/s (${bulk.tool})`
      return { ok: allowed.status === 200 && secret.status === 200 && bulk.gbps > 0, observed }
    },
  },
  {
    name: 'Start gateway and node',
    expectation: lab => `both answer on their control sockets; both pods are attached, fail-${lab.options.failMode}`,
    async run(lab) {
      lab.report.links = links(topology(lab))
      lab.progress('starting the gateway')
      lab.gateway = await startGateway(faceOptions(lab))
      lab.progress('starting the node')
      lab.node = await startNode(faceOptions(lab))
      const { attachments, underlay } = await snapshot(topology(lab), 'node')
      const held = [...new Set(attachments.map(row => row.attachRung))].join(', ')
      const processes = `gateway is process ${lab.gateway.pid}, node ${lab.node.pid}`
      const observed = `${processes}; ${attachments.length} attachments (${held}), underlay ${underlay[0]?.rung}`
      return { ok: attachments.length === 2, observed }
    },
  },
  {
    name: 'Allowed request',
    expectation: () => 'GET /allowed is answered, through the gateway',
    async run(lab) {
      const seen = verdicts(lab.options.report).length
      const before = links(topology(lab)).node
      const exchange = await get(lab, '/allowed')
      const verdict = await nextVerdict(
        lab,
        seen,
        line => line.destinationPort === PORT.http && line.action === 'allow',
      )
      const after = links(topology(lab)).node
      const toward = after.txPackets - before.txPackets
      const back = after.rxPackets - before.rxPackets
      const log =
        verdict === undefined
          ? 'the gateway logged nothing of it'
          : `the gateway logged ${verdict.action} (${verdict.rule})`
      const observed = `${words(exchange)}; ${log}; ${toward} packets over the uplink, ${back} back`
      return { ok: exchange.status === 200 && verdict !== undefined && toward > 0 && back > 0, observed }
    },
  },
  {
    name: 'Blocked request',
    expectation: () => `GET /secret is stopped by the gateway's rule ${RULE}`,
    run: lab => blocked(lab, verdicts(lab.options.report).length),
  },
  {
    name: 'Bulk transfer through the tunnel',
    expectation: () => 'TCP goes to the gateway and back before it is delivered; compared with the baseline',
    async run(lab) {
      const bulk = await transfer(lab, 'through tunnel and gateway')
      lab.report.faces = await Promise.all([snapshot(topology(lab), 'node'), snapshot(topology(lab), 'gateway')])
      lab.report.links = since(lab.report.links, links(topology(lab)))
      lab.report.captures = captures(lab.options.report)
      const carried = flowBytes(lab.report.faces[1], PORT.bulk)
      const share = Math.round((100 * bulk.gbps) / (lab.report.throughput[0]?.bulk.gbps || Number.NaN))
      const observed = `${bulk.gbps.toFixed(1)} Gbit/s, ${share}% of the baseline; the gateway's flow carried ${bytes(carried)}`
      return { ok: bulk.gbps > 0 && carried > (bulk.gbps * 1e9 * lab.options.seconds) / 8 / 2, observed }
    },
  },
  {
    name: 'Kill the gateway',
    expectation: lab => failExpectation(lab, 'the node notices'),
    async run(lab) {
      const places = topology(lab).places
      lab.probe = await startProbe(places.client, places.server, places.server[lab.family], PORT.probe)
      if (!(await lab.probe.answered(STEADY, 0, 10_000))) {
        return { ok: false, observed: 'no probe was answered even before the gateway was killed' }
      }
      const before = await snapshot(topology(lab), 'node')
      const killedMs = event(lab, 'gateway killed')
      await lab.gateway!.stop('SIGKILL')
      const outcome = await failModeHolds(lab, killedMs)
      const reasons = newDrops(before, await snapshot(topology(lab), 'node'))
      return { ok: outcome.ok, observed: `${outcome.observed}${reasons === '' ? '' : `; the node dropped ${reasons}`}` }
    },
  },
  {
    name: 'Restart the gateway',
    expectation: () => 'probes are answered, and requests are inspected again',
    async run(lab) {
      const seen = verdicts(lab.options.report).length
      const restartedMs = event(lab, 'gateway restarted')
      lab.gateway = await startGateway(faceOptions(lab))
      lab.progress('waiting for the node to trust the gateway again')
      const flows = await lab.probe!.answered(STEADY, restartedMs, 20_000)
      const stopped = await waitFor(async () => (await get(lab, '/secret')).status === null || undefined, 15_000)
      const allowed = await get(lab, '/allowed')
      const outcome = await blocked(lab, seen)
      const ok = flows && stopped === true && allowed.status === 200 && outcome.ok
      return {
        ok,
        observed: `probes ${flows ? 'answered' : 'unanswered'}; /allowed ${words(allowed)}; /secret ${outcome.observed}`,
      }
    },
  },
  {
    name: 'Kill the node',
    expectation: lab => failExpectation(lab, 'the kernel sees its heartbeat stop'),
    async run(lab) {
      const killedMs = event(lab, 'node killed')
      await lab.node!.stop('SIGKILL')
      return failModeHolds(lab, killedMs)
    },
  },
]

export const CLEAN_UP: Step = {
  name: 'Clean up',
  expectation: () => 'no namespace, link, process or pinned program is left',
  async run(lab) {
    const { topology } = lab
    if (topology === undefined) return { ok: true, observed: 'nothing had been made' }
    await lab.probe?.stop()
    topology.close()
    const left = leftOver(topology.run)
    return { ok: left.length === 0, observed: left.length === 0 ? 'nothing is left' : `left: ${left.join(', ')}` }
  },
}

export const KEEP: Step = {
  name: 'Keep running',
  expectation: () => 'namespaces stay, with gateway and node running',
  async run(lab) {
    await lab.probe?.stop()
    lab.node = await startNode(faceOptions(lab))
    keepTopology(topology(lab))
    for (const running of [lab.http!, lab.gateway!, lab.node]) running.release()
    const { client, server } = topology(lab).places
    const observed = `try: ip netns exec ${client.namespace} curl http://${server.ipv4}:${PORT.http}/allowed`
    return { ok: true, observed }
  },
}

function topology(lab: Lab): Topology {
  if (lab.topology === undefined) throw new Error('the topology is not built')
  return lab.topology
}

function faceOptions(lab: Lab): FaceOptions {
  const { profile, failMode, rungs, workers, report } = lab.options
  return { topology: topology(lab), profile, family: lab.family, failMode, rungs, workers, folder: report }
}

function get(lab: Lab, path: string): Promise<Exchange> {
  const { client, server } = topology(lab).places
  lab.progress(`GET ${path}`)
  return httpGet(client, server[lab.family], PORT.http, path, REQUEST_LIMIT_MS)
}

async function transfer(lab: Lab, label: string) {
  const { client, server } = topology(lab).places
  const { seconds } = lab.options
  lab.progress(`bulk transfer for ${seconds} s`)
  const bulk = await bulkTransfer({ from: client, to: server, address: server[lab.family], port: PORT.bulk, seconds })
  lab.report.throughput.push({ label, bulk })
  return bulk
}

async function blocked(lab: Lab, seen: number) {
  const exchange = await get(lab, '/secret')
  const verdict = await nextVerdict(lab, seen, line => line.rule === RULE)
  const log = verdict === undefined ? 'no rule logged' : `rule ${verdict.rule} (${verdict.action}) in the log`
  return { ok: exchange.status === null && verdict !== undefined, observed: `${words(exchange)}; ${log}` }
}

function nextVerdict(lab: Lab, seen: number, test: (line: VerdictLine) => boolean): Promise<VerdictLine | undefined> {
  return waitFor(async () => verdicts(lab.options.report).slice(seen).find(test), 3000)
}

function failExpectation(lab: Lab, how: string): string {
  return lab.options.failMode === 'open'
    ? `${how}, and packets pass uninspected: probes go on`
    : `${how}, and nothing passes uninspected: probes stop`
}

/** After a kill: fail-open must let probes pass again and requests through uninspected, fail-closed must let nothing pass. */
async function failModeHolds(lab: Lab, killedMs: number) {
  const probe = lab.probe!
  const open = lab.options.failMode === 'open'
  lab.progress(`watching the probes, fail-${lab.options.failMode}`)
  // What was under way at the kill may still arrive, or be lost.
  const passes = open
    ? await probe.answered(STEADY, killedMs, 10_000)
    : await probe.answered(1, killedMs + 100, SILENCE_MS)
  const secret = await get(lab, '/secret')
  const lastMs = probe.records.findLast(record => record.answeredMs !== null)?.sentMs ?? killedMs
  const { sent, lost } = probeLoss(probe.records, killedMs, open ? lastMs : Date.now() - 100)
  const uninspected = secret.status === 200 ? 'passes uninspected' : `does not pass (${secret.error})`
  const again = open && passes ? ', then they go on' : ''
  return {
    ok: passes === open && (secret.status === 200) === open,
    observed: `${lost} of ${sent} probes lost${again}; GET /secret ${uninspected}`,
  }
}

function event(lab: Lab, label: string): number {
  const atMs = performance.timeOrigin + performance.now()
  lab.report.probe?.events.push({ atMs, label })
  return atMs
}

function words(exchange: Exchange): string {
  return exchange.status === null ? `stopped (${exchange.error})` : `${exchange.status} in ${exchange.ms.toFixed(0)} ms`
}

/** The kernel's counters of every place's interface. */
function links(topology: Topology): Record<Role, LinkCounters> {
  const read = (role: Role): LinkCounters => {
    const { namespace, interface: name } = topology.places[role]
    const { rx, tx } = JSON.parse(ip(['-j', '-s', 'link', 'show', 'dev', name], namespace))[0].stats64
    return { rxPackets: rx.packets, rxBytes: rx.bytes, txPackets: tx.packets, txBytes: tx.bytes }
  }
  return { client: read('client'), server: read('server'), node: read('node'), gateway: read('gateway') }
}

function since(
  before: Partial<Record<Role, LinkCounters>>,
  now: Record<Role, LinkCounters>,
): Record<Role, LinkCounters> {
  for (const role of ROLES) {
    for (const key of ['rxPackets', 'rxBytes', 'txPackets', 'txBytes'] as const)
      now[role][key] -= before[role]?.[key] ?? 0
  }
  return now
}

function flowBytes(face: FaceSnapshot, port: number): number {
  const rows = face.flows.filter(row => row.destinationPort === port || row.sourcePort === port)
  return rows.reduce((sum, row) => sum + row.sentBytes, 0)
}

function newDrops(before: FaceSnapshot, after: FaceSnapshot): string {
  const count = (face: FaceSnapshot, reason: string) =>
    face.drops.filter(row => row.reason === reason).reduce((sum, row) => sum + row.packets, 0)
  const grown = [...new Set(after.drops.map(row => row.reason))]
    .map(reason => ({ reason, packets: count(after, reason) - count(before, reason) }))
    .filter(({ packets }) => packets > 0)
  return grown.map(({ reason, packets }) => `${packets} packets (${reason})`).join(', ')
}

function captures(folder: string) {
  const files = {
    'overlay.pcapng': "the pods' packets, as taken from and given back to them",
    'underlay.pcapng': 'the tunnel between node and gateway',
  }
  return Object.entries(files)
    .filter(([file]) => existsSync(join(folder, file)))
    .map(([file, text]) => ({ file, text: `${text}; ${bytes(statSync(join(folder, file)).size)}` }))
}
