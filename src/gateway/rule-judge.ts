// Judges by the rule file: the first rule that matches decides, those with a signature as soon as it was found.

import { compile, Policy } from '../flow/policy.ts'
import { VERDICT } from '../flow/verdict.ts'
import { KEY_WORDS, type Pool } from '../memory/pool.ts'
import { type Judge, UNDECIDED } from './judge.ts'
import type { Rule, Rules } from './rules.ts'
import { Search } from './search.ts'

const ACTION = { allow: VERDICT.ALLOW, drop: VERDICT.DROP, reset: VERDICT.RESET } as const
const DEFAULT_RULE = -1

export class RuleJudge implements Judge {
  readonly detail = undefined
  private readonly pool: Pool
  private readonly rules: Rules
  /** The rules without a signature, and where they stand in the file. */
  private readonly plain: Policy
  private readonly plainAt: number[]
  /** Each rule with a signature as a policy of its own, and where it stands in the file. */
  private readonly signed: Policy[]
  private readonly signedAt: number[]
  private readonly search: Search

  /** For flows whose row is below `rows`. */
  constructor(pool: Pool, rules: Rules, rows: number) {
    const all = rules.rules
    const indexes = all.map((_, i) => i)
    this.pool = pool
    this.rules = rules
    this.plainAt = indexes.filter(i => all[i].signature === undefined)
    this.signedAt = indexes.filter(i => all[i].signature !== undefined)
    this.plain = policyOf(this.plainAt.map(i => all[i]))
    this.signed = this.signedAt.map(i => policyOf([all[i]]))
    const signatures = this.signedAt.map(i => all[i].signature!)
    this.search = new Search(pool, signatures, rows)
  }

  get matchedAt(): number {
    return this.search.matchedAt
  }

  /** The first rule that needs no payload; the signatures of the rules in front of it are searched for. */
  begin(frame: number, row: number, opener: number): number {
    const { pool, plain, signed, signedAt } = this
    const at = frame * KEY_WORDS
    const match = plain.match(pool.key, at, opener)
    const rule = match < 0 ? DEFAULT_RULE : this.plainAt[match]
    let candidates = 0
    for (let i = 0; i < signed.length; i++) {
      if (rule !== DEFAULT_RULE && signedAt[i] > rule) break
      if (signed[i].match(pool.key, at, opener) >= 0) candidates |= 1 << i
    }
    this.search.begin(row, candidates)
    return rule
  }

  watches(row: number): boolean {
    return this.search.active(row)
  }

  judge(frame: number, row: number): number {
    const found = this.search.run(frame, row)
    if (found < 0) return UNDECIDED
    this.release(row)
    return this.signedAt[found]
  }

  release(row: number): void {
    this.search.begin(row, 0)
  }

  verdict(rule: number): number {
    return ACTION[rule === DEFAULT_RULE ? this.rules.default : this.rules.rules[rule].action]
  }

  name(rule: number): string {
    return rule === DEFAULT_RULE ? 'default' : this.rules.rules[rule].name
  }
}

function policyOf(rules: Rule[]): Policy {
  const compiled = rules.map(({ signature: _, action, ...rule }) => ({ ...rule, verdict: ACTION[action] }))
  return new Policy(compile(compiled, VERDICT.ALLOW))
}
