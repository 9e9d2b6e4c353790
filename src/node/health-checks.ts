// The main thread's own checks of endpoints, beside the probe through the tunnel: ICMP echoes, and TCP connections to a port. What
// fails is written to shared memory, where the worker that judges endpoints sees it.

import { createRequire } from 'node:module'
import ipaddr from 'ipaddr.js'
import type { Config } from '../control/config.ts'
import { DetourError } from '../errors.ts'
import { HEALTH, type HealthHandle } from '../memory/health.ts'
import { monotonicMs } from '../os/clock.ts'
import { connectState, startConnect } from '../os/connect.ts'
import { close } from '../os/libc.ts'
import { inNamespace } from '../os/netns.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'

type HealthConfig = Config['health']

/** Bits of HEALTH.FAILING. */
const FAILING = { icmp: 1, tcp: 2 } as const
type Kind = keyof typeof FAILING

/** Time between two looks at connections that are on their way, at most. */
const LOOK_MS = 50
const ECHO = new TextEncoder().encode('detour health check')

export interface HealthChecksOptions {
  /** Of the uplink. */
  namespace: string
  health: HealthHandle
  config: HealthConfig
}

/** An endpoint's state by one check. */
class Judge {
  private lastSuccess = monotonicMs()
  private successes = 0
  private failures = 0
  private isUp = true

  /** Whether it is up after one more try, which found it so. */
  after(success: boolean, { rise, fall }: HealthConfig, limitMs: number): boolean {
    const now = monotonicMs()
    this.successes = success ? this.successes + 1 : 0
    this.failures = success ? 0 : this.failures + 1
    if (success) this.lastSuccess = now
    if (this.isUp) this.isUp = this.failures < fall || now - this.lastSuccess < limitMs
    else this.isUp = this.successes >= rise
    return this.isUp
  }
}

interface Watched {
  number: number
  address: Uint8Array
  judges: Record<Kind, Judge>
  /** The echo that is on its way; -1 when it was answered. */
  echo: number
  /** The connection that is on its way, and since when; -1 for none. */
  connection: number
  since: number
}

/** All checks of a node. */
export class HealthChecks {
  private readonly namespace: string
  private readonly words: Int32Array
  private config: HealthConfig
  private readonly watched = new Map<number, Watched>()
  private timers: NodeJS.Timeout[] = []
  private pinger: Pinger | undefined
  private version: 4 | 6 = 4

  constructor({ namespace, health, config }: HealthChecksOptions) {
    this.namespace = namespace
    this.words = new Int32Array(health)
    this.config = config
  }

  /** Begins to check an endpoint. Throws DetourError where a check cannot be had. */
  watch(number: number, address: Uint8Array): void {
    const judges = { icmp: new Judge(), tcp: new Judge() }
    this.version = address.length === 4 ? 4 : 6
    this.watched.set(number, { number, address, judges, echo: -1, connection: -1, since: 0 })
    if (this.timers.length === 0) this.start()
  }

  /** Checks it no more. */
  release(number: number): void {
    const one = this.watched.get(number)
    if (one === undefined) return
    this.drop(one)
    this.watched.delete(number)
  }

  /** Checks as this configuration says from now on; what it says as before goes on. Throws DetourError. */
  reconfigure(config: HealthConfig): void {
    if (JSON.stringify(config) === JSON.stringify(this.config)) return
    this.close()
    this.config = config
    for (const one of this.watched.values()) {
      one.judges = { icmp: new Judge(), tcp: new Judge() }
      Atomics.store(this.words, one.number * HEALTH.WORDS + HEALTH.FAILING, 0)
    }
    this.start()
  }

  /** What an endpoint with these bits does not answer: ` ICMP echoes`; '' where no check says. */
  describe(failing: number): string {
    const { tcp } = this.config
    const parts = []
    if ((failing & FAILING.icmp) !== 0) parts.push('ICMP echoes')
    if ((failing & FAILING.tcp) !== 0) parts.push(`TCP connections to port ${tcp?.port}`)
    return parts.length === 0 ? '' : ` ${parts.join(' and ')}`
  }

  close(): void {
    for (const timer of this.timers.splice(0)) clearInterval(timer)
    for (const one of this.watched.values()) this.drop(one)
    this.pinger?.close()
    this.pinger = undefined
  }

  private start(): void {
    const { icmp: echoes, tcp } = this.config
    if (echoes !== undefined) {
      this.pinger = new Pinger(this.namespace, this.version, (from, sequence) => this.answered(from, sequence))
      this.every(echoes.intervalMs, () => this.ping(echoes.limitMs))
    }
    if (tcp !== undefined) {
      this.every(tcp.intervalMs, () => this.connect(tcp.port))
      this.every(Math.min(LOOK_MS, tcp.intervalMs), () => this.lookAtConnections(tcp.limitMs))
    }
  }

  /** NB: a round that comes late judges nothing: it was this process that was held up, and answers may lie unread. */
  private every(ms: number, work: () => void): void {
    let due = monotonicMs() + ms
    const timer = setInterval(() => {
      const late = monotonicMs() - due
      due = monotonicMs() + ms
      if (late < Math.max(ms, LOOK_MS)) work()
    }, ms)
    timer.unref()
    this.timers.push(timer)
  }

