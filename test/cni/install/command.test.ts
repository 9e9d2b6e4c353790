// The three commands as processes: what they print, what they leave, whom they spare.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import { defaultSource } from '../../../src/cni/install/executable.ts'
import { installer, libcni, type Node, node, noLibcni, start } from './support.ts'

const root = process.getuid!() === 0
const flags = ({ confDir, binDir }: Node) => ['--conf-dir', confDir, '--bin-dir', binDir]
const SOURCE = ['--source', '/bin/true']
const install = (on: Node, ...more: string[]) => installer(['install', ...flags(on), ...SOURCE, ...more])
const uninstall = (on: Node, ...more: string[]) => installer(['uninstall', ...flags(on), ...more])
const typesIn = (on: Node, file: string) =>
  JSON.parse(on.read(file)).plugins.map((plugin: { type: string }) => plugin.type)

describe('install', () => {
  it('puts executable and entry in place and says so; once more, and nothing is to be done', async () => {
    const on = node('flannel')
    const first = await install(on)
    expect(first).toMatchObject({ status: 0, stderr: '' })
    expect(first.stdout).toContain('10-flannel.conflist: network cbr0: flannel, portmap, detour-cni')
    expect(execFileSync(join(on.binDir, 'detour-cni'))).toHaveLength(0)
    const files = on.all()
    const inode = statSync(on.file('10-flannel.conflist')).ino
    const second = await install(on, '--json')
    expect(second.events).toEqual([
      { event: 'executable', path: join(on.binDir, 'detour-cni'), outcome: 'unchanged' },
      {
        event: 'installed',
        file: '10-flannel.conflist',
        network: 'cbr0',
        after: ['flannel', 'portmap'],
        pending: null,
      },
    ])
    expect(on.all()).toEqual(files)
    expect(statSync(on.file('10-flannel.conflist')).ino).toBe(inode)
  })

  it('sets the entry’s options, and changes them', async () => {
    const on = node('calico')
    await install(on, '--socket', '/run/other.sock', '--inspect', 'always')
    await install(on, '--fail-mode', 'closed', '--exclude-namespaces', 'kube-system, shop')
    expect(JSON.parse(on.read('10-calico.conflist')).plugins.slice(2)).toEqual([
      {
        type: 'detour-cni',
        capabilities: { 'io.kubernetes.cri.pod-annotations': true },
        excludeNamespaces: ['kube-system', 'shop'],
        failMode: 'closed',
      },
    ])
  })

  it.skipIf(!root)('keeps mode and owner (skipped unless root)', async () => {
    const on = node('calico')
    chmodSync(on.file('10-calico.conflist'), 0o640)
    chownSync(on.file('10-calico.conflist'), 12, 34)
    await install(on)
    const { mode, uid, gid } = statSync(on.file('10-calico.conflist'))
    expect({ mode: mode & 0o7777, uid, gid }).toEqual({ mode: 0o640, uid: 12, gid: 34 })
  })

  it('keeps a symbolic link a link, and edits what it points to', async () => {
    const on = node('calico')
    const elsewhere = join(on.binDir, '..', 'elsewhere')
    mkdirSync(elsewhere)
    renameSync(on.file('10-calico.conflist'), join(elsewhere, 'real'))
    symlinkSync('../elsewhere/real', on.file('10-calico.conflist'))
    expect(await install(on)).toMatchObject({ status: 0 })
    expect(readlinkSync(on.file('10-calico.conflist'))).toBe('../elsewhere/real')
    expect(typesIn(on, '10-calico.conflist')).toEqual(['calico', 'portmap', 'detour-cni'])
    expect(readdirSync(elsewhere)).toEqual(['real'])
  })

  it('leaves nothing else behind, and removes what a crashed writer left', async () => {
    const on = node('calico')
    writeFileSync(on.file('.detour-10-calico.conflist.1.tmp'), 'half')
    utimesSync(on.file('.detour-10-calico.conflist.1.tmp'), 0, 0)
    await install(on)
    expect(Object.keys(on.all())).toEqual(['10-calico.conflist'])
    expect(readdirSync(on.binDir).sort()).toEqual(['.detour-cni.sha256', 'detour-cni'])
  })

  it('with --dry-run says what it would do and does nothing', async () => {
    const on = node('crio')
    const before = on.all()
    const { stdout, status } = await install(on, '--dry-run')
    expect(status).toBe(0)
    expect(stdout).toContain('detour-cni: would be placed')
    expect(stdout).toContain('10-crio-bridge-detour.conflist: would be written')
    expect(on.all()).toEqual(before)
    expect(readdirSync(on.binDir)).toEqual([])
  })

  it('with nothing to chain after is an error that names --wait', async () => {
    const outcome = await install(node())
    expect(outcome).toMatchObject({ status: 1, stderr: expect.stringMatching(/^not-found: no usable .*--wait/) })
  })

  it('with --wait installs when the primary has come', async () => {
    const on = node()
    const child = start(['install', ...flags(on), ...SOURCE, '--wait', '--json'])
    let out = ''
    for await (const chunk of child.stdout.setEncoding('utf8')) {
      out += chunk
      if (out.includes('"waiting"') && !existsSync(on.file('10-a.conflist'))) {
        // In place and in two writes, as primaries do.
        const text = '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}'
        writeFileSync(on.file('10-a.conflist'), text.slice(0, 20))
        writeFileSync(on.file('10-a.conflist'), text.slice(20), { flag: 'a' })
      }
    }
    if (child.exitCode === null) await once(child, 'close')
    expect(child.exitCode).toBe(0)
    expect(typesIn(on, '10-a.conflist')).toEqual(['bridge', 'detour-cni'])
  })

  it.skipIf(!root)('without the right to write says which file and what to do (skipped unless root)', async () => {
    const on = node('calico')
    chmodSync(join(on.confDir, '..'), 0o755)
    chmodSync(on.binDir, 0o777)
    const outcome = await installer(['install', ...flags(on), ...SOURCE], 65534)
    expect(outcome).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^permission: .*10-calico.conflist.*root/),
    })
    expect(typesIn(on, '10-calico.conflist')).toEqual(['calico', 'portmap'])
  })

  it.skipIf(!root)('does not guess about a first file that it may not read (skipped unless root)', async () => {
    const on = node('calico')
    chmodSync(join(on.confDir, '..'), 0o755)
    chmodSync(on.confDir, 0o777)
    chmodSync(on.binDir, 0o777)
    copyFileSync(on.file('10-calico.conflist'), on.file('05-secret.conflist'))
    chmodSync(on.file('05-secret.conflist'), 0o600)
    const outcome = await installer(['install', ...flags(on), ...SOURCE], 65534)
    expect(outcome.stderr).toMatch(/05-secret.conflist comes first but cannot be read \(EACCES/)
  })
})

