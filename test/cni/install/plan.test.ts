// Which file gets the entry: libcni, the reference implementation, is asked what a runtime would use before and after.

import { execFileSync } from 'node:child_process'
import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { readDirectory } from '../../../src/cni/install/directory.ts'
import { entryOf } from '../../../src/cni/install/entry.ts'
import { convertedName, type Plan, planInstall, planUninstall } from '../../../src/cni/install/plan.ts'
import { make, Overtaken } from '../../../src/cni/install/replace.ts'
import { libcni, type Node, node, noLibcni, PRIMARIES } from './support.ts'

const entry = entryOf({ inspect: 'always' })
const LIST = '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}'
const SINGLE = '{"cniVersion":"1.0.0","name":"n","type":"bridge"}'

function planned({ confDir }: Node): Plan {
  const plan = planInstall(readDirectory(confDir), entry)
  if ('waiting' in plan) throw new Error(plan.waiting)
  return plan
}

function install(on: Node): Plan {
  const plan = planned(on)
  for (const change of plan.changes) make(change)
  return plan
}

function uninstall({ confDir }: Node): void {
  for (const change of planUninstall(readDirectory(confDir))) make(change)
}

function waiting({ confDir }: Node): string {
  const plan = planInstall(readDirectory(confDir), entry)
  if (!('waiting' in plan)) throw new Error(`would use ${plan.file}`)
  return plan.waiting
}

describe.skipIf(noLibcni)('what libcni uses (skipped without go and golang-github-appc-cni-dev)', () => {
  it('is, beside every primary, its network with Detour as the last plugin; and its own again afterwards', () => {
    const nodes = PRIMARIES.map(node)
    const directories = nodes.map(({ confDir }) => confDir)
    const files = nodes.map(({ all }) => all())
    const before = libcni(...directories)
    const plans = nodes.map(install)
    const after = libcni(...directories)
    nodes.forEach(uninstall)
    for (const [index, primary] of PRIMARIES.entries()) {
      // Multus delegates to the file that was chained, and is itself as it was.
      if (primary.startsWith('multus')) {
        expect(after[index], primary).toEqual(before[index])
        expect(plans[index].file, primary).toBe('10-calico.conflist')
      } else {
        const { file: _, plugins, ...network } = before[index]
        expect(after[index], primary).toEqual({
          ...network,
          file: plans[index].file,
          plugins: [...plugins, expect.objectContaining(entry)],
        })
      }
      expect(nodes[index].all(), primary).toEqual(files[index])
    }
    expect(PRIMARIES.length).toBeGreaterThanOrEqual(15)
  })

  it('is the file that Detour chose, among unusable ones', () => {
    const on = node()
    writeFileSync(on.file('05-empty.conflist'), '')
    writeFileSync(on.file('06-half.conflist'), LIST.slice(0, 30))
    writeFileSync(on.file('07-list-in.conf'), LIST)
    writeFileSync(on.file('08-none.conflist'), '{"cniVersion":"1.0.0","name":"n","plugins":[]}')
    writeFileSync(on.file('20-good.json'), SINGLE)
    writeFileSync(on.file('30-later.conflist'), LIST)
    symlinkSync('nowhere', on.file('09-dangling.conflist'))
    expect(install(on).file).toBe('20-good-detour.conflist')
    rmSync(on.file('09-dangling.conflist'))
    const [network] = libcni(on.confDir)
    expect(network.file).toBe('20-good-detour.conflist')
    expect(network.plugins.map(({ type }) => type)).toEqual(['bridge', 'detour-cni'])
  })
})