  private ping(limitMs: number): void {
    for (const one of this.watched.values()) {
      if (one.echo >= 0) this.judge(one, 'icmp', false, limitMs)
      one.echo = this.pinger?.send(one.address) ?? -1
    }
  }

  private answered(from: string, sequence: number): void {
    for (const one of this.watched.values()) {
      if (one.echo !== sequence || ipaddr.fromByteArray([...one.address]).toString() !== from) continue
      one.echo = -1
      this.judge(one, 'icmp', true, this.config.icmp?.limitMs ?? 0)
    }
  }

  private connect(port: number): void {
    for (const one of this.watched.values()) {
      if (one.connection >= 0) continue
      one.connection = startConnect(this.namespace, one.address, port)
      one.since = monotonicMs()
    }
  }

  private lookAtConnections(limitMs: number): void {
    const now = monotonicMs()
    for (const one of this.watched.values()) {
      if (one.connection < 0) continue
      const state = connectState(one.connection)
      if (state === 0 && now - one.since < limitMs) continue
      this.drop(one)
      this.judge(one, 'tcp', state === 1, limitMs)
    }
  }

  private judge(one: Watched, kind: Kind, success: boolean, limitMs: number): void {
    const at = one.number * HEALTH.WORDS + HEALTH.FAILING
    const up = one.judges[kind].after(success, this.config, limitMs)
    if (up) Atomics.and(this.words, at, ~FAILING[kind])
    else Atomics.or(this.words, at, FAILING[kind])
  }

  private drop(one: Watched): void {
    if (one.connection >= 0) close(one.connection)
    one.connection = -1
  }
}

/** What is used of the package raw-socket. */
interface RawSocket {
  on(event: 'message', listener: (bytes: Buffer, source: string) => void): void
  on(event: 'error', listener: (error: Error) => void): void
  send(bytes: Uint8Array, at: number, length: number, address: string, done: (error: Error | null) => void): void
  close(): void
}
interface RawPackage {
  AddressFamily: { IPv4: number; IPv6: number }
  Protocol: { ICMP: number; ICMPv6: number }
  createSocket(options: { addressFamily: number; protocol: number }): RawSocket
}

/** Sends echo requests and hears the answers. */
class Pinger {
  private readonly socket: RawSocket
  private readonly version: 4 | 6
  private readonly identifier = process.pid & 0xffff
  private sequence = 0

  /** `answered` gets the address of who answered, and the number of what. Throws DetourError. */
  constructor(namespace: string, version: 4 | 6, answered: (from: string, sequence: number) => void) {
    this.version = version
    const raw = load()
    const [addressFamily, protocol] =
      version === 4 ? [raw.AddressFamily.IPv4, raw.Protocol.ICMP] : [raw.AddressFamily.IPv6, raw.Protocol.ICMPv6]
    try {
      this.socket = inNamespace(namespace, () => raw.createSocket({ addressFamily, protocol }))
    } catch (cause) {
      throw new DetourError(
        'permission',
        `health.icmp: a raw socket: ${(cause as Error).message}; it needs CAP_NET_RAW`,
        {
          cause,
        },
      )
    }
    this.socket.on('message', (bytes, source) => {
      const at = version === 4 ? (ipv4.check(bytes, 0, bytes.length) === 0 ? ipv4.headerLength(bytes, 0) : -1) : 0
      if (at < 0 || icmp.check(bytes, at, bytes.length) !== 0) return
      const reply = version === 4 ? icmp.TYPE4.ECHO_REPLY : icmp.TYPE6.ECHO_REPLY
      if (icmp.type(bytes, at) !== reply || icmp.identifier(bytes, at) !== this.identifier) return
      answered(ipaddr.parse(source).toString(), icmp.sequence(bytes, at))
    })
    // What cannot be sent is not answered either.
    this.socket.on('error', () => {})
  }

  /** Sends an echo request and returns its number. */
  send(address: Uint8Array): number {
    const four = this.version === 4
    this.sequence = (this.sequence + 1) & 0xffff
    const message = new Uint8Array(icmp.HEADER + ECHO.length)
    const word = (this.identifier << 16) | this.sequence
    icmp.write(message, 0, four ? icmp.TYPE4.ECHO_REQUEST : icmp.TYPE6.ECHO_REQUEST, 0, word)
    message.set(ECHO, icmp.HEADER)
    // Of ICMPv6 the kernel computes it (RFC 3542 section 3.1).
    if (four) icmp.updateChecksum4(message, 0, message.length)
    const to = ipaddr.fromByteArray([...address]).toString()
    this.socket.send(Buffer.from(message), 0, message.length, to, () => {})
    return this.sequence
  }

  close(): void {
    this.socket.close()
  }
}

function load(): RawPackage {
  try {
    return createRequire(import.meta.url)('raw-socket') as RawPackage
  } catch (cause) {
    throw new DetourError(
      'unsupported',
      'health.icmp needs the package raw-socket: npm install raw-socket (it is compiled, which needs make, g++ and python3)',
      { cause },
    )
  }
}
