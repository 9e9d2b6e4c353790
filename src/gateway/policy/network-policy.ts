// Kubernetes NetworkPolicy (networking.k8s.io/v1), whole.

import { z } from 'zod'
import { integer, oneOf, such } from '../../control/yaml.ts'
import type { Party } from './inventory.ts'
import { DIRECTIONS, isPortName, isPortNumber, type PodPolicy, partyInBlock } from './model.ts'
import { blockWithout, fields } from './schema.ts'
import { type Selector, selector, selects } from './selector.ts'

const peer = fields({
  podSelector: selector.optional(),
  namespaceSelector: selector.optional(),
  ipBlock: blockWithout.optional(),
}).refine(
  ({ podSelector, namespaceSelector, ipBlock }) =>
    (ipBlock === undefined) === (podSelector !== undefined || namespaceSelector !== undefined),
  { error: 'allowed: either ipBlock, or podSelector and namespaceSelector, or one of these' },
)

const port = fields({
  protocol: oneOf(['TCP', 'UDP', 'SCTP']).default('TCP'),
  port: such<number | string>(
    'a port from 1 to 65535, or the name of a container port',
    value => isPortNumber(value) || isPortName(value),
  ).optional(),
  endPort: integer(1, 65535).optional(),
}).refine(({ port, endPort }) => endPort === undefined || (typeof port === 'number' && endPort >= port), {
  path: ['endPort'],
  error: 'allowed beside a numeric port that is not above it',
})

const list = <T extends z.ZodType>(of: T) => z.array(of, { error: 'allowed: a list' }).default([])

const ingress = fields({ from: list(peer), ports: list(port) })
const egress = fields({ to: list(peer), ports: list(port) })

/** The schema of the whole object. */
export const networkPolicy = fields({
  apiVersion: z.literal('networking.k8s.io/v1', { error: 'allowed: networking.k8s.io/v1' }),
  kind: z.literal('NetworkPolicy'),
  metadata: z.looseObject({ name: z.string(), namespace: z.string().default('default') }),
  spec: fields({
    podSelector: selector.prefault({}),
    policyTypes: z.array(oneOf(['Ingress', 'Egress']), { error: 'allowed: a list of Ingress, Egress' }).default([]),
    ingress: list(ingress),
    egress: list(egress),
  }),
  // What a cluster has to say of it.
  status: z.unknown().optional(),
})

type Manifest = z.output<typeof networkPolicy>
type Peer = z.output<typeof peer>

/** What the object means; `where` names its origin. */
export function fromNetworkPolicy({ metadata, spec }: Manifest, where: string): PodPolicy {
  const { namespace } = metadata
  const name = `NetworkPolicy ${namespace}/${metadata.name}`
  // An empty list is none, of either (SetDefaults_NetworkPolicy in Kubernetes' pkg/apis/networking/v1).
  const usual = spec.egress.length === 0 ? ['Ingress'] : ['Ingress', 'Egress']
  const types = spec.policyTypes.length === 0 ? usual : spec.policyTypes
  const isolates = { ingress: types.includes('Ingress'), egress: types.includes('Egress') }
  const rules = DIRECTIONS.filter(direction => isolates[direction]).flatMap(direction => {
    const entries =
      direction === 'ingress'
        ? spec.ingress.map(({ from, ports }) => ({ peers: from, ports }))
        : spec.egress.map(({ to, ports }) => ({ peers: to, ports }))
    return entries.map(({ peers, ports }, i) => ({
      name: `${name} (${where}): ${direction}[${i}]`,
      direction,
      deny: false,
      peer: (party: Party) => peers.length === 0 || peers.some(each => isPeer(each, party, namespace)),
      ports: ports.length === 0 ? undefined : ports,
      http: undefined,
    }))
  })
  return {
    name,
    where,
    selects: pod => pod.namespace === namespace && selects(spec.podSelector, pod.labels),
    isolates,
    // "Traffic to and from the node where a Pod is running is always allowed" (Kubernetes, Network Policies).
    sparesNode: { ingress: true, egress: true },
    rules,
  }
}

function isPeer({ podSelector, namespaceSelector, ipBlock }: Peer, party: Party, namespace: string): boolean {
  if (ipBlock !== undefined) return partyInBlock(party, ipBlock)
  const { pod } = party
  if (pod === undefined) return false
  const inNamespace =
    namespaceSelector === undefined ? pod.namespace === namespace : selects(namespaceSelector, pod.namespaceLabels)
  return inNamespace && selects(podSelector ?? EVERYTHING, pod.labels)
}

const EVERYTHING: Selector = { matchLabels: {}, matchExpressions: [] }
