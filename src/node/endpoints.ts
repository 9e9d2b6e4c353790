// The pool of endpoints of a node: which number each has, the way to it, whether it is up, and what people are told of it. Workers
// read all of it from shared memory. Main thread only.

import { setTimeout } from 'node:timers/promises'
import ipaddr from 'ipaddr.js'
import { type Config, configuredEndpoints, type EndpointConfig } from '../control/config.ts'
import type { EndpointRow } from '../control/source.ts'
import { addressBytes, tunnelConfig } from '../control/tunnel.ts'
import { DetourError } from '../errors.ts'
import { EndpointTable, MAX_ENDPOINTS } from '../memory/endpoints.ts'
import { createHealth, type EndpointHealth, readHealth, resetHealth } from '../memory/health.ts'
import { monotonicMs } from '../os/clock.ts'
import type { Link } from '../os/rtnetlink.ts'
import type { EndpointsHandle } from '../pipeline/endpoints.ts'
import type { ProbeOptions } from '../pipeline/probe.ts'
import { innerMtu, type TunnelConfig } from '../pipeline/tunnel.ts'
import type { Alarms } from './alarm.ts'
import { probeOf, rulesOf, seedOf } from './endpoint-settings.ts'
import { latencyOf } from './health.ts'
import { HealthChecks } from './health-checks.ts'
import { PathMtus } from './path-mtu.ts'
import { Way } from './way.ts'

/** Time between two looks for a next hop that is waited for, ms. */
const FIND_MS = 10

export interface PoolOptions {
  config: Config
  tunnel: TunnelConfig
  /** Of the uplink. */
  namespace: string
  uplink: string
  /** MTU of the uplink. */
  mtu: number
  /** True where the kernel sends none of the tunnel's packets. */
  direct?: boolean
  /** In place of what the configuration says. */
  probe?: ProbeOptions
  /** Numbers that endpoints have had, by address: flows of a process before this one carry them. */
  numbers?: ReadonlyMap<string, number>
}

/** What a probe through the tunnel told of an endpoint, for whoever exports it. */
export interface ProbeStats extends EndpointHealth {
  name: string
  address: string
}

interface Member {
  readonly number: number
  /** As text, in its usual form. */
  readonly address: string
  readonly bytes: Uint8Array
  config: EndpointConfig
  mtu: number
  /** Flows that had left it when it was last found up. */
  moved: number
}

export class EndpointPool {
  /** What workers build their pool from. */
  readonly handle: EndpointsHandle
  /** How workers probe. */
  probe: ProbeOptions
  private readonly ownProbe: boolean
  private readonly tunnel: TunnelConfig
  private readonly table: EndpointTable
  private readonly members = new Map<string, Member>()
  /** Numbers by address, also of those that are gone. */
  private readonly known: Map<string, number>
  private readonly way: Way
  private readonly paths: PathMtus
  private readonly checks: HealthChecks
  private readonly started = monotonicMs()

