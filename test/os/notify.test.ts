// What a service manager is told, by a socket of Python's: a path, a name in the abstract namespace, and nobody.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, describe, expect, it } from 'vitest'
import { openServiceManager } from '../../src/os/notify.ts'

const LISTENER = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1] if sys.argv[1][0] == '/' else '\\0' + sys.argv[1][1:])
print('ready', flush=True)
while True:
    print(repr(s.recv(4096).decode()), flush=True)
`

const python = (() => {
  try {
    execFileSync('python3', ['--version'])
    return true
  } catch {
    return false
  }
})()

const folder = mkdtempSync(join(tmpdir(), 'dtnotify-'))
let listener: ChildProcess | undefined
afterEach(() => void listener?.kill('SIGKILL'))

async function listen(address: string): Promise<() => Promise<string>> {
  listener = spawn('python3', ['-c', LISTENER, address], { stdio: ['ignore', 'pipe', 'inherit'] })
  const lines = createInterface({ input: listener.stdout! })[Symbol.asyncIterator]()
  const next = async () => (await lines.next()).value as string
  expect(await next()).toBe('ready')
  return next
}

describe.skipIf(!python)(`a service manager${python ? '' : ' (skipped: needs python3)'}`, () => {
  for (const address of [join(folder, 'notify'), `@detour-test-${process.pid}`]) {
    it(`hears every word at ${address.startsWith('@') ? 'an abstract name' : 'a path'}`, async () => {
      const next = await listen(address)
      const manager = openServiceManager({ NOTIFY_SOCKET: address })
      manager.ready('2 pods\nand more')
      expect(await next()).toBe(`'READY=1\\nMAINPID=${process.pid}\\nSTATUS=2 pods and more'`)
      const before = process.hrtime.bigint() / 1000n
      manager.reloading()
      const [, microseconds] = /^'RELOADING=1\\nMONOTONIC_USEC=(\d+)'$/.exec(await next()) ?? []
      expect(BigInt(microseconds) >= before && BigInt(microseconds) <= process.hrtime.bigint() / 1000n).toBe(true)
      manager.stopping()
      expect(await next()).toBe("'STOPPING=1'")
      manager.beat()
      expect(await next()).toBe("'WATCHDOG=1'")
      manager.status('fine')
      expect(await next()).toBe("'STATUS=fine'")
      manager.close()
    })
  }

  it('may be gone: nothing throws', async () => {
    const manager = openServiceManager({ NOTIFY_SOCKET: join(folder, 'nobody') })
    manager.ready('x')
    manager.beat()
    manager.close()
    rmSync(folder, { recursive: true })
  })
})

describe('the watchdog', () => {
  it('is looked after twice in its time, and only by the process that it watches', () => {
    const limit = (env: NodeJS.ProcessEnv) => openServiceManager(env).watchdogMs
    expect(limit({ WATCHDOG_USEC: '30000000' })).toBe(15_000)
    expect(limit({ WATCHDOG_USEC: '30000000', WATCHDOG_PID: `${process.pid}` })).toBe(15_000)
    expect(limit({ WATCHDOG_USEC: '30000000', WATCHDOG_PID: '1' })).toBeUndefined()
    for (const odd of ['', '0', '-5', 'soon', '1e9']) expect(limit({ WATCHDOG_USEC: odd })).toBeUndefined()
  })
})
