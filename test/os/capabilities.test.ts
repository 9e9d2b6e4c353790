// Capabilities: a real process drops what it does not need, in every one of its threads, as the kernel says.

import { spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../../src/control/package.ts'
import { capabilitySets, NODE_CAPABILITIES, requireCapabilities } from '../../src/os/capabilities.ts'

const setpriv = ['/usr/bin/setpriv', '/bin/setpriv'].find(existsSync)
const missing = process.getuid?.() !== 0 ? 'needs root' : setpriv === undefined ? 'needs setpriv' : ''

const KEPT = NODE_CAPABILITIES.reduce((set, { number }) => set | (1n << BigInt(number)), 0n)
const NET_ADMIN = 1n << 12n

// The threads of libuv's pool and a worker begin before and after.
const PROGRAM = `
import { promises } from 'node:fs'
import { Worker } from 'node:worker_threads'
const { keepOnly, NODE_CAPABILITIES } = await import('${new URL('dist/src/os/capabilities.js', packageRoot)}')
await promises.readFile('/etc/passwd')
keepOnly(NODE_CAPABILITIES)
await promises.readFile('/etc/passwd')
new Worker('setInterval(() => {}, 1000)', { eval: true }).once('online', () => console.log(JSON.stringify(process.argv.slice(2))))
process.stdin.resume().on('end', () => process.exit(0))
`

async function threads(...command: string[]): Promise<{ said: string; sets: ReturnType<typeof capabilitySets>[] }> {
  const folder = mkdtempSync(join(tmpdir(), 'dtcap-'))
  // Another user reads it, too.
  chmodSync(folder, 0o755)
  const file = join(folder, 'program.mjs')
  writeFileSync(file, PROGRAM)
  const [first, ...rest] = [...command, process.execPath, file, 'an argument', '--other']
  const child = spawn(first, rest, { stdio: ['pipe', 'pipe', 'inherit'] })
  try {
    const { value: said } = await createInterface({ input: child.stdout })[Symbol.asyncIterator]().next()
    expect(said).toBeDefined()
    const tasks = readdirSync(`/proc/${child.pid}/task`)
    return {
      said,
      sets: tasks.map(task => capabilitySets(readFileSync(`/proc/${child.pid}/task/${task}/status`, 'latin1'))),
    }
  } finally {
    child.stdin.end()
    await new Promise(resolve => child.once('close', resolve))
    rmSync(folder, { recursive: true })
  }
}

describe.skipIf(missing !== '')(`a process that keeps what it needs${missing && ` (skipped: ${missing})`}`, () => {
  it('has nothing else in any thread, no way back, and its own arguments', async () => {
    const { said, sets } = await threads()
    expect(JSON.parse(said)).toEqual(['an argument', '--other'])
    expect(sets.length).toBeGreaterThan(6)
    for (const set of sets) {
      expect(set).toMatchObject({ permitted: KEPT, effective: KEPT, bounding: KEPT, noNewPrivileges: true })
      expect(set).toMatchObject({ inheritable: 0n, ambient: 0n })
    }
  })

  it('keeps them as another user, too', async () => {
    const user = ['--reuid', '65534', '--regid', '65534', '--clear-groups']
    const granted = '+net_admin,+sys_admin,+setpcap,+chown'
    const { sets } = await threads(setpriv!, ...user, '--inh-caps', granted, '--ambient-caps', granted)
    for (const set of sets) {
      expect(set.permitted).toBe(NET_ADMIN | (1n << 21n))
      expect(set).toMatchObject({ effective: set.permitted, noNewPrivileges: true })
      expect(set.bounding & ~KEPT).toBe(0n)
    }
  })

  it('may not be able to narrow the bounding set; the rest is dropped all the same', async () => {
    const { sets } = await threads(setpriv!, '--bounding-set', '-all,+net_admin,+sys_admin,+net_raw')
    for (const set of sets) expect(set).toMatchObject({ permitted: NET_ADMIN | (1n << 21n) | (1n << 13n) })
  })
})

describe('what is missing', () => {
  it('is named with what it is for and what to do', () => {
    expect(() => requireCapabilities(NODE_CAPABILITIES, KEPT & ~NET_ADMIN)).toThrow(
      /^missing: CAP_NET_ADMIN \(TAP devices .*\); run as root, or grant them/,
    )
    expect(() => requireCapabilities(NODE_CAPABILITIES, 0n)).toThrow(/CAP_NET_ADMIN .*CAP_SYS_ADMIN /)
  })

  it('may be optional', () => {
    const lacking = requireCapabilities(NODE_CAPABILITIES, KEPT & ~(1n << 14n))
    expect(lacking.map(({ name }) => name)).toEqual(['CAP_IPC_LOCK'])
  })
})
