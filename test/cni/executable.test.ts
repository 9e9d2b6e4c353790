// What `npm run build:cni` makes: it runs where there is no Node.js, and libcni, which runtimes call plugins with, gets along
// with it in a chain of the reference plugins.

import { execFile, execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createNamespace, deleteNamespace, ip, listNamespaces, namespacePath } from '../../src/os/netns.ts'
import { spawnPlugin } from './process.ts'
import { type FakeDaemon, serveDaemon } from './world.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const REFERENCE = '/usr/lib/cni'
const LIBCNI = '/usr/share/gocode/src/github.com/containernetworking/cni'
const STATUS = { cniVersion: '1.1.0', name: 'net', type: 'detour-cni' }

const isRoot = process.getuid?.() === 0
const missing = [
  isRoot ? '' : 'root',
  existsSync(`${REFERENCE}/ptp`) ? '' : 'containernetworking-plugins',
  spawnSync('go', ['version']).status === 0 && existsSync(LIBCNI) ? '' : 'golang-go and golang-github-appc-cni-dev',
].filter(Boolean)

let folder: string
let daemon: FakeDaemon
let executable: string
let bundle: string

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'dtcni-'))
  daemon = await serveDaemon()
  execFileSync(process.execPath, [join(ROOT, 'dist/deploy/build-cni.js'), folder], { stdio: 'pipe' })
  executable = join(folder, 'detour-cni')
  bundle = join(folder, 'detour-cni.cjs')
}, 300_000)

afterAll(async () => {
  await daemon.close()
  rmSync(folder, { recursive: true })
})

describe('the executable', () => {
  const status = (socket: string) => JSON.stringify({ ...STATUS, socket })

  it('has no need of anything in the environment', async () => {
    const env = { CNI_COMMAND: 'STATUS' }
    expect(await spawnPlugin(env, status(daemon.socket), [executable])).toEqual({ status: 0, stdout: '', stderr: '' })
    const failed = await spawnPlugin(env, status('/nonexistent/s'), [executable])
    expect([failed.status, JSON.parse(failed.stdout).code, failed.stderr]).toEqual([1, 50, ''])
  })

  it.skipIf(!isRoot)(`runs where there are only its libraries${isRoot ? '' : ' (skipped: needs root)'}`, async () => {
    const jail = join(folder, 'jail')
    mkdirSync(jail)
    copyFileSync(executable, join(jail, 'plugin'))
    const libraries = execFileSync('ldd', [executable], { encoding: 'utf8' }).match(/\/\S+/g)!
    for (const library of libraries) {
      mkdirSync(join(jail, dirname(library)), { recursive: true })
      copyFileSync(library, join(jail, library))
    }
    const run = (verb: string) =>
      spawnPlugin({ CNI_COMMAND: verb }, status('/s'), ['/usr/sbin/chroot', jail, '/plugin'])
    const version = await run('VERSION')
    expect([version.status, version.stderr, JSON.parse(version.stdout).cniVersion]).toEqual([0, '', '1.1.0'])
    expect(JSON.parse((await run('STATUS')).stdout).code).toBe(50)
  })

  it('is its own installer', async () => {
    const bin = join(folder, 'bin')
    const conf = join(folder, 'conf')
    for (const made of [bin, conf]) mkdirSync(made)
    writeFileSync(join(conf, '10-a.conflist'), '{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}')
    const words = ['install', '--bin-dir', bin, '--conf-dir', conf]
    expect(await spawnPlugin({}, '', [executable, ...words])).toMatchObject({ status: 0, stderr: '' })
    const placed = await spawnPlugin({ CNI_COMMAND: 'VERSION' }, '', [join(bin, 'detour-cni')])
    expect(JSON.parse(placed.stdout).supportedVersions).toContain('1.1.0')
    const help = await spawnPlugin({}, '', [executable, '--help'])
    expect(help.stdout).toContain('install|uninstall|repair')
    expect((await spawnPlugin({}, '', [executable, 'frobnicate'])).status).toBe(2)
  })
})

describe('the bundle', () => {
  it('needs Node.js and nothing else', async () => {
    const alone = join(folder, 'alone')
    mkdirSync(alone)
    copyFileSync(bundle, join(alone, 'detour-cni'))
    const json = JSON.stringify({ ...STATUS, socket: daemon.socket })
    const run = await spawnPlugin({ CNI_COMMAND: 'STATUS' }, json, [process.execPath, join(alone, 'detour-cni')])
    expect(run).toEqual({ status: 0, stdout: '', stderr: '' })
    const version = await spawnPlugin({}, '', [process.execPath, join(alone, 'detour-cni'), '--version'])
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
  })
})

