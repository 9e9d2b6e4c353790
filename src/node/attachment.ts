// Interception of one pod interface: gates on its egress and ingress that give packets to a TAP beside it, a program that
// brings them back, and a heartbeat that lets the kernel apply the fail mode when the worker is dead.
//
//   pod process ─► eth0 egress ─ gate ─► TAP ─► worker          worker ─► TAP ─ back ─► eth0 egress ─► host
//   host ─► eth0 ingress ─ gate ─► TAP ─► worker                worker ─► TAP ─ back ─► eth0 ingress ─► pod process
//
// Nothing of the interface itself is changed. Programs, heartbeat and TAP outlive the process (pins, a persistent TAP), so
// that the fail mode holds after SIGKILL; `detach`, or `cleanup` in a later process, takes them away.
//
// NB: a pod with CAP_NET_RAW can send past every classifier of its own interface (PACKET_QDISC_BYPASS, packet(7)); only
// the host's side of the interface could stop that. What arrives is intercepted all the same.

import { closeSync } from 'node:fs'
import { back, gate } from '../control/gate.ts'
import { steerFrames } from '../control/steering.ts'
import { DetourError } from '../errors.ts'
import type { Steering } from '../flow/steering.ts'
import { BPFFS, createArrayMap, type Hook, loadClassifier, loadFilter, makePinDirectory, pin } from '../os/bpf.ts'
import { type AttachRung, attachClassifier, countHeld, detachClassifiers, release } from '../os/classifier.ts'
import { type FailCounters, type FailMode, HEARTBEAT_SIZE, Heartbeat } from '../os/heartbeat.ts'
import { deleteLink, type LinkInfo, linkInfo } from '../os/link.ts'
import { ALL_OFFLOADS, openTap, quietTap, type Tap, VNET_HEADER } from '../os/tun.ts'

import { createOwnMap, type Own, protect, setOwn, unprotect } from './prefixes.ts'

export { createProtectedMap } from './prefixes.ts'

/** Where the pins of attachments lie, one directory an attachment. */
export const PIN_DIRECTORY = `${BPFFS}/detour`

export interface AttachOptions {
  /** Name or path of the pod's network namespace. */
  namespace: string
  interface?: string
  /** Names the pins: letters, digits, '_' and '-'. */
  id: string
  failMode: FailMode
  /** Silence after which the worker counts as dead. */
  heartbeatLimitMs: number
  /** From createProtectedMap; shared by all attachments of a node. */
  protectedMap: number
  /** `address/length`, as a CNI result has them: these are the pod's then, not what it may add itself; by default those of the interface. */
  networks?: readonly string[]
  /** Whether the pod may send from its own MAC and IP addresses only; true by default. */
  antiSpoofing?: boolean
  /** Further prefixes that it may send from. */
  alsoFrom?: readonly string[]
  pinDirectory?: string
  /** How the gates are held; 'auto' takes TCX where the kernel has it. */
  rung?: AttachRung | 'auto'
  /** Upper bound of the TAP's offloads (os/tun OFFLOADS); all by default. */
  offloads?: number
  /** How packets are shared out among workers, a queue of the TAP each; one worker by default. */
  steering?: Steering
}

/** One intercepted pod interface; numbers and strings pass to a worker, `detach` stays here. */
export interface Attachment {
  readonly id: string
  readonly namespace: string
  readonly interface: string
  /** Of the interface and of the TAP. */
  readonly index: number
  readonly tapIndex: number
  readonly tapName: string
  /** One a worker; each belongs to whoever builds the TapDevice, which closes it. */
  readonly tapFds: readonly number[]
  readonly headerSize: number
  /** CAPABILITY bits of the TAP. */
  readonly capabilities: number
  readonly mac: string
  /** IPv4 and IPv6 addresses of the interface, link-local ones included. */
  readonly addresses: readonly string[]
  readonly mtu: number
  /** The heartbeat map: `new Heartbeat(mapFd, workers)` in a worker. Closed by detach. */
  readonly mapFd: number
  readonly rung: AttachRung
  /** How long ago the worker that is silent for longest said that it is alive, ms. */
  heartbeatAgeMs(): number
  /** What the gates counted. */
  failCounters(): FailCounters
  /** Whether the gates and the way back are where they were put. */
  isAttached(): boolean
  /** Takes over the interface's addresses, by which the gates know protected pods, and its MTU. Throws DetourError when the map is full. */
  update(addresses: readonly string[], mtu: number): void
  /** Takes interception away and leaves the interface as it was found. Packets pass untouched from the first step on. */
  detach(): void
}

/** Two gates and the way back. */
const PROGRAMS = 3

