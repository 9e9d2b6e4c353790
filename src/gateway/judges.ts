// Two judges over one flow: a policy, and threat signatures. The strictest verdict wins.

import { VERDICT } from '../flow/verdict.ts'
import { type Judge, UNDECIDED } from './judge.ts'
import type { SignatureJudge } from './suricata/judge.ts'

/** Numbers of signatures among the rules of both. */
const SIGNATURES = 1 << 24
const STRICTNESS = [VERDICT.ALLOW, VERDICT.FORBID, VERDICT.RESET, VERDICT.DROP] as const

export class Judges implements Judge {
  private readonly policy: Judge
  private readonly signatures: SignatureJudge
  private last: Judge

  constructor(policy: Judge, signatures: SignatureJudge) {
    this.policy = policy
    this.signatures = signatures
    this.last = policy
  }

  get matchedAt(): number {
    return this.last.matchedAt
  }

  get detail(): string | undefined {
    return this.last.detail
  }

  begin(frame: number, row: number, opener: number): number {
    const rule = this.policy.begin(frame, row, opener)
    if (this.policy.verdict(rule) === VERDICT.ALLOW) this.signatures.begin(frame, row, opener)
    else this.signatures.release(row)
    return rule
  }

  watches(row: number): boolean {
    return this.policy.watches(row) || this.signatures.watches(row)
  }

  judge(frame: number, row: number): number {
    const ofPolicy = this.policy.watches(row) ? this.policy.judge(frame, row) : UNDECIDED
    const ofSignatures = this.signatures.watches(row) ? this.signatures.judge(frame, row) : UNDECIDED
    const bySignature =
      ofSignatures !== UNDECIDED &&
      (ofPolicy === UNDECIDED ||
        strictness(this.signatures.verdict(ofSignatures)) > strictness(this.policy.verdict(ofPolicy)))
    this.last = bySignature ? this.signatures : this.policy
    return bySignature ? SIGNATURES + ofSignatures : ofPolicy
  }

  release(row: number): void {
    this.policy.release(row)
    this.signatures.release(row)
  }

  verdict(rule: number): number {
    return rule >= SIGNATURES ? this.signatures.verdict(rule - SIGNATURES) : this.policy.verdict(rule)
  }

  name(rule: number): string {
    return rule >= SIGNATURES ? this.signatures.name(rule - SIGNATURES) : this.policy.name(rule)
  }
}

function strictness(verdict: number): number {
  return STRICTNESS.indexOf(verdict as (typeof STRICTNESS)[number])
}
