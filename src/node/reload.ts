// A configuration that is read again: what differs, what of it can be taken over while packets flow, and what must wait.

import type { Config } from '../control/config.ts'

/** Keys that a running node goes by as soon as they change; a section stands for all in it. */
const LIVE = [
  'endpoints',
  'tunnel.remote',
  'health',
  'rebalance',
  'mssClamp',
  'pods.inspect',
  'pods.excludeNamespaces',
  'pods.bypassNode',
  'failMode',
  'heartbeatLimitMs',
  'bypass',
  'polling',
  'metrics',
  'log',
]

/** Keys that have changed. */
export interface Changes {
  applied: string[]
  /** They count from the next start on; until then the last values hold. */
  waiting: string[]
}

/** Takes over into `current`, in place, what of `next` can change while packets flow. */
export function takeOver(current: Config, next: Config): Changes {
  const changes: Changes = { applied: [], waiting: [] }
  merge(current as Tree, next as Tree, '', changes)
  return changes
}

type Tree = Record<string, unknown>

function merge(current: Tree, next: Tree, above: string, changes: Changes): void {
  for (const key of new Set([...Object.keys(current), ...Object.keys(next)])) {
    const path = above + key
    const [from, to] = [current[key], next[key]]
    if (isTree(from) && isTree(to)) merge(from, to, `${path}.`, changes)
    else if (JSON.stringify(from) !== JSON.stringify(to)) {
      const live = LIVE.some(name => path === name || path.startsWith(`${name}.`))
      if (live) current[key] = to
      changes[live ? 'applied' : 'waiting'].push(path)
    }
  }
}

const isTree = (value: unknown): value is Tree => typeof value === 'object' && value !== null && !Array.isArray(value)
