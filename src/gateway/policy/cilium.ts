// CiliumNetworkPolicy (cilium.io/v2): what Detour can enforce of it. Everything else in such an object is an error.

import { z } from 'zod'
import { oneOf, such, yesNo } from '../../control/yaml.ts'
import { compileHttpRule } from './http.ts'
import { type Labels, type Party, type Pod, podName } from './inventory.ts'
import {
  type Block,
  DIRECTIONS,
  type Direction,
  type HttpRule,
  isPortName,
  isPortNumber,
  type PodPolicy,
  type PolicyRule,
  type PortRule,
} from './model.ts'
import { block, blockWithout, fields } from './schema.ts'
import { keysOf, type Selector, selector, selects } from './selector.ts'

const NAMESPACE = 'io.kubernetes.pod.namespace'
const NAMESPACE_LABEL = 'io.cilium.k8s.namespace.labels.'
const SERVICE_ACCOUNT = 'io.cilium.k8s.policy.serviceaccount'

/** Entities that an inventory can tell. */
const ENTITIES = ['all', 'world', 'world-ipv4', 'world-ipv6', 'cluster', 'host', 'remote-node', 'none'] as const
type Entity = (typeof ENTITIES)[number]

const list = <T extends z.ZodType>(of: T) => z.array(of, { error: 'allowed: a list' }).optional()
const words = (what: string) =>
  z.array(z.string({ error: `allowed: ${what}` }), { error: 'allowed: a list' }).default([])

const endpoints = selector.transform(unprefixed).refine(one => keysOf(one).every(key => !key.startsWith('reserved:')), {
  error: 'allowed: labels of pods; for reserved ones use entities',
})

const http = fields({
  method: z.string().optional(),
  path: z.string().optional(),
  host: z.string().optional(),
  headers: words('Name: value'),
  headerMatches: z.array(fields({ name: z.string(), value: z.string() }), { error: 'allowed: a list' }).default([]),
}).transform((rule, context): HttpRule => {
  try {
    return compileHttpRule(rule)
  } catch (error) {
    context.addIssue({ code: 'custom', message: (error as Error).message })
    return z.NEVER
  }
})

const port = fields({
  port: such<number | string>(
    'a port from 0 to 65535, or the name of a container port',
    value => isPortNumber(numberOf(value)) || numberOf(value) === 0 || isPortName(value),
  ).transform(value => numberOf(value) ?? value),
  protocol: oneOf(['TCP', 'UDP', 'SCTP', 'ANY']).default('ANY'),
  endPort: such<number>('a port', isPortNumber).optional(),
})
  .refine(({ port, endPort }) => endPort === undefined || typeof port === 'string' || endPort >= port, {
    path: ['endPort'],
    error: 'allowed: a port that is not below port',
  })
  .transform(
    ({ port, protocol, endPort }): PortRule => ({
      protocol: protocol === 'ANY' ? undefined : protocol,
      // 0 stands for every port.
      port: port === 0 ? undefined : port,
      endPort,
    }),
  )

// NB: 0x50 and 1e2 are names.
const numberOf = (port: unknown) => (typeof port !== 'object' && /^\d{1,5}$/.test(`${port}`) ? Number(port) : undefined)

const ports = z.array(port, { error: 'allowed: a list' }).default([])

const denied = list(fields({ ports }))
const allowed = list(
  fields({ ports, rules: fields({ http: list(http) }).optional() }).refine(
    ({ ports, rules }) => rules?.http === undefined || ports.every(mayLimit),
    { path: ['rules'], error: 'allowed beside ports of TCP other than 0' },
  ),
)

/** Whether there may be rules about a port's requests (PortRule.sanitize in Cilium's pkg/policy/api). */
function mayLimit({ protocol = 'TCP', port }: PortRule): boolean {
  return protocol === 'TCP' && port !== undefined
}

