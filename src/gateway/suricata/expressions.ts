// Compiled expressions of rules, each once, within a budget: a file of them can neither take long nor much memory.

import { DetourError } from '../../errors.ts'
import { type Automaton, compilePattern } from '../automaton.ts'

/** States of all expressions of the rules at most: at 64 classes of bytes each, 64 MiB of tables. */
const LIMIT_STATES = 1 << 19
/** What an expression that was refused has cost. */
const REFUSED = 2048

/** What expressions may still cost. */
export class Budget {
  private left = LIMIT_STATES
  private readonly compiled = new Map<string, Automaton>()

  /** The automaton of an expression; throws DetourError (`unsupported`) where there is none. */
  compile(source: string, flags: string): Automaton {
    const key = `${flags}/${source}`
    const known = this.compiled.get(key)
    if (known !== undefined) return known
    if (this.left <= 0)
      throw new DetourError('bad-config', `the expressions of the rules need more than ${LIMIT_STATES} states in all`)
    try {
      const automaton = compilePattern({ regex: source, flags })
      this.left -= automaton.states
      this.compiled.set(key, automaton)
      return automaton
    } catch (error) {
      this.left -= REFUSED
      throw new DetourError('unsupported', `pcre /${source}/: ${(error as Error).message}`, { cause: error })
    }
  }
}
