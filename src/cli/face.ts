// Which running face a command is for.

import type { Info } from '../control/protocol.ts'
import { liveSockets, socketDirectory } from '../control/registry.ts'
import { DetourError } from '../errors.ts'
import { duration, printable } from './table.ts'

/** The socket of the only face that runs. Throws DetourError when there is none, or more than one. */
export async function onlySocket(): Promise<string> {
  const directory = socketDirectory()
  const live = await liveSockets(directory)
  if (live.length === 1) return live[0].path
  if (live.length === 0) {
    const root = directory === '/run/detour' ? '' : ' (those that root started are in /run/detour: try with sudo)'
    throw new DetourError(
      'not-found',
      `no detour is running: no socket in ${directory} answers${root}; or say --socket PATH`,
    )
  }
  const list = live.map(({ path, info }) => `  --socket ${path}   ${introduce(info)}`)
  throw new DetourError('usage', `several are running; choose one:\n${list.join('\n')}`)
}

/** A face in a line. */
export function introduce({ face, pid, profile, version, uptimeMs }: Info): string {
  return printable(`detour ${face} ${version}, process ${pid}, profile ${profile}, up ${duration(uptimeMs)}`)
}
