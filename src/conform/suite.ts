// All cases, in the order in which they are run.

import { DetourError } from '../errors.ts'
import type { Case } from './case.ts'
import { FLOW_CASES, IDLE_CASES } from './cases/flows.ts'
import { HEADER_CASES } from './cases/header.ts'
import { HEALTH_CASES } from './cases/health.ts'
import { INNER_CASES } from './cases/inner.ts'
import { OPTION_CASES } from './cases/options.ts'
import { OUTER_CASES } from './cases/outer.ts'
import { REBALANCE_CASES } from './cases/rebalance.ts'
import { RUBBISH_CASES } from './cases/rubbish.ts'

/** Every case there is; the one that ends the data path is last. */
export const CASES: readonly Case[] = [
  ...FLOW_CASES,
  ...OPTION_CASES,
  ...HEADER_CASES,
  ...OUTER_CASES,
  ...INNER_CASES,
  ...REBALANCE_CASES,
  ...RUBBISH_CASES,
  ...IDLE_CASES,
  ...HEALTH_CASES,
]

/** The cases whose names are given, `ecn-*` standing for all that begin so; all when none is. Throws `usage`. */
export function casesNamed(names: readonly string[]): readonly Case[] {
  if (names.length === 0) return CASES
  const chosen = new Set<Case>()
  for (const name of names) {
    const isStart = name.endsWith('*')
    const found = CASES.filter(each => (isStart ? each.name.startsWith(name.slice(0, -1)) : each.name === name))
    if (found.length === 0)
      throw new DetourError('usage', `case ${name}: there is none of that name; --list names those there are`)
    for (const each of found) chosen.add(each)
  }
  return CASES.filter(each => chosen.has(each))
}
