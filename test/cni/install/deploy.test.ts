// The files of deploy/: what they rely on is what the program has.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { parseAllDocuments } from 'yaml'
import { configSchema, configuredEndpoints } from '../../../src/control/config.ts'
import { readYaml } from '../../../src/control/yaml.ts'
import { NODE_CAPABILITIES } from '../../../src/os/capabilities.ts'
import { installer } from './support.ts'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const text = (name: string) => readFileSync(join(root, 'deploy', name), 'utf8')

/** As much of Kubernetes' objects as is looked at. */
interface Container {
  name: string
  image: string
  args?: string[]
  securityContext?: { privileged?: boolean; capabilities: { add: string[]; drop: string[] } }
  volumeMounts?: { name: string; mountPath: string; mountPropagation?: string; readOnly?: boolean }[]
  livenessProbe?: { httpGet: { host: string; port: number; path: string } }
  readinessProbe?: { httpGet?: { host: string; port: number; path: string }; exec?: { command: string[] } }
}
interface Pod {
  hostNetwork: boolean
  tolerations: object[]
  initContainers: Container[]
  containers: Container[]
  volumes: { name: string; hostPath?: { path: string }; configMap?: { name: string } }[]
}
interface KubernetesObject {
  kind: string
  metadata: { name: string; namespace?: string; labels?: object }
  data: Record<string, string>
  spec: { selector: { matchLabels: object }; template: { metadata: { labels: object }; spec: Pod } }
}

function objects(name: string): KubernetesObject[] {
  return parseAllDocuments(text(name)).map(document => {
    expect(document.errors).toEqual([])
    return document.toJS()
  })
}

const [namespace, configMap, daemonSet] = objects('daemonset.yaml')
const [uninstall] = objects('uninstall.yaml')
const podOf = ({ spec }: KubernetesObject) => spec.template.spec
const containersOf = (object: KubernetesObject) => [...podOf(object).initContainers, ...podOf(object).containers]
const node = podOf(daemonSet).containers[0]
const defaults = configSchema.parse({})
const NEEDED = NODE_CAPABILITIES.map(({ name }) => name)

