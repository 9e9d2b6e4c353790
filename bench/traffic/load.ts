// Traffic over a path, and what came of it: TCP by iperf3, UDP packets by the generator, round trips. Each fails when Detour should
// have carried it and its counters say that it did not.

import { readFileSync } from 'node:fs'
import { extname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type Running, run, start } from '../../src/lab/process.ts'
import { AF, bind, close, must, SOCK, setsockopt, socket } from '../../src/os/libc.ts'
import { inNamespace } from '../../src/os/netns.ts'
import { UDP_OPTION } from '../../src/os/udp.ts'
import type { EchoInput, EchoOutput } from './echo.ts'
import type { GenerateInput, GenerateOutput } from './generate.ts'
import { machineTime, others, spent } from './machine.ts'
import type { Carried, Path } from './paths.ts'
import { at, CLIENT, snmp } from './scene.ts'

const LIMIT_MS = 20_000
/** Counters are published every 100 ms. */
const PUBLISHED_MS = 250
/** Until traffic flows evenly. */
const SETTLE_MS = 200
const DISCARD = 9
/**
 * How TCP is controlled: by bbr where the kernel has it, whose rounds differ by a tenth, and by cubic, the default of most machines, which goes
 * by halves or doubles from round to round, as its queues happen to fit the processor's cache or not.
 */
export const CONTROLS = ['bbr', 'cubic'].filter(name => available().includes(name))

function available(): string[] {
  return readFileSync('/proc/sys/net/ipv4/tcp_available_congestion_control', 'utf8').trim().split(/\s+/)
}

const SOURCE_PORTS = 60_000

/** The command line of a program of this folder. */
export function program(name: string, input: object): string[] {
  const file = fileURLToPath(new URL(`./${name}${extname(import.meta.url)}`, import.meta.url))
  return [process.execPath, file, JSON.stringify(input)]
}

/** Runs `body` with the path awake. */
async function awake<T>(path: Path, body: () => Promise<T>): Promise<T> {
  path.resume?.()
  try {
    return await body()
  } finally {
    path.pause?.()
  }
}

/** Throws when Detour should have carried half of this at least, and did not; what its worker counted last may still be unpublished. */
async function assertCarried(
  path: Path,
  before: Carried | undefined,
  unit: keyof Carried,
  wanted: number,
): Promise<void> {
  if (path.carried === undefined || before === undefined) return
  await sleep(PUBLISHED_MS)
  const carried = path.carried()[unit] - before[unit]
  if (carried < wanted / 2) throw new Error(`${path.name}: ${wanted} ${unit} arrived, the tunnel carried ${carried}`)
}

export interface TransferOptions {
  seconds: number
  streams: number
  /** From the endpoint to the pod. */
  reverse: boolean
  /** One of CONTROLS. */
  control: string
}

/** Gbit/s that iperf3 received. */
export function transfer(path: Path, { seconds, streams, reverse, control }: TransferOptions): Promise<number> {
  return awake(path, async () => {
    const before = path.carried?.()
    const server = start(at(path.server), 'iperf3 server', ['iperf3', '-s', '-1', '--forceflush'])
    try {
      await server.line(line => line.includes('listening'), LIMIT_MS)
      const flags = ['-J', '-C', control, ...(reverse ? ['-R'] : [])]
      const wanted = ['-c', path.target.address, '-t', `${seconds}`, '-P', `${streams}`, ...flags]
      const report = await run(
        at(path.client),
        `iperf3 over ${path.name}`,
        ['iperf3', ...wanted],
        seconds * 1000 + LIMIT_MS,
      )
      const { bytes, bits_per_second } = JSON.parse(report).end.sum_received
      await assertCarried(path, before, 'bytes', bytes)
      return bits_per_second / 1e9
    } finally {
      await server.stop('SIGKILL')
    }
  })
}

export interface BlastOptions {
  by: GenerateInput['by']
  /** Bytes of a frame. */
  size: number
  /** Packets a second; 0 is as many as go. */
  rate: number
  seconds: number
}

export interface Blast {
  /** Packets a second that reached a UDP socket at the endpoint. */
  delivered: number
  /** Processor time of the machine a delivered packet, µs. */
  cost: number
  /** Processors that foreign processes kept busy meanwhile. */
  others: number
}

