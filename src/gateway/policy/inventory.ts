// Who is who: pods and namespaces as `kubectl get pods,namespaces -A -o json` prints them, by which a policy's selectors
// become addresses.

import { isIP } from 'node:net'
import ipaddr from 'ipaddr.js'
import { z } from 'zod'
import { checkValue, readYamlDocuments } from '../../control/yaml.ts'
import { DetourError } from '../../errors.ts'

export type Labels = Readonly<Record<string, string>>

/** IP protocols that policies tell apart. */
export type Protocol = 'TCP' | 'UDP' | 'SCTP'

/** A pod, as far as policies can tell. */
export interface Pod {
  readonly namespace: string
  readonly name: string
  readonly labels: Labels
  readonly namespaceLabels: Labels
  readonly serviceAccount: string
  /** IPv4 and IPv6 addresses in ipaddr.js's normal form. */
  readonly addresses: readonly string[]
  /** Of the node it runs on. */
  readonly hostAddresses: readonly string[]
  readonly ports: readonly { name: string; port: number; protocol: Protocol }[]
}

/** `default/web`. */
export const podName = ({ namespace, name }: Pick<Pod, 'namespace' | 'name'>) => `${namespace}/${name}`

/** One end of a flow: a pod, or an address that belongs to none, maybe to a node; and that address, where it is known. */
export type Party =
  | { pod: Pod; bytes?: readonly number[] }
  | { address: string; bytes: readonly number[]; isHost: boolean; pod?: undefined }

const labels = z.record(z.string(), z.string()).default({})
const metadata = z.looseObject({ name: z.string(), namespace: z.string().optional(), labels })
const address = z.custom<string>(value => typeof value === 'string' && isIP(value) !== 0, {
  error: 'allowed: an IPv4 or IPv6 address',
})

// Everything else that the API server tells of these objects says nothing about who they are.
const namespaceObject = z.looseObject({ kind: z.literal('Namespace'), metadata })
const podObject = z.looseObject({
  kind: z.literal('Pod'),
  metadata,
  spec: z
    .looseObject({
      hostNetwork: z.boolean().default(false),
      serviceAccountName: z.string().default('default'),
      containers: z
        .array(
          z.looseObject({
            ports: z
              .array(
                z.looseObject({
                  name: z.string().optional(),
                  containerPort: z.int().min(1).max(65535),
                  protocol: z.enum(['TCP', 'UDP', 'SCTP']).default('TCP'),
                }),
              )
              .default([]),
          }),
        )
        .default([]),
    })
    .prefault({}),
  status: z
    .looseObject({
      phase: z.string().optional(),
      podIP: address.optional(),
      podIPs: z.array(z.looseObject({ ip: address })).optional(),
      hostIP: address.optional(),
      hostIPs: z.array(z.looseObject({ ip: address })).optional(),
    })
    .prefault({}),
})

/** The pods of a cluster, found by name and by address. */
export class Inventory {
  readonly pods: readonly Pod[]
  private readonly byAddress = new Map<string, Pod>()
  private readonly byName = new Map<string, Pod>()
  private readonly hosts = new Set<string>()

  /** `hosts` are addresses of nodes beside those that the pods tell. Throws DetourError when two pods have one name or address. */
  constructor(pods: readonly Pod[], where = 'inventory', hosts: readonly string[] = []) {
    this.pods = pods
    for (const each of hosts) this.hosts.add(each)
    for (const pod of pods) {
      if (this.byName.has(podName(pod))) throw new DetourError('bad-config', `${where}: pod ${podName(pod)} twice`)
      this.byName.set(podName(pod), pod)
      for (const each of pod.hostAddresses) this.hosts.add(each)
      for (const each of pod.addresses) {
        const other = this.byAddress.get(each)
        if (other !== undefined)
          throw new DetourError('bad-config', `${where}: ${podName(pod)} and ${podName(other)} both have ${each}`)
        this.byAddress.set(each, pod)
      }
    }
  }

  pod(name: string): Pod | undefined {
    return this.byName.get(name)
  }

  /** Whose address it is. */
  party(address: string): Party {
    const parsed = ipaddr.process(address)
    const [normal, bytes] = [parsed.toString(), parsed.toByteArray()]
    const pod = this.byAddress.get(normal)
    return pod === undefined ? { address: normal, bytes, isHost: this.hosts.has(normal) } : { pod, bytes }
  }
}

/** Reads an inventory file, JSON or YAML; throws DetourError naming file, object and field. */
export function readInventory(file: string): Inventory {
  return inventoryOf(readYamlDocuments(file))
}

/** The pods of documents, without those of the host's network and those that have ended: they are no policy's business. Throws DetourError. */
export function inventoryOf(documents: readonly { value: unknown; where: string }[]): Inventory {
  const objects = documents.flatMap(({ value, where }) => items(value, where))
  const namespaces = new Map<string, Labels>()
  const pods: z.output<typeof podObject>[] = []
  for (const { value, where } of objects) {
    const { kind } = value as { kind?: unknown }
    if (kind === 'Pod') pods.push(checkValue(podObject, value, where))
    else if (kind === 'Namespace') {
      const { metadata } = checkValue(namespaceObject, value, where)
      namespaces.set(metadata.name, metadata.labels)
    } else throw new DetourError('bad-config', `${where}: kind ${JSON.stringify(kind)}; allowed: Pod, Namespace, List`)
  }
  const living = pods.filter(
    ({ spec, status }) => !spec.hostNetwork && status.phase !== 'Succeeded' && status.phase !== 'Failed',
  )
  return new Inventory(
    living.map(({ metadata, spec, status }) => {
      const { name, namespace = 'default' } = metadata
      // The API server sets this label on every namespace.
      const own = { 'kubernetes.io/metadata.name': namespace }
      return {
        ...{ namespace, name, labels: metadata.labels, namespaceLabels: { ...own, ...namespaces.get(namespace) } },
        serviceAccount: spec.serviceAccountName,
        addresses: addresses(status.podIPs, status.podIP),
        hostAddresses: addresses(status.hostIPs, status.hostIP),
        ports: spec.containers.flatMap(({ ports }) =>
          ports.flatMap(({ name, containerPort, protocol }) =>
            name === undefined ? [] : [{ name, port: containerPort, protocol }],
          ),
        ),
      }
    }),
    documents[0]?.where,
    // Where only pods of the host's network run, there is a node all the same.
    pods.flatMap(({ status }) => addresses(status.hostIPs, status.hostIP)),
  )
}

function items(value: unknown, where: string): { value: unknown; where: string }[] {
  const { kind, items } = value as { kind?: unknown; items?: unknown }
  if (typeof kind !== 'string' || !kind.endsWith('List') || !Array.isArray(items)) return [{ value, where }]
  return items.map((item, i) => ({ value: item ?? {}, where: `${where}, items[${i}]` }))
}

function addresses(many: readonly { ip: string }[] | undefined, one: string | undefined): string[] {
  const all = many?.map(({ ip }) => ip) ?? (one === undefined ? [] : [one])
  return [...new Set(all.map(normalAddress))]
}

/** One spelling for each address. */
export const normalAddress = (text: string) => ipaddr.process(text).toString()
