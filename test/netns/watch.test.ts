// The watch over interfaces, against what iproute2 does to them.

import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { LinkWatch } from '../../src/node/watch.ts'
import { deleteLink, linkInfo } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, ip, ipBatch, tc } from '../../src/os/netns.ts'
import { missing, title } from './support.ts'

describe.skipIf(missing !== '')(title('link watch'), () => {
  const here = 'dth-watch'
  const there = 'dth-watch-far'
  let watch: LinkWatch
  let told: string[]

  const veth = (name = 'eth0') => {
    ipBatch([`link add ${name} netns ${here} type veth peer name far-${name} netns ${there}`])
    ipBatch([`link set ${name} addrgenmode none up`], here)
    ipBatch([`link set far-${name} addrgenmode none up`], there)
    // The kernel tells of carriers when it comes to it.
    until(() => /state UP/.test(ip(['link', 'show', name], here)))
  }
  /** What was told since the last time, by a look at once. */
  const seen = () => {
    watch.look()
    return told.splice(0)
  }
  /** Looks until something was told: the kernel tells of carriers when it comes to it. */
  const come = (change: string) => {
    until(() => {
      watch.look()
      return told.includes(change)
    })
    return told.splice(0)
  }
  const until = (condition: () => boolean) => {
    const end = Date.now() + 60_000
    while (!condition()) if (Date.now() > end) throw new Error(`it never came to pass; told was '${told}'`)
  }
  const peer = () => ip(['-o', 'link', 'show', 'type', 'veth'], there)
  const follow = (name = 'eth0', namespace = here) =>
    watch.watch(namespace, name, (change, link) => told.push(link === undefined ? change : `${change} ${link.mtu}`))

  beforeEach(() => {
    for (const name of [here, there]) {
      deleteNamespace(name)
      createNamespace(name)
    }
    veth()
    told = []
    watch = new LinkWatch()
  })
  afterEach(() => {
    watch.close()
    for (const name of [here, there]) deleteNamespace(name)
  })

  it('tells each change once', () => {
    expect(follow().link).toMatchObject({ index: linkInfo('eth0', here).index, running: true, mtu: 1500 })
    expect(seen()).toEqual([])
    ip(['link', 'set', 'eth0', 'mtu', '1400'], here)
    expect(seen()).toEqual(['mtu 1400'])
    expect(seen()).toEqual([])
    ip(['link', 'set', 'eth0', 'down'], here)
    expect(seen()).toEqual(['down 1400'])
    ip(['link', 'set', 'eth0', 'address', '02:00:00:00:00:77'], here)
    expect(seen()).toEqual(['mac 1400'])
    ip(['link', 'set', 'eth0', 'up'], here)
    expect(come('up 1400')).toEqual(['up 1400'])
    ip(['address', 'add', '10.97.0.1/24', 'dev', 'eth0'], here)
    expect(seen()).toEqual(['addresses 1400'])
    tc(['qdisc', 'add', 'dev', 'eth0', 'clsact'], here)
    expect(seen()).toEqual(['filters 1400'])
  })

  it('tells a lost carrier', () => {
    follow()
    ip(['link', 'set', 'far-eth0', 'down'], there)
    expect(come('down 1500')).toEqual(['down 1500'])
    ip(['link', 'set', 'far-eth0', 'up'], there)
    expect(come('up 1500')).toEqual(['up 1500'])
  })

  it('tells that an interface went, and that one of its name came', () => {
    follow()
    deleteLink('eth0', here)
    expect(seen().at(-1)).toBe('gone')
    veth()
    expect(seen()).toContain('back 1500')
    ipBatch(['link set eth0 down', 'link set eth0 name other0'], here)
    expect(seen().at(-1)).toBe('gone')
    ipBatch(['link set other0 name eth0'], here)
    expect(seen().at(-1)).toBe('back 1500')
    deleteLink('eth0', here)
    veth()
    const again = seen()
    expect(again.indexOf('back 1500')).toBeGreaterThan(again.indexOf('gone'))
  })

  it('tells nothing of other interfaces, nor of bridges and IPv6 on its own', () => {
    follow()
    veth('eth1')
    ip(['link', 'set', 'eth1', 'mtu', '1300'], here)
    ipBatch(['link add br0 type bridge', 'link set eth0 master br0', 'link set eth0 nomaster', 'link delete br0'], here)
    ip(['link', 'set', 'eth0', 'addrgenmode', 'eui64'], here)
    deleteLink('eth1', here)
    expect(seen()).toEqual([])
  })

  it('waits for an interface and a namespace that are not there yet', () => {
    deleteNamespace(here)
    until(() => peer() === '')
    expect(follow().link).toBeUndefined()
    expect(seen()).toEqual([])
    createNamespace(here)
    for (let i = 0; i < 5; i++) expect(seen()).toEqual([])
    veth()
    expect(seen()).toContain('back 1500')
  })

  it('tells that a namespace went, keeps none alive, and finds the next of its name', () => {
    follow()
    deleteNamespace(here)
    for (let i = 0; i < 5; i++) watch.look()
    expect(told.splice(0)).toEqual(['gone'])
    // The kernel takes a namespace down some time after its last user has left; its veths' far ends go with it.
    until(() => peer() === '')
    createNamespace(here)
    veth()
    for (let i = 0; i < 5; i++) watch.look()
    expect(told.splice(0)).toContain('back 1500')
  })

  it('compares when there was too much to hear', () => {
    follow()
    ipBatch(
      Array.from({ length: 1500 }, (_, i) => `link set eth0 mtu ${1400 + (i % 2)}`),
      here,
    )
    deleteLink('eth0', here)
    expect(seen()).toEqual(['gone'])
    veth()
    expect(seen()).toContain('back 1500')
  })

  it('stops telling, and may stop while it tells', () => {
    const first = follow()
    const second = watch.watch(here, 'eth0', () => {
      second.stop()
      first.stop()
      told.push('second')
    })
    ip(['link', 'set', 'eth0', 'mtu', '1400'], here)
    ip(['link', 'set', 'eth0', 'mtu', '1300'], here)
    expect(seen()).toEqual(['mtu 1400', 'second'])
    expect(seen()).toEqual([])
  })
})
