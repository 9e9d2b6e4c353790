// What goes wrong in the field, staged: other processes write, rename and remove files as primary plugins do, the kernel's
// inotify tells, and the entry is back.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { BACKOFF } from '../../../src/cni/install/backoff.ts'
import { type KeepEvent, type KeepOptions, keepInstalled } from '../../../src/cni/install/keep.ts'
import { FIXTURES, type Node, node, start } from './support.ts'

/** Never looks on its own, so that what is seen was heard; never loses patience. */
const HEARS = { entry: { failMode: 'closed' }, lookMs: 3_600_000, backoff: { ...BACKOFF, free: 1_000 } } as const

const opened: Array<() => void> = []
afterEach(() => {
  for (const close of opened.splice(0)) close()
})

function keep(on: Node, options: Partial<KeepOptions> = {}) {
  const events: KeepEvent[] = []
  const counts = { repaired: 0, ready: 0, waiting: 0, conflict: 0 }
  let wake = () => {}
  const keeper = keepInstalled({ confDir: on.confDir, ...HEARS, ...options }, event => {
    events.push(event)
    counts[event.event]++
    wake()
  })
  opened.push(keeper.close)
  /** The first event of a kind that has not been waited for yet. */
  const next = async <K extends KeepEvent['event']>(kind: K): Promise<Extract<KeepEvent, { event: K }>> => {
    for (;;) {
      const at = events.findIndex(({ event }) => event === kind)
      if (at !== -1) return events.splice(0, at + 1)[at] as Extract<KeepEvent, { event: K }>
      await new Promise<void>(resolve => {
        wake = resolve
      })
    }
  }
  return { keeper, next, counts }
}

/** Runs a shell script in the configuration directory, as another process that means well. */
const primary = (on: Node, script: string) =>
  execFileSync('sh', ['-ec', script], { cwd: on.confDir, env: { PATH: process.env.PATH, FIXTURES } })

/** The inodes that this process watches, as the kernel tells (proc_pid_fdinfo(5)). */
function watchedInodes(): number[] {
  const infos = readdirSync('/proc/self/fdinfo').flatMap(fd => {
    const path = `/proc/self/fdinfo/${fd}`
    return existsSync(path) ? [readFileSync(path, 'utf8')] : []
  })
  return infos.flatMap(info =>
    [...info.matchAll(/^inotify wd:\w+ ino:(\w+)/gm)].map(([, ino]) => Number.parseInt(ino, 16)),
  )
}

const typesIn = (on: Node, file: string) =>
  JSON.parse(on.read(file)).plugins.map((plugin: { type: string }) => plugin.type)
const CALICO = ['calico', 'portmap', 'detour-cni']