describe('the executable', () => {
  it('is replaced while it runs, where writing to it fails with "text file busy"', async () => {
    const on = node('calico')
    const path = join(on.binDir, 'detour-cni')
    await installer(['install', ...flags(on), '--source', '/bin/cat'])
    const running = spawn(path, { stdio: ['pipe', 'pipe', 'inherit'] })
    running.stdin.write('one')
    expect(String((await once(running.stdout, 'data'))[0])).toBe('one')
    expect(spawnSync('sh', ['-c', 'cat /bin/true > "$0"', path], { encoding: 'utf8' }).stderr).toMatch(/busy/i)
    expect(await installer(['install', ...flags(on), '--source', '/bin/echo'])).toMatchObject({ status: 0 })
    expect(execFileSync(path, ['new'], { encoding: 'utf8' })).toBe('new\n')
    running.stdin.end('two')
    expect(String((await once(running.stdout, 'data'))[0])).toBe('two')
    expect((await once(running, 'close'))[0]).toBe(0)
  })

  it('is recorded in the format of sha256sum', async () => {
    const on = node('calico')
    await install(on)
    const check = ['-c', '.detour-cni.sha256']
    expect(execFileSync('sha256sum', check, { cwd: on.binDir, encoding: 'utf8' })).toBe('detour-cni: OK\n')
    expect(statSync(join(on.binDir, 'detour-cni')).mode & 0o7777).toBe(0o755)
  })

  it('that is another’s stays', async () => {
    const on = node('calico')
    await install(on)
    writeFileSync(join(on.binDir, 'detour-cni'), 'somebody else’s')
    const { stdout, status } = await uninstall(on)
    expect(status).toBe(0)
    expect(stdout).toContain('stays, it is not the one that was installed')
    expect(existsSync(join(on.binDir, 'detour-cni'))).toBe(true)
  })

  it('stays with --keep-executable, for pods that still run', async () => {
    const on = node('calico')
    await install(on)
    await uninstall(on, '--keep-executable')
    expect(existsSync(join(on.binDir, 'detour-cni'))).toBe(true)
  })

  it('is by default the one that runs, else what is built beside detour, the one without Node.js first', () => {
    const { binDir: dist } = node()
    mkdirSync(join(dist, 'src/cli'), { recursive: true })
    const main = join(dist, 'src/cli/main.js')
    const link = join(dist, 'detour')
    writeFileSync(main, '')
    symlinkSync('src/cli/main.js', link)
    expect(() => defaultSource('/usr/bin/node', link)).toThrow(/npm run build:cni/)
    writeFileSync(join(dist, 'detour-cni.cjs'), '')
    expect(defaultSource('/usr/bin/node', link)).toBe(join(dist, 'detour-cni.cjs'))
    writeFileSync(join(dist, 'detour-cni'), '')
    expect(defaultSource('/usr/bin/node', link)).toBe(join(dist, 'detour-cni'))
    expect(defaultSource('/usr/bin/node', join(dist, 'detour-cni.cjs'))).toBe(join(dist, 'detour-cni.cjs'))
    expect(defaultSource('/opt/cni/bin/detour-cni', 'install')).toBe('/opt/cni/bin/detour-cni')
  })

  it('that is not there is an error that says what to do', async () => {
    const on = node('calico')
    const outcome = await installer(['install', ...flags(on), '--source', '/nonexistent'])
    expect(outcome).toMatchObject({ status: 1, stderr: expect.stringContaining('/nonexistent: cannot be read') })
    expect(typesIn(on, '10-calico.conflist')).toEqual(['calico', 'portmap'])
  })
})

