// The whole node against the kernel's own VXLAN device as the endpoint: real TCP both ways, every rung, both IP versions
// inside and outside.

import { afterEach, describe, expect, it } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { type RunningNode, startNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, ipBatch } from '../../src/os/netns.ts'
import { until } from './cluster.ts'
import { connectByVxlan, listing, missing, Probe, runIn, title, transfer } from './support.ts'

const POD = 'dtk-pod'
const NODE = 'dtk-node'
const ENDPOINT = 'dtk-endpoint'
const POD_MAC = '02:00:00:00:00:aa'
const ENDPOINT_MAC = '02:00:00:00:00:bb'
const VNI = 77

let node: RunningNode | undefined

/** A pod behind a bridge, an uplink, and at its other end a VXLAN device that the pods' subnet reaches. */
function build(family: 4 | 6, uplinkMtu = 1600): void {
  remove()
  for (const name of [POD, NODE, ENDPOINT]) createNamespace(name)
  const quiet = (name: string) => `link set ${name} addrgenmode none up`
  ipBatch([`link add eth0 netns ${POD} address ${POD_MAC} type veth peer name veth0 netns ${NODE}`])
  ipBatch([
    `link add uplink netns ${NODE} mtu ${uplinkMtu} type veth peer name eth0 netns ${ENDPOINT} mtu ${uplinkMtu}`,
  ])
  ipBatch(['link add cni0 type bridge', 'link set veth0 master cni0', ...['cni0', 'veth0', 'uplink'].map(quiet)], NODE)
  connectByVxlan({
    pod: POD,
    node: NODE,
    endpoint: ENDPOINT,
    podMac: POD_MAC,
    endpointMac: ENDPOINT_MAC,
    vni: VNI,
    family,
  })
}

/** What the namespace looks like, without what goes on by itself: a bridge's clocks, and carrier, which may come up a second later. */
const look = (namespace: string, name: string) =>
  listing(namespace, name)
    .replaceAll(/_timer +[\d.]+/g, '_timer')
    .replaceAll(/NO-CARRIER,|,LOWER_UP|state \w+/g, '')

function remove(): void {
  for (const name of [POD, NODE, ENDPOINT]) deleteNamespace(name)
}

function start(family: 4 | 6, rungs: { offload?: string; attach?: string } = {}): Promise<RunningNode> {
  const addresses = family === 4 ? ['10.99.0.1', '10.99.0.2'] : ['fd00:99::1', 'fd00:99::2']
  const tunnel = { profile: 'vxlan', vni: VNI, local: addresses[0], remote: addresses[1] }
  const config = configSchema.parse({ tunnel, rungs })
  const pods = [{ id: POD, namespace: POD }]
  // A kernel endpoint does not return probes.
  return startNode({ config, namespace: NODE, uplink: 'uplink', pods, probe: { intervalMs: 0, limitMs: 0 } })
}

/** One stage's counters, as the worker last published them. */
function stage(name: string): Float64Array {
  const found = node?.source.counters()[0].stages.find(each => each.name === name)
  if (found === undefined) throw new Error(`no stage ${name}`)
  return found.row
}

/** In + created = out + dropped, at every stage. */
function checkAccounts(): void {
  for (const each of node?.source.counters()[0].stages ?? []) {
    if (each.name.startsWith('tap ') || each.name.startsWith('udp')) continue
    const { row } = each
    expect(row[0] + row[4], each.name).toBe(row[2] + each.drops())
  }
}

describe.skipIf(missing !== '')(title('a node and the kernel VXLAN device'), () => {
  afterEach(async () => {
    await node?.stop()
    node = undefined
    remove()
  })

  for (const family of [4, 6] as const) {
    for (const offload of ['tunnel-gso', 'uso', 'plain', 'udp-socket']) {
      it(`exchange TCP both ways over IPv${family}, rung ${offload}`, async () => {
        build(family)
        const before = look(NODE, 'uplink')
        const podBefore = look(POD, 'eth0')
        // NB: a veth leaves checksums to a wire that never comes, and a socket shows what is inside as it was sent.
        if (offload === 'udp-socket') await runIn(ENDPOINT, 'ethtool', '-K', 'eth0', 'tx', 'off')
        node = await start(family, { offload })
        expect((await node.source.underlay())[0].rung).toBe(offload)
        for (const address of ['10.244.0.9', 'fd00:244::9']) {
          expect(await transfer(POD, ENDPOINT, address)).toBeGreaterThan(0)
          expect(await transfer(POD, ENDPOINT, address, '-R')).toBeGreaterThan(0)
        }
        await node.stop()
        expect(stage('encap')[2]).toBeGreaterThan(1000)
        expect(stage('restore')[2]).toBeGreaterThan(1000)
        checkAccounts()
        node = undefined
        // NB: the kernel lets go of a link that is pinned no more in a while of its own (bpf_link_put in kernel/bpf/syscall.c).
        await expect.poll(() => look(NODE, 'uplink')).toBe(before)
        await expect.poll(() => look(POD, 'eth0')).toBe(podBefore)
      })
    }
  }

  it('carries super-packets whole in both directions where the kernel can', async () => {
    build(4)
    node = await start(4)
    expect((await node.source.underlay())[0].rung).toBe('tunnel-gso')
    await transfer(POD, ENDPOINT, '10.244.0.9')
    await transfer(POD, ENDPOINT, '10.244.0.9', '-R')
    await node.stop()
    // 300 MB each way: mean frame sizes far beyond the MTU show that nobody cut them, and copied bytes that nobody copied.
    expect(stage('encap')[1] / stage('encap')[0]).toBeGreaterThan(4000)
    expect(stage('decap')[1] / stage('decap')[0]).toBeGreaterThan(4000)
    expect(stage('complete underlay')[5]).toBe(0)
    expect(stage('complete pod')[5]).toBe(0)
    node = undefined
  })

  it('works with clsact where TCX is not to be used', async () => {
    build(4)
    node = await start(4, { attach: 'clsact' })
    expect((await node.source.attachments())[0].attachRung).toBe('clsact')
    expect(await transfer(POD, ENDPOINT, '10.244.0.9')).toBeGreaterThan(0)
  })

  it('teaches senders the smaller path MTU instead of losing their packets', async () => {
    build(4, 1500)
    node = await start(4)
    for (const address of ['10.244.0.9', 'fd00:244::9'])
      expect(await transfer(POD, ENDPOINT, address)).toBeGreaterThan(0)
    await node.stop()
    expect(stage('fit')[4]).toBeGreaterThan(0)
    checkAccounts()
    node = undefined
  })

  it('lets no stranger in: what was never sent out does not come back', async () => {
    build(4)
    node = await start(4)
    const probe = new Probe(ENDPOINT, POD, '10.244.0.2', 7777)
    const dropped = () =>
      node?.source
        .counters()[0]
        .stages.find(each => each.name === 'restore')
        ?.drops()
    try {
      // The first ones may find a way that has no carrier yet.
      await until(() => probe.send(300) || dropped() !== 0)
      expect(probe.send(300)).toBe(false)
    } finally {
      probe.close()
    }
    expect(dropped()).toBeGreaterThan(0)
  })
})
