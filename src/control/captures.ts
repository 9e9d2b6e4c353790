// Capture files of several workers: a file each, because what two threads write to one cannot be told apart.

import { extname } from 'node:path'
import { createCapture, type OutputFile } from '../device/pcap.ts'

/** Creates a capture file a worker, or none without a path: `a.pcapng`, `a-1.pcapng` and so on. Throws DetourError. */
export function createCaptures(
  path: string | undefined,
  workers: number,
  limitBytes?: number,
): (OutputFile | undefined)[] {
  return Array.from({ length: workers }, (_, worker) =>
    path === undefined ? undefined : { ...createCapture(numbered(path, worker)), limitBytes },
  )
}

function numbered(path: string, worker: number): string {
  const extension = extname(path)
  return worker === 0 ? path : `${path.slice(0, path.length - extension.length)}-${worker}${extension}`
}
