// Where control sockets lie, and which of them are alive.

import { lstatSync, mkdirSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DetourError } from '../errors.ts'
import { connectControl } from './client.ts'
import type { Info } from './protocol.ts'
import type { Face } from './source.ts'

/** The folder of this user's sockets: DETOUR_RUN_DIR if set, /run/detour for root, else one that is the user's own. */
export function socketDirectory(env: NodeJS.ProcessEnv = process.env, uid = process.geteuid?.() ?? 0): string {
  if (env.DETOUR_RUN_DIR) return env.DETOUR_RUN_DIR
  if (uid === 0) return '/run/detour'
  return env.XDG_RUNTIME_DIR ? join(env.XDG_RUNTIME_DIR, 'detour') : join(tmpdir(), `detour-${uid}`)
}

/** The default socket of a face. */
export function socketPath(face: Face): string {
  return join(socketDirectory(), `${face}.sock`)
}

/** Makes a folder of sockets or state, which `setting` names; throws DetourError when it is not this user's alone. */
export function prepareDirectory(directory: string, setting = 'DETOUR_RUN_DIR'): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw new DetourError('permission', `${directory}: ${(error as Error).message}; set ${setting} to another folder`)
  }
  const found = lstatSync(directory)
  const uid = process.geteuid?.()
  if (!found.isDirectory() || (uid !== undefined && found.uid !== uid) || (found.mode & 0o022) !== 0) {
    const advice = `remove it, or set ${setting} to a folder that only you may write`
    throw new DetourError('permission', `${directory} is not a folder of user ${uid} alone; ${advice}`)
  }
}

/** A socket that answers. */
export interface LiveSocket {
  path: string
  info: Info
}

/** Every socket of the folder whose process answers within `timeoutMs`. */
export async function liveSockets(directory = socketDirectory(), timeoutMs = 1000): Promise<LiveSocket[]> {
  let names: string[]
  try {
    names = readdirSync(directory).sort()
  } catch {
    return []
  }
  const asked = names.filter(name => name.endsWith('.sock')).map(name => ask(join(directory, name), timeoutMs))
  return (await Promise.all(asked)).filter(found => found !== undefined)
}

async function ask(path: string, timeoutMs: number): Promise<LiveSocket | undefined> {
  try {
    const client = await connectControl(path, timeoutMs)
    try {
      return { path, info: await client.ask('info', {}) }
    } finally {
      client.close()
    }
  } catch {
    return undefined
  }
}
