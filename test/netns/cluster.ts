// Nodes with pods behind bridges, gateways and a host outside, all on one fabric: what the tests of steering share.
//
//   pod ─ eth0 ─┐                                        ┌─ gateway (10.99.0.2, .3 …)
//               cni0 ─ node ─ uplink (10.99.0.11 …) ─ fabric
//   pod ─ eth0 ─┘                                        └─ outside (10.99.0.100)
//
// Pods of node n are 10.244.n.2 and on, fd00:244:0:n::2 and on; traffic between nodes is routed, and nobody translates addresses.

import { writeFileSync } from 'node:fs'
import { configSchema } from '../../src/control/config.ts'
import type { StageCounters } from '../../src/memory/counters.ts'
import { type NodeOptions, type RunningNode, startNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'

export interface Pod {
  /** Also the attachment's id. */
  namespace: string
  mac: string
  four: string
  six: string
}

export interface ClusterNode {
  namespace: string
  address: string
  /** The bridge's. */
  gateway4: string
  pods: Pod[]
  /** Attaches all pods, or some. The endpoint is the first gateway, and there are no probes, unless told otherwise; `bypass` beside the configuration's. NB: a worker may wait for a processor longer than heartbeats may fail by default. */
  start(config?: object, options?: Partial<NodeOptions>, bypass?: object[]): Promise<RunningNode>
}

export interface Cluster {
  nodes: ClusterNode[]
  gateways: { namespace: string; address: string }[]
  outside: { namespace: string; address: string }
  remove(): void
}

const quiet = (name: string) => `link set ${name} addrgenmode none up`

/** Builds the namespaces `<prefix>-…`, in place of what a killed test left. */
export function buildCluster(prefix: string, nodes: number, podsEach: number, gateways = 1): Cluster {
  const fabric = `${prefix}-fabric`
  const names = [fabric]
  const make = (name: string) => {
    names.push(`${prefix}-${name}`)
    createNamespace(`${prefix}-${name}`)
    return `${prefix}-${name}`
  }
  deleteNamespace(fabric)
  createNamespace(fabric)
  ipBatch(['link add br0 type bridge mcast_snooping 0', quiet('br0')], fabric)
  const plug = (namespace: string, name: string, address: string) => {
    const port = namespace.slice(prefix.length + 1)
    ipBatch([`link add ${name} netns ${namespace} type veth peer name ${port} netns ${fabric}`])
    ipBatch([`link set ${port} master br0`, quiet(port)], fabric)
    ipBatch([`address add ${address}/24 dev ${name}`, quiet(name)], namespace)
  }
  const fresh = (name: string) => {
    deleteNamespace(`${prefix}-${name}`)
    return make(name)
  }
  const gatewaysMade = Array.from({ length: gateways }, (_, i) => {
    const namespace = fresh(`gateway${i}`)
    const address = `10.99.0.${2 + i}`
    plug(namespace, 'eth0', address)
    return { namespace, address }
  })
  const outside = { namespace: fresh('outside'), address: '10.99.0.100' }
  plug(outside.namespace, 'eth0', outside.address)
  const nodesMade = Array.from({ length: nodes }, (_, n): ClusterNode => {
    const namespace = fresh(`node${n}`)
    const address = `10.99.0.${11 + n}`
    plug(namespace, 'uplink', address)
    inNamespace(namespace, () => {
      writeFileSync('/proc/sys/net/ipv4/ip_forward', '1')
      writeFileSync('/proc/sys/net/ipv4/conf/all/rp_filter', '0')
    })
    const gateway4 = `10.244.${n}.1`
    ipBatch(
      [
        'link add cni0 type bridge mcast_snooping 0',
        `address add ${gateway4}/24 dev cni0`,
        `address add fd00:244:0:${n}::1/64 dev cni0 nodad`,
        quiet('cni0'),
        ...Array.from({ length: nodes }, (_, other) => other)
          .filter(other => other !== n)
          .map(other => `route add 10.244.${other}.0/24 via 10.99.0.${11 + other}`),
      ],
      namespace,
    )
    const pods = Array.from({ length: podsEach }, (_, i): Pod => {
      const pod = fresh(`pod${n}-${i}`)
      const mac = `02:00:00:0${(0xa1 + i) >> 8}:0${n}:${((0xa1 + i) & 255).toString(16).padStart(2, '0')}`
      const [four, six] = [`10.244.${n}.${2 + i}`, `fd00:244:0:${n}::${(2 + i).toString(16)}`]
      ipBatch([`link add eth0 netns ${pod} address ${mac} type veth peer name p${i} netns ${namespace}`])
      ipBatch([`link set p${i} master cni0`, quiet(`p${i}`)], namespace)
      ipBatch(
        [
          `address add ${four}/24 dev eth0`,
          `address add ${six}/64 dev eth0 nodad`,
          quiet('eth0'),
          `route add default via ${gateway4}`,
        ],
        pod,
      )
      return { namespace: pod, mac, four, six }
    })
    const start = (config: object = {}, options: Partial<NodeOptions> = {}, bypass: object[] = []) => {
      const tunnel = { vni: 77, local: address, remote: gatewaysMade[0].address }
      const parsed = configSchema.parse({ tunnel, heartbeatLimitMs: 5000, ...config })
      return startNode({
        config: { ...parsed, bypass: [...parsed.bypass, ...bypass] },
        ...{ namespace, uplink: 'uplink', probe: { intervalMs: 0, limitMs: 0 } },
        pods: pods.map(pod => ({ id: pod.namespace, namespace: pod.namespace })),
        ...options,
      })
    }
    return { namespace, address, gateway4, pods, start }
  })
  ipBatch(
    nodesMade.map(({ address }, n) => `route add 10.244.${n}.0/24 via ${address}`),
    outside.namespace,
  )
  return {
    nodes: nodesMade,
    gateways: gatewaysMade,
    outside,
    remove: () => names.forEach(deleteNamespace),
  }
}

/** The stages of all workers of a node or gateway, the gates too, that have this name. */
export function stagesOf({ source }: Pick<RunningNode, 'source'>, name: string): StageCounters[] {
  return source.counters().flatMap(({ stages }) => stages.filter(stage => stage.name === name))
}

/** Waits until a condition holds, 10 s at most, and looks again every few ms. */
export async function until(condition: () => boolean | Promise<boolean>, what = 'it'): Promise<void> {
  const end = Date.now() + 10_000
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`${what} never came to pass`)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}
