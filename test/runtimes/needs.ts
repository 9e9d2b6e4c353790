// What these tests need of the machine.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { whyNoLab } from '../../src/lab/topology.ts'

const PROGRAMS = 'ip unshare bash python3 tcpdump tshark iptables-save containerd ctr podman conmon runc'.split(' ')
const FILES = ['/usr/lib/cni/bridge', '/usr/bin/busybox']

const lacking = () => [...PROGRAMS, ...FILES].filter(what => !isInstalled(what)).map(what => `needs ${what}`)

/** Why these tests cannot run here, or ''. */
export const missing = whyNoLab() ?? lacking().join(', ')

/** Title of a test group with the reason when it is skipped. */
export const title = (name: string) => (missing === '' ? name : `${name} (skipped: ${missing})`)

function isInstalled(what: string): boolean {
  const folders = ['/usr/sbin', '/sbin', ...(process.env.PATH ?? '').split(':')]
  return what.startsWith('/') ? existsSync(what) : folders.some(folder => existsSync(join(folder, what)))
}
