// Network namespaces and the `ip` and `tc` commands. A namespace belongs to a thread: everything here enters, acts and
// comes back in one synchronous stretch.

import { type ExecFileSyncOptions, execFileSync } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import { AF, getsockopt, must, SOCK, setns, socket } from './libc.ts'

const CLONE_NEWNET = 0x4000_0000
const NAMED = '/run/netns'
const SOL_SOCKET = 1
const SO_NETNS_COOKIE = 71
/** Which of the sixteen counters of /proc/net/dev. */
const TX_DROP = 11

/** The file of a namespace: paths stay as they are, names are those of `ip netns`. */
export function namespacePath(namespace: string): string {
  return namespace.includes('/') ? namespace : `${NAMED}/${namespace}`
}

/**
 * Runs `fn` with the calling thread inside a namespace (a name or a path; '' is the one it is in) and comes back. `fn` is synchronous; files and sockets
 * opened in it, and commands run in it, belong to that namespace. Throws DetourError when there is no such namespace.
 */
export function inNamespace<T>(namespace: string, fn: () => T): T {
  if (namespace === '') return fn()
  const path = namespacePath(namespace)
  const home = openSync('/proc/thread-self/ns/net', 'r')
  try {
    let there: number
    try {
      there = openSync(path, 'r')
    } catch (cause) {
      throw new DetourError('not-found', `network namespace ${path} does not exist or cannot be opened`, { cause })
    }
    try {
      must(setns(there, CLONE_NEWNET), 'setns', path)
    } finally {
      closeSync(there)
    }
    try {
      return fn()
    } finally {
      // NB: a thread lost in a foreign namespace would act on the wrong interfaces; ending is the safe answer.
      if (setns(home, CLONE_NEWNET) < 0) process.abort()
    }
  } finally {
    closeSync(home)
  }
}

/** The inode of a namespace, which tells it from all others that live; '' is the current one. */
export function namespaceId(namespace: string): number {
  return statSync(namespace === '' ? '/proc/thread-self/ns/net' : namespacePath(namespace)).ino
}

/** A number that no other namespace has had or will have until the next boot (SO_NETNS_COOKIE); undefined before kernel 5.14. NB: inodes are used again. */
export function namespaceCookie(namespace: string): bigint | undefined {
  return inNamespace(namespace, () => {
    const fd = must(socket(AF.INET, SOCK.DGRAM, 0), 'socket', namespace)
    try {
      const cookie = new BigUint64Array(1)
      return getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, cookie) < 0 ? undefined : cookie[0]
    } finally {
      closeSync(fd)
    }
  })
}

/** Makes a named namespace with its loopback up. */
export function createNamespace(name: string): void {
  ip(['netns', 'add', name])
  ip(['link', 'set', 'lo', 'up'], name)
}

/** Removes a named namespace; one that is not there is fine. */
export function deleteNamespace(name: string): void {
  if (listNamespaces().includes(name)) ip(['netns', 'del', name])
}

/** Names of the named namespaces. */
export function listNamespaces(): string[] {
  try {
    return readdirSync(NAMED)
  } catch {
    return []
  }
}

function run(command: string, args: string[], namespace: string, input?: string): string {
  // NB: in a session of its own, or Ctrl-C at the terminal would kill it in the middle of a clean-up. What comes in the moment
  // before it has that session kills it before it has begun, so it is run again.
  const options: ExecFileSyncOptions & { detached: true } = { encoding: 'utf8', stdio: 'pipe', input, detached: true }
  try {
    return inNamespace(namespace, () => execFileSync(command, args, options)) as string
  } catch (cause) {
    if (cause instanceof DetourError) throw cause
    const { code, signal, stderr } = cause as { code?: string; signal?: string; stderr?: string }
    if (signal === 'SIGINT') return run(command, args, namespace, input)
    if (code === 'ENOENT')
      throw new DetourError('unsupported', `command ${command} is not installed (package iproute2)`)
    const where = namespace === '' ? '' : ` (in namespace ${namespace})`
    const what = `${command} ${args.join(' ')}${input === undefined ? '' : ` <<< ${input.trim().replaceAll('\n', '; ')}`}`
    throw new DetourError('system', `${what}${where}: ${stderr?.trim() || 'failed without a word'}`, { cause })
  }
}

/** Runs `ip` and returns what it printed. Throws DetourError with the command and its stderr. */
export function ip(args: string[], namespace = ''): string {
  return run('ip', args, namespace)
}

/** Runs many `ip` commands in one process; stops at the first that fails. */
export function ipBatch(commands: string[], namespace = ''): void {
  run('ip', ['-batch', '-'], namespace, `${commands.join('\n')}\n`)
}

/** Runs `tc` and returns what it printed. Throws DetourError with the command and its stderr. */
export function tc(args: string[], namespace = ''): string {
  return run('tc', args, namespace)
}

/** Packets that an interface's own queue had no room for; undefined when it, or its namespace, is gone (proc_pid_net(5)). */
export function queueDrops(name: string, namespace = ''): number | undefined {
  try {
    const table = inNamespace(namespace, () => readFileSync('/proc/thread-self/net/dev', 'utf8'))
    const line = table.split('\n').find(line => line.trimStart().startsWith(`${name}:`))
    return line === undefined
      ? undefined
      : Number(
          line
            .slice(line.indexOf(':') + 1)
            .trim()
            .split(/\s+/)[TX_DROP],
        )
  } catch (error) {
    // What is at the path may be there before or after the namespace.
    if (error instanceof DetourError) return undefined
    throw error
  }
}