  /** Opens sockets in the namespace. Throws DetourError. */
  constructor(options: PoolOptions) {
    const { config, tunnel, namespace, uplink, mtu, direct, numbers = [] } = options
    this.tunnel = tunnel
    this.ownProbe = options.probe !== undefined
    this.probe = options.probe ?? probeOf(config)
    this.table = new EndpointTable(rulesOf(config))
    this.handle = { table: this.table.handle, health: createHealth(), seed: seedOf(config) }
    this.known = new Map(numbers)
    this.way = new Way({ namespace, uplink, local: tunnel.local, direct }, mtu)
    this.paths = new PathMtus(namespace, tunnel)
    this.checks = new HealthChecks({ namespace, health: this.handle.health, config: config.health })
    try {
      this.set(configuredEndpoints(config), true)
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** The uplink as it was at the last look; undefined when there was none. */
  get link(): Link | undefined {
    return this.way.link
  }

  /** The least that the way to an endpoint carries: bytes of an outer IP packet. */
  get mtu(): number {
    return Math.min(this.way.mtu, ...Array.from(this.members.values(), member => member.mtu))
  }

  /** Whether an endpoint answers, and probes of all of them. */
  status(): { endpointUp: boolean; probesSent: number; probesAnswered: number } {
    const all = this.probeStats()
    return {
      endpointUp: all.some(({ up }) => up),
      probesSent: all.reduce((sum, { sent }) => sum + sent, 0),
      probesAnswered: all.reduce((sum, { answered }) => sum + answered, 0),
    }
  }

  /** Number of each endpoint by address, those included that are gone: for a process that takes this one's flows over. */
  numbers(): ReadonlyMap<string, number> {
    return new Map(this.known)
  }

  /** Their addresses. */
  addresses(): string[] {
    return [...this.members.keys()]
  }

  /** Name of the endpoint of a number; '' for none. */
  nameOf(number: number): string {
    for (const member of this.members.values()) if (member.number === number) return nameOf(member)
    return ''
  }

  /**
   * Makes these the endpoints, and leaves alone what stays: flows of those that go find others, those that come get flows once they
   * have answered. Throws DetourError, and then nothing has changed.
   */
  set(list: readonly EndpointConfig[], up = false): void {
    const wanted = new Map<string, EndpointConfig>()
    for (const config of list) {
      const address = this.addressOf(config)
      if (wanted.has(address)) throw new DetourError('bad-config', `endpoints: ${address} is there twice`)
      wanted.set(address, config)
    }
    if (wanted.size === 0) throw new DetourError('bad-config', 'endpoints: none is left; a node needs one')
    if (wanted.size > MAX_ENDPOINTS)
      throw new DetourError('bad-config', `endpoints: ${wanted.size} are more than ${MAX_ENDPOINTS}`)
    for (const member of this.members.values()) {
      if (wanted.has(member.address)) continue
      this.members.delete(member.address)
      this.checks.release(member.number)
      this.table.set(member.number, undefined)
    }
    for (const [address, config] of wanted) {
      const member = this.members.get(address) ?? this.add(address, config, up)
      member.config = config
      this.publish(member)
    }
  }

  /** Takes over what may change while packets flow: endpoints, their health, rebalancing, segment sizes. Throws DetourError. */
  reconfigure(config: Config): void {
    this.set(configuredEndpoints(config))
    this.table.setRules(rulesOf(config))
    this.checks.reconfigure(config.health)
    if (!this.ownProbe) this.probe = probeOf(config)
  }

  /** Looks at uplink, routes and neighbours again. */
  refresh(): void {
    this.way.look()
    this.paths.look()
    for (const member of this.members.values()) this.publish(member)
  }

  /** Looks until the next hop to every endpoint is known, but for `ms` at most; returns the addresses of those to which it is not. */
  async find(ms: number): Promise<string[]> {
    const end = performance.now() + ms
    for (;;) {
      const missing = [...this.members.values()].filter(member => this.publish(member) === undefined)
      if (missing.length === 0 || performance.now() >= end) return missing.map(({ address }) => address)
      await setTimeout(FIND_MS)
      this.refresh()
    }
  }

  /** Tells who does not answer. `flows` counts an endpoint's by its number. */
  tell(alarms: Alarms, config: Config, flows: (number: number) => number): void {
    const what = config.failMode === 'open' ? 'pass uninspected (fail-open)' : 'are dropped (fail-closed)'
    const { endpointUp } = this.status()
    for (const member of this.members.values()) {
      const name = `endpoint ${label(member)}`
      const { up, failing, moved } = readHealth(this.handle.health, member.number)
      const left = moved - member.moved
      const count = flows(member.number)
      if (up) {
        alarms.clear(name, `${name} answers again${left > 0 ? `; ${left} flows had moved` : ''}`)
        member.moved = moved
        continue
      }
      const fate = endpointUp
        ? config.rebalance === 'never'
          ? `packets of its ${count} flows ${what}`
          : `${left} flows moved to others, ${count} will when they send`
        : `packets ${what}`
      alarms.raise(name, `${name} does not answer${this.checks.describe(failing)}: ${fate}`)
    }
    if (this.members.size === 1) return
    if (endpointUp) alarms.clear('endpoints', 'an endpoint answers again')
    else alarms.raise('endpoints', `none of ${this.members.size} endpoints answers: packets ${what}`)
  }

  /** What people see. */
  rows(flows: (number: number) => number): EndpointRow[] {
    const now = monotonicMs()
    return Array.from(this.members.values(), member => {
      const health = readHealth(this.handle.health, member.number)
      return {
        name: nameOf(member),
        address: member.address,
        weight: member.config.weight,
        state: !health.up ? 'down' : member.config.drain ? 'draining' : 'up',
        sinceMs: Math.max(0, now - (health.sinceMs || this.started)),
        flows: flows(member.number),
        probesSent: health.sent,
        probesAnswered: health.answered,
        latency: latencyOf(health),
        mtu: innerMtu(this.tunnel, member.mtu),
      }
    })
  }

  /** What the probes told. */
  probeStats(): ProbeStats[] {
    return Array.from(this.members.values(), member => ({
      name: nameOf(member),
      address: member.address,
      ...readHealth(this.handle.health, member.number),
    }))
  }

  close(): void {
    this.checks.close()
    this.paths.close()
    this.way.close()
  }

  private addressOf({ address }: EndpointConfig): string {
    const bytes = addressBytes(address, 'endpoints')
    const text = ipaddr.fromByteArray(bytes).toString()
    const { local } = this.tunnel
    if (bytes.length !== local.length)
      throw new DetourError(
        'bad-config',
        `endpoint ${text} and tunnel.local ${ipaddr.fromByteArray(local).toString()} differ in IP version`,
      )
    return text
  }

  private add(address: string, config: EndpointConfig, up: boolean): Member {
    const number = this.numberFor(address)
    const bytes = Uint8Array.from(addressBytes(address, 'endpoints'))
    const member = { number, address, bytes, config, mtu: this.way.mtu, moved: 0 }
    this.members.set(address, member)
    resetHealth(this.handle.health, number, up)
    this.checks.watch(number, bytes)
    return member
  }

  /** The number that it had before, or one that nobody has had; else the one that is free for longest. */
  private numberFor(address: string): number {
    const { known } = this
    const taken = new Set(Array.from(this.members.values(), member => member.number))
    const used = new Set(known.values())
    const isFree = (number: number | undefined): number is number => number !== undefined && !taken.has(number)
    const numbers = Array.from({ length: MAX_ENDPOINTS }, (_, i) => i + 1)
    const unused = numbers.find(number => !used.has(number))
    const number = [known.get(address), unused, ...known.values()].find(isFree) as number
    for (const [other, old] of known) if (old === number) known.delete(other)
    known.set(address, number)
    return number
  }

  /** Publishes an endpoint and the way to it; returns the next hop's addresses. */
  private publish(member: Member): Uint8Array | undefined {
    const { bytes, config } = member
    const { mtu, addresses } = this.way.to(bytes)
    member.mtu = this.paths.limit(member.address, mtu)
    const { weight, drain } = config
    this.table.set(member.number, { address: bytes, weight, draining: drain, mtu: member.mtu, hop: addresses })
    return addresses
  }
}

/** The tunnel of a configuration; its remote is the first endpoint. Throws DetourError. */
export function tunnelOf(config: Config): TunnelConfig {
  const { tunnel } = config
  const [first] = configuredEndpoints(config)
  if (first === undefined)
    throw new DetourError('bad-config', 'no endpoint: name one as tunnel.remote, or several under endpoints')
  return tunnelConfig({ ...tunnel, remote: first.address })
}

const nameOf = ({ config, address }: Member) => config.name ?? address

const label = ({ config, address }: Member) => (config.name === undefined ? address : `${config.name} (${address})`)