/** Intercepts a pod interface, replacing what an earlier process left behind under the same id. Throws DetourError and leaves nothing behind. */
export function attach(options: AttachOptions): Attachment {
  const { namespace, interface: name = 'eth0', id, failMode, heartbeatLimitMs, protectedMap, rung = 'auto' } = options
  const link = linkInfo(name, namespace)
  if (link.type !== 'ether')
    throw new DetourError('unsupported', `interface ${name} of ${namespace} is of type ${link.type}: not Ethernet`)
  cleanup(options)

  const directory = pinDirectoryOf(options)
  const tapName = tapNameOf(name)
  let { addresses, mtu } = link
  let own = ownOf(options, link)
  const workers = options.steering?.workers ?? 1
  const opened: number[] = []
  try {
    makePinDirectory(directory)
    const tap = openPodTap(tapName, options)
    opened.push(...tap.fds)
    quietTap(tapName, namespace)
    const tapIndex = linkInfo(tapName, namespace).index

    const mapFd = createArrayMap('dt_heartbeat', HEARTBEAT_SIZE, 1)
    opened.push(mapFd)
    pin(mapFd, `${directory}/heartbeat`)
    const ownMap = createOwnMap()
    opened.push(ownMap)
    pin(ownMap, `${directory}/own`)
    setOwn(ownMap, own)

    const put = (on: string, hook: Hook, code: Uint8Array, label: string, by = rung) => {
      const program = loadClassifier(label, code)
      try {
        const hold = attachClassifier({ namespace, interface: on, hook, program }, directory, by, true)
        release(hold)
        return hold.rung
      } finally {
        closeSync(program)
      }
    }
    // Nobody else is on the TAP, and each TCX attachment waits for the processors to look up (RCU): 8 to 16 ms.
    put(tapName, 'ingress', back(link.index, macBytes(link.mac)), 'dt_back', 'clsact')
    const mac = options.antiSpoofing === false ? undefined : macBytes(link.mac)
    const gateOf = (hook: Hook) => gate({ hook, tapIndex, heartbeatMap: mapFd, workers, protectedMap, ownMap, mac })
    put(name, 'egress', gateOf('egress'), 'dt_gate_out')
    const taken = put(name, 'ingress', gateOf('ingress'), 'dt_gate_in')

    const heartbeat = new Heartbeat(mapFd, workers)
    protect(protectedMap, sourcesOf(own))
    heartbeat.enable(failMode, heartbeatLimitMs)
    let attached = true
    return {
      id,
      namespace,
      interface: name,
      index: link.index,
      tapIndex,
      tapName,
      tapFds: tap.fds,
      headerSize: tap.headerSize,
      capabilities: tap.offloads,
      mac: link.mac,
      get addresses() {
        return addresses
      },
      get mtu() {
        return mtu
      },
      mapFd,
      rung: taken,
      heartbeatAgeMs: () => heartbeat.ageMs(),
      failCounters: () => heartbeat.read(),
      isAttached: () => countHeld(namespace, directory) === PROGRAMS,
      update(newAddresses, newMtu) {
        const before = own
        own = ownOf(options, linkInfo(name, namespace))
        setOwn(ownMap, own, before)
        const sources = sourcesOf(own)
        protect(protectedMap, sources)
        const gone = sourcesOf(before).filter(address => !sources.includes(address))
        unprotect(protectedMap, gone)
        addresses = [...newAddresses]
        mtu = newMtu
      },
      detach() {
        if (!attached) return
        attached = false
        heartbeat.disable()
        unprotect(protectedMap, sourcesOf(own))
        cleanup(options)
        heartbeat.close()
        closeSync(mapFd)
        closeSync(ownMap)
      },
    }
  } catch (error) {
    cleanup(options)
    for (const fd of opened) closeSync(fd)
    throw error
  }
}

function openPodTap(name: string, { namespace, offloads = ALL_OFFLOADS, steering }: AttachOptions): Tap {
  const options = { name, namespace, persist: true, headerSize: VNET_HEADER.TUNNEL, offloads }
  if (steering === undefined || steering.workers === 1) return openTap(options)
  const program = loadFilter('dt_steer_pod', steerFrames(steering))
  try {
    return openTap({ ...options, queues: steering.workers, steering: program })
  } finally {
    closeSync(program)
  }
}

/** Takes away what an attachment of this id left behind, of this process or a dead one; nothing there is fine. */
export function cleanup(options: Pick<AttachOptions, 'namespace' | 'interface' | 'id' | 'pinDirectory'>): void {
  const { namespace, interface: name = 'eth0' } = options
  detachClassifiers(namespace, pinDirectoryOf(options))
  deleteLink(tapNameOf(name), namespace)
}

/** The bytes of a MAC address as printed. */
export function macBytes(mac: string): Uint8Array {
  return Uint8Array.from(mac.split(':'), byte => Number.parseInt(byte, 16))
}

const pinDirectoryOf = ({ pinDirectory = PIN_DIRECTORY, id }: { pinDirectory?: string; id: string }) =>
  `${pinDirectory}/${id}`

const tapNameOf = (name: string) => `dt-${name.slice(0, 12)}`

/** What belongs to the pod. NB: a pod with CAP_NET_ADMIN gives itself any address, so that of a CNI result counts more than the interface's. */
function ownOf({ networks, alsoFrom = [] }: AttachOptions, link: LinkInfo): Own {
  const given = networks && [...networks, ...link.networks.filter(isLinkLocal)]
  return { networks: given ?? link.networks, prefixes: alsoFrom }
}

const isLinkLocal = (network: string) => /^fe[89ab]/i.test(network)

const sourcesOf = ({ networks, prefixes }: Own) => [
  ...networks.map(network => network.replace(/\/.*/, '')),
  ...prefixes,
]
