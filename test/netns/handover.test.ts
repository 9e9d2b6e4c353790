// Attachments survive the process: killed, hung, replaced, stopped and started again. A TCP stream in both directions lives through all
// of it, and tcpdump on the far side of the pod's interface sees whether a packet of the pod goes uninspected.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { closeSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { PIN_DIRECTORY } from '../../src/node/attachment.ts'
import { pack } from '../../src/node/handover.ts'
import { Predecessor } from '../../src/node/succession.ts'
import { unpin } from '../../src/os/bpf.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch, namespaceId } from '../../src/os/netns.ts'
import { said } from '../processes.ts'
import type { PairInput } from './pair-child.ts'
import { connectByVxlan, missing, program, title } from './support.ts'

const POD = 'dts-pod'
const NODE = 'dts-node'
const ENDPOINT = 'dts-endpoint'
const FAR = '10.244.0.9'
const PORT = 9200

/** Sends numbers and expects the other end's, for ever; what is missing or twice ends it with an error. */
const STREAM = `
const [what, host, port] = process.argv.slice(1)
const talk = socket => {
  let next = 0, expected = 0, rest = Buffer.alloc(0)
  const send = () => { for (;;) {
    const b = Buffer.alloc(4000)
    for (let i = 0; i < 1000; i++) b.writeUInt32LE(next++ >>> 0, i * 4)
    if (!socket.write(b)) return
  } }
  const slow = () => setTimeout(() => { send(); slow() }, 5)
  socket.setNoDelay(true)
  socket.on('data', d => {
    d = Buffer.concat([rest, d])
    const whole = d.length & ~3
    for (let i = 0; i < whole; i += 4)
      if (d.readUInt32LE(i) !== (expected++ >>> 0)) { console.log('error: out of sequence'); process.exit(1) }
    rest = d.subarray(whole)
  })
  socket.on('error', e => { console.log('error: ' + e.message); process.exit(1) })
  socket.on('close', () => { console.log('error: closed'); process.exit(1) })
  slow()
  if (what === 'client') setInterval(() => console.log(expected), 20)
}
if (what === 'server') require('net').createServer(talk).listen(port, host, () => console.log('listening'))
else talk(require('net').connect(port, host))
`

