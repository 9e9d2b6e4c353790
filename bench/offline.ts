// How fast do captures go through the tunnel's stages offline, and does memory stay flat as the file grows? Whole commands,
// start of the program included, on an IMIX capture (7:4:1 of 64, 594 and 1518 bytes). Baseline: `tcpdump -r -w`, which
// reads and writes every packet too; beside it cp, and editcap and tcprewrite where they are installed. Needs tcpdump, and
// room for some copies of the file in the temporary folder (TMPDIR).

import { spawn, spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { detour } from '../src/lab/process.ts'
import * as ethernet from '../src/wire/ethernet.ts'
import * as ipv4 from '../src/wire/ipv4.ts'
import { LINKTYPE } from '../src/wire/linktype.ts'
import { RECORD_HEADER, writeHeader, writeRecord } from '../src/wire/pcap.ts'
import { MAX_CAPTURED } from '../src/wire/record.ts'
import * as udp from '../src/wire/udp.ts'
import type { Bench, Contender } from './harness.ts'

/** Frame sizes in the proportions of IMIX; 362 bytes on average. */
const IMIX = [64, 594, 64, 64, 594, 64, 1518, 64, 64, 594, 64, 594]
const FLOWS = 4096
/** Bytes of disk a packet of the small file, for all that lies there at once: both files, three tunnelled ones, an output of the large one. */
const ROOM = 400 * (1 + 4 + 2 + 4 + 4)

/** What a command came to. */
interface Outcome {
  millionPerSecond: number
  peakMiB: number
  /** What it printed. */
  output: string
}

export async function run(bench: Bench): Promise<void> {
  const packets = bench.short ? 100_000 : 1_000_000
  const reason = whyNot(packets)
  if (reason !== '') return bench.skip(reason)
  const folder = mkdtempSync(join(tmpdir(), 'detour-bench-'))
  try {
    await compare(bench, folder, packets)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

async function compare(bench: Bench, folder: string, packets: number): Promise<void> {
  const small = writeImix(join(folder, 'imix.pcap'), packets)
  const large = writeImix(join(folder, 'large.pcap'), 4 * packets)
  const out = join(folder, 'out.pcap')
  const ends = ['--local', '10.0.0.1', '--remote', '10.0.0.2', '--vni', '7', '--json']
  const encap = (file: Capture, profile: string, to = out) =>
    measure(detour('encap', '-r', file.path, '-w', to, '--profile', profile, ...ends), file, to)
  const tunnelled = { path: join(folder, 'geneve.pcap'), packets }
  const vxlan = { path: join(folder, 'vxlan.pcap'), packets }
  const largeTunnelled = { path: join(folder, 'large-geneve.pcap'), packets: large.packets }
  await encap(small, 'geneve', tunnelled.path)
  await encap(small, 'vxlan', vxlan.path)
  const decap = (file: Capture, ...more: string[]) =>
    measure(detour('decap', '-r', file.path, '-w', out, '--json', ...more), file, out)
  const replay = (file: Capture) => measure(detour('replay', '-r', file.path, '-w', out, '--json'), file, out)

  const rate = async (outcome: Promise<Outcome>) => (await outcome).millionPerSecond
  const ours = (name: string, outcome: () => Promise<Outcome>): Contender => ({ name, measure: () => rate(outcome()) })
  const others = (file: Capture, commands: [name: string, ...command: string[]][]) =>
    commands
      .filter(([, program]) => installed(program))
      .map(([name, ...command]): Contender => {
        return { name, rival: true, measure: () => rate(measure(command, file, out)) }
      })
  const { path } = small
  const addresses = ['--srcipmap=10.0.0.0/8:172.16.0.0/12', '--enet-smac=02:00:00:00:00:99']
  await bench.ask({
    name: `into the tunnel: whole commands, ${packets.toLocaleString('en-US')} packets`,
    unit: 'million packets/s',
    better: 'more',
    contenders: [
      ...others(small, [
        ['tcpdump -r -w', 'tcpdump', '-r', path, '-w', out],
        ['cp', 'cp', path, out],
        ['editcap', 'editcap', path, out],
        ['tcprewrite, nothing changed', 'tcprewrite', '-i', path, '-o', out],
        ['tcprewrite, two addresses changed', 'tcprewrite', ...addresses, '-i', path, '-o', out],
      ]),
      ours('detour encap, VXLAN', () => encap(small, 'vxlan')),
      ours('detour encap, GENEVE (outer checksums)', () => encap(small, 'geneve')),
      ours('detour replay, node and gateway', () => replay(small)),
    ],
  })
  await bench.ask({
    name: `out of the tunnel: whole commands, ${packets.toLocaleString('en-US')} packets`,
    unit: 'million packets/s',
    better: 'more',
    contenders: [
      ...others(vxlan, [
        ['tcpdump -r -w', 'tcpdump', '-r', vxlan.path, '-w', out],
        ['editcap -C 50, which cuts unread', 'editcap', '-C', '50', vxlan.path, out],
      ]),
      ours('detour decap, VXLAN', () => decap(vxlan, '--profile', 'vxlan')),
      ours('detour decap, GENEVE (checksums verified)', () => decap(tunnelled)),
    ],
  })
  await bench.ask({
    name: 'the conversion alone, as the command itself counts',
    unit: 'million packets/s',
    better: 'more',
    contenders: [
      { name: 'detour encap, VXLAN', measure: async () => told(await encap(small, 'vxlan')) },
      { name: 'detour encap, GENEVE', measure: async () => told(await encap(small, 'geneve')) },
      { name: 'detour decap, GENEVE', measure: async () => told(await decap(tunnelled)) },
    ],
  })

  await encap(large, 'geneve', largeTunnelled.path)
  const peak = async (outcome: Promise<Outcome>) => (await outcome).peakMiB
  for (const [name, command, files] of [
    ['encap', (file: Capture) => encap(file, 'geneve'), [small, large]],
    ['decap', decap, [tunnelled, largeTunnelled]],
    ['replay', replay, [small, large]],
  ] as const) {
    await bench.ask({
      name: `peak resident memory of detour ${name}, as the file grows`,
      unit: 'MiB',
      better: 'less',
      contenders: files.map(file => ({
        name: `${file.packets.toLocaleString('en-US')} packets`,
        measure: () => peak(command(file)),
      })),
    })
  }
}

function whyNot(packets: number): string {
  if (!installed('tcpdump')) return 'tcpdump is not installed'
  const { bavail, bsize } = statfsSync(tmpdir())
  const needed = packets * ROOM
  if (bavail * bsize < needed) return `${tmpdir()} has less than ${Math.ceil(needed / 2 ** 30)} GiB free; set TMPDIR`
  return ''
}

function installed(program: string): boolean {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).error === undefined
}

/** Runs a command on a capture to its end, with its output file not there before; throws when it fails. */
function measure(command: string[], { packets }: Capture, to: string): Promise<Outcome> {
  const [program, ...args] = command
  rmSync(to, { force: true })
  return new Promise((resolve, reject) => {
    const from = process.hrtime.bigint()
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    let errors = ''
    let peakMiB = 0
    const look = () => {
      peakMiB = Math.max(peakMiB, peakOf(child.pid))
    }
    const timer = setInterval(look, 10)
    child.stdout.on('data', data => (output += data))
    child.stderr.on('data', data => (errors += data))
    child.once('error', reject)
    child.once('exit', () => clearInterval(timer))
    child.once('close', status => {
      const seconds = Number(process.hrtime.bigint() - from) / 1e9
      if (status === 0) resolve({ millionPerSecond: packets / seconds / 1e6, peakMiB, output })
      else reject(new Error(`${command.join(' ')}: status ${status}: ${errors.trim()}`))
    })
  })
}

/** VmHWM of a running process, which only grows: proc_pid_status(5). */
function peakOf(pid: number | undefined): number {
  try {
    return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024
  } catch {
    return 0
  }
}

function told({ output }: Outcome): number {
  return JSON.parse(output).files[0].packetsPerSecond / 1e6
}

interface Capture {
  path: string
  packets: number
}

/** Writes a capture of UDP packets of 4,096 flows with contents that look random, the same in every run. */
function writeImix(path: string, packets: number): Capture {
  const fd = openSync(path, 'w')
  const buffer = new Uint8Array(1 << 20)
  const view = new DataView(buffer.buffer)
  const header = { little: true, nanoseconds: false, snaplen: MAX_CAPTURED, linktype: LINKTYPE.ETHERNET, fcs: 0 }
  let state = 1
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) | 0) >>> 8
  const noise = Uint8Array.from({ length: 1 << 16 }, random)
  let at = writeHeader(view, 0, header)
  for (let i = 0; i < packets; i++) {
    const size = IMIX[i % IMIX.length]
    if (at + RECORD_HEADER + size > buffer.length) {
      writeSync(fd, buffer, 0, at)
      at = 0
    }
    writeRecord(view, at, header, 1_700_000_000 + Math.floor(i / 1e5), (i % 1e5) * 1e4, size, size)
    at += RECORD_HEADER
    const from = random() % (noise.length - size)
    buffer.set(noise.subarray(from, from + size), at)
    writeUdp(buffer, at, size, random() % FLOWS)
    at += size
  }
  writeSync(fd, buffer, 0, at)
  closeSync(fd)
  return { path, packets }
}

function writeUdp(b: Uint8Array, at: number, size: number, flow: number): void {
  const ip = at + ethernet.HEADER
  const total = size - ethernet.HEADER
  ethernet.write(b, at, 0x0200, 2, 0x0200, 1, ethernet.ETHERTYPE.IPV4)
  ipv4.write(b, ip, ipv4.HEADER, 0, total, flow, 0, 64, ipv4.PROTOCOL.UDP, 0x0a000000 + flow, 0x0a800001)
  udp.write(b, ip + ipv4.HEADER, 1024 + flow, 443, total - ipv4.HEADER, 0)
}
