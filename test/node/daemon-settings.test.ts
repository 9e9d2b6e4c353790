// The daemon's configuration: what it finds by itself, and what becomes of a file that is read again.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { takeOver } from '../../src/node/reload.ts'
import { Settings } from '../../src/node/settings.ts'
import { findWayOut } from '../../src/node/uplink.ts'
import { createNamespace, deleteNamespace, ip, ipBatch } from '../../src/os/netns.ts'

const missing = process.getuid?.() !== 0 ? 'needs root' : ''
const HERE = `dtd-${process.pid}-way`
const path = `/run/netns/${HERE}`
const folder = mkdtempSync(join(tmpdir(), 'dtd-settings-'))
const file = join(folder, 'node.yaml')
afterAll(() => rmSync(folder, { recursive: true }))

const parse = (value: object) => configSchema.parse(value)

describe.skipIf(missing !== '')(`what the configuration leaves out${missing && ` (skipped: ${missing})`}`, () => {
  beforeAll(() => {
    createNamespace(HERE)
    ipBatch(
      [
        ...['one', 'two'].flatMap(name => [
          `link add ${name} type veth peer name ${name}-far`,
          `link set ${name} up`,
          `link set ${name}-far up`,
        ]),
        'address add 10.1.0.1/24 dev one',
        'address add 10.2.0.1/24 dev two',
        'address add fd00:2::1/64 dev two nodad',
        'route add 192.0.2.0/24 via 10.1.0.9',
        'route add 198.51.100.0/24 via 10.2.0.9 src 10.1.0.1',
      ],
      HERE,
    )
  })
  afterAll(() => deleteNamespace(HERE))

  const way = (remote: string, more: { node?: object; tunnel?: object } = {}) =>
    findWayOut(parse({ node: { namespace: path, ...more.node }, tunnel: { remote, ...more.tunnel } }))

  it('is found by the route toward the endpoint', () => {
    expect(way('10.2.0.7')).toEqual({ uplink: 'two', local: '10.2.0.1' })
    expect(way('192.0.2.5')).toEqual({ uplink: 'one', local: '10.1.0.1' })
    expect(way('198.51.100.5')).toEqual({ uplink: 'two', local: '10.1.0.1' })
    expect(way('fd00:2::7')).toEqual({ uplink: 'two', local: 'fd00:2::1' })
    expect(way('192.0.2.5', { tunnel: { local: '10.2.0.1' } })).toEqual({ uplink: 'one', local: '10.2.0.1' })
    expect(way('10.2.0.7', { node: { uplink: 'two' } })).toEqual({ uplink: 'two', local: '10.2.0.1' })
    const endpoints = [{ address: '10.2.0.7' }, { address: '10.1.0.7' }]
    expect(findWayOut(parse({ node: { namespace: path }, endpoints }))).toEqual({ uplink: 'two', local: '10.2.0.1' })
  })

  it('or is asked for by name', () => {
    expect(() => way('203.0.113.1')).toThrow(
      'no route toward endpoint 203.0.113.1; add a route, or set node.uplink and tunnel.local',
    )
    expect(() => way('10.2.0.7', { node: { uplink: 'three' } })).toThrow('node.uplink: interface three does not exist')
    expect(() => findWayOut(parse({}))).toThrow('no endpoint: name one as tunnel.remote, or several under endpoints')
  })

  it('the node’s own addresses may open flows to pods, as they are now', () => {
    const rules = (settings: Settings) => settings.config.bypass.filter(({ name }) => name === 'node')
    const write = (pods: object) =>
      writeFileSync(
        file,
        JSON.stringify({ node: { namespace: path }, tunnel: { remote: '10.2.0.7' }, pods, bypass: [] }),
      )
    write({})
    const settings = new Settings(file)
    expect(rules(settings)).toMatchObject([
      { from: expect.arrayContaining(['10.1.0.1/32', '10.2.0.1/32', 'fd00:2::1/128']) },
    ])
    expect(settings.refresh()).toBe(false)
    ip(['address', 'add', '10.3.0.1/24', 'dev', 'two'], HERE)
    expect(settings.refresh()).toBe(true)
    expect(rules(settings)).toMatchObject([{ from: expect.arrayContaining(['10.3.0.1/32']) }])
    write({ bypassNode: false })
    expect(settings.reload()).toMatchObject({ applied: ['pods.bypassNode'], waiting: [] })
    expect(rules(settings)).toEqual([])
  })

  it('is the same object through every reload, and as before when that is undone', () => {
    const write = (more: object) =>
      writeFileSync(file, JSON.stringify({ node: { namespace: path }, tunnel: { remote: '10.2.0.7' }, ...more }))
    write({})
    const settings = new Settings(file)
    const { config } = settings
    const before = structuredClone(config)
    write({ failMode: 'open', workers: 3, tunnel: { remote: '10.2.0.8', vni: 9 } })
    const { undo, ...changes } = settings.reload()
    expect(changes).toEqual({ applied: ['tunnel.remote', 'failMode'], waiting: ['tunnel.vni', 'workers'] })
    expect(config).toMatchObject({
      failMode: 'open',
      workers: 1,
      tunnel: { remote: '10.2.0.8', vni: 1, local: '10.2.0.1' },
    })
    undo()
    expect(config).toEqual(before)
    expect(settings.config).toBe(config)
    writeFileSync(file, 'failMode: neither')
    expect(() => settings.reload()).toThrow(/failMode: "neither" is not allowed/)
    expect(config).toEqual(before)
  })
})

describe('a configuration that is read again', () => {
  it('changes only the keys that differ', () => {
    const current = parse({ flows: { capacity: 10 }, bypass: [{ protocol: 'udp', port: 5 }] })
    const next = parse({
      bypass: [{ protocol: 'udp', port: 6 }],
      health: { tcp: { port: 80 } },
      metrics: { listen: 'none' },
    })
    const { tunnel, flows, polling } = current
    expect(takeOver(current, next)).toEqual({
      applied: ['health.tcp', 'bypass', 'metrics.listen'],
      waiting: ['flows.capacity'],
    })
    expect(current).toEqual({ ...next, flows: { ...next.flows, capacity: 10 } })
    expect([current.tunnel, current.flows, current.polling]).toEqual([tunnel, flows, polling])
    expect(takeOver(current, parse({ ...next, flows: { capacity: 10 } }))).toEqual({ applied: [], waiting: [] })
  })

  it('may leave out what it had', () => {
    const current = parse({ health: { tcp: { port: 80 } }, node: { uplink: 'eth0' } })
    expect(takeOver(current, parse({}))).toEqual({ applied: ['health.tcp'], waiting: ['node.uplink'] })
    expect(current.health.tcp).toBeUndefined()
    expect(current.node.uplink).toBe('eth0')
  })
})
