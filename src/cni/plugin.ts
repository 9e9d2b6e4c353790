// The plugin: environment and standard input in, standard output and an exit status out. All work is the daemon's.

import type { ControlClient } from '../control/client.ts'
import {
  addressesOf,
  type Configuration,
  cniVersionOf,
  decode,
  type JsonObject,
  POD_INTERFACE,
  readConfiguration,
  socketOf,
  validAttachments,
} from './configuration.ts'
import { CniError, CODE, renderError } from './error.ts'
import { type Environment, type Parameters, readParameters } from './parameters.ts'
import { checkVersion, NEWEST, VERSIONS } from './versions.ts'

/** Standard input. */
export type Input = AsyncIterable<Uint8Array> | Iterable<Uint8Array>

/** What a call leaves behind. */
export interface Outcome {
  /** Exit status. */
  status: 0 | 1
  /** For standard output. */
  output: string
  /** For the log: what was called on what, and what went wrong. */
  note: Record<string, string | number | boolean | undefined>
  logFile?: string
}

/** More than this on standard input is refused. */
export const INPUT_LIMIT = 4 << 20

/** How long connecting and each answer of the daemon may take, by verb. A runtime asks for STATUS every five seconds. */
export const PATIENCE_MS: Record<string, number> = { ADD: 20_000, DEL: 5000, CHECK: 5000, STATUS: 2000, GC: 30_000 }

/** How long ADD waits for somebody to serve, ms: a process that takes over needs some tenths of a second. */
const SUCCESSION_MS = 2000

/** One call of an attachment's or a network's verb. */
interface Call {
  parameters: Parameters
  json: JsonObject
  patienceMs: number
  successionMs: number
  note: Outcome['note']
}

interface Verb {
  /** The first version of the specification that has it. */
  since: string
  /** Returns what goes to standard output. */
  run(call: Call): Promise<string>
}

const VERBS: Record<string, Verb> = {
  ADD: { since: '0.3.0', run: add },
  DEL: { since: '0.3.0', run: del },
  CHECK: { since: '0.4.0', run: check },
  STATUS: { since: '1.1.0', run: status },
  GC: { since: '1.1.0', run: collect },
}

/** Serves one call. Never throws; whatever it is given, a failure is an error object on standard output. */
export async function plugin(
  env: Environment,
  stdin: Input,
  patience = PATIENCE_MS,
  successionMs = SUCCESSION_MS,
): Promise<Outcome> {
  const note: Outcome['note'] = { command: env.CNI_COMMAND }
  let cniVersion = NEWEST
  let logFile: string | undefined
  try {
    const command = env.CNI_COMMAND ?? ''
    if (command === 'VERSION') return { status: 0, output: await version(stdin), note }
    if (command === '') throw new CniError(CODE.BAD_ENVIRONMENT, 'missing in the environment: CNI_COMMAND')
    if (!Object.hasOwn(VERBS, command)) {
      const details = `CNI_COMMAND is ${JSON.stringify(command.slice(0, 100))}; verbs: ${Object.keys(VERBS).join(', ')}, VERSION`
      throw new CniError(CODE.BAD_ENVIRONMENT, 'invalid CNI_COMMAND', details)
    }
    const parameters = readParameters(env, command)
    const json = decode(await read(stdin))
    const asked = cniVersionOf(json)
    if (VERSIONS.includes(asked)) cniVersion = asked
    const { containerId, ifname, podNamespace, podName } = parameters
    Object.assign(note, { cniVersion: asked, containerId, ifname, podNamespace, podName })
    if (typeof json.logFile === 'string') logFile = json.logFile
    checkVersion(asked, command, VERBS[command].since)
    const output = await VERBS[command].run({ parameters, json, patienceMs: patience[command], successionMs, note })
    return { status: 0, output, note, logFile }
  } catch (error) {
    const failure =
      error instanceof CniError ? error : new CniError(CODE.FAILED, 'the plugin failed', (error as Error).message)
    Object.assign(note, { code: failure.code, error: failure.message, details: failure.details })
    return { status: 1, output: renderError(failure, cniVersion), note, logFile }
  }
}

async function read(stdin: Input): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let length = 0
  try {
    for await (const chunk of stdin) {
      length += chunk.length
      if (length > INPUT_LIMIT) throw new RangeError(`it is longer than ${INPUT_LIMIT} bytes`)
      chunks.push(chunk)
    }
  } catch (error) {
    throw new CniError(CODE.IO, 'the network configuration cannot be read', (error as Error).message)
  }
  return Buffer.concat(chunks)
}

/** VERSION answers in the question's version; a runtime may also ask without one. */
async function version(stdin: Input): Promise<string> {
  const bytes = await read(stdin)
  const cniVersion = bytes.length === 0 ? NEWEST : cniVersionOf({ cniVersion: NEWEST, ...decode(bytes) })
  return JSON.stringify({ cniVersion, supportedVersions: VERSIONS })
}

