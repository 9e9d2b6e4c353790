// Asks the node daemon, and says in the specification's codes why it did not do it.

import { setTimeout as sleep } from 'node:timers/promises'
import { type ControlClient, ControlRefusal, connectControl } from '../control/client.ts'
import { DetourError } from '../errors.ts'
import { CniError, CODE } from './error.ts'

/** Time between two tries while nobody serves, ms. */
const RETRY_MS = 25

/**
 * Asks over a connection of its own; connecting and each answer may take `patienceMs`. While nobody serves, as when one process of the
 * daemon follows another, it asks again for `waitMs`. Throws CniError.
 */
export async function askDaemon<T>(
  socket: string,
  patienceMs: number,
  ask: (client: ControlClient) => Promise<T>,
  waitMs = 0,
): Promise<T> {
  const end = performance.now() + waitMs
  for (;;) {
    try {
      return await askOnce(socket, patienceMs, ask)
    } catch (error) {
      if (!isNobody(error) || performance.now() >= end) throw asCniError(error as Error)
      await sleep(RETRY_MS)
    }
  }
}

async function askOnce<T>(socket: string, patienceMs: number, ask: (client: ControlClient) => Promise<T>): Promise<T> {
  const client = await connectControl(socket, patienceMs)
  try {
    return await ask(client)
  } finally {
    client.close()
  }
}

/** Whether nobody serves at the moment. NB: who hung up may have done it after all; what is asked twice must be fine with that. */
function isNobody(error: unknown): boolean {
  if (error instanceof ControlRefusal) return error.failure === 'busy'
  return error instanceof DetourError && (error.code === 'not-found' || error.code === 'gone')
}

const REFUSALS: Partial<Record<ControlRefusal['failure'], [code: number, message: string]>> = {
  unavailable: [CODE.TRY_AGAIN, 'the Detour daemon is not ready'],
  busy: [CODE.TRY_AGAIN, 'the Detour daemon is busy'],
  'bad-request': [CODE.BAD_CONFIG, 'the Detour daemon cannot do this'],
  permission: [CODE.FORBIDDEN, 'the Detour daemon does not serve this user'],
  'unknown-request': [CODE.NOT_OUR_DAEMON, 'what listens on the socket is not a Detour daemon of this version'],
  version: [CODE.NOT_OUR_DAEMON, 'the Detour daemon is of another version'],
  protocol: [CODE.NOT_OUR_DAEMON, 'the Detour daemon is of another version'],
}

function asCniError(error: Error): CniError {
  const [code, message] = meaning(error)
  return new CniError(code, message, error.message, { cause: error })
}

function meaning(error: Error): [code: number, message: string] {
  if (error instanceof ControlRefusal) return REFUSALS[error.failure] ?? [CODE.FAILED, 'the Detour daemon failed']
  if (!(error instanceof DetourError)) return [CODE.FAILED, 'the plugin failed']
  if (error.code === 'permission') return [CODE.FORBIDDEN, 'the Detour daemon does not serve this user']
  return [CODE.TRY_AGAIN, 'the Detour daemon does not answer']
}
