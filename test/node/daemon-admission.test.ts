// Which pods are inspected: excluded namespaces over annotations over the network's wish over the configuration.

import { createHash } from 'node:crypto'
import { expect, test } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import type { AttachRequest } from '../../src/control/operations.ts'
import { admit, attachmentId, podLabel } from '../../src/node/admission.ts'

const request = (more: Partial<AttachRequest> = {}): AttachRequest => ({
  containerId: '8f2c0a1b9d3e4f5a6b7c',
  ifname: 'eth0',
  netns: '/run/netns/x',
  network: 'cluster',
  podNamespace: 'default',
  podName: 'web-0',
  podUid: '',
  annotations: {},
  addresses: [],
  inspect: 'default',
  excludeNamespaces: [],
  ...more,
})

const pods = (more: object = {}) => configSchema.parse({ pods: more }).pods
const INSPECT = 'detour.dev/inspect'
const ALIAS = { 'paloaltonetworks.com/firewall': 'pan-fw' }

const cases: [string, Partial<AttachRequest>, object, boolean, RegExp][] = [
  ['nothing said', {}, {}, true, /configuration inspects all pods/],
  ['nothing said, opt-in', {}, { inspect: false }, false, /only pods with annotation detour.dev\/inspect "true"/],
  ['annotated true', { annotations: { [INSPECT]: 'true' } }, { inspect: false }, true, /detour.dev\/inspect is "true"/],
  ['annotated false', { annotations: { [INSPECT]: 'false' } }, {}, false, /detour.dev\/inspect is "false"/],
  ['the alias', { annotations: ALIAS }, { inspect: false }, true, /paloaltonetworks.com\/firewall is "pan-fw"/],
  [
    'the alias with another value',
    { annotations: { ...ALIAS, 'paloaltonetworks.com/firewall': 'x' } },
    { inspect: false },
    false,
    /only/,
  ],
  [
    'annotated false beside the alias',
    { annotations: { ...ALIAS, [INSPECT]: 'false' } },
    {},
    false,
    /inspect is "false"/,
  ],
  ['network: always', { inspect: 'always' }, { inspect: false }, true, /network cluster inspects all pods/],
  ['network: never', { inspect: 'never' }, {}, false, /network cluster inspects only/],
  ['network: never, annotated', { inspect: 'never', annotations: { [INSPECT]: 'true' } }, {}, true, /annotation/],
  [
    'excluded by the node',
    { podNamespace: 'kube-system', annotations: { [INSPECT]: 'true' } },
    {},
    false,
    /kube-system is excluded by the node/,
  ],
  [
    'excluded by the network',
    { excludeNamespaces: ['default'], inspect: 'always', annotations: ALIAS },
    {},
    false,
    /default is excluded by network cluster/,
  ],
  ['no namespace told', { podNamespace: '', podName: '' }, {}, true, /all pods/],
  ['a name like a property', { annotations: JSON.parse('{"__proto__": "x"}') }, {}, true, /all pods/],
]
for (const [name, asked, configured, inspect, reason] of cases) {
  test(name, () => {
    expect(admit(request(asked), pods(configured))).toMatchObject({ inspect, reason: expect.stringMatching(reason) })
  })
}

test('the daemon’s own pod is left alone, whatever it says; its namespace is not', () => {
  const own = { namespace: 'detour-system', name: 'detour-x2' }
  const asked = request({ podNamespace: 'detour-system', annotations: { [INSPECT]: 'true' } })
  expect(admit({ ...asked, podName: 'detour-x2' }, pods(), own)).toMatchObject({ inspect: false })
  expect(admit({ ...asked, podName: 'other' }, pods(), own)).toMatchObject({ inspect: true })
})

test('the fail mode is the pod’s, else the network’s, else the node’s', () => {
  const mode = (more: Partial<AttachRequest>) => admit(request(more), pods()).failMode
  expect(mode({ annotations: { 'detour.dev/fail-mode': 'open' }, failMode: 'closed' })).toBe('open')
  expect(mode({ failMode: 'closed' })).toBe('closed')
  expect(mode({})).toBeUndefined()
})

test('an annotation that cannot be understood is refused, with what is allowed', () => {
  const refused = (annotations: Record<string, string>) => () => admit(request({ annotations }), pods())
  expect(refused({ [INSPECT]: 'yes' })).toThrow(
    'pod default/web-0: annotation detour.dev/inspect: "yes" is not allowed; allowed: "true", "false"',
  )
  expect(refused({ 'detour.dev/fail-mode': '\n'.repeat(500) })).toThrow(/"(\\n){64}" is not allowed/)
})

test('ids are readable, safe as file names, and different for different keys', () => {
  const id = attachmentId(request())
  const hash = createHash('sha256').update('8f2c0a1b9d3e4f5a6b7c eth0').digest('hex').slice(0, 8)
  expect(id).toBe(`8f2c0a1b9d3e-eth0-${hash}`)
  const keys = [
    { containerId: 'a', ifname: 'b.c' },
    { containerId: 'a', ifname: 'b_c' },
    { containerId: '8f2c0a1b9d3eX', ifname: 'eth0' },
    { containerId: '8f2c0a1b9d3eY', ifname: 'eth0' },
    { containerId: '../..', ifname: '☃' },
  ]
  const ids = keys.map(attachmentId)
  expect(new Set(ids).size).toBe(keys.length)
  for (const each of ids) expect(each).toMatch(/^[\w-]{1,40}$/)
})

test('people see namespace and name, or the container', () => {
  expect(podLabel(request())).toBe('default/web-0')
  expect(podLabel(request({ podNamespace: '' }))).toBe('web-0')
  expect(podLabel(request({ podNamespace: '', podName: '' }))).toBe('container 8f2c0a1b9d3e')
})
