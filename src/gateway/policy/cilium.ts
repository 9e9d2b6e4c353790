// CiliumNetworkPolicy (cilium.io/v2): what Detour can enforce of it. Everything else in such an object is an error.

import { z } from 'zod'
import { oneOf, section, such, text, yesNo } from '../../control/yaml.ts'
import { compileHttpRule } from './http.ts'
import { type Labels, type Party, type Pod, podName } from './inventory.ts'
import {
  DIRECTIONS,
  type Direction,
  type HttpRule,
  inBlock,
  isBlock,
  isPortName,
  isPortNumber,
  type PodPolicy,
  type PolicyRule,
  type PortRule,
  partyInBlock,
} from './model.ts'
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
const block = () => text('a CIDR block like 10.0.0.0/8 or fd00::/8', isBlock)

const endpoints = selector.transform(unprefixed).refine(one => keysOf(one).every(key => !key.startsWith('reserved:')), {
  error: 'allowed: labels of pods; for reserved ones use entities',
})

const cidrSet = section({ cidr: block(), except: z.array(block(), { error: 'allowed: a list' }).default([]) }).refine(
  ({ cidr, except }) => except.every(each => inBlock(each.split('/')[0], cidr)),
  { path: ['except'], error: 'allowed: blocks within cidr' },
)

const http = section({
  method: z.string().optional(),
  path: z.string().optional(),
  host: z.string().optional(),
  headers: words('Name: value'),
  headerMatches: z.array(section({ name: z.string(), value: z.string() }), { error: 'allowed: a list' }).default([]),
}).transform((rule, context): HttpRule => {
  try {
    return compileHttpRule(rule)
  } catch (error) {
    context.addIssue({ code: 'custom', message: (error as Error).message })
    return z.NEVER
  }
})

const port = section({
  port: such<number | string>(
    'a port from 0 to 65535, or the name of a container port',
    value => value === '0' || value === 0 || isPortNumber(Number(value)) || isPortName(value),
  ),
  protocol: oneOf(['TCP', 'UDP', 'SCTP', 'ANY']).default('ANY'),
  endPort: such<number>('a port that is not below port', isPortNumber).optional(),
}).transform(({ port, protocol, endPort }): PortRule => {
  const number = Number(port)
  return {
    protocol: protocol === 'ANY' ? undefined : protocol,
    // 0 stands for every port.
    port: number === 0 ? undefined : Number.isNaN(number) ? port : number,
    endPort,
  }
})

const portsOf = <Shape extends z.ZodRawShape>(more: Shape) =>
  z
    .array(section({ ports: z.array(port, { error: 'allowed: a list' }).default([]), ...more }), {
      error: 'allowed: a list',
    })
    .optional()

const denied = portsOf({})
const allowed = portsOf({ rules: section({ http: list(http) }).optional() })

const from = {
  fromEndpoints: list(endpoints),
  fromCIDR: list(block()),
  fromCIDRSet: list(cidrSet),
  fromEntities: list(oneOf(ENTITIES)),
}
const to = {
  toEndpoints: list(endpoints),
  toCIDR: list(block()),
  toCIDRSet: list(cidrSet),
  toEntities: list(oneOf(ENTITIES)),
}

/** A rule says in one way who is meant, at most (Cilium refuses the same). */
function rule<Shape extends z.ZodRawShape>(who: object, shape: Shape) {
  const ways = Object.keys(who)
  return section(shape).refine(given => ways.filter(way => Object.hasOwn(given as object, way)).length <= 1, {
    error: `allowed: one of ${ways.join(', ')}`,
  })
}

const spec = section({
  description: z.string().optional(),
  endpointSelector: endpoints,
  ingress: list(rule(from, { ...from, toPorts: allowed })),
  ingressDeny: list(rule(from, { ...from, toPorts: denied })),
  egress: list(rule(to, { ...to, toPorts: allowed })),
  egressDeny: list(rule(to, { ...to, toPorts: denied })),
  enableDefaultDeny: section({ ingress: yesNo().optional(), egress: yesNo().optional() }).prefault({}),
})