describe('a single plugin', () => {
  it('keeps its own file, which its owner tests for, and gets a list that sorts just before it', () => {
    const on = node('ovn-kubernetes')
    const original = on.read('10-ovn-kubernetes.conf')
    expect(install(on).file).toBe('10-ovn-kubernetes-detour.conflist')
    expect(on.read('10-ovn-kubernetes.conf')).toBe(original)
    const names = ['10-ovn-kubernetes.conf', '10-ovn-kubernetes-detour.conflist', '10-ovn-kubernetes.conflist']
    expect(names.sort()[0]).toBe('10-ovn-kubernetes-detour.conflist')
  })

  it('that is written again with other values gets another list; installing again needs nothing', () => {
    const on = node('crio')
    install(on)
    expect(planned(on).changes).toEqual([])
    writeFileSync(on.file('10-crio-bridge.conf'), on.read('10-crio-bridge.conf').replace('cni0', 'cni7'))
    install(on)
    expect(JSON.parse(on.read('10-crio-bridge-detour.conflist')).plugins[0].bridge).toBe('cni7')
  })

  it('that goes away takes the list with it, and the next file is chained', () => {
    const on = node('crio')
    install(on)
    rmSync(on.file('10-crio-bridge.conf'))
    expect(install(on).file).toBe('99-loopback-detour.conflist')
    expect(Object.keys(on.all())).toEqual(['99-loopback-detour.conflist', '99-loopback.conf'])
  })

  it('whose owner changes to a list leaves no list of ours behind', () => {
    const on = node('crio')
    install(on)
    rmSync(on.file('10-crio-bridge.conf'))
    writeFileSync(on.file('10-crio-bridge.conflist'), LIST)
    expect(install(on).file).toBe('10-crio-bridge.conflist')
    expect(Object.keys(on.all())).not.toContain(convertedName('10-crio-bridge.conf'))
  })
})

describe('the order of files', () => {
  it('a new file that sorts first gets the entry, and the old one is as it was', () => {
    const on = node('calico')
    const original = on.read('10-calico.conflist')
    install(on)
    writeFileSync(on.file('05-other.conflist'), LIST)
    expect(install(on).file).toBe('05-other.conflist')
    expect(on.read('10-calico.conflist')).toBe(original)
  })

  it('a list of nothing but Detour, which an installer left that lost the primary, is no primary', () => {
    const on = node()
    writeFileSync(on.file('05-broken.conflist'), JSON.stringify({ cniVersion: '1.0.0', name: 'n', plugins: [entry] }))
    expect(waiting(on)).toMatch(/no usable network configuration/)
    writeFileSync(on.file('10-a.conflist'), LIST)
    expect(install(on).file).toBe('10-a.conflist')
  })

  it('Multus with nothing behind it is the primary itself', () => {
    const on = node('multus')
    rmSync(on.file('10-calico.conflist'))
    expect(install(on).file).toBe('00-multus-detour.conflist')
  })

  it('Multus that has not read the file again is told', () => {
    const on = node('multus')
    expect(install(on).pending).toMatch(/Multus has yet to read 10-calico.conflist again/)
    const multus = JSON.parse(on.read('00-multus.conf'))
    multus.delegates = [JSON.parse(on.read('10-calico.conflist'))]
    writeFileSync(on.file('00-multus.conf'), JSON.stringify(multus))
    expect(planned(on)).toMatchObject({ changes: [], pending: undefined })
  })
})

