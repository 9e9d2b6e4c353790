// Kubernetes' own conformance scenarios for NetworkPolicy (test/e2e/network/netpol of kubernetes/kubernetes), as tables: three
// namespaces x, y, z of three pods a, b, c each; what a policy forbids among all of them.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Inventory, inventoryOf, readInventory } from '../../../src/gateway/policy/inventory.ts'
import { blockOf, bytesOf } from '../../../src/gateway/policy/model.ts'
import { Policies, readPolicies } from '../../../src/gateway/policy/policies.ts'

const PODS = ['x', 'y', 'z'].flatMap(ns => ['a', 'b', 'c'].map(pod => `${ns}/${pod}`))
const LETTERS = 'abc'

/** As `kubectl get pods,namespaces -A -o json` prints the cluster of these tests. */
const CLUSTER = {
  apiVersion: 'v1',
  kind: 'List',
  items: [
    ...['x', 'y', 'z'].map(name => ({
      kind: 'Namespace',
      metadata: { name, uid: `uid-${name}`, labels: { 'kubernetes.io/metadata.name': name } },
      spec: { finalizers: ['kubernetes'] },
      status: { phase: 'Active' },
    })),
    ...PODS.map((pod, i) => ({
      kind: 'Pod',
      metadata: { name: pod[2], namespace: pod[0], labels: { pod: pod[2] }, creationTimestamp: '2026-01-01T00:00:00Z' },
      spec: {
        nodeName: 'n1',
        containers: [80, 81].map(port => ({
          name: `cont-${port}-tcp`,
          image: 'agnhost',
          ports: [
            { containerPort: port, name: `serve-${port}-tcp`, protocol: 'TCP' },
            { containerPort: port, name: `serve-${port}-udp`, protocol: 'UDP' },
          ],
        })),
      },
      status: {
        phase: 'Running',
        hostIP: '192.0.2.1',
        podIP: `10.0.0.${i + 1}`,
        podIPs: [{ ip: `10.0.0.${i + 1}` }, { ip: `fd00::${i + 1}` }],
      },
    })),
  ],
}

const byNamespace = (...names: string[]) => ({
  namespaceSelector: { matchExpressions: [{ key: 'kubernetes.io/metadata.name', operator: 'In', values: names }] },
})
const notIn = (name: string) => ({
  namespaceSelector: { matchExpressions: [{ key: 'kubernetes.io/metadata.name', operator: 'NotIn', values: [name] }] },
})
const pod = (...names: string[]) => ({
  podSelector: { matchExpressions: [{ key: 'pod', operator: 'In', values: names }] },
})
const labelled = (name: string) => ({ podSelector: { matchLabels: { pod: name } } })

/** `x/a`, `x/*`, `*`, or several of these, as the pods that they are. */
const expand = (pattern: string) =>
  pattern.split(' ').flatMap(one => PODS.filter(name => one === '*' || one === name || one === `${name[0]}/*`))
const others = (pattern: string) => PODS.filter(name => !expand(pattern).includes(name)).join(' ')

interface Scenario {
  name: string
  /** Of namespace x unless it has another. */
  specs: { namespace?: string; [field: string]: unknown }[]
  /** [from, to] that are refused, at a port and protocol; all else is allowed. */
  denied: { port?: number; protocol?: 'TCP' | 'UDP' | 'SCTP'; pairs: [string, string][] }[]
}

const TCP80 = (...pairs: [string, string][]) => [{ pairs }]