/** The schema of the whole object. */
export const ciliumNetworkPolicy = section({
  apiVersion: z.literal('cilium.io/v2', { error: 'allowed: cilium.io/v2' }),
  kind: z.literal('CiliumNetworkPolicy'),
  metadata: z.looseObject({ name: z.string(), namespace: z.string().default('default') }),
  spec: spec.optional(),
  specs: z.array(spec, { error: 'allowed: a list' }).optional(),
}).refine(({ spec, specs }) => (spec === undefined) !== (specs === undefined), {
  error: 'allowed: either spec or specs',
})

type Manifest = z.output<typeof ciliumNetworkPolicy>

/** One rule, whichever direction and sign. */
interface Entry {
  endpoints?: Selector[]
  cidr?: string[]
  cidrSet?: z.output<typeof cidrSet>[]
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
      rules,
    }
  })
}

type Ingress = NonNullable<z.output<typeof spec>['ingress']>[number]
type Egress = NonNullable<z.output<typeof spec>['egress']>[number]

const ingressEntry = (rule: Ingress): Entry => ({
  ...{ endpoints: rule.fromEndpoints, cidr: rule.fromCIDR, cidrSet: rule.fromCIDRSet, entities: rule.fromEntities },
  toPorts: rule.toPorts,
})

const egressEntry = (rule: Egress): Entry => ({
  ...{ endpoints: rule.toEndpoints, cidr: rule.toCIDR, cidrSet: rule.toCIDRSet, entities: rule.toEntities },
  toPorts: rule.toPorts,
})

/** The rules that an entry stands for, one for each entry of toPorts: each has its own requests. */
function ruleOf(entry: Entry, namespace: string, direction: Direction, deny: boolean, name: string): PolicyRule[] {
  const { endpoints, cidr, cidrSet, entities, toPorts } = entry
  const nobodyNamed = [endpoints, cidr, cidrSet, entities].every(list => list === undefined)
  // An empty rule allows nothing: it is how a policy says no more than "default deny".
  if (nobodyNamed && toPorts === undefined) return []
  const peer = (party: Party, pod: Pod) =>
    nobodyNamed ||
    (endpoints ?? []).some(one => isEndpoint(one, party, namespace)) ||
    // Blocks are for who has no identity in the cluster.
    (party.pod === undefined &&
      ((cidr ?? []).some(one => partyInBlock(party, one)) ||
        (cidrSet ?? []).some(
          one => partyInBlock(party, one.cidr) && !one.except.some(except => partyInBlock(party, except)),
        ))) ||
    (entities ?? []).some(one => isEntity(one, party, pod))
  const parts = toPorts ?? [undefined]
  return parts.map((part, i) => ({
    name: parts.length === 1 ? name : `${name}.toPorts[${i}]`,
    direction,
    deny,
    peer,
    ports: part === undefined || part.ports.length === 0 ? undefined : part.ports,
    http: part?.rules?.http,
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

/** A pod's labels as Cilium's selectors know them. */
function labelsOf(pod: Pod): Labels {
  const ofNamespace = Object.entries(pod.namespaceLabels).map(([key, value]) => [`${NAMESPACE_LABEL}${key}`, value])
  return {
    ...pod.labels,
    ...Object.fromEntries(ofNamespace),
    [NAMESPACE]: pod.namespace,
    [SERVICE_ACCOUNT]: pod.serviceAccount,
  }
}

/** Without the sources `k8s:` and `any:`, which do not tell labels apart here. */
function unprefixed({ matchLabels, matchExpressions }: Selector): Selector {
  const bare = (key: string) => key.replace(/^(k8s|any)[:.]/, '')
  return {
    matchLabels: Object.fromEntries(Object.entries(matchLabels).map(([key, value]) => [bare(key), value])),
    matchExpressions: matchExpressions.map(one => ({ ...one, key: bare(one.key) })),
  }
}