describe('repair', () => {
  it.each([
    [
      'in place, as Calico and Flannel do at each start',
      'cat $FIXTURES/calico/10-calico.conflist > 10-calico.conflist',
    ],
    [
      'by rename, as Cilium and kindnet do',
      'cp $FIXTURES/calico/10-calico.conflist new.temp; mv new.temp 10-calico.conflist',
    ],
    ['by removing and making it', 'rm 10-calico.conflist; cp $FIXTURES/calico/10-calico.conflist 10-calico.conflist'],
    [
      'half, and later the rest',
      `head -c 100 $FIXTURES/calico/10-calico.conflist > 10-calico.conflist
       tail -c +101 $FIXTURES/calico/10-calico.conflist >> 10-calico.conflist`,
    ],
    ['with sed', `sed -i 's/detour-cni/other/; s/"mtu": 0/"mtu": 1450/' 10-calico.conflist`],
  ])('when the primary writes its file again %s', async (_how, script) => {
    const on = node('calico')
    const { keeper, next } = keep(on)
    await next('ready')
    const before = Date.now()
    primary(on, script)
    const { missingSince, file } = await next('repaired')
    await next('ready')
    expect(typesIn(on, '10-calico.conflist').at(-1)).toBe('detour-cni')
    expect(file).toBe('10-calico.conflist')
    // Which pods slipped by: those made since the file was written. The kernel's clock of files runs a tick behind.
    expect(Date.parse(missingSince)).toBeGreaterThan(before - 100)
    expect(Date.parse(missingSince)).toBeLessThanOrEqual(Date.now())
    expect(keeper.ready()).toEqual({ ok: true, reason: 'chained in 10-calico.conflist' })
  })

  it('when the node boots: what was there is overwritten before anybody watches', async () => {
    const on = node('k3s')
    keep(on).keeper.close()
    expect(typesIn(on, '10-flannel.conflist')).toContain('detour-cni')
    primary(on, 'cat $FIXTURES/k3s/10-flannel.conflist > 10-flannel.conflist')
    const { next } = keep(on)
    expect(await next('repaired')).toMatchObject({ cause: 'the file was written without the entry' })
    expect(typesIn(on, '10-flannel.conflist')).toEqual(['flannel', 'portmap', 'bandwidth', 'detour-cni'])
  })

  it('when another file comes that sorts first', async () => {
    const on = node('calico')
    const { next } = keep(on)
    await next('ready')
    primary(on, 'cp $FIXTURES/cilium/05-cilium.conflist .')
    expect(await next('ready')).toMatchObject({ file: '05-cilium.conflist', network: 'cilium', after: ['cilium-cni'] })
    expect(typesIn(on, '10-calico.conflist')).toEqual(['calico', 'portmap'])
  })

  it('when the primary renames its file', async () => {
    const on = node('calico')
    const { next } = keep(on)
    await next('ready')
    primary(on, 'mv 10-calico.conflist 20-calico.conflist')
    expect(await next('ready')).toMatchObject({ file: '20-calico.conflist' })
    expect(typesIn(on, '20-calico.conflist')).toEqual(CALICO)
  })

  it('when somebody put the entry in twice', async () => {
    const on = node('calico')
    const { next } = keep(on)
    await next('ready')
    primary(on, `sed -i 's/"plugins": \\[/&{"type":"detour-cni"},{"type":"detour-cni"},/' 10-calico.conflist`)
    expect(await next('repaired')).toMatchObject({ cause: 'the entry was changed or moved' })
    expect(typesIn(on, '10-calico.conflist')).toEqual(CALICO)
  })

  it('when the plain configuration that a list stands for changes', async () => {
    const on = node('ovn-kubernetes')
    const { next } = keep(on)
    expect(await next('ready')).toMatchObject({ file: '10-ovn-kubernetes-detour.conflist' })
    primary(
      on,
      `sed 's/"logLevel":"4"/"logLevel":"5"/' 10-ovn-kubernetes.conf > ovnkube-1; mv ovnkube-1 10-ovn-kubernetes.conf`,
    )
    await next('repaired')
    expect(JSON.parse(on.read('10-ovn-kubernetes-detour.conflist')).plugins[0].logLevel).toBe('5')
  })

  it('when the directory itself is another one', async () => {
    const on = node('calico')
    const { next } = keep(on, { lookMs: 20 })
    await next('ready')
    renameSync(on.confDir, `${on.confDir}.old`)
    expect((await next('waiting')).reason).toMatch(/no such directory/)
    mkdirSync(on.confDir)
    primary(on, 'cp $FIXTURES/calico/10-calico.conflist .')
    await next('ready')
    expect(typesIn(on, '10-calico.conflist')).toEqual(CALICO)
    expect(watchedInodes()).toContain(statSync(on.confDir).ino)
  })

  it('when the executable is gone', async () => {
    const on = node('calico')
    const { next } = keep(on, { executable: { source: '/bin/true', binDir: on.binDir } })
    await next('ready')
    rmSync(join(on.binDir, 'detour-cni'))
    primary(on, 'cp $FIXTURES/calico/10-calico.conflist 10-calico.conflist')
    await next('ready')
    expect(execFileSync(join(on.binDir, 'detour-cni'))).toHaveLength(0)
  })
})

describe('readiness', () => {
  it('is no while the file is half written, and while it is gone', async () => {
    const on = node('calico')
    const { keeper, next } = keep(on)
    await next('ready')
    primary(on, 'head -c 100 $FIXTURES/calico/10-calico.conflist > 10-calico.conflist')
    expect((await next('waiting')).reason).toMatch(/10-calico.conflist is not valid JSON/)
    expect(keeper.ready().ok).toBe(false)
    primary(on, 'cp $FIXTURES/calico/10-calico.conflist 10-calico.conflist')
    await next('ready')
    expect(keeper.ready().ok).toBe(true)
    primary(on, 'rm 10-calico.conflist')
    expect((await next('waiting')).reason).toMatch(/no usable network configuration/)
    expect(keeper.ready().ok).toBe(false)
  })

  it('is no until Multus has read the file that it delegates to', async () => {
    const on = node('multus')
    const { keeper, next } = keep(on)
    expect((await next('waiting')).reason).toMatch(/Multus has yet to read 10-calico.conflist again/)
    expect(keeper.ready().ok).toBe(false)
    // Multus' entrypoint: the primary's JSON in one line, a temporary file, a rename.
    primary(
      on,
      `python3 - <<'E'
import json, os
multus = json.load(open('00-multus.conf'))
multus['delegates'] = [json.load(open('10-calico.conflist'))]
json.dump(multus, open('00-multus.conf.new', 'w'))
os.rename('00-multus.conf.new', '00-multus.conf')
E`,
    )
    await next('ready')
    expect(keeper.ready().ok).toBe(true)
  })
})

