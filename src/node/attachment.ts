// Interception of one pod interface: gates on its egress and ingress that give packets to a TAP beside it, a program that
// brings them back, and a heartbeat that lets the kernel apply the fail mode when the worker is dead.
//
//   pod process ─► eth0 egress ─ gate ─► TAP ─► worker          worker ─► TAP ─ back ─► eth0 egress ─► host
//   host ─► eth0 ingress ─ gate ─► TAP ─► worker                worker ─► TAP ─ back ─► eth0 ingress ─► pod process
//
// Nothing of the interface itself is changed. Programs, heartbeat and TAP outlive the process (pins, a persistent TAP), so
// that the fail mode holds after SIGKILL; `attach` in a later process goes on with them, `detach` or `cleanup` takes them away.
//
// NB: a pod with CAP_NET_RAW can send past every classifier of its own interface (PACKET_QDISC_BYPASS, packet(7)); only
// the host's side of the interface could stop that. What arrives is intercepted all the same.

import { createHash } from 'node:crypto'
import { closeSync, existsSync, mkdirSync, readdirSync } from 'node:fs'
import { back, GATE_VERSION, gate, PREFIX_KEY, seal } from '../control/gate.ts'
import { steerFrames } from '../control/steering.ts'
import { DetourError } from '../errors.ts'
import type { Steering } from '../flow/steering.ts'
import {
  BPFFS,
  clearMap,
  createArrayMap,
  type Hook,
  loadClassifier,
  loadFilter,
  makePinDirectory,
  mapInfo,
  pinnedMap,
  unpin,
} from '../os/bpf.ts'
import {
  type AttachRung,
  attachClassifier,
  countHeld,
  detachClassifiers,
  heldBy,
  release,
  replaceClassifier,
} from '../os/classifier.ts'
import { type FailMode, HEARTBEAT_SIZE, Heartbeat } from '../os/heartbeat.ts'
import { interfaceIndex } from '../os/libc.ts'
import { deleteLink, type LinkInfo, linkInfo } from '../os/link.ts'
import { inNamespace } from '../os/netns.ts'
import { ALL_OFFLOADS, openTap, quietTap, type Tap, VNET_HEADER } from '../os/tun.ts'
import { type Attachment, type AttachmentParts, attached, ownOf, PROGRAMS, sourcesOf } from './attached.ts'
import { createOwnMap, protect, setOwn } from './prefixes.ts'
import { isSandbox, type SandboxId } from './sandbox.ts'

export type { Attachment } from './attached.ts'
export { createProtectedMap } from './prefixes.ts'

/** Where the pins of attachments lie, one directory an attachment. */
export const PIN_DIRECTORY = `${BPFFS}/detour`

