// The entry goes in and out of the text of configurations, and nothing else moves.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { converted, lags, readConf, withEntry, withoutEntry } from '../../../src/cni/install/conflist.ts'
import { entryOf } from '../../../src/cni/install/entry.ts'
import { FIXTURES } from './support.ts'

const entry = entryOf({ socket: '/run/detour/detour.sock', failMode: 'closed' })
const LISTS = {
  aws: '10-aws.conflist',
  azure: '10-azure.conflist',
  calico: '10-calico.conflist',
  cilium: '05-cilium.conflist',
  containerd: '10-containerd-net.conflist',
  flannel: '10-flannel.conflist',
  'gke-netd': '10-k8s-ptp.conflist',
  k3s: '10-flannel.conflist',
  kindnet: '10-kindnet.conflist',
  kubenet: '10-containerd-net.conflist',
  podman: '87-podman-bridge.conflist',
  weave: '10-weave.conflist',
}
const fixture = (primary: string, file: string) => readFileSync(join(FIXTURES, primary, file), 'utf8')

describe.each(Object.entries(LISTS))('the list of %s', (primary, file) => {
  const text = fixture(primary, file)
  const chained = withEntry(text, entry)

  it('has the entry last, and all else as it was', () => {
    const before = JSON.parse(text)
    expect(JSON.parse(chained)).toEqual({ ...before, plugins: [...before.plugins, entry] })
  })

  it('is extended in one place: what was before and after it is there, byte for byte', () => {
    let head = 0
    while (chained[head] === text[head]) head++
    expect(chained.endsWith(text.slice(head))).toBe(true)
  })

  it('is not changed by doing it again', () => {
    expect(withEntry(chained, entry)).toBe(chained)
  })

  it('is the original, byte for byte, without the entry', () => {
    expect(withoutEntry(chained)).toBe(text)
  })

  it('has the entry once when its options change', () => {
    const changed = withEntry(chained, entryOf({ inspect: 'always' }))
    expect(changed).toBe(withEntry(text, entryOf({ inspect: 'always' })))
  })
})

describe('layout', () => {
  it('is the list’s own: indentation, tabs, one line', () => {
    expect(withEntry('{"name":"a","plugins":[{"type":"x"}]}', { type: 'detour-cni' })).toBe(
      '{"name":"a","plugins":[{"type":"x"},{"type":"detour-cni"}]}',
    )
    expect(withEntry(fixture('azure', '10-azure.conflist'), { type: 'detour-cni', a: 1 })).toContain(
      '\n      {\n         "type": "detour-cni",\n         "a": 1\n      }\n   ]',
    )
    expect(withEntry(fixture('kindnet', '10-kindnet.conflist'), { type: 'detour-cni', a: 1 })).toContain(
      '\n\t{\n\t\t"type": "detour-cni",\n\t\t"a": 1\n\t}\n\t]',
    )
  })

  it('keeps numbers, escapes and repeated keys as they are written', () => {
    const text =
      '{"name":"\\u0061\\"]}","mtu":1e3,"id":12345678901234567890,"plugins":1,"plugins":[ {"type":"x","a":1.0} ]}'
    const chained = withEntry(text, { type: 'detour-cni' })
    expect(chained).toContain('"plugins":1,"plugins":[ {"type":"x","a":1.0}, {"type":"detour-cni"} ]}')
    expect(withoutEntry(chained)).toBe(text)
  })

  const layouts = fc.constantFrom(undefined, 1, 2, 4, '\t', '   ')
  const values = fc.jsonValue({ maxDepth: 3 })
  const plugins = fc.array(
    fc.dictionary(fc.string(), values).map(options => ({ ...options, type: 'other' })),
    { minLength: 1, maxLength: 4 },
  )
  const lists = fc.tuple(fc.dictionary(fc.string(), values), plugins, layouts)

  it('whatever the list: the entry is last, and taking it out gives the same bytes', () => {
    fc.assert(
      fc.property(lists, ([options, plugins, layout]) => {
        const text = JSON.stringify({ ...options, name: 'n', plugins }, null, layout)
        const chained = withEntry(text, entry)
        const parsed = JSON.parse(text)
        expect(JSON.parse(chained)).toEqual({ ...parsed, plugins: [...parsed.plugins, entry] })
        expect(withoutEntry(chained)).toBe(text)
      }),
    )
  })

  it('wherever entries are: one is left, the last, and none when it is taken out', () => {
    fc.assert(
      fc.property(lists, fc.array(fc.nat(5), { minLength: 1, maxLength: 3 }), ([options, plugins, layout], places) => {
        const text = JSON.stringify({ ...options, name: 'n', plugins }, null, layout)
        const crowd = [...plugins] as object[]
        for (const place of places) crowd.splice(place, 0, { type: 'detour-cni', old: true })
        const mixed = JSON.stringify({ ...options, name: 'n', plugins: crowd }, null, layout)
        const parsed = JSON.parse(text)
        expect(JSON.parse(withEntry(mixed, entry)).plugins).toEqual([...parsed.plugins, entry])
        expect(JSON.parse(withoutEntry(mixed))).toEqual(parsed)
      }),
    )
  })
})