/** Sends UDP packets of 64 flows to a socket that takes none, and counts those it was offered, over the middle of the time. */
export function blast(path: Path, { by, size, rate, seconds }: BlastOptions): Promise<Blast> {
  return awake(path, async () => {
    const sink = openSink(path.server, 1)
    const more = { by, size, rate, flows: 64, seconds: seconds + LIMIT_MS / 1000, once: false }
    const generator = generate(path, more)
    try {
      await generator.line(line => line === 'sending', LIMIT_MS)
      await sleep(SETTLE_MS)
      const before = path.carried?.()
      const from = reading(path)
      await sleep(seconds * 1000)
      const to = reading(path)
      await generator.stop('SIGKILL')
      const packets = to.offered - from.offered
      if (packets === 0) throw new Error(`${path.name}: no packet arrived`)
      await assertCarried(path, before, 'packets', packets)
      const elapsed = to.time.at - from.time.at
      return {
        delivered: (packets * 1000) / elapsed,
        cost: (spent(from.time, to.time) * 1000) / packets,
        others: others(from.time, to.time),
      }
    } finally {
      await generator.stop('SIGKILL')
      sink()
    }
  })
}

/** Sends one packet of each of so many flows; packets a second that reached a UDP socket. `arrival` gets their number. */
export function newFlows(path: Path, flows: number, arrival?: (packets: number) => void): Promise<number> {
  return awake(path, async () => {
    const sink = openSink(path.server, Math.ceil(flows / SOURCE_PORTS))
    const generator = generate(path, { by: 'frames', size: 64, rate: 0, flows, seconds: LIMIT_MS / 1000, once: true })
    try {
      await generator.line(line => line === 'sending', LIMIT_MS)
      const before = path.carried?.()
      const offered = arrived(path)
      if ((await generator.done) !== 0) throw generator.failure('failed')
      const { seconds } = JSON.parse(generator.lines.at(-1) ?? '') as GenerateOutput
      // What is still under way counts; nobody sends any more.
      await sleep(PUBLISHED_MS)
      const packets = arrived(path) - offered
      await assertCarried(path, before, 'packets', packets)
      arrival?.(packets)
      return packets / seconds
    } finally {
      await generator.stop('SIGKILL')
      sink()
    }
  })
}

/** Round trips of one byte over an idle path. */
export function roundTrips(path: Path, trips: number): Promise<EchoOutput> {
  return awake(path, async () => {
    const before = path.carried?.()
    const ends = { local: CLIENT.address, remote: path.target.address, port: 7007, trips }
    const asking: EchoInput = { ...ends, side: 'ask' }
    const answering: EchoInput = { ...ends, side: 'answer', local: ends.remote, remote: ends.local }
    const server = start(at(path.server), 'echo', program('echo', answering))
    try {
      await server.line(line => line === 'ready', LIMIT_MS)
      const output = await run(at(path.client), `echo over ${path.name}`, program('echo', asking), LIMIT_MS)
      await assertCarried(path, before, 'packets', 2 * trips)
      return JSON.parse(output) as EchoOutput
    } finally {
      await server.stop('SIGKILL')
    }
  })
}

type Sending = Pick<GenerateInput, 'by' | 'size' | 'rate' | 'flows' | 'seconds' | 'once'>

function generate(path: Path, sending: Sending): Running {
  const ends = { interface: 'eth0', source: CLIENT, target: path.target, port: DISCARD, sourcePorts: SOURCE_PORTS }
  const input: GenerateInput = { ...sending, ...ends }
  return start(at(path.client), `generator for ${path.name}`, program('generate', input))
}

const reading = (path: Path) => ({ offered: arrived(path), time: machineTime() })

/** Packets that sinks had no room for: all but the first few. */
const arrived = (path: Path) => snmp(path.server, 'Udp', 'RcvbufErrors')

/** Binds sockets that are never read from; the result closes them. */
function openSink(namespace: string, ports: number): () => void {
  const sockets = inNamespace(namespace, () =>
    Array.from({ length: ports }, (_, i) => {
      const fd = must(socket(AF.INET, SOCK.DGRAM, 0), 'socket', 'UDP')
      setsockopt(fd, UDP_OPTION.SOL_SOCKET, UDP_OPTION.SO_RCVBUF, 0)
      must(bind(fd, Uint8Array.of(AF.INET, 0, 0, DISCARD + i, ...new Uint8Array(12))), 'bind', `port ${DISCARD + i}`)
      return fd
    }),
  )
  return () => {
    for (const fd of sockets) close(fd)
  }
}
