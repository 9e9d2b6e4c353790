// A hundred pods attached to one node and detached again: all are served, and nothing is left of any.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { COLUMN } from '../../src/memory/counters.ts'
import { PIN_DIRECTORY } from '../../src/node/attachment.ts'
import type { RunningNode } from '../../src/node/node.ts'
import { inNamespace } from '../../src/os/netns.ts'
import { buildCluster, type Cluster, stagesOf, until } from './cluster.ts'
import { listing, missing, Probe, title } from './support.ts'

const PODS = 100
const SAMPLES = [0, 1, 57, 99]

describe.skipIf(missing !== '')(title('a hundred pods'), () => {
  let cluster: Cluster
  let node: RunningNode
  let gateway: RunningGateway

  beforeAll(async () => {
    cluster = buildCluster('dth-hundred', 1, PODS)
    const { namespace, address } = cluster.gateways[0]
    gateway = await startGateway({ profile: 'geneve', address, namespace, interface: 'eth0', policy: ALLOW_ALL })
    node = await cluster.nodes[0].start({ failMode: 'closed' }, { pods: [] })
  })
  afterAll(async () => {
    await node?.stop()
    await gateway?.stop()
    cluster?.remove()
  })

  it('are attached and served, and leave nothing behind', async () => {
    const { pods, namespace } = cluster.nodes[0]
    const pins = () =>
      existsSync(PIN_DIRECTORY) ? readdirSync(PIN_DIRECTORY).filter(name => name.startsWith('dth-hundred')) : []
    const descriptors = () => readdirSync('/proc/self/fd').length
    // Of the node's interfaces only which there are: a bridge's listing has timers.
    const links = () =>
      inNamespace(namespace, () => readFileSync('/proc/thread-self/net/dev', 'utf8')).match(/\S+(?=:)/g)
    const found = () => [links(), ...SAMPLES.map(i => listing(pods[i].namespace, 'eth0'))]
    // What the first attachment makes for all of them is made.
    await node.attach({ id: pods[0].namespace, namespace: pods[0].namespace })
    await node.detach(pods[0].namespace)
    const [before, open] = [found(), descriptors()]

    for (const { namespace } of pods) await node.attach({ id: namespace, namespace })
    expect(pins()).toHaveLength(PODS)
    expect(await node.source.attachments()).toHaveLength(PODS)
    const steered = () => stagesOf(node, 'encap')[0].row[COLUMN.IN_PACKETS]
    const start = steered()
    for (const { namespace: pod } of pods) {
      const probe = new Probe(pod, namespace, cluster.nodes[0].gateway4, 9000)
      expect(probe.send(5000), pod).toBe(true)
      probe.close()
    }
    await until(() => steered() - start >= PODS, 'a steered packet of each')

    for (const { namespace } of pods) await node.detach(namespace)
    expect(pins()).toEqual([])
    expect(await node.source.attachments()).toEqual([])
    // NB: the kernel lets go of a link that is pinned no more in a while of its own (bpf_link_put in kernel/bpf/syscall.c).
    await expect.poll(found).toEqual(before)
    await until(() => descriptors() <= open, 'the end of all descriptors')
  })
})
