// Policies at work: reads manifests, and says of a flow whether it is allowed and by which rule. A flow must be allowed to
// leave where it comes from and to arrive where it goes.

import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { checkValue, readYamlDocuments } from '../../control/yaml.ts'
import { DetourError } from '../../errors.ts'
import { ciliumNetworkPolicy, fromCiliumNetworkPolicy } from './cilium.ts'
import type { Party, Pod } from './inventory.ts'
import {
  type Direction,
  type FlowProtocol,
  type HttpRequest,
  type HttpRule,
  type PodPolicy,
  type PolicyRule,
  portMatches,
} from './model.ts'
import { fromNetworkPolicy, networkPolicy } from './network-policy.ts'

const KINDS: Record<string, (value: unknown, where: string) => PodPolicy[]> = {
  NetworkPolicy: (value, where) => [fromNetworkPolicy(checkValue(networkPolicy, value, where), where)],
  CiliumNetworkPolicy: (value, where) => fromCiliumNetworkPolicy(checkValue(ciliumNetworkPolicy, value, where), where),
}

/** What a document of a file holds, and its name for people. */
export interface ManifestDocument {
  value: unknown
  where: string
}

/** Reads the documents of files and directories (`.yaml`, `.yml`, `.json`); throws DetourError. */
export function readManifests(paths: readonly string[]): ManifestDocument[] {
  return paths.flatMap(manifestFiles).flatMap(file => readYamlDocuments(file))
}

/** Reads policies; throws DetourError with file, document and field. */
export function readPolicies(paths: readonly string[]): PodPolicy[] {
  return policiesOf(readManifests(paths))
}

/** What documents mean; throws as `readPolicies`. */
export function policiesOf(documents: readonly ManifestDocument[]): PodPolicy[] {
  const policies = documents.flatMap(({ value, where }) => {
    const { kind, items } = value as { kind?: unknown; items?: unknown }
    const isList = typeof kind === 'string' && kind.endsWith('List') && Array.isArray(items)
    const objects = isList
      ? items.map((item, i) => ({ item, at: `${where}, items[${i}]` }))
      : [{ item: value, at: where }]
    return objects.flatMap(({ item, at }) => understand(item, at))
  })
  const places = new Map<string, string>()
  for (const { name, where } of policies) {
    const other = places.get(name)
    // A cluster has one of them, and which cannot be told: both together could allow more than either.
    if (other !== undefined) throw new DetourError('bad-config', `${where}: ${name} stands in ${other}, too`)
    places.set(name, where)
  }
  return policies
}

function understand(value: unknown, where: string): PodPolicy[] {
  const { kind } = (value ?? {}) as { kind?: unknown }
  if (typeof kind === 'string' && Object.hasOwn(KINDS, kind)) return KINDS[kind](value, where)
  throw new DetourError(
    'bad-config',
    `${where}: kind ${JSON.stringify(kind) ?? 'is missing'}; allowed: ${Object.keys(KINDS).join(', ')}`,
  )
}

function manifestFiles(path: string): string[] {
  let isDirectory: boolean
  try {
    isDirectory = statSync(path).isDirectory()
  } catch (error) {
    throw new DetourError('not-found', `${path}: cannot be read (${(error as Error).message})`, { cause: error })
  }
  if (!isDirectory) return [path]
  const names = readdirSync(path, { recursive: true, encoding: 'utf8' }).sort()
  const files = names.filter(name => /\.(ya?ml|json)$/.test(name)).map(name => join(path, name))
  if (files.length > 0) return files
  throw new DetourError('bad-config', `${path}: no .yaml, .yml or .json file in it`)
}

/** A flow as a policy sees its first packet. */
export interface FlowQuestion {
  from: Party
  to: Party
  protocol: FlowProtocol
  /** At the destination. */
  port: number
  /** The request, where one is known. */
  request?: HttpRequest
}

/** What one end says of a flow. */
export interface HalfAnswer {
  /** `request`: it depends on the HTTP request, of which nothing was said. */
  verdict: 'allow' | 'deny' | 'request'
  reason: string
  /** The rule, where one decided. */
  rule?: string
  /** Requests of which one must match. */
  http: readonly HttpRule[]
}

export interface Answer {
  verdict: HalfAnswer['verdict']
  /** Of the sender's policies and of the receiver's. */
  egress: HalfAnswer
  ingress: HalfAnswer
}

/** Policies, with what they mean for each pod they were asked about. */
export class Policies {
  readonly all: readonly PodPolicy[]
  private readonly known = new Map<Pod, Record<Direction, Side>>()