describe('field failures', () => {
  it('an entry that was there twice, after installations that only appended, is there once', () => {
    const text = fixture('calico', '10-calico.conflist')
    const twice = text.replace(
      '"plugins": [',
      '"plugins": [{"type":"detour-cni"}, {"type":"detour-cni","socket":"/old"},',
    )
    expect(JSON.parse(withEntry(twice, entry)).plugins.map((plugin: { type: string }) => plugin.type)).toEqual([
      'calico',
      'portmap',
      'detour-cni',
    ])
  })

  it('an entry that another installer came behind moves to the end again', () => {
    const chained = withEntry(fixture('aws', '10-aws.conflist'), entry)
    const other = withEntry(chained, entry).replace(/\n {2}\]/, ',\n    {"type": "cilium-cni"}\n  ]')
    expect(JSON.parse(withEntry(other, entry)).plugins.map((plugin: { type: string }) => plugin.type)).toEqual([
      'aws-cni',
      'portmap',
      'cilium-cni',
      'detour-cni',
    ])
  })

  it('an entry inside a delegate of Multus is taken out too', () => {
    const multus = JSON.parse(fixture('multus', '00-multus.conf'))
    const text = JSON.stringify(multus, null, 2)
    multus.delegates[0].plugins.push(entry)
    expect(JSON.parse(withoutEntry(JSON.stringify(multus)))).toEqual(JSON.parse(text))
    expect(lags(text, 'k8s-pod-network')).toBe(true)
    expect(lags(JSON.stringify(multus), 'k8s-pod-network')).toBe(false)
    expect(lags(text, 'another')).toBe(false)
  })
})

describe('a single plugin’s configuration', () => {
  const text = fixture('crio', '10-crio-bridge.conf')
  const conf = readConf('10-crio-bridge.conf', text)

  it('becomes a list of the same network with its text word for word', () => {
    if ('problem' in conf) throw new Error(conf.problem)
    const list = converted('10-crio-bridge.conf', text, conf, entry)
    expect(list).toContain(text.trim())
    expect(JSON.parse(list)).toMatchObject({ cniVersion: '0.3.1', name: 'crio', plugins: [JSON.parse(text), entry] })
    expect(readConf('x.conflist', list)).toMatchObject({ kind: 'list', convertedFrom: '10-crio-bridge.conf' })
  })
})

describe('what a runtime cannot use', () => {
  it.each([
    ['10-a.conflist', '{"name": "a", "plugins": [', /not valid JSON/],
    ['10-a.conflist', '', /not valid JSON/],
    ['10-a.conflist', '\ufeff{"name":"a","plugins":[{"type":"x"}]}', /not valid JSON/],
    ['10-a.conflist', '[]', /not a JSON object/],
    ['10-a.conflist', 'null', /not a JSON object/],
    ['10-a.conflist', '{"plugins":[{"type":"x"}]}', /no 'name'/],
    ['10-a.conflist', '{"name":"a","type":"x"}', /no list 'plugins'/],
    ['10-a.conflist', '{"name":"a","plugins":[]}', /empty list/],
    ['10-a.conflist', '{"name":"a","plugins":[{"type":"x"},{}]}', /without 'type'/],
    ['10-a.conflist', '{"name":"a","plugins":[null]}', /without 'type'/],
    ['10-a.conflist', '{"name":"a","cniVersion":4,"plugins":[{"type":"x"}]}', /'cniVersion' is not a string/],
    ['10-a.conf', '{"name":"a","plugins":[{"type":"x"}]}', /without 'type'/],
  ])('%s: %s', (fileName, text, problem) => {
    expect(readConf(fileName, text)).toMatchObject({ problem: expect.stringMatching(problem) })
  })
})
