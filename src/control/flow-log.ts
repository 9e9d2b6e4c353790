// The flow log: one JSON line when a flow begins and one when it has ended, appended to a file.
//
// A file that was renamed (logrotate) is let go by `reopen`; one that was truncated (copytruncate) is written on from its start.

import { closeSync, openSync, writeSync } from 'node:fs'
import { DetourError } from '../errors.ts'
import type { FlowVerdict } from './source.ts'

/** Why a flow ended: nothing for too long, FIN from both ends, RST, its pod was detached, the node was stopped. */
export type FlowEnd = 'idle' | 'closed' | 'reset' | 'detached' | 'stopped'

/** A line. Addresses are those of the flow's first packet; sent and received are as its source sees them. */
export interface FlowLine {
  event: 'start' | 'end'
  /** RFC 3339, UTC. */
  time: string
  attachment: string
  pod?: string
  /** `tcp`, `udp`, `icmp`, `icmp6`, or the number. */
  protocol: string | number
  source: string
  sourcePort: number
  destination: string
  destinationPort: number
  verdict: FlowVerdict
  endpoint?: string
  /** The rest at the end only. */
  reason?: FlowEnd
  durationMs?: number
  sentPackets?: number
  sentBytes?: number
  receivedPackets?: number
  receivedBytes?: number
}

/** The open flow log: main thread only. */
export interface FlowLog {
  /** Appends lines; those that the disk does not take are counted in `lost`. */
  write(lines: FlowLine[]): void
  /** Lets the file go and opens the one of that name, which may be another by now. Throws DetourError and keeps the old one. */
  reopen(): void
  close(): void
  /** Lines that could not be written. */
  readonly lost: number
}

const NEWLINE = 10

/** Opens a flow log for appending; makes the file, for its owner only. Throws DetourError. */
export function openFlowLog(path: string): FlowLog {
  let fd = open(path)
  let lost = 0
  /** Half a line is at the end of the file. */
  let torn = false
  return {
    write(lines) {
      if (lines.length === 0) return
      const block = Buffer.from(`${torn ? '\n' : ''}${lines.map(line => `${JSON.stringify(line)}\n`).join('')}`)
      let at = 0
      try {
        while (at < block.length) at += writeSync(fd, block, at)
        torn = false
      } catch {
        lost += block.subarray(at).filter(byte => byte === NEWLINE).length
        if (at > 0) torn = block[at - 1] !== NEWLINE
      }
    },
    reopen() {
      const old = fd
      fd = open(path)
      torn = false
      closeSync(old)
    },
    close: () => closeSync(fd),
    get lost() {
      return lost
    },
  }
}

function open(path: string): number {
  try {
    return openSync(path, 'a', 0o600)
  } catch (error) {
    throw new DetourError(
      'permission',
      `flowLog ${path}: ${(error as Error).message}; name a file that can be written`,
      {
        cause: error,
      },
    )
  }
}
