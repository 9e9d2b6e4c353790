// Asks the node daemon, and says in the specification's codes why it did not do it.

import { type ControlClient, ControlRefusal, connectControl } from '../control/client.ts'
import { DetourError } from '../errors.ts'
import { CniError, CODE } from './error.ts'

/** Asks over a connection of its own; connecting and each answer may take `patienceMs`. Throws CniError. */
export async function askDaemon<T>(
  socket: string,
  patienceMs: number,
  ask: (client: ControlClient) => Promise<T>,
): Promise<T> {
  let client: ControlClient | undefined
  try {
    client = await connectControl(socket, patienceMs)
    return await ask(client)
  } catch (error) {
    throw asCniError(error as Error)
  } finally {
    client?.close()
  }
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
