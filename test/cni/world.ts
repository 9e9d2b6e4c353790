// What surrounds the plugin in its tests: a daemon that notes what it is asked, recorded calls, error objects.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { plugin } from '../../src/cni/plugin.ts'
import type { Operations } from '../../src/control/operations.ts'
import { serveControl } from '../../src/control/socket.ts'
import { fakeSource } from '../control/fake.ts'

const FIXTURES = new URL('../../fixtures/cni/', import.meta.url)

/** A daemon's socket, and what it was asked so far, in order. */
export interface FakeDaemon {
  socket: string
  asked: [operation: keyof Operations, request?: unknown][]
  close(): Promise<void>
}

/** Serves operations on a socket of its own; what `instead` does not answer, goes well. */
export async function serveDaemon(instead: Partial<Operations> = {}): Promise<FakeDaemon> {
  const folder = mkdtempSync(join(tmpdir(), 'dtcni-'))
  const socket = join(folder, 'd.sock')
  const asked: FakeDaemon['asked'] = []
  const going: Operations = {
    attach: async () => ({ inspected: true, reason: 'because', id: 'id', mac: '02:00:00:00:00:01' }),
    detach: async () => ({ found: true }),
    check: async () => ({ ok: true, reason: '' }),
    ready: async () => ({ ready: true, degraded: false, reason: '' }),
    collect: async () => ({ removed: ['gone'] }),
    ...instead,
  }
  const noted = Object.fromEntries(
    Object.entries(going).map(([name, answer]) => [
      name,
      (request?: unknown) => {
        asked.push(request === undefined ? [name as keyof Operations] : [name as keyof Operations, request])
        return (answer as (request: unknown) => unknown)(request)
      },
    ]),
  ) as unknown as Operations
  const server = await serveControl(fakeSource().source, { path: socket, operations: noted })
  const close = async () => {
    await server.close()
    rmSync(folder, { recursive: true })
  }
  return { socket, asked, close }
}

/** A recorded call. */
export interface RecordedCall {
  env: Record<string, string>
  stdin: string
}

/** The recorded sessions by file name. */
export function recordings(): [name: string, calls: RecordedCall[]][] {
  const names = readdirSync(FIXTURES).filter(name => name.endsWith('.json'))
  return names.sort().map(name => [name, JSON.parse(readFileSync(new URL(name, FIXTURES), 'utf8'))])
}

export interface Answer {
  status: number
  output: string
  note: Record<string, unknown>
  // biome-ignore lint/suspicious/noExplicitAny: tests look into JSON
  json: any
}

/** One call of the plugin in this process; the configuration is text, or JSON. */
export async function call(
  env: Record<string, string>,
  config: unknown,
  patience?: Record<string, number>,
): Promise<Answer> {
  const text = typeof config === 'string' ? config : JSON.stringify(config)
  const { status, output, note } = await plugin(env, [Buffer.from(text)], patience)
  return { status, output, note, json: output === '' ? undefined : JSON.parse(output) }
}