describe('uninstall', () => {
  it.each(['calico', 'crio', 'ovn-kubernetes', 'multus'])('beside %s is the exact inverse', async primary => {
    const on = node(primary)
    const before = on.all()
    await install(on)
    expect(on.all()).not.toEqual(before)
    expect(await uninstall(on)).toMatchObject({ status: 0, stderr: '' })
    expect(on.all()).toEqual(before)
    expect(readdirSync(on.binDir)).toEqual([])
  })

  it('of nothing succeeds', async () => {
    const on = node('calico')
    const before = on.all()
    expect(await uninstall(on, '--json')).toMatchObject({
      status: 0,
      events: [{ event: 'absent' }, { outcome: 'absent' }],
    })
    expect(on.all()).toEqual(before)
  })
})

describe('install --multus', () => {
  it('writes an unchained configuration and prints the object by which pods ask for it; uninstall removes it', async () => {
    const on = node()
    const { stdout, status } = await install(on, '--multus', '--namespace', 'shop', '--fail-mode', 'closed')
    expect(status).toBe(0)
    expect(parse(stdout)).toEqual({
      apiVersion: 'k8s.cni.cncf.io/v1',
      kind: 'NetworkAttachmentDefinition',
      metadata: { name: 'detour', namespace: 'shop' },
    })
    expect(JSON.parse(on.read('detour.conf'))).toEqual({
      cniVersion: '0.4.0',
      name: 'detour',
      type: 'detour-cni',
      unchained: true,
      capabilities: { 'io.kubernetes.cri.pod-annotations': true },
      failMode: 'closed',
    })
    expect(await uninstall(on, '--multus')).toMatchObject({ status: 0 })
    expect([on.all(), readdirSync(on.binDir)]).toEqual([{}, []])
  })

  it.skipIf(noLibcni)('is a network of that name to libcni (skipped without go)', async () => {
    const on = node()
    await install(on, '--multus')
    expect(libcni(on.confDir)).toMatchObject([{ name: 'detour', plugins: [{ type: 'detour-cni', unchained: true }] }])
  })

  it('does not take another’s file', async () => {
    const on = node()
    writeFileSync(on.file('detour.conf'), '{"cniVersion":"0.4.0","name":"detour","type":"bridge"}')
    expect(await install(on, '--multus')).toMatchObject({
      status: 1,
      stderr: expect.stringContaining("is not Detour's"),
    })
    await uninstall(on, '--multus')
    expect(existsSync(on.file('detour.conf'))).toBe(true)
  })
})

describe('wrong usage', () => {
  it.each([
    [['remove'], "'remove': install, uninstall, repair"],
    [['install', 'more'], "'more'"],
    [['install', '--socket', 'relative'], "--socket 'relative': an absolute path"],
    [['install', '--inspect', 'maybe'], 'default, always or never'],
    [['install', '--fail-mode', 'ajar'], 'open or closed'],
    [['install', '--exclude-namespaces', 'a,B!'], "'B!'"],
    [['install', '--nonsense'], '--nonsense'],
    [['uninstall', '--wait'], 'uninstall has no option --wait'],
    [['repair', '--dry-run'], 'repair has no option --dry-run'],
  ])('%j is told with status 2', async (argv, message) => {
    const outcome = await installer(argv)
    expect(outcome).toMatchObject({ status: 2, stdout: '', stderr: expect.stringContaining(message) })
  })

  it('--help shows examples, and every option', async () => {
    const { stdout, status } = await installer(['--help'])
    expect(status).toBe(0)
    expect(stdout).toContain('Examples:')
    for (const option of ['--wait', '--multus', '--status-file', '--keep-executable', '--exclude-namespaces']) {
      expect(stdout).toContain(option)
    }
  })
})

describe('crashes', () => {
  it('a full disk leaves the old file as it was', async ctx => {
    if (!root) ctx.skip()
    const on = node('calico')
    const before = on.all()
    const small = join(on.confDir, '..', 'small')
    mkdirSync(small)
    // A file system of one page: the file fits, its successor does not.
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4k,nr_inodes=16', 'tmpfs', small])
    try {
      copyFileSync(on.file('10-calico.conflist'), join(small, '10-calico.conflist'))
      const outcome = await installer(['install', '--conf-dir', small, '--bin-dir', on.binDir, ...SOURCE])
      expect(outcome).toMatchObject({ status: 1, stderr: expect.stringMatching(/ENOSPC/) })
      expect(readdirSync(small)).toEqual(['10-calico.conflist'])
      expect(execFileSync('cat', [join(small, '10-calico.conflist')], { encoding: 'utf8' })).toBe(
        before['10-calico.conflist'],
      )
    } finally {
      execFileSync('umount', [small])
      rmSync(small, { recursive: true })
    }
    expect(lstatSync(on.confDir).isDirectory()).toBe(true)
  })
})
