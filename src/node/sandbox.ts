// A pod's network namespace by its path: whether it is one, and which.

import { closeSync, constants, fstatSync, openSync, statfsSync, statSync } from 'node:fs'
import { OperationFailure } from '../control/operations.ts'
import { ioctl } from '../os/libc.ts'
import { namespaceCookie } from '../os/netns.ts'

// linux/magic.h, linux/nsfs.h, linux/sched.h.
const NSFS_MAGIC = 0x6e73_6673
const NS_GET_NSTYPE = 0xb703
const CLONE_NEWNET = 0x4000_0000

/** Names one namespace: its cookie, or on old kernels device and inode, which are used again. */
export type SandboxId = string

/** What is at the path is something else: also a file on which a namespace was mounted before. */
export class NoSandbox extends OperationFailure {}

/** Which network namespace is at a path, or undefined when nothing is there any more. Throws NoSandbox, or OperationFailure `bad-request` for a namespace of the host. */
export function sandboxAt(path: string, hosts: readonly string[]): SandboxId | undefined {
  let fd: number
  try {
    // NB: without O_NONBLOCK, opening a named pipe would wait for ever.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw new OperationFailure('bad-request', `network namespace ${path}: ${message}`)
  }
  try {
    const isNamespace = statfsSync(`/proc/self/fd/${fd}`).type === NSFS_MAGIC
    if (!isNamespace || ioctl(fd, NS_GET_NSTYPE, 0) !== CLONE_NEWNET)
      throw new NoSandbox('bad-request', `${path} is not a network namespace`)
    const { dev, ino } = fstatSync(fd)
    const inode = `${dev}:${ino}`
    if (!hosts.includes(inode)) return `${namespaceCookie(`/proc/self/fd/${fd}`) ?? inode}`
    throw new OperationFailure('bad-request', `${path} is the node's own network namespace: not a pod's`)
  } finally {
    closeSync(fd)
  }
}

/** Whether that namespace is at the path. NB: a path may come to name another one: that of a process whose number is used again. */
export function isSandbox(path: string, sandbox: SandboxId): boolean {
  try {
    return sandboxAt(path, []) === sandbox
  } catch {
    return false
  }
}

/** Device and inode of the namespaces that are no pod's: this process's, and that of the machine's first where it can be seen. */
export function hostNamespaces(): string[] {
  return ['/proc/self/ns/net', '/proc/1/ns/net'].flatMap(path => {
    try {
      const { dev, ino } = statSync(path)
      return [`${dev}:${ino}`]
    } catch {
      return []
    }
  })
}
