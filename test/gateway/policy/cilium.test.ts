// CiliumNetworkPolicy by the examples of Cilium's documentation (docs.cilium.io, "Layer 3", "Layer 4", "Layer 7", "Deny policies";
// examples/policies of cilium/cilium), re-expressed as tables of who may reach whom.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Inventory, type Pod } from '../../../src/gateway/policy/inventory.ts'
import type { HttpRequest } from '../../../src/gateway/policy/model.ts'
import { Policies, readPolicies } from '../../../src/gateway/policy/policies.ts'

const pod = (name: string, i: number, labels: Record<string, string>, serviceAccount = 'default'): Pod => ({
  ...{ namespace: name.split('/')[0], name: name.split('/')[1], labels, serviceAccount },
  namespaceLabels: { 'kubernetes.io/metadata.name': name.split('/')[0], tier: name.split('/')[0] },
  addresses: [`10.1.0.${i}`],
  hostAddresses: ['192.0.2.1'],
  ports: [{ name: 'http', port: 8080, protocol: 'TCP' }],
})

const INVENTORY = new Inventory([
  pod('default/backend', 1, { role: 'backend' }),
  pod('default/frontend', 2, { role: 'frontend' }),
  pod('default/other', 3, { app: 'other' }, 'leia'),
  pod('prod/frontend', 4, { role: 'frontend' }),
  { ...pod('prod/elsewhere', 5, {}), hostAddresses: ['192.0.2.2'] },
])