const from = {
  fromEndpoints: list(endpoints),
  fromCIDR: list(block),
  fromCIDRSet: list(blockWithout),
  fromEntities: list(oneOf(ENTITIES)),
}
const to = {
  toEndpoints: list(endpoints),
  toCIDR: list(block),
  toCIDRSet: list(blockWithout),
  toEntities: list(oneOf(ENTITIES)),
}

/** A rule says in one way who is meant, at most (Cilium refuses the same). */
function rule<Shape extends z.ZodRawShape>(who: object, shape: Shape) {
  const ways = Object.keys(who)
  return fields(shape).refine(given => ways.filter(way => Object.hasOwn(given as object, way)).length <= 1, {
    error: `allowed: one of ${ways.join(', ')}`,
  })
}

const spec = fields({
  description: z.string().optional(),
  endpointSelector: endpoints,
  ingress: list(rule(from, { ...from, toPorts: allowed })),
  ingressDeny: list(rule(from, { ...from, toPorts: denied })),
  egress: list(rule(to, { ...to, toPorts: allowed })),
  egressDeny: list(rule(to, { ...to, toPorts: denied })),
  enableDefaultDeny: fields({ ingress: yesNo().optional(), egress: yesNo().optional() }).prefault({}),
})

/** The schema of the whole object. */
export const ciliumNetworkPolicy = fields({
  apiVersion: z.literal('cilium.io/v2', { error: 'allowed: cilium.io/v2' }),
  kind: z.literal('CiliumNetworkPolicy'),
  metadata: z.looseObject({ name: z.string(), namespace: z.string().default('default') }),
  spec: spec.optional(),
  specs: z.array(spec, { error: 'allowed: a list' }).optional(),
  // What a cluster has to say of it.
  status: z.unknown().optional(),
}).refine(({ spec, specs }) => (spec === undefined) !== (specs === undefined), {
  error: 'allowed: either spec or specs',
})

type Manifest = z.output<typeof ciliumNetworkPolicy>

/** One rule, whichever direction and sign. */
interface Entry {
  endpoints?: Selector[]
  blocks?: Block[]
  entities?: Entity[]
  toPorts?: { ports: PortRule[]; rules?: { http?: HttpRule[] } }[]
}

/** What the object means, a policy for each of its specs; `where` names its origin. */
export function fromCiliumNetworkPolicy({ metadata, spec, specs }: Manifest, where: string): PodPolicy[] {
  const { namespace } = metadata
  const name = `CiliumNetworkPolicy ${podName({ namespace, name: metadata.name })}`
  return (specs ?? [spec!]).map((one, i) => {
    const at = specs === undefined ? name : `${name} specs[${i}]`
    const entries = {
      ingress: { allow: (one.ingress ?? []).map(ingressEntry), deny: (one.ingressDeny ?? []).map(ingressEntry) },
      egress: { allow: (one.egress ?? []).map(egressEntry), deny: (one.egressDeny ?? []).map(egressEntry) },
    }
    const isolates = (direction: Direction) => {
      const { allow, deny } = entries[direction]
      return one.enableDefaultDeny[direction] ?? allow.length + deny.length > 0
    }
    const rules = DIRECTIONS.flatMap(direction => {
      const { allow, deny } = entries[direction]
      const of = (entry: Entry, isDeny: boolean, i: number) =>
        ruleOf(entry, namespace, direction, isDeny, `${at} (${where}): ${direction}${isDeny ? 'Deny' : ''}[${i}]`)
      return [...deny.flatMap((entry, i) => of(entry, true, i)), ...allow.flatMap((entry, i) => of(entry, false, i))]
    })
    return {
      name: at,
      where,
      selects: pod => pod.namespace === namespace && selects(one.endpointSelector, labelsOf(pod)),
      isolates: { ingress: isolates('ingress'), egress: isolates('egress') },
      // A node reaches its pods (allow-localhost), but they do not reach it.
      sparesNode: { ingress: true, egress: false },
      rules,
    }
  })
}

type Ingress = NonNullable<z.output<typeof spec>['ingress']>[number]
type Egress = NonNullable<z.output<typeof spec>['egress']>[number]

