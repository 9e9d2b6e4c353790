// Kubernetes NetworkPolicy (networking.k8s.io/v1), whole.

import { z } from 'zod'
import { integer, oneOf, section, such, text } from '../../control/yaml.ts'
import type { Party } from './inventory.ts'
import { DIRECTIONS, inBlock, isBlock, isPortName, isPortNumber, type PodPolicy, partyInBlock } from './model.ts'
import { type Selector, selector, selects } from './selector.ts'

const block = () => text('a CIDR block like 10.0.0.0/8 or fd00::/8', isBlock)

const ipBlock = section({ cidr: block(), except: z.array(block(), { error: 'allowed: a list' }).default([]) }).refine(
  ({ cidr, except }) => except.every(each => inBlock(each.split('/')[0], cidr)),
  { path: ['except'], error: 'allowed: blocks within cidr' },
)

const peer = section({
  podSelector: selector.optional(),
  namespaceSelector: selector.optional(),
  ipBlock: ipBlock.optional(),
}).refine(
  ({ podSelector, namespaceSelector, ipBlock }) =>
    (ipBlock === undefined) === (podSelector !== undefined || namespaceSelector !== undefined),
  { error: 'allowed: either ipBlock, or podSelector and namespaceSelector, or one of these' },
)

const port = section({
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

const ingress = section({ from: list(peer), ports: list(port) })
const egress = section({ to: list(peer), ports: list(port) })

/** The schema of the whole object. */
export const networkPolicy = section({
  apiVersion: z.literal('networking.k8s.io/v1', { error: 'allowed: networking.k8s.io/v1' }),
  kind: z.literal('NetworkPolicy'),
  metadata: z.looseObject({ name: z.string(), namespace: z.string().default('default') }),
  spec: section({
    podSelector: selector.prefault({}),
    policyTypes: z.array(oneOf(['Ingress', 'Egress']), { error: 'allowed: a list of Ingress, Egress' }).optional(),
    ingress: z.array(ingress, { error: 'allowed: a list' }).optional(),
    egress: z.array(egress, { error: 'allowed: a list' }).optional(),
  }),
})

type Manifest = z.output<typeof networkPolicy>
type Peer = z.output<typeof peer>

/** What the object means; `where` names its origin. */
export function fromNetworkPolicy({ metadata, spec }: Manifest, where: string): PodPolicy {
  const { namespace } = metadata
  const name = `NetworkPolicy ${namespace}/${metadata.name}`
  // Egress is restricted by default only where egress rules stand (NetworkPolicySpec.policyTypes).
  const types = spec.policyTypes ?? (spec.egress === undefined ? ['Ingress'] : ['Ingress', 'Egress'])
  const isolates = { ingress: types.includes('Ingress'), egress: types.includes('Egress') }
  const rules = DIRECTIONS.filter(direction => isolates[direction]).flatMap(direction => {
    const entries =
      direction === 'ingress'
        ? spec.ingress?.map(({ from, ports }) => ({ peers: from, ports }))
        : spec.egress?.map(({ to, ports }) => ({ peers: to, ports }))
    return (entries ?? []).map(({ peers, ports }, i) => ({
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
    rules,
  }
}

function isPeer({ podSelector, namespaceSelector, ipBlock }: Peer, party: Party, namespace: string): boolean {
  if (ipBlock !== undefined)
    return partyInBlock(party, ipBlock.cidr) && !ipBlock.except.some(each => partyInBlock(party, each))
  const { pod } = party
  if (pod === undefined) return false
  const inNamespace =
    namespaceSelector === undefined ? pod.namespace === namespace : selects(namespaceSelector, pod.namespaceLabels)
  return inNamespace && selects(podSelector ?? EVERYTHING, pod.labels)
}

const EVERYTHING: Selector = { matchLabels: {}, matchExpressions: [] }
