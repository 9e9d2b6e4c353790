// Does the path keep what it promises under an hour's worth of mixed traffic, compressed into five minutes, and through faults? TCP both
// ways, UDP of many sizes, fragments, echo requests, ICMP errors, short connections, from pod to pod through node and gateway.
// No contender, no number: it holds or it fails. Needs root, iproute2, ethtool.

import { setTimeout as sleep } from 'node:timers/promises'
import type { Bench } from './harness.ts'
import { FAULTS, type Fault, stageFault } from './traffic/faults.ts'
import { counted, type Mixed, type Seen, startMixed } from './traffic/mixed.ts'
import { flat, leaked, unbalanced, unexplained } from './traffic/promises.ts'
import { onStage, whyNot } from './traffic/scene.ts'

const SECONDS = 300
const QUICK_SECONDS = 10
/** Share of the time until memory must be flat. */
const WARM_UP = 0.3
/** What is under way when sending stops arrives by then; counters are published by then. */
const QUIET_MS = 1500
const HEALTHY_MS = 5000
/** The node makes probes and takes them back by itself; the rest of them may be anywhere. */
const PROBES_UNDER_WAY = 4

export async function run(bench: Bench): Promise<void> {
  const reason = whyNot()
  if (reason !== '') return bench.skip(reason)
  const problems: string[] = []
  await onStage(async stage => {
    let mixed = await stage.open(startMixed())
    problems.push(...(await soak(mixed, bench.short ? QUICK_SECONDS : SECONDS)))
    mixed.toggle()
    for (const fault of FAULTS) {
      const stuck = await mixed.healthy(HEALTHY_MS)
      if (stuck !== undefined) {
        // What one fault has broken is no other's verdict.
        await stage.clear()
        mixed = await stage.open(startMixed())
      }
      problems.push(...(await judge(mixed, fault)))
    }
  })
  if (problems.length > 0) throw new Error(`the soak found ${problems.length} problems:\n  ${problems.join('\n  ')}`)
}

/** Lets traffic flow for some seconds and be quiet; returns what was promised and not kept. */
async function soak(mixed: Mixed, seconds: number): Promise<string[]> {
  const samples: number[] = []
  const until = performance.now() + seconds * 1000
  while (performance.now() < until) {
    await sleep(Math.min(1000, seconds * 20))
    samples.push(mixed.memory())
  }
  mixed.toggle()
  await sleep(QUIET_MS)
  const seen = await mixed.seen()
  const [node, gateway] = [await counted(mixed.node), await counted(mixed.gateway)]
  const checksums = ['Udp', 'Tcp', 'Icmp'].map(name => [name, mixed.snmp(name, 'InCsumErrors')] as const)
  tell(seen, seconds)
  for (const [face, { drops }] of [['node', node] as const, ['gateway', gateway] as const])
    for (const { stage, reason, packets } of drops) console.log(`  ${face} dropped at ${stage}: ${packets} ${reason}`)
  const problems = [
    ...flat(samples.slice(Math.floor(samples.length * WARM_UP))),
    ...unbalanced('node', node.stages),
    ...unbalanced('gateway', gateway.stages),
    ...leaked('node', node.stages, PROBES_UNDER_WAY),
    ...leaked('gateway', gateway.stages, PROBES_UNDER_WAY),
    ...unexplained(seen, [node, gateway], mixed.snmp('Udp', 'RcvbufErrors')),
    ...checksums
      .filter(([, errors]) => errors > 0)
      .map(([name, errors]) => `${errors} ${name} checksum errors at a pod`),
  ]
  for (const [i, peer] of seen.entries()) {
    if (peer.reordered > 0) problems.push(`pod ${i}: ${peer.reordered} datagrams out of order within a flow`)
    if (peer.damaged > 0) problems.push(`pod ${i}: ${peer.damaged} times other bytes than were sent`)
    if (peer.tcpBroken > 0) problems.push(`pod ${i}: ${peer.tcpBroken} bulk connections broke`)
    if (peer.shortFailed > 0) problems.push(`pod ${i}: ${peer.shortFailed} short connections failed`)
  }
  if (seen[0].refused === 0) problems.push('no ICMP error came back')
  if (problems.length === 0) console.log('  kept: balance, memory, order, bytes, checksums, reasons')
  return told(problems)
}

function tell([client, server]: Seen, seconds: number): void {
  const gigabytes = (client.tcpReceived + server.tcpReceived) / 1e9
  const datagrams = client.udpReceived + server.udpReceived
  console.log(
    `\n${seconds} s of mixed traffic: TCP ${gigabytes.toFixed(2)} GB both ways, ${datagrams} datagrams, ` +
      `${client.shortDone} short connections, ${client.echoReceived} echoes, ${client.refused} ICMP errors`,
  )
}

function told(problems: string[]): string[] {
  for (const problem of problems) console.log(`  NOT KEPT: ${problem}`)
  return problems
}

async function judge(mixed: Mixed, fault: Fault): Promise<string[]> {
  const { counted, recoveredMs, lines, problems } = await stageFault(mixed, fault)
  const recovered = recoveredMs === undefined ? 'not' : `within ${(recoveredMs / 1000).toFixed(1)} s`
  console.log(`\n${fault.name}: counted ${counted}, recovered ${recovered}, logged:`)
  for (const line of lines) console.log(`    ${line}`)
  return told(problems.map(problem => `${fault.name}: ${problem}`))
}