const ingressEntry = (rule: Ingress): Entry => ({
  ...{ endpoints: rule.fromEndpoints, blocks: rule.fromCIDR ?? rule.fromCIDRSet, entities: rule.fromEntities },
  toPorts: rule.toPorts,
})

const egressEntry = (rule: Egress): Entry => ({
  ...{ endpoints: rule.toEndpoints, blocks: rule.toCIDR ?? rule.toCIDRSet, entities: rule.toEntities },
  toPorts: rule.toPorts,
})

/** The rules that an entry stands for, one for each entry of toPorts: each has its own requests. */
function ruleOf(entry: Entry, namespace: string, direction: Direction, deny: boolean, name: string): PolicyRule[] {
  const { endpoints, blocks, entities, toPorts = [] } = entry
  const nobodyNamed = [endpoints, blocks, entities].every(list => list === undefined)
  // An empty rule allows nothing: it is how a policy says no more than "default deny".
  if (nobodyNamed && toPorts.length === 0) return []
  const peer = (party: Party, pod: Pod) =>
    nobodyNamed ||
    (endpoints ?? []).some(one => isEndpoint(one, party, namespace)) ||
    // Blocks are for who has no identity in the cluster, which nodes have (policy-cidr-match-mode).
    (party.pod === undefined && !party.isHost && (blocks ?? []).some(one => one(party.bytes))) ||
    (entities ?? []).some(one => isEntity(one, party, pod))
  if (toPorts.length === 0) return [{ name, direction, deny, peer, ports: undefined, http: undefined }]
  return toPorts.map(({ ports, rules }, i) => ({
    name: toPorts.length === 1 ? name : `${name}.toPorts[${i}]`,
    direction,
    deny,
    peer,
    // Requests are TCP's: a port of any protocol is not open to others for their sake.
    ports: rules?.http?.length ? ports.map(port => ({ ...port, protocol: 'TCP' as const })) : ports,
    http: rules?.http,
  }))
}

function isEndpoint(one: Selector, { pod }: Party, namespace: string): boolean {
  if (pod === undefined) return false
  const anyNamespace = keysOf(one).some(key => key === NAMESPACE || key.startsWith(NAMESPACE_LABEL))
  return (anyNamespace || pod.namespace === namespace) && selects(one, labelsOf(pod))
}

function isEntity(entity: Entity, party: Party, pod: Pod): boolean {
  const world = party.pod === undefined && !party.isHost
  const local = party.pod === undefined && pod.hostAddresses.includes(party.address)
  switch (entity) {
    case 'all':
      return true
    case 'none':
      return false
    case 'cluster':
      return !world
    case 'host':
      return local
    case 'remote-node':
      return party.pod === undefined && party.isHost && !local
    case 'world':
      return world
    case 'world-ipv4':
      return world && !party.address.includes(':')
    case 'world-ipv6':
      return world && party.address.includes(':')
  }
}

const KNOWN = new WeakMap<Pod, Labels>()

/** A pod's labels as Cilium's selectors know them, put together once. */
function labelsOf(pod: Pod): Labels {
  const known = KNOWN.get(pod)
  if (known !== undefined) return known
  const ofNamespace = Object.entries(pod.namespaceLabels).map(([key, value]) => [`${NAMESPACE_LABEL}${key}`, value])
  const labels = {
    ...pod.labels,
    ...Object.fromEntries(ofNamespace),
    [NAMESPACE]: pod.namespace,
    [SERVICE_ACCOUNT]: pod.serviceAccount,
  }
  KNOWN.set(pod, labels)
  return labels
}

/** Without the sources `k8s:` and `any:`, which do not tell labels apart here. */
function unprefixed({ matchLabels, matchExpressions }: Selector): Selector {
  const bare = (key: string) => key.replace(/^(k8s|any)[:.]/, '')
  return {
    matchLabels: Object.fromEntries(Object.entries(matchLabels).map(([key, value]) => [bare(key), value])),
    matchExpressions: matchExpressions.map(one => ({ ...one, key: bare(one.key) })),
  }
}