/** Cilium with cni.exclusive: on any event in the directory writes its own file if that differs, and renames all others. */
const EXCLUSIVE = `
const { watch, readFileSync, readdirSync, writeFileSync, renameSync } = require('node:fs')
const [own, text] = [process.argv[1], readFileSync(process.argv[2], 'utf8')]
function act() {
  if (readFileSync(own, 'utf8') !== text) {
    writeFileSync('x.temp', text)
    renameSync('x.temp', own)
    console.log('undone')
  }
  for (const name of readdirSync('.')) {
    if (name !== own && /\\.(conf|conflist|json)$/.test(name)) renameSync(name, name + '.cilium_bak')
  }
}
watch('.', act)
act()
console.log('watching')
`

describe('a primary that takes the entry out every time', () => {
  it('is told with an alarm and what to do, is not fought in a loop, and when it gives in the entry is back', async () => {
    const on = node('cilium')
    const { keeper, next, counts } = keep(on, { backoff: { ...BACKOFF, firstMs: 200 } })
    await next('ready')
    const args = ['-e', EXCLUSIVE, '05-cilium.conflist', join(FIXTURES, 'cilium/05-cilium.conflist')]
    const cilium = spawn(process.execPath, args, { cwd: on.confDir, stdio: ['ignore', 'pipe', 'inherit'] })
    let undone = 0
    cilium.stdout.setEncoding('utf8').on('data', text => (undone += text.split('undone').length - 1))
    const first = await next('conflict')
    expect(first.advice).toBe('set cni.exclusive=false, so that Cilium leaves its file to others')
    expect(first.row).toBeGreaterThanOrEqual(BACKOFF.free)
    expect(keeper.ready()).toMatchObject({ ok: false, reason: expect.stringContaining('cni.exclusive=false') })
    // It goes on trying, one repair at a time, told each time.
    const second = await next('conflict')
    expect(second.row).toBeGreaterThan(first.row)
    cilium.kill()
    await once(cilium, 'close')
    await next('ready')
    expect(undone).toBeGreaterThanOrEqual(BACKOFF.free)
    expect(undone).toBeLessThanOrEqual(counts.repaired)
    expect(typesIn(on, '05-cilium.conflist')).toEqual(['cilium-cni', 'detour-cni'])
  })
})

describe('repair as a process', () => {
  it('tells events as lines, keeps a status file, ends at SIGTERM and leaves the entry', async () => {
    const on = node('calico')
    const status = join(on.binDir, 'status.json')
    const flags = ['--conf-dir', on.confDir, '--bin-dir', on.binDir, '--source', '/bin/true', '--status-file', status]
    const child = start(['repair', ...flags, '--json'])
    const kinds: string[] = []
    let ready = 0
    let rest = ''
    for await (const chunk of child.stdout.setEncoding('utf8')) {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop()!
      for (const line of lines) {
        const { event, time } = JSON.parse(line)
        expect(Date.parse(time)).not.toBeNaN()
        kinds.push(event)
        if (event !== 'ready') continue
        if (++ready === 1) primary(on, 'cat $FIXTURES/calico/10-calico.conflist > 10-calico.conflist')
        if (ready === 2) child.kill('SIGTERM')
      }
    }
    if (child.exitCode === null) await once(child, 'close')
    expect(child.exitCode).toBe(0)
    expect(kinds).toEqual(expect.arrayContaining(['repaired', 'ready', 'repaired', 'ready']))
    expect(JSON.parse(readFileSync(status, 'utf8'))).toMatchObject({ ready: true })
    expect(typesIn(on, '10-calico.conflist')).toEqual(CALICO)
    expect(existsSync(join(on.binDir, 'detour-cni'))).toBe(true)
  })
})

describe('a reader', () => {
  it('never sees half a file, however often it is edited', async () => {
    const on = node('calico')
    const script = `
      const { readFileSync } = require('node:fs')
      let reads = 0
      process.stdin.on('end', () => { console.log(reads); process.exit(0) }).resume()
      const read = () => { for (let i = 0; i < 100; i++) { JSON.parse(readFileSync(process.argv[1], 'utf8')); reads++ } console.error('read'); setImmediate(read) }
      read()`
    const child = spawn(process.execPath, ['-e', script, on.file('10-calico.conflist')])
    let reads = ''
    child.stdout.setEncoding('utf8').on('data', text => (reads += text))
    const closed = once(child, 'close')
    for (let round = 0; round < 100; round++) {
      // It reads before, between and after.
      if (round % 20 === 0) await Promise.race([once(child.stderr, 'data'), closed])
      keepInstalled({ confDir: on.confDir, ...HEARS, entry: { socket: `/run/${round}` } }, () => {}).close()
    }
    child.stdin.end()
    expect((await closed)[0]).toBe(0)
    expect(Number(reads)).toBeGreaterThan(100)
  })
})