const SCENARIOS: Scenario[] = [
  { name: 'deny-all ingress', specs: [{ podSelector: {}, policyTypes: ['Ingress'] }], denied: TCP80(['*', 'x/*']) },
  {
    name: 'deny-all ingress and egress',
    specs: [{ podSelector: {}, policyTypes: ['Ingress', 'Egress'] }],
    denied: TCP80(['*', 'x/*'], ['x/*', '*']),
  },
  {
    name: 'traffic from a pod of the same namespace, by pod selector',
    specs: [{ ...labelled('a'), ingress: [{ from: [labelled('b')] }] }],
    denied: TCP80([others('x/b'), 'x/a']),
  },
  {
    name: 'a deny-all and an allow-all to one pod',
    specs: [
      { podSelector: {}, ingress: [] },
      { ...labelled('a'), ingress: [{ from: [{ podSelector: {}, namespaceSelector: {} }] }] },
    ],
    denied: TCP80(['*', 'x/b x/c']),
  },
  {
    name: 'traffic from all namespaces',
    specs: [{ ...labelled('a'), ingress: [{ from: [{ namespaceSelector: {} }] }] }],
    denied: TCP80(),
  },
  {
    name: 'traffic only from a different namespace',
    specs: [{ ...labelled('a'), ingress: [{ from: [byNamespace('y')] }] }],
    denied: TCP80(['x/* z/*', 'x/a']),
  },
  {
    name: 'pod selector or namespace selector',
    specs: [{ ...labelled('a'), ingress: [{ from: [notIn('x'), labelled('b')] }] }],
    denied: TCP80(['x/c', 'x/a']),
  },
  {
    name: 'pod selector and namespace selector',
    specs: [{ ...labelled('a'), ingress: [{ from: [{ ...notIn('x'), ...labelled('b') }] }] }],
    denied: TCP80([others('y/b z/b'), 'x/a']),
  },
  {
    name: 'several pods of several namespaces',
    specs: [{ ...labelled('a'), ingress: [{ from: [{ ...notIn('x'), ...pod('b', 'c') }] }] }],
    denied: TCP80(['x/* y/a z/a', 'x/a']),
  },
  {
    name: 'any of several pod selectors',
    specs: [{ ...labelled('a'), ingress: [{ from: [labelled('b'), labelled('c')] }] }],
    denied: TCP80([others('x/b x/c'), 'x/a']),
  },
  {
    name: 'ports',
    specs: [{ ...labelled('a'), ingress: [{ from: [byNamespace('y')], ports: [{ port: 81, protocol: 'TCP' }] }] }],
    denied: [
      { port: 81, pairs: [['x/* z/*', 'x/a']] },
      { port: 80, pairs: [['*', 'x/a']] },
      { port: 81, protocol: 'UDP', pairs: [['*', 'x/a']] },
    ],
  },
  {
    name: 'stacked policies, whose union counts',
    specs: [
      { ...labelled('a'), ingress: [{ from: [byNamespace('y')], ports: [{ port: 81 }] }] },
      { ...labelled('a'), ingress: [{ from: [byNamespace('y')], ports: [{ port: 80 }] }] },
    ],
    denied: [
      { port: 81, pairs: [['x/* z/*', 'x/a']] },
      { port: 80, pairs: [['x/* z/*', 'x/a']] },
    ],
  },
  { name: 'allow-all', specs: [{ podSelector: {}, ingress: [{}] }], denied: [{ pairs: [] }, { port: 81, pairs: [] }] },
  {
    name: 'one named port of ingress',
    specs: [{ podSelector: {}, ingress: [{ ports: [{ port: 'serve-81-tcp' }] }] }],
    denied: [
      { port: 81, pairs: [] },
      { port: 80, pairs: [['*', 'x/*']] },
    ],
  },
  {
    name: 'one named port of egress, which is the receiver’s',
    specs: [{ podSelector: {}, policyTypes: ['Egress'], egress: [{ ports: [{ port: 'serve-80-tcp' }] }] }],
    denied: [
      { port: 80, pairs: [] },
      { port: 81, pairs: [['x/*', '*']] },
    ],
  },
  {
    name: 'a range of ports by endPort',
    specs: [{ ...labelled('a'), policyTypes: ['Egress'], egress: [{ ports: [{ port: 79, endPort: 80 }] }] }],
    denied: [
      { port: 80, pairs: [] },
      { port: 81, pairs: [['x/a', '*']] },
    ],
  },
  {
    name: 'ingress from pods of other namespaces is denied',
    specs: [{ podSelector: {}, ingress: [{ from: [{ podSelector: {} }] }] }],
    denied: TCP80(['y/* z/*', 'x/*']),
  },
  {
    name: 'egress to one namespace',
    specs: [{ ...labelled('a'), policyTypes: ['Egress'], egress: [{ to: [byNamespace('y')] }] }],
    denied: TCP80(['x/a', 'x/b x/c z/*']),
  },
  {
    name: 'ingress and egress of one policy',
    specs: [
      {
        ...labelled('a'),
        policyTypes: ['Ingress', 'Egress'],
        ingress: [{ from: [labelled('b')] }],
        egress: [{ to: [labelled('b')] }],
      },
    ],
    denied: TCP80([others('x/b'), 'x/a'], ['x/a', others('x/b')]),
  },
  {
    name: 'egress of the sender is enforced even though the receiver allows it',
    specs: [
      { ...labelled('a'), policyTypes: ['Egress'], egress: [{ to: [byNamespace('x')] }] },
      { ...labelled('a'), ingress: [{ from: [byNamespace('x')] }], namespace: 'y' },
    ],
    denied: TCP80(['x/a', 'y/* z/*'], ['y/* z/*', 'y/a']),
  },
  {
    name: 'egress to a block',
    specs: [{ ...labelled('a'), policyTypes: ['Egress'], egress: [{ to: [{ ipBlock: { cidr: '10.0.0.2/32' } }] }] }],
    denied: TCP80(['x/a', others('x/a x/b')]),
  },
  {
    name: 'egress to a block with an exception, and a policy that allows it all the same',
    specs: [
      {
        ...labelled('a'),
        policyTypes: ['Egress'],
        egress: [{ to: [{ ipBlock: { cidr: '10.0.0.0/24', except: ['10.0.0.4/32'] } }] }],
      },
      { ...labelled('a'), policyTypes: ['Egress'], egress: [{ to: [{ ipBlock: { cidr: '10.0.0.5/32' } }] }] },
    ],
    denied: TCP80(['x/a', 'y/a']),
  },
  {
    name: 'only UDP',
    specs: [{ ...labelled('a'), ingress: [{ ports: [{ port: 81, protocol: 'UDP' }] }] }],
    denied: [
      { port: 81, protocol: 'UDP', pairs: [] },
      { port: 81, pairs: [['*', 'x/a']] },
    ],
  },
  {
    name: 'SCTP in a policy says nothing of TCP',
    specs: [{ ...labelled('a'), ingress: [{ ports: [{ port: 81, protocol: 'SCTP' }] }] }],
    denied: [
      { port: 81, protocol: 'SCTP', pairs: [] },
      { port: 81, pairs: [['*', 'x/a']] },
    ],
  },
  {
    name: 'egress rules without policyTypes restrict ingress, too',
    specs: [{ ...labelled('a'), egress: [{}] }],
    denied: TCP80(['*', 'x/a']),
  },
  {
    name: 'an empty list of policyTypes is none, and one of egress rules too (SetDefaults_NetworkPolicy)',
    specs: [{ ...labelled('a'), policyTypes: [], ingress: [], egress: [] }],
    denied: TCP80(['*', 'x/a']),
  },
  {
    name: 'what is null is left out',
    specs: [
      {
        podSelector: { matchLabels: null },
        policyTypes: null,
        ingress: [{ from: [{ podSelector: {}, namespaceSelector: null, ipBlock: null }], ports: null }],
        egress: null,
      },
    ],
    denied: TCP80(['y/* z/*', 'x/*']),
  },
  {
    name: 'a label that is not one of some, which who has none is not either',
    specs: [
      {
        ...labelled('a'),
        ingress: [
          { from: [{ podSelector: { matchExpressions: [{ key: 'no', operator: 'NotIn', values: ['x'] }] } }] },
          {
            from: [
              { podSelector: { matchExpressions: [{ key: 'no', operator: 'In', values: ['x'] }] }, ...notIn('x') },
            ],
          },
        ],
      },
    ],
    denied: TCP80(['y/* z/*', 'x/a']),
  },
  {
    name: 'a label that is absent',
    specs: [
      {
        ...labelled('a'),
        ingress: [{ from: [{ podSelector: { matchExpressions: [{ key: 'pod', operator: 'DoesNotExist' }] } }] }],
      },
    ],
    denied: TCP80(['*', 'x/a']),
  },
]