const note = missing.length === 0 ? '' : ` (skipped: needs ${missing.join(', ')})`

describe.skipIf(missing.length > 0)(`libcni and the chain ptp, host-local, detour${note}`, () => {
  const NODE = 'dtp1-node'
  const POD = 'dtp1-pod'
  let driver: string
  let plugins: string

  const removeNamespaces = () => {
    for (const name of [NODE, POD]) if (listNamespaces().includes(name)) deleteNamespace(name)
  }

  beforeAll(() => {
    removeNamespaces()
    for (const name of [NODE, POD]) createNamespace(name)
    driver = join(folder, 'driver')
    const env = { ...process.env, GO111MODULE: 'off', GOPATH: '/usr/share/gocode', GOCACHE: join(folder, 'go-cache') }
    execFileSync('go', ['build', '-o', driver, join(ROOT, 'test/cni/libcni/main.go')], { env, stdio: 'pipe' })
    plugins = join(folder, 'plugins')
    mkdirSync(plugins)
    for (const name of ['ptp', 'host-local']) symlinkSync(join(REFERENCE, name), join(plugins, name))
    symlinkSync(executable, join(plugins, 'detour-cni'))
  }, 300_000)
  afterAll(removeNamespaces)

  /** Has libcni go through the steps in the node's namespace. */
  async function steps(cniVersion: string, socket: string, ...names: string[]) {
    const conflist = join(folder, `${cniVersion}.conflist`)
    const ipam = { type: 'host-local', subnet: '10.251.0.0/24', dataDir: join(folder, 'ipam') }
    const detour = { type: 'detour-cni', socket, capabilities: { 'io.kubernetes.cri.pod-annotations': true } }
    writeFileSync(conflist, JSON.stringify({ cniVersion, name: 'chain', plugins: [{ type: 'ptp', ipam }, detour] }))
    const args = [
      'netns',
      'exec',
      NODE,
      driver,
      plugins,
      join(folder, 'cache'),
      conflist,
      'dtp1pod',
      namespacePath(POD),
    ]
    const { stdout } = await promisify(execFile)('ip', [...args, ...names])
    return stdout
      .trim()
      .split('\n')
      .map(text => JSON.parse(text))
  }

  const interfaces = (namespace: string) => ip(['-o', 'link'], namespace).trim().split('\n').length
  const leases = () => readdirSync(join(folder, 'ipam/chain')).filter(name => /^[\d.]+$/.test(name))

  it.each(['0.3.1', '0.4.0', '1.0.0'])('%s: VALIDATE, ADD, CHECK, DEL, DEL', async cniVersion => {
    daemon.asked.length = 0
    // libcni knows of no CHECK before 0.4.0 and says so itself.
    const names = ['validate', 'add', ...(cniVersion === '0.3.1' ? [] : ['check']), 'del', 'del']
    const lines = await steps(cniVersion, daemon.socket, ...names)
    expect(lines.map(({ step, error }) => [step, error])).toEqual(names.map(step => [step, undefined]))
    const { answer } = lines[1]
    expect(answer.cniVersion).toBe(cniVersion)
    const { address } = answer.ips[0]
    expect(address).toMatch(/^10\.251\.0\.\d+\/24$/)
    const key = { containerId: 'dtp1pod', ifname: 'eth0', netns: namespacePath(POD) }
    const pod = { podNamespace: 'shop', podName: 'web-0' }
    const asked = { add: 'attach', check: 'check', del: 'detach' } as Record<string, string>
    expect(daemon.asked.map(([operation]) => operation)).toEqual(names.slice(1).map(name => asked[name]))
    expect(daemon.asked[0][1]).toMatchObject({ ...key, ...pod, network: 'chain', addresses: [address] })
    expect(daemon.asked.at(-1)![1]).toEqual(key)
    expect([interfaces(NODE), interfaces(POD), leases()]).toEqual([1, 1, []])
  })

  it('an ADD without a daemon is 11 to libcni, and its DEL cleans up what came before', async () => {
    const [add, del] = await steps('1.0.0', '/nonexistent/s', 'add', 'del')
    expect(add).toMatchObject({ code: 11, error: expect.stringContaining('/nonexistent/s') })
    expect(del).toEqual({ step: 'del' })
    expect([interfaces(NODE), interfaces(POD), leases()]).toEqual([1, 1, []])
  })
})