describe('what cannot be chained', () => {
  it('an empty directory waits', () => {
    expect(waiting(node())).toMatch(/no usable network configuration in .*net\.d$/)
  })

  it('a directory that is not there is an error that says so', () => {
    expect(() => readDirectory('/nonexistent/net.d')).toThrow(/\/nonexistent\/net.d: no such directory; --conf-dir/)
  })

  it('each unusable file is named with its reason', () => {
    const on = node()
    writeFileSync(on.file('10-a.conflist'), '{"name":')
    symlinkSync('nowhere', on.file('11-b.conflist'))
    execFileSync('mkfifo', [on.file('12-c.conflist')])
    mkdirSync(on.file('13-d.conflist'))
    expect(waiting(on)).toMatch(
      /11-b.conflist is a link to nothing.*12-c.conflist is not a regular file.*10-a.conflist is not valid JSON/,
    )
  })

  it('a first file that is too large to judge is not passed over', () => {
    const on = node('calico')
    writeFileSync(on.file('05-huge.conflist'), `{"name":"${'x'.repeat(1 << 20)}"}`)
    expect(waiting(on)).toMatch(/05-huge.conflist comes first but has 1048\d+ bytes; at most 1048576 are read/)
  })

  it('a first file that is not UTF-8, which Go would read, is not passed over', () => {
    const on = node('calico')
    writeFileSync(on.file('05-odd.conflist'), Buffer.from([0x7b, 0xff, 0x7d]))
    expect(waiting(on)).toMatch(/05-odd.conflist comes first but is not UTF-8/)
  })

  it.each([
    [undefined, /has no 'cniVersion'/],
    ['0.2.0', /is of cniVersion '0.2.0'/],
    ['0.1.0', /0.3.0 or later/],
    ['', /is of cniVersion ''/],
    ['junk', /is of cniVersion 'junk'/],
  ])('version %s does not carry results from plugin to plugin', (cniVersion, reason) => {
    const on = node()
    writeFileSync(on.file('10-a.conflist'), JSON.stringify({ ...JSON.parse(LIST), cniVersion }))
    expect(waiting(on)).toMatch(reason)
  })

  it.each(['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0'])('version %s does', cniVersion => {
    const on = node()
    writeFileSync(on.file('10-a.conflist'), JSON.stringify({ ...JSON.parse(LIST), cniVersion }))
    install(on)
    expect(JSON.parse(on.read('10-a.conflist')).cniVersion).toBe(cniVersion)
  })
})

describe('a file that the primary writes between our reading and our writing', () => {
  it.each([
    ['another text', 'sed -i s/1440/1450/ "$0"; echo >> "$0"'],
    ['nothing at all', 'rm "$0"'],
  ])('is not overwritten: %s', (_what, script) => {
    const on = node('calico')
    const { changes } = planned(on)
    execFileSync('sh', ['-c', script, on.file('10-calico.conflist')])
    const theirs = on.all()
    expect(() => make(changes[0])).toThrow(Overtaken)
    expect(on.all()).toEqual(theirs)
  })

  it('is not overwritten where there was none', () => {
    const on = node('crio')
    const { changes } = planned(on)
    writeFileSync(on.file('10-crio-bridge-detour.conflist'), 'theirs')
    expect(() => make(changes[0])).toThrow(Overtaken)
    expect(on.read('10-crio-bridge-detour.conflist')).toBe('theirs')
  })
})

describe('uninstall', () => {
  it('takes the entry out of files that were renamed: Cilium puts its *.cilium_bak back one day', () => {
    const on = node('calico')
    const original = on.read('10-calico.conflist')
    install(on)
    renameSync(on.file('10-calico.conflist'), on.file('10-calico.conflist.cilium_bak'))
    uninstall(on)
    expect(on.all()).toEqual({ '10-calico.conflist.cilium_bak': original })
  })

  it('leaves what the primary wrote in between: all but the entry', () => {
    const on = node('calico')
    install(on)
    const edited = on.read('10-calico.conflist').replace('"mtu": 0', '"mtu": 1450')
    writeFileSync(on.file('10-calico.conflist'), edited)
    uninstall(on)
    const { all } = node('calico')
    expect(on.all()).toEqual({ '10-calico.conflist': all()['10-calico.conflist'].replace('"mtu": 0', '"mtu": 1450') })
  })

  it('touches nothing else that lies there, whatever it is', () => {
    const on = node('calico')
    writeFileSync(on.file('calico-kubeconfig'), 'token: "detour-cni"\n')
    writeFileSync(on.file('note.conf'), '{ detour-cni: not JSON')
    const before = on.all()
    install(on)
    uninstall(on)
    expect(on.all()).toEqual(before)
  })
})
