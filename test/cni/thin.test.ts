// The plugin starts fast because of what it does not load, and behaves as a process among others.

import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, posix } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { COMPILED, spawnPlugin } from './process.ts'
import { type FakeDaemon, serveDaemon } from './world.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const IMPORT = /^(?:import|export)\b(?! type\b)[^'"]*?from '([^']+)'|\bimport\('([^']+)'\)/gm

/** Everything that may be loaded from a file on, and from where: packages and built-in modules by name. */
function graph(entry: string, reached = new Map<string, string[]>()): Map<string, string[]> {
  if (reached.has(entry)) return reached
  const found = [...readFileSync(join(ROOT, entry), 'utf8').matchAll(IMPORT)].map(match => match[1] ?? match[2])
  reached.set(entry, found)
  for (const name of found) if (name.startsWith('.')) graph(posix.join(dirname(entry), name), reached)
  return reached
}

const CONFIG = { cniVersion: '1.1.0', name: 'net', type: 'detour-cni', prevResult: { ips: [] } }
const ENV = { CNI_CONTAINERID: 'c0ffee', CNI_IFNAME: 'eth0', CNI_NETNS: '/run/netns/blue' }

let daemon: FakeDaemon
let folder: string
beforeAll(async () => {
  daemon = await serveDaemon()
  folder = mkdtempSync(join(tmpdir(), 'dtcni-'))
})
afterAll(async () => {
  await daemon.close()
  rmSync(folder, { recursive: true })
})

const config = (more: object = {}) => JSON.stringify({ ...CONFIG, socket: daemon.socket, ...more })

describe('what it loads', () => {
  it('of packages: protobufjs, and nothing native', () => {
    const reached = graph('src/cni/main.ts')
    expect([...reached.keys()]).toContain('src/control/protocol.ts')
    const packages = [...reached.values()].flat().filter(name => !/^\.|^node:/.test(name))
    expect([...new Set(packages)]).toEqual(['protobufjs'])
    expect([...reached.keys()].filter(file => /^src\/(os|node|memory|pipeline|cli)\//.test(file))).toEqual([])
  })

  it('before it knows that it is called as a plugin: nothing', () => {
    const text = readFileSync(join(ROOT, 'src/cli/main.ts'), 'utf8')
    expect(text).not.toMatch(/^import/m)
    const seen = graph('src/cli/cni-main.ts').get('src/cli/cni-main.ts')
    expect(seen).toEqual(['../errors.ts', '../cni/main.ts', './cni-words.ts'])
  })

  it('VERSION and a bad configuration do not load the protocol', async () => {
    const trace = { NODE_DEBUG: 'esm' }
    const loads = async (verb: string, stdin: string) =>
      (await spawnPlugin({ ...ENV, ...trace, CNI_COMMAND: verb }, stdin)).stderr.includes('protocol.js')
    expect(await loads('VERSION', '{}')).toBe(false)
    expect(await loads('ADD', '{}')).toBe(false)
    expect(await loads('STATUS', config())).toBe(true)
  })
})

describe('the process', () => {
  it('answers ADD on standard output, and STATUS by its exit status', async () => {
    const add = await spawnPlugin({ ...ENV, CNI_COMMAND: 'ADD' }, config())
    expect(add).toEqual({ status: 0, stdout: '{"ips":[],"cniVersion":"1.1.0"}\n', stderr: '' })
    const status = await spawnPlugin({ CNI_COMMAND: 'STATUS' }, config())
    expect(status).toEqual({ status: 0, stdout: '', stderr: '' })
  })

  it('needs no argument either, as an executable in the folder of plugins gets none', async () => {
    const { status, stdout } = await spawnPlugin({ CNI_COMMAND: 'VERSION' }, '', COMPILED.slice(0, 2))
    expect([status, JSON.parse(stdout).cniVersion]).toEqual([0, '1.1.0'])
  })

  it('without CNI_COMMAND is the command, which explains', async () => {
    const help = await spawnPlugin({}, '', [...COMPILED, '--help'])
    expect(help.status).toBe(0)
    expect(help.stdout).toContain('detour cni install|uninstall|repair')
    expect(help.stdout).toContain('Examples:')
    const wrong = await spawnPlugin({}, '', [...COMPILED, 'instal'])
    expect(wrong).toMatchObject({ status: 2, stdout: '', stderr: expect.stringContaining("'instal'") })
  })

  it('logs a line for each call, readable by its owner alone; a log that cannot be written fails nothing', async () => {
    const logFile = join(folder, 'log')
    const env = { ...ENV, CNI_ARGS: 'K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0' }
    await spawnPlugin({ ...env, CNI_COMMAND: 'ADD' }, config({ logFile }))
    await spawnPlugin({ ...env, CNI_COMMAND: 'ADD' }, config({ logFile, socket: '/nonexistent/s' }))
    expect(statSync(logFile).mode & 0o777).toBe(0o600)
    const [good, bad] = readFileSync(logFile, 'utf8')
      .split('\n')
      .slice(0, 2)
      .map(line => JSON.parse(line))
    expect(good).toMatchObject({ command: 'ADD', podNamespace: 'shop', podName: 'web-0', inspected: true, id: 'id' })
    expect(bad).toMatchObject({ command: 'ADD', containerId: 'c0ffee', code: 11 })
    const { status } = await spawnPlugin({ ...env, CNI_COMMAND: 'ADD' }, config({ logFile: `${folder}/no/log` }))
    expect(status).toBe(0)
  })

  it('ends by itself when nobody reads its answer', async () => {
    const command = ['sh', '-c', 'exec "$@" | true', 'sh', ...COMPILED]
    const { status, stderr } = await spawnPlugin(
      { ...ENV, PATH: '/usr/bin:/bin', CNI_COMMAND: 'ADD' },
      config(),
      command,
    )
    expect([status, stderr]).toEqual([0, ''])
  })
})