describe('NetworkPolicy', () => {
  let folder: string
  let inventory: Inventory
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-policy-'))
    writeFileSync(join(folder, 'cluster.json'), JSON.stringify(CLUSTER))
    inventory = readInventory(join(folder, 'cluster.json'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  const manifest = (spec: object, name = 'p', namespace = 'x') => ({
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: { name, namespace },
    spec,
  })

  function read(objects: object[]): Policies {
    const file = join(folder, 'policies.yaml')
    writeFileSync(
      file,
      objects
        .map(object => JSON.stringify(object))
        .join('\n---\n')
        .replace(/^/, '---\n'),
    )
    return new Policies(readPolicies([file]))
  }

  const matrix = (policies: Policies, port: number, protocol: 'TCP' | 'UDP' | 'SCTP') =>
    PODS.flatMap(from =>
      PODS.filter(to => {
        const ends = { from: { pod: inventory.pod(from)! }, to: { pod: inventory.pod(to)! } }
        return policies.decide({ ...ends, protocol, port }).verdict !== 'allow'
      }).map(to => `${from} > ${to}`),
    )

  it.each(SCENARIOS)('$name', ({ specs, denied }) => {
    const policies = read(specs.map(({ namespace = 'x', ...spec }, i) => manifest(spec, `p${i}`, namespace)))
    for (const { port = 80, protocol = 'TCP', pairs } of denied) {
      const expected = new Set(
        pairs
          .flatMap(([from, to]) => expand(from).flatMap(f => expand(to).map(t => [f, t] as const)))
          // A pod always reaches itself.
          .filter(([f, t]) => f !== t)
          .map(([f, t]) => `${f} > ${t}`),
      )
      expect(matrix(policies, port, protocol).sort(), `${protocol} ${port}`).toEqual([...expected].sort())
    }
  })

  it('takes addresses from outside by block, IPv6 too, and lets the node in', () => {
    const from = [
      { ipBlock: { cidr: '198.51.100.0/24', except: ['198.51.100.128/25'] } },
      { ipBlock: { cidr: '2001:db8::/32' } },
    ]
    const policies = read([manifest({ ...labelled('a'), ingress: [{ from }] })])
    const to = { pod: inventory.pod('x/a')! }
    const verdict = (address: string) =>
      policies.decide({ from: inventory.party(address), to, protocol: 'TCP', port: 80 }).verdict
    expect(verdict('198.51.100.5')).toBe('allow')
    expect(verdict('198.51.100.200')).toBe('deny')
    expect(verdict('2001:db8::5')).toBe('allow')
    expect(verdict('203.0.113.5')).toBe('deny')
    expect(verdict('192.0.2.1')).toBe('allow')
    // An address of a pod is that pod, in either family.
    expect(inventory.party('FD00:0::2').pod).toBe(inventory.pod('x/b'))
  })

  it('compares blocks with the address that a pod uses, not with its other one', () => {
    const policies = read([manifest({ ...labelled('a'), ingress: [{ from: [{ ipBlock: { cidr: '10.0.0.0/8' } }] }] })])
    const verdict = (from: string, to: string) => {
      const ends = { from: inventory.party(from), to: inventory.party(to) }
      return policies.decide({ ...ends, protocol: 'TCP', port: 80 }).verdict
    }
    expect(verdict('10.0.0.2', '10.0.0.1')).toBe('allow')
    expect(verdict('fd00::2', 'fd00::1')).toBe('deny')
  })

  it.each([
    ['10.128.0.0/9', ['10.128.0.1', '10.255.255.255'], ['10.127.255.255', '11.0.0.0', '::a80:1']],
    ['0.0.0.0/0', ['1.2.3.4'], ['::1']],
    ['192.0.2.7/32', ['192.0.2.7'], ['192.0.2.6']],
    ['2001:db8:ff00::/39', ['2001:db8:ffff::1'], ['2001:db8:fd00::1', '32.1.13.184']],
    ['::/0', ['::1', 'ffff::'], ['0.0.0.0']],
    ['2001:db8::1/128', ['2001:db8::1'], ['2001:db8::']],
  ])('knows what lies in %s', (text, inside, outside) => {
    const block = blockOf(text)
    expect(inside.filter(one => !block(bytesOf(one)))).toEqual([])
    expect(outside.filter(one => block(bytesOf(one)))).toEqual([])
  })

  it('takes what a cluster says of a policy, and of pods of its nodes', () => {
    expect(read([{ ...manifest({ podSelector: {} }), status: { conditions: [] } }]).all).toHaveLength(1)
    const spec = { hostNetwork: true }
    const apiServer = {
      kind: 'Pod',
      metadata: { name: 'api' },
      spec,
      status: { podIP: '192.0.2.9', hostIP: '192.0.2.9' },
    }
    expect(inventoryOf([{ value: apiServer, where: 'i' }]).party('192.0.2.9')).toMatchObject({ isHost: true })
  })

  it('says by which rule', () => {
    const policies = read([
      manifest({ ...labelled('a'), ingress: [{ from: [labelled('c')] }, { from: [labelled('b')] }] }, 'allow-b'),
    ])
    const ask = (from: string) =>
      policies.decide({
        from: { pod: inventory.pod(from)! },
        to: { pod: inventory.pod('x/a')! },
        protocol: 'TCP',
        port: 80,
      })
    expect(ask('x/b').ingress.reason).toContain('NetworkPolicy x/allow-b')
    expect(ask('x/b').ingress.reason).toContain('ingress[1]')
    expect(ask('y/b').ingress.reason).toBe('no rule allows this ingress')
    expect(ask('y/b').egress.reason).toBe('no policy selects it')
  })

  it.each([
    ['an unknown field', { ...labelled('a'), ingres: [] }, /unknown key "ingres".*did you mean "?ingress/],
    ['a peer of nothing', { podSelector: {}, ingress: [{ from: [{}] }] }, /spec\.ingress\[0\]\.from\[0\]/],
    [
      'ipBlock beside a selector',
      { podSelector: {}, ingress: [{ from: [{ podSelector: {}, ipBlock: { cidr: '10.0.0.0/8' } }] }] },
      /either ipBlock/,
    ],
    [
      'a block that is none',
      { podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: '10.0.0.0/33' } }] }] },
      /cidr: "10.0.0.0\/33"/,
    ],
    [
      'an exception outside of its block',
      { podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: '10.0.0.0/8', except: ['11.0.0.0/24'] } }] }] },
      /except/,
    ],
    [
      'an exception that is all of its block',
      { podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: '10.0.0.0/8', except: ['10.0.0.0/8'] } }] }] },
      /except/,
    ],
    [
      'a block that could be read in two ways',
      { podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: '010.0.0.0/8' } }] }] },
      /cidr: "010.0.0.0\/8"/,
    ],
    [
      'a label without a value',
      { podSelector: { matchLabels: { app: null } } },
      /matchLabels: \{ app: null \} is not allowed/,
    ],
    ['endPort below port', { podSelector: {}, ingress: [{ ports: [{ port: 80, endPort: 79 }] }] }, /endPort/],
    ['endPort beside a name', { podSelector: {}, ingress: [{ ports: [{ port: 'web', endPort: 90 }] }] }, /endPort/],
    [
      'an operator that is none',
      { podSelector: { matchExpressions: [{ key: 'a', operator: 'Is', values: ['b'] }] } },
      /operator: "Is".*In, NotIn/,
    ],
    [
      'values beside Exists',
      { podSelector: { matchExpressions: [{ key: 'a', operator: 'Exists', values: ['b'] }] } },
      /values/,
    ],
    ['a protocol that is none', { podSelector: {}, ingress: [{ ports: [{ protocol: 'ICMP' }] }] }, /protocol: "ICMP"/],
  ])('refuses %s, naming file, document and field', (_, spec, said) => {
    let message = ''
    try {
      read([manifest({ podSelector: {} }, 'fine'), manifest(spec, 'wrong')])
    } catch (error) {
      message = (error as Error).message
    }
    expect(message).toMatch(/policies\.yaml, document 2/)
    expect(message).toMatch(said)
  })

  it('refuses two policies of one name, of which a cluster has one', () => {
    const one = manifest({ podSelector: {} })
    expect(() => read([one, manifest({ podSelector: {}, ingress: [{}] })])).toThrow(
      /policies\.yaml, document 2: NetworkPolicy x\/p stands in .*policies\.yaml, document 1, too/,
    )
    expect(read([one, manifest({ podSelector: {} }, 'p', 'y')]).all).toHaveLength(2)
  })

  it('leaves no label out, whatever its name', () => {
    const podSelector = { matchLabels: JSON.parse('{ "__proto__": "x" }') }
    const [policy] = read([manifest({ podSelector })]).all
    expect(policy.selects(inventory.pod('x/a')!)).toBe(false)
  })

  it('refuses other kinds, and a YAML bomb', () => {
    expect(() => read([{ apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'd' } }])).toThrow(
      /kind "Deployment"; allowed/,
    )
    const file = join(folder, 'bomb.yaml')
    const lines = LETTERS.repeat(3)
      .split('')
      .map(
        (_, i) =>
          `n${i}: &n${i} [${Array(10)
            .fill(i === 0 ? 'x' : `*n${i - 1}`)
            .join(', ')}]`,
      )
    writeFileSync(file, lines.join('\n'))
    expect(() => readPolicies([file])).toThrow(/bomb\.yaml/)
  })
})
