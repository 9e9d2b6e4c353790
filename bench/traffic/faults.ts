// Faults staged while mixed traffic flows: each must be counted, logged once, and over soon after its cause is.

import { setTimeout as sleep } from 'node:timers/promises'
import { ipBatch } from '../../src/os/netns.ts'
import { type Counted, counted, type Mixed, makeUplink, setUplinkMtu } from './mixed.ts'
import { addPod, SERVER, UPLINK_MTU, up } from './scene.ts'

export interface Fault {
  name: string
  begin(mixed: Mixed): void | Promise<void>
  end(mixed: Mixed): void | Promise<void>
  /** What must have grown, of the node's counters. */
  counter: string
  count(node: Counted): number
}

export interface Verdict {
  fault: string
  /** By how much its counter grew. */
  counted: number
  /** Lines of the node's log meanwhile. */
  lines: string[]
  /** Until everything flowed again, ms; undefined when it did not. */
  recoveredMs: number | undefined
  /** Empty when it was counted, logged once and recovered. */
  problems: string[]
}

const HOLD_MS = 2000
const RECOVERY_LIMIT_MS = 15_000
/** A condition is logged as ended when it has stayed away for a second. */
const LOG_MS = 2000
/** Packets that were lost count as the last ones when no more are for some seconds. */
const ALARM_LIMIT_MS = 10_000
/** An MTU that inner packets of 1,500 bytes do not fit, with their tunnel headers. */
const SMALL_MTU = 1400

const drops = (counted: Counted, ...reasons: string[]) =>
  counted.drops.filter(row => reasons.includes(row.reason)).reduce((sum, row) => sum + row.packets, 0)
/** How often a pod's interface was alarmed: no packet of it comes to Detour then. */
const podAlarms = ({ alarms }: Counted) =>
  alarms.filter(({ name }) => name.startsWith('attachment ')).reduce((sum, { times }) => sum + times, 0)
/** What a node does to packets that it cannot send, while the endpoint does not answer. */
const undeliverable = (node: Counted) => drops(node, 'endpoint-down', 'device-error', 'device-full')

export const FAULTS: readonly Fault[] = [
  {
    name: 'endpoint gone and back',
    begin: ({ gateway }) => gateway.running.stop('SIGKILL'),
    end: mixed => mixed.openGateway(),
    counter: "the node's drops",
    count: undeliverable,
  },
  {
    name: 'endpoint stopped (SIGSTOP), its queue full',
    begin: ({ gateway }) => void process.kill(gateway.running.pid, 'SIGSTOP'),
    end: ({ gateway }) => void process.kill(gateway.running.pid, 'SIGCONT'),
    counter: "the node's drops",
    count: undeliverable,
  },
  {
    name: 'node stopped (SIGSTOP), its queues full',
    begin: ({ node }) => void process.kill(node.running.pid, 'SIGSTOP'),
    end: ({ node }) => void process.kill(node.running.pid, 'SIGCONT'),
    counter: 'packets missed by queues, or stopped by the fail mode',
    count: counted => counted.missed + counted.failed,
  },
  {
    name: 'underlay link down and up',
    begin: ({ scene }) => ipBatch([`link set ${scene.uplink} down`], scene.node),
    end: ({ scene }) => ipBatch([up(scene.uplink)], scene.node),
    counter: "the node's drops",
    count: undeliverable,
  },
  {
    name: 'underlay MTU smaller and back',
    begin: async mixed => {
      setUplinkMtu(mixed.scene, SMALL_MTU)
      // Not a pause but a path with another MTU: everything flows meanwhile.
      const stuck = await mixed.healthy(RECOVERY_LIMIT_MS)
      if (stuck !== undefined) throw new Error(`at MTU ${SMALL_MTU} nothing in ${stuck}`)
    },
    end: ({ scene }) => setUplinkMtu(scene, UPLINK_MTU),
    counter: "the node's drops for size",
    count: counted => drops(counted, 'too-big', 'too-big-silent', 'oversized'),
  },
  {
    name: 'underlay link removed and made again',
    begin: ({ scene }) => ipBatch([`link delete ${scene.uplink}`], scene.node),
    end: ({ scene }) => makeUplink(scene),
    counter: "the node's drops",
    count: undeliverable,
  },
  {
    name: "pod's link down and up",
    begin: ({ scene }) => ipBatch(['link set veth-server down'], scene.node),
    end: ({ scene }) => ipBatch([up('veth-server')], scene.node),
    counter: "the node's alarms of a pod",
    count: podAlarms,
  },
  {
    name: "pod's interface removed and made again",
    begin: ({ scene }) => ipBatch(['link delete veth-server'], scene.node),
    end: ({ scene }) => addPod(scene, scene.server, SERVER, 'veth-server', 'cni0'),
    counter: "the node's alarms of a pod",
    count: podAlarms,
  },
]

/** Stages one fault in healthy traffic and judges what came of it. */
export async function stageFault(mixed: Mixed, fault: Fault): Promise<Verdict> {
  const problems: string[] = []
  const reading = async () => fault.count(await counted(mixed.node))
  const before = await reading()
  const { lines } = mixed.node.running
  const known = lines.length
  try {
    await fault.begin(mixed)
  } catch (error) {
    problems.push((error as Error).message)
  }
  await sleep(HOLD_MS)
  await fault.end(mixed)
  const from = performance.now()
  const stuck = await mixed.healthy(RECOVERY_LIMIT_MS)
  const recoveredMs = stuck === undefined ? performance.now() - from : undefined
  if (stuck !== undefined) problems.push(`not recovered after ${RECOVERY_LIMIT_MS / 1000} s: nothing in ${stuck}`)
  for (const alarm of await lasting(mixed)) problems.push(`still alarmed: ${alarm}`)
  await sleep(LOG_MS)
  const said = lines.slice(known)
  if (said.length === 0) problems.push('not logged')
  for (const line of repeated(said)) problems.push(`logged more than once: ${line}`)
  const grown = (await reading()) - before
  if (grown <= 0) problems.push(`not counted: ${fault.counter}`)
  return { fault: fault.name, counted: grown, lines: said, recoveredMs, problems }
}

/** Alarms of what was broken that have not ended after the limit; queues that are full of traffic are no matter. */
async function lasting({ node }: Mixed): Promise<string[]> {
  const deadline = performance.now() + ALARM_LIMIT_MS
  for (;;) {
    const { alarms } = await counted(node)
    const raised = alarms.filter(({ name, raised }) => raised && /^(attachment|endpoint|uplink) /.test(name))
    if (raised.length === 0 || performance.now() > deadline) return raised.map(({ text }) => text)
    await sleep(LOG_MS / 10)
  }
}

/** What was said more than once: the same line twice, or, numbers aside, more than a beginning and an end. */
export function repeated(lines: readonly string[]): string[] {
  const times = (said: readonly string[]) => {
    const times = new Map<string, number>()
    for (const line of said) times.set(line, (times.get(line) ?? 0) + 1)
    return [...times]
  }
  const words = lines.map(line => line.replaceAll(/\d+(\.\d+)?/g, '#'))
  const same = times(lines).filter(([, count]) => count > 1)
  return [...same, ...times(words).filter(([, count]) => count > 2)].map(([line]) => line)
}
