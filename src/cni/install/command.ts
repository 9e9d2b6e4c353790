// detour cni install, uninstall and repair: arguments, what is printed, exit status. Node's own modules only, because it is part
// of the executable too.

import { mkdirSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { DetourError } from '../../errors.ts'
import { readDirectory } from './directory.ts'
import { type Entry, type EntryOptions, entryOf, PLUGIN } from './entry.ts'
import { defaultSource, placeExecutable, removeExecutable } from './executable.ts'
import { HELP } from './help.ts'
import { type KeepEvent, type Keeper, keepInstalled } from './keep.ts'
import { MULTUS_CONF_DIR, manifest, planMultus } from './multus.ts'
import { type Change, type Plan, planInstall, planUninstall } from './plan.ts'
import { make, Overtaken, replaceFile } from './replace.ts'

/** The first words by which the plugin's executable is called as an installer. */
export const INSTALLER_VERBS = ['install', 'uninstall', 'repair'] as const

/** Where lines go. */
export interface Output {
  write(text: string): unknown
}

const ATTEMPTS = 5
const BIN_DIR = '/opt/cni/bin'
const CONF_DIR = '/etc/cni/net.d'
/** What a Unix socket's address holds. */
const LONGEST_SOCKET = 107

const OPTIONS = {
  'bin-dir': { type: 'string', default: BIN_DIR },
  'conf-dir': { type: 'string' },
  source: { type: 'string' },
  socket: { type: 'string' },
  inspect: { type: 'string' },
  'exclude-namespaces': { type: 'string' },
  'fail-mode': { type: 'string' },
  wait: { type: 'boolean', default: false },
  multus: { type: 'boolean', default: false },
  namespace: { type: 'string' },
  'keep-executable': { type: 'boolean', default: false },
  'status-file': { type: 'string' },
  'dry-run': { type: 'boolean', default: false },
  json: { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const

const OF_ENTRY = ['source', 'socket', 'inspect', 'exclude-namespaces', 'fail-mode']
const OF_VERB: Record<(typeof INSTALLER_VERBS)[number], string[]> = {
  install: [...OF_ENTRY, 'wait', 'multus', 'namespace', 'dry-run'],
  uninstall: ['multus', 'keep-executable', 'dry-run'],
  repair: [...OF_ENTRY, 'status-file'],
}

type Values = ReturnType<typeof read>['values']

/** Runs `install`, `uninstall` or `repair` and resolves to the exit status; `repair` goes on until a signal. Throws DetourError. */
export async function runInstaller(argv: string[], stdout: Output): Promise<number> {
  const { verb, values } = read(argv)
  if (values.help || verb === undefined) {
    stdout.write(HELP)
    return verb === undefined && !values.help ? 2 : 0
  }
  const say = (text: string, facts: object) => {
    stdout.write(values.json ? `${JSON.stringify(facts)}\n` : `${text}\n`)
  }
  if (verb === 'install') return values.multus ? installMultus(values, say, stdout) : install(values, say)
  return verb === 'uninstall' ? uninstall(values, say) : repair(values, say)
}

type Say = (text: string, facts: object) => void

async function install(values: Values, say: Say): Promise<number> {
  const { 'bin-dir': binDir, 'conf-dir': confDir = CONF_DIR, 'dry-run': dryRun } = values
  const options = entryOptions(values)
  const executable = placeExecutable(values.source ?? defaultSource(), binDir, dryRun)
  say(`${binDir}/${PLUGIN}: ${executable}`, { event: 'executable', path: `${binDir}/${PLUGIN}`, outcome: executable })
  if (values.wait) await untilReady(confDir, options, say)
  const plan = chain(confDir, entryOf(options), dryRun, say)
  const { name: network, types } = plan.target.conf
  const after = types.filter(type => type !== PLUGIN)
  const note = plan.pending === undefined ? '' : `; not yet: ${plan.pending}`
  say(`${confDir}/${plan.file}: network ${network}: ${[...after, PLUGIN].join(', ')}${note}`, {
    event: 'installed',
    file: plan.file,
    network,
    after,
    pending: plan.pending ?? null,
  })
  return 0
}

/** Makes the changes that chain the entry; from the start again when somebody else writes the file meanwhile. */
function chain(confDir: string, entry: Entry, dryRun: boolean, say: Say): Plan {
  for (let attempt = 1; ; attempt++) {
    const plan = planInstall(readDirectory(confDir), entry)
    if ('waiting' in plan) throw new DetourError('not-found', `${plan.waiting}; --wait waits for one`)
    try {
      carryOut(plan.changes, dryRun, say)
      return plan
    } catch (error) {
      if (!(error instanceof Overtaken)) throw error
      if (attempt === ATTEMPTS) throw new DetourError('system', error.message)
    }
  }
}

function untilReady(confDir: string, entry: EntryOptions, say: Say): Promise<void> {
  return new Promise(resolve => {
    const keeper = keepInstalled({ confDir, entry }, event => {
      if (event.event === 'waiting') say(`waiting: ${event.reason}`, event)
      if (event.event !== 'ready') return
      keeper.close()
      resolve()
    })
  })
}

async function installMultus(values: Values, say: Say, stdout: Output): Promise<number> {
  const { 'bin-dir': binDir, 'conf-dir': confDir = MULTUS_CONF_DIR, 'dry-run': dryRun, namespace = 'default' } = values
  const entry = entryOf(entryOptions(values))
  const executable = placeExecutable(values.source ?? defaultSource(), binDir, dryRun)
  if (!dryRun) mkdirSync(confDir, { recursive: true })
  carryOut(planMultus(readDirectory(confDir), entry), dryRun, () => {})
  if (values.json) say('', { event: 'installed', executable, confDir, manifest: manifest(namespace) })
  else stdout.write(manifest(namespace))
  return 0
}

async function uninstall(values: Values, say: Say): Promise<number> {
  const { 'bin-dir': binDir, multus, 'dry-run': dryRun } = values
  const confDir = values['conf-dir'] ?? (multus ? MULTUS_CONF_DIR : CONF_DIR)
  const directory = readDirectory(confDir)
  // The entry goes first: a runtime that finds it must find the executable.
  const changes = multus ? planMultus(directory, undefined) : planUninstall(directory)
  carryOut(changes, dryRun, say)
  if (changes.length === 0) say(`${confDir}: no entry of ${PLUGIN}`, { event: 'absent', confDir })
  const outcome = values['keep-executable'] ? 'unchanged' : removeExecutable(binDir, dryRun)
  const note = outcome === 'foreign' ? ': stays, it is not the one that was installed' : `: ${outcome}`
  say(`${binDir}/${PLUGIN}${note}`, { event: 'executable', path: `${binDir}/${PLUGIN}`, outcome })
  return 0
}

function repair(values: Values, say: Say): Promise<number> {
  const { 'bin-dir': binDir, 'conf-dir': confDir = CONF_DIR, 'status-file': statusFile } = values
  const executable = { source: values.source ?? defaultSource(), binDir }
  return new Promise(resolve => {
    const keeper = keepInstalled({ confDir, entry: entryOptions(values), executable }, event => {
      say(inWords(event), { time: new Date().toISOString(), ...event })
      if (statusFile !== undefined) writeStatus(statusFile, keeper.ready())
    })
    const stop = () => {
      keeper.close()
      resolve(0)
    }
    process.once('SIGTERM', stop)
    process.once('SIGINT', stop)
  })
}

function writeStatus(path: string, { ok: ready, reason }: ReturnType<Keeper['ready']>): void {
  const rights = { mode: 0o644, uid: process.getuid!(), gid: process.getgid!() }
  replaceFile(path, `${JSON.stringify({ ready, reason })}\n`, rights)
}

function carryOut(changes: Change[], dryRun: boolean, say: Say): void {
  for (const change of changes) {
    if (!dryRun) make(change)
    const done = change.text === null ? 'removed' : change.from === null ? 'written' : 'edited'
    say(`${change.path}: ${dryRun ? 'would be ' : ''}${done}`, { event: done, path: change.path, dryRun })
  }
}

function inWords(event: KeepEvent): string {
  switch (event.event) {
    case 'ready':
      return `ready: ${event.file}: ${[...event.after, PLUGIN].join(', ')}`
    case 'repaired':
      return `repaired: ${event.file}: ${event.cause}; pods made since ${event.missingSince} may have slipped by`
    case 'waiting':
      return `waiting: ${event.reason}`
    case 'conflict':
      return `ALARM: ${event.file}: ${event.row} repairs in a row were undone; the next in ${event.nextMs} ms; ${event.advice}`
  }
}

function read(argv: string[]) {
  try {
    const { values, positionals, tokens } = parseArgs({
      args: argv,
      options: OPTIONS,
      allowPositionals: true,
      tokens: true,
    })
    const [word, ...more] = positionals
    const verb = INSTALLER_VERBS.find(known => known === word)
    if (verb === undefined && word !== undefined) throw new Error(`'${word}': ${INSTALLER_VERBS.join(', ')}`)
    if (more.length > 0) throw new Error(`'${more[0]}': one word is enough`)
    const allowed = ['bin-dir', 'conf-dir', 'json', 'help', ...(verb === undefined ? [] : OF_VERB[verb])]
    const other = tokens.find(token => token.kind === 'option' && !allowed.includes(token.name))
    if (other !== undefined && verb !== undefined)
      throw new Error(`${verb} has no option --${(other as { name: string }).name}`)
    return { verb, values }
  } catch (error) {
    throw new DetourError('usage', `cni: ${(error as Error).message} (--help shows all)`)
  }
}

/** What the flags set in the entry. */
function entryOptions(values: Values): EntryOptions {
  const { socket, inspect, 'fail-mode': failMode, 'exclude-namespaces': names } = values
  const bad = (flag: string, value: string, allowed: string) =>
    new DetourError('usage', `--${flag} '${value}': ${allowed}`)
  if (socket !== undefined && (!socket.startsWith('/') || Buffer.byteLength(socket) > LONGEST_SOCKET)) {
    throw bad('socket', socket, `an absolute path of at most ${LONGEST_SOCKET} bytes`)
  }
  if (inspect !== undefined && inspect !== 'default' && inspect !== 'always' && inspect !== 'never') {
    throw bad('inspect', inspect, 'default, always or never')
  }
  if (failMode !== undefined && failMode !== 'open' && failMode !== 'closed') {
    throw bad('fail-mode', failMode, 'open or closed')
  }
  const excludeNamespaces = names?.split(',').map(name => name.trim())
  const odd = excludeNamespaces?.find(name => !isNamespace(name))
  if (odd !== undefined) throw bad('exclude-namespaces', odd, 'names of namespaces, with commas between them')
  return { socket, inspect, excludeNamespaces, failMode }
}

/** An RFC 1123 label, as Kubernetes names namespaces. */
function isNamespace(name: string): boolean {
  return /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name)
}