export interface AttachOptions {
  /** Name or path of the pod's network namespace. */
  namespace: string
  /** Which one that is; another one at that path is none. Whichever is there by default. */
  sandbox?: SandboxId
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

const HOOKS = ['egress', 'ingress'] as const

/**
 * Intercepts a pod interface. What an earlier process left behind under the same id is taken over where it fits: gates that are on the
 * interface stay there, so that its fail mode holds without a gap, and are only given new programs where those that they run
 * are others. All else is made anew. Throws DetourError, and then the interface is as it was.
 */
export function attach(options: AttachOptions): Attachment {
  const { namespace, interface: name = 'eth0' } = options
  if (!isThere(options)) throw new DetourError('not-found', `network namespace ${namespace} is another one by now`)
  const link = linkInfo(name, namespace)
  if (link.type !== 'ether')
    throw new DetourError('unsupported', `interface ${name} of ${namespace} is of type ${link.type}: not Ethernet`)
  const kept = gatesLeft(options, link)
  if (kept === undefined) cleanup(options)
  const opened: number[] = []
  try {
    return place(options, link, kept, opened)
  } catch (error) {
    for (const fd of opened) closeSync(fd)
    if (kept === undefined) cleanup(options)
    throw error
  }
}

/** Goes on with an attachment of another process, without touching it; takes the descriptors. Throws DetourError. */
export function inheritAttachment(parts: AttachmentParts, protectedMap: number): Attachment {
  const { id, namespace, sandbox, interface: name, directory } = parts
  const pinDirectory = directory.slice(0, directory.lastIndexOf('/'))
  return attached(parts, protectedMap, () => cleanup({ id, namespace, sandbox, interface: name, pinDirectory }), 'live')
}

/** How gates are held that a dead process left on the interface, be it one alone; undefined where none is, or not as is wanted. */
function gatesLeft(options: AttachOptions, link: LinkInfo): AttachRung | undefined {
  const { namespace, rung = 'auto' } = options
  const directory = pinDirectoryOf(options)
  const [out, back] = HOOKS.map(hook => heldBy({ namespace, interface: link.name, hook }, link.index, directory))
  const held = out ?? back
  return held === (back ?? out) && (rung === 'auto' || rung === held) ? held : undefined
}

/** Puts TAP, maps and programs in place, as far as they are not there; `opened` gets the descriptors. */
function place(options: AttachOptions, link: LinkInfo, kept: AttachRung | undefined, opened: number[]): Attachment {
  const {
    namespace,
    sandbox,
    id,
    failMode,
    heartbeatLimitMs,
    protectedMap,
    rung = 'auto',
    networks,
    alsoFrom,
  } = options
  const { name } = link
  const directory = pinDirectoryOf(options)
  const tapName = tapNameOf(name)
  const workers = options.steering?.workers ?? 1
  makePinDirectory(directory)
  const tap = takePodTap(tapName, options)
  opened.push(...tap.fds)
  quietTap(tapName, namespace)
  const tapIndex = linkInfo(tapName, namespace).index
  const mapFd = pinnedMap(`${directory}/heartbeat`, HEARTBEAT_SIZE, () =>
    createArrayMap('dt_heartbeat', HEARTBEAT_SIZE, 1),
  )
  opened.push(mapFd)
  const ownFd = pinnedMap(`${directory}/own`, 1, createOwnMap)
  opened.push(ownFd)
  clearMap(ownFd, PREFIX_KEY)
  const own = ownOf(options, link)
  setOwn(ownFd, own)
  protect(protectedMap, sourcesOf(own))

  const mac = options.antiSpoofing === false ? undefined : macBytes(link.mac)
  const gateOf = (hook: Hook, [heartbeatMap, protectedMap, ownMap]: number[]) =>
    gate({ hook, tapIndex, heartbeatMap, workers, protectedMap, ownMap, mac })
  const maps = [mapFd, protectedMap, ownFd]
  // Nobody else is on the TAP, and each TCX attachment waits for the processors to look up (RCU): 8 to 16 ms.
  const programs: Program[] = [
    { on: tapName, hook: 'ingress', code: back(link.index, macBytes(link.mac)), label: 'dt_back', by: 'clsact' },
    { on: name, hook: 'egress', code: gateOf('egress', maps), label: 'dt_gate_out', by: kept ?? rung },
    { on: name, hook: 'ingress', code: gateOf('ingress', maps), label: 'dt_gate_in', by: kept ?? rung },
    { on: tapName, hook: 'egress', code: seal(mapFd), label: 'dt_seal', by: 'clsact' },
  ]
  const ids = maps.map(map => mapInfo(map).id)
  const mark = `made_${hashOf([programs[0].code, seal(ids[0]), ...HOOKS.map(hook => gateOf(hook, ids))])}`
  const parts = {
    ...{
      id,
      namespace,
      sandbox,
      interface: name,
      index: link.index,
      tapIndex,
      tapName,
      tapFds: tap.fds,
      mac: link.mac,
    },
    ...{ headerSize: tap.headerSize, capabilities: tap.offloads, addresses: link.addresses, mtu: link.mtu },
    ...{ mapFd, ownFd, own, networks, alsoFrom, workers, failMode, heartbeatLimitMs, directory },
  }
  const finish = (rung: AttachRung) => {
    const from = kept === undefined ? 'new' : 'left'
    const attachment = attached({ ...parts, rung }, protectedMap, () => cleanup(options), from)
    attachment.enable()
    return attachment
  }
  if (kept !== undefined && existsSync(`${directory}/${mark}`) && countHeld(namespace, directory) === PROGRAMS)
    return finish(kept)
  // Gates that are there go by these maps as soon as they run another program.
  if (kept !== undefined) enableNow(mapFd, options)
  for (const entry of readdirSync(directory)) if (entry.startsWith('made_')) unpin(`${directory}/${entry}`)
  const rungs = programs.map(program => put(program, options, directory))
  mkdirSync(`${directory}/${mark}`)
  return finish(rungs[1])
}

/** A program and where it runs. */
interface Program {
  on: string
  hook: Hook
  code: Uint8Array
  label: string
  by: AttachRung | 'auto'
}

/** Loads a program and puts it in its place, in that of the one that is there. */
function put({ on, hook, code, label, by }: Program, { namespace }: AttachOptions, directory: string): AttachRung {
  const program = loadClassifier(label, code)
  try {
    const classifier = { namespace, interface: on, hook, program }
    const held = heldBy(classifier, interfaceIndexOf(on, namespace), directory)
    if (held !== undefined) {
      replaceClassifier(classifier, held, directory)
      return held
    }
    const hold = attachClassifier(classifier, directory, by, true)
    release(hold)
    return hold.rung
  } finally {
    closeSync(program)
  }
}

function enableNow(mapFd: number, { failMode, heartbeatLimitMs, steering }: AttachOptions): void {
  const heartbeat = new Heartbeat(mapFd, steering?.workers)
  heartbeat.enable(failMode, heartbeatLimitMs)
  heartbeat.close()
}

/** What tells programs, and the maps that they use, from all others. */
function hashOf(codes: Uint8Array[]): string {
  const hash = createHash('sha256').update(`${GATE_VERSION}`)
  for (const code of codes) hash.update(code)
  return hash.digest('hex').slice(0, 16)
}

/** Opens the pod's TAP: the one that is there, where it takes as many queues, else a new one. */
function takePodTap(name: string, options: AttachOptions): Tap {
  if (interfaceIndexOf(name, options.namespace) !== 0) {
    try {
      return openPodTap(name, options)
    } catch {
      deleteLink(name, options.namespace)
    }
  }
  return openPodTap(name, options)
}

const interfaceIndexOf = (name: string, namespace: string) => inNamespace(namespace, () => interfaceIndex(name))

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
export function cleanup(
  options: Pick<AttachOptions, 'namespace' | 'sandbox' | 'interface' | 'id' | 'pinDirectory'>,
): void {
  const { namespace, interface: name = 'eth0' } = options
  if (isThere(options)) {
    detachClassifiers(namespace, pinDirectoryOf(options))
    deleteLink(tapNameOf(name), namespace)
  } else unpin(pinDirectoryOf(options))
}

/** The bytes of a MAC address as printed. */
export function macBytes(mac: string): Uint8Array {
  return Uint8Array.from(mac.split(':'), byte => Number.parseInt(byte, 16))
}

const isThere = ({ namespace, sandbox }: Pick<AttachOptions, 'namespace' | 'sandbox'>) =>
  sandbox === undefined || isSandbox(namespace, sandbox)

const pinDirectoryOf = ({ pinDirectory = PIN_DIRECTORY, id }: { pinDirectory?: string; id: string }) =>
  `${pinDirectory}/${id}`

/** The name of the TAP beside an interface. Names have up to 15 characters; what is cut off of a long one is in the hash. */
const tapNameOf = (name: string) =>
  name.length <= 12
    ? `dt-${name}`
    : `dt-${name.slice(0, 6)}${createHash('sha256').update(name).digest('hex').slice(0, 6)}`