function config() {
  const folder = mkdtempSync(join(tmpdir(), 'detour-deploy-'))
  try {
    writeFileSync(join(folder, 'node.yaml'), configMap.data['node.yaml'])
    return readYaml(configSchema, join(folder, 'node.yaml'))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

describe('the manifest', () => {
  it('has its objects in one namespace, which lets them do what they must', () => {
    expect([namespace, configMap, daemonSet].map(({ kind }) => kind)).toEqual(['Namespace', 'ConfigMap', 'DaemonSet'])
    expect(configMap.metadata.namespace).toBe(namespace.metadata.name)
    expect(namespace.metadata.labels).toEqual({ 'pod-security.kubernetes.io/enforce': 'privileged' })
  })

  it('holds a configuration that the daemon takes, and that leaves its own namespace alone', () => {
    expect(configuredEndpoints(config())).toMatchObject([{ address: '192.0.2.10' }])
    expect(config().pods.excludeNamespaces).toContain(namespace.metadata.name)
    expect(node.args).toEqual(['node', '--config', '/etc/detour/node.yaml'])
    expect(node.volumeMounts).toContainEqual({ name: 'config', mountPath: '/etc/detour', readOnly: true })
  })

  it('probes where the daemon listens', () => {
    const [host, port] = config().metrics.listen.split(':')
    const at = { host, port: Number(port) }
    expect(node.livenessProbe?.httpGet).toEqual({ ...at, path: '/healthz' })
    expect(node.readinessProbe?.httpGet).toEqual({ ...at, path: '/readyz' })
  })

  it('has the node’s state, pods’ namespaces, BPF file system and TUN device where the daemon looks', () => {
    const mounts = Object.fromEntries(node.volumeMounts!.map(mount => [mount.mountPath, mount]))
    expect(Object.keys(mounts)).toEqual(
      expect.arrayContaining([defaults.node.state, '/run/netns', '/sys/fs/bpf', '/dev/net/tun']),
    )
    expect(mounts['/run/netns'].mountPropagation).toBe('HostToContainer')
  })

  it('keeps the status file where the probe of the same container reads it', () => {
    const keeper = podOf(daemonSet).containers[1]
    const file = keeper.args![keeper.args!.indexOf('--status-file') + 1]
    expect(keeper.readinessProbe?.exec?.command).toEqual(['grep', '-q', '"ready":true', file])
    expect(keeper.volumeMounts!.some(({ mountPath }) => file.startsWith(`${mountPath}/`))).toBe(true)
  })
})

describe.each([
  ['daemonset.yaml', daemonSet],
  ['uninstall.yaml', uninstall],
])('%s', (_name, object) => {
  it('selects its own pods, on every node, without the network that it is part of', () => {
    const { selector, template } = object.spec
    expect(template.metadata.labels).toEqual(selector.matchLabels)
    expect(object.metadata.namespace).toBe(namespace.metadata.name)
    expect(podOf(object)).toMatchObject({ hostNetwork: true, tolerations: [{ operator: 'Exists' }] })
  })

  it('mounts only volumes that it has, at the paths that they have on the node', () => {
    const volumes = new Map(podOf(object).volumes.map(volume => [volume.name, volume]))
    const mounts = containersOf(object).flatMap(({ volumeMounts = [] }) => volumeMounts)
    for (const { name, mountPath } of mounts) {
      const volume = volumes.get(name)
      expect(volume?.hostPath?.path ?? `config map ${volume?.configMap?.name}`).toBe(
        name === 'config' ? `config map ${configMap.metadata.name}` : mountPath,
      )
    }
    expect(new Set(mounts.map(({ name }) => name))).toEqual(new Set(volumes.keys()))
  })

  it('is not privileged: the daemon has the capabilities that it checks for, the others those for files', () => {
    for (const { args = [], securityContext } of containersOf(object)) {
      if (securityContext === undefined) continue
      const { add, drop } = securityContext.capabilities
      const daemon = [...NEEDED, 'CAP_SETPCAP']
      const wanted = args[0] === 'node' ? daemon : ['CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_FOWNER']
      expect(drop).toEqual(['ALL'])
      expect(add.map(name => `CAP_${name}`).sort()).toEqual(wanted.sort())
      expect(securityContext.privileged).toBeUndefined()
    }
  })

  it('calls the installer with options that it has', async () => {
    const calls = containersOf(object).flatMap(({ args = [] }) => (args[0] === 'cni' ? [args.slice(1)] : []))
    expect(calls.length).toBeGreaterThan(0)
    for (const args of calls) expect(await installer([...args, '--help'])).toMatchObject({ status: 0, stderr: '' })
  })

  it('is of one image, of this version', () => {
    const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    expect(new Set(containersOf(object).map(({ image }) => image))).toEqual(new Set([`detour:${version}`]))
  })
})

describe('systemd units', () => {
  const units = ['detour-node.service', 'detour-cni.service']
  const noSystemd = spawnSync('systemd-analyze', ['--version']).status !== 0

  it.skipIf(noSystemd)('are found good by systemd-analyze (skipped without systemd)', () => {
    const folder = mkdtempSync(join(tmpdir(), 'detour-units-'))
    const paths = units.map(name => join(folder, name))
    units.forEach((name, index) => {
      // The program is not installed here.
      writeFileSync(paths[index], text(name).replaceAll('/usr/local/bin/detour', '/bin/true'))
    })
    const { status, stderr } = spawnSync('systemd-analyze', ['verify', ...paths], { encoding: 'utf8' })
    rmSync(folder, { recursive: true })
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  })

  it('bound the daemon’s capabilities to those that it needs', () => {
    const [, list] = /^CapabilityBoundingSet=(.*)$/m.exec(text('detour-node.service'))!
    expect(list.split(' ').sort()).toEqual([...NEEDED].sort())
  })

  it('keep what the configuration keeps: the folder of the state, over restarts', () => {
    expect(text('detour-node.service')).toMatch(/^RuntimeDirectory=detour$/m)
    expect(text('detour-node.service')).toMatch(/^RuntimeDirectoryPreserve=yes$/m)
    expect(defaults.node.state).toBe('/run/detour')
  })

  it('give the daemon no mount namespace, where it would not see the namespaces of pods', () => {
    expect(text('detour-node.service')).not.toMatch(
      /^(Protect(System|Home|KernelTunables|Hostname)|Private\w+|ReadWritePaths|BindPaths)=/m,
    )
  })
})

describe('the container file', () => {
  it('copies what there is, and installs the program that the package names', () => {
    const file = text('Containerfile')
    const copied = [...file.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, sources]) => sources.split(' '))
    expect(copied.length).toBeGreaterThan(4)
    expect(copied.filter(source => !existsSync(join(root, source)))).toEqual([])
    const { bin } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    expect(file).toContain(`ln -s /usr/lib/detour/${bin.detour} /usr/local/bin/detour`)
    expect(file).toContain('npm run build:cni')
  })
})