/** Stops one thread as a debugger would, until its standard input ends. */
const HOLD = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
tid = int(sys.argv[1])
assert libc.ptrace(16, tid, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.waitpid(tid, 0x40000000)
print('held', flush=True)
sys.stdin.read()
`

const children: ChildProcess[] = []
/** Each line of a node begins with the process that says it. */
const nodes: Lines[] = []
let folder = ''

function start(namespace: string, command: string, ...args: string[]): Lines {
  const child = inNamespace(namespace, () => spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] }))
  children.push(child)
  return new Lines(child)
}

/** What a child prints, line by line. */
class Lines {
  readonly child: ChildProcess
  readonly all: string[] = []
  readonly gone: Promise<void>
  private readonly waiting = new Set<() => void>()

  constructor(child: ChildProcess) {
    this.child = child
    let rest = ''
    this.gone = new Promise(resolve => child.once('close', () => resolve()))
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n')
      rest = lines.pop() as string
      this.all.push(...lines)
      for (const look of this.waiting) look()
    })
  }

  /** The first line that matches, of those from `from` on; rejects when the child ends first. */
  async line(pattern: RegExp | ((line: string) => boolean), from = 0): Promise<string> {
    const matches = typeof pattern === 'function' ? pattern : (line: string) => pattern.test(line)
    let at = from
    for (;;) {
      for (; at < this.all.length; at++) if (matches(this.all[at])) return this.all[at]
      let wake: () => void = () => {}
      const more = new Promise<boolean>(resolve => {
        wake = () => resolve(true)
        this.waiting.add(wake)
      })
      const goes = await Promise.race([more, this.gone.then(() => false)])
      this.waiting.delete(wake)
      if (!goes && at >= this.all.length) throw new Error(`ended before ${pattern}:\n${this.all.join('\n')}`)
    }
  }
}

function build(): void {
  remove()
  for (const name of [POD, NODE, ENDPOINT]) createNamespace(name)
  ipBatch([
    `link add eth0 netns ${POD} address 02:00:00:00:00:aa type veth peer name pod netns ${NODE}`,
    `link add uplink netns ${NODE} mtu 1600 type veth peer name eth0 netns ${ENDPOINT} mtu 1600`,
  ])
  ipBatch(['link set pod addrgenmode none up', 'link set uplink addrgenmode none up'], NODE)
  // NB: a veth leaves checksums to a wire that never comes, and a socket shows what is inside as it was sent.
  for (const namespace of [POD, ENDPOINT])
    inNamespace(namespace, () => execFileSync('ethtool', ['-K', 'eth0', 'tx', 'off'], { stdio: 'ignore' }))
  connectByVxlan({
    ...{ pod: POD, node: NODE, endpoint: ENDPOINT, vni: 77, family: 4 },
    ...{ podMac: '02:00:00:00:00:aa', endpointMac: '02:00:00:00:00:bb' },
  })
}

function remove(): void {
  for (const name of [POD, NODE, ENDPOINT]) deleteNamespace(name)
}

/** A node of two processes, or one; the next one takes the place of the last. NB: one that only waits for a processor does not hang. */
async function node(more: { config?: object; input?: Partial<PairInput> } = {}): Promise<Lines> {
  const tunnel = { profile: 'vxlan', vni: 77, local: '10.99.0.1', remote: '10.99.0.2' }
  const input: PairInput = {
    ...{ path: join(folder, 'handover.sock'), standby: true, namespace: NODE, uplink: 'uplink' },
    ...{ config: { tunnel, failMode: 'closed', heartbeatLimitMs: 1000, ...more.config } },
    ...{ pods: [{ id: POD, namespace: POD }], hangMs: 10_000, ...more.input },
  }
  const lines = start('', process.execPath, program('pair-child'), JSON.stringify(input))
  nodes.push(lines)
  await ready(lines, input.standby)
  return lines
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has ended.
  }
}

/** Resolves when there is an active process, and where there are to be two, the partner is it and the first one stands by. */
async function ready(lines: Lines, standby: boolean, from = 0): Promise<void> {
  const pid = lines.child.pid as number
  if (!standby) await lines.line(new RegExp(`^${pid} active$`), from)
  else await lines.line(new RegExp(`^${pid} stands by$`), from)
}

const activePid = (lines: Lines) => Number(lines.all.findLast(line => line.endsWith(' active'))?.split(' ')[0])

/** A stream between pod and endpoint. */
async function stream(): Promise<{ flows(): Promise<void> }> {
  const server = start(ENDPOINT, process.execPath, '-e', STREAM, 'server', FAR, `${PORT}`)
  await server.line(/listening/)
  const client = start(POD, process.execPath, '-e', STREAM, 'client', FAR, `${PORT}`)
  const number = (line: string) => {
    if (line.startsWith('error')) throw new Error(`the stream: ${line}`)
    return Number(line)
  }
  const flows = async () => {
    // What both ends have sent since now arrives.
    const now = number(client.all.at(-1) ?? '0')
    await client.line(line => number(line) > now + 20_000)
  }
  await flows()
  return { flows }
}

/** Packets of the pod that left it as they were: none was for the tunnel. */
async function watch(): Promise<{ leaked(): Promise<string[]>; sees(): Promise<string> }> {
  const filter = ['ip', 'and', 'src', '10.244.0.2']
  // NB: in this mode there is room for eight packets unless they are cut off.
  const args = ['--immediate-mode', '-s', '128', '-B', '16384', '-lnni', 'pod', ...filter]
  const child = inNamespace(NODE, () => spawn('tcpdump', args, { stdio: ['ignore', 'pipe', 'pipe'] }))
  children.push(child)
  const dump = new Lines(child)
  await said(child.stderr, 'listening')
  return {
    sees: () => dump.line(/./),
    async leaked() {
      child.kill('SIGINT')
      await dump.gone
      return dump.all.filter(line => line !== '')
    },
  }
}

/** Holds a thread of a process until it is killed. */
async function hang(pid: number, thread: string): Promise<void> {
  const tasks = `/proc/${pid}/task`
  const tid = readdirSync(tasks).find(task => readFileSync(`${tasks}/${task}/comm`, 'utf8').trim() === thread)
  await start('', '/usr/bin/python3', '-c', HOLD, tid as string).line(/held/)
}

describe.skipIf(missing !== '')(title('two processes of a node'), () => {
  afterEach(async () => {
    for (const { all } of nodes) for (const pid of new Set(all.map(line => Number(line.split(' ')[0])))) kill(pid)
    for (const { gone } of nodes.splice(0)) await gone
    for (const child of children.splice(0)) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      child.kill('SIGKILL')
      await new Promise(resolve => child.once('exit', resolve))
    }
    // What a killed process had pinned.
    const ended = new RegExp(`^${POD}$|_${namespaceId(NODE)}$`)
    for (const name of readdirSync(PIN_DIRECTORY)) if (ended.test(name)) unpin(`${PIN_DIRECTORY}/${name}`)
    remove()
    rmSync(folder, { recursive: true, force: true })
  })

  const scene = async (more: Parameters<typeof node>[0] = {}) => {
    folder = mkdtempSync(join(tmpdir(), 'dts-'))
    build()
    const lines = await node(more)
    const capture = await watch()
    return { lines, capture, tcp: await stream() }
  }
  const end = async (lines: Lines) => {
    lines.child.kill('SIGINT')
    await lines.gone
  }

  const worlds = {
    'one worker': {},
    'two workers': { workers: 2 },
    'rung udp-socket': { rungs: { offload: 'udp-socket' } },
    clsact: { rungs: { attach: 'clsact' } },
  }
  for (const [name, config] of Object.entries(worlds)) {
    it(`a stream lives through SIGKILL of the active one, again and again, and nothing leaks: ${name}`, async () => {
      const { lines, capture, tcp } = await scene({ config })
      for (let times = 0; times < 3; times++) {
        const killed = activePid(lines)
        const from = lines.all.length
        process.kill(killed, 'SIGKILL')
        await lines.line(new RegExp(`${killed} is dead: taken over`), from)
        await tcp.flows()
        // The partner that is started then is the active one soon.
        await ready(lines, true, from)
        expect(activePid(lines)).not.toBe(killed)
        await tcp.flows()
      }
      expect(await capture.leaked()).toEqual([])
      await end(lines)
    })

    it(`a new process takes over from the live ones, which end: ${name}`, async () => {
      const { lines, capture, tcp } = await scene({ config })
      const next = await node({ config })
      await lines.gone
      expect(lines.all.at(-1)).toMatch(/done$/)
      await tcp.flows()
      expect(await capture.leaked()).toEqual([])
      await end(next)
    })
  }

  it('one that hangs as a whole is killed and followed', async () => {
    const { lines, capture, tcp } = await scene({ input: { hangMs: 2000 } })
    const pid = activePid(lines)
    process.kill(pid, 'SIGSTOP')
    await lines.line(new RegExp(`${pid} hangs: `))
    await lines.line(new RegExp(`${pid} is dead: taken over`))
    await tcp.flows()
    expect(await capture.leaked()).toEqual([])
    await end(lines)
  })

  it('one with a worker that hangs is killed and followed', async () => {
    const { lines, capture, tcp } = await scene({ input: { hangMs: 2000 } })
    const pid = activePid(lines)
    await hang(pid, 'forward-0')
    await lines.line(new RegExp(`${pid} hangs: a worker was silent`))
    await lines.line(new RegExp(`${pid} is dead: taken over`))
    await tcp.flows()
    expect(await capture.leaked()).toEqual([])
    await end(lines)
  })

  it('one that follows and has no room for what it is sent does not take that for a death, and follows again', async () => {
    const { lines, tcp } = await scene()
    const [standing, pid] = [lines.child.pid as number, activePid(lines)]
    const used = new Set(readdirSync(`/proc/${standing}/fd`).map(Number))
    const free = [...Array(used.size + 1).keys()].find(fd => !used.has(fd))
    const limit = (fds: number | undefined) => execFileSync('prlimit', ['--pid', `${standing}`, `--nofile=${fds}:`])
    const hard = /open files +\d+ +(\d+)/.exec(readFileSync(`/proc/${standing}/limits`, 'utf8'))?.[1]
    const from = lines.all.length
    limit(free)
    ipBatch(['address add 10.244.7.7/32 dev eth0'], POD)
    await lines.line(/nobody stands by for the moment: .* [0-2] of 3 descriptors came/, from)
    // It soon begins anew, for which it needs some.
    limit(Number(hard))
    await tcp.flows()
    await ready(lines, true, from)
    expect([activePid(lines), lines.all.filter(line => line.includes('taken over in'))]).toEqual([pid, []])
    process.kill(pid, 'SIGKILL')
    await lines.line(new RegExp(`${pid} is dead: taken over`), from)
    await tcp.flows()
    await end(lines)
  })

  it('of two that want its place at once, the second gets it where the first goes; and it ends if told so meanwhile', async () => {
    const { lines } = await scene({ input: { standby: false } })
    const path = join(folder, 'handover.sock')
    const meet = async () => {
      const met = (await Predecessor.meet(path)) as Predecessor
      for (const fd of pack(met.inheritance).fds) closeSync(fd)
      return met
    }
    // Whoever comes later is answered later, so that what came before was heard by then.
    const heard = async () => (await meet()).close()
    const [first, second, third] = [await meet(), await meet(), await meet()]
    expect(await first.take()).toBe('yours')
    const next = second.take()
    await heard()
    first.close()
    expect(await next).toBe('yours')
    lines.child.kill('SIGTERM')
    await heard()
    second.close()
    await lines.gone
    expect(await third.ended).toBe('stopped')
  })

  for (const [how, signal] of [
    ['killed', 'SIGKILL'],
    ['stopped', 'SIGTERM'],
  ] as const) {
    it(`alone, ${how} and started again, it goes on with what is attached, and nothing leaks`, async () => {
      const { lines, capture, tcp } = await scene({ input: { standby: false } })
      const before = programs()
      expect(before.length).toBeGreaterThan(0)
      lines.child.kill(signal)
      await lines.gone
      expect(programs()).toEqual(before)
      const next = await node({ input: { standby: false } })
      await tcp.flows()
      // Not one was loaded anew.
      expect(programs()).toEqual(before)
      expect(await capture.leaked()).toEqual([])
      await end(next)
      expect(programs()).toEqual([])
    })
  }

  it('alone, killed, and started with another number of workers, nothing leaks while the programs change', async () => {
    const { lines, capture, tcp } = await scene({ input: { standby: false } })
    const before = programs()
    lines.child.kill('SIGKILL')
    await lines.gone
    const next = await node({ input: { standby: false }, config: { workers: 2 } })
    await tcp.flows()
    expect(programs()).not.toEqual(before)
    expect(await capture.leaked()).toEqual([])
    await end(next)
  })

  it('what is watched would be seen: killed in fail-open, packets of the pod leave as they are', async () => {
    const { lines, capture } = await scene({ input: { standby: false }, config: { failMode: 'open' } })
    lines.child.kill('SIGKILL')
    await lines.gone
    await new Promise<void>(resolve => {
      const look = setInterval(() => {
        if (failPassed() === 0) return
        clearInterval(look)
        resolve()
      }, 20)
    })
    await capture.sees()
    expect((await capture.leaked()).length).toBeGreaterThan(0)
  })
})

/** Ids of the programs that the gates on the pod's interface run; none where they are gone. */
function programs(): number[] {
  return ['egress', 'ingress'].flatMap(hook => {
    const path = `/sys/fs/bpf/detour/${POD}/link_eth0_${hook}`
    if (!existsSync(path)) return []
    const text = execFileSync('bpftool', ['-j', 'link', 'show', 'pinned', path], { encoding: 'utf8' })
    return [(JSON.parse(text) as { prog_id: number }).prog_id]
  })
}

/** Packets that the fail mode let pass, as the pinned heartbeat has it. */
function failPassed(): number {
  const path = `/sys/fs/bpf/detour/${POD}/heartbeat`
  const text = execFileSync('bpftool', ['-j', 'map', 'dump', 'pinned', path], { encoding: 'utf8' })
  const [{ value }] = JSON.parse(text) as [{ value: string[] }]
  return Number(Buffer.from(value.map(byte => Number(byte))).readBigUInt64LE(24))
}