describe('CiliumNetworkPolicy', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-cilium-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  function read(...specs: object[]): Policies {
    const file = join(folder, 'cilium.yaml')
    const objects = specs.map((spec, i) => ({
      apiVersion: 'cilium.io/v2',
      kind: 'CiliumNetworkPolicy',
      metadata: { name: `p${i}`, namespace: 'default' },
      spec,
    }))
    writeFileSync(file, objects.map(object => JSON.stringify(object)).join('\n---\n'))
    return new Policies(readPolicies([file]))
  }

  const party = (name: string) => (name.includes('/') ? { pod: INVENTORY.pod(name)! } : INVENTORY.party(name))

  const decide = (policies: Policies, from: string, to: string, port = 80, request?: HttpRequest) =>
    policies.decide({ from: party(from), to: party(to), protocol: 'TCP', port, request }).verdict

  const backend = { endpointSelector: { matchLabels: { role: 'backend' } } }
  const everyone = { endpointSelector: {} }

  it.each([
    {
      name: 'one label may reach another, of the same namespace',
      spec: { ...backend, ingress: [{ fromEndpoints: [{ matchLabels: { role: 'frontend' } }] }] },
      allowed: ['default/frontend > default/backend', 'default/backend > 203.0.113.1', '192.0.2.1 > default/backend'],
      denied: ['default/other > default/backend', 'prod/frontend > default/backend', '203.0.113.1 > default/backend'],
    },
    {
      name: 'everybody of the namespace may, by an empty selector',
      spec: { ...backend, ingress: [{ fromEndpoints: [{}] }] },
      allowed: ['default/frontend > default/backend', 'default/other > default/backend'],
      denied: ['prod/frontend > default/backend', '203.0.113.1 > default/backend'],
    },
    {
      name: 'an empty rule is default deny',
      spec: { ...backend, ingress: [{}] },
      allowed: ['default/backend > default/other'],
      denied: ['default/frontend > default/backend', '203.0.113.1 > default/backend'],
    },
    {
      name: 'an empty list selects nobody',
      spec: { ...backend, ingress: [{ fromEndpoints: [] }] },
      allowed: [],
      denied: ['default/frontend > default/backend', '203.0.113.1 > default/backend'],
    },
    {
      name: 'no rule at all restricts nothing',
      spec: { ...backend, ingress: [] },
      allowed: ['default/frontend > default/backend', '203.0.113.1 > default/backend'],
      denied: [],
    },
    {
      name: 'a pod of another namespace, which the selector names',
      spec: {
        ...backend,
        ingress: [
          { fromEndpoints: [{ matchLabels: { 'k8s:io.kubernetes.pod.namespace': 'prod', 'any:role': 'frontend' } }] },
        ],
      },
      allowed: ['prod/frontend > default/backend'],
      denied: ['default/frontend > default/backend', 'prod/elsewhere > default/backend'],
    },
    {
      name: 'namespaces by their labels',
      spec: {
        ...backend,
        ingress: [{ fromEndpoints: [{ matchLabels: { 'io.cilium.k8s.namespace.labels.tier': 'prod' } }] }],
      },
      allowed: ['prod/frontend > default/backend', 'prod/elsewhere > default/backend'],
      denied: ['default/frontend > default/backend'],
    },
    {
      name: 'a service account',
      spec: {
        ...backend,
        ingress: [{ fromEndpoints: [{ matchLabels: { 'io.cilium.k8s.policy.serviceaccount': 'leia' } }] }],
      },
      allowed: ['default/other > default/backend'],
      denied: ['default/frontend > default/backend'],
    },
    {
      name: 'blocks, which pods never belong to',
      spec: {
        ...backend,
        egress: [{ toCIDR: ['20.1.1.1/32'] }, { toCIDRSet: [{ cidr: '10.0.0.0/8', except: ['10.96.0.0/12'] }] }],
      },
      allowed: ['default/backend > 20.1.1.1', 'default/backend > 10.2.0.1'],
      denied: ['default/backend > 20.1.1.2', 'default/backend > 10.96.0.1', 'default/backend > default/other'],
    },
    {
      name: 'the entity world',
      spec: { ...backend, egress: [{ toEntities: ['world'] }] },
      allowed: ['default/backend > 203.0.113.1', 'default/backend > 2001:db8::1'],
      denied: ['default/backend > default/other', 'default/backend > 192.0.2.2'],
    },
    {
      name: 'the entities cluster and remote-node',
      spec: { ...backend, ingress: [{ fromEntities: ['cluster'] }], egress: [{ toEntities: ['remote-node'] }] },
      allowed: ['prod/frontend > default/backend', '192.0.2.2 > default/backend', 'default/backend > 192.0.2.2'],
      denied: ['203.0.113.1 > default/backend', 'default/backend > default/other'],
    },
    {
      name: 'a port, to anybody',
      spec: { ...backend, egress: [{ toPorts: [{ ports: [{ port: '80', protocol: 'TCP' }] }] }] },
      allowed: ['default/backend > 203.0.113.1', 'default/backend > default/other'],
      denied: ['default/backend > default/other:81'],
    },
    {
      name: 'a range of ports, and a named one',
      spec: {
        ...everyone,
        egress: [{ toPorts: [{ ports: [{ port: '80', endPort: 90 }, { port: 'http' }] }] }],
      },
      allowed: ['default/backend > default/other:85', 'default/backend > default/other:8080'],
      denied: ['default/backend > default/other:91', 'default/backend > 203.0.113.1:8080'],
    },
    {
      name: 'blocks, which nodes do not belong to either',
      spec: { ...backend, ingress: [{ fromCIDR: ['0.0.0.0/0'] }], egress: [{ toCIDR: ['192.0.2.0/24'] }] },
      allowed: ['203.0.113.1 > default/backend', '192.0.2.1 > default/backend', 'default/backend > 192.0.2.9'],
      denied: ['192.0.2.2 > default/backend', 'default/backend > 192.0.2.2'],
    },
    {
      name: 'its own node reaches a pod, which does not reach it',
      spec: { ...backend, ingress: [{}], egress: [{}] },
      allowed: ['192.0.2.1 > default/backend'],
      denied: ['default/backend > 192.0.2.1', '192.0.2.2 > default/backend'],
    },
    {
      name: 'its own node does not reach a pod that denies it',
      spec: { ...backend, ingressDeny: [{ fromEntities: ['host'] }], egress: [{ toEntities: ['host'] }] },
      allowed: ['default/backend > 192.0.2.1'],
      denied: ['192.0.2.1 > default/backend'],
    },
    {
      name: 'no entry of toPorts is all ports, and an entry without ports none',
      spec: {
        ...backend,
        ingress: [{ fromEntities: ['world'], toPorts: [] }],
        egress: [{ toEntities: ['world'], toPorts: [{ ports: [] }] }],
      },
      allowed: ['203.0.113.1 > default/backend'],
      denied: ['default/backend > 203.0.113.1'],
    },
    {
      name: 'names of ports that look like numbers',
      spec: { ...backend, ingress: [{ toPorts: [{ ports: [{ port: '1e2' }, { port: '0x50' }] }] }] },
      allowed: [],
      denied: ['203.0.113.1 > default/backend:100', '203.0.113.1 > default/backend:80'],
    },
    {
      name: 'deny wins, whatever else allows',
      spec: {
        ...backend,
        ingress: [{ fromEntities: ['all'] }],
        ingressDeny: [
          { fromEndpoints: [{ matchLabels: { role: 'frontend' } }], toPorts: [{ ports: [{ port: '81' }] }] },
        ],
      },
      allowed: ['default/frontend > default/backend:80', '203.0.113.1 > default/backend:81'],
      denied: ['default/frontend > default/backend:81'],
    },
    {
      name: 'deny without default deny',
      spec: {
        ...backend,
        ingressDeny: [{ fromEntities: ['world'] }],
        enableDefaultDeny: { ingress: false },
      },
      allowed: ['default/frontend > default/backend', 'prod/frontend > default/backend'],
      denied: ['203.0.113.1 > default/backend'],
    },
  ])('$name', ({ spec, allowed, denied }) => {
    const policies = read(spec)
    const verdicts = (pairs: string[]) =>
      pairs.map(pair => {
        const [from, to] = pair.split(' > ')
        const [, name, port = '80'] = /^(.*?\/[a-z]+|[0-9a-f.:]*?)(?::(\d+))?$/.exec(
          to.includes('2001') ? `${to}:80` : to,
        )!
        return `${pair} ${decide(policies, from, name, Number(port))}`
      })
    expect(verdicts(allowed)).toEqual(allowed.map(pair => `${pair} allow`))
    expect(verdicts(denied)).toEqual(denied.map(pair => `${pair} deny`))
  })

  it('judges HTTP requests by whole method, path, host and headers', () => {
    const http = [
      { method: 'GET', path: '/public' },
      { method: 'PUT|POST', path: '/path2$', headers: ['X-My-Header: true'] },
      { path: '/v[0-9]+/.*', host: 'api\\.example\\.com' },
    ]
    const policies = read({ ...backend, ingress: [{ toPorts: [{ ports: [{ port: '80' }], rules: { http } }] }] })
    const ask = (method: string, path: string, host = 'h', headers: [string, string][] = []) =>
      decide(policies, 'default/frontend', 'default/backend', 80, { method, path, host, headers })
    expect(decide(policies, 'default/frontend', 'default/backend')).toBe('request')
    expect(ask('GET', '/public')).toBe('allow')
    expect(ask('GET', '/public/more')).toBe('deny')
    expect(ask('GET', '/x/public')).toBe('deny')
    expect(ask('HEAD', '/public')).toBe('deny')
    expect(ask('GET', '/public\0')).toBe('deny')
    expect(ask('POST', '/path2')).toBe('deny')
    expect(ask('POST', '/path2', 'h', [['x-my-header', 'true']])).toBe('allow')
    expect(ask('POST', '/path2', 'h', [['x-my-header', 'false']])).toBe('deny')
    expect(ask('DELETE', '/v2/a', 'api.example.com')).toBe('allow')
    expect(ask('DELETE', '/v2/a', 'apixexample.com')).toBe('deny')
    // As Envoy has it: of two headers of one name, neither hides the other.
    const twice: [string, string][] = [
      ['X-My-Header', 'true'],
      ['x-my-header', 'false'],
    ]
    expect(ask('POST', '/path2', 'h', twice)).toBe('deny')
    expect(decide(policies, 'default/frontend', 'default/backend', 81)).toBe('deny')
    // Where requests are limited, other protocols of the port are not open.
    const ends = { from: party('default/frontend'), to: party('default/backend') }
    expect(policies.decide({ ...ends, protocol: 'UDP', port: 80 }).verdict).toBe('deny')
  })

  it('needs no request where another rule allows the port whole', () => {
    const limited = { toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ method: 'GET' }] } }] }
    const whole = { fromEndpoints: [{ matchLabels: { role: 'frontend' } }], toPorts: [{ ports: [{ port: '80' }] }] }
    const policies = read({ ...backend, ingress: [limited] }, { ...backend, ingress: [whole] })
    expect(decide(policies, 'default/frontend', 'default/backend')).toBe('allow')
    expect(decide(policies, 'default/other', 'default/backend')).toBe('request')
  })

  it.each([
    ['names of hosts', { ...backend, egress: [{ toFQDNs: [{ matchName: 'example.com' }] }] }, /unknown key "toFQDNs"/],
    ['requirements', { ...backend, ingress: [{ fromRequires: [{}] }] }, /unknown key "fromRequires"/],
    ['services', { ...backend, egress: [{ toServices: [{}] }] }, /unknown key "toServices"/],
    ['ICMP', { ...backend, ingress: [{ icmps: [{ fields: [{ type: 8 }] }] }] }, /unknown key "icmps"/],
    [
      'DNS rules',
      { ...backend, egress: [{ toPorts: [{ ports: [{ port: '53' }], rules: { dns: [{}] } }] }] },
      /unknown key "dns"/,
    ],
    [
      'requests of a deny rule',
      { ...backend, ingressDeny: [{ toPorts: [{ ports: [{ port: '80' }], rules: {} }] }] },
      /unknown key "rules"/,
    ],
    [
      'requests of UDP',
      { ...backend, ingress: [{ toPorts: [{ ports: [{ port: '80', protocol: 'UDP' }], rules: { http: [{}] } }] }] },
      /rules: .*beside ports of TCP/,
    ],
    [
      'requests of every port',
      { ...backend, ingress: [{ toPorts: [{ ports: [{ port: '0', protocol: 'TCP' }], rules: { http: [{}] } }] }] },
      /rules: .*other than 0/,
    ],
    [
      'classes of characters that read otherwise here',
      {
        ...backend,
        ingress: [{ toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ path: '/[[:alpha:]]+' }] } }] }],
      },
      /path "\/\[\[:alpha:\]\]\+".*\[:alpha:\]/,
    ],
    [
      'endPort below port',
      { ...backend, ingress: [{ toPorts: [{ ports: [{ port: '80', endPort: 79 }] }] }] },
      /endPort: 79/,
    ],
    [
      'entities that no inventory tells',
      { ...backend, ingress: [{ fromEntities: ['kube-apiserver'] }] },
      /kube-apiserver.*allowed: all, world/,
    ],
    [
      'reserved labels',
      { ...backend, ingress: [{ fromEndpoints: [{ matchLabels: { 'reserved:host': '' } }] }] },
      /use entities/,
    ],
    [
      'kinds of expression that no automaton knows',
      { ...backend, ingress: [{ toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ path: '(?=a)b' }] } }] }] },
      /path "\(\?=a\)b"/,
    ],
    [
      'several ways to say who, in one rule',
      { ...backend, ingress: [{ fromEndpoints: [{}], fromCIDR: ['10.0.0.0/8'] }] },
      /one of fromEndpoints, fromCIDR/,
    ],
    ['nothing that selects', { ingress: [] }, /endpointSelector/],
  ])('refuses %s, naming the field', (_, spec, said) => {
    expect(() => read({ ...backend, ingress: [] }, spec)).toThrow(said)
    expect(() => read({ ...backend, ingress: [] }, spec)).toThrow(/cilium\.yaml, document 2/)
  })
})
