// What is never steered, by default and by rule: it goes on untouched, is counted, and flows say by which rule.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { COLUMN } from '../../src/memory/counters.ts'
import type { RunningNode } from '../../src/node/node.ts'
import { ipBatch } from '../../src/os/netns.ts'
import { buildCluster, type Cluster, stagesOf, until } from './cluster.ts'
import { missing, Probe, title } from './support.ts'

const METADATA = '169.254.169.254'

describe.skipIf(missing !== '')(title('bypass'), () => {
  let cluster: Cluster
  let node: RunningNode
  let gateway: RunningGateway
  const probes: Probe[] = []

  beforeAll(async () => {
    cluster = buildCluster('dth-bypass', 1, 1)
    const { namespace, address } = cluster.gateways[0]
    gateway = await startGateway({ profile: 'geneve', address, namespace, interface: 'eth0', policy: ALLOW_ALL })
    // As a daemon adds it with pods.bypassNode, beside the defaults.
    const own = { name: 'node', from: `${cluster.nodes[0].gateway4}/32` }
    node = await cluster.nodes[0].start({ failMode: 'closed' }, {}, [own])
    ipBatch([`address add ${METADATA}/32 dev eth0`], cluster.outside.namespace)
    ipBatch([`route add ${METADATA} via ${cluster.outside.address}`], cluster.nodes[0].namespace)
  })
  afterAll(async () => {
    for (const probe of probes) probe.close()
    await node?.stop()
    await gateway?.stop()
    cluster?.remove()
  })

  const steered = () => stagesOf(node, 'encap')[0].row[COLUMN.IN_PACKETS]
  const passed = () => stagesOf(node, 'decide')[0].row[COLUMN.PASSED]

  /** Sends five datagrams, and says how many of them the workers passed and how many they steered, and the flow's verdict and rule. */
  async function way(from: string, to: string, address: string, port: number) {
    const before = [passed(), steered()]
    const probe = new Probe(from, to, address, port)
    probes.push(probe)
    for (let i = 0; i < 5; i++) expect(probe.send(5000)).toBe(true)
    await until(() => passed() - before[0] + steered() - before[1] >= 5)
    const { rows } = await node.source.flows({ limit: 100, order: 'bytes', port, address })
    expect(rows).toHaveLength(1)
    const [{ verdict, rule, sentPackets }] = rows
    expect(sentPackets).toBe(5)
    return { passed: passed() - before[0], steered: steered() - before[1], verdict, rule }
  }

  const ends = () => ({
    pod: cluster.nodes[0].pods[0],
    host: cluster.nodes[0].namespace,
    outside: cluster.outside,
  })

  it('passes what goes to the metadata service and to DNS servers with private addresses', async () => {
    const { pod, outside } = ends()
    const passes = (rule: string) => ({ passed: 5, steered: 0, verdict: 'pass', rule })
    expect(await way(pod.namespace, outside.namespace, METADATA, 9000)).toEqual(passes('metadata'))
    expect(await way(pod.namespace, outside.namespace, outside.address, 53)).toEqual(passes('dns'))
  })

  it('passes what the node itself opens, and not what the pod opens to the node', async () => {
    const { pod, host } = ends()
    expect(await way(host, pod.namespace, pod.four, 9001)).toEqual({
      passed: 5,
      steered: 0,
      verdict: 'pass',
      rule: 'node',
    })
    const other = await way(pod.namespace, host, cluster.nodes[0].gateway4, 9002)
    expect(other).toEqual({ passed: 0, steered: 5, verdict: 'steer', rule: undefined })
  })

  it('steers all else, DNS servers with public addresses, too', async () => {
    const { pod, outside } = ends()
    ipBatch(['address add 192.0.2.53/32 dev eth0'], outside.namespace)
    ipBatch([`route add 192.0.2.53 via ${outside.address}`], ends().host)
    const steers = { passed: 0, steered: 5, verdict: 'steer', rule: undefined }
    expect(await way(pod.namespace, outside.namespace, '192.0.2.53', 53)).toEqual(steers)
    expect(await way(pod.namespace, outside.namespace, outside.address, 9003)).toEqual(steers)
    expect(await way(outside.namespace, pod.namespace, pod.four, 9004)).toEqual(steers)
  })
})