  constructor(all: readonly PodPolicy[]) {
    this.all = all
  }

  /** Whether a flow may be. */
  decide(question: FlowQuestion): Answer {
    const { from, to } = question
    const own = from.pod !== undefined && from.pod === to.pod
    const egress = own ? SELF : this.half('egress', from, to, question)
    const ingress = own ? SELF : this.half('ingress', to, from, question)
    const worst = (['deny', 'request', 'allow'] as const).find(v => egress.verdict === v || ingress.verdict === v)!
    return { verdict: worst, egress, ingress }
  }

  private half(direction: Direction, near: Party, far: Party, question: FlowQuestion): HalfAnswer {
    const { pod } = near
    if (pod === undefined) return allow('not a pod of the inventory')
    const { isolated, sparesNode, byPort, anyPort, policies } = this.of(pod)[direction]
    const candidates = [...(byPort.get(question.port) ?? []), ...anyPort]
    const matching = candidates.filter(rule => covers(rule, far, pod, question))
    const denying = matching.find(rule => rule.deny)
    if (denying !== undefined) return { verdict: 'deny', reason: denying.name, rule: denying.name, http: [] }
    if (!isolated) return allow(policies === 0 ? 'no policy selects it' : `no policy restricts its ${direction}`)
    if (sparesNode && far.pod === undefined && pod.hostAddresses.includes(far.address))
      return allow('its own node is always allowed')
    const allowing = matching.filter(rule => !rule.deny)
    const whole = allowing.find(rule => rule.http === undefined || rule.http.length === 0)
    if (whole !== undefined) return { ...allow(whole.name), rule: whole.name }
    if (allowing.length === 0) return { verdict: 'deny', reason: `no rule allows this ${direction}`, http: [] }
    return byRequest(allowing, question.request)
  }

  /** What applies to a pod, found once. */
  private of(pod: Pod): Record<Direction, Side> {
    const found = this.known.get(pod)
    if (found !== undefined) return found
    const selecting = this.all.filter(policy => policy.selects(pod))
    const side = (direction: Direction): Side => {
      const rules = selecting.flatMap(policy => policy.rules.filter(rule => rule.direction === direction))
      const byPort = new Map<number, PolicyRule[]>()
      for (const rule of rules) {
        for (const port of singlePorts(rule) ?? []) {
          const same = byPort.get(port)
          if (same === undefined) byPort.set(port, [rule])
          else same.push(rule)
        }
      }
      return {
        isolated: selecting.some(policy => policy.isolates[direction]),
        sparesNode: selecting.some(policy => policy.isolates[direction] && policy.sparesNode[direction]),
        byPort,
        anyPort: rules.filter(rule => singlePorts(rule) === undefined),
        policies: selecting.length,
      }
    }
    const sides = { ingress: side('ingress'), egress: side('egress') }
    this.known.set(pod, sides)
    return sides
  }
}

/** What applies to a pod in one direction: rules that name ports by number, and those that may be about any. */
interface Side {
  isolated: boolean
  sparesNode: boolean
  byPort: Map<number, PolicyRule[]>
  anyPort: PolicyRule[]
  policies: number
}

/** The ports of a rule where all are given by number; undefined where there are others, or none. */
function singlePorts({ ports }: PolicyRule): Set<number> | undefined {
  const numbers = ports?.map(({ port, endPort }) => (typeof port === 'number' && endPort === undefined ? port : -1))
  return numbers === undefined || numbers.includes(-1) ? undefined : new Set(numbers)
}

const allow = (reason: string): HalfAnswer => ({ verdict: 'allow', reason, http: [] })
const SELF = allow('a pod always reaches itself')

function covers(rule: PolicyRule, far: Party, pod: Pod, { protocol, port, to }: FlowQuestion): boolean {
  return (
    rule.peer(far, pod) && (rule.ports === undefined || rule.ports.some(each => portMatches(each, protocol, port, to)))
  )
}

function byRequest(rules: PolicyRule[], request: HttpRequest | undefined): HalfAnswer {
  const http = rules.flatMap(rule => rule.http ?? [])
  const first = rules[0].name
  const all = http.map(one => one.text).join(', or ')
  if (request === undefined) return { verdict: 'request', reason: `${first}: only ${all}`, rule: first, http }
  const rule = rules.find(rule => rule.http?.some(one => one.matches(request)))
  if (rule !== undefined) return { verdict: 'allow', reason: rule.name, rule: rule.name, http }
  return { verdict: 'deny', reason: `${first}: the request is not ${all}`, rule: first, http }
}
