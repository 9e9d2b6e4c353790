// One attached pod interface: what is known of it, and what can be done with it while it is attached. Its parts are plain data and
// descriptors, enough for another process to go on with it.

import { closeSync } from 'node:fs'
import type { AttachRung } from '../os/classifier.ts'
import { countHeld } from '../os/classifier.ts'
import { type FailCounters, type FailMode, Heartbeat } from '../os/heartbeat.ts'
import { type LinkInfo, linkInfo } from '../os/link.ts'
import { type Own, protect, setOwn, unprotect } from './prefixes.ts'

/** What an attachment consists of. */
export interface AttachmentParts {
  id: string
  namespace: string
  /** Which one that is, where it may be no other. */
  sandbox?: string
  interface: string
  /** Of the interface and of the TAP. */
  index: number
  tapIndex: number
  tapName: string
  /** One a worker; each belongs to whoever builds the TapDevice, which closes it. */
  tapFds: number[]
  headerSize: number
  /** CAPABILITY bits of the TAP. */
  capabilities: number
  mac: string
  /** IPv4 and IPv6 addresses of the interface, link-local ones included. */
  addresses: readonly string[]
  mtu: number
  rung: AttachRung
  /** The heartbeat map: `new Heartbeat(mapFd, workers)` in a worker. Closed by detach, as the next. */
  mapFd: number
  /** The map of the pod's own addresses. */
  ownFd: number
  own: Own
  /** Given by whoever attached: what counts as the pod's instead of the interface's addresses, and beside them. */
  networks?: readonly string[]
  alsoFrom?: readonly string[]
  workers: number
  failMode: FailMode
  heartbeatLimitMs: number
  /** Where its pins lie. */
  directory: string
}

/** What was there before: nothing, what a dead process or this one has left, or what another process serves. */
export type Origin = 'new' | 'left' | 'live'

/** One intercepted pod interface; numbers and strings pass to a worker, the rest stays here. */
export interface Attachment extends Readonly<Omit<AttachmentParts, 'sandbox' | 'own' | 'networks' | 'alsoFrom'>> {
  readonly from: Origin
  /** The addresses and prefixes that count as protected for it. */
  readonly sources: readonly string[]
  /** As it is now, for another process. */
  parts(): AttachmentParts
  /** Turns interception on: counts all workers as alive for now. */
  enable(): void
  /** How long ago the worker that is silent for longest said that it is alive, ms. */
  heartbeatAgeMs(): number
  /** What the gates counted. */
  failCounters(): FailCounters
  /** How much of that was another process's to tell. */
  readonly toldBefore: Pick<FailCounters, 'passed' | 'dropped'>
  /** Whether the gates and the way back are where they were put. */
  isAttached(): boolean
  /** Takes over the interface's addresses, by which the gates know protected pods, and its MTU. Throws DetourError when the map is full. */
  update(addresses: readonly string[], mtu: number): void
  /** Knows of it what the process knows that has it attached: only what may change while it is. */
  follow(parts: AttachmentParts): void
  /** Another fail mode and limit of silence from now on. */
  govern(failMode: FailMode, heartbeatLimitMs: number): void
  /** Closes what this process has of it and leaves it as it is: under its fail mode, or to a successor. */
  leave(): void
  /** The same, but its addresses are protected no longer: for whoever attaches it again. */
  withdraw(): void
  /** Takes interception away and leaves the interface as it was found. Packets pass untouched from the first step on. */
  detach(): void
}

/** Two gates, the way back and the seal on it. */
export const PROGRAMS = 4

/** What there is to do with these parts, which may be another process's, too; `takeAway` removes programs, pins and TAP. Takes the descriptors. Throws DetourError. */
export function attached(
  given: AttachmentParts,
  protectedMap: number,
  takeAway: () => void,
  from: Origin = 'new',
): Attachment {
  const parts = { ...given }
  const { id, namespace, interface: name, directory } = parts
  const heartbeat = new Heartbeat(parts.mapFd, parts.workers)
  /** The counters when it was closed, from when on the memory is not there any more. */
  let last: FailCounters | undefined
  function close(): void {
    last = heartbeat.read()
    heartbeat.close()
    closeSync(parts.mapFd)
    closeSync(parts.ownFd)
  }
  return {
    id,
    namespace,
    interface: name,
    index: parts.index,
    tapIndex: parts.tapIndex,
    tapName: parts.tapName,
    tapFds: parts.tapFds,
    headerSize: parts.headerSize,
    capabilities: parts.capabilities,
    mac: parts.mac,
    mapFd: parts.mapFd,
    ownFd: parts.ownFd,
    rung: parts.rung,
    workers: parts.workers,
    directory,
    from,
    get addresses() {
      return parts.addresses
    },
    get mtu() {
      return parts.mtu
    },
    get failMode() {
      return parts.failMode
    },
    get heartbeatLimitMs() {
      return parts.heartbeatLimitMs
    },
    get sources() {
      return sourcesOf(parts.own)
    },
    parts: () => ({ ...parts }),
    enable() {
      heartbeat.enable(parts.failMode, parts.heartbeatLimitMs)
    },
    heartbeatAgeMs: () => (last === undefined ? heartbeat.ageMs() : 0),
    failCounters: () => last ?? heartbeat.read(),
    toldBefore: from === 'live' ? heartbeat.read() : { passed: 0, dropped: 0 },
    isAttached: () => countHeld(namespace, directory) === PROGRAMS,
    update(addresses, mtu) {
      const before = parts.own
      const own = ownOf(parts, linkInfo(name, namespace))
      setOwn(parts.ownFd, own, before)
      const sources = sourcesOf(own)
      protect(protectedMap, sources)
      unprotect(
        protectedMap,
        sourcesOf(before).filter(address => !sources.includes(address)),
      )
      Object.assign(parts, { own, addresses: [...addresses], mtu })
    },
    follow({ own, addresses, mtu, failMode, heartbeatLimitMs }) {
      Object.assign(parts, { own, addresses, mtu, failMode, heartbeatLimitMs })
    },
    govern(failMode, heartbeatLimitMs) {
      if (last !== undefined) return
      Object.assign(parts, { failMode, heartbeatLimitMs })
      heartbeat.govern(failMode, heartbeatLimitMs)
    },
    leave() {
      if (last === undefined) close()
    },
    withdraw() {
      if (last !== undefined) return
      unprotect(protectedMap, sourcesOf(parts.own))
      close()
    },
    detach() {
      if (last !== undefined) return
      heartbeat.disable()
      unprotect(protectedMap, sourcesOf(parts.own))
      takeAway()
      close()
    },
  }
}

/** What belongs to the pod. NB: a pod with CAP_NET_ADMIN gives itself any address, so that of a CNI result counts more than the interface's. */
export function ownOf(
  { networks, alsoFrom = [] }: Pick<AttachmentParts, 'networks' | 'alsoFrom'>,
  link: LinkInfo,
): Own {
  const given = networks && [...networks, ...link.networks.filter(isLinkLocal)]
  return { networks: given ?? link.networks, prefixes: alsoFrom }
}

const isLinkLocal = (network: string) => /^fe[89ab]/i.test(network)

/** The addresses and prefixes that it sends from. */
export const sourcesOf = ({ networks, prefixes }: Own) => [
  ...networks.map(network => network.replace(/\/.*/, '')),
  ...prefixes,
]
