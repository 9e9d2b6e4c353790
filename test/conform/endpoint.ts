// Endpoints as processes, and the suite against them in this one.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Target } from '../../src/conform/case.ts'
import { openChannel } from '../../src/conform/channel.ts'
import { Maker } from '../../src/conform/probe.ts'
import { conformProfile } from '../../src/conform/profile.ts'
import { type Result, Runner } from '../../src/conform/run.ts'
import { casesNamed } from '../../src/conform/suite.ts'
import { start } from '../cli/run.ts'
import { freePort } from '../gateway/ports.ts'

const PYTHON = '/usr/bin/python3'
const script = fileURLToPath(new URL('endpoint.py', import.meta.url))

export interface Endpoint {
  address: string
  port: number
  /** Of its process. */
  pid: number
  /** Ends it and resolves when it is gone. */
  stop(): Promise<void>
}

/** A port that nothing uses at the address, nor at those beside it that the suite sends from. */
const portAt = (address: string) =>
  freePort(...(address === '127.0.0.1' ? ['127.0.0.1', '127.0.0.2', '127.0.0.3'] : [address]))

async function running(child: ChildProcess, address: string, port: number): Promise<Endpoint> {
  let text = ''
  const closed = once(child, 'close')
  child.stderr?.on('data', data => (text += data))
  const ready = new Promise<void>((resolve, reject) => {
    child.stdout?.on('data', data => (String(data).includes('\n') ? resolve() : undefined))
    closed.then(() => reject(new Error(text)))
  })
  await ready
  return {
    address,
    port,
    pid: child.pid as number,
    async stop() {
      child.kill()
      await closed
    },
  }
}

/** Starts the endpoint of endpoint.py. */
export async function strange(kind: string, address: string, defect = '', env: NodeJS.ProcessEnv = {}) {
  const port = await portAt(address)
  const child = spawn(PYTHON, [script, kind, address, `${port}`, defect], { env: { ...process.env, ...env } })
  return running(child, address, port)
}

/** Starts our gateway over a UDP socket. */
export async function gateway(profile: string, address: string, control: string, ...args: string[]) {
  const port = await portAt(address)
  const listen = address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
  const child = start(['gateway', '--listen', listen, '--profile', profile, '--json', '--control', control, ...args])
  return running(child, address, port)
}

/** Runs cases against an endpoint. */
export async function conform(
  profileName: string,
  { address, port }: Pick<Endpoint, 'address' | 'port'>,
  {
    cases = [] as string[],
    timeoutMs = 2000,
    ...more
  }: Partial<Target> & { cases?: string[]; timeoutMs?: number } = {},
): Promise<Result[]> {
  const profile = conformProfile(profileName)
  const otherPort = profile.other && port + 1
  const channel = openChannel({ remote: address, port, otherPort })
  const family = address.includes(':') ? 6 : 4
  const { ownsPort, second } = channel
  const kind = { profile, vnis: profile.vnis, family, slow: false } as const
  const target: Target = { ...kind, ownsPort, twoAddresses: second !== undefined, ...more }
  const runner = new Runner({
    target,
    channel,
    make: new Maker(profile, channel, target.vnis, 1),
    host: address,
    timeoutMs,
    sleep: async () => {},
  })
  const results: Result[] = []
  try {
    for (const each of casesNamed(cases)) results.push(await runner.run(each))
  } finally {
    channel.close()
  }
  return results
}

/** Names of the cases with an outcome. */
export const named = (results: Result[], outcome: Result['outcome']) =>
  results.filter(result => result.outcome === outcome).map(({ name }) => name)