async function add({ parameters, json, patienceMs, successionMs, note }: Call): Promise<string> {
  const configuration = readConfiguration(json)
  const { prevResult } = configuration
  if (prevResult === undefined && !configuration.unchained) {
    const details = 'there is no prevResult: in the conflist, detour comes after the plugin that makes the interface'
    throw new CniError(CODE.BAD_CONFIG, 'detour must be called as a chained plugin', details)
  }
  // Written before anything is done, so that an answer that cannot be written leaves nothing behind.
  const output = JSON.stringify({ ...prevResult, cniVersion: configuration.cniVersion })
  if (isExcluded(configuration, parameters)) {
    note.inspected = false
    return output
  }
  const { inspect, excludeNamespaces, failMode, name } = configuration
  const { netns, podNamespace, podName, podUid } = parameters
  const request = {
    ...target(configuration, parameters),
    netns,
    network: name,
    podNamespace,
    podName,
    podUid,
    annotations: { ...parameters.annotations, ...configuration.annotations },
    inspect,
    excludeNamespaces,
    failMode,
  }
  const reply = await ask(configuration, patienceMs, client => client.ask('attach', request), successionMs)
  Object.assign(note, { inspected: reply.inspected, reason: reply.reason, id: reply.id })
  return output
}

/** Succeeds when the daemon cannot be asked: an error would keep the plugins before this one from cleaning up. */
async function del({ parameters, json, patienceMs, note }: Call): Promise<string> {
  const { containerId, ifname, netns } = parameters
  const request = { containerId, ifname: interfaceOf(json.unchained === true, ifname), netns }
  try {
    note.found = (await ask({ socket: socketOf(json) }, patienceMs, client => client.ask('detach', request))).found
  } catch (error) {
    note.error = (error as CniError).message
    note.details = (error as CniError).details
  }
  return ''
}

async function check({ parameters, json, patienceMs }: Call): Promise<string> {
  const configuration = readConfiguration(json)
  if (configuration.prevResult === undefined && !configuration.unchained) {
    throw new CniError(CODE.BAD_CONFIG, 'CHECK needs prevResult', 'the configuration has none')
  }
  if (isExcluded(configuration, parameters)) return ''
  const request = { ...target(configuration, parameters), netns: parameters.netns }
  const { ok, reason } = await ask(configuration, patienceMs, client => client.ask('check', request))
  if (!ok) throw new CniError(CODE.NOT_AS_ADDED, 'the attachment is not as it was added', reason)
  return ''
}

async function status({ json, patienceMs }: Call): Promise<string> {
  const { ready, degraded, reason } = await ask(readConfiguration(json), patienceMs, client =>
    client.ask('ready', {}),
  ).catch((error: CniError) => {
    throw new CniError(CODE.NOT_AVAILABLE, error.message, error.details)
  })
  if (ready) return ''
  if (degraded)
    throw new CniError(CODE.LIMITED, 'the Detour daemon is not ready, and attached pods are affected', reason)
  throw new CniError(CODE.NOT_AVAILABLE, 'the Detour daemon is not ready', reason)
}

async function collect({ json, patienceMs, note }: Call): Promise<string> {
  const configuration = readConfiguration(json)
  const valid = validAttachments(json).map(({ containerId, ifname }) => ({
    containerId,
    ifname: interfaceOf(configuration.unchained, ifname),
  }))
  const { removed } = await ask(configuration, patienceMs, client =>
    client.ask('collect', { network: configuration.name, valid }),
  )
  note.removed = removed.join(' ')
  return ''
}

/** Pods that the network excludes start without the daemon too. */
function isExcluded({ excludeNamespaces }: Configuration, { podNamespace }: Parameters): boolean {
  return excludeNamespaces.includes(podNamespace)
}

function target({ unchained, prevResult }: Configuration, { containerId, ifname }: Parameters) {
  const ours = interfaceOf(unchained, ifname)
  return { containerId, ifname: ours, addresses: addressesOf(prevResult, ours) }
}

/** The interface that an attachment is about. NB: of an unchained entry it is not the one that the runtime names. */
function interfaceOf(unchained: boolean, ifname: string): string {
  return unchained ? POD_INTERFACE : ifname
}

/** The client is loaded when it is wanted, which is not for VERSION and bad configurations. */
async function ask<T>(
  { socket }: Pick<Configuration, 'socket'>,
  patienceMs: number,
  question: (client: ControlClient) => Promise<T>,
  waitMs = 0,
): Promise<T> {
  const { askDaemon } = await import('./daemon.ts')
  return askDaemon(socket, patienceMs, question, waitMs)
}
